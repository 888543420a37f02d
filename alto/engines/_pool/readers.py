"""Readers that are away while others wait for the engine.

An engine goes on with a generation that nobody reads, and its place is free when it is done. But a
pool sees what an engine does by reading. So where somebody waits for an engine in vain, and a reader
has not come back to a generation on it for a moment, a *pump* reads on in its place and keeps what it
gets: a task that belongs to the call and ends with it. While nobody waits there is neither a pump nor
a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import final

from alto.engines._pool.run import Run
from alto.model import Chunk
from alto.sched import EngineBook, Scheduler, Ticket

__all__ = ("Readers",)

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
        self.pressed: set[EngineBook] = set()
        """Engines for which somebody may wait in vain. Invariant: a reader that is away from a
        generation on one of them is going to be looked at, or has a pump."""

    def watch(self) -> None:
        """Calls wait: find the engines that are full; or seem silent, perhaps as nobody reads."""
        before = self.pressed
        self.pressed = {
            book
            for book in self._scheduler.engines
            if book.silent or (book.line.count and not book.has_room)
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
