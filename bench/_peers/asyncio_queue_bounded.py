"""The bare pair of ``asyncio.Queue`` with backpressure: 32 items a queue, as alto's edges have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bench._peers.asyncio_queue import fan

BOUND = 32


async def bounded(n: int) -> list[int]:
    """One request with backpressure on both hops."""
    return await fan(n, BOUND)


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Nothing to set up."""
    yield bounded
