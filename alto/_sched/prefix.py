"""Names for the blocks of a prompt, so that equal prefixes have equal names, and an index of them.

An engine keeps prompts in blocks of a fixed number of tokens, and can use a block again for another
prompt that is equal up to the end of the block. So a block is named by a chain of hashes: of its tokens
and of the name of the block before it. Only full blocks have names, since only they are kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

__all__ = ("PrefixIndex", "chain", "extend", "salt_of")

_ROOT = 0x616C746F


def chain(token_ids: Sequence[int], block_size: int, /, *, salt: int = 0) -> tuple[int, ...]:
    """Return the names of a prompt's full blocks, in order.

    Args:
        token_ids: The prompt, each id from 0 to 2**32 - 1.
        block_size: Tokens per block.
        salt: What else must be equal for blocks to be shared, such as an adapter.

    Returns:
        One number per full block. Equal names mean equal tokens up to there, except for a collision
        with a probability of about 2**-64. Names differ between processes.

    Cost: about 0.4 us per block of 16 tokens.
    """
    return extend(_ROOT ^ salt, token_ids, block_size)


def extend(parent: int, token_ids: Sequence[int], block_size: int, /) -> tuple[int, ...]:
    """Return the names of the full blocks of *token_ids* behind the block named *parent*."""
    data = array("I", token_ids).tobytes()
    size = 4 * block_size
    names = []
    for start in range(0, len(data) - size + 1, size):
        parent = hash((parent, data[start : start + size]))
        names.append(parent)
    return tuple(names)


def salt_of(adapter: str | None, /) -> int:
    """Return the salt that tells the blocks of an adapter's prompts from others; 0: no adapter."""
    return 0 if adapter is None else hash(("adapter", adapter)) or 1


class PrefixIndex:
    """An index of the blocks that each engine of a pool probably holds.

    Theory of operation. A block name maps to a set of engines, kept as the bits of a number. A block
    of an engine is *known*, from the engine's own events or from prompts that it has computed, or
    *pending*: the engine was given a prompt and has not computed it yet. Both count as held; otherwise
    the second of two siblings would be sent elsewhere. An engine that reports events (*exact*) holds
    what they say. For any other engine the least recently used blocks beyond its capacity are
    forgotten, deepest first, as engines do. A lookup walks all engines at once by bisection, since an
    engine that holds a block holds those before it. If one does not (its events say so), it counts as
    holding nothing behind the gap that the walk happens to meet.

    An index of every block would be too large: it keeps one name about every 64 tokens. :meth:`thin`
    selects those of a prompt, and all other methods take only them.

    Args:
        block_size: Tokens per block.
    """

    __slots__ = ("_capacity", "_exact", "_holders", "_keys", "_known", "_pending", "block_size",
                 "every", "tokens")  # fmt: skip

    def __init__(self, block_size: int, /) -> None:
        self.block_size = block_size
        self.every = max(1, 64 // block_size)
        """Blocks per name."""
        self.tokens: int = block_size * self.every
        """Tokens per name."""
        self._holders: dict[int, int] = {}
        self._known: dict[int, dict[int, None]] = {}
        self._pending: dict[int, dict[int, int]] = {}
        self._capacity: dict[int, int | None] = {}
        self._keys: dict[int, dict[int, tuple[int, int]]] = {}
        self._exact: set[int] = set()

    def add(self, engine: int, capacity: int | None, /) -> None:
        """Add an engine that holds nothing yet.

        Args:
            engine: Its number, >= 0.
            capacity: Blocks that it can hold; None: no limit.
        """
        self._known[engine] = {}
        self._pending[engine] = {}
        self._capacity[engine] = None if capacity is None else max(1, capacity // self.every)
        self._keys[engine] = {}
        self._exact.discard(engine)

    def remove(self, engine: int, /) -> None:
        """Remove an engine."""
        for name in (*self._known.pop(engine), *self._pending.pop(engine)):
            self._unset(engine, name)
        del self._capacity[engine], self._keys[engine]
        self._exact.discard(engine)

    def thin(self, names: Sequence[int], /) -> tuple[int, ...]:
        """Return the names of a prompt's chain that the index keeps."""
        return tuple(names[self.every - 1 :: self.every])

    def hits(self, names: Sequence[int], engines: int, /) -> list[int]:
        """Return how many tokens of a prompt each engine holds or soon will, by its thinned names.

        Args:
            names: The prompt's chain, thinned.
            engines: Highest number of an engine, plus 1.

        Returns:
            Tokens by number of the engine; 0 for a number that is free.

        Cost: logarithmic in the prompt for each different answer, linear in engines.
        """
        depths = [0] * engines
        first = self._holders.get(names[0], 0) if names else 0
        if first:
            self._walk(names, 0, first, len(names), 0, depths)
        return depths

    def hit(self, engine: int, names: Sequence[int], /, *, without: int = 1) -> int:
        """Return the tokens of a prompt that one engine would hold if it had not been sent it.

        Args:
            engine: Its number.
            names: The prompt's chain, thinned.
            without: How many times the prompt was sent to it; these do not count.
        """
        known, pending = self._known[engine], self._pending[engine]
        low, high = 0, len(names)
        while low < high:
            middle = (low + high) >> 1
            name = names[middle]
            if name in known or pending.get(name, 0) > without:
                low = middle + 1
            else:
                high = middle
        return low * self.tokens

    def _walk(self, names: Sequence[int], low: int, at_low: int, high: int, at_high: int,
              depths: list[int]) -> None:  # fmt: skip
        # Invariant: the engines of `at_low` hold block `low`, those of `at_high` hold block `high`.
        while high - low > 1:
            middle = (low + high) >> 1
            at_middle = self._holders.get(names[middle], 0) & at_low
            if at_middle == at_low:
                low = middle
            elif at_middle == at_high:
                high = middle
            else:
                self._walk(names, middle, at_middle, high, at_high, depths)
                high, at_high = middle, at_middle
        left, tokens = at_low & ~at_high, (low + 1) * self.tokens
        while left:
            bit = left & -left
            depths[bit.bit_length() - 1] = tokens
            left ^= bit

    def sent(self, engine: int, names: Sequence[int], /) -> None:
        """Note that a prompt was given to an engine, which will compute what it does not hold."""
        pending, known = self._pending[engine], self._known[engine]
        bit = 1 << engine
        holders = self._holders
        for name in names:
            if name not in known:
                pending[name] = pending.get(name, 0) + 1
                holders[name] = holders.get(name, 0) | bit

    def settled(self, engine: int, names: Sequence[int], /, *, computed: bool) -> None:
        """Note that a prompt that was sent is no longer pending.

        Args:
            engine: The engine to which it was sent.
            names: As in :meth:`sent`.
            computed: Whether the engine has computed it; if not, it was given up before.
        """
        pending, known = self._pending[engine], self._known[engine]
        approximate = computed and engine not in self._exact
        if pending:
            for name in names:
                if name not in pending:
                    continue
                left = pending[name] - 1
                if left:
                    pending[name] = left
                else:
                    del pending[name]
                    if not approximate and name not in known:
                        self._unset(engine, name)
        if approximate:
            bit, holders = 1 << engine, self._holders
            for name in reversed(names):  # deepest first, since it is forgotten first
                if name in known:
                    del known[name]
                else:
                    holders[name] = holders.get(name, 0) | bit
                known[name] = None
            if self._capacity[engine] is not None:
                self._forget(engine)

    def stored(self, engine: int, parent: int | None, token_ids: Sequence[int],
               keys: Sequence[int], salt: int = 0, /) -> None:  # fmt: skip
        """Note that an engine reports more blocks; see :class:`alto.protocols.CacheListener`."""
        own = self._keys[engine]
        self._listen(engine)
        if len(token_ids) != len(keys) * self.block_size:
            return  # blocks of another length, as hybrid models have them
        if parent is None:
            depth, names = 0, chain(token_ids, self.block_size, salt=salt)
        elif parent in own:
            name, depth = own[parent]
            names = extend(name, token_ids, self.block_size)
        else:
            return  # its parent was never reported, so it cannot be named
        known, bit = self._known[engine], 1 << engine
        for key, name in zip(keys, names, strict=False):
            depth += 1
            own[key] = (name, depth)
            if depth % self.every == 0:
                known[name] = None
                self._holders[name] = self._holders.get(name, 0) | bit

    def removed(self, engine: int, keys: Sequence[int], /) -> None:
        """Note that an engine reports evicted blocks."""
        self._listen(engine)
        for key in keys:
            name, _ = self._keys[engine].pop(key, (None, 0))
            if name is not None and self._known[engine].pop(name, True) is None:
                self._drop(engine, name)

    def cleared(self, engine: int, /) -> None:
        """Note that an engine holds nothing, or that it is no longer known what it holds."""
        self._listen(engine)
        self._keys[engine].clear()
        names, self._known[engine] = self._known[engine], {}
        for name in names:
            self._drop(engine, name)

    def held(self, engine: int, /) -> int:
        """Return how many names an engine holds or soon will."""
        return len(self._known[engine].keys() | self._pending[engine].keys())

    def _listen(self, engine: int) -> None:
        if engine not in self._exact:
            self._exact.add(engine)
            names, self._known[engine] = self._known[engine], {}
            for name in names:
                self._drop(engine, name)

    def _forget(self, engine: int) -> None:
        known, capacity = self._known[engine], self._capacity[engine]
        while capacity is not None and len(known) > capacity:
            name = next(iter(known))
            del known[name]
            self._drop(engine, name)

    def _drop(self, engine: int, name: int) -> None:
        if name not in self._pending[engine]:
            self._unset(engine, name)

    def _unset(self, engine: int, name: int) -> None:
        left = self._holders.get(name, 0) & ~(1 << engine)
        if left:
            self._holders[name] = left
        else:
            self._holders.pop(name, None)

    def check(self) -> None:
        """Assert the invariants. Slow; for tests."""
        for name, holders in self._holders.items():
            assert holders, name
        for engine, known in self._known.items():
            bit = 1 << engine
            held = known.keys() | self._pending[engine].keys()
            assert held == {name for name, bits in self._holders.items() if bits & bit}
            assert all(count > 0 for count in self._pending[engine].values())
            capacity = self._capacity[engine]
            assert engine in self._exact or capacity is None or len(known) <= capacity
