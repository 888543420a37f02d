"""Release the pieces of one group in ancestry order, each as early as it is certain.

Theory of operation. Pieces arrive in any order under suffixes of equal length (their paths below
the group's ancestor). A piece is certain to be next when everything before it has been released
or is known not to exist. A cursor walks the tree of suffixes depth first: it stands at the suffix
that is due next; when the node it is in is known to have no more children it leaves that node for
its parent's next child. It waits where neither the piece nor the count is known.

With one level the cursor is a plain counter, and counts are not needed to release, only to end.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from alto.model import Path

__all__ = ("Order",)

T = TypeVar("T")


class Order(Generic[T]):
    """Put the pieces of one group into ancestry order.

    Args:
        levels: Length of every suffix, >= 1.
        out: Released pieces are appended here.
    """

    __slots__ = ("_counts", "_cursor", "_held", "_levels", "_next", "out")

    def __init__(self, levels: int, out: deque[T]) -> None:
        if levels < 1:
            msg = f"need levels >= 1, got {levels}"
            raise ValueError(msg)
        self._levels = levels
        self.out = out
        self._next = 0  # Used instead of the cursor where there is one level.
        self._cursor = [0] * levels
        self._held: dict[Path, T] = {}
        self._counts: dict[Path, int] = {}

    def __len__(self) -> int:
        """Pieces that have arrived and are not certain yet."""
        return len(self._held)

    def arrived(self, suffix: Path, piece: T, /) -> None:
        """A piece is here; it and what waited for it alone go to ``out``.

        Cost: O(1) amortised per piece.
        """
        if self._levels == 1:
            if suffix[0] != self._next:
                self._held[suffix] = piece
                return
            self.out.append(piece)
            self._next += 1
            held = self._held
            while held and (self._next,) in held:
                self.out.append(held.pop((self._next,)))
                self._next += 1
            return
        self._held[suffix] = piece
        if list(suffix) == self._cursor:
            self._walk()

    def counted(self, prefix: Path, children: int, /) -> None:
        """The node at *prefix*, shorter than a suffix, has that many children; 0 is legal."""
        if self._levels > 1:
            self._counts[prefix] = children
            self._walk()

    def check(self) -> None:
        """Assert that nothing is held that could be released."""
        due = (self._next,) if self._levels == 1 else tuple(self._cursor)
        assert due not in self._held, due
        assert all(suffix > due for suffix in self._held), due

    def _walk(self) -> None:
        cursor, held = self._cursor, self._held
        while True:
            due = tuple(cursor)
            if due in held:
                self.out.append(held.pop(due))
                cursor[-1] += 1
            elif not self._leave(cursor):
                return

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
