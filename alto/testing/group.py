"""Groups made by hand, for unit tests that call the function of a stage."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeVar, final

from alto.errors import Closed
from alto.stream import Group

__all__ = ("group",)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def group(pieces: Iterable[T] | AsyncIterable[T], /) -> Group[T]:
    """Return a group of *pieces*, as a stage gets it: ``await tally.fn(group([1, 2, 3]))``.

    Like a real one it may be iterated once, and then raises ``Closed``.
    """
    return _GroupOfPieces(pieces)


@final
class _GroupOfPieces(Group[T_co]):
    __slots__ = ("_iterated", "_pieces", "_reading")

    def __init__(self, pieces: Iterable[T_co] | AsyncIterable[T_co]) -> None:
        self._pieces = pieces
        self._reading: AsyncIterator[T_co] | None = None
        self._iterated = False

    def __aiter__(self) -> AsyncIterator[T_co]:
        if self._iterated:
            msg = (
                "a Group may be iterated once; keep what you need in a list "
                "(`pieces = await group.list()`)"
            )
            raise Closed(msg)
        self._iterated = True
        return self._read()

    async def __anext__(self) -> T_co:
        return await anext(self._read())

    def _read(self) -> AsyncIterator[T_co]:
        if self._reading is None:
            pieces = self._pieces
            self._reading = aiter(pieces if isinstance(pieces, AsyncIterable) else _each(pieces))
        return self._reading


async def _each(pieces: Iterable[T]) -> AsyncIterator[T]:
    for piece in pieces:
        yield piece
