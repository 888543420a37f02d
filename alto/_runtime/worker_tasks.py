"""The tasks of an app's workers.

They are asyncio's own, not an anyio group's: there are as many as calls wait, and the scopes of a
group's tasks cost each of them several times what it costs itself. Workers are not cancelled from
outside; they end when they are asked to. One task in the app's group stands for all of them, so that
the group ends when they have. The app raises what they failed with when it closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, final

import anyio

__all__ = ("WorkerTasks",)


@final
class WorkerTasks:
    """The tasks of an app's workers: starts them, and waits until they have ended.

    Args:
        loop: Where they run.
        context: Each runs in a copy of it; calls have contexts of their own.
        failed: Called at once when one has failed, with no effect on the others.
    """

    __slots__ = (
        "_callback",
        "_changed",
        "_closing",
        "_context",
        "_failed",
        "_failures",
        "_loop",
        "_tasks",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: Context, failed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._context = context
        self._failed = failed
        self._failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._changed = asyncio.Event()
        """Set when a task has ended, or none is started any more."""
        self._callback = self._done  # One object for all.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a worker's task."""
        # Past the program's task factory: an eager one would run the stage at once, within the call
        # that has just handed over an item.
        task = asyncio.Task(work, loop=self._loop, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._callback, context=self._context)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        try:
            if not task.cancelled() and (failure := task.exception()) is not None:
                self._failures.append(failure)
                self._failed()
        finally:
            if not self._tasks:
                self._changed.set()

    def close(self) -> None:
        """Wait only for the workers that there are: none is started any more."""
        self._closing = True
        self._changed.set()

    def check(self) -> None:
        """Raise what workers have failed with.

        Not a matter of `stand`, for a task that ends with a KeyboardInterrupt stops its loop, and
        the worker's has done so already.

        Raises:
            BaseExceptionGroup: One or more have failed.
        """
        # The loop itself has raised what ends the program.
        failures = [one for one in self._failures
                    if not isinstance(one, KeyboardInterrupt | SystemExit)]  # fmt: skip
        if failures:
            msg = "an app's workers failed"
            raise BaseExceptionGroup(msg, failures)

    async def stand(self) -> None:
        """Wait until it was closed and all have ended.

        Cancellation: shielded from scopes. Natively only a loop that goes down cancels it, which
        cancels the workers too: it is raised when they have ended, closed or not.
        """
        cut: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while self._tasks or not self._closing:
                self._changed.clear()
                try:
                    await self._changed.wait()
                except asyncio.CancelledError as error:
                    self._closing, cut = True, error
        if cut is not None:
            raise cut
