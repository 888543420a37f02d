"""The tasks of an app's workers.

They are asyncio's own, not an anyio group's: there are as many as calls wait, and the scopes of a
group's tasks cost each of them several times what it costs itself. Nobody cancels workers from
outside; they end when they are told to. One task in the app's group stands for all of them, so that
the group ends when they have, and fails with what one of them fails with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, final

import anyio

__all__ = ("Crew",)


@final
class Crew:
    """Starts workers, and waits for them.

    Args:
        loop: Where they run.
        context: What they see of context variables, each in a copy: those of whoever opened the app,
            not of some request.
        failed: Called at once when one has failed, with no effect on the others.
    """

    __slots__ = (
        "_callback",
        "_closing",
        "_context",
        "_ended",
        "_failed",
        "_failure",
        "_loop",
        "_tasks",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: Context, failed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._context = context
        self._failed = failed
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._ended: asyncio.Future[None] | None = None
        self._callback = self._done  # One object for all.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a worker's task."""
        task = self._loop.create_task(work, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._callback, context=self._context)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            if self._failure is None:
                self._failure = failure
            self._failed()
        self._look()

    def _look(self) -> None:
        ended = self._ended
        if not self._tasks and ended is not None and not ended.done():
            ended.set_result(None)  # It looks again whether that is the end.

    def close(self) -> None:
        """No worker is started any more; wait only for those that there are."""
        self._closing = True
        self._look()

    async def stand(self) -> None:
        """Wait until it was closed and all have ended, and raise what the first failed with.

        Cancellation: shielded from scopes. Natively only a loop that goes down cancels it, which
        cancels the workers too: it is raised when they have ended, closed or not.
        """
        cut: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while self._tasks or not self._closing:
                self._ended = self._loop.create_future()
                try:
                    await self._ended
                except asyncio.CancelledError as error:
                    self._closing, cut = True, error
        if self._failure is not None:
            raise self._failure
        if cut is not None:
            raise cut
