"""A finished request keeps nothing: no item, no result, no cycle; the collector is off."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, TypeAlias

import anyio
import pytest

import alto

Use: TypeAlias = Callable[[Any], Awaitable[Any]]


class Thing:
    """Counts those that there are."""

    alive: ClassVar[weakref.WeakSet[Thing]] = weakref.WeakSet()

    def __init__(self, number: int) -> None:
        self.number = number
        Thing.alive.add(self)


@pytest.fixture(autouse=True)
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    gc.freeze()  # Nothing of other tests is looked at again: that would take most of the time.
    Thing.alive.clear()
    yield
    gc.unfreeze()
    gc.enable()


@alto.stage
async def parts(n: int) -> AsyncIterator[Thing]:
    """Three, over time."""
    for k in range(3):
        await asyncio.sleep(0.1)
        yield Thing(n + k)


@alto.stage
async def change(thing: Thing) -> Thing:
    """Another one."""
    await asyncio.sleep(0.1)
    return Thing(thing.number + 1)


@alto.stage
async def fail_at_two(thing: Thing) -> Thing:
    """The same, or an error."""
    await asyncio.sleep(0.1)
    if thing.number == 2:
        raise LookupError(thing.number)
    return thing


@alto.stage
async def join(one: Thing, other: Thing) -> Thing:
    """Of two streams."""
    return Thing(one.number + other.number)


@alto.stage
async def gather(group: alto.Group[Thing]) -> Thing:
    """All of them."""
    return Thing(len(await group.list()))


@alto.stage
async def leave(group: alto.Group[Thing]) -> Thing:
    """The first of them."""
    async for thing in group:
        return thing
    raise LookupError


@alto.stage
async def forever(n: int) -> AsyncIterator[Thing]:
    """One per second."""
    while True:
        yield Thing(n)
        await asyncio.sleep(1)


@alto.stage
async def call(n: int) -> Thing:
    """Two pipelines, one of which it leaves."""
    (thing,) = await joined.run(n)
    async for _ in endless.stream(n):
        break
    return thing


@alto.stage
async def impatient(group: alto.Group[Thing]) -> Thing:
    """Its own time is over while it reads."""
    async with asyncio.timeout(0.5):
        await group.list()
    raise LookupError


@alto.stage
async def careful(n: int) -> Thing:
    """Takes its time to clean up."""
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(1)
    return Thing(n)


@alto.pipeline
def limited(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """A time limit in a stage."""
    return impatient(forever(n))


@alto.pipeline
def cleaning(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """Ends late."""
    return careful(n)


@alto.pipeline
def joined(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """Items, a join and a group."""
    things = parts(n)
    return gather(join(change(things), things))


@alto.pipeline
def left(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """A group that is left."""
    things = parts(n)
    return leave(join(change(things), things))


@alto.pipeline
def failing(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """An error in the middle."""
    things = parts(n)
    return gather(join(fail_at_two(things), things))


@alto.pipeline
def endless(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """No end."""
    return forever(n)


@alto.pipeline
def nested(n: alto.Stream[int]) -> alto.Stream[Thing]:
    """Inner requests."""
    return call(n)


async def turns() -> None:
    """Let everything run that can."""
    for _ in range(30):
        await asyncio.sleep(0)


# ---- uses of an app; each gives what the caller has at its end


async def read(handle: Any) -> None:
    """Read to the end, and keep nothing."""
    async for result in handle:
        del result


async def by_run(app: Any) -> Any:
    """The results."""
    return await app.run(1)


async def by_stream(app: Any) -> Any:
    """The same."""
    return [result async for result in app.stream(1)]


async def by_map(app: Any) -> Any:
    """The records."""
    return [record.values async for record in app.map([1, 1])]


async def by_failing_run(app: Any) -> Any:
    """The error, with its traceback."""
    try:
        await app.run(1)
    except alto.RequestError as error:
        return error


async def by_failing_stream(app: Any) -> Any:
    """The same."""
    try:
        await read(app.stream(1))
    except alto.RequestError as error:
        return error


async def by_failing_map(app: Any) -> Any:
    """Of each input."""
    return [record.error async for record in app.map([1, 1])]


async def by_deadline(app: Any) -> Any:
    """Time is over."""
    try:
        await app.run(1, timeout=0.25)
    except alto.DeadlineExceeded as error:
        return error


async def by_streams_deadline(app: Any) -> Any:
    """The same for a reader."""
    try:
        await read(app.stream(1, timeout=0.25))
    except alto.DeadlineExceeded as error:
        return error


async def by_break(app: Any) -> Any:
    """The loop is left."""
    async for _ in app.stream(1):
        break


async def by_maps_break(app: Any) -> Any:
    """The same."""
    async for _ in app.map([1, 1, 1]):
        break


async def by_cancel(app: Any) -> Any:
    """The task."""
    task = asyncio.ensure_future(app.run(1))
    await asyncio.sleep(0.25)
    task.cancel()
    await asyncio.wait({task})
    return task


async def by_two_cancels(app: Any) -> Any:
    """The second while the request cleans up."""
    task = asyncio.ensure_future(app.run(1))
    for _ in range(2):
        await asyncio.sleep(0.25)
        task.cancel()
    await asyncio.wait({task})
    return task


async def by_streams_cancel(app: Any) -> Any:
    """The same for a reader."""
    task = asyncio.ensure_future(read(app.stream(1)))
    await asyncio.sleep(0.25)
    task.cancel()
    await asyncio.wait({task})
    return task


async def by_limit(app: Any) -> Any:
    """A scope around it."""
    with anyio.move_on_after(0.25):
        await app.run(1)


async def by_close(app: Any) -> Any:
    """The handle is closed, and kept."""
    handle = app.stream(1)
    await asyncio.sleep(0.25)
    await handle.aclose()
    return handle


USES: list[tuple[Use, Any, int]] = [
    (by_run, joined, 1),
    (by_run, left, 1),
    (by_run, nested, 1),
    (by_stream, joined, 1),
    (by_stream, left, 1),
    (by_map, joined, 2),
    (by_map, nested, 2),
    (by_failing_run, failing, 1),  # That of the frame in the error's traceback.
    (by_failing_stream, failing, 1),
    (by_failing_map, failing, 2),
    (by_two_cancels, cleaning, 0),
    (by_deadline, joined, 0),
    (by_deadline, endless, 0),
    (by_deadline, nested, 0),
    (by_streams_deadline, joined, 0),
    (by_streams_deadline, endless, 0),
    (by_break, endless, 0),
    (by_maps_break, joined, 0),
    (by_cancel, joined, 0),
    (by_cancel, nested, 0),
    (by_cancel, endless, 0),
    (by_streams_cancel, joined, 0),
    (by_streams_cancel, endless, 0),
    (by_limit, joined, 0),
    (by_close, endless, 0),
    (by_close, nested, 0),
]


@pytest.mark.parametrize(("use", "pipeline", "results"), USES)
async def test_what_the_caller_has_is_all_there_is(use: Use, pipeline: Any, results: int) -> None:
    """Items are gone when the request has ended, results with the caller's last reference."""
    async with pipeline.open() as app:
        had = await use(app)
        await turns()
        assert len(Thing.alive) == results
        assert had is None or had
        del had
        await turns()
        assert len(Thing.alive) == 0


@pytest.mark.parametrize(
    ("use", "pipeline"),
    [*((use, pipeline) for use, pipeline, _ in USES), (by_failing_run, limited)],
)
async def test_a_request_leaves_no_cycle(use: Use, pipeline: Any) -> None:
    """The collector finds nothing at all: not in alto, and not of the program's."""
    async with pipeline.open() as app:
        for _ in range(2):
            await use(app)
            await turns()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                await use(app)
                await turns()
            gc.collect()
            kinds = collections.Counter(type(one).__qualname__ for one in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert kinds == {}


# ---- pipelines that a stage defines


@alto.stage
async def define(n: int, *, there: list[weakref.ref[Any]]) -> int:
    """A pipeline of its own for each call, as a notebook cell or an agent does."""

    @alto.stage
    async def add(k: int) -> int:
        await asyncio.sleep(0.1)
        return k + n

    @alto.stage
    async def split(k: int) -> AsyncIterator[int]:
        for number in range(k):
            yield number

    @alto.pipeline
    def own(k: alto.Stream[int]) -> alto.Stream[int]:
        return add(split(k))

    there.append(weakref.ref(own))
    return sum(await own.run(3))


@alto.pipeline
def defining(n: alto.Stream[int]) -> alto.Stream[int]:
    """Defines more."""
    return define(n)


async def test_pipelines_that_a_stage_defines_go_with_it() -> None:
    """After a collection no task, stage or statistics of theirs is left."""
    there: list[weakref.ref[Any]] = []
    async with defining.open(there=there) as app:
        assert await app.run(1) == [6]
        gc.collect()
        await turns()
        tasks, fresh = len(asyncio.all_tasks()), app.statistics()
        assert list(fresh.stages) == ["define"]
        for n in range(20):
            assert await app.run(n) == [3 + 3 * n]
            gc.collect()
            await turns()
        await asyncio.gather(*(app.run(n) for n in range(20)))
        gc.collect()
        await turns()
        assert [one for one in there if one() is not None] == []
        left_behind = app.statistics()
        assert list(left_behind.stages) == ["define"]
        assert len(asyncio.all_tasks()) <= tasks + 20  # Workers of `define`, which are kept.
        with contextlib.suppress(KeyError):
            assert left_behind.stages["add"]
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not [name for name in names if "add" in name or "split" in name]
