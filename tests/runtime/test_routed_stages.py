"""A stage with several replicas, from inside: when it asks its router, waits for room, is woken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import alto
from alto.routing import ReplicaLoad, RoutedItem
from tests.stepping import each


class Asked:
    """A router that remembers what it was told, and names what *answer* says or replica 0."""

    def __init__(self, answer: Any = None) -> None:
        """What it answers, given the item."""
        self.answer = answer
        self.items: list[RoutedItem] = []
        self.free: list[tuple[int, ...]] = []
        self.seconds: list[tuple[float | None, ...]] = []

    def __deepcopy__(self, memo: object) -> Asked:
        """The test's own, also in the app."""
        return self

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """Remember, and answer."""
        self.items.append(item)
        self.free.append(tuple(load.free for load in replicas))
        self.seconds.append(tuple(load.seconds for load in replicas))
        return 0 if self.answer is None else self.answer(item)


def pipeline_of(stage: Any) -> Any:
    """``stage(each(jobs))``."""

    def routed(jobs: alto.Stream[Any]) -> alto.Stream[Any]:
        return stage(each(jobs))

    return alto.pipeline(routed)


def node_of(app: Any, stage: str) -> Any:
    """The stage inside an open app."""
    return dict(app._host.named_nodes())[stage]


def clock() -> float:
    """Seconds on the loop's clock."""
    return asyncio.get_running_loop().time()


class TestItems:
    """What waits, for whom, and for how long."""

    async def test_one_that_is_sent_to_a_busy_replica_holds_nobody_up(self) -> None:
        """A router that names a busy replica does not keep the next item from one that is free."""

        @alto.stage(replicas=2, concurrency=1, router=Asked(lambda item: item.value[0]))
        async def work(job: tuple[int, float]) -> float:
            await anyio.sleep(job[1])
            return clock()

        async with pipeline_of(work).open() as app:
            begin = clock()
            jobs = [(0, 10.0), (1, 1.0), (0, 1.0), (1, 1.0)]
            ends = await asyncio.gather(*(app.run((job,)) for job in jobs))
            assert [end - begin for (end,) in ends] == [10.0, 1.0, 11.0, 2.0]

    async def test_no_router_is_asked_while_results_have_no_room(self) -> None:
        """An item goes to a replica when it could start there, which a full edge forbids."""
        router = Asked()

        @alto.stage
        async def slowly(n: int) -> AsyncIterator[int]:
            for k in range(n):
                yield k
                await anyio.sleep(5)

        @alto.stage(replicas=2, router=router)
        async def work(k: int) -> int:
            return k

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[int]:
            return work(slowly(n))

        async with p.open(capacity=2) as app, app.stream(6) as got:
            await anyio.sleep(17)
            assert app.statistics().stages["work"].waiting == 2
            assert [item.value for item in router.items] == [0, 1]
            assert await got.list() == [0, 1, 2, 3, 4, 5]

    async def test_calls_that_were_placed_wait_for_a_slow_reader(self) -> None:
        """Calls that have been given to replicas start one by one as their results find room."""

        @alto.stage(replicas=2, concurrency=1)
        async def work(k: int) -> int:
            await anyio.sleep(1)
            return k

        async with pipeline_of(work).open(capacity=2) as app, app.stream(tuple(range(12))) as got:
            seen = []
            for _ in range(6):
                await anyio.sleep(20)
                assert app.statistics().stages["work"].waiting == 2
                seen.append(await anext(got))
            seen += await got.list()
            assert sorted(seen) == list(range(12))

    async def test_a_call_that_waits_inside_alto_makes_room_for_the_next(self) -> None:
        """A call that waits for a pipeline lets its replica start another one meanwhile."""

        @alto.stage(concurrency=8)
        async def nap(seconds: float) -> float:
            await anyio.sleep(seconds)
            return seconds

        @alto.pipeline
        def inner(seconds: alto.Stream[float]) -> alto.Stream[float]:
            return nap(seconds)

        @alto.stage(replicas=2, concurrency=1)
        async def work(k: int) -> int:
            await anyio.sleep(1)
            await inner.run(10.0)
            return k

        async with pipeline_of(work).open() as app:
            begin = clock()
            assert await app.run((0, 1, 2, 3)) == [0, 1, 2, 3]
            assert clock() - begin == 12.0

    async def test_what_waits_for_a_replica_ends_with_its_request(self) -> None:
        """Items that were given to a busy replica never run once their request is cancelled."""
        ran = []

        @alto.stage(replicas=2, concurrency=1, router=Asked())
        async def work(name: str) -> str:
            ran.append(name)
            await anyio.sleep(10)
            return name

        async with pipeline_of(work).open() as app:
            async with app.stream(("first",)) as first:
                async with app.stream(("a", "b")):
                    await anyio.sleep(1)
                    now = app.statistics().stages["work"].replicas
                    assert [(one.running, one.waiting) for one in now] == [(1, 2), (0, 0)]
                    begin = clock()
                assert clock() == begin
                now = app.statistics().stages["work"].replicas
                assert [(one.running, one.waiting) for one in now] == [(1, 0), (0, 0)]
                loads = node_of(app, "work").binding.loads
                assert [load.unfinished for load in loads.values()] == [1, 0]
                assert await first.list() == ["first"]
            assert ran == ["first"]


class TestGroups:
    """What a router is told of groups, and how their calls wait."""

    async def test_a_router_of_groups_sees_who_is_free(self) -> None:
        """Of a group it is told how many calls each replica could start now, and how long one takes."""
        router = Asked(lambda item: item.path[0] % 2)

        @alto.stage
        async def later(k: int) -> AsyncIterator[int]:
            await anyio.sleep(k)
            yield k

        @alto.stage(replicas=2, concurrency=1, router=router)
        async def gather(group: alto.Group[int]) -> int:
            pieces = await group.list()
            await anyio.sleep(1.5)
            return sum(pieces)

        def whole(jobs: alto.Stream[Any]) -> alto.Stream[int]:
            return gather(later(each(jobs)))

        async with alto.pipeline(whole).open() as app:
            assert await app.run((0, 1, 4)) == [0, 1, 4]
        assert [item.group for item in router.items] == [True] * 3
        assert router.free == [(1, 1), (0, 1), (1, 1)]
        assert router.seconds == [(None, None), (None, None), (1.5, 1.5)]

    async def test_the_time_of_a_call_is_what_it_worked(self) -> None:
        """Of a call that waits inside alto, a router is told how long it ran before and after."""

        @alto.stage(concurrency=8)
        async def nap(seconds: float) -> float:
            await anyio.sleep(seconds)
            return seconds

        @alto.pipeline
        def inner(seconds: alto.Stream[float]) -> alto.Stream[float]:
            return nap(seconds)

        router = Asked()

        @alto.stage(replicas=2, concurrency=1, router=router)
        async def work(k: int) -> int:
            await anyio.sleep(1)
            await inner.run(10.0)
            await anyio.sleep(2)
            return k

        async with pipeline_of(work).open() as app:
            await app.run((0,))
            await app.run((1,))
        assert router.seconds == [(None, None), (3.0, None)]

    async def test_bound_calls_wait_for_a_slow_reader(self) -> None:
        """Calls of groups that have no room for their results start one by one as it comes."""
        started = []

        @alto.stage
        async def piece(k: int) -> AsyncIterator[int]:
            yield k

        @alto.stage(replicas=2, concurrency=1)
        async def gather(group: alto.Group[int]) -> int:
            (k,) = await group.list()
            started.append(k)
            return k

        def whole(jobs: alto.Stream[Any]) -> alto.Stream[int]:
            return gather(piece(each(jobs)))

        async with alto.pipeline(whole).open(capacity=1) as app:
            seen = []
            async with app.stream(tuple(range(12))) as results:
                async for result in results:
                    seen.append(result)
                    await anyio.sleep(1)
                    assert len(started) <= len(seen) + 3
            assert sorted(seen) == list(range(12))


class TestScaling:
    """Replicas that come and go in the middle of things."""

    async def test_a_new_replica_takes_at_once_what_waits(self) -> None:
        """What stands in line starts in the moment in which there is a replica for it."""

        @alto.stage(concurrency=1)
        async def work(k: int) -> int:
            await anyio.sleep(10)
            return k

        async with pipeline_of(work).open() as app:
            for width in (2, 3):  # From one, which is not routed, and from several.
                begin = clock()
                async with app.stream(tuple(range(width))) as got:
                    await anyio.sleep(0.5)
                    await app.scale("work", width)
                    assert len(await got.list()) == width
                assert clock() - begin == 10.5
                loads = node_of(app, "work").binding.loads
                assert [load.unfinished for load in loads.values()] == [0] * width

    async def test_what_is_taken_back_keeps_its_order(self) -> None:
        """Items that waited for a replica which goes start in the order in which they came."""
        begun = []

        @alto.stage(replicas=2, concurrency=1, router=Asked())
        async def work(k: int) -> int:
            begun.append(k)
            await anyio.sleep(1)
            return k

        async with pipeline_of(work).open(capacity=4) as app, app.stream(tuple(range(10))) as got:
            await anyio.sleep(0.5)
            node = node_of(app, "work")
            node.drain(0, app._host.runs_at(node))
            assert sorted(await got.list()) == list(range(10))
        assert begun == list(range(10))

    async def test_a_replica_stays_until_a_cancelled_call_has_cleaned_up(self) -> None:
        """What a replica has of its own is there as long as the call of a dropped group runs."""
        closed: list[int] = []
        cleaned: list[bool] = []

        @asynccontextmanager
        async def made(number: int) -> AsyncIterator[int]:
            yield number
            closed.append(number)

        @alto.stage(replicas=2, router=Asked(lambda item: 1))
        async def gather(ks: alto.Group[int], *, own: int) -> int:
            try:
                await anyio.sleep(100)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)
                cleaned.append(own in closed)
            return own

        async with pipeline_of(gather).open(own=alto.per_replica(made)) as app:
            async with app.stream((1, 2)):
                await anyio.sleep(1)
                node = node_of(app, "gather")
                node.drain(1, app._host.runs_at(node))
                await anyio.sleep(1)
            await anyio.sleep(1)
            assert (cleaned, closed) == ([False], [1])

    async def test_cancelled_scaling_waits_until_all_is_given_back(self) -> None:
        """Scaling that is cut ends when what it had begun is gone, however long that takes."""
        entered = []

        @asynccontextmanager
        async def slow(number: int) -> AsyncIterator[int]:
            entered.append(number)
            try:
                if number == 2:
                    await anyio.sleep_forever()
                yield number
            finally:
                await anyio.sleep(5)
                entered.remove(number)

        @alto.stage
        async def work(k: int, *, own: int) -> int:
            return k + own

        async with pipeline_of(work).open(own=alto.per_replica(slow)) as app:
            begin = clock()
            with anyio.move_on_after(1):
                await app.scale("work", 3)
            assert clock() - begin == 6.0
            assert entered == [0]

    async def test_one_scaling_waits_for_another(self) -> None:
        """Of two that want the same, at once, the second finds it done; a closed app makes nothing."""
        made = []

        async def slow(number: int) -> int:
            made.append(number)
            await anyio.sleep(5)
            return number

        @alto.stage
        async def work(k: int, *, own: int) -> int:
            return k + own

        async with anyio.create_task_group() as tasks:
            async with pipeline_of(work).open(own=alto.per_replica(slow)) as app:
                await asyncio.gather(app.scale("work", 3), app.scale("work", 3))
                assert len(app.statistics().stages["work"].replicas) == 3

                async def scale(replicas: int) -> None:
                    with pytest.raises(alto.Closed):
                        await app.scale("work", replicas)

                for replicas in (4, 5, 1):
                    tasks.start_soon(scale, replicas)
                await anyio.sleep(1)
            await anyio.sleep(100)
        assert made == [0, 1, 2, 3]
