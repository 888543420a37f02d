"""KV memory of a simulated engine: blocks that sequences hold, share, leave behind and throw out.

A full block of a prompt has a *name* (see :mod:`alto._sched.prefix`), and whoever has a prompt with
the same name holds the same block. All other blocks are one sequence's own. A block that nobody holds
any more stays where it is until its place is needed, the longest unused first. Blocks without
content, or only half full, are used up before any of these.

* A name is in ``_holders`` exactly while its block is in memory; its count is of those who hold it.
* Whoever holds a block holds the one before it, so if a name is there, so are those before it.
* ``_idle`` has what nobody holds, in the order in which it is thrown out: a name, or the *run* of
  the full blocks that were one sequence's own, counted, the deepest of which goes first.
* ``free`` is the sum of what is blank and what is idle.

Blocks are only counted, so taking a thousand costs no more than throwing out what was idle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import final

__all__ = ("Blocks",)


@final
class Blocks:
    """The memory of one engine.

    Args:
        total: Blocks there are.
        removed: Is told the names of blocks that were thrown out.
    """

    __slots__ = ("_blank", "_holders", "_idle", "_removed", "free", "total")

    def __init__(
        self, total: int, /, *, removed: Callable[[list[int]], None] | None = None
    ) -> None:
        self.total = total
        self.free = total
        self._blank = total
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[object, int] = OrderedDict()
        self._removed = removed

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return self.total - self.free

    @property
    def named(self) -> int:
        """Blocks with a name, held or not."""
        return len(self._holders)

    def find(self, names: Sequence[int], limit: int, /) -> tuple[int, int]:
        """How many of the first *limit* names are there, one after the other; how many idle."""
        holders, found, idle = self._holders, 0, 0
        for name in names if limit >= len(names) else names[:limit]:
            count = holders.get(name)
            if count is None:
                break
            found += 1
            if count == 0:
                idle += 1
        return found, idle

    def hold(self, names: Sequence[int], count: int, /) -> None:
        """Hold the first *count* of *names*, which are there."""
        holders, idle = self._holders, self._idle
        for name in names if count == len(names) else names[:count]:
            holding = holders[name]
            if holding == 0:
                del idle[name]
                self.free -= 1
            holders[name] = holding + 1

    def add(self, names: Sequence[int], start: int, stop: int, /) -> int:
        """Name the blocks *start* to *stop*, taken before, up to the first that is there already.

        Returns:
            How many have been named.
        """
        holders = self._holders
        for index in range(start, stop):
            if names[index] in holders:
                return index - start
            holders[names[index]] = 1
        return stop - start

    def take(self, count: int, /) -> None:
        """Take *count* blocks, at most ``free``."""
        assert count <= self.free, "more blocks taken than there are"
        self.free -= count
        count -= self._blank
        if count <= 0:
            self._blank = -count
            return
        self._blank = 0
        holders, idle = self._holders, self._idle
        gone = []
        while count > 0:
            key, size = idle.popitem(last=False)
            if isinstance(key, int):
                del holders[key]
                gone.append(key)
            elif size > count:
                idle[key] = size - count
                idle.move_to_end(key, last=False)
            count -= size
        if gone and self._removed is not None:
            self._removed(gone)

    def idle_of(self, run: object, /) -> int:
        """How many blocks are left of a run."""
        return self._idle.get(run, 0)

    def reclaim(self, run: object, count: int, /) -> None:
        """Hold the first *count* blocks of a run again."""
        left = self._idle[run] - count
        self.free -= count
        if left:
            self._idle[run] = left
        else:
            del self._idle[run]

    def release(
        self, names: Sequence[int], shared: int, run: object, /, *, full: int, partial: int
    ) -> None:
        """Let go of what a sequence holds, from its end to its beginning.

        Args:
            names: The names of its prompt's blocks.
            shared: How many of these it holds.
            run: Stands for its own full blocks.
            full: How many these are.
            partial: Blocks of its own that are not full.
        """
        self.free += full + partial
        self._blank += partial
        idle, holders = self._idle, self._holders
        if full:
            idle[run] = full
        for index in range(shared - 1, -1, -1):
            name = names[index]
            holding = holders[name] - 1
            holders[name] = holding
            if holding == 0:
                idle[name] = 1
                self.free += 1
