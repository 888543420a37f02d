"""One call of a pool, from the moment it asks for an engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import final

from alto.engines._pool.members import Seat
from alto.model import Chunk, GenerateRequest
from alto.sched import EngineBook, Ticket

__all__ = ("Run",)


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
        self.book: EngineBook | None = None
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
