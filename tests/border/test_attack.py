"""What lies between two features: found by trying combinations that no page describes."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import alto
from alto.events import CallStarted, Event


@alto.stage
async def slow(k: int) -> int:
    """Takes a second."""
    await asyncio.sleep(1)
    return k


@alto.pipeline
def slowly(k: alto.Stream[int]) -> alto.Stream[int]:
    """A second per number."""
    return slow(k)


# ---- exceptions


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An exception none of whose fields can be set."""

    code: int


async def test_an_exception_whose_fields_cannot_be_set_fails_its_request_only() -> None:
    """The app goes on, where cutting the traceback failed with FrozenInstanceError."""

    @alto.stage
    async def fails(k: int) -> int:
        if k:
            raise Frozen(k)
        return k

    @alto.pipeline
    def p(k: alto.Stream[int]) -> alto.Stream[int]:
        return fails(k)

    async with p.open() as app:
        for _ in range(2):
            with pytest.raises(alto.StageError, match="Frozen: 3") as caught:
                await app.run(3)
            assert caught.value.cause == Frozen(3)
        assert await app.run(0) == [0]


async def test_an_exception_whose_fields_cannot_be_set_leaves_the_block_of_an_app() -> None:
    """It is what the block raises, also where a resource could not be given back meanwhile."""

    @asynccontextmanager
    async def stuck(_: int) -> AsyncIterator[int]:
        yield 1
        msg = "does not close"
        raise RuntimeError(msg)

    @alto.stage
    async def adds(k: int, *, more: int) -> int:
        return k + more

    @alto.pipeline
    def p(k: alto.Stream[int]) -> alto.Stream[int]:
        return adds(k)

    with pytest.raises(Frozen):
        async with p.open(more=alto.per_replica(stuck)):
            raise Frozen(1)


# ---- a stage call that ends its own request


@pytest.mark.parametrize("generator", [False, True])
async def test_a_stage_that_cancels_its_own_request_is_cancelled_at_its_next_wait(
    generator: bool,
) -> None:
    """Closing the handle waits for the call, which went on waiting."""
    handles: list[alto.app.StreamHandle[int]] = []
    left: list[int] = []

    async def cancels(k: int) -> None:
        handles[0].cancel()
        try:
            await asyncio.sleep(1000)
        finally:
            left.append(k)

    @alto.stage
    async def one(k: int) -> int:
        await cancels(k)
        return k

    @alto.stage
    async def many(k: int) -> AsyncIterator[int]:
        await cancels(k)
        yield k

    @alto.pipeline
    def p(k: alto.Stream[int]) -> alto.Stream[int]:
        return many(k) if generator else one(k)

    async with p.open() as app:
        fresh = app.statistics()
        handle = app.stream(1)
        handles.append(handle)
        start = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        await handle.aclose()
        assert asyncio.get_running_loop().time() == start + 1
        assert left == [1]
        assert app.statistics() == fresh
        handles[0] = app.stream(2)  # The next call of that worker is not struck.
        await handles[0].aclose()


async def test_an_observer_that_cancels_at_the_start_of_a_call_cancels_that_call() -> None:
    """The call was counted as cancelled, and ran on."""
    handles: list[alto.app.StreamHandle[int]] = []

    class Stops:
        wants = (CallStarted,)

        def notify(self, event: Event) -> None:
            for handle in handles:
                handle.cancel()

    async with slowly.open(observers=[Stops()]) as app:
        start = asyncio.get_running_loop().time()
        handles.append(app.stream(1))
        await asyncio.sleep(0.5)
        await handles[0].aclose()
        assert asyncio.get_running_loop().time() == start + 0.5


# ---- a drain and a map


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_drain_waits_for_the_inputs_that_a_map_has_left(
    concurrency: int, pulled: bool
) -> None:
    """Between two of its requests there may be none, and the drain was over."""

    async def inputs() -> AsyncIterator[int]:
        for k in range(4):
            await asyncio.sleep(0.1)
            yield k

    async with slowly.open() as app:
        values = app.map(inputs() if pulled else range(4), concurrency=concurrency)
        reading = asyncio.create_task(values.list())
        await asyncio.sleep(0.5)
        assert await app.drain()
        assert asyncio.get_running_loop().time() >= 4 / concurrency
        assert [one.unwrap() for one in await reading] == [[0], [1], [2], [3]]


async def test_a_drain_does_not_wait_for_a_map_that_was_left() -> None:
    """It is over once it is closed or dropped; one that has not begun is none."""
    async with slowly.open() as app:
        unread = app.map(range(3))
        left = app.map(range(3), concurrency=1)
        assert (await anext(left)).ok
        waiting = asyncio.create_task(app.drain())
        await asyncio.sleep(5)
        assert not waiting.done()
        await left.aclose()
        assert await waiting
        await unread.aclose()


async def test_two_tasks_may_drain() -> None:
    """A second one, of a signal handler for example, waits as well; it was refused."""
    async with slowly.open() as app:
        handle = app.stream(1)
        drains = [asyncio.create_task(app.drain(timeout=timeout)) for timeout in (0.5, None)]
        assert await handle.list() == [1]
        assert [await drain for drain in drains] == [False, True]


# ---- a map and the end of its app


@pytest.mark.parametrize("begun", [False, True])
async def test_a_map_of_endless_inputs_ends_with_its_app(begun: bool) -> None:
    """It gave a failed record for every input, for ever, and never let the loop go."""
    app = await slowly.open()
    results = app.map(itertools.count(), concurrency=2)
    if begun:
        assert (await anext(results)).unwrap() == [0]
    await app.aclose()
    found: list[alto.Result[int, int]] = []
    with pytest.raises(alto.Closed, match="before all inputs of this map were taken"):
        while len(found) < 10:
            found.append(await anext(results))
    assert all(not one.ok or one.index < 2 for one in found)
    assert len(found) == (3 if begun else 0)


# ---- messages


def test_an_observer_with_an_async_notify_is_refused() -> None:
    """It was accepted, and its coroutines were never awaited."""

    class Late:
        async def notify(self, event: Event) -> None:
            """Never awaited."""

    with pytest.raises(TypeError, match=r"Late\.notify\(\) must be a plain function"):
        slowly.open(observers=[Late()])  # type: ignore[list-item]


async def test_what_using_gives_is_not_opened_again() -> None:
    """The message advised to open another app."""
    async with slowly.open() as app:
        with pytest.raises(TypeError, match="without `async with` or `await`"):
            async with app.using():
                pass
        assert await app.using().run(1) == [1]


def test_a_decorator_that_hides_an_async_function_is_named() -> None:
    """The advice was to write `async def`, which the user had done."""

    async def asks(k: int) -> int:
        return k

    @functools.wraps(asks)
    def wrapper(k: int) -> object:
        return asks(k)

    with pytest.raises(alto.GraphError, match="a decorator has put a plain function around it"):
        alto.stage(wrapper)  # type: ignore[call-overload]


async def test_handles_are_read_and_not_awaited() -> None:
    """The message names what can be awaited."""
    async with slowly.open() as app:
        async with app.stream(1) as results:
            with pytest.raises(TypeError, match=r"await app\.run"):
                await results
        async with app.map([1]) as records:
            with pytest.raises(TypeError, match=r"await app\.map\(\.\.\.\)\.list"):
                await records


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_app_whose_loop_has_ended_says_so() -> None:
    """One `asyncio.run` opens it and another one uses it: closing it there does nothing."""

    async def opened() -> alto.App[int, int]:
        return await slowly.open()

    app = asyncio.run(opened())
    with pytest.raises(alto.Closed, match="closed when its event loop ended"):
        asyncio.run(app.run(1))
    asyncio.run(app.aclose())
