"""The calls of a pool: each waits for its engine, runs there, and may go on elsewhere.

A call is driven by whoever iterates its generator. Only where that reader is away, and somebody
waits for a place on the same engine, a *pump* reads on for it: a task that belongs to the call and
ends with it. Whether it is needed is looked at once when a reader leaves or somebody begins to wait,
never at intervals.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import cast, final

import anyio
import attrs

from alto._core.prefix import salt_of
from alto.engines._members import Members, Seat
from alto.engines._pool_run import Run
from alto.engines._prompts import Prompts, work_of
from alto.errors import (
    Closed,
    DeadlineExceeded,
    EngineDied,
    InvalidRequest,
    Overloaded,
)
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
from alto.sched import Scheduler, Ticket, Work

__all__ = ("Calls",)

_AWAY = 0.02
"""Seconds for which a reader may be away from a generation while others wait for its engine."""


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
        self.open = 0
        """Calls that have begun and have not ended."""
        self.quiet: asyncio.Future[None] | None = None
        """Is told when none is open any more."""

    # -- one call

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation, wherever there is room for it."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        self._admit(request.origin, asked)
        self.open += 1
        run: Run | None = None
        try:
            prefix = request.prefix
            request, tokens = await self._prompts.prepared(request)
            run = await self._submitted(request, tokens, prefix, asked)
            for attempt in range(1, self._attempts + 1):
                seat = await self._granted(run)
                life = seat.life
                try:
                    run.source = source = seat.engine.generate(cast(GenerateRequest, run.request))
                    while run.left or run.buffer:
                        run.reading = True
                        if run.pump is None:
                            chunk = await anext(source)
                            self._account(run, chunk)
                        else:
                            chunk = await run.next_kept()
                        run.reading = False
                        book = run.book
                        if book is not None and book.line.count and not run.checking and run.left:
                            self._check_later(run)
                        yield chunk if chunk.usage is None else self._billed(run, chunk, request)
                except EngineDied as error:
                    self._members.died(seat, life, error)
                    await self._close_source(run)
                    if attempt == self._attempts or not self._may_go_on(run, request, tokens):
                        raise
                    self._again(run)
                except StopAsyncIteration:
                    return  # it ended without saying why; whoever reads it will notice
                else:
                    return
        finally:
            if run is not None:
                await self._leave(run)
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
            if run is not None:
                await self._leave(run)
            self._closed_one()

    def _admit(self, origin: Origin | None, now: float) -> None:
        if self._prompts.closed is not None:
            raise self._prompts.closed
        if origin is not None and origin.deadline is not None and origin.deadline <= now:
            raise DeadlineExceeded(max(0.0, origin.deadline - origin.arrived))
        waiting = self._scheduler.waiting
        if self._max_waiting is not None and waiting >= self._max_waiting:
            raise Overloaded(waiting, self._max_waiting)

    def _closed_one(self) -> None:
        self.open -= 1
        if not self.open and self.quiet is not None and not self.quiet.done():
            self.quiet.set_result(None)

    async def _submitted(
        self,
        request: GenerateRequest,
        tokens: Sequence[int] | None,
        prefix: Prompt | None,
        asked: float,
    ) -> Run:
        work = work_of(
            request.origin, tokens, max_tokens=request.max_tokens, priority=request.priority,
            n=request.n, salt=salt_of(request.lora), prefix=prefix,
            prefix_tokens=await self._prompts.prefix_tokens(prefix, tokens),
        )  # fmt: skip
        return self._new_run(request, work, asked)

    def _new_run(self, request: GenerateRequest | None, work: Work, asked: float) -> Run:
        if self._prompts.closed is not None:
            raise self._prompts.closed
        ticket = self._scheduler.submit(work, now=asyncio.get_running_loop().time())
        run = self._runs[ticket] = Run(request, ticket, asked)
        self.dispatch()
        return run

    async def _granted(self, run: Run) -> Seat:
        """Wait for an engine."""
        while True:
            if run.seat is None:
                self._prompts.check_hopeful()
            if run.seat is None:
                run.granted = asyncio.get_running_loop().create_future()
                try:
                    await run.granted
                finally:
                    run.granted = None
            seat, book = run.seat, run.book
            assert seat is not None
            assert book is not None
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
        if isinstance(request.prompt, str) or (left is not None and left < 1):
            return False
        run.request = attrs.evolve(request, prompt=[*tokens, *run.said], max_tokens=left)
        return True

    def _account(self, run: Run, chunk: Chunk) -> None:
        """The engine has said something."""
        run.seen += 1
        book, loop = run.book, asyncio.get_running_loop()
        now = loop.time()
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
                said = len(run.said) if chunk.usage is None else chunk.usage.output_tokens
                self._end(run, output_tokens=said, completed=True)

    def _billed(self, run: Run, chunk: Chunk, request: GenerateRequest) -> Chunk:
        """The last chunk, with times as the caller sees them."""
        usage = cast(Usage, chunk.usage)
        resumed = run.request is not request
        return attrs.evolve(
            chunk,
            usage=attrs.evolve(
                usage,
                prompt_tokens=run.ticket.prompt_tokens if resumed else usage.prompt_tokens,
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
        await self._close_source(run)
        if run.ticket.state == "waiting":
            run.ended = True
            self._runs.pop(run.ticket, None)
            self._scheduler.withdraw(run.ticket, now=asyncio.get_running_loop().time())
        else:
            self._end(run, output_tokens=len(run.said), completed=False)

    async def _close_source(self, run: Run) -> None:
        source, pump = run.source, run.pump
        run.source = run.pump = None
        if source is None:
            return
        with anyio.CancelScope(shield=True):
            if pump is not None:
                pump.cancel()
                await asyncio.wait([pump])
            await source.aclose()
        run.buffer.clear()

    # -- readers that are away

    def _check_later(self, run: Run) -> None:
        run.checking = True
        loop = asyncio.get_running_loop()
        loop.call_later(_AWAY, self._check, run, run.seen)

    def _check(self, run: Run, seen: int) -> None:
        """Read on in place of a reader that is away while others wait for the engine."""
        run.checking = False
        book = run.book
        if run.ended or run.reading or run.pump is not None or run.source is None:
            return
        if book is None or not book.line.count or book.has_room:
            return
        if run.seen != seen:
            self._check_later(run)
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
            if run.granted is not None and not run.granted.done():
                run.granted.set_result(None)
        if self._scheduler.waiting:
            self._watch_readers()
            self._wake_at(self._scheduler.next_wake(now))

    def _watch_readers(self) -> None:
        for book in self._scheduler.engines:
            if book.line.count and not book.has_room:
                for ticket in book.tickets:
                    run = self._runs.get(ticket)
                    if run is not None and run.begun and not (run.reading or run.checking):
                        self._check_later(run)

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
            for run in list(self._runs.values()):
                if run.granted is not None and not run.granted.done():
                    run.granted.set_exception(self._prompts.death())
        self.dispatch()

    def close(self, why: Closed) -> None:
        """End all that wait with *why*, and take nothing more."""
        self._prompts.closed = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for run in list(self._runs.values()):
            if run.granted is not None and not run.granted.done():
                run.granted.set_exception(Closed(str(why)))
        self._prompts.engines_changed()
