"""Hears at once when a process has ended, without looking again and again where the system can."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, final

__all__ = ("ProcessWatcher", "is_alive")

_INTERVAL = 0.25
"""Seconds between two looks, where there is no other way."""


@final
class ProcessWatcher:
    """Calls *told* once, in the loop that made this, when the first of *processes* has ended.

    On Linux the end of a process makes a ``pidfd`` readable, which the event loop waits for anyway.
    Elsewhere the processes are looked at four times a second.

    Args:
        processes: As psutil sees them.
        told: Is called in the event loop.
    """

    def __init__(self, processes: Sequence[Any], told: Callable[[], None], /) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = told
        self._fds: list[int] = []
        self._task: asyncio.Task[None] | None = None
        odd = []
        for process in processes:
            try:
                fd = os.pidfd_open(process.pid)
            except (AttributeError, OSError):  # not on this system, or it has just gone
                odd.append(process)
                continue
            self._fds.append(fd)
            self._loop.add_reader(fd, self._gone)
        if odd:
            self._task = self._loop.create_task(self._look(odd))

    def close(self) -> None:
        """Call nobody any more."""
        self._told = _nobody
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def _gone(self) -> None:
        told, self._told = self._told, _nobody
        self._leave()
        told()

    def _leave(self) -> None:
        while self._fds:
            fd = self._fds.pop()
            self._loop.remove_reader(fd)
            with contextlib.suppress(OSError):
                os.close(fd)

    async def _look(self, processes: Sequence[Any]) -> None:
        while all(map(is_alive, processes)):  # noqa: ASYNC110  # see above
            await asyncio.sleep(_INTERVAL)
        self._gone()


def is_alive(process: Any, /) -> bool:  # noqa: ANN401  # psutil is not typed
    """Whether a process runs: a zombie does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _nobody() -> None:
    pass
