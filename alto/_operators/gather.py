"""Operators that make one value of a group: ``collect``, ``count``, ``total``, ``top_k``, ``reduce``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from numbers import Number
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, get_args, overload

from alto._graph.spec import GroupOrder
from alto._graph.types import accepts, show
from alto._operators.arguments import (
    check_choice,
    check_function,
    check_takes,
    check_whole,
    function_of,
    sum_of,
    unaddable,
    unordered,
)
from alto._operators.call import OperatorCall, generic
from alto._operators.fold import (
    Counting,
    Fold,
    Largest,
    Pane,
    Reducing,
    Totalling,
    fold,
    fold_in_panes,
)
from alto._safe_text import short, told
from alto.errors import GraphError
from alto.stream import Group, Stream, Symbol

__all__ = ("collect", "count", "reduce", "top_k", "total")

T = TypeVar("T")
A = TypeVar("A")
N = TypeVar("N", int, float, complex)
Emit: TypeAlias = Literal["final", "partial"]


class _Addable(Protocol):
    def __add__(self, other: Any, /) -> Any: ...  # noqa: ANN401  # of any type


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...  # noqa: ANN401  # with values like itself


S = TypeVar("S", bound=_Addable)
O = TypeVar("O", bound=_Ordered)  # noqa: E741  # as short as the others


def collect(
    stream: Stream[T], /, *, by: Stream[object] | None = None, order: GroupOrder = "ancestry"
) -> Stream[list[T]]:
    """Gather the items of each group in a list: one list per parent, empty where there are no items.

    Args:
        stream: The items to gather; it must be below something, so not one item per request.
        by: The stream whose items the groups belong to, where that is not the direct parent.
        order: ``"ancestry"``: in the order of a sequential program; ``"arrival"``: as they come.

    Raises:
        GraphError: There is nothing to gather, or nothing to gather by.

    Cancellation: as in a stage, calls that only the group was waiting for are cancelled.
    """
    call = OperatorCall("collect")
    check_choice(order, call.where, "order=", get_args(GroupOrder))
    output = generic(list, call.gathered(stream).type)
    return call.stage(_listed, {"stream": stream}, output, group=True, by=by, order=order)


@overload
def count(
    stream: Stream[object], /, *, by: Stream[object] | None = ..., emit: Literal["final"] = ...
) -> Stream[int]: ...
@overload
def count(
    stream: Stream[object], /, *, by: Stream[object] | None = ..., emit: Literal["partial"]
) -> Stream[Pane[int]]: ...
def count(
    stream: Stream[object], /, *, by: Stream[object] | None = None, emit: Emit = "final"
) -> Stream[Any]:  # Any: the overloads say.
    """Count the items of each group: one number per parent, 0 where there are none.

    Args:
        stream: The items to count; it must be below something, so not one item per request.
        by: The stream whose items the groups belong to, where that is not the direct parent. After
            :func:`where`, whose parent is the item itself, it is nearly always needed.
        emit: ``"final"``: when the group is complete; ``"partial"``: a :class:`Pane` after each
            item too.

    Raises:
        GraphError: There is nothing to count, or nothing to gather by.

    Cancellation: as in a stage, calls that only the group was waiting for are cancelled.
    """
    call = OperatorCall("count")
    call.gathered(stream)
    # The number is the same in any order, and out of order no piece is held back.
    return _folded(call, stream, Counting, int, emit, by=by, order="arrival")


@overload
def total(
    stream: Stream[N], /, *, start: N = ..., by: Stream[object] | None = ...,
    emit: Literal["final"] = ...,
) -> Stream[N]: ...  # fmt: skip
@overload
def total(
    stream: Stream[N], /, *, start: N = ..., by: Stream[object] | None = ...,
    emit: Literal["partial"],
) -> Stream[Pane[N]]: ...  # fmt: skip
@overload
def total(
    stream: Stream[T], /, *, key: Callable[[T], N | Awaitable[N]], start: N = ...,
    by: Stream[object] | None = ..., emit: Literal["final"] = ...,
) -> Stream[N]: ...  # fmt: skip
@overload
def total(
    stream: Stream[T], /, *, key: Callable[[T], N | Awaitable[N]], start: N = ...,
    by: Stream[object] | None = ..., emit: Literal["partial"],
) -> Stream[Pane[N]]: ...  # fmt: skip
@overload
def total(
    stream: Stream[S], /, *, start: S, by: Stream[object] | None = ...,
    emit: Literal["final"] = ...,
) -> Stream[S]: ...  # fmt: skip
@overload
def total(
    stream: Stream[S], /, *, start: S, by: Stream[object] | None = ..., emit: Literal["partial"]
) -> Stream[Pane[S]]: ...
@overload
def total(
    stream: Stream[T], /, *, key: Callable[[T], S | Awaitable[S]], start: S,
    by: Stream[object] | None = ..., emit: Literal["final"] = ...,
) -> Stream[S]: ...  # fmt: skip
@overload
def total(
    stream: Stream[T], /, *, key: Callable[[T], S | Awaitable[S]], start: S,
    by: Stream[object] | None = ..., emit: Literal["partial"],
) -> Stream[Pane[S]]: ...  # fmt: skip
def total(
    stream: Stream[Any], /, *, key: Callable[[Any], Any] | None = None, start: Any = 0,
    by: Stream[object] | None = None, emit: Emit = "final",
) -> Stream[Any]:  # fmt: skip  # Any: the overloads say.
    """Add the items of each group, in ancestry order; *start* where there are none.

    Args:
        stream: The items to add; it must be below something, so not one item per request.
        key: A function, sync or async, from an item to the number that is added for it.
        start: The value that the first one is added to. Give it for numbers of other classes, ``Decimal(0)``
            or ``timedelta()``, so that an empty group gives one as well.
        by: The stream whose items the groups belong to, where that is not the direct parent.
        emit: ``"final"``: when the group is complete; ``"partial"``: a :class:`Pane` after each
            item too.

    Raises:
        GraphError: The items are provably no numbers, or there is nothing to gather or gather by.
        StageError: In a request, with a ``TypeError`` as its cause: an item that is no number.

    Cancellation: as in a stage, calls that only the group was waiting for are cancelled.
    """
    call = OperatorCall("total")
    if isinstance(start, str | bytes | bytearray):
        msg = (
            f"{call.where}: start= must be a number, not {short(start)}; join texts with a stage "
            f"over Group[str]"
        )
        raise GraphError(msg)
    symbol = call.gathered(stream)
    added = symbol.type if key is None else _keyed(call, key, symbol)
    if isinstance(start, Number) and (wrong := unaddable(added)) is not None:
        what = f"key= gives {show(added)}" if key else f"{symbol.label} gives {symbol.shown}"
        remedy = "let it return a number" if key else "give key=, a function from item to number"
        msg = f"{call.where}: {what}, and {show(wrong)} is no number; {remedy}"
        raise GraphError(msg)

    def make() -> Fold:
        return Totalling(key, start)

    return _folded(call, stream, make, sum_of(added, start), emit, by=by)


@overload
def top_k(
    stream: Stream[O], /, k: int, *, by: Stream[object] | None = ...,
    emit: Literal["final"] = ...,
) -> Stream[list[O]]: ...  # fmt: skip
@overload
def top_k(
    stream: Stream[O], /, k: int, *, by: Stream[object] | None = ..., emit: Literal["partial"]
) -> Stream[Pane[list[O]]]: ...
@overload
def top_k(
    stream: Stream[T], /, k: int, *, key: Callable[[T], _Ordered | Awaitable[_Ordered]],
    by: Stream[object] | None = ..., emit: Literal["final"] = ...,
) -> Stream[list[T]]: ...  # fmt: skip
@overload
def top_k(
    stream: Stream[T], /, k: int, *, key: Callable[[T], _Ordered | Awaitable[_Ordered]],
    by: Stream[object] | None = ..., emit: Literal["partial"],
) -> Stream[Pane[list[T]]]: ...  # fmt: skip
def top_k(
    stream: Stream[Any], /, k: int, *, key: Callable[[Any], Any] | None = None,
    by: Stream[object] | None = None, emit: Emit = "final",
) -> Stream[Any]:  # fmt: skip  # Any: the overloads say.
    """Rank the items of each group: a list of the *k* largest, or all, the largest first.

    Of equals the one that is first in ancestry order counts as larger, so the result is the same
    under every schedule. With ``emit="partial"`` an early pane holds the best so far, in that order.

    Args:
        stream: The items to rank; it must be below something, so not one item per request.
        k: Most items that are kept.
        key: A function, sync or async, from an item to the value that it is ranked by.
        by: The stream whose items the groups belong to, where that is not the direct parent.
        emit: ``"final"``: when the group is complete; ``"partial"``: a :class:`Pane` after each
            item too.

    Raises:
        GraphError: *k* is no whole number from 1, the items provably have no order, or there is
            nothing to gather or gather by.
        StageError: In a request, with a ``TypeError`` as its cause: two items that cannot be
            compared; or with a ``ValueError``: one that is not a number.

    Cost: O(log k) per item, and *k* items of memory beside those that wait for their turn.

    Cancellation: as in a stage, calls that only the group was waiting for are cancelled.
    """
    call = OperatorCall("top_k")
    check_whole(k, call.where, "k")
    symbol = call.gathered(stream)
    ranked = symbol.type if key is None else _keyed(call, key, symbol)
    if (wrong := unordered(ranked)) is not None:
        what = f"key= gives {show(ranked)}" if key else f"{symbol.label} gives {symbol.shown}"
        remedy = "let it return" if key else "give key=, a function from item to"
        msg = f"{call.where}: {what}, and values of type {show(wrong)} have no order; {remedy} a score"
        raise GraphError(msg)

    def make() -> Fold:
        return Largest(k, key)

    output = generic(list, symbol.type)
    return _folded(call, stream, make, output, emit, by=by)


@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], Awaitable[A]], initial: Callable[[], A], *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["final"] = ...,
) -> Stream[A]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], Awaitable[A]], initial: Callable[[], A], *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["partial"],
) -> Stream[Pane[A]]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], Awaitable[A]], initial: A, *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["final"] = ...,
) -> Stream[A]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], Awaitable[A]], initial: A, *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["partial"],
) -> Stream[Pane[A]]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], A], initial: Callable[[], A], *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["final"] = ...,
) -> Stream[A]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], A], initial: Callable[[], A], *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["partial"],
) -> Stream[Pane[A]]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], A], initial: A, *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["final"] = ...,
) -> Stream[A]: ...  # fmt: skip
@overload
def reduce(
    stream: Stream[T], /, fn: Callable[[A, T], A], initial: A, *,
    by: Stream[object] | None = ..., order: GroupOrder = ..., emit: Literal["partial"],
) -> Stream[Pane[A]]: ...  # fmt: skip
def reduce(
    stream: Stream[Any], /, fn: Callable[[Any, Any], Any], initial: Any, *,
    by: Stream[object] | None = None, order: GroupOrder = "ancestry", emit: Emit = "final",
) -> Stream[Any]:  # fmt: skip  # Any: the overloads say.
    """Apply *fn* to each group, item by item: ``fn(fn(initial, first), second)`` and so on.

    Args:
        stream: The items to reduce; it must be below something, so not one item per request.
        fn: A function, sync or async, from the state so far and an item to the next state. It may
            change the state in place and return it.
        initial: The first state: a value, of which each group gets a deep copy, or a function
            without parameters that makes one (``list``). The result of an empty group.
        by: The stream whose items the groups belong to, where that is not the direct parent.
        order: ``"ancestry"``: items in the order of a sequential program; ``"arrival"``: as they
            come, for an *fn* to which that makes no difference.
        emit: ``"final"``: when the group is complete; ``"partial"``: a :class:`Pane` after each
            item too, with a deep copy of the state.

    Raises:
        GraphError: An argument is no such function, *initial* cannot be copied, a type provably
            does not fit, or there is nothing to gather or gather by.
        StageError: In a request: *fn* raised.

    Cancellation: as in a stage, calls that only the group was waiting for are cancelled.
    """
    call = OperatorCall("reduce")
    check_function(fn, f"{call.where}: fn", 2)
    check_choice(order, call.where, "order=", get_args(GroupOrder))
    symbol = call.gathered(stream)
    known = function_of(fn, 2)
    check_takes(known.takes[1], symbol, f"{call.where}: fn")
    if callable(initial):
        check_function(initial, f"{call.where}: initial, if not a value,", 0)
        if inspect.iscoroutinefunction(initial):
            msg = (
                f"{call.where}: initial must not be async: write the first state, or `lambda: ...`"
            )
            raise GraphError(msg)
        begin: Callable[[], Any] = initial
    else:
        _check_initial(call, initial, (known.takes[0], known.gives))
        begin = partial(copy.deepcopy, initial)

    def make() -> Fold:
        return Reducing(fn, begin)

    output = known.gives
    return _folded(call, stream, make, output, emit, by=by, order=order)


def _folded(  # noqa: PLR0913  # the parts of an operator over a group
    call: OperatorCall,
    stream: Stream[object],
    make: Callable[[], Fold],
    output: object,
    emit: object,
    *,
    by: object,
    order: GroupOrder = "ancestry",
) -> Stream[Any]:
    check_choice(emit, call.where, "emit=", get_args(Emit))
    streams = {"stream": stream}
    if emit == "final":
        return call.stage(fold(make), streams, output, group=True, by=by, order=order)
    panes = generic(Pane, output)
    return call.stage(fold_in_panes(make), streams, panes, group=True, by=by, order=order)


async def _listed(items: Group[Any]) -> list[Any]:
    return await items.list()


def _keyed(call: OperatorCall, key: Callable[[Any], Any], symbol: Symbol) -> object:
    # Check key=, and return the type of its result.
    where = f"{call.where}: key="
    check_function(key, where, 1)
    known = function_of(key, 1)
    check_takes(known.takes[0], symbol, where)
    return known.gives


def _check_initial(call: OperatorCall, initial: object, types: tuple[object, ...]) -> None:
    for tp in types:
        if not accepts(initial, tp):
            msg = (
                f"{call.where}: initial is {short(initial)} ({type(initial).__name__}), but fn is "
                f"annotated to take and give {show(tp)}; correct one of them"
            )
            raise GraphError(msg)
    try:
        copy.deepcopy(initial)
    except Exception as error:
        msg = (
            f"{call.where}: initial, {short(initial)}, cannot be copied ({told(error)}), and groups must "
            f"not share it; give a function that makes a new one: `initial=lambda: ...`"
        )
        raise GraphError(msg) from error
