"""Closing an app, a request or a map from code that runs for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import alto


@pytest.mark.parametrize("what", ["app", "request", "map"])
async def test_what_cleans_up_cannot_close_what_it_works_for(what: str) -> None:
    """A generator that is being closed is told so instead of waiting for itself, and the app goes on."""
    told: list[str] = []
    own: dict[str, Any] = {}

    async def close() -> None:
        if what == "app":
            await own["app"].__aexit__(None, None, None)
        else:
            await own[what].aclose()

    @alto.stage
    async def numbers(n: int) -> AsyncIterator[int]:
        try:
            for k in range(n):
                yield k
                if what == "map":  # The others wait at their `yield`, for room.
                    await asyncio.sleep(1)
        finally:
            if n > 2:
                with pytest.raises(RuntimeError) as seen:
                    await close()
                told.append(str(seen.value))

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return numbers(n)

    async with p.open(capacity=1) as app:
        own["app"] = app
        if what == "map":
            own["map"] = app.map([2, 100], concurrency=2)
            assert (await anext(own["map"])).values == [0, 1]
            await own["map"].aclose()
        else:
            async with app.stream(100) as own["request"]:
                assert await anext(own["request"]) == 0
                await asyncio.sleep(1)
        assert [text.partition(" that")[0] for text in told] == [f"a stage cannot close the {what}"]
        assert await app.run(2) == [0, 1]


@pytest.mark.parametrize("depth", [0, 1])
async def test_a_task_that_a_call_has_left_behind_cannot_close_the_app(depth: int) -> None:
    """It would end in another task than it began in; it is told so, and requests go on."""
    own: list[alto.App[int, int]] = []
    left: list[asyncio.Task[object]] = []

    @alto.stage
    async def leaving(k: int) -> int:
        async def close() -> None:
            await asyncio.sleep(1)
            await own[0].__aexit__(None, None, None)

        left.append(asyncio.create_task(close()))
        return k

    @alto.stage
    async def slow(k: int) -> int:
        await asyncio.sleep(2)
        return k

    @alto.pipeline
    def inner(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(leaving(n))

    @alto.stage
    async def nesting(n: int) -> int:
        return sum(await inner.run(n))

    @alto.pipeline
    def outer(n: alto.Stream[int]) -> alto.Stream[int]:
        return nesting(n)

    async with (outer if depth else inner).open() as app:
        own.append(app)
        assert await app.run(1) == [1]
        await asyncio.wait(left)
        assert "a stage cannot close the app" in str(left[0].exception())


async def test_a_task_that_a_call_has_left_behind_can_close_its_request() -> None:
    """The call has ended, so nothing waits for itself."""
    own: list[alto.app.StreamHandle[int]] = []
    left: list[asyncio.Task[None]] = []

    @alto.stage
    async def leaving(k: int) -> int:
        async def close() -> None:
            await asyncio.sleep(1)
            await own[0].aclose()

        left.append(asyncio.create_task(close()))
        return k

    @alto.stage
    async def slow(k: int) -> int:
        await asyncio.sleep(2)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(leaving(n))

    async with p.open() as app:
        own.append(app.stream(1))
        with pytest.raises(alto.Closed):
            await own[0].list()
        await left[0]
        assert app.statistics().open_requests == 0


async def test_what_cleans_up_cannot_call_a_pipeline() -> None:
    """It is told why: nobody waits for what it would get."""
    told: list[str] = []

    @alto.stage
    async def same(k: int) -> int:
        return k

    @alto.pipeline
    def inner(n: alto.Stream[int]) -> alto.Stream[int]:
        return same(n)

    @alto.stage
    async def numbers(n: int) -> AsyncIterator[int]:
        try:
            for k in range(n):
                yield k
        finally:
            with pytest.raises(alto.Closed) as seen:
                await inner.run(3)
            told.append(str(seen.value))

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return numbers(n)

    async with p.open(capacity=1) as app, app.stream(100) as got:
        assert await anext(got) == 0
        await asyncio.sleep(1)
    assert len(told) == 1
    assert told[0].startswith("pipeline 'inner' cannot be called while its stage call cleans up")
