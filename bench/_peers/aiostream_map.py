"""aiostream: iterate, map concurrently in order with a limit of 32, list.

``task_limit=1`` is several times cheaper, but it runs producer, work and gatherer in turn: nothing
overlaps, so it is not the same work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiostream import pipe, stream

LIMIT = 32


async def expand(n: int) -> AsyncIterator[int]:
    """Yield *n* items."""
    for i in range(n):
        yield i


async def work(i: int) -> int:
    """One async call that does not wait."""
    return i + 1


async def fan(n: int) -> list[int]:
    """One request through a chain of operators."""
    return await (
        stream.iterate(expand(n)) | pipe.map(work, ordered=True, task_limit=LIMIT) | pipe.list()
    )


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Nothing to set up."""
    yield fan
