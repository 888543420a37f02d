"""A bare pair of ``asyncio.Queue``: the least that moves an item over two hops.

What it does, per request: one producer task puts 0 .. n-1 on a first queue; one worker task gets
them one by one, awaits the work, and puts the results on a second queue; the request's own task
gets those into a list. ``await put`` and ``await get`` throughout, a sentinel for the end (3.11
has no ``Queue.shutdown``), a task group around the two tasks. Neither queue has a bound, so the
tasks switch only where a queue is empty: nothing with two queues is cheaper. What it lacks: a
second worker (the order is right only because there is one), backpressure, ancestry, closing.
``asyncio_queue_bounded`` is the same with backpressure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

END = object()


async def work(i: int) -> int:
    """One async call that does not wait."""
    return i + 1


async def produce(n: int, items: asyncio.Queue) -> None:
    """Put *n* items and the end."""
    for i in range(n):
        await items.put(i)
    await items.put(END)


async def consume(items: asyncio.Queue, results: asyncio.Queue) -> None:
    """Do the work of each item until the end."""
    while (item := await items.get()) is not END:
        await results.put(await work(item))
    await results.put(END)


async def fan(n: int, bound: int) -> list[int]:
    """One request over two queues of at most *bound* items each; 0 is no bound."""
    items: asyncio.Queue = asyncio.Queue(bound)
    results: asyncio.Queue = asyncio.Queue(bound)
    gathered: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(produce(n, items))
        tasks.create_task(consume(items, results))
        while (result := await results.get()) is not END:
            gathered.append(result)
    return gathered


async def unbounded(n: int) -> list[int]:
    """One request without backpressure."""
    return await fan(n, 0)


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Nothing to set up."""
    yield unbounded
