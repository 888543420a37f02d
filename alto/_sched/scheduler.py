"""The scheduler: which engine runs a call, and when.

Theory of operation. Calls wait here, not inside an engine. A call is *bound* to an engine when it is
submitted: the policy chooses one, whether it has room or not, and the call waits in that engine's
line. An engine with room takes the first of its line. A policy that *rebinds* is asked again then,
since much may have changed, about that engine and those that have room or hold more of the prompt; if
it now prefers another the call moves to that line. It is also
asked about the first of the longest line when an engine has room and an empty line. So a call may
wait for its best engine while another is idle, and is taken as soon as that other one is better.

An engine *has room* while it has less than it can run at once, and a few calls more that are ready
to follow, less than a few steps' worth of prompt tokens to compute, and KV memory for what it has.

Every event changes the counters in the step in which it is told. Times are arguments. An engine that
has work and says nothing for ``stall`` seconds is *silent*: its line is bound anew to others, and it
gets nothing until it is heard again.

Cost: a call costs a constant number of choices (linear in engines), and line operations
(logarithmic in what waits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from typing import Protocol

from alto._sched.accounting import Ledger
from alto._sched.policies import LeastLoaded, Policy
from alto._sched.queue import Line, OrderKey, order_key
from alto._sched.siblings import Siblings
from alto._sched.state import EngineBook, Ticket, Work, rivals
from alto.model import EngineCapacity

__all__ = ("Admission", "Watcher")

_MOVES = 4
"""Calls that may change lines while one engine takes from its own."""
_FRESH = 1e-3
"""Seconds for which a choice stands."""


class Watcher(Protocol):
    """Hears every choice, in the step that makes it."""

    def __call__(
        self, now: float, ticket: Ticket, engines: Sequence[EngineBook],
        chosen: EngineBook | None, branch: str, /,
    ) -> None: ...  # fmt: skip


class Admission:
    """The books of a pool.

    Args:
        policy: Chooses engines.
        on_fault: Told once when the policy raises, or names an engine that is not there. The call is
            then placed by `LeastLoaded`.
        watcher: Hears every choice.
        stall: Seconds after which an engine that has work and says nothing is silent.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        on_fault: Callable[[BaseException], None] | None = None,
        watcher: Watcher | None = None,
        stall: float = 5.0,
    ) -> None:
        self.policy: Policy = policy
        self.watcher: Watcher | None = watcher
        self.stall: float = stall
        self.ledger: Ledger = Ledger()
        self._on_fault = on_fault
        self._faulty = False
        self._fallback = LeastLoaded()
        self._rebinds = bool(getattr(policy, "rebinds", False))
        self._by_arrival = getattr(policy, "order", "request") == "arrival"
        self._usable: list[EngineBook] = []
        self._homeless = Line()
        self._siblings = Siblings()
        self._number = 0
        self._waiting = 0
        self._look_at = -inf  # when an engine may be silent, at the earliest

    @property
    def engines(self) -> tuple[EngineBook, ...]:
        """The engines that are there."""
        return tuple(book for book in self.ledger.books if book is not None)

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return self._waiting

    # -- engines

    def add_engine(self, name: str, capacity: EngineCapacity, /, *, now: float) -> EngineBook:
        """An engine has come, and holds nothing."""
        book = self.ledger.add_engine(name, capacity, now)
        self._find_usable()
        return book

    def remove_engine(self, book: EngineBook, /, *, now: float) -> tuple[Ticket, ...]:
        """An engine has gone. What waits for it is bound to others.

        Returns:
            The calls that it had and that have not ended; each is to be ended, or submitted again.
        """
        self.ledger.remove_engine(book)
        self._find_usable()
        self._bind_anew(book.line, now)
        return tuple(book.tickets)

    def heard(self, book: EngineBook, /, *, now: float) -> None:
        """An engine has given a sign of life."""
        book.heard = now
        if book.silent:
            book.silent = False
            self._find_usable()

    # -- calls

    def submit(self, work: Work, /, *, now: float) -> Ticket:
        """A call has come and waits. Ask :meth:`dispatch` what can start."""
        template = self.ledger.template(work.template)
        self._number += 1
        ticket = Ticket(
            number=self._number,
            work=work,
            prompt_tokens=work.prompt_tokens,
            template=template,
            expected_output=template.expected_output(work.max_tokens) * work.n,
            submitted=now,
        )
        self._siblings.join(ticket)
        self._waiting += 1
        try:
            self._set_key(ticket)
            self._bind(ticket, now, "submitted")
        except BaseException:  # a prompt, or numbers, that cannot be counted with
            self._waiting -= 1
            ticket.state = "ended"
            self._leave_group(ticket)
            raise
        return ticket

    def resubmit(self, ticket: Ticket, /, *, now: float) -> None:
        """The engine of a call is gone: it waits again, at its old place."""
        assert ticket.state in ("prefilling", "decoding")
        self.ledger.take_off(ticket, computed=False)
        ticket.state, ticket.engine = "waiting", None
        before = ticket.key
        self._set_key(ticket)  # siblings may have ended meanwhile
        ticket.key = min(before, ticket.key)
        self._waiting += 1
        self._bind(ticket, now, "again")

    def withdraw(self, ticket: Ticket, /, *, now: float) -> None:
        """A call that waits is not wanted any more."""
        assert ticket.state == "waiting"
        (self._homeless if ticket.engine is None else ticket.engine.line).discard(ticket)
        self.ledger.unbind(ticket)
        self._waiting -= 1
        ticket.state = "ended"
        self._leave_group(ticket)
        self._refresh(now)

    def dispatch(self, /, *, now: float) -> list[Ticket]:
        """The calls that start now; ``ticket.engine`` says where. Ask after every other event."""
        started: list[Ticket] = []
        for ticket in self._siblings.grown():
            self._set_key_anew(ticket)
        self._refresh(now)
        if self._homeless.count and self._usable:
            self._bind_anew(self._homeless, now)
        again = True
        while again:
            again = False
            for book in self._usable:
                if book.line.count and book.has_room and self._drain(book, started, now):
                    again = self._rebinds
        if self._rebinds and len(self._usable) > 1:
            self._take_over(started, now)
        return started

    def first_token(self, ticket: Ticket, /, *, now: float, cached_tokens: int | None) -> None:
        """The first token of a call has come.

        Args:
            ticket: The call.
            now: In seconds.
            cached_tokens: What of its prompt the engine says it had; None: it does not say.
        """
        book = ticket.engine
        if ticket.state != "prefilling" or book is None:
            return
        if book.alive:
            self.heard(book, now=now)
        self.ledger.first_token(ticket, now, cached_tokens)

    def ended(self, ticket: Ticket, /, *, now: float, output_tokens: int, completed: bool) -> None:
        """A call that was started has ended, in whatever way.

        Args:
            ticket: The call.
            now: In seconds.
            output_tokens: What it has generated, all samples together.
            completed: Whether it ended by itself; else it tells nothing of calls like it.
        """
        if ticket.state not in ("prefilling", "decoding"):
            return
        book = ticket.engine
        assert book is not None
        if completed:
            self.ledger.completed(ticket, now, output_tokens)
        if book.alive:
            self.heard(book, now=now)
        self.ledger.take_off(ticket, computed=completed)
        ticket.state = "ended"
        self._leave_group(ticket)

    def next_wake(self, now: float, /) -> float | None:
        """When :meth:`dispatch` should be asked even if nothing happens; None: need not be."""
        times = [
            book.heard + self.stall
            for book in self._usable
            if book.line.count
            and book.outstanding > book.streamed
            and book.heard + self.stall > now
        ]
        return min(times, default=None)

    # -- choosing

    def _choose(
        self, ticket: Ticket, now: float, branch: str, among: list[EngineBook] | None = None
    ) -> EngineBook:
        usable = among
        if usable is None:
            usable = self._usable
            self.ledger.look_up(ticket)
        ticket.chosen = now
        chosen: EngineBook | None = None
        try:
            chosen = self.policy.choose(ticket, tuple(usable))
        except Exception as error:  # noqa: BLE001  # whatever a user's policy raises
            self._fault(error)
        else:
            if not any(chosen is book for book in usable):
                self._fault(LookupError(f"the policy returned {chosen!r}, which is not among them"))
                chosen = None
        if chosen is None:
            chosen, branch = self._fallback.choose(ticket, usable), "fallback"
            assert chosen is not None
        if self.watcher is not None:
            try:
                self.watcher(now, ticket, usable, chosen, branch)
            except Exception as error:  # noqa: BLE001  # whatever a user's recorder raises
                self.watcher = None  # it is not asked again
                self._fault(error)
        return chosen

    def _fault(self, error: BaseException) -> None:
        if not self._faulty and self._on_fault is not None:
            self._faulty = True
            with suppress(Exception):  # whoever is told must not harm those that wait
                self._on_fault(error)

    def _bind(self, ticket: Ticket, now: float, branch: str) -> None:
        if not self._usable:
            ticket.engine = None
            ticket.uncached = ticket.prompt_tokens
            self._homeless.push(ticket)
            return
        book = self._choose(ticket, now, branch)
        self._wait_for(ticket, book)

    def _wait_for(self, ticket: Ticket, book: EngineBook) -> None:
        self.ledger.bind(ticket, book)
        book.line.push(ticket)

    def _bind_anew(self, line: Line, now: float) -> None:
        for ticket in line.tickets():
            line.discard(ticket)
            self.ledger.unbind(ticket)
            self._bind(ticket, now, "moved")

    def _drain(self, book: EngineBook, started: list[Ticket], now: float) -> bool:
        """Start what *book* has room for. Returns whether another line has grown."""
        moves = 0
        while book.line.count and book.has_room:
            ticket = book.line.pop()
            if self._rebinds and now - ticket.chosen > _FRESH and moves < _MOVES:
                self.ledger.look_up(ticket)
                others = rivals(ticket, book, self._usable)
                if len(others) > 1:
                    better = self._choose(ticket, now, "turn", others)
                    if better is not book:
                        self.ledger.unbind(ticket)
                        self._wait_for(ticket, better)
                        moves += 1
                        continue
                self.ledger.charge(ticket, book)
            self._start(ticket, book, started, now)
        return moves > 0

    def _take_over(self, started: list[Ticket], now: float) -> None:
        """Let engines that have room and nobody waiting look at the first of the longest line."""
        for book in self._usable:
            tries = _MOVES
            while tries and not book.line.count and book.has_room:
                tries -= 1
                longest = max(self._usable, key=_waiting_for)
                ticket = longest.line.first()
                if ticket is None or now - ticket.chosen <= 5 * _FRESH:
                    return
                longest.line.discard(ticket)
                better = self._choose(ticket, now, "idle")
                if better is longest or not better.has_room or better.line.count:
                    self.ledger.charge(ticket, longest)
                    longest.line.push(ticket)
                    return
                self.ledger.unbind(ticket)
                self.ledger.bind(ticket, better)
                self._start(ticket, better, started, now)

    def _start(self, ticket: Ticket, book: EngineBook, started: list[Ticket], now: float) -> None:
        self._waiting -= 1
        self.ledger.start(ticket, book, now)
        started.append(ticket)

    def _set_key(self, ticket: Ticket) -> None:
        work, service = ticket.work, 0.0
        arrived = ticket.submitted if work.arrived is None else work.arrived
        siblings = self._siblings.of(ticket)
        if self._by_arrival:
            arrived, siblings = ticket.submitted, 0
        if work.deadline is not None:
            seen = ticket.template.service
            service = (
                seen.mean if seen.count else ticket.expected_output * self.ledger.speed.step(1)
            )
        ticket.key = order_key(ticket, siblings, arrived, service)
        if self._by_arrival:
            ticket.key = (ticket.key[0], 0, ticket.number)

    def _leave_group(self, ticket: Ticket) -> None:
        for other in self._siblings.leave(ticket):
            self._set_key_anew(other, at_most=other.key)

    def _set_key_anew(self, ticket: Ticket, at_most: OrderKey | None = None) -> None:
        if ticket.state != "waiting" or self._by_arrival:
            return
        before = ticket.key
        self._set_key(ticket)
        if at_most is not None:
            ticket.key = min(at_most, ticket.key)
        if ticket.key != before:
            (self._homeless if ticket.engine is None else ticket.engine.line).moved(ticket)

    def _find_usable(self) -> None:
        self._usable = [b for b in self.ledger.books if b is not None and not b.silent]

    def _refresh(self, now: float) -> None:
        """Find the engines that have work and say nothing."""
        if now < self._look_at:
            return
        while True:
            waited = [b for b in self._usable if b.outstanding > b.streamed]
            silent = next((b for b in waited if now - b.heard > self.stall), None)
            if silent is None:
                # Nobody is silent before that: who is heard, or gets work, is so from then on.
                self._look_at = min((b.heard for b in waited), default=now) + self.stall
                return
            silent.silent = True
            self._find_usable()
            self._bind_anew(silent.line, now)

    def check(self) -> None:
        """Assert the invariants. Slow."""
        waiting = 0
        for book in self.engines:
            line = book.line.tickets()
            assert all(t.engine is book and t.state == "waiting" for t in line)
            assert book.line.count == sum(t.work.n for t in line)
            assert book.line.prefill == sum(t.uncached for t in line)
            waiting += len(line)
        assert waiting + len(self._homeless.tickets()) == self._waiting
        self.ledger.check()


def _waiting_for(book: EngineBook) -> int:
    return book.line.count
