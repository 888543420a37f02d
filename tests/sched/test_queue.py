from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alto._sched.estimate import Template
from alto._sched.queue import Line, order_key
from alto._sched.state import Ticket, Work


class Lines(RuleBasedStateMachine):
    """Against a sorted list."""

    def __init__(self):
        super().__init__()
        self.line = Line()
        self.model = []
        self.number = 0

    @rule(due=st.floats(0, 100), depth=st.integers(0, 3), n=st.integers(1, 3))
    def push(self, due, depth, n):
        """Somebody comes."""
        self.number += 1
        ticket = Ticket(
            number=self.number, work=Work(template="t", prompt_tokens=9, n=n, depth=depth),
            prompt_tokens=9, template=Template("t"), expected_output=2.0, uncached=7,
        )  # fmt: skip
        ticket.key = order_key(ticket, 1, due, 0.0)
        self.line.push(ticket)
        self.model.append(ticket)

    @rule()
    @precondition(lambda self: self.model)
    def pop(self):
        """Who goes next is the first of all."""
        first = min(self.model, key=lambda t: t.key)
        assert self.line.first() is first
        assert self.line.pop() is first
        self.model.remove(first)

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def leave(self, data):
        """Somebody leaves."""
        ticket = data.draw(st.sampled_from(self.model))
        self.model.remove(ticket)
        self.line.discard(ticket)

    @rule(data=st.data(), seconds=st.floats(0, 50))
    @precondition(lambda self: self.model)
    def move(self, data, seconds):
        """Somebody is moved forward."""
        ticket = data.draw(st.sampled_from(self.model))
        ticket.key = (ticket.key[0] - seconds, *ticket.key[1:])
        self.line.moved(ticket)

    @rule(due=st.floats(-10, 110))
    def look(self, due):
        """The part that is ahead is none before all and all behind all, and grows in between."""
        ahead = self.line.ahead((due, 0, 0))
        assert 0.0 <= ahead <= 1.0
        if not self.model:
            assert ahead == 0.0
            return
        dues = [t.key[0] for t in self.model]
        if due >= self.line.last:
            assert ahead == 1.0
        elif due < min(dues) and self.line.begin == min(dues):
            assert ahead == 0.0
        assert self.line.ahead((due + 1, 0, 0)) >= ahead

    @invariant()
    def counts(self):
        """Its sums and its order are those of the list."""
        assert self.line.tickets() == sorted(self.model, key=lambda t: t.key)
        assert self.line.count == sum(t.work.n for t in self.model)
        assert self.line.prefill == 7 * len(self.model)
        assert self.line.outputs == 2.0 * len(self.model)
        if self.model:
            dues = [t.key[0] for t in self.model]
            assert self.line.begin <= min(dues)
            assert self.line.last >= max(dues)
        else:
            assert self.line.first() is None


TestLines = Lines.TestCase
TestLines.settings = settings(deadline=None, stateful_step_count=40)


def test_a_deadline_counts_back_from_its_time():
    """With a deadline a call is due a minute and its service before it, if that is earlier."""
    ticket = Ticket(
        number=1, work=Work(template="t", prompt_tokens=1, deadline=500.0, depth=2),
        prompt_tokens=1, template=Template("t"), expected_output=1.0,
    )  # fmt: skip
    assert order_key(ticket, 0, 1000.0, 40.0) == (400.0, -2, 1)
    assert order_key(ticket, 0, 100.0, 40.0) == (100.0, -2, 1)
