"""The scheduler: it decides which engine runs a call, and when.

Theory of operation. Calls wait here, not inside an engine. A call is *bound* to an engine when it is
submitted: the policy chooses one, with or without room, and the call waits in that engine's queue.
An engine with room takes the first call of its queue. Much may have changed by then, so a policy that
*rebinds* is asked again, about that engine and those that have room or hold more of the prompt; if it
now prefers another engine, the call moves to that queue. It is also asked about the first call of the
longest queue when an engine has room and an empty queue. So a call may wait for its best engine while
another is idle, and is taken as soon as the other one is better.

An engine *has room* while it has less than it can run at once and a few calls more that are ready to
follow, less than a few steps' worth of prompt tokens to compute, and KV memory for what it has.

Every event changes the counters in the step in which it is reported. Times are arguments. An engine
that has work and gives no sign of life for ``stall`` seconds is *silent*: the calls in its queue are
bound to others, and it gets nothing until it gives one.

Cost: a call costs a constant number of choices (linear in engines) and of queue operations
(logarithmic in the calls that wait).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from typing import final

import attrs

from alto._sched.accounting import Accounting
from alto._sched.decisions import Recorder, decision_of
from alto._sched.policies import LeastLoaded, Policy, PromptAware
from alto._sched.queue import OrderKey, WaitQueue, order_key
from alto._sched.siblings import Siblings
from alto._sched.state import CallInfo, EngineLoad, Ticket, candidates
from alto.model import EngineCapacity
from alto.protocols import CacheListener

__all__ = ("Scheduler",)

_MOVES = 4
"""Calls that may change queues while one engine takes from its own."""
_FRESH = 1e-3
"""Seconds for which a choice is not made again."""


@final
class Scheduler:
    """The scheduler of a pool: the calls that wait, the engines, and which call goes where.

    Every method is a step: it takes no time and calls nothing but the policy, *recorder* and
    *on_fault*. Times are in seconds of any clock that does not go back.

    Args:
        policy: Chooses engines; None: a new `PromptAware`. One policy serves one scheduler.
        on_fault: Called once, when the policy raises or returns an engine that is not there, or when
            the recorder raises. The call is then placed by `LeastLoaded`. None: not reported.
        recorder: Gets every decision. If it raises, it is not called again.
        stall: Seconds after which an engine that has work and gives no sign of life gets no more.

    Raises:
        TypeError: *policy* is no policy.
        ValueError: *stall* is not above 0.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        on_fault: Callable[[BaseException], None] | None = None,
        recorder: Recorder | None = None,
        stall: float = 5.0,
    ) -> None:
        chosen = PromptAware() if policy is None else policy
        if isinstance(chosen, type) or not isinstance(chosen, Policy):
            msg = (
                f"policy must be an object with choose(call, engines), such as LeastLoaded(), "
                f"not {chosen!r}"
            )
            raise TypeError(msg)
        if not stall > 0:
            msg = f"stall must be above 0 seconds, not {stall!r}"
            raise ValueError(msg)
        self.policy: Policy = chosen
        self._recorder = recorder
        self._stall = stall
        self._accounting = Accounting()
        self._on_fault = on_fault
        self._faulty = False
        self._fallback = LeastLoaded()
        self._rebinds = bool(getattr(chosen, "rebinds", False))
        self._by_arrival = getattr(chosen, "order", "request") == "arrival"
        self._usable: list[EngineLoad] = []
        self._unbound = WaitQueue()  # calls that wait while there is no usable engine
        self._siblings = Siblings()
        self._number = 0
        self._waiting = 0
        self._next_check = -inf  # the earliest time at which an engine may be silent

    def __repr__(self) -> str:
        """Name the policy, and count engines and waiting calls."""
        return (
            f"<Scheduler {type(self.policy).__name__}, {len(self.engines)} engines, "
            f"{self.waiting} waiting>"
        )

    @property
    def engines(self) -> tuple[EngineLoad, ...]:
        """The engines, by number."""
        return tuple(engine for engine in self._accounting.engines if engine is not None)

    @property
    def waiting(self) -> int:
        """Number of calls that wait."""
        return self._waiting

    # -- engines

    def add_engine(self, name: str, capacity: EngineCapacity, /, *, now: float) -> EngineLoad:
        """Add an engine that holds nothing."""
        engine = self._accounting.add_engine(name, capacity, now)
        self._find_usable()
        return engine

    def remove_engine(self, engine: EngineLoad, /, *, now: float) -> tuple[Ticket, ...]:
        """Remove an engine, and bind the calls that wait for it to others.

        Returns:
            The calls that it was given and that have not ended. Pass each to :meth:`ended` or
            :meth:`resubmit`.
        """
        self._accounting.remove_engine(engine)
        self._find_usable()
        self._bind_all(engine.queue, now)
        return tuple(engine.tickets)

    def heard(self, engine: EngineLoad, /, *, now: float) -> None:
        """Note a sign of life of an engine."""
        engine.heard = now
        if engine.silent:
            engine.silent = False
            self._find_usable()

    def listener(self, engine: EngineLoad, /) -> CacheListener:
        """Return what to give to :meth:`alto.protocols.Member.listen`, so that its cache is known exactly."""
        return _Listener(self._accounting, engine)

    # -- calls

    def submit(self, info: CallInfo, /, *, now: float) -> Ticket:
        """Add a call to those that wait. Ask :meth:`dispatch` which calls start."""
        template = self._accounting.template(info.template)
        self._number += 1
        ticket = Ticket(
            number=self._number,
            info=info,
            prompt_tokens=info.prompt_tokens,
            template=template,
            expected_output=template.expected_output(info.max_tokens) * info.n,
            submitted=now,
        )
        self._siblings.join(ticket)
        self._waiting += 1
        try:
            self._set_key(ticket)
            self._bind(ticket, now, "submitted")
        except BaseException:  # a prompt, or numbers, that cannot be computed with
            self._waiting -= 1
            ticket.state = "ended"
            self._leave_group(ticket)
            raise
        return ticket

    def resubmit(self, ticket: Ticket, /, *, now: float) -> None:
        """Let a call whose engine was removed wait again, at its old place."""
        assert ticket.state in ("prefilling", "decoding")
        self._accounting.take_off(ticket, computed=False)
        ticket.state, ticket.engine = "waiting", None
        before = ticket.key
        self._set_key(ticket)  # siblings may have ended meanwhile
        ticket.key = min(before, ticket.key)
        self._waiting += 1
        self._bind(ticket, now, "again")

    def withdraw(self, ticket: Ticket, /, *, now: float) -> None:
        """Remove a call that waits."""
        assert ticket.state == "waiting"
        self._queue_of(ticket).remove(ticket)
        self._accounting.unbind(ticket)
        self._waiting -= 1
        ticket.state = "ended"
        self._leave_group(ticket)
        self._find_silent(now)

    def dispatch(self, /, *, now: float) -> list[Ticket]:
        """Return the calls that start now; ``ticket.engine`` says where. Ask after every other event."""
        started: list[Ticket] = []
        for ticket in self._siblings.grown():
            self._update_key(ticket)
        self._find_silent(now)
        if self._unbound.count and self._usable:
            self._bind_all(self._unbound, now)
        again = True
        while again:
            again = False
            for engine in self._usable:
                if engine.queue.count and engine.has_room and self._drain(engine, started, now):
                    again = self._rebinds
        if self._rebinds and len(self._usable) > 1:
            self._fill_idle(started, now)
        return started

    def first_token(self, ticket: Ticket, /, *, now: float, cached_tokens: int | None) -> None:
        """Note the first token of a call.

        Args:
            ticket: The call.
            now: In seconds.
            cached_tokens: How much of its prompt the engine says it held; None: it does not say.
        """
        engine = ticket.engine
        if ticket.state != "prefilling" or engine is None:
            return
        if engine.alive:
            self.heard(engine, now=now)
        self._accounting.first_token(ticket, now, cached_tokens)

    def ended(self, ticket: Ticket, /, *, now: float, output_tokens: int, completed: bool) -> None:
        """Note the end of a call that was started, in whatever way. Ignored if it has ended.

        Args:
            ticket: The call.
            now: In seconds.
            output_tokens: Tokens that it has generated, all samples together.
            completed: Whether it ended by itself; if not, nothing is learnt from it.
        """
        if ticket.state not in ("prefilling", "decoding"):
            return
        engine = ticket.engine
        assert engine is not None
        if completed:
            self._accounting.completed(ticket, now, output_tokens)
        if engine.alive:
            self.heard(engine, now=now)
        self._accounting.take_off(ticket, computed=completed)
        ticket.state = "ended"
        self._leave_group(ticket)

    def next_wake(self, now: float, /) -> float | None:
        """Return when :meth:`dispatch` should be asked if nothing happens; None: it need not be."""
        times = [
            engine.heard + self._stall
            for engine in self._usable
            if engine.queue.count
            and engine.outstanding > engine.streamed
            and engine.heard + self._stall > now
        ]
        return min(times, default=None)

    # -- choosing

    def _choose(
        self, ticket: Ticket, now: float, branch: str, among: list[EngineLoad] | None = None
    ) -> EngineLoad:
        usable = among
        if usable is None:
            usable = self._usable
            self._accounting.look_up(ticket)
        ticket.chosen = now
        chosen: EngineLoad | None = None
        try:
            chosen = self.policy.choose(ticket, tuple(usable))
        except Exception as error:  # noqa: BLE001  # whatever a user's policy raises
            self._report(error)
        else:
            if not any(chosen is engine for engine in usable):
                self._report(
                    LookupError(f"the policy returned {chosen!r}, which is not among them")
                )
                chosen = None
        if chosen is None:
            chosen, branch = self._fallback.choose(ticket, usable), "fallback"
        if self._recorder is not None:
            try:
                self._recorder(decision_of(self.policy, now, ticket, usable, chosen, branch))
            except Exception as error:  # noqa: BLE001  # whatever a user's recorder raises
                self._recorder = None  # it is not called again
                self._report(error)
        return chosen

    def _report(self, error: BaseException) -> None:
        if not self._faulty and self._on_fault is not None:
            self._faulty = True
            with suppress(Exception):  # a callback that fails must not harm calls that wait
                self._on_fault(error)

    def _bind(self, ticket: Ticket, now: float, branch: str) -> None:
        if not self._usable:
            ticket.engine = None
            ticket.uncached = ticket.prompt_tokens
            self._unbound.push(ticket)
            return
        self._enqueue(ticket, self._choose(ticket, now, branch))

    def _enqueue(self, ticket: Ticket, engine: EngineLoad) -> None:
        self._accounting.bind(ticket, engine)
        engine.queue.push(ticket)

    def _bind_all(self, queue: WaitQueue, now: float) -> None:
        """Bind every call of *queue* again."""
        for ticket in queue.tickets():
            queue.remove(ticket)
            self._accounting.unbind(ticket)
            self._bind(ticket, now, "moved")

    def _queue_of(self, ticket: Ticket) -> WaitQueue:
        return self._unbound if ticket.engine is None else ticket.engine.queue

    def _drain(self, engine: EngineLoad, started: list[Ticket], now: float) -> bool:
        """Start the calls that *engine* has room for. Return whether another queue has grown."""
        moves = 0
        while engine.queue.count and engine.has_room:
            ticket = engine.queue.pop()
            if self._rebinds and now - ticket.chosen > _FRESH and moves < _MOVES:
                self._accounting.look_up(ticket)
                others = candidates(ticket, engine, self._usable)
                if len(others) > 1:
                    better = self._choose(ticket, now, "turn", others)
                    if better is not engine:
                        self._accounting.unbind(ticket)
                        self._enqueue(ticket, better)
                        moves += 1
                        continue
                self._accounting.charge(ticket, engine)
            self._start(ticket, engine, started, now)
        return moves > 0

    def _fill_idle(self, started: list[Ticket], now: float) -> None:
        """Offer the first call of the longest queue to engines with room and an empty queue."""
        for engine in self._usable:
            tries = _MOVES
            while tries and not engine.queue.count and engine.has_room:
                tries -= 1
                longest = max(self._usable, key=_queue_length)
                ticket = longest.queue.first()
                # A recent choice is kept, or one idle engine would ask at every event.
                if ticket is None or now - ticket.chosen <= 5 * _FRESH:
                    return
                longest.queue.remove(ticket)
                better = self._choose(ticket, now, "idle")
                if better is longest or not better.has_room or better.queue.count:
                    self._accounting.charge(ticket, longest)
                    longest.queue.push(ticket)
                    return
                self._accounting.unbind(ticket)
                self._accounting.bind(ticket, better)
                self._start(ticket, better, started, now)

    def _start(self, ticket: Ticket, engine: EngineLoad, started: list[Ticket], now: float) -> None:
        self._waiting -= 1
        self._accounting.start(ticket, engine, now)
        started.append(ticket)

    def _set_key(self, ticket: Ticket) -> None:
        info, service = ticket.info, 0.0
        arrived = ticket.submitted if info.arrived is None else info.arrived
        siblings = self._siblings.of(ticket)
        if self._by_arrival:
            arrived, siblings = ticket.submitted, 0
        if info.deadline is not None:
            seen = ticket.template.service
            step = self._accounting.speed.step(1)
            service = seen.mean if seen.count else ticket.expected_output * step
        ticket.key = order_key(ticket, siblings, arrived, service)
        if self._by_arrival:
            ticket.key = (ticket.key[0], 0, ticket.number)

    def _leave_group(self, ticket: Ticket) -> None:
        for other in self._siblings.leave(ticket):
            self._update_key(other, at_most=other.key)

    def _update_key(self, ticket: Ticket, at_most: OrderKey | None = None) -> None:
        if ticket.state != "waiting" or self._by_arrival:
            return
        before = ticket.key
        self._set_key(ticket)
        if at_most is not None:
            ticket.key = min(at_most, ticket.key)
        if ticket.key != before:
            self._queue_of(ticket).reorder(ticket)

    def _find_usable(self) -> None:
        self._usable = [e for e in self._accounting.engines if e is not None and not e.silent]

    def _find_silent(self, now: float) -> None:
        """Find engines that have work and give no sign of life, and bind their queues to others."""
        if now < self._next_check:
            return
        while True:
            working = [e for e in self._usable if e.outstanding > e.streamed]
            silent = next((e for e in working if now - e.heard > self._stall), None)
            if silent is None:
                # No engine can be silent earlier: a sign of life, or new work, sets `heard` later.
                self._next_check = min((e.heard for e in working), default=now) + self._stall
                return
            silent.silent = True
            self._find_usable()
            self._bind_all(silent.queue, now)

    def check(self) -> None:
        """Assert the invariants. Slow; for tests."""
        waiting = 0
        for engine in self.engines:
            tickets = engine.queue.tickets()
            assert all(t.engine is engine and t.state == "waiting" for t in tickets)
            assert engine.queue.count == sum(t.info.n for t in tickets)
            assert engine.queue.prefill == sum(t.uncached for t in tickets)
            waiting += len(tickets)
        assert waiting + len(self._unbound.tickets()) == self._waiting
        self._accounting.check()


def _queue_length(engine: EngineLoad) -> int:
    return engine.queue.count


@final
@attrs.frozen
class _Listener:
    """A cache listener that passes the events of one engine to the accounting."""

    accounting: Accounting
    engine: EngineLoad

    def stored(
        self, parent: int | None, token_ids: Sequence[int], keys: Sequence[int], salt: int = 0, /
    ) -> None:
        self.accounting.stored(self.engine, parent, token_ids, keys, salt)

    def removed(self, keys: Sequence[int], /) -> None:
        self.accounting.removed(self.engine, keys)

    def cleared(self) -> None:
        self.accounting.cleared(self.engine)
