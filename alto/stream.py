"""Streams, which a pipeline function handles, and groups, which a stage gathers."""

from __future__ import annotations

import builtins
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar, final

import attrs

__all__ = ("Group", "Stream", "Symbol", "symbol_of")

T_co = TypeVar("T_co", covariant=True)


@attrs.frozen(kw_only=True, eq=False)
class Symbol:
    """A stream's place and type in the pipeline that is being read."""

    tracer: object
    """The reading of the pipeline; streams of two readings do not mix."""
    pipeline: str
    """Name of the pipeline, for messages."""
    number: int
    """The stream's number in the declaration: the pipeline's inputs first, then one per node."""
    type: object
    """Type of one item, as annotated."""
    shown: str
    """The type as it is written in source."""
    label: str
    """Its origin, for messages: ``input 'question'``, ``stage 'answer'``."""
    levels: tuple[int, ...] = ()
    """The numbers of the nodes that opened its levels, outermost first; see ``_graph/plan.py``."""


@final
class Stream(Generic[T_co]):
    """The items that will flow between two stages, as a pipeline function handles them.

    A stream is symbolic: a pipeline function is read once, before anything runs, so a stream holds
    no items. Pass it to stages, operators and other pipelines, or return it. Everything that needs
    an item happens inside a stage; iterating, awaiting, comparing or testing a stream raises
    ``TypeError``. Streams are made by alto, never by you.
    """

    __slots__ = ("_symbol",)

    def __init__(self, symbol: Symbol, /) -> None:
        self._symbol = symbol

    def __repr__(self) -> str:
        symbol = self._symbol
        return f"<Stream[{symbol.shown}] from {symbol.label} of pipeline {symbol.pipeline!r}>"

    if (
        not TYPE_CHECKING
    ):  # pragma: no branch  # The checkers refuse these by themselves; here the remedy is said.

        def __iter__(self) -> NoReturn:
            self._refuse("iterated over", "take its items one by one in a stage (`x: T`)")

        def __aiter__(self) -> NoReturn:
            self._refuse("iterated over", "iterate a Group inside a stage (`xs: Group[T]`)")

        def __await__(self) -> NoReturn:
            self._refuse(
                "awaited", "pass it to a stage, or run the pipeline with `await app.run()`"
            )

        def __bool__(self) -> NoReturn:  # noqa: PLE0304  # raises
            self._refuse("tested for truth", "test its items inside a stage")

        def __len__(self) -> NoReturn:  # noqa: PLE0303  # raises
            self._refuse("counted", "count its items in a stage over a Group")

        def __contains__(self, item: object) -> NoReturn:
            self._refuse("searched", "look at its items inside a stage")

        def __getitem__(self, key: object) -> NoReturn:
            self._refuse("indexed", "index its items inside a stage")

        def __eq__(self, other: object) -> NoReturn:
            self._refuse("compared", "compare its items inside a stage (or streams with `is`)")

        __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
        __hash__ = object.__hash__

        def __call__(self, *_: object, **__: object) -> NoReturn:
            """Raise: a stream cannot be called."""
            self._refuse("called", "call a stage on it: `stage(stream)`")

        def __getattr__(self, name: str) -> NoReturn:
            msg = (
                f"a Stream has no attribute {name!r}: it stands for items that do not exist yet; "
                f"use the attributes of its items inside a stage"
            )
            raise AttributeError(msg)

        def _refuse(self, done: str, remedy: str) -> NoReturn:
            msg = (
                f"{self!r} cannot be {done}: a pipeline function is read once, before any item "
                f"exists; {remedy}"
            )
            raise TypeError(msg)


def symbol_of(stream: Stream[object], /) -> Symbol:
    """Return the symbol of *stream*."""
    return stream._symbol  # noqa: SLF001  # a public name for the private attribute


class Group(AsyncIterable[T_co]):
    """The pieces of one parent, as they are made, passed to a stage over ``Group[T]``.

    An async iterable that may be iterated once. It ends when the group is complete, that is, when
    every stage above has given all the parent's pieces; an empty group ends at once. Pieces come in
    ancestry order, or with ``@stage(order="arrival")`` as they are made. ``await anext(group)`` gives a
    single piece; with a time limit around it, it may be made again and loses nothing.

    Leaving the iteration early (``break``) cancels the calls that only this group was waiting for,
    down to the engine's generation.

    ``alto.testing.group`` makes one from a list, for unit tests of a stage's plain function.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # pragma: no branch  # The checkers refuse these by themselves.

        def __iter__(self) -> NoReturn:
            self._refuse("iterated over with `for`", "write `async for x in xs`")

        def __len__(self) -> NoReturn:  # noqa: PLE0303  # raises
            self._refuse("counted", "write `len(await xs.list())`")

        def __bool__(self) -> NoReturn:  # noqa: PLE0304  # raises
            self._refuse("tested for truth", "look whether `await xs.list()` is empty")

        def __getitem__(self, key: object) -> NoReturn:
            self._refuse("indexed", "write `(await xs.list())[...]`, or `async for x in xs`")

        def __contains__(self, piece: object) -> NoReturn:
            self._refuse("searched", "write `x in await xs.list()`")

        def __await__(self) -> NoReturn:
            self._refuse("awaited", "write `await xs.list()`")

        def _refuse(self, done: str, remedy: str) -> NoReturn:
            msg = f"a Group cannot be {done}: its pieces are still being made; {remedy}"
            raise TypeError(msg)

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[T_co]:
        """Iterate over the pieces, once.

        Raises:
            Closed: It was iterated before, or its call has ended.

        Cancellation: no piece is lost; the group is left when the iteration is.
        """
        ...

    @abstractmethod
    async def __anext__(self) -> T_co:
        """Give the next piece: ``await anext(group)``.

        Raises:
            Closed: An iteration over it was left, or its call has ended.
            RuntimeError: Another task reads it at this moment.

        Cancellation: no piece is lost; the read can be made again.
        """
        ...

    async def list(self) -> builtins.list[T_co]:
        """Return all pieces, when the group is complete.

        Raises:
            Closed: It was iterated before, or its call has ended.

        Cancellation: the group is left.
        """
        return [piece async for piece in self]
