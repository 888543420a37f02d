"""Groups made by hand: to call the plain function of a stage in a unit test."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TypeVar, final

from alto.errors import Closed
from alto.stream import Group

__all__ = ("group",)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def group(pieces: Iterable[T] | AsyncIterable[T], /) -> Group[T]:
    """A group of *pieces*, as a stage would get it: ``await tally.fn(group([1, 2, 3]))``.

    Like a real one it may be iterated once, and then raises ``Closed``.
    """
    return _Pieces(pieces)


@final
class _Pieces(Group[T_co]):
    __slots__ = ("_iterated", "_pieces")

    def __init__(self, pieces: Iterable[T_co] | AsyncIterable[T_co]) -> None:
        self._pieces = pieces
        self._iterated = False

    def __aiter__(self) -> AsyncIterator[T_co]:
        if self._iterated:
            msg = (
                "a Group may be iterated once; keep what you need in a list "
                "(`pieces = await group.list()`)"
            )
            raise Closed(msg)
        self._iterated = True
        if isinstance(self._pieces, AsyncIterable):
            return aiter(self._pieces)
        return _each(self._pieces)


async def _each(pieces: Iterable[T]) -> AsyncIterator[T]:
    for piece in pieces:
        yield piece
