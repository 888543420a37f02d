"""What rough or unlucky use gets: a clear error for whoever it concerns, and nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar

import anyio
import pytest

import alto
from alto.testing import Scripted


@alto.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """0, 1, 2 and so on."""
    for k in range(n):
        yield k


@alto.stage(concurrency=1)
async def slow(k: int) -> int:
    """A second each."""
    await asyncio.sleep(1)
    return k


@alto.stage
async def plain(k: int) -> int:
    """Nothing."""
    return k


@alto.pipeline
def count(n: alto.Stream[int]) -> alto.Stream[int]:
    """The pipeline that others are compared with."""
    return slow(numbers(n))


async def test_a_time_limit_around_a_yield_is_the_stages_own() -> None:
    """`asyncio.timeout` around a yield that waits for room fails that request with TimeoutError."""

    @alto.stage
    async def limited(n: int) -> AsyncIterator[int]:
        async with asyncio.timeout(5):
            for k in range(n):
                yield k  # noqa: ASYNC119  # what this test is about

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(limited(n))

    async with p.open(capacity=2) as app:
        fresh = app.statistics()
        with pytest.raises(alto.StageError, match="TimeoutError") as caught:
            await app.run(100)
        assert caught.value.stage == "limited"
        assert app.statistics() == fresh
        assert await app.run(2) == [0, 1]


async def test_a_scope_around_a_yield_ends_the_generator_and_loses_nothing() -> None:
    """`move_on_after` around a yield ends the generator; what it had yielded goes on."""

    @alto.stage
    async def limited(n: int) -> AsyncIterator[int]:
        with anyio.move_on_after(5):
            for k in range(n):
                yield k  # noqa: ASYNC119  # what this test is about

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(limited(n))

    async with p.open(capacity=2) as app:
        fresh = app.statistics()
        got = await app.run(100)
        assert got == list(range(len(got)))
        assert 5 <= len(got) <= 9
        assert app.statistics() == fresh


async def test_a_stage_that_cancels_its_own_task_fails_alone() -> None:
    """A stage that cancels the task it runs in fails its request; the app and others go on."""

    @alto.stage
    async def rash(k: int) -> int:
        if k == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0.1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return rash(n)

    async with p.open() as app:
        fresh = app.statistics()
        with pytest.raises(alto.StageError, match="CancelledError"):
            await app.run(1)
        assert await app.run(2) == [2]
        assert app.statistics() == fresh


@pytest.mark.realtime
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_from_a_stage_ends_the_program(kind: type[BaseException]) -> None:
    """A stage that exits the program does not hang it, and the program cleans up."""
    cleaned: list[str] = []

    class Engine(Scripted):
        async def stop(self) -> None:
            await super().stop()
            cleaned.append("engine")

    @alto.stage
    async def leave(k: int, *, llm: alto.LLM) -> int:
        await asyncio.sleep(0.01)
        raise kind

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return leave(n)

    async def main() -> None:
        try:
            async with p.open(llm=Engine({})) as app:
                await app.run(1)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("program")

    with pytest.raises(BaseException) as caught:  # noqa: PT011
        asyncio.run(main())
    assert cleaned == ["engine", "program"]
    left: list[BaseException] = [caught.value]
    while left and not isinstance(left[0], kind):
        error = left.pop(0)
        left += error.exceptions if isinstance(error, BaseExceptionGroup) else []
    assert left


@pytest.mark.parametrize("kind", [GeneratorExit, BaseException])
async def test_other_base_exceptions_fail_their_request(kind: type[BaseException]) -> None:
    """A BaseException that does not end the program is a stage's failure like any other."""

    @alto.stage
    async def odd(k: int) -> int:
        await asyncio.sleep(0.01)
        raise kind

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return odd(n)

    async with p.open() as app:
        fresh = app.statistics()
        with pytest.raises(alto.StageError):
            await app.run(1)
        assert app.statistics() == fresh


async def test_a_progress_function_that_raises_is_told_to_the_reader() -> None:
    """An error of `progress=` reaches whoever reads the map, and the app goes on."""

    def bad(_: alto.app.Progress) -> None:
        message = "no bar"
        raise OSError(message)

    async with count.open() as app:
        with pytest.raises(OSError, match="no bar"):
            _ = [r async for r in app.map([1, 2, 3], progress=bad)]
        with pytest.raises(TypeError, match="progress"):
            app.map([1], progress=5)  # type: ignore[call-overload]
        assert await app.run(1) == [0]


async def test_a_timeout_that_strikes_while_an_app_closes() -> None:
    """Closing is not cut short by a native cancellation, which is raised afterwards."""
    cleaned = []

    @alto.stage
    async def careful(k: int) -> int:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.3)
            cleaned.append(k)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return careful(n)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            async with p.open() as app:
                handle = app.stream(1)
                await asyncio.sleep(0.9)
    assert cleaned == [1]
    del handle


async def test_a_second_cancellation_does_not_cut_the_cleaning_up() -> None:
    """`run` that is cancelled twice still ends only when its request has."""

    @alto.stage
    async def careful(k: int) -> int:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return careful(n)

    async with p.open() as app:
        fresh = app.statistics()
        task = asyncio.ensure_future(app.run(1))
        for _ in range(3):
            await asyncio.sleep(0.1)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert app.statistics() == fresh


async def test_leaving_a_group_below_many_stages() -> None:
    """A group may be left below more stages than Python may recurse."""

    @alto.stage
    async def forever(n: int) -> AsyncIterator[int]:
        yield n
        await asyncio.sleep(1e6)

    @alto.stage
    async def first(xs: alto.Group[int]) -> int:
        async for x in xs:
            return x
        return -1

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        x = forever(n)
        for _ in range(1500):
            x = plain(x)
        return first(x)

    async with p.open() as app:
        fresh = app.statistics()
        assert await app.run(3) == [3]
        assert app.statistics() == fresh


async def test_concurrency_holds_after_a_timeout_inside_a_stage() -> None:
    """A stage that catches its own time limit while it waits in alto takes its permit again."""
    running = most = 0

    @alto.stage
    async def late(n: int) -> AsyncIterator[int]:
        await asyncio.sleep(100)
        yield n

    @alto.stage
    async def early(n: int) -> AsyncIterator[int]:
        yield n
        await asyncio.sleep(100)

    @alto.stage(concurrency=1)
    async def impatient(xs: alto.Group[int]) -> int:
        nonlocal running, most
        seen = 0
        with anyio.move_on_after(1):
            async for _ in xs:
                seen += 1
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return seen

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return impatient(early(numbers(n)))

    async with p.open() as app:
        fresh = app.statistics()
        assert await app.run(5) == [1] * 5
        assert most == 1
        assert app.statistics() == fresh


async def test_stages_see_the_context_of_whoever_started_the_request() -> None:
    """Context variables come from the caller of ``run``, never from some other request."""
    tenant: ContextVar[str] = ContextVar("tenant")

    @alto.stage
    async def who(k: int) -> str:
        return tenant.get()

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[str]:
        return who(n)

    tenant.set("opener")
    async with p.open() as app:
        tenant.set("caller")
        assert await app.run(1) == ["caller"]


async def test_a_map_that_the_app_cuts_short_says_so() -> None:
    """A map over an async iterable raises Closed when its app closes before all is done."""

    async def source() -> AsyncIterator[int]:
        for k in range(100):
            await asyncio.sleep(1)
            yield k

    got: list[int] = []

    async def read(app: alto.App[int, int]) -> None:
        async for result in app.map(source()):
            got.append(result.index)

    async with plain_pipeline.open() as app:
        task = asyncio.ensure_future(read(app))
        await asyncio.sleep(3.5)
    await asyncio.wait([task])
    assert isinstance(task.exception(), alto.Closed)
    assert got == [0, 1, 2]


@alto.pipeline
def plain_pipeline(n: alto.Stream[int]) -> alto.Stream[int]:
    """One stage that does nothing."""
    return plain(n)


async def test_closing_a_map_ends_its_feeder() -> None:
    """`aclose` of a map over an async iterable closes the iterable too."""
    closed = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(1e6)
        finally:
            closed.append(True)

    async with plain_pipeline.open() as app:
        for k in range(5):
            async with app.map(source()) as results:
                assert (await anext(results)).unwrap() == [1]
            assert len(closed) == k + 1


async def test_a_deadline_stops_a_generator_that_never_waits() -> None:
    """A generator that never suspends cannot keep the clock from its own request."""
    loop = asyncio.get_running_loop()

    @alto.stage
    async def busy(n: int) -> AsyncIterator[int]:
        while True:
            yield n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return busy(n)

    async with p.open() as app:
        fresh = app.statistics()
        handle = app.stream(1)
        loop.call_soon(loop.call_soon, app.statistics)
        task = asyncio.ensure_future(app.run(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await handle.aclose()
        assert app.statistics() == fresh


async def test_results_in_ancestry_order_are_capped_too() -> None:
    """Results that wait for an earlier one are held, and capped like everything held."""

    @alto.stage(concurrency=64)
    async def first_last(k: int) -> int:
        await asyncio.sleep(1e6 if k == 0 else 0)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return first_last(numbers(n))

    async with p.open(max_held_items=10) as app:
        fresh = app.statistics()
        with pytest.raises(alto.errors.BufferExceeded, match="max_held_items"):
            _ = [x async for x in app.stream(3000, order="ancestry")]
        assert app.statistics() == fresh


@pytest.mark.realtime
async def test_another_thread_is_told_how() -> None:
    """An app that is used from another thread says whose it is, and names the way."""
    errors: list[BaseException] = []

    async with plain_pipeline.open() as app:

        def elsewhere() -> None:
            try:
                app.stream(1)
            except RuntimeError as error:
                errors.append(error)
            try:
                asyncio.run(app.run(1))
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        while thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(errors) == 2
    assert all("run_coroutine_threadsafe" in str(error) for error in errors)


async def test_an_engine_that_fails_to_stop_hides_nothing() -> None:
    """What the caller raised leaves the app; what the engine raised is a note of it, or raised."""

    class Stuck(Scripted):
        async def stop(self) -> None:
            await super().stop()
            message = "stuck"
            raise OSError(message)

    @alto.stage
    async def say(k: int, *, llm: alto.LLM) -> int:
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return say(n)

    with pytest.raises(ValueError, match="mine") as caught:
        async with p.open(llm=Stuck({"x": ["y"]})):
            message = "mine"
            raise ValueError(message)
    assert "stuck" in caught.value.__notes__[0]
    with pytest.raises(OSError, match="stuck"):
        async with p.open(llm=Stuck({"x": ["y"]})):
            pass


async def test_a_stage_cannot_close_what_it_works_for() -> None:
    """A stage that closes its own app or request is told so, instead of waiting for itself."""
    holder: list[alto.App[int, int] | alto.app.StreamHandle[int]] = []

    @alto.stage
    async def saw(k: int) -> int:
        holder_ = holder[0]
        if isinstance(holder_, alto.App):
            await holder_.__aexit__(None, None, None)
        else:
            await holder_.aclose()
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return saw(n)

    async with p.open() as app:
        holder[:] = [app]
        with pytest.raises(alto.StageError, match="cannot close"):
            await app.run(1)
        handle = app.stream(1)
        holder[:] = [handle]
        with pytest.raises(alto.StageError, match="cannot close"):
            await anext(handle)


async def test_an_app_cannot_be_opened_twice_at_once() -> None:
    """Of two openings side by side one is refused."""
    app = plain_pipeline.open()
    other = asyncio.ensure_future(app.__aenter__())
    async with app:
        await asyncio.wait([other])
    assert isinstance(other.exception(), alto.Closed)


@pytest.mark.parametrize("timeout", [0, -1, 1e9, 1e12, 10**400, float("nan"), "5"])
async def test_a_timeout_that_is_none(timeout: object) -> None:
    """A timeout that is no number of seconds is refused, with what it must be."""
    async with plain_pipeline.open() as app:
        with pytest.raises(ValueError, match="seconds > 0 and < 1e9, or None for no limit"):
            await app.run(1, timeout=timeout)  # type: ignore[arg-type]


def test_handles_are_not_made_by_hand() -> None:
    """Handles come from an app; their constructors say so, and leave nothing behind."""
    with pytest.raises(TypeError, match=r"app\.stream"):
        alto.app.StreamHandle(1)
    with pytest.raises(TypeError, match=r"app\.map"):
        alto.app.MapHandle(1)


@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("drops", [True, False])
def test_a_loop_that_goes_down_around_an_open_app_ends(drops: bool) -> None:
    """A program that forgets to close its app still ends: workers heed the loop's cancellation."""

    async def main() -> None:
        app = count.open()
        await app.__aenter__()
        handles.append(app.stream(1))
        await asyncio.sleep(0.05)
        if drops:
            handles.clear()

    handles: list[object] = []
    asyncio.run(main())
    handles.clear()


@pytest.mark.parametrize("used", [True, False])
async def test_what_the_caller_raises_outlives_a_cancelled_scope(used: bool) -> None:
    """A scope that was cancelled by the time the app closes does not swallow the caller's error."""
    with pytest.raises(ValueError, match="mine"), anyio.CancelScope() as scope:
        async with count.open() as app:
            if used:
                assert len(await app.run(3)) == 3
            scope.cancel()
            raise ValueError("mine")


async def test_a_worker_that_the_loop_cancels_ends_though_its_call_is_dropped() -> None:
    """What cancels every task of the loop once ends every worker, and whoever has the app open."""
    ended: list[str] = []

    async def main() -> None:
        try:
            async with count.open() as app, app.stream(3) as results:
                async for _ in results:
                    await asyncio.sleep(3600)
        finally:
            ended.append("main")

    before = asyncio.all_tasks()
    running = asyncio.create_task(main())
    await asyncio.sleep(1)
    others = asyncio.all_tasks() - before
    for task in others:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 5)
    await asyncio.sleep(0)
    assert ended == ["main"]
    assert all(task.done() for task in others)
