"""Liveness of a stream: which parts of it are still needed.

Theory of operation. A stream has one or more consumers, fixed at declaration. A consumer that needs no
more releases everything at and below one ancestor. An ancestor is *dead* when every consumer has
released it or something above it. Only then may its producers be cancelled. A release is final, so
a dead ancestor stays dead.
"""

from __future__ import annotations

from alto.model import Path

__all__ = ("Liveness",)


class Liveness:
    """The intersection of what the consumers of one stream have released.

    Args:
        consumers: How many consumers the stream has, >= 1.
    """

    __slots__ = ("_deepest", "_released", "dead")

    def __init__(self, consumers: int) -> None:
        if consumers < 1:
            msg = f"need at least one consumer, got {consumers}"
            raise ValueError(msg)
        # Invariant: no path in one of these sets is an ancestor of another in the same set.
        self._released: list[set[Path]] = [set() for _ in range(consumers)]
        # Length of the longest path ever released. Nothing deeper needs to be searched for.
        self._deepest = 0
        self.dead: set[Path] = set()
        """Dead ancestors, none of them below another."""

    def release(self, consumer: int, ancestor: Path, /) -> list[Path]:
        """Record that consumer number *consumer* needs nothing at or below *ancestor* any more.

        Returns:
            Ancestors that have become dead, none of them below another.
        """
        if self.released(consumer, ancestor):
            return []
        self._add(self._released[consumer], ancestor)
        size = len(ancestor)
        # What may be dead now: the ancestor, or what others released below it.
        candidates = {ancestor}
        if size < self._deepest:
            for other in self._released:
                candidates |= {p for p in other if p[:size] == ancestor}
        dead: list[Path] = []
        for path in sorted(candidates, key=len):
            if not _covered(self.dead, path) and all(_covered(r, path) for r in self._released):
                dead.append(path)
                self._add(self.dead, path)
        return dead

    def released(self, consumer: int, path: Path, /) -> bool:
        """Return whether *consumer* has released *path* or something above it."""
        return _covered(self._released[consumer], path)

    def _add(self, paths: set[Path], path: Path) -> None:
        size = len(path)
        if size < self._deepest:
            paths -= {p for p in paths if p[:size] == path}
        else:
            self._deepest = size
        paths.add(path)

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken."""
        for paths in (*self._released, self.dead):
            for path in paths:
                assert not _covered(paths - {path}, path), path
        for path in self.dead:
            assert all(_covered(r, path) for r in self._released), path


def _covered(paths: set[Path], path: Path) -> bool:
    return bool(paths) and any(path[:n] in paths for n in range(len(path) + 1))
