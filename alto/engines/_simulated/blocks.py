"""KV memory of a simulated engine: blocks that sequences hold, share, release and evict.

A full block of a prompt has a *name* (see :mod:`alto._sched.prefix`), and sequences whose prompts
have the same name hold the same block. All other blocks belong to one sequence. A block that no
sequence holds stays in memory until its space is needed; the least recently used is evicted first.
Blocks without content, or only partly full, are reused before any of these.

* A name is in ``_holders`` exactly while its block is in memory, with the number of its holders.
* A holder of a block also holds the one before it, so if a name is in memory, so are those before it.
* ``_idle`` has the blocks without a holder, in order of eviction. A key is a name, or a *run*: the
  full blocks that belonged to one sequence, with their count, of which the deepest goes first.
* ``free`` is the number of blank blocks and idle blocks together.

Blocks are only counted, so taking a thousand costs no more than evicting the idle ones among them.
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
        total: Number of blocks.
        removed: Called with the names of evicted blocks.
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
        """Number of blocks that a sequence holds."""
        return self.total - self.free

    @property
    def named(self) -> int:
        """Number of blocks with a name, held or idle."""
        return len(self._holders)

    def find(self, names: Sequence[int], limit: int, /) -> tuple[int, int]:
        """Return how many leading names, at most *limit*, are in memory, and how many are idle."""
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
        """Hold the first *count* of *names*, which are in memory."""
        holders, idle = self._holders, self._idle
        for name in names if count == len(names) else names[:count]:
            holding = holders[name]
            if holding == 0:
                del idle[name]
                self.free -= 1
            holders[name] = holding + 1

    def add(self, names: Sequence[int], start: int, stop: int, /) -> int:
        """Name the blocks *start* to *stop*, already taken, up to the first name that is in memory.

        Returns:
            Number of blocks named.
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
        """Return the number of blocks left of a run."""
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
        """Release the blocks of a sequence, the last one first.

        Args:
            names: Names of its prompt's blocks.
            shared: Number of these that it holds.
            run: Key for its own full blocks.
            full: Number of its own full blocks.
            partial: Number of its own blocks that are not full.
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
