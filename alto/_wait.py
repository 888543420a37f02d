"""Waits that a cancellation must not cut, and locks that outlive an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

__all__ = ("LoopLock", "run_shielded", "wait_shielded")


async def wait_shielded(wait: Callable[[], Awaitable[None]], /) -> None:
    """Wait to the end, whatever cancels the task meanwhile, natively or through a scope.

    *wait* may be called again after it was cut, so cutting it must lose nothing.

    Cancellation: raised when the wait is over.
    """
    late: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while True:
            try:
                await wait()
            except asyncio.CancelledError as error:
                late = error
            else:
                break
    if late is not None:
        try:
            raise late
        finally:
            late = None  # Its traceback has this frame.


class LoopLock:
    """A lock for one event loop at a time, of a thing that may be used in another loop later."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def here(self) -> asyncio.Lock:
        """The lock of the running loop; a new one where that is not the last one's."""
        loop = asyncio.get_running_loop()
        if self._held is None or self._held[0] is not loop:
            self._held = (loop, asyncio.Lock())
        return self._held[1]


_T = TypeVar("_T")


async def run_shielded(work: Coroutine[Any, Any, _T]) -> _T:
    """Do *work* to its end, and only then be cancelled."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # it has been seen
        raise cancelled
    return task.result()
