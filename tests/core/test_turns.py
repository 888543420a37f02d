"""What `alto._core.turns` promises: permits go out up to the limit, in turns, never idle."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from alto._core.turns import Turns

queues = st.sampled_from("abc")
picks = st.integers(0, 999)  # Modulo the number of choices there are.


class TurnsMachine(RuleBasedStateMachine):
    """Any events, against two lists and a number."""

    @initialize(limit=st.integers(1, 3))
    def start(self, limit: int) -> None:
        """Nobody runs and nobody waits."""
        self.limit = limit
        self.turns: Turns[str, int] = Turns(limit)
        self.fresh = count()
        self.holders = 0
        self.line: list[str] = []
        self.resuming: list[int] = []
        self.granted: list[int] = []

    @rule(queue=queues)
    def offered(self, queue: str) -> None:
        """A queue has something to start, and stands in line once."""
        self.turns.offered(queue)
        if queue not in self.line:
            self.line.append(queue)

    @rule(queue=queues)
    def withdrawn(self, queue: str) -> None:
        """A queue has nothing to start, whether or not it stood in line."""
        self.turns.withdrawn(queue)
        self.line = [q for q in self.line if q != queue]

    @rule()
    def next_queue(self) -> None:
        """The first in line is served iff there is a permit that nobody resuming wants."""
        assert self.turns.next_queue() == self.serve()

    @rule(queue=queues, more=st.booleans())
    def next_after(self, queue: str, more: bool) -> None:
        """A queue that was served, and is not in line, lines up again if it has more."""
        if queue not in self.line:
            self.line += [queue] * more
            assert self.turns.next_after(queue, more) == self.serve()

    def serve(self) -> str | None:
        """Who is first in line, if it can be served."""
        if self.holders == self.limit or self.resuming or not self.line:
            return None
        self.holders += 1
        return self.line.pop(0)

    @rule()
    def resume(self) -> None:
        """A call goes on at once iff there is a permit that nobody waits for."""
        call = next(self.fresh)
        at_once = self.holders < self.limit and not self.resuming
        assert self.turns.resume(call) == at_once
        if at_once:
            self.holders += 1
            self.granted.append(call)
        else:
            self.resuming.append(call)

    @rule()
    def next_resume(self) -> None:
        """Whoever has waited longest goes on iff there is a permit."""
        call = None
        if self.holders < self.limit and self.resuming:
            call = self.resuming.pop(0)
            self.holders += 1
            self.granted.append(call)
        assert self.turns.next_resume() == call

    @precondition(lambda self: self.resuming)
    @rule(pick=picks)
    def left_while_waiting(self, pick: int) -> None:
        """A call that is cancelled while it waits takes nothing with it."""
        call = self.resuming.pop(pick % len(self.resuming))
        assert self.turns.left(call) is True

    @precondition(lambda self: self.granted)
    @rule(pick=picks)
    def left_too_late(self, pick: int) -> None:
        """A call that is cancelled with a permit in hand is told so, and gives it back."""
        call = self.granted.pop(pick % len(self.granted))
        assert self.turns.left(call) is False
        self.turns.gave()
        self.holders -= 1

    @precondition(lambda self: self.holders > len(self.granted))
    @rule()
    def gave(self) -> None:
        """A call that was started from a queue gives its permit back."""
        self.turns.gave()
        self.holders -= 1

    @invariant()
    def agrees(self) -> None:
        """Permits add up, and a queue is announced exactly when it would be served."""
        self.turns.check()
        assert self.turns.free == self.limit - self.holders
        assert self.turns.resuming == len(self.resuming)
        can_start = self.holders < self.limit and bool(self.line) and not self.resuming
        assert self.turns.has_next == can_start
        waited_for = bool(self.line or self.resuming)
        assert self.turns.spare == (0 if waited_for else self.limit - self.holders)


@pytest.mark.slow
def test_permits_go_out_exactly_as_the_model_says() -> None:
    """Under any events no permit is given too many, too late, or to the wrong one."""
    run_state_machine_as_test(TurnsMachine, settings=settings(stateful_step_count=30))


@given(
    limit=st.integers(1, 3),
    work=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_queues_are_served_in_turns_when_all_have_more(limit: int, work: list[int]) -> None:
    """A queue is served a second time only after every other that has work was served once."""
    turns: Turns[int, object] = Turns(limit)
    left = list(work)
    for queue in range(len(work)):
        turns.offered(queue)
    served = []
    while (queue_ := turns.next_queue()) is not None:
        served.append(queue_)
        left[queue_] -= 1
        if left[queue_]:
            turns.offered(queue_)
        turns.gave()
    assert served == [q for turn in range(max(work)) for q in range(len(work)) if work[q] > turn]


def test_no_permit_is_given_when_all_are_out() -> None:
    """The limit is a limit: who comes after it waits."""
    turns: Turns[str, str] = Turns(1)
    turns.offered("a")
    turns.offered("b")
    assert turns.next_queue() == "a"
    assert not turns.has_next
    assert turns.next_queue() is None
    assert turns.resume("call") is False
    assert turns.next_resume() is None


def test_a_resuming_call_goes_before_queues_that_came_first() -> None:
    """A free permit goes to whoever wants to go on, though a queue has waited longer."""
    turns: Turns[str, str] = Turns(1)
    turns.offered("a")
    turns.offered("b")
    turns.next_queue()
    turns.resume("call")
    turns.gave()
    assert not turns.has_next
    assert turns.next_queue() is None
    assert turns.next_resume() == "call"


def test_a_resuming_call_goes_before_a_queue_that_has_more() -> None:
    """A queue that was served does not go on while a call wants to, though it is alone in line."""
    turns: Turns[str, str] = Turns(1)
    turns.next_after("a", True)
    turns.resume("call")
    turns.gave()
    assert turns.next_after("a", True) is None
    assert turns.next_resume() == "call"
    turns.gave()
    assert turns.next_queue() == "a"


def test_a_call_that_comes_to_resume_waits_behind_those_that_wait() -> None:
    """First come, first served: a free permit is not snatched by a call that has just come."""
    turns: Turns[str, str] = Turns(1)
    turns.resume("first")
    turns.resume("second")
    turns.gave()
    assert turns.resume("third") is False
    assert turns.next_resume() == "second"


def test_queues_are_served_again_when_the_resuming_call_has_left() -> None:
    """A call that is cancelled while it waits does not stand in the way of others."""
    turns: Turns[str, str] = Turns(1)
    turns.offered("a")
    turns.resume("running")
    turns.resume("call")
    turns.gave()
    assert turns.left("call") is True
    assert turns.next_queue() == "a"


def test_a_queue_keeps_its_place_when_offered_twice() -> None:
    """Saying again that there is something to start changes nothing."""
    turns: Turns[str, str] = Turns(3)
    for queue in ("a", "b", "a"):
        turns.offered(queue)
    assert [turns.next_queue() for _ in range(3)] == ["a", "b", None]


def test_a_withdrawn_queue_is_not_served() -> None:
    """A queue that has nothing to start is passed over, and unknown ones are ignored."""
    turns: Turns[str, str] = Turns(3)
    turns.offered("a")
    turns.offered("b")
    turns.withdrawn("a")
    turns.withdrawn("unknown")
    assert [turns.next_queue() for _ in range(2)] == ["b", None]


@pytest.mark.parametrize(("more", "turn"), [(True, ["a", "b", "a"]), (False, ["a", "b", None])])
def test_a_queue_lines_up_after_its_turn_when_it_has_more(
    more: bool, turn: list[str | None]
) -> None:
    """After its turn a queue goes to the end of the line, or out of it."""
    turns: Turns[str, str] = Turns(3)
    turns.offered("a")
    turns.offered("b")
    assert [turns.next_queue(), turns.next_after("a", more), turns.next_queue()] == turn


def test_a_queue_goes_on_when_nobody_else_waits() -> None:
    """A queue alone is served again, as long as there are permits."""
    turns: Turns[str, str] = Turns(2)
    assert [turns.next_after("a", True) for _ in range(3)] == ["a", "a", None]
    assert turns.free == 0


@pytest.mark.parametrize("limit", [0, -1])
def test_turns_are_refused_when_nobody_may_run(limit: int) -> None:
    """A stage runs at least one call at once."""
    with pytest.raises(ValueError, match=f"need at least one permit, got {limit}"):
        Turns(limit)


def test_a_permit_given_back_twice_is_noticed() -> None:
    """The check fails when there are more permits than the limit."""
    turns: Turns[str, str] = Turns(1)
    assert (turns.limit, turns.free) == (1, 1)
    turns.gave()
    with pytest.raises(AssertionError):
        turns.check()
