"""Ways in which a request that would go on for ever is ended, for tests of what blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import alto


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other threads or processes do."""
    while not condition():  # noqa: ASYNC110  # nobody else says
        await asyncio.sleep(0.001)


async def map_timeout(app: Any, item: Any) -> None:
    """A map whose request runs out of time."""
    (result,) = [one async for one in app.map([item], timeout=0.5)]
    assert isinstance(result.error, alto.DeadlineExceeded)


async def run_timeout(app: Any, item: Any) -> None:
    """A request that runs out of time."""
    with pytest.raises(alto.DeadlineExceeded):
        await app.run(item, timeout=0.5)


async def stream_timeout(app: Any, item: Any) -> None:
    """A stream that runs out of time."""
    with pytest.raises(alto.DeadlineExceeded):
        await app.stream(item, timeout=0.5).list()


async def timeout_around(app: Any, item: Any) -> None:
    """A time limit of asyncio's around a request."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await app.run(item)


async def left(app: Any, item: Any) -> None:
    """A handle that is left, and waits until nothing runs."""
    async with app.stream(item):
        await asyncio.sleep(0.5)


async def closed_in_time(app: Any, item: Any) -> None:
    """A handle that is closed, for a limited time."""
    handle = app.stream(item)
    await asyncio.sleep(0.5)
    await asyncio.wait_for(handle.aclose(), 40)


LIMITS = [run_timeout, stream_timeout, map_timeout, timeout_around, left, closed_in_time]
"""Ways to end a call that blocks."""
