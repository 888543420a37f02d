"""A pool of simulated engines behind a scheduler, event by event, without an event loop.

The machines are those that alto ships: `Scheduler` decides, `Batching` is the engine.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from alto.engines._simulated.batching import Batching
from alto.engines.profiles import EngineProfile
from alto.sched import CallInfo, Policy, Scheduler, Ticket
from bench._scheduling.loads import Call, Request


@dataclass(kw_only=True)
class Outcome:
    """What a run was like."""

    latencies: list[float]
    """Seconds per request, in order of arrival."""
    ends: list[float]
    """When each was done."""
    hit_rate: float
    """Prompt tokens that were cached, as a fraction."""
    imbalance: float
    """Highest of the engines' work over the mean, in computed and generated tokens."""
    preempted: int


@dataclass(slots=True)
class _Running:
    request: int
    call: int
    ticket: Ticket


class Pool:
    """One run.

    Args:
        policy: Chooses engines.
        profile: Of every engine.
        engines: How many.
        todo: Requests in order of arrival.
    """

    def __init__(
        self, policy: Policy, profile: EngineProfile, engines: int, todo: Sequence[Request]
    ) -> None:
        self.scheduler = Scheduler(policy, on_fault=_raise)
        self.engines = [Batching(profile) for _ in range(engines)]
        for k in range(engines):
            self.scheduler.add_engine(f"e{k}", profile.capacity, now=0.0)
        self.todo = todo
        self._heap: list[tuple[float, int, int, int]] = []  # time, number, engine or -1, version
        self._numbers = count()
        self._versions = [0] * engines
        self._work = [0] * engines
        self._missing: list[list[int]] = []  # per request and call: what it waits for
        self._left: list[int] = []
        self._followers: list[dict[tuple[int, int | None], list[int]]] = []
        self._keys = count()
        self._running: dict[int, _Running] = {}
        self._where: dict[Ticket, tuple[int, int]] = {}
        self.ends = [0.0] * len(todo)
        self._cached = self._prompts = 0

    def run(self) -> Outcome:
        """Until all requests are done."""
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            self._run()
        finally:
            gc.enable()
            gc.unfreeze()
        latencies = [end - r.arrived for end, r in zip(self.ends, self.todo, strict=True)]
        return Outcome(
            latencies=latencies,
            ends=self.ends,
            hit_rate=self._cached / max(1, self._prompts),
            imbalance=max(self._work) * len(self._work) / max(1, sum(self._work)),
            preempted=sum(engine.preempted for engine in self.engines),
        )

    def _run(self) -> None:
        arrivals, heap = 0, self._heap
        while True:
            coming = self.todo[arrivals].arrived if arrivals < len(self.todo) else None
            if coming is not None and (not heap or coming <= heap[0][0]):
                now = coming
                self._arrive(arrivals, now)
                arrivals += 1
            elif heap:
                now, _, engine, version = heappop(heap)
                if version != self._versions[engine]:
                    continue
                self._hear(engine, now)
                self._expect(engine)
            else:
                return
            self._dispatch(now)

    def _arrive(self, number: int, now: float) -> None:
        request = self.todo[number]
        self._left.append(len(request.calls))
        self._missing.append([len(call.after) for call in request.calls])  # type: ignore[misc]
        followers: dict[tuple[int, int | None], list[int]] = {}
        for index, call in enumerate(request.calls):
            for condition in call.after:
                followers.setdefault(condition, []).append(index)
        self._followers.append(followers)
        for index, call in enumerate(request.calls):
            if not call.after:
                self._submit(number, index, call, now)

    def _submit(self, number: int, index: int, call: Call, now: float) -> None:
        work = CallInfo(
            template=(call.template, call.prefix),
            prompt_tokens=len(call.tokens),
            token_ids=call.tokens,
            prefix_tokens=call.prefix,
            max_tokens=4096,
            arrived=self.todo[number].arrived,
            depth=call.depth,
            group=(number, call.group),
            parent=(number, call.group),
        )
        self._where[self.scheduler.submit(work, now=now)] = (number, index)

    def _dispatch(self, now: float) -> None:
        changed = set()
        for ticket in self.scheduler.dispatch(now=now):
            number, index = self._where.pop(ticket)
            call = self.todo[number].calls[index]
            book = ticket.engine
            assert book is not None
            watch = sorted(
                at for which, at in self._followers[number] if which == index and at is not None
            )
            key = next(self._keys)
            self._running[key] = _Running(number, index, ticket)
            self.engines[book.index].add(
                key, len(call.tokens), call.names, now=now, output_tokens=call.output, watch=watch
            )
            changed.add(book.index)
        for engine in changed:
            self._expect(engine)

    def _expect(self, engine: int) -> None:
        self._versions[engine] += 1
        due = self.engines[engine].next_event()
        if due is not None:
            heappush(self._heap, (due, next(self._numbers), engine, self._versions[engine]))

    def _hear(self, engine: int, now: float) -> None:
        for event in self.engines[engine].advance(now):
            running = self._running[event.key]  # type: ignore[index]
            number, index, ticket = running.request, running.call, running.ticket
            if event.kind == "first":
                self.scheduler.first_token(
                    ticket, now=event.time, cached_tokens=event.cached_tokens
                )
                self._cached += event.cached_tokens
                self._prompts += ticket.prompt_tokens
                self._work[engine] += ticket.prompt_tokens - event.cached_tokens
            elif event.kind == "reached":
                self._release(number, (index, event.output_tokens), event.time)
            else:
                del self._running[event.key]  # type: ignore[arg-type]
                self._work[engine] += event.output_tokens
                self.scheduler.ended(
                    ticket, now=event.time, output_tokens=event.output_tokens, completed=True
                )
                self._release(number, (index, None), event.time)
                self._left[number] -= 1
                if not self._left[number]:
                    self.ends[number] = event.time

    def _release(self, number: int, condition: tuple[int, int | None], now: float) -> None:
        for index in self._followers[number].get(condition, ()):
            self._missing[number][index] -= 1
            if not self._missing[number][index]:
                self._submit(number, index, self.todo[number].calls[index], now)


def _raise(error: BaseException) -> None:
    raise error
