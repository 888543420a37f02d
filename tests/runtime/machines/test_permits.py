"""What `alto._runtime.machines.permits` promises: permits go out up to the limit, in turns, never idle."""

from __future__ import annotations

from itertools import count

import attrs
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

from alto._runtime.machines.permits import Permits

picks = st.integers(0, 999)  # Modulo the number of choices there are.


class Q(str):
    """A queue of a request that is its own root: in tests, a letter."""

    __slots__ = ()
    priority = 0

    @property
    def root(self) -> str:
        """Itself."""
        return self


@attrs.frozen
class Line:
    """A queue of one of several of a root."""

    name: str
    root: int
    priority: int


queues = st.builds(Line, st.sampled_from("ab"), st.integers(0, 2), st.sampled_from([-1, 0, 5]))


class TurnsModel:
    """Who is next, by time stamps: of queues when they came, of roots when they came or were served."""

    def __init__(self) -> None:
        self.stamps = count()
        self.came: dict[Line, int] = {}
        self.turn: dict[tuple[int, int], int] = {}

    def add(self, queue: Line) -> None:
        """Put it in line."""
        if queue not in self.came:
            self.came[queue] = next(self.stamps)
            self.turn.setdefault((queue.priority, queue.root), next(self.stamps))

    def discard(self, queue: Line) -> None:
        """Take it out."""
        self.came.pop(queue, None)
        self._forget(queue)

    def move_to_end(self, queue: Line) -> None:
        """A call of it has ended: its root goes to the end, if it is in line."""
        key = (queue.priority, queue.root)
        if key in self.turn:
            self.turn[key] = next(self.stamps)

    def _forget(self, queue: Line) -> None:
        key = (queue.priority, queue.root)
        if not any((q.priority, q.root) == key for q in self.came):
            self.turn.pop(key, None)

    def pop(self) -> Line:
        """Take out who is next."""
        queue = min(
            self.came, key=lambda q: (q.priority, self.turn[q.priority, q.root], self.came[q])
        )
        del self.came[queue]
        self.turn[queue.priority, queue.root] = next(self.stamps)
        self._forget(queue)
        return queue


class PermitsMachine(RuleBasedStateMachine):
    """Any events, against two models and a number."""

    @initialize(limit=st.integers(1, 3))
    def start(self, limit: int) -> None:
        """No call runs and none waits."""
        self.limit = limit
        self.permits: Permits[Line, int] = Permits(limit)
        self.fresh = count()
        self.holders = 0
        self.line = TurnsModel()
        self.resuming: list[int] = []
        self.granted: list[int] = []

    @rule(queue=queues)
    def enqueue(self, queue: Line) -> None:
        """A queue has something to start, and stands in line once."""
        self.permits.enqueue(queue)
        self.line.add(queue)

    @rule(queue=queues)
    def dequeue(self, queue: Line) -> None:
        """A queue has nothing to start, whether or not it stood in line."""
        self.permits.dequeue(queue)
        self.line.discard(queue)

    @rule()
    def next_queue(self) -> None:
        """The next in line is served iff there is a permit that no resuming call wants."""
        assert self.permits.next_queue() == self.serve()

    @rule(queue=queues, more=st.booleans())
    def enqueue_and_next(self, queue: Line, more: bool) -> None:
        """A queue that was served, and is not in line, lines up again if it has more."""
        if queue not in self.line.came:
            if more:
                self.line.add(queue)
            assert self.permits.enqueue_and_next(queue, more) == self.serve()

    @precondition(lambda self: self.holders > len(self.granted))
    @rule(queue=queues, more=st.booleans())
    def give_back_and_next(self, queue: Line, more: bool) -> None:
        """A call that ends passes its permit on to whichever queue is next."""
        if queue not in self.line.came:
            self.holders -= 1
            if more:
                self.line.add(queue)
            assert self.permits.give_back_and_next(queue, more) == self.serve()

    @rule(queue=queues)
    def move_to_end(self, queue: Line) -> None:
        """A call that has ended lets other roots go first."""
        self.permits.move_to_end(queue)
        self.line.move_to_end(queue)

    def serve(self) -> Line | None:
        """Who is next in line, if it can be served."""
        if self.holders == self.limit or self.resuming or not self.line.came:
            return None
        self.holders += 1
        return self.line.pop()

    @rule()
    def resume(self) -> None:
        """A call goes on at once iff there is a permit that nobody waits for."""
        call = next(self.fresh)
        at_once = self.holders < self.limit and not self.resuming
        assert self.permits.resume(call) == at_once
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
        assert self.permits.next_resume() == call

    @precondition(lambda self: self.resuming)
    @rule(pick=picks)
    def left_while_waiting(self, pick: int) -> None:
        """A call that is cancelled while it waits takes nothing with it."""
        call = self.resuming.pop(pick % len(self.resuming))
        assert self.permits.cancel_resume(call) is True

    @precondition(lambda self: self.granted)
    @rule(pick=picks)
    def left_too_late(self, pick: int) -> None:
        """A call that is cancelled with a permit in hand is told so, and gives it back."""
        call = self.granted.pop(pick % len(self.granted))
        assert self.permits.cancel_resume(call) is False
        self.permits.give_back()
        self.holders -= 1

    @precondition(lambda self: self.holders > len(self.granted))
    @rule()
    def give_back(self) -> None:
        """A call that was started from a queue gives its permit back."""
        self.permits.give_back()
        self.holders -= 1

    @invariant()
    def agrees(self) -> None:
        """Permits add up, and a queue is announced exactly when it would be served."""
        self.permits.check()
        assert self.permits.free == self.limit - self.holders
        assert list(self.permits.resuming) == self.resuming
        can_start = self.holders < self.limit and bool(self.line.came) and not self.resuming
        assert self.permits.has_next == can_start
        waited_for = bool(self.line.came or self.resuming)
        assert self.permits.spare == (0 if waited_for else self.limit - self.holders)


@pytest.mark.slow
def test_permits_go_out_exactly_as_the_model_says() -> None:
    """Under any events no permit is given too many, too late, or to the wrong one."""
    run_state_machine_as_test(PermitsMachine, settings=settings(stateful_step_count=30))


@given(
    limit=st.integers(1, 3),
    work=st.lists(st.integers(1, 5), min_size=1, max_size=5),
)
def test_queues_are_served_in_turns_when_all_have_more(limit: int, work: list[int]) -> None:
    """A queue is served a second time only after every other that has work was served once."""
    turns: Permits[Q, object] = Permits(limit)
    cancel_resume = list(work)
    for queue in range(len(work)):
        turns.enqueue(Q(queue))
    move_to_end = []
    while (queue_ := turns.next_queue()) is not None:
        move_to_end.append(int(queue_))
        cancel_resume[int(queue_)] -= 1
        if cancel_resume[int(queue_)]:
            turns.enqueue(queue_)
        turns.give_back()
    assert move_to_end == [
        q for turn in range(max(work)) for q in range(len(work)) if work[q] > turn
    ]


def test_no_permit_is_given_when_all_are_out() -> None:
    """The limit is a limit: who comes after it waits."""
    turns: Permits[Q, str] = Permits(1)
    turns.enqueue(Q("a"))
    turns.enqueue(Q("b"))
    assert turns.next_queue() == "a"
    assert not turns.has_next
    assert turns.next_queue() is None
    assert turns.resume("call") is False
    assert turns.next_resume() is None


def test_a_resuming_call_goes_before_queues_that_came_first() -> None:
    """A free permit goes to whoever wants to go on, though a queue has waited longer."""
    turns: Permits[Q, str] = Permits(1)
    turns.enqueue(Q("a"))
    turns.enqueue(Q("b"))
    turns.next_queue()
    turns.resume("call")
    turns.give_back()
    assert not turns.has_next
    assert turns.next_queue() is None
    assert turns.next_resume() == "call"


def test_a_resuming_call_goes_before_a_queue_that_has_more() -> None:
    """A queue that was served does not go on while a call wants to, though it is alone in line."""
    turns: Permits[Q, str] = Permits(1)
    turns.enqueue_and_next(Q("a"), True)
    turns.resume("call")
    turns.give_back()
    assert turns.enqueue_and_next(Q("a"), True) is None
    assert turns.next_resume() == "call"
    turns.give_back()
    assert turns.next_queue() == "a"


def test_a_call_that_comes_to_resume_waits_behind_those_that_wait() -> None:
    """First come, first served: a free permit is not snatched by a call that has just come."""
    turns: Permits[Q, str] = Permits(1)
    turns.resume("first")
    turns.resume("second")
    turns.give_back()
    assert turns.resume("third") is False
    assert turns.next_resume() == "second"


def test_queues_are_served_again_when_the_resuming_call_has_left() -> None:
    """A call that is cancelled while it waits does not stand in the way of others."""
    turns: Permits[Q, str] = Permits(1)
    turns.enqueue(Q("a"))
    turns.resume("running")
    turns.resume("call")
    turns.give_back()
    assert turns.cancel_resume("call") is True
    assert turns.next_queue() == "a"


def test_a_queue_keeps_its_place_when_offered_twice() -> None:
    """Saying again that there is something to start changes nothing."""
    turns: Permits[Q, str] = Permits(3)
    for queue in ("a", "b", "a"):
        turns.enqueue(Q(queue))
    assert [turns.next_queue() for _ in range(3)] == ["a", "b", None]


def test_a_withdrawn_queue_is_not_served() -> None:
    """A queue that has nothing to start is passed over, and unknown ones are ignored."""
    turns: Permits[Q, str] = Permits(3)
    turns.enqueue(Q("a"))
    turns.enqueue(Q("b"))
    turns.dequeue(Q("a"))
    turns.dequeue(Q("unknown"))
    assert [turns.next_queue() for _ in range(2)] == ["b", None]


@pytest.mark.parametrize(("more", "turn"), [(True, ["a", "b", "a"]), (False, ["a", "b", None])])
def test_a_queue_lines_up_after_its_turn_when_it_has_more(
    more: bool, turn: list[str | None]
) -> None:
    """After its turn a queue goes to the end of the line, or out of it."""
    turns: Permits[Q, str] = Permits(3)
    turns.enqueue(Q("a"))
    turns.enqueue(Q("b"))
    assert [turns.next_queue(), turns.enqueue_and_next(Q("a"), more), turns.next_queue()] == turn


def test_a_queue_goes_on_when_nobody_else_waits() -> None:
    """A queue alone is served again, as long as there are permits."""
    turns: Permits[Q, str] = Permits(2)
    assert [turns.enqueue_and_next(Q("a"), True) for _ in range(3)] == ["a", "a", None]
    assert turns.free == 0


@pytest.mark.parametrize("limit", [0, -1])
def test_turns_are_refused_when_nobody_may_run(limit: int) -> None:
    """A stage runs at least one call at once."""
    with pytest.raises(ValueError, match=f"need at least one permit, got {limit}"):
        Permits(limit)


def test_a_permit_given_back_twice_is_noticed() -> None:
    """The check fails when there are more permits than the limit."""
    turns: Permits[Q, str] = Permits(1)
    assert (turns.limit, turns.free) == (1, 1)
    turns.give_back()
    with pytest.raises(AssertionError):
        turns.check()


def test_roots_take_turns_whatever_number_of_queues_they_have() -> None:
    """A request that calls many pipelines is served as often as one that calls a single one."""
    permits: Permits[Line, str] = Permits(10)
    many = [Line(str(k), 1, 0) for k in range(4)]
    for queue in many:
        permits.enqueue(queue)
    permits.enqueue(alone := Line("alone", 2, 0))
    assert [permits.next_queue() for _ in range(5)] == [many[0], alone, *many[1:]]


def test_lower_priorities_go_first() -> None:
    """A queue of a lower priority goes before all that came before it."""
    permits: Permits[Line, str] = Permits(10)
    later, sooner = Line("later", 1, 0), Line("sooner", 2, -5)
    permits.enqueue(later)
    permits.enqueue(sooner)
    assert permits.next_queue() == sooner
    assert permits.enqueue_and_next(sooner, True) == sooner
    assert permits.enqueue_and_next(sooner, False) == later
