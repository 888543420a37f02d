"""Continuous batching on given time: what an engine does with its calls, step by step.

Theory of operation. Time goes from step to step. At the boundary between two steps the calls that
have come are admitted in order, while there is a place, a token left of the step's budget, and
memory for the whole prompt. A step has one token for each call that *decodes*, and pieces of the
prompts of those that do not yet; the step in which a prompt ends gives its first token. Where the
decoding calls need more blocks than are free, the last in order loses its memory and waits again;
its prompt, and what it had said, is computed anew, but for what is still in memory.

Most steps only decode, and all of these are alike but for a context that grows. So the machine goes
over many at once, in one *stretch*, up to the step in which somebody ends, is watched, or lacks
memory. Nothing is counted per call: there is one number of steps, and a call that decodes knows how
far its count of tokens is ahead of it. A call that comes in the middle of a stretch, and could be
admitted, cuts it at the next boundary; so does one that is given up. That a stretch is nothing but
the steps in it is a property that the tests check.

* A stretch is chosen when :meth:`Batching.advance` reaches its beginning, and not before: what comes
  earlier, or at that very time but before that call, is part of it.
* At most one call has a part of its prompt computed between two steps, and it was admitted last.
* Memory for the first step of a stretch is taken at its beginning, that for the others at its end.
  All of it goes as in vLLM's scheduler, as of 0.32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import final

from alto.engines._simulated.blocks import Blocks
from alto.engines._simulated.call import BatchedCall, Event, EventKind, check_call
from alto.engines._simulated.decoders import Decoders
from alto.engines._simulated.step_run import Stretch
from alto.engines.profiles import EngineProfile

__all__ = ("Batching", "Event", "EventKind")


@final
class Batching:
    """One engine.

    Args:
        profile: Its constants and limits.
        stored: Is told the names of prompt blocks that came into memory: all names of the prompt,
            the first that is new, and the end of those that are.
        removed: Is told the names of blocks that were thrown out.

    Times are in seconds and never go back; an earlier one counts as the latest that it was told.
    """

    def __init__(
        self,
        profile: EngineProfile,
        /,
        *,
        stored: Callable[[Sequence[int], int, int], None] | None = None,
        removed: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.profile = profile
        self.preempted = 0  # times that a call lost its memory
        self._size = profile.block_size
        self._seats = profile.max_num_seqs
        self._blocks = Blocks(profile.kv_blocks, removed=removed)
        self._stored = stored
        self._calls: dict[Hashable, BatchedCall] = {}
        self._orders = 0
        self._coming: deque[BatchedCall] = deque()  # not yet visible, or not looked at
        self._leaving: deque[BatchedCall] = deque()  # given up while they run
        self._given_up = 0  # those of them that run still
        self._waiting: list[tuple[tuple[int, int], BatchedCall]] = []  # a heap; some are gone
        self._queued = 0  # those in `_coming` and `_waiting` that are not gone
        self._blocked = False  # the first that waits lacks memory, and none was freed since
        self._running: dict[int, BatchedCall] = {}  # by number of admission, so in this order
        self._admissions = 0
        self._partial: BatchedCall | None = None  # the one that runs and has a prompt to compute
        self._ending: list[BatchedCall] = []  # those whose prompts end with this step
        self._decoders = Decoders(self._size)
        self._told_until = float("-inf")  # latest `advance`
        self._stretch = Stretch()
        self._pieces = (0, 0, 0)  # prompt tokens, prompts, pairs in the step that is being made

    @property
    def running(self) -> int:
        """Calls that have a place, but for those that were given up."""
        return len(self._running) - self._given_up

    @property
    def waiting(self) -> int:
        """Calls that wait for one."""
        return self._queued

    @property
    def kv_used(self) -> int:
        """Tokens' worth of blocks that calls hold, as of the beginning of the stretch."""
        return self._blocks.held * self._size

    def add(  # noqa: PLR0913  # a call has these properties
        self,
        key: Hashable,
        prompt_tokens: int,
        blocks: Sequence[int],
        /,
        *,
        now: float,
        output_tokens: int,
        priority: int = 0,
        watch: Sequence[int] = (),
    ) -> None:
        """A call comes.

        Args:
            key: Stands for it, and for no other that runs or waits.
            prompt_tokens: Length of its prompt, at least 1.
            blocks: The names of the prompt's full blocks; none, where nothing is to be shared.
            now: When, in seconds.
            output_tokens: What it generates, at least 1.
            priority: Lower goes first, where the profile says so.
            watch: Counts of output tokens, ascending, that somebody wants to hear of.

        Raises:
            ValueError: It could never run, or the key is in use.
        """
        check_call(self.profile, prompt_tokens, len(blocks), output_tokens)
        if key in self._calls:
            msg = f"the key {key!r} is in use"
            raise ValueError(msg)
        self._orders += 1
        first = priority if self.profile.policy == "priority" else 0
        call = BatchedCall(key, (first, self._orders), prompt_tokens, blocks, output_tokens, watch)
        call.visible = max(now, self._told_until) + self.profile.latency_s
        self._calls[key] = call
        self._coming.append(call)
        self._queued += 1
        if self._could_admit(call):
            self._stretch.cut(call.visible, self._told_until)

    def abort(self, key: Hashable, /, *, now: float) -> None:
        """A call is given up. Nothing more is said of it; an unknown key is ignored.

        If it runs, its place is free at the next boundary. Advance first, if something is due.
        """
        call = self._calls.pop(key, None)
        if call is None:
            return
        call.gone = True
        if call.number:
            call.visible = max(now, self._told_until)
            self._leaving.append(call)
            self._given_up += 1
            self._stretch.cut(call.visible, self._told_until)
            return
        self._queued -= 1
        if self._blocked:  # those behind it may fit
            self._blocked = False
            self._stretch.cut(now, self._told_until)

    def next_event(self) -> float | None:
        """When to call :meth:`advance` next; nothing is to be heard of before. None: of nothing."""
        if self._stretch.steps:
            return self._stretch.end
        if self._running or self._waiting:
            return self._stretch.start
        while self._coming and self._coming[0].gone:
            self._coming.popleft()
        return max(self._stretch.start, self._coming[0].visible) if self._coming else None

    def advance(self, now: float, /) -> list[Event]:
        """What has happened up to and at *now*, in order; each event is told once."""
        now = self._told_until = max(now, self._told_until)
        events: list[Event] = []
        stretch = self._stretch
        while stretch.steps or self._begin(now):
            end = stretch.end
            if end > now:
                break
            self._end(end, events)
        return events

    # -- the stretch

    def _could_admit(self, call: BatchedCall) -> bool:
        """Whether it may get a place before anything else ends."""
        if len(self._running) >= self._seats:
            return False
        return not (self._blocked and self._waiting and self._waiting[0][0] < call.order)

    def _begin(self, now: float) -> bool:
        """Choose the next stretch, if it begins by *now*."""
        while True:
            start = self.next_event()
            if start is None or start > now:
                return False
            self._stretch.start = start
            while self._leaving and self._leaving[0].visible <= start:
                call = self._leaving.popleft()
                if call.number:
                    self._stop_running(call)
            while self._coming and self._coming[0].visible <= start:
                call = self._coming.popleft()
                if not call.gone:
                    if self._blocked and self._waiting and call.order < self._waiting[0][0]:
                        self._blocked = False
                    heappush(self._waiting, (call.order, call))
            while self._waiting and self._waiting[0][1].gone:
                heappop(self._waiting)
            if self._running or self._waiting:
                break
        self._schedule()
        return True

    def _schedule(self) -> None:
        """Make the step that begins now, and see how many more are like it."""
        self._pieces = (0, 0, 0)
        needed = self._decoders.needs()
        partial, chunk = self._partial, 0
        if partial is not None:
            chunk = partial.chunk(self.profile.max_num_batched_tokens - self._decoders.count)
            needed += partial.needs(chunk, self._size)
        crowded = needed > self._blocks.free
        if crowded:
            chunk = self._squeeze()
        else:
            self._blocks.take(self._decoders.needs())
        if chunk and self._partial is not None:
            self._compute(self._partial, chunk)
        budget = self.profile.max_num_batched_tokens - self._decoders.count - chunk
        if not crowded and budget > 0 and self._waiting and not self._blocked:
            self._admit(budget)
        profile, stretch, (tokens, prompts, pairs) = self.profile, self._stretch, self._pieces
        stretch.growth, stretch.steps = 0.0, 1
        stretch.first = profile.step_seconds(
            decoding=self._decoders.count,
            context_tokens=self._decoders.context,
            prefill_tokens=tokens,
            prefills=prompts,
            prefill_pairs=pairs,
        )
        if tokens:
            return
        assert self._decoders.count, "an engine with work to do does nothing"
        stretch.growth = profile.per_context_token_s * self._decoders.count
        if crowded and self._waiting and len(self._running) < self._seats:
            return  # nobody was admitted for that reason alone, so it is only for this step
        stretch.steps = self._decoders.alike(self._blocks.free)
        if len(self._running) < self._seats:
            coming = next((c for c in self._coming if not c.gone and self._could_admit(c)), None)
            if coming is not None:
                stretch.cut(coming.visible)

    def _end(self, end: float, events: list[Event]) -> None:
        """The stretch is over."""
        decoders = self._decoders
        self._blocks.take(decoders.go(self._stretch.steps))
        self._stretch.start, self._stretch.steps = end, 0
        for call in decoders.due():
            self._told(call, end, decoders.said(call), events)
        ending, self._ending = self._ending, []
        for call in ending:
            decoders.start(call)
            if call.done == 0 and not call.gone:
                events.append(Event(end, "first", call.key, 1, call.cached, call.began))
            self._told(call, end, call.done + 1, events)

    def _told(self, call: BatchedCall, time: float, tokens: int, events: list[Event]) -> None:
        """It has said so many tokens: tell, and see when to look again."""
        watch, told = call.watch, call.told
        while told < len(watch) and watch[told] <= tokens:
            if watch[told] == tokens and not call.gone:
                events.append(Event(time, "reached", call.key, tokens, call.cached, call.began))
            told += 1
        call.told = told
        if tokens >= call.target:
            self._stop_running(call)
            if not call.gone:
                del self._calls[call.key]
                events.append(Event(time, "finished", call.key, tokens, call.cached, call.began))
            return
        until = min(watch[told], call.target) if told < len(watch) else call.target
        self._decoders.look_at(call, until)

    # -- places and memory

    def _admit(self, budget: int) -> None:
        """Give places to those that wait, in order."""
        waiting, blocks, size = self._waiting, self._blocks, self._size
        while budget > 0 and waiting and len(self._running) < self._seats:
            call = waiting[0][1]
            if call.gone:
                heappop(waiting)
                continue
            length = call.prompt + call.done
            most = (length - 1) // size
            found, idle = blocks.find(call.names, most)
            own = 0
            if call.own is not None and found == len(call.names):
                own = min(blocks.idle_of(call.own), most - found)
            if -(-length // size) - found - own > blocks.free - idle - own:
                self._blocked = True
                return
            heappop(waiting)
            self._queued -= 1
            blocks.hold(call.names, found)
            if own:
                blocks.reclaim(call.own, own)
            call.own = None
            self._admissions += 1
            call.number = self._admissions
            self._running[call.number] = call
            call.shared = found
            call.computed = (found + own) * size
            if call.began < 0:
                call.began, call.cached = self._stretch.start, call.computed
            chunk = call.chunk(budget)
            budget -= chunk
            self._partial = call
            self._compute(call, chunk)

    def _compute(self, call: BatchedCall, chunk: int) -> None:
        """Put a piece of its prompt into the step."""
        self._blocks.take(call.needs(chunk, self._size))
        start = call.computed
        stop = call.computed = start + chunk
        tokens, prompts, pairs = self._pieces
        self._pieces = (tokens + chunk, prompts + 1, pairs + chunk * (2 * start + chunk + 1) // 2)
        named = min(stop // self._size, len(call.names))
        if call.shared * self._size >= start - start % self._size and named > call.shared:
            new = self._blocks.add(call.names, call.shared, named)
            if new and self._stored is not None:
                self._stored(call.names, call.shared, call.shared + new)
            call.shared += new
        if stop == call.prompt + call.done:
            self._partial = None
            self._ending.append(call)

    def _squeeze(self) -> int:
        """Find memory for this step, by taking it from the last in order; its piece of a prompt.

        Calls are served in the order of their admission, and each takes from all until it has
        what it needs, or has lost its own. What they need is taken, but for the piece.
        """
        blocks = self._blocks
        took: set[BatchedCall] = set()
        chunk = 0
        for number, call in list(self._running.items()):
            if call.number != number:
                continue
            if call is self._partial:
                chunk = call.chunk(self.profile.max_num_batched_tokens - self._decoders.count)
                needed = call.needs(chunk, self._size)
            else:
                needed = int(self._decoders.takes(call))
            while needed > blocks.free:
                victim = max(self._running.values(), key=attrgetter("order"))
                self._preempt(victim, extra=int(victim in took))
                if victim is call:
                    break
            else:
                if call is not self._partial and needed:
                    blocks.take(needed)
                    took.add(call)
        return chunk if self._partial is not None else 0

    def _preempt(self, call: BatchedCall, *, extra: int) -> None:
        """It loses its memory, with *extra* blocks that it took for this step, and waits again."""
        self.preempted += 1
        done = call.done if call is self._partial else self._decoders.said(call)
        call.own = object() if call.shared == len(call.names) else None
        self._stop_running(call, extra=extra)
        call.done = done
        if not call.gone:
            self._queued += 1
            heappush(self._waiting, (call.order, call))

    def _stop_running(self, call: BatchedCall, *, extra: int = 0) -> None:
        """It leaves its place and its memory, at a boundary."""
        kept = call.computed
        if call is self._partial:
            self._partial = None
        else:
            kept = call.prompt + self._decoders.said(call) - 1
            self._decoders.stop(call)
        full, rest = divmod(kept, self._size)
        self._blocks.release(
            call.names,
            call.shared,
            call.own if call.own is not None else object(),
            full=full - call.shared,
            partial=(rest > 0) + extra,
        )
        del self._running[call.number]
        self._given_up -= call.gone
        call.number = 0
        self._blocked = False
