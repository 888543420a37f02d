"""Stages that never suspend: the loop is given back, and the first result is read before the second.

No real time: the workers' clock is one that the stages move, by what their code would have taken.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

import alto
from alto._runtime import host as host_module
from alto._runtime.worker import Worker, clock_of
from alto.testing import VirtualClockLoop

SLICE = 0.005
"""Seconds after which a worker gives the loop back."""


class Work:
    """What stages take of the processor, and in which order they work."""

    def __init__(self) -> None:
        self.now = 0.0
        self.each = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        """The workers' clock."""
        return self.now

    def on(self, what: str) -> None:
        """Work on something, without suspending."""
        self.now += self.each
        self.log.append(what)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """A clock that only moves as stages work."""
    work = Work()
    monkeypatch.setattr(host_module, "clock_of", lambda loop: work)
    return work


def chain(work: Work, kind: str) -> tuple[Any, str]:
    """A pipeline whose stages never suspend, and the name of its last one."""

    @alto.stage
    async def gen(n: int) -> AsyncIterator[int]:
        for k in range(n):
            work.on(f"gen{k}")
            yield k

    @alto.stage
    async def one(k: int) -> int:
        work.on(f"one{k}")
        return k

    @alto.stage(concurrency=1)
    async def last(k: int) -> int:
        work.on(f"last{k}")
        return k

    @alto.stage
    async def each(k: int) -> AsyncIterator[int]:
        work.on(f"each{k}")
        yield k

    @alto.stage(replicas=2)
    async def spread(k: int) -> int:
        work.on(f"spread{k}")
        return k

    @alto.stage
    async def both(a: int, b: int) -> int:
        work.on(f"both{a}")
        return a

    def joined(n: alto.Stream[int]) -> alto.Stream[int]:
        ks = gen(n)
        return both(ks, one(ks))

    chains: dict[str, tuple[Callable[[alto.Stream[int]], alto.Stream[int]], str]] = {
        "generator": (gen, "gen"),
        "coroutine": (lambda n: one(gen(n)), "one"),
        "one at a time": (lambda n: last(gen(n)), "last"),
        "three": (lambda n: last(one(gen(n))), "last"),
        "generators": (lambda n: each(one(gen(n))), "each"),
        "replicas": (lambda n: spread(gen(n)), "spread"),
        "four": (lambda n: last(each(one(gen(n)))), "last"),
        "join": (joined, "both"),
    }
    function, name = chains[kind]

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return function(n)

    return p, name


KINDS = {
    "generator": 1, "coroutine": 2, "one at a time": 2, "three": 3, "generators": 3, "replicas": 2,
    "four": 4, "join": 3,
}  # fmt: skip


@pytest.mark.parametrize("order", ["arrival", "ancestry"])
@pytest.mark.parametrize("capacity", [1, 32, 1000])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_first_result_is_read_before_the_second_is_made(
    work: Work, kind: str, capacity: int, order: Any
) -> None:
    """Also where the code takes no time at all, and whatever the capacity is."""
    p, name = chain(work, kind)
    async with p.open(capacity=capacity) as app:
        async for k in app.stream(40, order=order):
            work.log.append(f"read{k}")
        first = work.log.index("read0")
        assert f"{name}1" not in work.log[:first]
        read = [one for one in work.log if one.startswith("read")]
        assert sorted(read) == sorted(f"read{k}" for k in range(40))
        again = len(work.log)
        async with app.stream(40, order=order) as results:  # A warm app is as quick as a new one.
            assert await anext(results) == 0
            assert f"{name}1" not in work.log[again:]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_first_result_comes_after_little_work(work: Work, kind: str) -> None:
    """Where an item takes as long as a slice, stages work in turns: none fills a buffer first."""
    p, _ = chain(work, kind)
    work.each, stages = SLICE, KINDS[kind]
    async with p.open() as app, app.stream(40) as results:
        assert await anext(results) == 0
        assert work.now <= stages * (stages + 1) / 2 * SLICE + 1e-9
        assert sorted(await results.list()) == list(range(1, 40))


@pytest.mark.parametrize("reads", [True, False], ids=["stream", "run"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_loop_is_given_back_every_few_milliseconds(
    work: Work, kind: str, reads: bool
) -> None:
    """Between two turns of another task no worker has more than a slice, and the item it is at."""
    p, _ = chain(work, kind)
    work.each = 0.001
    turns = [0.0]

    async def ticks() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(work.now)

    async with p.open(capacity=1000) as app:
        ticking = asyncio.ensure_future(ticks())
        await asyncio.sleep(0)
        if reads:
            assert sorted([k async for k in app.stream(300)]) == list(range(300))
        else:
            assert await app.run(300) == list(range(300))
        ticking.cancel()
        await asyncio.wait([ticking])
    longest = max(after - before for before, after in itertools.pairwise(turns))
    assert longest <= KINDS[kind] * (SLICE + work.each) + 1e-9
    assert work.now >= 300 * KINDS[kind] * work.each - 1e-9 or kind == "join"


@pytest.mark.parametrize("reads", [True, False], ids=["stream", "run"])
@pytest.mark.parametrize("kind", KINDS)
async def test_little_work_is_done_without_pauses(
    work: Work, kind: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``run`` never pauses for a reader, ``stream`` only before the first result is read."""
    p, _ = chain(work, kind)
    work.each = 0.00002
    items, turns, suspended = 2000, 0, 0
    suspends = Worker.on_suspend

    def counted(worker: Worker) -> None:
        nonlocal suspended
        suspended += 1
        suspends(worker)

    monkeypatch.setattr(Worker, "on_suspend", counted)

    async def ask() -> list[int]:
        if reads:
            return sorted([k async for k in app.stream(items)])
        return await app.run(items)

    async with p.open() as app:
        asked = asyncio.ensure_future(ask())
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        assert await asked == list(range(items))
    # A stage waits for the one behind it each time that as many items as the capacity, 32, wait.
    assert turns < 4 * items / 32 * KINDS[kind]
    assert suspended < 4 * items / 32 * KINDS[kind]
    if kind == "generator" and not reads:
        assert turns < 2 * items * work.each / SLICE + 10


@pytest.mark.parametrize("order", ["arrival", "ancestry"])
@pytest.mark.parametrize("kind", ["last", "each"])
async def test_the_first_of_many_that_wait_is_read_first(work: Work, kind: str, order: Any) -> None:
    """Also where the last stage has all it needs at once, and a whole slice for it."""
    gate = asyncio.Event()

    @alto.stage
    async def gen(n: int) -> AsyncIterator[int]:
        await gate.wait()
        for k in range(n):
            yield k

    @alto.stage(concurrency=1)
    async def last(k: int) -> int:
        if not k:
            await gate.wait()
            await asyncio.sleep(1)
        work.on(f"last{k}")
        return k

    @alto.stage(concurrency=1)
    async def each(k: int) -> AsyncIterator[int]:
        if not k:
            await gate.wait()
            await asyncio.sleep(1)
        for n in range(2):
            work.on(f"last{2 * k + n}")
            yield 2 * k + n

    stage: Any = {"last": last, "each": each}[kind]

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return stage(gen(n))

    async with p.open() as app:
        async with app.stream(20, order=order) as results:
            gate.set()
            async for k in results:
                work.log.append(f"read{k}")
        assert work.log.index("read0") == work.log.index("last0") + 1
        assert len(work.log) == 80 if kind == "each" else 40


async def test_the_loop_is_given_back_among_many_calls_that_wait(work: Work) -> None:
    """Also where a stage has hundreds of calls before it, none of which suspends."""
    gate, turns = asyncio.Event(), [0.0]

    @alto.stage
    async def gen(n: int) -> AsyncIterator[int]:
        for k in range(n):
            yield k

    @alto.stage(concurrency=1)
    async def last(k: int) -> int:
        if not k:
            await gate.wait()
        work.on(f"last{k}")
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return last(gen(n))

    work.each = 0.001
    async with p.open(capacity=1000) as app:
        asked = asyncio.ensure_future(app.run(300))
        while app.statistics().stages["last"].waiting < 299:  # noqa: ASYNC110  # nothing says so
            await asyncio.sleep(1)
        gate.set()
        while not asked.done():
            await asyncio.sleep(0)
            turns.append(work.now)
        assert await asked == list(range(300))
    assert max(after - before for before, after in pairwise(turns)) <= SLICE + work.each + 1e-9


async def test_an_open_generator_lets_the_reader_go_first(work: Work) -> None:
    """A generator that is in the middle gives the loop back when its request has its first result."""

    @alto.stage
    async def gen(n: int) -> AsyncIterator[int]:
        for k in range(n):
            work.on(f"gen{k}")
            yield k

    @alto.stage
    async def late(k: int) -> AsyncIterator[int]:
        if k > 3:
            work.on(f"late{k}")
            yield k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return late(gen(n))

    work.each = 0.001
    async with p.open(capacity=1000) as app, app.stream(300) as results:
        assert await anext(results) == 4
        made = work.log.index("late4")
        assert len(work.log) - made <= 3
        results.cancel()


async def test_a_virtual_loop_has_a_clock_that_counts() -> None:
    """So that a test on virtual time is the same on a busy machine; a real loop's measures."""
    counts = clock_of(asyncio.get_running_loop())
    assert isinstance(asyncio.get_running_loop(), VirtualClockLoop)
    first = [counts() for _ in range(5)]
    again = clock_of(asyncio.get_running_loop())
    assert [again() for _ in range(5)] == first
    assert all(0 < after - before < SLICE for before, after in itertools.pairwise(first))
