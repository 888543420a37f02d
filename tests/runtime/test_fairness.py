"""Calls that never wait leave the event loop to others now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import alto

MANY = 256
"""Calls after which others get a turn."""


@alto.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1."""
    for k in range(n):
        yield k


@alto.stage(concurrency=1)
async def one(k: int, *, gate: asyncio.Event) -> int:
    """The first waits for the gate, and no other waits at all."""
    if not k:
        await gate.wait()
    return k


@alto.stage(concurrency=1)
async def some(k: int, *, gate: asyncio.Event) -> AsyncIterator[int]:
    """The same, as a generator."""
    if not k:
        await gate.wait()
    yield k


@pytest.mark.parametrize("stage", [one, some], ids=lambda stage: stage.name)
async def test_others_get_a_turn_among_calls_that_never_wait(stage: Any) -> None:
    """However many have what they need, the loop goes round once in so many calls."""
    calls = 20 * MANY
    gate, turns = asyncio.Event(), 0

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return stage(numbers(n))

    async with p.open(gate=gate, capacity=calls + 1) as app:
        fresh = app.statistics()
        asked = asyncio.ensure_future(app.run(calls))
        while app.statistics().stages[stage.name].waiting < calls - 1:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(1)
        gate.set()
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        assert await asked == list(range(calls))
        assert turns >= 20
        assert app.statistics() == fresh


async def test_many_calls_that_are_cut_between_turns_leave_nothing() -> None:
    """A request that is left while others have the loop has no call that goes on, nor a permit."""
    gate = asyncio.Event()

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return one(numbers(n))

    async with p.open(gate=gate, capacity=5 * MANY + 1) as app:
        fresh = app.statistics()
        gate.set()
        for rounds in range(6):
            async with app.stream(5 * MANY):
                for _ in range(rounds):
                    await asyncio.sleep(0)
            assert app.statistics() == fresh
        assert await app.run(3) == [0, 1, 2]
