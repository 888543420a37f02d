from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alto._sched.prefix import PrefixIndex, chain, extend

TOKENS = st.lists(st.integers(0, 3), max_size=40)


class TestChains:
    """Names of blocks."""

    @given(TOKENS, TOKENS, st.integers(1, 5))
    def test_names_are_equal_exactly_as_far_as_prompts_are(self, one, other, size):
        """Two chains agree in as many names as the prompts agree in whole blocks."""
        equal = 0
        for a, b in zip(one, other, strict=False):
            if a != b:
                break
            equal += 1
        first, second = chain(one, size), chain(other, size)
        assert len(first) == len(one) // size
        same = [a == b for a, b in zip(first, second, strict=False)]
        assert same == [k < equal // size for k in range(len(same))]

    @given(TOKENS, st.integers(1, 5), st.integers(0, 8))
    def test_a_chain_can_be_made_in_parts(self, tokens, size, blocks):
        """Extending the name of a block gives the names of the blocks behind it."""
        names = chain(tokens, size)
        if blocks and len(names) >= blocks:
            rest = extend(names[blocks - 1], tokens[blocks * size :], size)
            assert names[blocks:] == rest

    def test_a_salt_keeps_prompts_apart(self):
        """Equal prompts of different adapters share no block."""
        assert not set(chain([1, 2, 3, 4], 2)) & set(chain([1, 2, 3, 4], 2, salt=7))


# Prompts as paths in a small tree, one name per node, so that they share beginnings.
PROMPTS = st.lists(st.integers(0, 1), max_size=5).map(
    lambda path: tuple(hash(("node", *path[: k + 1])) for k in range(len(path)))
)
ENGINES = st.integers(0, 2)


class Index(RuleBasedStateMachine):
    """Against a model that keeps plain sets and lists, with one engine whose events are heard."""

    CAPACITY = 4
    EXACT = 2

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(64)
        self.recent: list[list[int]] = [[], [], []]
        self.sent: list[list[tuple[int, ...]]] = [[], [], []]
        self.counted: list[list[tuple[int, ...]]] = [[], [], []]
        for engine in range(3):
            self.index.add(engine, self.CAPACITY)
        self.index.cleared(self.EXACT)

    def _held(self, engine: int) -> set[int]:
        pending = {name for names in self.counted[engine] for name in names}
        return set(self.recent[engine]) | pending

    @rule(engine=ENGINES, prompt=PROMPTS)
    def send(self, engine, prompt):
        """A prompt goes to an engine."""
        self.index.sent(engine, prompt)
        self.sent[engine].append(prompt)
        self.counted[engine].append(tuple(n for n in prompt if n not in self.recent[engine]))

    @rule(engine=ENGINES, computed=st.booleans(), data=st.data())
    def settle(self, engine, computed, data):
        """It is computed, or given up."""
        if not self.sent[engine]:
            return
        at = data.draw(st.integers(0, len(self.sent[engine]) - 1))
        prompt = self.sent[engine].pop(at)
        # Names that are pending for several prompts are counted, whichever of them they came with.
        for name in prompt:
            for k, names in enumerate(self.counted[engine]):
                if name in names:
                    self.counted[engine][k] = tuple(n for n in names if n != name)
                    break
        if computed and engine != self.EXACT:
            recent = self.recent[engine]
            for name in reversed(prompt):
                if name in recent:
                    recent.remove(name)
                recent.append(name)
            del recent[: max(0, len(recent) - self.CAPACITY)]
        self.index.settled(engine, prompt, computed=computed)

    @rule(engine=ENGINES)
    def leave(self, engine):
        """An engine goes, and another comes in its place."""
        self.index.remove(engine)
        self.index.add(engine, self.CAPACITY)
        self.recent[engine].clear()
        self.sent[engine].clear()
        self.counted[engine].clear()
        if engine == self.EXACT:
            self.index.cleared(engine)

    @rule(prompt=PROMPTS)
    def look(self, prompt):
        """Where the holders of every block hold those before it, a lookup is exact."""
        for engine, tokens in enumerate(self.index.hits(prompt, 3)):
            held = [name in self._held(engine) for name in prompt]
            if held == sorted(held, reverse=True):
                assert tokens == 64 * sum(held), (engine, held)
            assert tokens <= 64 * len(prompt)
            assert tokens == 0 or held[0]

    @rule(engine=ENGINES, prompt=PROMPTS)
    def look_without(self, engine, prompt):
        """What an engine would hold if it had not been sent the prompt so many times."""
        for without in range(3):
            held = []
            for name in prompt:
                sent = sum(name in names for names in self.counted[engine])
                held.append(name in self.recent[engine] or sent > without)
            if held == sorted(held, reverse=True):
                assert self.index.hit(engine, prompt, without=without) == 64 * sum(held)

    @invariant()
    def consistent(self):
        """Its own invariants, and what it holds."""
        self.index.check()
        for engine in range(3):
            assert self.index.held(engine) == len(self._held(engine))


TestIndex = Index.TestCase
TestIndex.settings = settings(deadline=None, stateful_step_count=30)


class TestEvents:
    """Engines that say what they hold."""

    def _index(self, size: int = 64) -> PrefixIndex:
        index = PrefixIndex(size)
        index.add(0, None)
        return index

    def test_stored_blocks_are_known_by_their_tokens(self):
        """What an engine stores in two steps is found under the chain of the whole prompt."""
        tokens = list(range(256))
        index = self._index()
        index.stored(0, None, tokens[:128], [901, 902])
        index.stored(0, 902, tokens[128:], [903, 904])
        assert index.hits(index.thin(chain(tokens, 64)), 1) == [256]

    def test_names_are_kept_every_64_tokens(self):
        """With small blocks most names are left out, and only those that are kept count."""
        tokens = list(range(200))
        index = self._index(16)
        index.stored(0, None, tokens[:192], list(range(12)))
        names = index.thin(chain(tokens, 16))
        assert (index.every, index.tokens, len(names)) == (4, 64, 3)
        assert index.hits(names, 1) == [192]
        assert index.held(0) == 3
        index.removed(0, [11])
        assert index.hits(names, 1) == [128]

    def test_removed_and_cleared_blocks_are_forgotten(self):
        """A block that was thrown out is not found any more, and after a clear none is."""
        tokens = list(range(256))
        index = self._index()
        index.stored(0, None, tokens, [1, 2, 3, 4])
        names = chain(tokens, 64)
        index.removed(0, [4, 99])
        assert index.hits(names, 1) == [192]
        index.cleared(0)
        assert index.hits(names, 1) == [0]
        index.check()

    def test_blocks_behind_a_gap_do_not_count(self):
        """An engine that has thrown out the beginning holds nothing of the prompt, whoever else does."""
        tokens = list(range(256))
        index = self._index()
        index.add(1, None)
        for engine in range(2):
            index.stored(engine, None, tokens, [1, 2, 3, 4])
        index.removed(0, [1, 2])
        assert index.hits(chain(tokens, 64), 2) == [0, 256]

    def test_blocks_behind_an_unknown_one_are_left_out(self):
        """What hangs on a block that nobody has heard of cannot be named."""
        index = self._index()
        index.stored(0, 77, list(range(64)), [1])
        assert index.held(0) == 0

    def test_events_replace_guesses(self):
        """The first event of an engine throws out what was only supposed."""
        index = self._index()
        names = chain(list(range(128)), 64)
        index.sent(0, names)
        index.settled(0, names, computed=True)
        assert index.hits(names, 1) == [128]
        index.stored(0, None, list(range(64)), [1])
        assert index.hits(names, 1) == [64]

    def test_a_pending_prompt_counts_until_it_is_settled(self):
        """An exact engine holds a prompt that it was given, and not one that was given up."""
        index = self._index()
        index.cleared(0)
        names = chain(list(range(128)), 64)
        index.sent(0, names)
        index.sent(0, names[:1])
        assert index.hits(names, 1) == [128]
        index.settled(0, names, computed=False)
        assert index.hits(names, 1) == [64]
        index.settled(0, names[:1], computed=False)
        assert index.hits(names, 1) == [0]

    @pytest.mark.parametrize("size", [16, 64, 128])
    def test_capacity_is_counted_in_blocks(self, size):
        """An engine of so many blocks is taken to hold as many tokens, whatever is kept of names."""
        index = PrefixIndex(size)
        index.add(0, 512 // size)
        names = index.thin(chain(list(range(1024)), size))
        index.sent(0, names)
        index.settled(0, names, computed=True)
        assert index.held(0) == 512 // index.tokens
        assert index.hits(names, 1) == [512]
