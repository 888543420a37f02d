"""Notice the end of a process at once, without polling where the system allows it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, final

__all__ = ("ProcessWatcher", "is_alive")

_INTERVAL = 0.25
"""Seconds between two checks where there is no pidfd."""


@final
class ProcessWatcher:
    """Watcher that calls *callback* once, when the first of *processes* has ended.

    On Linux the end of a process makes its ``pidfd`` readable, which the event loop waits for like for
    any other file. Elsewhere the processes are checked four times a second.

    Args:
        processes: Processes, as psutil objects.
        callback: Called in the event loop that made this watcher.
    """

    def __init__(self, processes: Sequence[Any], callback: Callable[[], None], /) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._fds: list[int] = []
        self._task: asyncio.Task[None] | None = None
        odd = []
        for process in processes:
            try:
                fd = os.pidfd_open(process.pid)
            except (AttributeError, OSError):  # not on this system, or it has just ended
                odd.append(process)
                continue
            self._fds.append(fd)
            self._loop.add_reader(fd, self._gone)
        if odd:
            self._task = self._loop.create_task(self._look(odd))

    def close(self) -> None:
        """Stop watching; the callback is not called any more."""
        self._callback = _ignore
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def _gone(self) -> None:
        # Several descriptors may be readable in one turn of the loop; only the first one calls.
        callback, self._callback = self._callback, _ignore
        self._leave()
        callback()

    def _leave(self) -> None:
        while self._fds:
            fd = self._fds.pop()
            self._loop.remove_reader(fd)
            with contextlib.suppress(OSError):
                os.close(fd)

    async def _look(self, processes: Sequence[Any]) -> None:
        while all(map(is_alive, processes)):  # noqa: ASYNC110  # there is nothing to wait for here
            await asyncio.sleep(_INTERVAL)
        self._gone()


def is_alive(process: Any, /) -> bool:  # noqa: ANN401  # psutil is not typed
    """Return whether a process runs. A zombie does not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _ignore() -> None:
    pass
