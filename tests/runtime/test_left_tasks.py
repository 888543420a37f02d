"""Tasks that a stage leaves behind, and a stage that cancels its own: others are none the worse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import alto


@alto.stage
async def slowly(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1, a second before each."""
    for k in range(n):
        await asyncio.sleep(1)
        yield k


def reading(seconds: float, left: list[asyncio.Task[list[int]]]) -> Any:
    """A pipeline whose last stage takes *seconds* and leaves a task that reads its group, of 3 or more."""

    @alto.stage(concurrency=1)
    async def gather(group: alto.Group[int], n: int) -> int:
        if n >= 3:
            left.append(asyncio.create_task(group.list()))
            await asyncio.sleep(seconds)
        else:
            await asyncio.sleep(10)
        return n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return gather(slowly(n), n)

    return p


@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.0])
async def test_a_reader_that_a_call_leaves_takes_no_permit(seconds: float) -> None:
    """Whether it waits for a piece, or has one, the call's place is free for the next."""
    left: list[asyncio.Task[list[int]]] = []
    async with reading(seconds, left).open() as app:
        fresh = app.statistics()
        for n in (3, 4, 2):
            async with asyncio.timeout(20):
                assert await app.run(n) == [n]
        assert app.statistics() == fresh
    found = await asyncio.gather(*left, return_exceptions=True)
    assert [isinstance(one, alto.Closed | list) for one in found] == [True, True]


@pytest.mark.parametrize("cut", [False, True], ids=["goes on", "cancelled"])
async def test_a_reader_that_waits_for_a_permit_when_its_call_ends(cut: bool) -> None:
    """Nobody gets the permit that it waited for, whatever becomes of it, and the next call has one."""
    left: list[asyncio.Task[list[int]]] = []
    async with reading(2.0, left).open() as app:
        fresh = app.statistics()
        first = asyncio.ensure_future(app.run(3))
        await asyncio.sleep(0.5)  # The reader waits, so the only permit is free.
        second = asyncio.ensure_future(app.run(1))
        await asyncio.sleep(1.4)  # There is a piece, and the other call has the permit.
        if cut:
            left[0].cancel()
        assert await first == [3]
        assert await second == [1]
        async with asyncio.timeout(20):
            assert await app.run(2) == [2]
        assert app.statistics() == fresh
    (found,) = await asyncio.gather(*left, return_exceptions=True)
    assert isinstance(found, asyncio.CancelledError if cut else alto.Closed)


@alto.stage
async def cancels(k: int) -> int:
    """Cancels itself at 1, and does not wait any more."""
    if k == 1:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    return k


@alto.stage
async def cancels_between(k: int) -> AsyncIterator[int]:
    """The same, between two items."""
    yield k
    if k == 1:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    yield k


@pytest.mark.parametrize("stage", [cancels, cancels_between], ids=lambda stage: stage.name)
async def test_a_stage_that_cancels_its_own_task_ends_no_other(stage: Any) -> None:
    """The task that ran it ends, and the app goes on."""

    @alto.pipeline
    def p(k: alto.Stream[int]) -> alto.Stream[int]:
        return stage(k)

    async with p.open() as app:
        fresh = app.statistics()
        results = [await asyncio.gather(app.run(k), return_exceptions=True) for k in (0, 1, 2)]
        await asyncio.sleep(1)
        assert [set(one[0]) for one in (results[0], results[2])] == [{0}, {2}]
        assert app.statistics() == fresh
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
