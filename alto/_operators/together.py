"""Operators that make one stream of several: ``merge``, ``outputs``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, Union, get_args, overload

import attrs

from alto._graph.spec import GroupOrder
from alto._operators.arguments import check_choice
from alto._operators.bodies import lifting, merging, racing
from alto._operators.call import OperatorCall, generic
from alto.errors import GraphError
from alto.stream import Stream, Symbol, symbol_of

__all__ = ("Output", "merge", "outputs")

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@attrs.frozen
class Output(Generic[T_co]):
    """A result of a pipeline that has several outputs; made by :func:`alto.outputs`."""

    name: str
    """Name of its output."""
    value: T_co
    """The result itself."""


@overload
def merge(
    stream: Stream[A], stream2: Stream[B], /, *, by: Stream[object] | None = ...,
    order: GroupOrder = ...,
) -> Stream[A | B]: ...  # fmt: skip
@overload
def merge(
    stream: Stream[A], stream2: Stream[B], stream3: Stream[C], /, *,
    by: Stream[object] | None = ..., order: GroupOrder = ...,
) -> Stream[A | B | C]: ...  # fmt: skip
@overload
def merge(
    stream: Stream[A], stream2: Stream[B], stream3: Stream[C], stream4: Stream[D], /, *,
    by: Stream[object] | None = ..., order: GroupOrder = ...,
) -> Stream[A | B | C | D]: ...  # fmt: skip
@overload
def merge(
    stream: Stream[A], stream2: Stream[B], stream3: Stream[C], stream4: Stream[D],
    stream5: Stream[E], /, *, by: Stream[object] | None = ..., order: GroupOrder = ...,
) -> Stream[A | B | C | D | E]: ...  # fmt: skip
@overload
def merge(
    stream: Stream[A], stream2: Stream[B], stream3: Stream[C], stream4: Stream[D],
    stream5: Stream[E], stream6: Stream[F], /, *, by: Stream[object] | None = ...,
    order: GroupOrder = ...,
) -> Stream[A | B | C | D | E | F]: ...  # fmt: skip
@overload
def merge(
    *streams: Stream[T], by: Stream[object] | None = ..., order: GroupOrder = ...
) -> Stream[T]: ...
def merge(
    *streams: Stream[Any], by: Stream[object] | None = None, order: GroupOrder = "ancestry"
) -> Stream[Any]:
    """Merge the items of several streams into one stream.

    One call merges all items below one item of their nearest common ancestor, or of *by*; after
    :func:`alto.switch` that ancestor is the stream before the branches. The result has one level
    below it. A stream is no ancestor of itself: where one of the streams lies above the others, the
    common ancestor lies above it too.

    Args:
        *streams: Two or more streams; of the same depth, unless they are merged by arrival.
        by: The stream whose items the groups belong to, where that is not their nearest common
            ancestor.
        order: ``"ancestry"``: below each ancestor all items of the first stream, then those of the
            next; ``"arrival"``: items of all streams as they come, each stream's in its order of
            arrival. A stream that gives nothing for long then does not hold up the others, whose
            items are kept where the consumer is slower, up to ``open(max_held_items=...)``.

    Raises:
        GraphError: There are fewer than two streams, they differ in depth and are not merged by
            arrival, or *by* is no ancestor of all of them.

    Cancellation: as in a stage, calls that only the groups were waiting for are cancelled.
    """
    call = OperatorCall("merge")
    check_choice(order, call.where, "order=", get_args(GroupOrder))
    if len(streams) < 2:
        msg = (
            f"{call.where} takes two or more streams, not {len(streams)}; pass each one, and those "
            f"of a list as `merge(*streams)`"
        )
        raise GraphError(msg)
    symbols = [call.symbol(stream, f"stream {k}") for k, stream in enumerate(streams, 1)]
    if order == "ancestry":
        _check_depths(call, symbols)
    body = merging() if order == "ancestry" else racing()
    return _together(call, body, streams, _union(symbols), by=by, order=order)


def outputs(**streams: Stream[T]) -> Stream[Output[T]]:
    """Merge the results of several streams into one stream of named results, as they arrive.

    A pipeline returns it to have several outputs that one request serves::

        @alto.pipeline
        def chat(question: Stream[str]) -> Stream[alto.Output[str | Verdict]]:
            words = answer(question)
            return alto.outputs(words=words, verdicts=judge(sentences(words)))

        async for output in app.stream("Who was Fleming?"):
            match output:
                case alto.Output("words", word): ...
                case alto.Output("verdicts", verdict): ...

    The streams may be of any depth. ``run`` gives the results in order of arrival as well: the order within one output
    may differ from run to run.

    Args:
        **streams: One or more streams; the keywords are the names of the outputs.

    Raises:
        GraphError: There is none, or one is no stream of the pipeline that is being read.

    Cancellation: as in a stage, calls that only these results were waiting for are cancelled.
    """
    call = OperatorCall("outputs")
    if not streams:
        msg = f"{call.where} takes streams by name: `alto.outputs(words=words, verdicts=judged)`"
        raise GraphError(msg)
    symbols = [call.symbol(stream, name) for name, stream in streams.items()]
    body = racing([partial(Output, name) for name in streams])
    output = generic(Output, _union(symbols))
    return _together(call, body, [*streams.values()], output, order="arrival")


def _union(symbols: Sequence[Symbol]) -> Any:  # noqa: ANN401  # a type
    return Union[tuple(symbol.type for symbol in symbols)]  # noqa: UP007  # built at run time


def _together(  # the differences between the two operators
    call: OperatorCall,
    body: Callable[..., AsyncIterator[Any]],
    streams: Sequence[Stream[Any]],
    output: object,
    *,
    by: Stream[object] | None = None,
    order: GroupOrder,
) -> Stream[Any]:
    # A stream of one item per request has nothing to gather: give it a level.
    given = [
        stream
        if symbol_of(stream).levels
        else call.stage(lifting(), {"stream": stream}, symbol_of(stream).type, group=False)
        for stream in streams
    ]
    named = {f"stream{k}": stream for k, stream in enumerate(given, 1)}
    return call.stage(body, named, output, group=True, by=by, order=order)


def _check_depths(call: OperatorCall, symbols: Sequence[Symbol]) -> None:
    head = symbols[0]
    for symbol in symbols[1:]:
        if len(symbol.levels) != len(head.levels):
            deeper = max((head, symbol), key=lambda one: len(one.levels))
            msg = (
                f"{call.where}: {head.label} ({call.in_words(head)}) and {symbol.label} "
                f"({call.in_words(symbol)}) differ in depth, so their items have no order of "
                f"ancestry; merge them as they come, with "
                f'order="arrival", or gather {deeper.label} first, with alto.collect or in a stage '
                f"over Group[{deeper.shown}]"
            )
            raise GraphError(msg)
