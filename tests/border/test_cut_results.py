"""Reads that are cut: of groups, handles, inner handles and maps. Nothing is lost, and the end is the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto.testing import run_virtual

Read: TypeAlias = Callable[[], Awaitable[Any]]
Cut: TypeAlias = Callable[[Read, float], Awaitable[Any]]

TIMES = (0.5, 3.0, 0.0, 1.0, 7.5, 0.25)
"""Seconds before each item."""


# ---- ways to cut a read; each raises TimeoutError where it was cut


async def by_wait_for(read: Read, seconds: float) -> Any:
    """In a task of its own before Python 3.12."""
    return await asyncio.wait_for(read(), seconds)


async def by_nested_wait_for(read: Read, seconds: float) -> Any:
    """With a longer limit of somebody else around it."""
    return await asyncio.wait_for(asyncio.wait_for(read(), seconds), 1e6)


async def by_timeout(read: Read, seconds: float) -> Any:
    """In the same task."""
    async with asyncio.timeout(seconds):
        return await read()


async def by_move_on_after(read: Read, seconds: float) -> Any:
    """Likewise, with a cancel scope."""
    with anyio.move_on_after(seconds):
        return await read()
    raise TimeoutError


async def by_task(read: Read, seconds: float) -> Any:
    """A task that is cancelled where it takes too long."""
    task = asyncio.ensure_future(read())
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if task.cancelled():
        raise TimeoutError
    return task.result()


async def by_group(read: Read, seconds: float) -> Any:
    """A task group whose scope is cancelled."""
    got: list[Any] = []
    ends: list[BaseException] = []

    async def one() -> None:
        try:
            got.append(await read())
        except StopAsyncIteration as end:
            ends.append(end)

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
    if ends:
        raise ends[0]
    if got:
        return got[0]
    raise TimeoutError


CUTS: list[Cut] = [by_wait_for, by_nested_wait_for, by_timeout, by_move_on_after, by_task, by_group]


async def beat(
    read: Read, cut: Cut, seconds: list[float], rest: float = 0.0
) -> tuple[list[Any], int]:
    """Read to the end with a time limit for each read; the items, and how many reads were cut."""
    items: list[Any] = []
    beats = tries = 0
    while True:
        limit = seconds[tries % len(seconds)]
        tries += 1
        try:
            items.append(await cut(read, limit))
        except StopAsyncIteration:
            return items, beats
        except TimeoutError:
            beats += 1
            assert beats < 10_000
            if rest:
                await asyncio.sleep(rest)


# ---- what is read


@alto.stage
async def timed(times: tuple[float, ...]) -> AsyncIterator[int]:
    """0, 1, ... with a pause before each."""
    for k, seconds in enumerate(times):
        await asyncio.sleep(seconds)
        yield k


@alto.stage
async def wait(seconds: float) -> float:
    """One number, later."""
    await asyncio.sleep(seconds)
    return seconds


@alto.pipeline
def counted(times: alto.Stream[tuple[float, ...]]) -> alto.Stream[int]:
    """The plain one."""
    return timed(times)


@alto.pipeline
def waited(seconds: alto.Stream[float]) -> alto.Stream[float]:
    """One result per request."""
    return wait(seconds)


class Beating:
    """How reads are cut in a stage."""

    def __init__(self, cut: Cut, seconds: list[float], rest: float) -> None:
        self.all = cut, seconds, rest


@alto.stage
async def beat_group(group: alto.Group[int], *, how: Beating) -> tuple[list[int], int]:
    """The group itself, without an iterator."""
    return await beat(group.__anext__, *how.all)


@alto.stage(order="arrival")
async def beat_group_as_it_comes(group: alto.Group[int], *, how: Beating) -> tuple[list[int], int]:
    """The same in the other order."""
    return await beat(group.__anext__, *how.all)


@alto.stage
async def beat_pieces(group: alto.Group[int], *, how: Beating) -> tuple[list[int], int]:
    """One iteration over it."""
    return await beat(aiter(group).__anext__, *how.all)


@alto.stage
async def beat_inner(times: tuple[float, ...], *, how: Beating) -> tuple[list[int], int]:
    """A pipeline that is called."""
    return await beat(counted.stream(times).__anext__, *how.all)


@alto.stage
async def beat_inner_loop(times: tuple[float, ...], *, how: Beating) -> tuple[list[int], int]:
    """The iterator over one."""
    return await beat(aiter(counted.stream(times)).__anext__, *how.all)


def over(stage: Any) -> Any:
    """The pipeline of a stage over a group."""

    @alto.pipeline
    def p(times: alto.Stream[tuple[float, ...]]) -> alto.Stream[tuple[list[int], int]]:
        return stage(timed(times))

    return p


def calling(stage: Any) -> Any:
    """The pipeline of a stage that calls another."""

    @alto.pipeline
    def p(times: alto.Stream[tuple[float, ...]]) -> alto.Stream[tuple[list[int], int]]:
        return stage(times)

    return p


IN_STAGES = {
    "group": over(beat_group),
    "group as it comes": over(beat_group_as_it_comes),
    "pieces": over(beat_pieces),
    "inner": calling(beat_inner),
    "inner loop": calling(beat_inner_loop),
}
HANDLES = ("handle", "handle's loop", "ordered handle", "map", "map's loop", "async map")


async def slow_source(times: tuple[float, ...]) -> AsyncIterator[float]:
    """Inputs that come over time."""
    for seconds in times:
        await asyncio.sleep(seconds / 2)
        yield seconds / 2


async def beaten(
    what: str, cut: Cut, seconds: list[float], rest: float, times: tuple[float, ...], capacity: int
) -> tuple[list[Any], int]:
    """Read *what* in beats; the app is idle afterwards."""
    if what in IN_STAGES:
        pipeline = IN_STAGES[what]
        async with pipeline.open(how=Beating(cut, seconds, rest), capacity=capacity) as app:
            fresh = app.statistics()
            (found,) = await app.run(times)
            assert app.statistics() == fresh
            return found  # type: ignore[no-any-return]
    if "map" in what:
        async with waited.open(capacity=capacity) as app:
            fresh = app.statistics()
            source: Any = slow_source(times) if "async" in what else times
            results = app.map(source, concurrency=2)
            reader: Any = aiter(results) if "loop" in what else results
            records, beats = await beat(reader.__anext__, cut, seconds, rest)
            assert [record.input for record in records] == [
                one / (2 if "async" in what else 1) for one in times
            ]
            await asyncio.sleep(0)
            assert app.statistics() == fresh
            return [record.index for record in records], beats
    async with counted.open(capacity=capacity) as app:
        fresh = app.statistics()
        handle = app.stream(times, order="ancestry" if "ordered" in what else "arrival")
        reader = aiter(handle) if "loop" in what else handle
        found = await beat(reader.__anext__, cut, seconds, rest)
        assert app.statistics() == fresh
        return found


@pytest.mark.parametrize("rest", [0.0, 2.0], ids=["at once", "after a rest"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("what", [*IN_STAGES, *HANDLES])
async def test_a_heartbeat_loses_nothing_and_ends(what: str, cut: Cut, rest: float) -> None:
    """A read that was cut is made again, also after a while in which something else is done."""
    items, beats = await beaten(what, cut, [1.0], rest, TIMES, 32)
    assert items == list(range(len(TIMES)))
    assert beats >= 2


@given(
    what=st.sampled_from([*IN_STAGES, *HANDLES]),
    cut=st.sampled_from(CUTS),
    seconds=st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=4),
    rest=st.sampled_from([0.0, 0.25, 1.0]),
    times=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), max_size=6).map(tuple),
    capacity=st.sampled_from([1, 2, 32]),
)
def test_reads_that_are_cut_at_any_time(
    what: str, cut: Cut, seconds: list[float], rest: float, times: tuple[float, ...], capacity: int
) -> None:
    """Also in the very moment in which there is something to read."""
    items, _ = run_virtual(beaten, what, cut, seconds, rest, times, capacity)
    assert items == list(range(len(times)))


# ---- several groups of one call


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("order", ["ancestry", "arrival"])
async def test_groups_that_are_read_in_turns_with_cuts(cut: Cut, order: Any) -> None:
    """At capacity 1 nothing deadlocks, and a group is bounded again when a read of another was cut."""
    made = {"a": 0, "b": 0}

    @alto.stage
    async def slow(n: int) -> AsyncIterator[int]:
        for k in range(n):
            await asyncio.sleep(3)
            made["a"] += 1
            yield k

    @alto.stage
    async def quick(n: int) -> AsyncIterator[int]:
        for k in range(n):
            await asyncio.sleep(0.25)
            made["b"] += 1
            yield k

    @alto.stage(order=order)
    async def in_turns(one: alto.Group[int], other: alto.Group[int]) -> tuple[list[int], list[int]]:
        found: tuple[list[int], list[int]] = ([], [])
        open_ = {0: aiter(one), 1: aiter(other)}
        while open_:
            for k, pieces in list(open_.items()):
                try:
                    found[k].append(await cut(pieces.__anext__, 1.0))
                except StopAsyncIteration:
                    del open_[k]
                except TimeoutError:
                    before = made["b"]
                    await asyncio.sleep(50)  # Nothing starves: a piece in hand, and the capacity.
                    assert made["b"] <= max(before + 1, len(found[1]) + 2)
        return found

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[tuple[list[int], list[int]]]:
        return in_turns(slow(n), quick(n))

    async with p.open(capacity=1) as app:
        fresh = app.statistics()
        numbers = list(range(8))
        assert await app.run(8) == [(numbers, numbers)]
        assert app.statistics() == fresh


# ---- misuse


@alto.stage
async def read_twice(group: alto.Group[int], *, seen: list[BaseException]) -> list[int]:
    """Two tasks at the same group, which has begun with its first piece."""
    found = [await anext(group)]
    first = asyncio.ensure_future(anext(group))
    await asyncio.sleep(0)
    try:
        await anext(group)
    except RuntimeError as error:
        seen.append(error)
    return [*found, await first, *[piece async for piece in group]]


async def test_a_second_reader_is_refused_and_the_first_reads_on() -> None:
    """The error says that another task reads, and nothing is lost."""
    seen: list[BaseException] = []

    @alto.pipeline
    def p(times: alto.Stream[tuple[float, ...]]) -> alto.Stream[list[int]]:
        return read_twice(timed(times))

    async with p.open(seen=seen) as app:
        assert await app.run((1.0, 1.0, 1.0)) == [[0, 1, 2]]
    assert "another task is already reading this Group" in str(seen[0])

    async with counted.open() as app, app.stream((1.0, 1.0)) as handle:
        first = asyncio.ensure_future(anext(handle))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task is already reading this stream"):
            await anext(handle)
        with pytest.raises(RuntimeError, match="another task is already reading this stream"):
            await handle.list()
        assert await first == 0
        assert await handle.list() == [1]

    async with waited.open() as other, other.map([1.0, 2.0]) as results:
        second = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task is already reading this map"):
            await anext(results)
        assert (await second).index == 0
        assert [record.index for record in await results.list()] == [1]


async def test_what_a_slow_reader_can_read_after_the_deadline() -> None:
    """Results that were there when the time was over come before the error, which comes once."""
    async with counted.open() as app:
        handle = app.stream((1.0, 1.0, 1.0, 1.0), timeout=2.5)
        await asyncio.sleep(60)
        assert [await anext(handle), await anext(handle)] == [0, 1]
        with pytest.raises(alto.DeadlineExceeded):
            await anext(handle)
        with pytest.raises(StopAsyncIteration):
            await anext(handle)
