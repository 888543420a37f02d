"""Calls that end otherwise than by returning, and the tasks that run them: what is left then."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import alto
from alto._runtime.request import Request
from alto.testing import Scripted
from tests.stepping import each


@alto.stage(concurrency=8)
async def nap(seconds: float) -> float:
    """Sleep, and need five seconds to wake up where the sleep is cut."""
    try:
        await anyio.sleep(seconds)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        raise
    return seconds


@alto.pipeline
def napping(seconds: alto.Stream[float]) -> alto.Stream[float]:
    """What stages call that wait for a pipeline."""
    return nap(seconds)


def pipeline_of(stage: Any) -> Any:
    """``stage(each(jobs))``."""

    def many(jobs: alto.Stream[Any]) -> alto.Stream[Any]:
        return stage(each(jobs))

    return alto.pipeline(many)


def clock() -> float:
    """Seconds on the loop's clock."""
    return asyncio.get_running_loop().time()


class TestPermits:
    """Whoever ends gives back what it held."""

    async def test_a_call_that_was_just_told_to_go_on_and_is_cancelled_lets_the_next_go(
        self,
    ) -> None:
        """The permit that a cancelled call has got in this very moment goes to the next in line."""

        @alto.stage(concurrency=1)
        async def work(name: str) -> str:
            if name == "busy":
                await anyio.sleep(10)
                oldest = min(app._host._requests, key=lambda request: request.number)
                asyncio.get_running_loop().call_soon(oldest.cancel)
            else:
                await napping.run(5.0)
            return name

        @alto.pipeline
        def p(name: alto.Stream[str]) -> alto.Stream[str]:
            return work(name)

        async with p.open() as app:
            begin = clock()
            got = await asyncio.gather(
                app.run("cancelled"), app.run("next"), app.run("busy"), return_exceptions=True
            )
            assert isinstance(got[0], alto.Closed)
            assert got[1:] == [["next"], ["busy"]]
            assert clock() - begin == 10.0

    async def test_a_task_that_was_cancelled_hands_its_permit_on(self) -> None:
        """A call that cancels its own task and catches it ends that task, and nothing else."""

        @alto.stage(concurrency=1)
        async def work(k: int) -> int:
            task = asyncio.current_task()
            assert task is not None
            if k == 1:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await anyio.sleep(1)
            return k

        @alto.stage(concurrency=1)
        async def pairs(k: int) -> AsyncIterator[int]:
            yield await work.fn(k)
            yield k

        async with pipeline_of(work).open() as app:
            assert await app.run((0, 1, 2, 3)) == [0, 1, 2, 3]
        async with pipeline_of(pairs).open() as app:
            assert await app.run((0, 1, 2, 3)) == [0, 0, 1, 1, 2, 2, 3, 3]

    async def test_the_pipelines_that_a_call_leaves_end_before_it(self) -> None:
        """A nested request that is left open is waited for, and meanwhile the next call starts."""
        begun, left = [], []

        @alto.stage(concurrency=1)
        async def work(k: int) -> int:
            begun.append(clock())
            left.append(napping.stream(100.0))
            await anyio.sleep(1)
            return k

        @alto.pipeline
        def p(jobs: alto.Stream[Any]) -> alto.Stream[int]:
            return work(each(jobs))

        async with p.open() as app:
            fresh = app.statistics()
            begin = clock()
            assert await app.run((0, 1)) == [0, 1]
            assert [at - begin for at in begun] == [0.0, 1.0]
            assert clock() - begin == 1.0 + 1.0 + 5.0
            assert app.statistics() == fresh

    async def test_pipelines_that_have_ended_are_forgotten(self) -> None:
        """A long call keeps no requests in memory that it has started and that have ended."""

        @alto.stage
        async def work(k: int) -> int:
            gc.collect()
            before = sum(type(one) is Request for one in gc.get_objects())
            for _ in range(5):
                await napping.run(0.0)
            gc.collect()
            return sum(type(one) is Request for one in gc.get_objects()) - before

        @alto.pipeline
        def p(k: alto.Stream[int]) -> alto.Stream[int]:
            return work(k)

        async with p.open() as app:
            await app.run(1)
            assert await app.run(1) == [0]

    @pytest.mark.realtime
    async def test_what_a_cancelled_function_raises_in_a_thread_is_no_news(self) -> None:
        """Nobody is told of an error that came when nobody needed the call any more."""
        heard: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: heard.append(context))
        begun, go = threading.Event(), threading.Event()

        @alto.stage(runs_in="thread")
        def work(k: int) -> int:
            begun.set()
            go.wait(5)
            raise ValueError(k)

        @alto.pipeline
        def p(k: alto.Stream[int]) -> alto.Stream[int]:
            return work(k)

        async with p.open() as app, app.stream(1):
            await asyncio.to_thread(begun.wait, 5)
            loop.call_later(0.01, go.set)
        gc.collect()
        assert heard == []

    async def test_a_generation_that_a_generator_left_ends_at_its_next_yield(self) -> None:
        """An engine does not go on with what a call has left while the call itself goes on."""

        @alto.stage
        async def say(word: str, *, llm: alto.LLM) -> AsyncIterator[int]:
            async for _ in llm.generate(word):
                break
            yield engine.statistics().running
            await anyio.sleep(1)
            yield engine.statistics().running

        engine = Scripted({"x": ["a"] * 50}, delay=0.5)
        async with engine, pipeline_of(say).open(llm=engine) as app:
            assert await app.run(("x",)) == [1, 0]


class TestCounts:
    """What statistics and bounds say of calls that were cut."""

    async def test_a_cancelled_call_that_returns_is_not_done(self) -> None:
        """A stage that catches its cancellation and returns has not ended by itself."""

        @alto.stage
        async def stubborn(k: int) -> int:
            with contextlib.suppress(asyncio.CancelledError):
                await anyio.sleep(10)
            return k

        @alto.pipeline
        def p(k: alto.Stream[int]) -> alto.Stream[int]:
            return stubborn(k)

        async with p.open() as app:
            async with app.stream(1):
                await anyio.sleep(1)
            assert app.statistics().stages["stubborn"].done == 0
            await app.run(1)
            assert app.statistics().stages["stubborn"].done == 1

    async def test_a_generator_that_exceeds_the_cap_makes_no_more(self) -> None:
        """The item that is one too many is the last that its generator makes."""
        made = []

        @alto.stage
        async def source(n: int) -> AsyncIterator[int]:
            for k in range(n):
                made.append(k)
                yield k

        @alto.stage
        async def whole(ks: alto.Group[int]) -> int:
            return len(await ks.list())

        @alto.stage
        async def both(k: int, n: int) -> int:
            return k + n

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[int]:
            ks = source(n)
            return both(ks, whole(ks))

        async with p.open(max_held_items=6) as app:
            with pytest.raises(alto.errors.BufferExceeded):
                await app.run(100)
        assert made == [0, 1, 2, 3]

    async def test_a_group_of_a_generator_that_a_time_limit_ended_is_complete(self) -> None:
        """What a generator had in hand when its time was over is the last piece of its group."""

        @alto.stage
        async def limited(n: int) -> AsyncIterator[int]:
            with anyio.move_on_after(5):
                for k in range(n):
                    yield k  # noqa: ASYNC119  # what this test is about

        @alto.stage
        async def late(ks: alto.Group[int]) -> list[int]:
            await anyio.sleep(10)
            return await ks.list()

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[list[int]]:
            return late(limited(n))

        async with p.open(capacity=2) as app:
            assert await app.run(100) == [[0, 1, 2]]

    async def test_what_a_left_group_would_have_got_is_not_made(self) -> None:
        """Items that come when nobody needs what their calls give start no calls."""
        worked = []

        @alto.stage
        async def pieces(n: int) -> AsyncIterator[int]:
            for k in range(n):
                yield k
                await anyio.sleep(1)

        @alto.stage
        async def work(k: int) -> int:
            worked.append(k)
            return k

        @alto.stage
        async def first(ks: alto.Group[int]) -> int:
            return await anext(aiter(ks))

        @alto.stage
        async def count(ks: alto.Group[int]) -> int:
            return len(await ks.list())

        @alto.stage
        async def both(one: int, n: int) -> tuple[int, int]:
            return one, n

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[tuple[int, int]]:
            ks = pieces(n)
            return both(first(work(ks)), count(ks))

        async with p.open() as app:
            assert await app.run(8) == [(0, 8)]
        assert worked == [0]

    async def test_what_waited_for_a_join_that_is_left_is_held_no_more(self) -> None:
        """Items that a dropped join had kept leave room for those of the next one."""

        @alto.stage
        async def slowly(n: int) -> AsyncIterator[int]:
            for k in range(n):
                await anyio.sleep(1)
                yield k

        @alto.stage
        async def three(k: int) -> AsyncIterator[int]:
            for _ in range(3):
                yield k

        @alto.stage(concurrency=100)
        async def never(k: int) -> int:
            await anyio.sleep(1000)
            return k

        @alto.stage
        async def add(one: int, other: int) -> int:
            return one + other

        @alto.stage
        async def skim(one: alto.Group[int], other: alto.Group[int]) -> int:
            await anyio.sleep(0.5)
            return sum([k async for k in one])

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[int]:
            ks = slowly(n)
            return skim(three(ks), add(three(ks), never(ks)))

        async with p.open(max_held_items=8) as app, app.stream(10, order="ancestry") as results:
            assert await results.list() == [3 * k for k in range(10)]


class TestWorkers:
    """The tasks that run calls."""

    @staticmethod
    def tasks() -> list[asyncio.Task[Any]]:
        """Those of the stage."""
        return [task for task in asyncio.all_tasks() if task.get_name() == "alto work"]

    async def test_they_are_used_again(self) -> None:
        """A stage never has more tasks than it may run calls."""

        @alto.stage(concurrency=2)
        async def work(k: int) -> int:
            await anyio.sleep(1)
            return k

        async with pipeline_of(work).open() as app:
            for _ in range(10):
                await app.run((0, 1))
                assert len(self.tasks()) == 2

    async def test_few_are_kept_after_a_burst(self) -> None:
        """Of many tasks that a burst has needed, at most 1,024 wait for the next one."""

        @alto.stage(concurrency=1100)
        async def work(k: int) -> int:
            await anyio.sleep(1)
            return k

        async with pipeline_of(work).open(capacity=2000) as app:
            async with app.stream(tuple(range(1100))) as results:
                await anyio.sleep(0.5)
                assert len(self.tasks()) == 1100
                assert sorted(await results.list()) == list(range(1100))
            await anyio.sleep(1)
            assert len(self.tasks()) == 1024

    async def test_one_outlives_the_cancellation_of_its_call(self) -> None:
        """A task whose call alto has cancelled goes on with the next one."""

        @alto.stage(concurrency=1)
        async def work(k: int) -> int:
            await anyio.sleep(k)
            return k

        async with pipeline_of(work).open() as app:
            assert await app.run((1,)) == [1]
            before = self.tasks()
            for _ in range(2):
                async with app.stream((100,)):
                    await anyio.sleep(1)
            await anyio.sleep(1)
            assert self.tasks() == before
            assert await app.run((1,)) == [1]
