"""The decision to hand over text: exactly when it is worth a call, and all at the end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from alto._text.coalescing import MARGIN, CallCost, HeldPieces

WINDOW = 4
CLOSE = 1e-6
"""Where cost and gain are equal to this part, either decision is right."""


class CallCostMachine(RuleBasedStateMachine):
    """Texts of pieces under changing loads, against sums over all calls that there were."""

    @initialize(
        uncached=st.integers(0, 800),
        output=st.floats(0.01, 2),
        step_tokens=st.floats(50, 300),
        call_tokens=st.sampled_from([0, 40, 100]),
    )
    def start(self, uncached: int, output: float, step_tokens: float, call_tokens: int) -> None:
        """Begin with nothing learned."""
        self.first = (float(uncached), output)
        self.step_tokens = step_tokens
        self.call_tokens = call_tokens
        self.size = CallCost(
            uncached=uncached,
            output=output,
            step_tokens=step_tokens,
            call_tokens=call_tokens,
            window=WINDOW,
        )
        self.calls: list[tuple[int, int, int]] = []
        self.load = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin a new text."""
        self.asked = 0
        self.pile = HeldPieces(self.decide, "|")
        self.held: list[str] = []
        self.went: list[str] = []
        self.pieces: list[str] = []

    def decide(self, held: int, given: int) -> bool:
        """Decide at the present load."""
        self.asked += 1
        assert held == sum(map(len, self.held))
        assert given == sum(len(text.replace("|", "")) for text in self.went)
        return self.size.is_worth_it(held, given, self.load)

    def known(self) -> tuple[float, float]:
        """Uncached tokens beside a text and output per character, counted from the beginning."""
        if not self.calls:
            return self.first
        weights = [(1 - 1 / WINDOW) ** age for age in range(len(self.calls))][::-1]
        weighted = list(zip(weights, self.calls, strict=True))
        total = sum(weights)
        mean = sum(w * size for w, (size, _, _) in weighted) / total
        mean_uncached = sum(w * uncached for w, (_, uncached, _) in weighted) / total
        output = sum(w * o for w, (_, _, o) in weighted) / (mean * total)
        spread = sum(w * (size - mean) ** 2 for w, (size, _, _) in weighted) / total
        if spread <= 1e-3 * mean * mean:
            return mean_uncached, output
        slope = sum(w * (s - mean) * (u - mean_uncached) for w, (s, u, _) in weighted) / total
        return max(0.0, mean_uncached - max(0.0, slope / spread) * mean), output

    @rule(size=st.integers(1, 400), uncached=st.integers(0, 900), output=st.integers(0, 200))
    def learn(self, size: int, uncached: int, output: int) -> None:
        """Learn from a call."""
        self.calls.append((size, uncached, output))
        self.size.learn(size, uncached=uncached, output=output)

    @rule(load=st.floats(0, 300))
    def load_changes(self, load: float) -> None:
        """Set the load of the engines."""
        self.load = load

    @rule(piece=st.text("abc", min_size=0, max_size=60))
    def piece_comes(self, piece: str) -> None:
        """The held text goes exactly if calls of its size save more than they cost, by a margin."""
        asked = self.asked
        self.pieces.append(piece)
        self.held.append(piece)
        held = sum(map(len, self.held))
        text = self.pile.add(piece)
        assert self.asked == asked + (held > 0)
        given = sum(len(text.replace("|", "")) for text in self.went)
        uncached, output = self.known()
        each = (uncached + self.call_tokens) * self.load
        gain = output * self.step_tokens * held
        cost = max(each * MARGIN, each * (held + given) / held) if held else 0.0
        if text is None:
            assert held == 0 or cost > gain * (1 - CLOSE)
            return
        assert cost <= gain * (1 + CLOSE) + CLOSE
        assert text == "|".join(self.held)
        self.went.append(text)
        self.held.clear()

    @rule()
    def text_ends(self) -> None:
        """The held text goes once, whatever it costs, and no piece is lost or out of order."""
        text = self.pile.flush()
        assert (text is None) == (not self.held)
        if text is not None:
            self.went.append(text)
        assert self.pile.flush() is None
        assert "|".join(self.went) == "|".join(self.pieces)
        self.begin()

    @invariant()
    def knows_what_calls_cost(self) -> None:
        """The learned values are those of the weighted sums of all calls."""
        if hasattr(self, "size"):
            uncached, output = self.known()
            assert self.size.output == pytest.approx(output, rel=1e-6, abs=1e-9)
            assert self.size.uncached == pytest.approx(uncached, rel=1e-3, abs=0.1)


@pytest.mark.slow
def test_pieces_go_exactly_when_they_are_worth_a_call() -> None:
    """The decision agrees with the sums of a naive model, for any cost of calls and any load."""
    run_state_machine_as_test(CallCostMachine, settings=settings(stateful_step_count=25))


def made(uncached: float = 500, output: float = 0.1, step_tokens: float = 160) -> CallCost:
    """A rule with plain numbers."""
    return CallCost(uncached=uncached, output=output, step_tokens=step_tokens)


@given(st.integers(1, 1000), st.integers(0, 1000), st.floats(0, 1000))
def test_what_goes_pays_for_itself(held: int, given: int, generations: float) -> None:
    """A call holds at least what makes it worth its cost, whatever went before."""
    size = made()
    if size.is_worth_it(held, given, generations):
        assert held >= MARGIN * size.price(generations) * (1 - CLOSE)


def test_every_piece_goes_on_an_idle_engine() -> None:
    """On an idle engine a call delays no other, and a cached prompt costs nothing."""
    assert made().is_worth_it(1, 0, 0)
    assert made().is_worth_it(1, 100_000, 0)
    assert made(uncached=0).is_worth_it(1, 100_000, 1000)


def test_a_text_is_kept_whole_when_calls_write_nothing() -> None:
    """If calls cost something and save nothing, nothing goes before the end."""
    size = made()
    size.learn(100, uncached=50, output=0)
    assert size.price(1) == math.inf
    assert not size.is_worth_it(10_000, 0, 1)
    size.learn(100, uncached=0, output=0)
    assert size.is_worth_it(1, 0, 0)


def test_calls_grow_with_load_and_with_what_went_before() -> None:
    """The price is proportional to generations, and the size the root of price times text."""
    size = made()
    assert size.price(8) == pytest.approx(500 * 8 / (0.1 * 160))
    least = next(held for held in range(1, 10_000) if size.is_worth_it(held, 0, 8))
    assert least == math.ceil(MARGIN * size.price(8))
    later = next(held for held in range(1, 10_000) if size.is_worth_it(held, 8 * least, 8))
    assert least < later < 2 * least


def test_the_text_of_a_call_is_no_cost_of_the_call() -> None:
    """Only the tokens that a call computes beside its text count; those of the text are computed anyway."""
    size = made(uncached=0)
    for held in (40, 80, 120, 160) * 20:
        size.learn(held, uncached=300 + held / 4, output=held / 8)
    assert size.uncached == pytest.approx(300)
    assert size.output == pytest.approx(1 / 8)


def test_the_whole_prompt_is_the_cost_when_all_texts_have_one_size() -> None:
    """If text and head cannot be separated, the higher cost is assumed."""
    size = made(uncached=0)
    for _ in range(50):
        size.learn(100, uncached=325, output=10)
    assert size.uncached == pytest.approx(325)


def test_what_is_learned_forgets() -> None:
    """A head that comes into the cache is soon known to cost nothing."""
    size = made()
    for uncached in [600] * 40 + [0] * 200:
        size.learn(100, uncached=uncached, output=10)
    assert size.uncached < 2


def test_empty_pieces_are_held_without_asking() -> None:
    """A piece without a character is never handed over by itself before the end."""
    asked: list[tuple[int, int]] = []

    def ready(held: int, given: int) -> bool:
        asked.append((held, given))
        return True

    pile = HeldPieces(ready, "\n")
    assert [pile.add(""), pile.add("a"), pile.add("")] == [None, "\na", None]
    assert pile.flush() == ""
    assert pile.flush() is None
    assert asked == [(1, 0)]
