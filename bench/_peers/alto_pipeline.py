"""alto: a generator stage, a coroutine stage, a stage over the group of their results."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from alto import Group, Stream, pipeline, stage


@stage
async def expand(n: int) -> AsyncIterator[int]:
    """Yield the items."""
    for i in range(n):
        yield i


@stage
async def work(i: int) -> int:
    """One async call that does not wait."""
    return i + 1


@stage
async def gather(results: Group[int]) -> list[int]:
    """All results of the request, in order."""
    return [result async for result in results]


@pipeline
def fan(n: Stream[int]) -> Stream[list[int]]:
    """Fan out, work, fan in."""
    return gather(work(expand(n)))


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Open the pipeline."""
    async with fan.open() as app:

        async def run(n: int) -> list[int]:
            [result] = await app.run(n)
            return result

        yield run
