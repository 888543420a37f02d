"""Ways to end a request that would never end by itself, for tests of stages that block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import alto


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other threads or processes bring about."""
    while not condition():  # noqa: ASYNC110  # nothing signals it
        await asyncio.sleep(0.001)


async def map_timeout(app: Any, item: Any) -> None:
    """Map an item, with a time limit for its request."""
    (result,) = [one async for one in app.map([item], timeout=0.5)]
    assert isinstance(result.error, alto.DeadlineExceeded)


async def run_timeout(app: Any, item: Any) -> None:
    """Run a request with a time limit."""
    with pytest.raises(alto.DeadlineExceeded):
        await app.run(item, timeout=0.5)


async def stream_timeout(app: Any, item: Any) -> None:
    """Stream a request with a time limit."""
    with pytest.raises(alto.DeadlineExceeded):
        await app.stream(item, timeout=0.5).list()


async def timeout_around(app: Any, item: Any) -> None:
    """Put asyncio's time limit around a request."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await app.run(item)


async def left(app: Any, item: Any) -> None:
    """Leave a handle's block, which waits until nothing runs."""
    async with app.stream(item):
        await asyncio.sleep(0.5)


async def closed_in_time(app: Any, item: Any) -> None:
    """Close a handle; the limit on that ends a test that hangs."""
    handle = app.stream(item)
    await asyncio.sleep(0.5)
    await asyncio.wait_for(handle.aclose(), 120)


LIMITS = [run_timeout, stream_timeout, map_timeout, timeout_around, left, closed_in_time]
"""All of them, to parametrize a test."""
