"""Waits that a cancellation must not interrupt, and locks that outlive an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

__all__ = ("LoopLock", "run_shielded", "wait_shielded")


async def wait_shielded(wait: Callable[[], Awaitable[None]], /) -> None:
    """Wait until ``wait()`` returns, even if the task is cancelled natively or through a scope.

    *wait* is called again after each cancellation, so cancelling it must lose nothing.

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
            late = None  # Break the cycle: its traceback refers to this frame.


class LoopLock:
    """A lock of an object that may be used in several event loops, one after another."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def here(self) -> asyncio.Lock:
        """Return the lock of the running loop; a new one if the last lock was of another loop."""
        loop = asyncio.get_running_loop()
        if self._held is None or self._held[0] is not loop:
            self._held = (loop, asyncio.Lock())
        return self._held[1]


_T = TypeVar("_T")


async def run_shielded(work: Coroutine[Any, Any, _T]) -> _T:
    """Run *work* to its end in a task of its own, even if this task is cancelled meanwhile.

    Cancellation: raised when *work* has ended; its result or exception is lost.
    """
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
            task.exception()  # mark it as retrieved
        raise cancelled
    return task.result()
