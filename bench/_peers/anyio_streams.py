"""A pair of anyio memory object streams of 32 items, one task a hop, closed as anyio teaches.

Each stream end is closed by the task that owns it, which ends the other side's ``async for``.
Every ``send`` and ``receive`` of anyio is a checkpoint, so the tasks switch at every item.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

BOUND = 32


async def work(i: int) -> int:
    """One async call that does not wait."""
    return i + 1


async def produce(n: int, items: MemoryObjectSendStream[int]) -> None:
    """Send *n* items and close."""
    async with items:
        for i in range(n):
            await items.send(i)


async def consume(
    items: MemoryObjectReceiveStream[int], results: MemoryObjectSendStream[int]
) -> None:
    """Do the work of each item until the stream ends."""
    async with items, results:
        async for item in items:
            await results.send(await work(item))


async def fan(n: int) -> list[int]:
    """One request over two streams."""
    send_item, receive_item = anyio.create_memory_object_stream[int](BOUND)
    send_result, receive_result = anyio.create_memory_object_stream[int](BOUND)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(produce, n, send_item)
        tasks.start_soon(consume, receive_item, send_result)
        async with receive_result:
            return [result async for result in receive_result]


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Nothing to set up."""
    yield fan
