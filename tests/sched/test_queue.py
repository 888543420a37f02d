from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alto._sched.estimate import Template
from alto._sched.queue import WaitQueue, order_key
from alto._sched.state import CallInfo, Ticket


class Queues(RuleBasedStateMachine):
    """Against a sorted list."""

    def __init__(self):
        super().__init__()
        self.queue = WaitQueue()
        self.model = []
        self.number = 0

    @rule(due=st.floats(0, 100), depth=st.integers(0, 3), n=st.integers(1, 3))
    def push(self, due, depth, n):
        """A call is added."""
        self.number += 1
        ticket = Ticket(
            number=self.number, info=CallInfo(template="t", prompt_tokens=9, n=n, depth=depth),
            prompt_tokens=9, template=Template("t"), expected_output=2.0, uncached=7,
        )  # fmt: skip
        ticket.key = order_key(ticket, 1, due, 0.0)
        self.queue.push(ticket)
        self.model.append(ticket)

    @rule()
    @precondition(lambda self: self.model)
    def pop(self):
        """The next call is the first of all."""
        first = min(self.model, key=lambda t: t.key)
        assert self.queue.first() is first
        assert self.queue.pop() is first
        self.model.remove(first)

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def leave(self, data):
        """A call is removed."""
        ticket = data.draw(st.sampled_from(self.model))
        self.model.remove(ticket)
        self.queue.remove(ticket)

    @rule(data=st.data(), seconds=st.floats(0, 50))
    @precondition(lambda self: self.model)
    def move(self, data, seconds):
        """A call is moved forward."""
        ticket = data.draw(st.sampled_from(self.model))
        ticket.key = (ticket.key[0] - seconds, *ticket.key[1:])
        self.queue.reorder(ticket)

    @invariant()
    def counts(self):
        """Its sums and its order are those of the list."""
        assert self.queue.tickets() == sorted(self.model, key=lambda t: t.key)
        assert self.queue.count == sum(t.info.n for t in self.model)
        assert self.queue.prefill == 7 * len(self.model)
        assert self.queue.outputs == 2.0 * len(self.model)
        if self.model:
            dues = [t.key[0] for t in self.model]
            assert self.queue.earliest <= min(dues)
            assert self.queue.latest >= max(dues)
        else:
            assert self.queue.first() is None


TestQueues = Queues.TestCase
TestQueues.settings = settings(deadline=None, stateful_step_count=40)


def test_a_deadline_counts_back_from_its_time():
    """With a deadline a call is due a minute and its service before it, if that is earlier."""
    ticket = Ticket(
        number=1, info=CallInfo(template="t", prompt_tokens=1, deadline=500.0, depth=2),
        prompt_tokens=1, template=Template("t"), expected_output=1.0,
    )  # fmt: skip
    assert order_key(ticket, 0, 1000.0, 40.0) == (400.0, -2, 1)
    assert order_key(ticket, 0, 100.0, 40.0) == (100.0, -2, 1)
