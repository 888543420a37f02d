"""Calls of a pool: each waits for its engine, runs there, and may go on elsewhere.

A call is driven by the task that iterates its generator. An engine goes on with a generation that is
not read, and its place is free when it is done; but a pool sees what an engine does only by reading.
So where calls wait for a full engine, and the reader of a generation on it has been away for a moment, a
*pump* reads on in the reader's place and keeps the chunks: a task that belongs to the call and ends
with it. While no call waits there is neither a pump nor a timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import cast, final

import attrs

from alto._sched.prefix import salt_of
from alto._wait import wait_shielded
from alto.engines._pool.encoder import PromptEncoder, in_order, work_of
from alto.engines._pool.members import Members, PoolSlot
from alto.errors import Closed, DeadlineExceeded, EngineDied, InvalidRequest, Overloaded
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    GenerateRequest,
    Origin,
    Prompt,
    StreamedPrompt,
    Usage,
)
from alto.protocols import Embedder
from alto.sched import CallInfo, EngineLoad, Scheduler, Ticket

__all__ = ("Calls", "ReaderWatch", "PoolCall")


@final
class PoolCall:
    """One call: its engine or its place in the queue, and its output so far.

    Args:
        request: The request for its engine; None: the call is an embedding.
        ticket: Its ticket at the scheduler.
        asked: Time at which its caller began, in seconds of the loop's clock.
    """

    __slots__ = (
        "asked",
        "begun",
        "book",
        "buffer",
        "checking",
        "closed",
        "dispatched",
        "ended",
        "first",
        "granted",
        "left",
        "news",
        "pump",
        "reading",
        "request",
        "said",
        "seen",
        "slot",
        "source",
        "ticket",
        "time",
    )  # fmt: skip

    def __init__(self, request: GenerateRequest | None, ticket: Ticket, asked: float) -> None:
        self.request = request
        self.ticket = ticket
        self.asked = asked
        self.time = asyncio.get_running_loop().time
        self.dispatched = self.first = asked
        self.granted: asyncio.Event | None = None
        self.slot: PoolSlot | None = None
        self.book: EngineLoad | None = None
        self.source: AsyncGenerator[Chunk, None] | None = None
        self.begun = False
        """True once its engine has yielded a chunk."""
        self.ended = False
        """True once its end has been reported to the scheduler."""
        self.reading = False
        self.checking = False
        """True while a timer is set that checks whether its reader is away."""
        self.seen = 0
        """Number of chunks so far."""
        self.said: list[int] = []
        """Tokens of its output, of all samples together."""
        self.left = 1 if request is None else request.n
        """Number of samples that have not ended."""
        self.closed: Exception | None = None
        """Error that its reader gets, though its engine may go on; None: it was not closed."""
        self.pump: asyncio.Task[None] | None = None
        self.buffer: deque[Chunk | BaseException] = deque()
        self.news: asyncio.Event | None = None

    async def next_kept(self) -> Chunk:
        """Return the next chunk that the pump has read, or wait for it."""
        while not self.buffer:
            self.news = asyncio.Event()
            await self.news.wait()
        if self.closed is not None:
            raise self.closed
        kept = self.buffer.popleft()
        if isinstance(kept, BaseException):
            raise kept
        return kept

    def keep(self, what: Chunk | BaseException) -> None:
        """Keep a chunk or an error that the pump has read, and wake the reader."""
        self.buffer.append(what)
        if self.news is not None:
            self.news.set()


_AWAY = 0.02
"""Seconds for which a reader may be away from a generation while others wait for its engine."""


@final
class ReaderWatch:
    """Watch over readers that are away from a generation while other calls wait for its engine.

    Args:
        scheduler: Scheduler of the pool.
        runs: Calls of the pool, by their tickets.
        account: Called with every chunk that a pump reads.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runs: Mapping[Ticket, PoolCall],
        account: Callable[[PoolCall, Chunk], None],
    ) -> None:
        self._scheduler = scheduler
        self._runs = runs
        self._account = account
        self.pressed: set[EngineLoad] = set()
        """Engines that calls wait for while they may be idle unnoticed. Invariant: each reader that is
        away from a generation on one of them is due to be checked, or has a pump."""

    def watch(self) -> None:
        """Find the engines that are full or silent, while calls wait, and check their readers."""
        before = self.pressed
        self.pressed = {
            book
            for book in self._scheduler.engines
            if book.silent or (book.queue.count and not book.has_room)
        }
        for book in self.pressed - before:
            for ticket in book.tickets:
                run = self._runs.get(ticket)
                if run is not None and run.begun and not run.reading:
                    self.check_later(run)

    def relax(self) -> None:
        """Stop watching, since no call waits."""
        self.pressed.clear()

    def check_later(self, run: PoolCall) -> None:
        """Set a timer that checks whether the reader of *run* has come back."""
        if run.left and run.pump is None and not run.checking:
            run.checking = True
            asyncio.get_running_loop().call_later(_AWAY, self._check, run, run.seen)

    def _check(self, run: PoolCall, seen: int) -> None:
        run.checking = False
        if run.ended or run.reading or run.pump is not None or run.source is None:
            return
        if run.book not in self.pressed:
            return
        if run.seen != seen:
            self.check_later(run)
            return
        run.pump = asyncio.get_running_loop().create_task(self._read_on(run, run.source))

    async def _read_on(self, run: PoolCall, source: AsyncGenerator[Chunk, None]) -> None:
        try:
            while run.left:
                chunk = await anext(source)
                self._account(run, chunk)
                run.keep(chunk)
        except BaseException as error:
            run.keep(error)
            if isinstance(error, asyncio.CancelledError):
                raise


@final
class Calls:
    """The calls of a pool.

    Args:
        scheduler: Scheduler of the pool.
        members: Engines of the pool.
        encoder: Makes tokens of prompts.
        attempts: Number of engines on which a call is tried.
        max_waiting: Largest number of calls that wait; None: no limit.
    """

    def __init__(
        self, scheduler: Scheduler, members: Members, encoder: PromptEncoder, *, attempts: int,
        max_waiting: int | None,
    ) -> None:  # fmt: skip
        self._encoder = encoder
        self._scheduler = scheduler
        self._members = members
        self._attempts = attempts
        self._max_waiting = max_waiting
        self._runs: dict[Ticket, PoolCall] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._readers = ReaderWatch(scheduler, self._runs, self._account)
        self._quiet: asyncio.Event | None = None
        self.open = 0
        """Number of calls that have begun and have not ended."""

    # -- one call

    async def generate(  # noqa: C901, PLR0912  # one life from beginning to end, and every way out
        self, request: GenerateRequest, /
    ) -> AsyncGenerator[Chunk, None]:
        """Run one generation, on the engine that the scheduler chooses."""
        asked, readers = asyncio.get_running_loop().time(), self._readers
        self._admit(request.origin, asked)
        self.open += 1
        run: PoolCall | None = None
        streamed = False
        try:
            prefix = request.prefix
            request, tokens = await self._encoder.prepared(request)
            streamed = isinstance(request.prompt, StreamedPrompt)
            run = await self._submitted(request, tokens, prefix, asked)
            for attempt in range(1, self._attempts + 1):
                slot = await self._granted(run)
                life = slot.life
                try:
                    run.source = source = slot.engine.generate(
                        in_order(cast(GenerateRequest, run.request), run.ticket)
                    )
                    run.reading = True
                    async for chunk in source:
                        run.reading = False
                        self._account(run, chunk)
                        if run.closed is not None:
                            raise run.closed
                        if readers.pressed and run.book in readers.pressed:
                            readers.check_later(run)
                        yield chunk if chunk.usage is None else self._billed(run, chunk, request)
                        if run.pump is not None or not run.left:
                            break
                        run.reading = True
                    while run.pump is not None and (run.left or run.buffer):
                        chunk = await run.next_kept()
                        yield chunk if chunk.usage is None else self._billed(run, chunk, request)
                except (EngineDied, Closed) as error:
                    if run.closed is not None or not self._members.died(slot, life, error):
                        raise
                    await self._close_source(run)
                    if attempt == self._attempts or not self._may_go_on(run, request, tokens):
                        raise
                    self._again(run)
                except StopAsyncIteration:
                    return  # it ended without a finish reason, which the reader reports
                else:
                    return
        finally:
            self._encoder.streaming -= streamed
            try:
                if run is not None:
                    await self._leave(run)
            finally:
                self._closed_one()

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Run one prompt on an engine that pools."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        self._admit(request.origin, asked)
        self.open += 1
        run: PoolCall | None = None
        try:
            tokens = await self._encoder.encode(request.prompt)
            self._members.check_fits(len(tokens), output=0)
            work = work_of(request.origin, tokens, max_tokens=0, priority=request.priority)
            run = self._new_run(None, work, asked)
            for attempt in range(1, self._attempts + 1):
                slot = await self._granted(run)
                life, engine = slot.life, slot.engine
                if not isinstance(engine, Embedder):
                    raise InvalidRequest(
                        f"engine {slot.name!r} generates, and cannot embed; use one that pools, "
                        f"such as alto.VLLM(model, runner='pooling')"
                    )
                try:
                    result = await engine.embed(request)
                except EngineDied as error:
                    self._members.died(slot, life, error)
                    if attempt == self._attempts:
                        raise
                    self._again(run)
                else:
                    now = loop.time()
                    self._scheduler.first_token(run.ticket, now=now, cached_tokens=None)
                    self._end(run, output_tokens=0, completed=True)
                    return result
            raise AssertionError("the last attempt returns or raises")
        finally:
            try:
                if run is not None:
                    await self._leave(run)
            finally:
                self._closed_one()

    def _admit(self, origin: Origin | None, now: float) -> None:
        refusal = self._encoder.closed or self._encoder.refusing
        if refusal is not None:
            raise Closed(*refusal.args)
        if origin is not None and origin.deadline is not None and origin.deadline <= now:
            raise DeadlineExceeded(max(0.0, origin.deadline - origin.arrived))
        waiting = self._scheduler.waiting
        if self._max_waiting is not None and waiting and waiting >= self._max_waiting:
            raise Overloaded(waiting, self._max_waiting)

    def _closed_one(self) -> None:
        self.open -= 1
        if not self.open:
            self._end_drains()

    def _end_drains(self) -> None:
        if self._quiet is not None:
            self._quiet.set()
            self._quiet = None

    async def wait_quiet(self) -> None:
        """Wait until no call is open, or the pool is stopped; new calls are refused meanwhile."""
        if self.open:
            self._quiet = self._quiet or asyncio.Event()
            await self._quiet.wait()

    async def _submitted(
        self,
        request: GenerateRequest,
        tokens: Sequence[int] | None,
        prefix: Prompt | None,
        asked: float,
    ) -> PoolCall:
        if (
            tokens is not None and request.prompt is tokens
        ):  # they are an engine's own, so their number is exact
            self._members.check_fits(len(tokens))
        work = work_of(
            request.origin, tokens, max_tokens=request.max_tokens, priority=request.priority,
            n=request.n, salt=salt_of(request.lora), prefix=prefix,
            prefix_tokens=await self._encoder.prefix_tokens(prefix, tokens),
            streamed=isinstance(request.prompt, StreamedPrompt),
        )  # fmt: skip
        return self._new_run(request, work, asked)

    def _new_run(self, request: GenerateRequest | None, work: CallInfo, asked: float) -> PoolCall:
        if self._encoder.closed is not None:
            raise Closed(*self._encoder.closed.args)
        now = asyncio.get_running_loop().time()
        ticket = self._scheduler.submit(work, now=now)
        run = self._runs[ticket] = PoolCall(request, ticket, asked)
        self.dispatch()
        most, waiting = self._max_waiting, self._scheduler.waiting
        if most is not None and waiting > most and ticket.state == "waiting":
            del self._runs[ticket]
            self._scheduler.withdraw(ticket, now=now)
            raise Overloaded(waiting - 1, most)
        return run

    async def _granted(self, run: PoolCall) -> PoolSlot:
        """Wait for an engine, and return its slot."""
        while True:
            if run.slot is None:
                self._encoder.check_hopeful()
            if run.slot is None:
                run.granted = asyncio.Event()
                try:
                    await run.granted.wait()
                finally:
                    run.granted = None
            slot, book = run.slot, run.book
            if slot is None or book is None:
                continue  # woken without an engine: all are dead, or the pool was stopped
            if run.closed is not None:
                raise run.closed
            if book.alive:
                return slot
            self._again(run)  # the engine died between the choice and now

    def _again(self, run: PoolCall) -> None:
        """Queue the call again, since its engine has died."""
        run.slot = run.book = run.source = None
        run.reading = False
        self._scheduler.resubmit(run.ticket, now=asyncio.get_running_loop().time())
        self.dispatch()

    def _may_go_on(
        self, run: PoolCall, request: GenerateRequest, tokens: Sequence[int] | None
    ) -> bool:
        """Return whether a call whose engine died can go on elsewhere, and prepare its request.

        A call that has given nothing starts anew. One that has, and may resume, continues behind its
        output so far.
        """
        if isinstance(request.prompt, StreamedPrompt) or run.ended:
            return False
        if not run.begun:
            return True
        if not (request.resume and run.said and tokens is not None):
            return False
        left = None if request.max_tokens is None else request.max_tokens - len(run.said)
        fits = self._members.fits_all(len(tokens) + len(run.said))
        if isinstance(request.prompt, str) or not fits or (left is not None and left < 1):
            return False
        run.request = attrs.evolve(request, prompt=[*tokens, *run.said], max_tokens=left)
        return True

    def _account(self, run: PoolCall, chunk: Chunk) -> None:
        """Account for a chunk of the engine. Runs once for every chunk."""
        run.seen += 1
        book, now = run.book, run.time()
        if not run.begun or run.ticket.state == "prefilling":
            if not run.begun:
                run.first = now
            run.begun = True
            cached = None if chunk.usage is None else chunk.usage.cached_tokens
            self._scheduler.first_token(run.ticket, now=now, cached_tokens=cached)
            self.dispatch()
        elif book is not None:
            book.heard = now
            if book.silent:
                self._scheduler.heard(book, now=now)
                self.dispatch()
        run.said += chunk.token_ids
        if chunk.finish_reason is not None:
            run.left -= 1
            if not run.left:
                told = 0 if chunk.usage is None else chunk.usage.output_tokens
                self._end(run, output_tokens=max(told, len(run.said)), completed=True)

    def _billed(self, run: PoolCall, chunk: Chunk, request: GenerateRequest) -> Chunk:
        """Return the last chunk with the usage of the whole call: all attempts, and the wait in the pool."""
        usage = cast(Usage, chunk.usage)
        resumed = run.request is not request
        prompt = run.ticket.prompt_tokens if resumed else usage.prompt_tokens
        return attrs.evolve(
            chunk,
            usage=attrs.evolve(
                usage,
                prompt_tokens=prompt,
                cached_tokens=min(usage.cached_tokens, prompt),
                output_tokens=len(run.said) if resumed else usage.output_tokens,
                queue_time=run.dispatched - run.asked + usage.queue_time,
                first_token_time=run.first - run.asked,
            ),
        )

    def _end(self, run: PoolCall, *, output_tokens: int, completed: bool) -> None:
        if run.ended:
            return
        run.ended = True
        now = asyncio.get_running_loop().time()
        self._scheduler.ended(run.ticket, now=now, output_tokens=output_tokens, completed=completed)
        self._runs.pop(run.ticket, None)
        self.dispatch()

    async def _leave(self, run: PoolCall) -> None:
        """End the call, at the engine and at the scheduler. Shielded."""
        try:
            await self._close_source(run)
        finally:
            if run.ticket.state == "waiting":
                run.ended = True
                self._runs.pop(run.ticket, None)
                self._scheduler.withdraw(run.ticket, now=asyncio.get_running_loop().time())
                self.dispatch()
            else:
                self._end(run, output_tokens=len(run.said), completed=False)

    async def _close_source(self, run: PoolCall) -> None:
        source, pump = run.source, run.pump
        run.source = run.pump = None
        if source is None:
            return
        try:
            if pump is not None:
                pump.cancel()
                await wait_shielded(partial(_ended, pump))
        finally:
            run.buffer.clear()
            await wait_shielded(source.aclose)

    # -- all calls

    def dispatch(self) -> None:
        """Start the calls that can be started, and arrange the next look at those that cannot."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for ticket in self._scheduler.dispatch(now=now):
            run = self._runs[ticket]
            book = ticket.engine
            assert book is not None
            run.book, run.slot = book, self._members.slot_of(book)
            run.dispatched = now if not run.begun else run.dispatched
            if run.granted is not None:
                run.granted.set()
        if self._scheduler.waiting:
            self._readers.watch()
            self._wake_at(self._scheduler.next_wake(now))
        elif self._readers.pressed:
            self._readers.relax()

    def _wake_at(self, when: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self._timer = asyncio.get_running_loop().call_at(when + 1e-3, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.dispatch()

    def engines_changed(self) -> None:
        """Dispatch again, since the set of running engines has changed."""
        self._encoder.engines_changed()
        if not self._members.hopeful:
            self._wake_all()
        self.dispatch()

    def close(self, why: Closed) -> None:
        """End all calls with *why*, and refuse new ones.

        A reader that waits for an engine which is not stopped with the pool gets the error with its
        next chunk.
        """
        self._encoder.closed = why
        for run in self._runs.values():
            run.closed = Closed(*why.args)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake_all()
        self._end_drains()
        self._encoder.engines_changed()

    def _wake_all(self) -> None:
        """Wake all calls that wait for an engine; they find that there is none to wait for."""
        for run in self._runs.values():
            if run.granted is not None:
                run.granted.set()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
