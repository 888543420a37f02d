"""Turns: by priority, then by the request that the program started, whatever it calls inside."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alto
from alto.events import CallStarted, RequestEnded
from alto.testing import RecordedEvents, run_virtual


@alto.stage(concurrency=1)
async def busy(name: str) -> str:
    """A second of the one stage that everybody needs."""
    await asyncio.sleep(1)
    return name


@alto.pipeline
def small(name: alto.Stream[str]) -> alto.Stream[str]:
    """One call."""
    return busy(name)


@alto.stage
async def agent(calls: int) -> list[str]:
    """Calls a pipeline many times, at once, as tasks."""
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(small.run(f"large {k}")) for k in range(calls)]
    return [task.result()[0] for task in asked]


@alto.pipeline
def large(calls: alto.Stream[int]) -> alto.Stream[list[str]]:
    """An agent."""
    return agent(calls)


@alto.stage
async def routes(work: int | str) -> Any:
    """The one or the other, in one app, so that all meet at `busy`."""
    return await (small.run(work) if isinstance(work, str) else large.run(work))


@alto.pipeline
def service(work: alto.Stream[int | str]) -> alto.Stream[Any]:
    """What the program runs."""
    return routes(work)


@pytest.mark.parametrize(("after", "ends"), [(0, 1), (0.5, 2), (50.5, 52)])
async def test_a_small_request_beside_one_that_calls_200_pipelines(
    after: float, ends: float
) -> None:
    """It waits for the call that runs, and not for two hundred."""
    clock = asyncio.get_running_loop().time
    async with service.open() as app:
        begin = clock()
        large_one = app.stream(200)
        await asyncio.sleep(after)
        assert await app.run("small") == [["small"]]
        assert clock() - begin == pytest.approx(ends)
        [[results]] = await large_one.list()
        assert results == [f"large {k}" for k in range(200)]
        assert clock() - begin == pytest.approx(201)  # Nothing was idle meanwhile.


async def test_five_small_requests_beside_a_large_one_take_turns() -> None:
    """Each of six has every sixth turn as long as it needs one."""
    clock = asyncio.get_running_loop().time
    ended: list[tuple[str, float]] = []

    async def ask(app: Any, name: str) -> None:
        for _ in range(2):
            await app.run(name)
            ended.append((name, clock() - begin))

    async with service.open() as app:
        begin = clock()
        async with app.stream(100) as large_one:
            await asyncio.sleep(0.5)
            async with asyncio.TaskGroup() as tasks:
                for k in range(5):
                    tasks.create_task(ask(app, f"small {k}"))
            assert [name for name, _ in ended] == [f"small {k % 5}" for k in range(10)]
            assert [at for _, at in ended] == pytest.approx([2, 3, 4, 5, 6, 8, 9, 10, 11, 12])
            large_one.cancel()


async def test_a_small_request_beside_one_with_many_items() -> None:
    """Also where the large one is a single queue, and passes its permit from call to call."""
    clock = asyncio.get_running_loop().time

    @alto.stage
    async def names(n: int) -> AsyncIterator[str]:
        for k in range(n):
            yield f"{n}.{k}"

    @alto.pipeline
    def fan(n: alto.Stream[int]) -> alto.Stream[str]:
        return busy(names(n))

    recorded = RecordedEvents()
    async with fan.open(observers=[recorded]) as app:
        begin = clock()
        large_one = app.stream(200)
        await asyncio.sleep(0.5)
        for turn in range(3):
            assert await app.run(1) == ["1.0"]
            assert clock() - begin == pytest.approx(2 * (turn + 1))
        await large_one.aclose()
    calls = [call for call in recorded.of(CallStarted) if call.stage == "fan.busy"]
    own = [call.path for call in calls if call.request == large_one.id]
    assert own == [(k,) for k in range(len(own))]


async def test_calls_of_one_request_go_in_the_order_in_which_they_came() -> None:
    """Its pipelines take turns too: first come, first served."""
    started: list[float] = []

    @alto.stage
    async def one_by_one(calls: int) -> AsyncIterator[str]:
        clock = asyncio.get_running_loop().time

        async def call(k: int) -> str:
            await asyncio.sleep(k / 100)
            [name] = await small.run(str(k))
            started.append(clock())
            return name

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(call(k)) for k in range(calls)]
        for task in asked:
            yield task.result()

    @alto.pipeline
    def p(calls: alto.Stream[int]) -> alto.Stream[str]:
        return one_by_one(calls)

    recorded = RecordedEvents([RequestEnded])
    async with p.open(observers=[recorded]) as app:
        assert await app.run(10) == [str(k) for k in range(10)]
    numbers = [int(one.request.rpartition("-")[2]) for one in recorded.of(RequestEnded)]
    assert numbers[:-1] == sorted(numbers[:-1])
    assert started == pytest.approx([k + 1 for k in range(10)])


async def test_priority_counts_at_a_stage_that_is_busy() -> None:
    """The next permit goes to the lowest number, whoever came first."""
    clock = asyncio.get_running_loop().time
    ended: list[tuple[str, float]] = []

    async def ask(app: Any, name: str, priority: int) -> None:
        await app.run(name, priority=priority)
        ended.append((name, clock() - begin))

    async with small.open() as app:
        begin = clock()
        async with asyncio.TaskGroup() as tasks:
            for k in range(3):
                tasks.create_task(ask(app, f"low {k}", 5))
            await asyncio.sleep(0.5)
            tasks.create_task(ask(app, "urgent", -1))
            tasks.create_task(ask(app, "normal", 0))
            await asyncio.sleep(1)
            tasks.create_task(ask(app, "more urgent", -2))
    assert [name for name, _ in ended] == [
        "low 0", "urgent", "more urgent", "normal", "low 1", "low 2",
    ]  # fmt: skip
    assert [at for _, at in ended] == pytest.approx([1, 2, 3, 4, 5, 6])


async def test_priority_goes_on_to_pipelines_that_a_stage_calls() -> None:
    """An agent of a low priority steps back with every one of its calls."""
    clock = asyncio.get_running_loop().time
    async with service.open() as app:
        begin = clock()
        async with app.stream(50, priority=1) as slow:
            await asyncio.sleep(0.5)
            async with asyncio.TaskGroup() as tasks:
                fast = [tasks.create_task(app.run(4)) for _ in range(2)]
            assert clock() - begin == pytest.approx(9)  # One call that ran, and the eight of these.
            assert [len(one.result()[0][0]) for one in fast] == [4, 4]
            slow.cancel()


async def test_a_map_has_a_priority() -> None:
    """``map(priority=)`` is that of each of its requests."""
    clock = asyncio.get_running_loop().time
    async with small.open() as app:
        begin = clock()
        batch = app.map([f"batch {k}" for k in range(20)], concurrency=20, priority=9)
        reading = asyncio.ensure_future(batch.list())
        await asyncio.sleep(0.5)
        urgent = app.map(["urgent 0", "urgent 1"], priority=-1)
        assert [one.unwrap() async for one in urgent] == [["urgent 0"], ["urgent 1"]]
        assert clock() - begin == pytest.approx(3)
        assert await app.run("normal") == ["normal"]
        assert clock() - begin == pytest.approx(5)  # After the one of the batch that had begun.
        assert len(await reading) == 20
        assert clock() - begin == pytest.approx(23)


async def test_replicas_take_turns_by_request_too() -> None:
    """Where a router places calls, a small request is not behind the hundred of another one either."""
    clock = asyncio.get_running_loop().time

    @alto.stage(replicas=2, concurrency=1)
    async def spread(name: str) -> str:
        await asyncio.sleep(1)
        return name

    @alto.stage
    async def names(n: int) -> AsyncIterator[str]:
        for k in range(n):
            yield f"{n}.{k}"

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[str]:
        return spread(names(n))

    async with p.open() as app:
        begin = clock()
        large_one = app.stream(100)
        await asyncio.sleep(0.5)
        assert await app.run(1) == ["1.0"]
        assert clock() - begin == pytest.approx(2)
        assert await app.run(2, priority=-1) == ["2.0", "2.1"]
        assert clock() - begin == pytest.approx(4)  # At 2 s two calls had just begun, till 3 s.
        await large_one.aclose()


# ---- the property


@attrs.frozen(kw_only=True)
class Asked:
    """A request that the program starts: a tree of calls of the one stage."""

    name: str
    priority: int
    at: int
    tree: tuple[Any, ...]
    """Per child a tree; a leaf is one call of `busy`, a node runs its children at once."""

    @property
    def calls(self) -> int:
        """How many calls of `busy` it makes."""
        return _leaves(self.tree)


def _leaves(tree: tuple[Any, ...]) -> int:
    return sum(map(_leaves, tree)) if tree else 1


trees = st.recursive(
    st.just(()), lambda inside: st.lists(inside, min_size=1, max_size=4).map(tuple), max_leaves=9
)


@st.composite
def requests_(draw: st.DrawFn) -> list[Asked]:
    """A few requests, of one or several priorities."""
    count = draw(st.integers(2, 4))
    levels = draw(st.sampled_from([(0,), (0, 1), (-3, 0, 7)]))
    return [
        Asked(
            name=f"r{k}", priority=draw(st.sampled_from(levels)), at=draw(st.integers(0, 4)),
            tree=draw(trees),
        )
        for k in range(count)
    ]  # fmt: skip


class Served:
    """Writes down who waits for the one permit of a stage, and who gets it."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.passed: dict[str, Counter[str]] = {}
        self.priority: dict[str, int] = {}
        self.running: str | None = None
        self.faults: list[str] = []

    def comes(self, name: str) -> None:
        """A call of that request has all it needs."""
        self.waiting[name] += 1

    def begins(self, name: str) -> None:
        """A call begins: it was its turn."""
        if self.running is not None:
            self.faults.append(f"{name} beside {self.running}")
        self.waiting[name] -= 1
        mine = self.priority[name]
        waiting = [one for one, calls in self.waiting.items() if calls]
        if any(self.priority[one] < mine for one in waiting):
            self.faults.append(f"{name} of priority {mine} went before {waiting}")
        for other in waiting:
            if other != name and self.priority[other] == mine:
                passed = self.passed.setdefault(other, Counter())
                passed[name] += 1
                if passed[name] > 1:
                    self.faults.append(f"{name} had {passed[name]} turns while {other} waited")
        self.passed.pop(name, None)
        self.running = name

    def ends(self) -> None:
        """It has ended."""
        self.running = None


@settings(max_examples=150)
@given(requests_())
def test_turns_are_fair_by_root_and_priority(requests: list[Asked]) -> None:
    """No request waits for two calls of another of its priority, nor for one of a higher number."""
    # However deep its calls are in pipelines that call pipelines; and the stage is never idle while
    # something waits for it, so the time is that of all calls.
    served = Served()

    @alto.stage(concurrency=1)
    async def one(name: str) -> str:
        served.begins(name)
        await asyncio.sleep(1)
        served.ends()
        return name

    @alto.pipeline
    def single(name: alto.Stream[str]) -> alto.Stream[str]:
        return one(name)

    @alto.stage(concurrency=1000)
    async def tree(work: tuple[str, Any]) -> int:
        name, below = work
        if not below:
            served.comes(name)
            return len(await single.run(name))
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(again.run((name, child))) for child in below]
        return sum(part.result()[0] for part in parts)

    @alto.pipeline
    def again(work: alto.Stream[tuple[str, Any]]) -> alto.Stream[int]:
        return tree(work)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends: dict[str, float] = {}

        async def ask(request: Asked) -> None:
            await asyncio.sleep(request.at + 0.5)
            served.priority[request.name] = request.priority
            work = (request.name, request.tree)
            assert await app.run(work, priority=request.priority) == [request.calls]
            ends[request.name] = loop.time() - begin

        async with again.open() as app:
            begin = loop.time()
            async with asyncio.TaskGroup() as tasks:
                for request in requests:
                    tasks.create_task(ask(request))
        assert served.faults == []
        # Busy without a pause from the first to the last call that somebody waits for.
        now = 0.0
        for request in sorted(requests, key=lambda one: one.at):
            now = max(now, request.at + 0.5) + request.calls
        assert max(ends.values()) == pytest.approx(now)

    run_virtual(main)
