"""Leaving is leaving: however a reader goes, its requests are cancelled, with the collector off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, TypeAlias

import anyio
import pytest

import alto

Make: TypeAlias = Callable[[], AsyncIterable[Any]]
Way: TypeAlias = Callable[[Make], Awaitable[None]]


class Kept:
    """Errors with their tracebacks, which have the frames of whoever read."""

    errors: ClassVar[list[BaseException]] = []


@pytest.fixture(autouse=True)
def _collector_off() -> Iterator[None]:
    gc.disable()
    yield
    Kept.errors.clear()
    gc.enable()


@alto.stage
async def forever(n: int) -> AsyncIterator[int]:
    """A number per second."""
    k = 0
    while True:
        yield n + k
        await asyncio.sleep(1)
        k += 1


@alto.pipeline
def endless(n: alto.Stream[int]) -> alto.Stream[int]:
    """Never ends by itself."""
    return forever(n)


@alto.stage
async def slowly(n: int) -> int:
    """The first is quick, the rest take their time."""
    await asyncio.sleep(1e9 if n else 0)
    return n


@alto.pipeline
def slow(n: alto.Stream[int]) -> alto.Stream[int]:
    """For maps."""
    return slowly(n)


async def turns(number: int = 20) -> None:
    """A few turns of the loop, in which no time passes."""
    for _ in range(number):
        await asyncio.sleep(0)


# ---- ways to leave


async def by_break(make: Make) -> None:
    """The plainest."""
    async for _ in make():
        break


async def by_return(make: Make) -> None:
    """From the function."""
    async for _ in make():
        return


async def by_error(make: Make) -> None:
    """The error is kept, with the frame of the loop."""
    try:
        async for _ in make():
            raise LookupError  # noqa: TRY301  # what is tested
    except LookupError as error:
        Kept.errors.append(error)


async def by_interrupt(make: Make) -> None:
    """As a notebook's cell."""
    try:
        async for _ in make():
            raise KeyboardInterrupt  # noqa: TRY301  # what is tested
    except KeyboardInterrupt as error:
        Kept.errors.append(error)


async def read(make: Make) -> None:
    """To the end, which does not come; the cancellation is kept."""
    try:
        async for _ in make():
            pass
    except asyncio.CancelledError as error:
        Kept.errors.append(error)
        raise


async def by_timeout(make: Make) -> None:
    """A limit around the loop, in the task that goes on."""
    try:
        async with asyncio.timeout(2.5):
            await read(make)
    except TimeoutError as error:
        Kept.errors.append(error)


async def by_wait_for(make: Make) -> None:
    """Before Python 3.12 in another task."""
    try:
        await asyncio.wait_for(read(make), 2.5)
    except TimeoutError as error:
        Kept.errors.append(error)


async def by_move_on_after(make: Make) -> None:
    """A cancel scope."""
    with anyio.move_on_after(2.5):
        await read(make)


async def by_cancelled_task(make: Make) -> None:
    """The task is kept as well."""
    task = asyncio.ensure_future(read(make))
    await asyncio.sleep(2.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    Kept.errors.append(caught.value)


async def by_cancelled_gather(make: Make) -> None:
    """With another that is cancelled too."""
    both = asyncio.gather(read(make), asyncio.sleep(1e6))
    await asyncio.sleep(2.5)
    both.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await both


async def by_cancelled_group(make: Make) -> None:
    """As a web server does when a client goes."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, make)
        await asyncio.sleep(2.5)
        tasks.cancel_scope.cancel()


async def by_failing_group(make: Make) -> None:
    """A task beside it fails."""

    async def fail() -> None:
        await asyncio.sleep(2.5)
        raise LookupError

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(make))
            tasks.create_task(fail())
    except* LookupError as errors:
        Kept.errors.append(errors)


async def around(make: Make) -> AsyncIterator[str]:
    """A generator of the program's own."""
    async for item in make():
        yield str(item)


async def by_closed_generator(make: Make) -> None:
    """As `aclosing` does."""
    lines = around(make)
    await anext(lines)
    await lines.aclose()  # type: ignore[attr-defined]


async def by_dropped_generator(make: Make) -> None:
    """Python closes it."""
    async for _ in around(make):
        break


async def by_cancelled_generator(make: Make) -> None:
    """Cut while it waits for the next."""
    lines = around(make)
    with anyio.move_on_after(2.5):
        async for _ in lines:
            pass


async def by_cancelled_iterator(make: Make) -> None:
    """One that has a name, in a task that ends."""

    async def by_hand() -> None:
        iterator = aiter(make())
        try:
            while True:
                await anext(iterator)
        except asyncio.CancelledError as error:
            Kept.errors.append(error)
            raise

    task = asyncio.ensure_future(by_hand())
    await asyncio.sleep(2.5)
    task.cancel()
    await asyncio.wait({task})


async def by_list(make: Make) -> None:
    """All of it, in a task that is cancelled."""
    with anyio.move_on_after(2.5):
        await make().list()  # type: ignore[attr-defined]


WAYS: list[Way] = [
    by_break, by_return, by_error, by_interrupt, by_timeout, by_wait_for, by_move_on_after,
    by_cancelled_task, by_cancelled_gather, by_cancelled_group, by_failing_group, by_closed_generator,
    by_dropped_generator, by_cancelled_generator, by_cancelled_iterator, by_list,
]  # fmt: skip


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_request_is_cancelled(way: Way, named: bool) -> None:
    """Within a few turns of the loop, and without a warning; a name keeps nothing going."""
    handles: list[Any] = []

    async with endless.open() as app:
        fresh = app.statistics()

        def make() -> AsyncIterable[int]:
            handle = app.stream(1)
            if named:
                handles.append(handle)
            return handle

        await way(make)
        await turns()
        assert app.statistics() == fresh
        for handle in handles:
            with pytest.raises(alto.Closed, match="a loop over its handle was left"):
                await anext(handle)


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_map_is_cancelled(way: Way, kind: str, named: bool) -> None:
    """Its requests end, and its inputs are closed."""
    handles: list[Any] = []
    closed: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append("plain")

    async def numbers_over_time() -> AsyncIterator[int]:
        try:
            for k in range(100):
                yield k
        finally:
            await asyncio.sleep(0)
            closed.append("async")

    async with slow.open() as app:
        fresh = app.statistics()

        def make() -> AsyncIterable[Any]:
            handle = app.map(numbers() if kind == "plain" else numbers_over_time())
            if named:
                handles.append(handle)
            return handle

        await way(make)
        await turns()
        assert app.statistics() == fresh
        assert closed == [kind]
        for handle in handles:
            with pytest.raises(alto.Closed, match="a loop over this map was left"):
                await anext(handle)


@alto.stage
async def leaves(number: int, *, way: Way, handles: list[Any], ended: list[bool]) -> int:
    """Leaves a pipeline that it called, and goes on."""

    def make() -> AsyncIterable[int]:
        handle = endless.stream(1)
        handles.append(handle)
        return handle

    await way(make)
    await turns()
    ended.extend("ended" in repr(handle) for handle in handles)
    return number


@pytest.mark.parametrize("way", WAYS)
async def test_an_inner_request_is_cancelled(way: Way) -> None:
    """While the stage that called the pipeline goes on."""
    ended: list[bool] = []

    @alto.pipeline
    def p(number: alto.Stream[int]) -> alto.Stream[int]:
        return leaves(number)

    async with p.open(way=way, handles=[], ended=ended) as app:
        fresh = app.statistics()
        assert await app.run(1) == [1]
        assert ended == [True]
        left = app.statistics()
        assert (left.open_requests, left.buffered_items) == (0, 0)
        assert all(stage.running == stage.waiting == 0 for stage in left.stages.values())
        assert fresh.stages["leaves"].waiting == 0


async def test_a_block_may_leave_a_loop_and_read_on() -> None:
    """Inside `async with` only the end of the block is leaving."""
    async with endless.open() as app:
        fresh = app.statistics()
        async with app.stream(1) as results:
            async for result in results:
                if result == 2:
                    break
            with anyio.move_on_after(0.5):
                async for _ in results:
                    pytest.fail("too early")
            await turns()
            async for result in results:
                assert result == 3
                break
        assert app.statistics() == fresh
    async with slow.open() as app, app.map([0, 0, 0]) as records:
        async for record in records:
            assert record.index == 0
            break
        assert [record.index for record in await records.list()] == [1, 2]


async def test_direct_reads_leave_nothing() -> None:
    """`anext(handle)` in a task that is cancelled can be made again, by any other."""
    async with endless.open() as app, contextlib.aclosing(app.stream(1)) as handle:
        for expected in (1, 2, 3):
            task = asyncio.ensure_future(anext(handle))
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.wait({task})
            await turns()
            if task.cancelled():
                assert await anext(handle) == expected
            else:
                assert task.result() == expected


async def test_an_iterator_by_hand_is_left_when_its_task_ends() -> None:
    """While the task goes on it may read on, however late; when it ends, that was leaving."""
    iterators: list[AsyncIterator[int]] = []

    async def by_hand(app: alto.App[int, int]) -> None:
        iterators.append(iterator := aiter(app.stream(1)))
        assert await anext(iterator) == 1
        for _ in range(3):
            with anyio.move_on_after(0.1):
                await anext(iterator)
        await asyncio.sleep(100)
        assert await anext(iterator) == 2
        with anyio.move_on_after(0.1):
            while True:
                await anext(iterator)
        await asyncio.sleep(100)

    async with endless.open() as app:
        fresh = app.statistics()
        task = asyncio.ensure_future(by_hand(app))
        for _ in range(2):
            await asyncio.sleep(75)
            assert app.statistics().open_requests == 1
        await task
        await turns()
        assert app.statistics() == fresh


async def test_an_iterator_that_one_task_makes_and_another_reads() -> None:
    """The end of the one leaves nothing, and the other may read on after any pause."""

    async def make(app: alto.App[int, int]) -> AsyncIterator[int]:
        iterator = aiter(app.stream(1))
        assert await anext(iterator) == 1
        with anyio.move_on_after(0.1):
            await anext(iterator)
        await asyncio.sleep(100)
        assert await anext(iterator) == 2
        return iterator

    async with endless.open() as app:
        fresh = app.statistics()
        iterator = await asyncio.ensure_future(make(app))
        await asyncio.sleep(100)
        assert await anext(iterator) == 3
        with anyio.move_on_after(0.1):
            while True:
                await anext(iterator)
        await asyncio.sleep(100)
        assert await anext(iterator) > 3
        del iterator
        await turns()
        assert app.statistics() == fresh


async def test_a_cancelled_task_that_takes_its_time_has_left_at_once() -> None:
    """Cleaning up in the reader's task does not keep the request going, iterator or not."""
    iterators: list[AsyncIterator[int]] = []

    async def by_hand(app: alto.App[int, int]) -> None:
        iterators.append(aiter(app.stream(1)))
        try:
            while True:
                await anext(iterators[0])
        finally:
            await asyncio.sleep(100)

    async with endless.open() as app:
        fresh = app.statistics()
        task = asyncio.ensure_future(by_hand(app))
        await asyncio.sleep(2.5)
        task.cancel()
        await turns()
        assert app.statistics() == fresh
        assert not task.done()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# ---- warnings


@alto.stage
async def three(n: int) -> AsyncIterator[int]:
    """At once."""
    for k in range(n, n + 3):
        yield k


@alto.stage
async def fails(n: int) -> int:
    """Always."""
    raise LookupError(n)


@alto.pipeline
def quick(n: alto.Stream[int]) -> alto.Stream[int]:
    """Three results."""
    return three(n)


@alto.pipeline
def failing(n: alto.Stream[int]) -> alto.Stream[int]:
    """An error."""
    return fails(n)


async def end(handle: Any) -> None:
    """Read to the end."""
    with contextlib.suppress(alto.RequestError):
        async for _ in handle:
            pass


async def close(handle: Any) -> None:
    """Close it unread."""
    await handle.aclose()


async def leave(handle: Any) -> None:
    """Leave a loop."""
    async for _ in handle:
        break


async def enter(handle: Any) -> None:
    """Enter a block, and leave it."""
    async with handle:
        pass


async def drop(handle: Any) -> None:
    """Nothing."""


async def drop_late(handle: Any) -> None:
    """Nothing, when all is done."""
    await asyncio.sleep(5)


async def read_one(handle: Any) -> None:
    """One of several."""
    await anext(handle)
    await asyncio.sleep(0.1)


async def read_none(handle: Any) -> None:
    """A read that was cut."""
    with anyio.move_on_after(2.5):
        await anext(handle)


async def read_all(handle: Any) -> None:
    """All, but for the end."""
    for _ in range(3):
        await anext(handle)
    await asyncio.sleep(0.1)


DROPS = [
    ("endless", drop, "the request is cancelled"),
    ("endless", read_one, "the request is cancelled"),
    ("endless", leave, None),
    ("endless", close, None),
    ("endless", enter, None),
    ("quick", drop, "the request is cancelled"),
    ("quick", drop_late, "are lost"),
    ("quick", read_one, "are lost"),
    ("quick", read_all, None),
    ("quick", end, None),
    ("quick", leave, None),
    ("quick", enter, None),
    ("failing", drop_late, "had failed: stage 'fails'"),
    ("failing", end, None),
    ("failing", close, None),
    ("map", drop, "results of app.map"),
    ("endless map", read_none, "results of app.map"),
    ("map", drop_late, "results of app.map"),
    ("map", read_one, "results of app.map"),
    ("map", read_all, "results of app.map"),
    ("map", end, None),
    ("map", leave, None),
    ("map", close, None),
    ("map", enter, None),
]


@pytest.mark.parametrize(("what", "use", "message"), DROPS)
async def test_what_a_dropped_handle_warns_of(what: str, use: Any, message: str | None) -> None:
    """Exactly a handle that was neither read to its end, left nor closed."""
    kinds: dict[str, Any] = {"endless": endless, "endless map": endless, "failing": failing}
    pipeline = kinds.get(what, quick)
    async with pipeline.open() as app:
        fresh = app.statistics()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            handle = app.map([1, 2, 3, 4]) if "map" in what else app.stream(1)
            await use(handle)
            del handle
            await turns()
        assert [one.category for one in said] == [ResourceWarning] * (message is not None)
        for one in said:
            assert message is not None
            assert message in str(one.message)
        left = app.statistics()
        assert (left.open_requests, left.buffered_items) == (0, 0)
        assert fresh.open_requests == 0


@pytest.mark.parametrize(("use", "warns"), [(drop, True), (leave, False), (end, False)])
async def test_what_a_dropped_inner_handle_warns_of(use: Any, warns: bool) -> None:
    """The same; the stage's own end comes later."""

    @alto.stage
    async def calls(n: int) -> int:
        handle = quick.stream(n)
        await use(handle)
        del handle
        return n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return calls(n)

    async with p.open() as app:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert await app.run(1) == [1]
        assert [one.category for one in said] == [ResourceWarning] * warns
        assert app.statistics().open_requests == 0


async def test_a_handle_whose_app_is_closed_warns_of_nothing() -> None:
    """Closing the app is closing it."""
    async with endless.open() as app:
        handle = app.stream(1)
        records = app.map([1])
        await turns()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del handle
    assert said == []
    with pytest.raises(alto.Closed):
        await records.list()
