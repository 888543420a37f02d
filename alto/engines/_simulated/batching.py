"""Simulation of continuous batching: the steps of an engine over the calls it has, in given time.

Theory of operation. Time advances from step to step. At the boundary between two steps, calls that
have arrived are admitted in order, while there is a free slot, a token left in the step's budget, and
memory for the whole prompt. A step computes one token for each call that *decodes*, and chunks of the
prompts of the other calls. The step that completes a prompt also yields its first token. If the
decoding calls need more blocks than are free, the last call in order is preempted: it loses its
memory and waits again. Its prompt and the tokens it had generated are then computed again, except
for blocks that are still in memory.

Most steps only decode, and they differ only in the growing context. The simulation therefore
advances over many such steps at once, a *stretch*, which ends at the step in which a call finishes,
reaches a watched count, or lacks memory. Nothing is updated per call: there is one step counter, and
a decoding call keeps the difference between its token count and that counter. A call that arrives
during a stretch and could be admitted ends the stretch at the next boundary; so does an aborted
call. The tests check that a stretch gives the same result as its single steps.

* A stretch is chosen when :meth:`Batching.advance` reaches its start, not earlier: calls added before
  that are taken into account, even if they arrive at the same time.
* Between two steps at most one call has a partly computed prompt, the one admitted last.
* Memory for the first step of a stretch is taken at its start, memory for the others at its end.
  Memory is managed as in vLLM's scheduler, as of 0.32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import heappop, heappush
from math import inf, sqrt
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias, final

from alto.engines._simulated.blocks import Blocks
from alto.engines.profiles import EngineProfile

__all__ = (
    "BatchedCall",
    "Batching",
    "Decoders",
    "Event",
    "EventKind",
    "Stretch",
    "blocks_of",
    "check_call",
    "steps_within",
)

EventKind: TypeAlias = Literal["first", "reached", "finished"]


class Event(NamedTuple):
    """Event of a call: its first token, a watched count, or its end."""

    time: float
    """Time of the event, in seconds."""
    kind: EventKind
    """``first``: its first token; ``reached``: a watched count; ``finished``: its last token."""
    key: Hashable
    """Key of the call."""
    output_tokens: int
    """Tokens generated so far."""
    cached_tokens: int
    """Prompt tokens that were in memory when the call was first admitted."""
    began: float
    """Time of its first admission, in seconds."""


@final
class BatchedCall:
    """State of one call.

    Invariant: while it decodes, it has generated ``steps done + ahead`` tokens.
    """

    __slots__ = (
        "ahead",
        "began",
        "cached",
        "computed",
        "done",
        "gone",
        "key",
        "names",
        "number",
        "order",
        "own",
        "phase",
        "prompt",
        "shared",
        "target",
        "told",
        "visible",
        "watch",
    )

    def __init__(  # a record
        self,
        key: Hashable,
        order: tuple[int, int],
        prompt: int,
        names: Sequence[int],
        target: int,
        watch: Sequence[int],
    ) -> None:
        self.key = key
        self.order = order  # the lowest is admitted first and preempted last
        self.prompt = prompt
        self.names = names
        self.target = target
        self.watch = watch
        self.told = 0  # watched counts it has passed
        self.gone = False  # aborted: it gives no more events
        self.visible = 0.0  # time at which the scheduler learns of it, or of its abort
        self.number = 0  # number of its admission; 0: it is not running
        self.began = -1.0
        self.cached = 0
        self.computed = 0  # tokens in memory, while its prompt is computed
        self.shared = 0  # leading named blocks, which it may share with other calls
        self.own: object = None  # identifies the unnamed blocks it lost at its last preemption
        self.done = 0  # tokens generated up to its last preemption
        self.ahead = 0
        self.phase = -1  # steps modulo block size in which it takes a block; -1: it does not decode

    def chunk(self, budget: int, /) -> int:
        """Return the number of prompt tokens to compute next, at most *budget*."""
        return max(0, min(self.prompt + self.done - self.computed, budget))

    def needs(self, chunk: int, block_size: int, /) -> int:
        """Return the number of blocks that the next *chunk* tokens of its prompt take."""
        return -(-(self.computed + chunk) // block_size) + (-self.computed // block_size)


def check_call(
    profile: EngineProfile, prompt_tokens: int, blocks: int, output_tokens: int, /
) -> None:
    """Check that a call could ever run.

    Raises:
        ValueError: It could not; the message gives the reason.
    """
    if prompt_tokens < 1 or output_tokens < 1:
        msg = (
            "prompt_tokens and output_tokens must be at least 1, "
            f"not {prompt_tokens} and {output_tokens}"
        )
        raise ValueError(msg)
    if prompt_tokens + output_tokens > profile.max_model_len:
        msg = (
            f"{prompt_tokens} tokens of prompt and {output_tokens} of output are more than "
            f"max_model_len ({profile.max_model_len})"
        )
        raise ValueError(msg)
    if blocks * profile.block_size > prompt_tokens:
        msg = f"{blocks} full blocks of {profile.block_size} are more than {prompt_tokens} tokens"
        raise ValueError(msg)


@final
class Stretch:
    """Consecutive steps, each longer than the one before by the same time."""

    __slots__ = ("first", "growth", "start", "steps")

    def __init__(self) -> None:
        self.start = 0.0  # boundary at which it begins; without a stretch, the last boundary
        self.steps = 0  # 0: there is no stretch
        self.first = 0.0  # duration of the first step, in seconds
        self.growth = 0.0  # seconds by which each step is longer than the one before

    def boundary(self, steps: int, /) -> float:
        """Return the time at which *steps* of its steps are done."""
        return self.start + steps * (self.first + self.growth * (steps - 1) / 2)

    @property
    def end(self) -> float:
        """Time at which its last step is done."""
        return self.boundary(self.steps)

    def cut(self, time: float, told: float = -inf, /) -> None:
        """Shorten it to the first boundary that is at or after *time* and after *told*."""
        # The end of step n is quadratic in n: solve for a guess, then correct its rounding.
        steps = self.steps
        if steps <= 1 or self.boundary(steps - 1) < time:
            return
        seconds, half = max(0.0, time - self.start), self.first - self.growth / 2
        guess = 2 * seconds / (half + sqrt(half * half + 2 * self.growth * seconds))
        steps = max(1, min(steps, int(guess)))
        while steps < self.steps and not self._serves(steps, time, told):
            steps += 1
        while steps > 1 and self._serves(steps - 1, time, told):
            steps -= 1
        self.steps = steps

    def _serves(self, steps: int, time: float, told: float) -> bool:
        boundary = self.boundary(steps)
        return boundary >= time and boundary > told


def blocks_of(phases: Sequence[int], step: int, steps: int, decoding: int, /) -> int:
    """Return the number of blocks that are taken in *steps* steps from number *step* on.

    Args:
        phases: For each step number modulo the block size, the sequences that take a block.
        step: Number of the first step.
        steps: Number of steps.
        decoding: Sum of *phases*.
    """
    size = len(phases)
    cycles, rest = divmod(steps, size)
    start = step % size
    more = sum(phases[start : start + rest]) + sum(phases[: max(0, start + rest - size)])
    return decoding * cycles + more


def steps_within(phases: Sequence[int], step: int, free: int, most: int, /) -> int:
    """Return for how many steps from number *step* on *free* blocks suffice, at most *most*."""
    size, decoding = len(phases), sum(phases)
    cycles = free // decoding
    fit = cycles * size
    free -= cycles * decoding
    while fit < most:
        free -= phases[(step + fit) % size]
        if free < 0:
            break
        fit += 1
    return min(most, fit)


@final
class Decoders:
    """The decoding calls: each generates a token per step, and takes a block when its last is full.

    Args:
        block_size: Tokens per block.
    """

    __slots__ = ("_due", "_phases", "context", "count", "step")

    def __init__(self, block_size: int, /) -> None:
        self.count = 0
        self.context = 0  # tokens that they attend to in the next step
        self.step = 0  # number of the next step
        self._phases = [0] * block_size  # calls that take a block, by step number modulo size
        self._due: list[
            tuple[int, int, BatchedCall]
        ] = []  # a heap; may contain calls that no longer decode

    def said(self, call: BatchedCall, /) -> int:
        """Return the number of tokens that *call*, which decodes, has generated."""
        return self.step - 1 + call.ahead

    def start(self, call: BatchedCall, /) -> None:
        """Add *call*, whose prompt is computed and whose next token has been generated."""
        call.ahead = call.done + 2 - self.step
        call.phase = (2 - call.prompt - call.ahead) % len(self._phases)
        self._phases[call.phase] += 1
        self.count += 1
        self.context += call.prompt + call.done + 1

    def stop(self, call: BatchedCall, /) -> None:
        """Remove *call*."""
        self.count -= 1
        self.context -= call.prompt + self.said(call)
        self._phases[call.phase] -= 1
        call.phase = -1

    def look_at(self, call: BatchedCall, tokens: int, /) -> None:
        """Make :meth:`due` yield *call* once it has generated *tokens* tokens."""
        heappush(self._due, (tokens - call.ahead, call.number, call))

    def due(self) -> Iterator[BatchedCall]:
        """Yield the calls that have reached their count of :meth:`look_at`, by admission."""
        due, last = self._due, self.step - 1
        while due and due[0][0] <= last:
            _, number, call = heappop(due)
            if call.number == number:
                yield call

    def needs(self) -> int:
        """Return the number of blocks that they take in the next step."""
        return self._phases[self.step % len(self._phases)]

    def takes(self, call: BatchedCall, /) -> bool:
        """Return whether *call* takes a block in the next step."""
        return call.phase == self.step % len(self._phases)

    def alike(self, free: int, /) -> int:
        """Return the number of steps until a call is due or *free* blocks run out.

        The blocks for the next step are taken already and not counted.
        """
        due = self._due
        while due[0][2].number != due[0][1]:
            heappop(due)
        steps = due[0][0] - self.step + 1
        if self.count * ((steps - 1) // len(self._phases) + 1) <= free:
            return steps
        return 1 + steps_within(self._phases, self.step + 1, free, steps - 1)

    def go(self, steps: int, /) -> int:
        """Advance by *steps* steps; return the blocks that all but the first have taken."""
        taken = 0
        if steps > 1:
            taken = blocks_of(self._phases, self.step + 1, steps - 1, self.count)
        self.context += self.count * steps
        self.step += steps
        return taken


@final
class Batching:
    """The scheduler of one simulated engine.

    Args:
        profile: Constants and limits of the engine.
        stored: Called when prompt blocks enter memory, with all names of the prompt, the index of
            the first new one, and the index after the last new one.
        removed: Called with the names of evicted blocks.

    Times are in seconds and never decrease; a time before the latest one seen counts as that one.
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
        self.preempted = 0  # number of preemptions
        self._size = profile.block_size
        self._seats = profile.max_num_seqs
        self._blocks = Blocks(profile.kv_blocks, removed=removed)
        self._stored = stored
        self._calls: dict[Hashable, BatchedCall] = {}
        self._orders = 0
        self._coming: deque[BatchedCall] = (
            deque()
        )  # not yet visible, or not yet moved to `_waiting`
        self._leaving: deque[BatchedCall] = deque()  # aborted while running
        self._given_up = 0  # aborted calls that still run
        self._waiting: list[tuple[tuple[int, int], BatchedCall]] = []  # a heap; may hold aborted
        self._queued = 0  # calls in `_coming` and `_waiting` that are not aborted
        self._blocked = False  # the first waiting call lacks memory, and none was freed since
        self._running: dict[int, BatchedCall] = {}  # by, and so in, order of admission
        self._admissions = 0
        self._partial: BatchedCall | None = None  # the running call with a prompt left to compute
        self._ending: list[BatchedCall] = []  # calls whose prompts are complete after this step
        self._decoders = Decoders(self._size)
        self._told_until = float("-inf")  # time of the latest `advance`
        self._stretch = Stretch()
        self._pieces = (0, 0, 0)  # prompt tokens, prompts, pairs in the step that is being made

    @property
    def running(self) -> int:
        """Number of calls that have a slot, aborted ones not counted."""
        return len(self._running) - self._given_up

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a slot."""
        return self._queued

    @property
    def kv_used(self) -> int:
        """Size in tokens of the blocks that calls hold, as of the start of the stretch."""
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
        """Add a call.

        Args:
            key: Identifies the call; unique among those that run or wait.
            prompt_tokens: Length of its prompt, at least 1.
            blocks: Names of the prompt's full blocks; empty if nothing is shared.
            now: Time of arrival, in seconds.
            output_tokens: Tokens it generates, at least 1.
            priority: The lowest goes first, if the profile's policy is ``priority``.
            watch: Ascending counts of output tokens at which to give a ``reached`` event.

        Raises:
            ValueError: The call could never run, or the key is in use.
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
        """Abort a call. It gives no more events; an unknown key is ignored.

        If it is running, its slot becomes free at the next boundary. Call :meth:`advance` first if
        events are due.
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
        if self._blocked:  # calls behind it may fit
            self._blocked = False
            self._stretch.cut(now, self._told_until)

    def next_event(self) -> float | None:
        """Return the time to call :meth:`advance` next: no event comes earlier. None: no work."""
        if self._stretch.steps:
            return self._stretch.end
        if self._running or self._waiting:
            return self._stretch.start
        while self._coming and self._coming[0].gone:
            self._coming.popleft()
        return max(self._stretch.start, self._coming[0].visible) if self._coming else None

    def advance(self, now: float, /) -> list[Event]:
        """Advance to *now*; return the new events up to and including it, in order."""
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
        """Return whether *call* may get a slot before another call ends."""
        if len(self._running) >= self._seats:
            return False
        return not (self._blocked and self._waiting and self._waiting[0][0] < call.order)

    def _begin(self, now: float) -> bool:
        """Choose the next stretch; return whether there is one that begins by *now*."""
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
        """Compose the step that begins now, and extend the stretch over the steps like it."""
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
            return  # admission was skipped only because memory was short in this step; retry
        stretch.steps = self._decoders.alike(self._blocks.free)
        if len(self._running) < self._seats:
            coming = next((c for c in self._coming if not c.gone and self._could_admit(c)), None)
            if coming is not None:
                stretch.cut(coming.visible)

    def _end(self, end: float, events: list[Event]) -> None:
        """End the stretch at time *end*: generate its tokens and append its events."""
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
        """Append the events of *call* at *tokens* tokens; schedule its next look or stop it."""
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

    # -- slots and memory

    def _admit(self, budget: int) -> None:
        """Admit waiting calls in order, while slots, memory and *budget* tokens last."""
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
        """Add a chunk of the prompt of *call* to the step."""
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
        """Free memory for this step by preempting the last calls in order.

        Calls are served in the order of their admission. Each preempts others until it has the
        blocks it needs, or is preempted itself. Blocks for decoding are taken here.

        Returns:
            Tokens of the prompt chunk in this step, whose blocks are not taken yet.
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
        """Free the memory of *call*, with *extra* blocks taken for this step, and requeue it."""
        self.preempted += 1
        done = call.done if call is self._partial else self._decoders.said(call)
        call.own = object() if call.shared == len(call.names) else None
        self._stop_running(call, extra=extra)
        call.done = done
        if not call.gone:
            self._queued += 1
            heappush(self._waiting, (call.order, call))

    def _stop_running(self, call: BatchedCall, *, extra: int = 0) -> None:
        """Free the slot and the memory of *call*, at a boundary."""
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
