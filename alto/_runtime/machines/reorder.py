"""Reorder buffer: releases the pieces of one group in ancestry order, each as early as possible.

Theory of operation. Pieces arrive in any order under suffixes of equal length (their paths below
the group's ancestor). A piece is next when everything before it has been released or is known not to
exist. A cursor walks the tree of suffixes depth first: it points to the suffix
that is due next; when the node it is in is known to have no more children it leaves that node for
its parent's next child. It waits where neither the piece nor the count is known.

The group is complete when the cursor has left its last child: then every piece there will ever be
has been released. This is the same moment at which a :class:`~alto._runtime.machines.completion.CompletionCounter` closes.

With one level the cursor is a plain counter.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from alto.model import Path

__all__ = ("ReorderBuffer",)

T = TypeVar("T")


class ReorderBuffer(Generic[T]):
    """A buffer that puts the pieces of one group into ancestry order.

    Args:
        levels: Length of every suffix, >= 1.
        out: Released pieces are appended here.
        skip: Number of indices before the suffix of each path.
    """

    __slots__ = ("_counts", "_cursor", "_end", "_held", "_levels", "_next", "_skip", "out")

    def __init__(self, levels: int, out: deque[T], *, skip: int = 0) -> None:
        if levels < 1:
            msg = f"need levels >= 1, got {levels}"
            raise ValueError(msg)
        self._levels = levels
        self._skip = skip
        self.out = out
        self._end = -1  # Children of the group's ancestor; -1 while unknown.
        self._next = 0  # Used instead of the cursor where there is one level.
        self._cursor = [0] * levels
        self._held: dict[Path, T] = {}
        self._counts: dict[Path, int] = {}

    def __len__(self) -> int:
        """Return the number of pieces that have arrived and have not been released."""
        return len(self._held)

    def arrived(self, path: Path, piece: T, /) -> bool:
        """Record the arrival of a piece. It and the pieces that waited for it go to ``out``, if it is due.

        Returns:
            Whether that completes the group.

        Cost: O(1) amortised per piece.
        """
        if self._levels == 1:
            due = self._next
            if path[-1] != due:
                self._held[path[-1:]] = piece
                return False
            self.out.append(piece)
            due += 1
            if self._held:
                while (due,) in self._held:
                    self.out.append(self._held.pop((due,)))
                    due += 1
            self._next = due
            return due == self._end
        suffix = path[self._skip :]
        self._held[suffix] = piece
        return list(suffix) == self._cursor and self._walk()

    def counted(self, path: Path, children: int, /) -> bool:
        """Record that the node at *path*, shorter than a piece's, has that many children (>= 0).

        Returns:
            Whether that completes the group.
        """
        node = path[self._skip :]
        if not node:
            self._end = children
            if self._levels == 1:
                return self._next == children
        else:
            self._counts[node] = children
        return self._walk()

    def check(self) -> None:
        """Assert that nothing is held that could be released."""
        due = (self._next,) if self._levels == 1 else tuple(self._cursor)
        assert due not in self._held, due
        assert all(suffix > due for suffix in self._held), due

    def _walk(self) -> bool:
        cursor, held = self._cursor, self._held
        while True:
            due = tuple(cursor)
            if due in held:
                self.out.append(held.pop(due))
                cursor[-1] += 1
            elif not self._leave(cursor):
                return cursor[0] == self._end and not any(cursor[1:])

    def _leave(self, cursor: list[int]) -> bool:
        # Only a node whose deeper indices are all 0 can be left above the last level: the cursor
        # has not entered any child of the node that it would step over.
        for level in range(self._levels - 1, 0, -1):
            node = tuple(cursor[:level])
            if self._counts.get(node) == cursor[level]:
                del self._counts[node]
                cursor[level - 1] += 1
                cursor[level:] = [0] * (self._levels - level)
                return True
            if cursor[level]:
                return False
        return False
