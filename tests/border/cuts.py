"""Cancel a task at its n-th suspension, for each n."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any


class CancelledAt:
    """Await something, and cancel the task at its n-th suspension."""

    def __init__(self, awaitable: Coroutine[Any, Any, Any], at: int) -> None:
        """Suspensions are numbered from 0."""
        self.coroutine = awaitable
        self.at = at
        self.seen = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Drive it by hand."""
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = (
                    self.coroutine.send(None) if thrown is None else self.coroutine.throw(thrown)
                )
            except StopIteration as stop:
                return stop.value
            finally:
                thrown = None  # No cycle that would keep a dropped handle alive.
            if self.seen == self.at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.seen += 1
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001
                thrown = error


async def cut(make: Callable[[], Coroutine[Any, Any, Any]], at: int) -> bool:
    """Run it with a cancellation at suspension *at*.

    Returns:
        Whether it came that far.
    """
    driven = CancelledAt(make(), at)

    async def run() -> None:
        await driven

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    if driven.seen <= at:
        task.result()
        return False
    assert task.cancelled()
    return True


async def cut_everywhere(
    make: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[None]]
) -> int:
    """Cut it at every suspension that it has.

    Returns:
        At how many places it was cut.
    """
    at = 0
    while await cut(make, at):
        await check()
        at += 1
        assert at < 1000
    await check()
    return at
