"""Calls of a pool: each waits for its engine, runs there, and may go on elsewhere.

An engine goes on with a generation that nobody reads, and its place is free when it is done. But a
pool sees what an engine does by reading. So where somebody waits for an engine in vain, and a reader
has not come back to a generation on it for a moment, a *pump* reads on in its place and keeps what it
gets: a task that belongs to the call and ends with it. While nobody waits there is neither a pump nor
a timer.

A call is driven by whoever iterates its generator; where that reader is away and others wait, the
pool reads on for it (`alto/engines/_pool/calls.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import cast, final

import attrs

from alto._sched.prefix import salt_of
from alto._wait import uncut
from alto.engines._pool.members import Members, Seat
from alto.engines._pool.prompts import Prompts, in_order, work_of
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

__all__ = ("Calls", "Readers", "Run")


@final
class Run:
    """A call: where it waits or runs, and what it has got so far.

    Args:
        request: As its engine gets it; None: it is to be embedded.
        ticket: Its place in the scheduler's books.
        asked: When its caller began, in seconds of the loop's clock.
    """

    __slots__ = ("asked", "begun", "book", "buffer", "checking", "closed", "dispatched", "ended", "first",
                 "granted", "left", "news", "pump", "reading", "request", "said", "seat", "seen",
                 "source", "ticket", "time")  # fmt: skip

    def __init__(self, request: GenerateRequest | None, ticket: Ticket, asked: float) -> None:
        self.request = request
        self.ticket = ticket
        self.asked = asked
        self.time = asyncio.get_running_loop().time
        self.dispatched = self.first = asked
        self.granted: asyncio.Event | None = None
        self.seat: Seat | None = None
        self.book: EngineLoad | None = None
        self.source: AsyncGenerator[Chunk, None] | None = None
        self.begun = False
        """Its engine has said something."""
        self.ended = False
        """The scheduler knows that its engine has no more of it."""
        self.reading = False
        self.checking = False
        """Somebody will look whether its reader is away."""
        self.seen = 0
        """Chunks so far."""
        self.said: list[int] = []
        """Its output in tokens; all samples together."""
        self.left = 1 if request is None else request.n
        """Samples that have not ended."""
        self.closed: Exception | None = None
        """Why it ends, though its engine may go on."""
        self.pump: asyncio.Task[None] | None = None
        self.buffer: deque[Chunk | BaseException] = deque()
        self.news: asyncio.Event | None = None

    async def next_kept(self) -> Chunk:
        """The next chunk that the pump has read or reads."""
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
        """The pump has read something."""
        self.buffer.append(what)
        if self.news is not None:
            self.news.set()


_AWAY = 0.02
"""Seconds for which a reader may be away from a generation while others wait for its engine."""


@final
class Readers:
    """Sees to it that no reader holds up others.

    Args:
        scheduler: The pool's books.
        runs: Its calls.
        account: Is told of every chunk that a pump reads.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runs: Mapping[Ticket, Run],
        account: Callable[[Run, Chunk], None],
    ) -> None:
        self._scheduler = scheduler
        self._runs = runs
        self._account = account
        self.pressed: set[EngineLoad] = set()
        """Engines for which somebody may wait in vain. Invariant: a reader that is away from a
        generation on one of them is going to be looked at, or has a pump."""

    def watch(self) -> None:
        """Calls wait: find the engines that are full; or seem silent, perhaps as nobody reads."""
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
        """No call waits."""
        self.pressed.clear()

    def check_later(self, run: Run) -> None:
        """Its reader leaves, or has left; look whether it comes back."""
        if run.left and run.pump is None and not run.checking:
            run.checking = True
            asyncio.get_running_loop().call_later(_AWAY, self._check, run, run.seen)

    def _check(self, run: Run, seen: int) -> None:
        run.checking = False
        if run.ended or run.reading or run.pump is not None or run.source is None:
            return
        if run.book not in self.pressed:
            return
        if run.seen != seen:
            self.check_later(run)
            return
        run.pump = asyncio.get_running_loop().create_task(self._read_on(run, run.source))

    async def _read_on(self, run: Run, source: AsyncGenerator[Chunk, None]) -> None:
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
    """Everybody who asks a pool for something.

    Args:
        scheduler: The pool's books.
        members: Its engines.
        prompts: Makes tokens of prompts.
        attempts: Engines on which a call is tried.
        max_waiting: Most calls that wait; None: no limit.
    """

    def __init__(
        self, scheduler: Scheduler, members: Members, prompts: Prompts, *, attempts: int,
        max_waiting: int | None,
    ) -> None:  # fmt: skip
        self._prompts = prompts
        self._scheduler = scheduler
        self._members = members
        self._attempts = attempts
        self._max_waiting = max_waiting
        self._runs: dict[Ticket, Run] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._readers = Readers(scheduler, self._runs, self._account)
        self._quiet: asyncio.Event | None = None
        self.open = 0
        """Calls that have begun and have not ended."""

    # -- one call

    async def generate(  # noqa: C901, PLR0912  # one life from beginning to end, and every way out
        self, request: GenerateRequest, /
    ) -> AsyncGenerator[Chunk, None]:
        """Run one generation, wherever there is room for it."""
        asked, readers = asyncio.get_running_loop().time(), self._readers
        self._admit(request.origin, asked)
        self.open += 1
        run: Run | None = None
        streamed = False
        try:
            prefix = request.prefix
            request, tokens = await self._prompts.prepared(request)
            streamed = isinstance(request.prompt, StreamedPrompt)
            run = await self._submitted(request, tokens, prefix, asked)
            for attempt in range(1, self._attempts + 1):
                seat = await self._granted(run)
                life = seat.life
                try:
                    run.source = source = seat.engine.generate(
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
                    if run.closed is not None or not self._members.died(seat, life, error):
                        raise
                    await self._close_source(run)
                    if attempt == self._attempts or not self._may_go_on(run, request, tokens):
                        raise
                    self._again(run)
                except StopAsyncIteration:
                    return  # it ended without saying why; whoever reads it will notice
                else:
                    return
        finally:
            self._prompts.streaming -= streamed
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
        run: Run | None = None
        try:
            tokens = await self._prompts.encode(request.prompt)
            self._members.check_fits(len(tokens), output=0)
            work = work_of(request.origin, tokens, max_tokens=0, priority=request.priority)
            run = self._new_run(None, work, asked)
            for attempt in range(1, self._attempts + 1):
                seat = await self._granted(run)
                life, engine = seat.life, seat.engine
                if not isinstance(engine, Embedder):
                    raise InvalidRequest(
                        f"engine {seat.name!r} generates, and cannot embed; use one that pools, "
                        f"such as alto.VLLM(model, runner='pooling')"
                    )
                try:
                    result = await engine.embed(request)
                except EngineDied as error:
                    self._members.died(seat, life, error)
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
        refusal = self._prompts.closed or self._prompts.refusing
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
        """Wait until no call is open, or the pool is stopped, while nothing new is taken."""
        if self.open:
            self._quiet = self._quiet or asyncio.Event()
            await self._quiet.wait()

    async def _submitted(
        self,
        request: GenerateRequest,
        tokens: Sequence[int] | None,
        prefix: Prompt | None,
        asked: float,
    ) -> Run:
        if tokens is not None and request.prompt is tokens:  # as an engine has made them
            self._members.check_fits(len(tokens))
        work = work_of(
            request.origin, tokens, max_tokens=request.max_tokens, priority=request.priority,
            n=request.n, salt=salt_of(request.lora), prefix=prefix,
            prefix_tokens=await self._prompts.prefix_tokens(prefix, tokens),
            streamed=isinstance(request.prompt, StreamedPrompt),
        )  # fmt: skip
        return self._new_run(request, work, asked)

    def _new_run(self, request: GenerateRequest | None, work: CallInfo, asked: float) -> Run:
        if self._prompts.closed is not None:
            raise Closed(*self._prompts.closed.args)
        now = asyncio.get_running_loop().time()
        ticket = self._scheduler.submit(work, now=now)
        run = self._runs[ticket] = Run(request, ticket, asked)
        self.dispatch()
        most, waiting = self._max_waiting, self._scheduler.waiting
        if most is not None and waiting > most and ticket.state == "waiting":
            del self._runs[ticket]
            self._scheduler.withdraw(ticket, now=now)
            raise Overloaded(waiting - 1, most)
        return run

    async def _granted(self, run: Run) -> Seat:
        """Wait for an engine."""
        while True:
            if run.seat is None:
                self._prompts.check_hopeful()
            if run.seat is None:
                run.granted = asyncio.Event()
                try:
                    await run.granted.wait()
                finally:
                    run.granted = None
            seat, book = run.seat, run.book
            if seat is None or book is None:
                continue  # there is no engine any more, or the pool was stopped
            if run.closed is not None:
                raise run.closed
            if book.alive:
                return seat
            self._again(run)  # it died between being chosen and being asked

    def _again(self, run: Run) -> None:
        """Its engine is gone: let it wait for another."""
        run.seat = run.book = run.source = None
        run.reading = False
        self._scheduler.resubmit(run.ticket, now=asyncio.get_running_loop().time())
        self.dispatch()

    def _may_go_on(self, run: Run, request: GenerateRequest, tokens: Sequence[int] | None) -> bool:
        """Whether a call whose engine died can go on elsewhere; its request is made for that."""
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

    def _account(self, run: Run, chunk: Chunk) -> None:
        """The engine has said something. Every token comes through here."""
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

    def _billed(self, run: Run, chunk: Chunk, request: GenerateRequest) -> Chunk:
        """The last chunk, with times as the caller sees them."""
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

    def _end(self, run: Run, *, output_tokens: int, completed: bool) -> None:
        if run.ended:
            return
        run.ended = True
        now = asyncio.get_running_loop().time()
        self._scheduler.ended(run.ticket, now=now, output_tokens=output_tokens, completed=completed)
        self._runs.pop(run.ticket, None)
        self.dispatch()

    async def _leave(self, run: Run) -> None:
        """The call is over, in whatever way. Shielded."""
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

    async def _close_source(self, run: Run) -> None:
        source, pump = run.source, run.pump
        run.source = run.pump = None
        if source is None:
            return
        try:
            if pump is not None:
                pump.cancel()
                await uncut(partial(_ended, pump))
        finally:
            run.buffer.clear()
            await uncut(source.aclose)

    # -- everybody

    def dispatch(self) -> None:
        """Start what can be started."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for ticket in self._scheduler.dispatch(now=now):
            run = self._runs[ticket]
            book = ticket.engine
            assert book is not None
            run.book, run.seat = book, self._members.seat_of(book)
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
        """Engines came or went."""
        self._prompts.engines_changed()
        if not self._members.hopeful:
            self._wake_all()
        self.dispatch()

    def close(self, why: Closed) -> None:
        """End all calls with *why*, and take nothing more.

        A reader that waits for an engine which is not stopped with the pool learns of it with the
        next chunk.
        """
        self._prompts.closed = why
        for run in self._runs.values():
            run.closed = Closed(*why.args)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake_all()
        self._end_drains()
        self._prompts.engines_changed()

    def _wake_all(self) -> None:
        """Let those that wait see that there is nothing to wait for."""
        for run in self._runs.values():
            if run.granted is not None:
                run.granted.set()


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
