"""Reads that are cut, by time limits or otherwise: what is read again, and what is closed."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto._current_call import current_call
from alto._resumable import Resumable
from alto.engines import Pool, Simulated
from alto.engines.profiles import A100_7B
from alto.errors import Closed
from alto.model import EngineStatistics
from alto.testing import Scripted
from alto.testing.scripted import Line
from tests.llm.test_llm import _inside_a_call

SAYS = ["[1, ", "2,", " 3. A", "nd. ", "S", "o,\n", "x; y", "]"]
"""Text that has something for each of the functions to cut."""
ITEMS = ["[1, ", "2", "2, ", "3, 4", "]"]
ASKS_FOR_ITEMS = 77  # tokens, since a pool's engines get the prompt as tokens

Reading = Callable[[alto.LLM], AsyncIterator[Any]]


def texts(llm: alto.LLM) -> AsyncIterator[str]:
    """The README's idiom."""
    return (chunk.text async for chunk in llm.generate("q"))


WAYS: dict[str, Reading] = {
    "chunks": lambda llm: aiter(llm.generate("q")),
    "items": lambda llm: llm.generate("items", schema=list[int], max_tokens=ASKS_FOR_ITEMS).items(),
    "sentences": lambda llm: alto.text.sentences(texts(llm)),
    "idle": lambda llm: alto.text.sentences(texts(llm), idle=2.5),
    "lines": lambda llm: alto.text.lines(texts(llm)),
    "words": lambda llm: alto.text.words(texts(llm)),
    "split": lambda llm: alto.text.split(texts(llm), "; "),
    "json_items": lambda llm: alto.text.json_items(
        chunk.text async for chunk in llm.generate("items", max_tokens=ASKS_FOR_ITEMS)
    ),
    "joined": lambda llm: alto.text.joined(
        alto.text.sentences(texts(llm)), lambda held, _: held > 8
    ),
    "twice": lambda llm: alto.text.words(alto.text.lines(texts(llm))),
}


def says(request: Any) -> list[str]:
    """What the engines say to a prompt, or to a request."""
    if request == "items" or getattr(request, "max_tokens", 0) == ASKS_FOR_ITEMS:
        return ITEMS
    return SAYS


ENGINES: dict[str, Callable[[], Any]] = {
    "Scripted": lambda: Scripted(says, delay=1.0),
    "Simulated": lambda: Simulated(A100_7B, says),
    "Pool": lambda: Pool([Simulated(A100_7B, says)]),
    "Pool of Scripted": lambda: Pool([Scripted(says, delay=1.0)]),
}


async def by_wait_for(read: Callable[[], Awaitable[Any]], limit: float) -> Any:
    """Cut by ``asyncio.wait_for``, which on Python 3.11 reads in a task of its own."""
    return await asyncio.wait_for(read(), limit)


async def by_timeout(read: Callable[[], Awaitable[Any]], limit: float) -> Any:
    """Cut by ``asyncio.timeout``."""
    async with asyncio.timeout(limit):
        return await read()


async def by_scope(read: Callable[[], Awaitable[Any]], limit: float) -> Any:
    """Cut by a cancel scope of anyio."""
    with anyio.move_on_after(limit) as scope:
        return await read()
    assert scope.cancelled_caught
    raise TimeoutError


async def by_task(read: Callable[[], Awaitable[Any]], limit: float) -> Any:
    """Cut by cancelling a task that was started for the read."""
    task = asyncio.ensure_future(read())
    await asyncio.wait([task], timeout=limit)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if task.cancelled():
        raise TimeoutError
    return task.result()


CUTTERS = {f.__name__: f for f in (by_wait_for, by_timeout, by_scope, by_task)}


async def all_of(
    reading: AsyncIterator[Any], cut: Callable[..., Awaitable[Any]], limits: list[float]
) -> tuple[list[tuple[float, Any]], int]:
    """Every item with its time, and how often a read was cut; *limits* in turn, then none."""
    clock = asyncio.get_running_loop().time
    got: list[tuple[float, Any]] = []
    cuts = 0
    while True:
        try:
            if cuts < len(limits):
                item = await cut(lambda: anext(reading), limits[cuts])
            else:
                item = await anext(reading)
        except TimeoutError:
            cuts += 1
        except StopAsyncIteration:
            return got, cuts
        else:
            got.append((round(clock(), 6), getattr(item, "text", item)))


async def uncut(make: Callable[[], Any], way: str) -> list[tuple[float, Any]]:
    """What is read when nothing cuts."""
    async with make() as engine:
        got, _ = await all_of(WAYS[way](alto.LLM(engine)), by_timeout, [])
        return got


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("cutter", CUTTERS)
@pytest.mark.parametrize("way", WAYS)
class TestNothingIsLost:
    """Row 45: a heartbeat around each read changes nothing."""

    async def test_with_a_script(self, way: str, cutter: str, inside: bool) -> None:
        """The items are those of an undisturbed reading, each at the same moment, in a stage too."""
        start = asyncio.get_running_loop().time()
        expected = await uncut(ENGINES["Scripted"], way)
        took = asyncio.get_running_loop().time() - start
        engine = Scripted(says, delay=1.0)
        limits = [0.4] * 100

        @alto.stage
        async def read(question: str, *, llm: alto.LLM) -> Any:
            return await all_of(WAYS[way](llm), CUTTERS[cutter], limits)

        @alto.pipeline
        def reading(question: alto.Stream[str]) -> alto.Stream[Any]:
            return read(question)

        if inside:
            async with reading.open(llm=engine) as app:
                [(got, cuts)] = await app.run("q")
                assert engine.statistics() == EngineStatistics()
        else:
            async with engine:
                llm = alto.LLM(engine)
                got, cuts = await all_of(WAYS[way](llm), CUTTERS[cutter], limits)
                assert engine.statistics() == EngineStatistics()
        assert [item for _, item in got] == [item for _, item in expected]
        assert [when - took - start for when, _ in got] == pytest.approx(
            [when - start for when, _ in expected]
        )
        assert cuts >= len(says("items"))
        assert engine.statistics().aborted == 0


@pytest.mark.parametrize("way", WAYS)
@given(
    name=st.sampled_from(sorted(ENGINES)),
    cutter=st.sampled_from(sorted(CUTTERS)),
    limits=st.lists(st.sampled_from([0.0, 1e-6, 0.001, 0.01, 0.02, 0.3, 1.0, 1.5]), max_size=40),
)
async def test_any_cuts_at_any_times_give_the_same(
    name: str, way: str, cutter: str, limits: list[float]
) -> None:
    """Random limits, around every engine: the items are those of a reading without."""
    expected = [item for _, item in await uncut(ENGINES[name], way)]
    async with ENGINES[name]() as engine:
        got, _ = await all_of(WAYS[way](alto.LLM(engine)), CUTTERS[cutter], limits)
        found = [item for _, item in got]
        if way == "chunks":  # a reader that lags gets what it has missed in one chunk
            found, expected = ["".join(found)], ["".join(expected)]
        if way != "idle":
            assert found == expected
        assert "".join("".join(map(str, found)).split()) == "".join(
            "".join(map(str, expected)).split()
        )
        assert engine.statistics() == EngineStatistics()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_read_that_was_cut_anywhere_can_be_closed(name: str, way: str) -> None:
    """Cut at each suspension in turn, then closed: nothing runs in the engine."""
    for at in range(60):
        async with ENGINES[name]() as engine:
            reading = WAYS[way](alto.LLM(engine))
            task = asyncio.create_task(_drain(reading))
            for _ in range(at):
                await asyncio.sleep(0.003 if "Sim" in name or name == "Pool" else 0.25)
            task.cancel()
            await asyncio.wait([task])
            if hasattr(reading, "aclose"):
                await reading.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(reading)
            whole = not task.cancelled()
            del reading, task
            await asyncio.sleep(0.0001)
            assert engine.statistics() == EngineStatistics()
        if whole:
            assert at > 3
            return
    raise AssertionError("it never came to its end")


async def _drain(reading: AsyncIterator[Any]) -> None:
    async for _ in reading:
        pass


class Source:
    """One item after each time, and what became of it."""

    def __init__(self, *, cleaning: float = 0.0) -> None:
        self.log: list[str] = []
        self.cleaning = cleaning

    async def items(self) -> AsyncGenerator[int, None]:
        """1, 2, 3, a second each."""
        try:
            for n in (1, 2, 3):
                await asyncio.sleep(1)
                yield n
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        except GeneratorExit:
            self.log.append("closed")
            raise
        finally:
            if self.cleaning:
                await asyncio.sleep(self.cleaning)
            self.log.append("cleaned")


async def cut_once(reading: AsyncIterator[Any], limit: float = 0.5) -> None:
    """Read, and be cut."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(reading), limit)


class TestOneReading:
    """The primitive itself."""

    async def test_a_cut_step_goes_on_meanwhile(self) -> None:
        """What the step waits for is not started anew, and its item is there when it is read late."""
        reading = Resumable(Source().items(), "text")
        await cut_once(reading)
        await asyncio.sleep(10)
        start = asyncio.get_running_loop().time()
        assert await anext(reading) == 1
        assert asyncio.get_running_loop().time() == start
        assert [n async for n in reading] == [2, 3]
        with pytest.raises(StopAsyncIteration):
            await anext(reading)

    async def test_another_task_may_read_on(self) -> None:
        """A step belongs to no task, and goes on in the context of whoever drives it."""
        asked: ContextVar[str] = ContextVar("asked", default="")

        async def items() -> AsyncGenerator[str, None]:
            await asyncio.sleep(1)
            yield asked.get()

        reading = Resumable(items(), "text")
        asked.set("first")
        await cut_once(reading)

        async def read_on() -> str:
            asked.set("second")
            return await anext(reading)

        assert await asyncio.create_task(read_on()) == "second"

    async def test_two_readers_at_once_are_refused(self) -> None:
        """The second is an error, and the first gets everything."""
        reading = Resumable(Source().items(), "text")
        first = asyncio.create_task(anext(reading))
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="already running"):
            await anext(reading)
        assert [await first, *[n async for n in reading]] == [1, 2, 3]

    async def test_whoever_waits_for_what_is_closed_is_woken(self) -> None:
        """Closed by another task: the reader gets an error that says so, and later readers too."""
        source = Source(cleaning=1.0)
        reading = Resumable(source.items(), "text")
        first = asyncio.create_task(anext(reading))
        await asyncio.sleep(0.5)
        await reading.steps.aclose()
        assert source.log == ["cancelled", "cleaned"]
        with pytest.raises(Closed, match="this text was closed or cancelled before its end"):
            await first
        for _ in range(2):
            with pytest.raises(Closed, match="ask for it again"):
                await anext(reading)

    async def test_a_reader_that_waits_for_its_turn_only_is_refused_too(self) -> None:
        """A step that gives the loop a turn cannot be woken; its reader finds it closed."""

        async def items() -> AsyncGenerator[int, None]:
            while True:  # noqa: ASYNC110  # what is tested
                await asyncio.sleep(0)
            yield 1

        reading = Resumable(items(), "text")
        first = asyncio.create_task(anext(reading))
        await asyncio.sleep(0)
        await reading.steps.aclose()
        with pytest.raises(Closed):
            await first
        with pytest.raises(Closed):
            await anext(reading)

    async def test_closing_waits_for_the_cleaning_up(self) -> None:
        """A step that is cancelled when its generator is closed ends first, and once."""
        source = Source(cleaning=2.0)
        reading = Resumable(source.items(), "text")
        await cut_once(reading)
        await reading.aclose()
        assert source.log == ["cancelled", "cleaned"]
        assert asyncio.get_running_loop().time() == 2.5
        await reading.aclose()
        assert [n async for n in reading] == []

    async def test_closing_cancels_what_the_step_waits_for(self) -> None:
        """A task that the step awaits is cancelled with it, as asyncio would have."""
        log: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                log.append("work ended")
                raise

        async def items() -> AsyncGenerator[int, None]:
            await asyncio.create_task(work())
            yield 1

        reading = Resumable(items(), "text")
        await cut_once(reading)
        assert log == []
        await reading.aclose()
        assert log == ["work ended"]

    async def test_closing_that_is_cancelled_says_so(self) -> None:
        """Cancelling whoever closes cancels the cleaning up, as of any generator."""
        source = Source(cleaning=5.0)
        reading = Resumable(source.items(), "text")
        await cut_once(reading)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reading.aclose(), 1)
        assert source.log == ["cancelled"]
        await reading.aclose()

    async def test_an_error_while_closing_comes_through(self) -> None:
        """What the step raises instead of ending is raised to whoever closes."""

        async def items() -> AsyncGenerator[int, None]:
            try:
                await asyncio.sleep(1)
            finally:
                raise LookupError("stuck")
            yield 1

        reading = Resumable(items(), "text")
        await cut_once(reading)
        with pytest.raises(LookupError, match="stuck"):
            await reading.aclose()

    async def test_a_source_that_was_cancelled_is_not_complete(self) -> None:
        """A generator whose inside was cancelled by others says so to whoever reads on."""
        waited = asyncio.get_running_loop().create_future()

        async def items() -> AsyncGenerator[int, None]:
            await waited
            yield 1

        reading = Resumable(items(), "text")
        asyncio.get_running_loop().call_later(1, waited.cancel)
        with pytest.raises(asyncio.CancelledError):
            await anext(reading)
        for _ in range(2):
            with pytest.raises(Closed, match="before its end"):
                await anext(reading)

    async def test_a_wait_that_is_over_in_the_moment_of_the_cut(self) -> None:
        """Whichever comes first in that turn of the loop, nothing is lost."""
        loop = asyncio.get_running_loop()
        for first in ("cut", "item"):
            waited: asyncio.Future[int] = loop.create_future()

            async def items(waited: asyncio.Future[int] = waited) -> AsyncGenerator[int, None]:
                yield await waited
                yield 2

            reading = Resumable(items(), "text")
            task = asyncio.create_task(anext(reading))
            await asyncio.sleep(1)
            if first == "cut":
                task.cancel()
            waited.set_result(1)
            if first == "item":
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [n async for n in reading] == [1, 2]

    async def test_an_error_of_the_wait_reaches_the_step(self) -> None:
        """The step sees how its wait has ended, also after a cut."""
        waited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def items() -> AsyncGenerator[str, None]:
            try:
                await waited
            except LookupError:
                yield "seen"

        reading = Resumable(items(), "text")
        await cut_once(reading)
        asyncio.get_running_loop().call_later(1, waited.set_exception, LookupError())
        assert await anext(reading) == "seen"

    async def test_any_async_iterator_will_do(self) -> None:
        """One that is no generator is cut and closed in the same way."""
        log: list[str] = []

        class Count:
            left = 2

            def __aiter__(self) -> Count:
                return self

            async def __anext__(self) -> int:
                await asyncio.sleep(1)
                self.left -= 1
                if self.left < 0:
                    raise StopAsyncIteration
                return self.left

            async def aclose(self) -> None:
                log.append("closed")

        reading = Resumable(Count(), "text")
        await cut_once(reading)
        assert [n async for n in reading] == [1, 0]
        assert log == ["closed"]

    @pytest.mark.parametrize("limit", ["timeout", "scope", "fail_after", "group"])
    async def test_a_source_with_a_time_limit_of_its_own(self, limit: str) -> None:
        """Its own limit works as ever; a cut ends it, and the next read says why."""

        async def items() -> AsyncGenerator[int, None]:
            if limit == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1):
                        await asyncio.sleep(5)
            elif limit == "scope":
                with anyio.move_on_after(1):
                    await asyncio.sleep(5)
            elif limit == "fail_after":
                with pytest.raises(TimeoutError), anyio.fail_after(1):
                    await asyncio.sleep(5)
            else:
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(1))
            yield 1
            yield 2

        assert [n async for n in Resumable(items(), "text")] == [1, 2]
        assert asyncio.get_running_loop().time() == 1
        for cutter in (by_wait_for, by_timeout, by_scope, by_task):
            reading = Resumable(items(), "text")
            with pytest.raises(TimeoutError):
                await cutter(lambda reading=reading: anext(reading), 0.5)
            for _ in range(2):
                with pytest.raises(Closed, match="inside of a `with`"):
                    await anext(reading)

    async def test_a_time_limit_deep_within(self) -> None:
        """A read within a read is looked into too."""

        async def items() -> AsyncGenerator[int, None]:
            with anyio.move_on_after(1):
                await asyncio.sleep(5)
            yield 1

        def nested() -> Resumable[int]:
            below = Resumable(items(), "text")
            return Resumable((n async for n in below), "text")

        assert [n async for n in nested()] == [1]
        assert asyncio.get_running_loop().time() == 1
        reading = nested()
        with pytest.raises(TimeoutError):
            await by_scope(lambda: anext(reading), 0.5)
        with pytest.raises(Closed, match="inside of a `with`"):
            await anext(reading)

    async def test_a_source_that_closes_properly_is_resumed(self) -> None:
        """`aclosing` is no time limit, and a generation as a context manager neither."""

        async def items() -> AsyncGenerator[int, None]:
            async with aclosing(Source().items()) as below:
                async for n in below:
                    yield n  # noqa: ASYNC119  # what is tested

        reading = Resumable(items(), "text")
        got, cuts = await all_of(reading, by_scope, [0.4] * 5)
        assert [n for _, n in got] == [1, 2, 3]
        assert cuts == 5

    @given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0, 1.3]), max_size=20), st.booleans())
    async def test_cuts_within_cuts(self, limits: list[float], inner: bool) -> None:
        """A reading within a reading: whichever is cut, the items are the same."""
        below = Resumable(Source().items(), "text")

        async def above() -> AsyncGenerator[int, None]:
            left = list(limits) if inner else []
            while True:
                try:
                    if left:
                        n = await asyncio.wait_for(anext(below), left.pop())
                    else:
                        n = await anext(below)
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    return
                yield n

        reading = Resumable(above(), "text")
        got, _ = await all_of(reading, by_wait_for, [] if inner else limits)
        assert [n for _, n in got] == [1, 2, 3]


class TestWhoCloses:
    """What was cut and is not read on."""

    async def test_dropped_outside_of_a_stage(self) -> None:
        """Asyncio closes what was dropped after a cut, soon after."""
        async with Scripted(says, delay=1.0) as engine:
            reading = aiter(alto.LLM(engine).generate("q"))
            await cut_once(reading)
            assert engine.statistics().running == 1
            del reading
            await asyncio.sleep(0.1)
            assert engine.statistics() == EngineStatistics()
            assert engine.statistics().aborted == 1

    async def test_a_read_may_outlive_its_iterator(self) -> None:
        """`anext(aiter(...))` keeps what it needs."""
        async with Scripted(says, delay=1.0) as engine:
            chunk = await anext(aiter(alto.LLM(engine).generate("q")))
            assert chunk.text == SAYS[0]
            await asyncio.sleep(0.1)
            assert engine.statistics() == EngineStatistics()

    async def test_dropped_inside_of_a_call(self) -> None:
        """It is closed at the call's next checkpoint."""
        async with Scripted(says, delay=1.0) as engine:
            with _inside_a_call() as call:
                reading = aiter(alto.LLM(engine).generate("q"))
                await cut_once(reading)
                assert not call.cleanup.abandoned
                await asyncio.sleep(0)  # until then the task has the traceback
                del reading
                assert call.cleanup.abandoned
            await call.cleanup.close_abandoned()
            assert engine.statistics() == EngineStatistics()
            assert not call.cleanup._live
            assert not call.cleanup.abandoned

    @pytest.mark.parametrize("way", WAYS)
    async def test_kept_inside_of_a_call(self, way: str) -> None:
        """It is closed when the call ends, and whoever reads on then is told that."""
        async with Scripted(says, delay=1.0) as engine:
            with _inside_a_call() as call:
                reading = WAYS[way](alto.LLM(engine))
                await cut_once(reading)
                await call.cleanup.close_all()
                assert engine.statistics() == EngineStatistics()
            with pytest.raises(Closed):
                await anext(reading)

    @pytest.mark.parametrize("way", WAYS)
    async def test_a_request_that_is_cancelled_aborts_at_once(self, way: str) -> None:
        """In a call that was cancelled a cut is final, however long its own cleaning up takes."""
        engine = Scripted(says, delay=1.0)
        log: list[Any] = []

        @alto.stage
        async def read(question: str, *, llm: alto.LLM) -> int:
            reading = WAYS[way](llm)
            try:
                await _drain(reading)
            finally:
                log.append(engine.statistics())
                await asyncio.sleep(5)
            return 1

        @alto.pipeline
        def reads(question: alto.Stream[str]) -> alto.Stream[int]:
            return read(question)

        async with reads.open(llm=engine) as app:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(app.run("q"), 0.5)
        assert log == [EngineStatistics()]

    @pytest.mark.realtime
    @pytest.mark.parametrize("way", ["chunks", "items"])
    def test_the_end_of_the_loop(self, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was cut and is still there when the loop ends is closed, without a complaint."""
        kept: list[Any] = []
        complaints: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", complaints.append)
        engines: list[Scripted] = []

        async def main(*, keeps: bool) -> None:
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: complaints.append(context)
            )
            engines.append(engine := Scripted(says, delay=30.0))
            await engine.start()
            reading = WAYS[way](alto.LLM(engine))
            await cut_once(reading, 0.01)
            if keeps:
                kept.append(reading)

        for keeps in (False, True):
            asyncio.run(main(keeps=keeps))
            assert engines[-1].statistics() == EngineStatistics()
        kept.clear()
        gc.collect()
        assert complaints == []


class TestEvents:
    """What the call that runs hears of a generation."""

    @pytest.mark.parametrize("how", ["iterate", "text", "samples", "collect", "items", "value"])
    async def test_a_whole_one(self, how: str) -> None:
        """It begins with the first read and ends once, with what it has cost."""
        async with Scripted(says, delay=1.0) as engine:
            with _inside_a_call() as call:
                options = {"schema": list[int]} if how in ("items", "value") else {}
                generation = alto.LLM(engine).generate("items", **options)
                assert call.events == []
                if how == "iterate":
                    await _drain(aiter(generation))
                elif how == "items":
                    await _drain(generation.items())
                else:
                    await getattr(generation, how)()
            started, (ended, number, name, usage, error) = call.events
            assert started == ("started", "scripted")
            assert (ended, number, name, error) == ("ended", 1, "scripted", type(None))
            assert usage is not None
            assert usage.output_tokens == len(ITEMS)

    @pytest.mark.parametrize("how", ["cut", "break", "text"])
    async def test_one_that_is_left(self, how: str) -> None:
        """It ends when it is closed, as cancelled."""
        async with Scripted(says, delay=1.0) as engine:
            with _inside_a_call() as call:
                generation = alto.LLM(engine).generate("q")
                if how == "text":
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(generation.text(), 0.5)
                else:
                    reading = aiter(generation)
                    if how == "break":
                        await anext(reading)
                    else:
                        await cut_once(reading)
                    assert len(call.events) == 1
                    await call.cleanup.close_all()
            assert call.events[1:] == [("ended", 1, "scripted", None, asyncio.CancelledError)]

    async def test_one_that_is_left_when_it_is_complete(self) -> None:
        """Whoever leaves with the last chunk has had all of it."""
        async with Scripted(says) as engine:
            with _inside_a_call() as call:
                async for chunk in alto.LLM(engine).generate("q"):
                    if chunk.finish_reason is not None:
                        break
                await call.cleanup.close_all()
            assert [call.events[1][4], call.events[1][3] is not None] == [type(None), True]

    async def test_one_that_fails_and_one_that_is_never_read(self) -> None:
        """The error is given; of what has not begun nothing is."""
        async with Scripted([Line("x", fail_at=1)]) as engine:
            with _inside_a_call() as call:
                never = aiter(alto.LLM(engine).generate("q"))
                with pytest.raises(alto.errors.GenerationFailed):
                    await _drain(aiter(alto.LLM(engine).generate("q")))
                await call.cleanup.close_all()
                del never
            assert call.events[1:] == [("ended", 1, "scripted", None, alto.errors.GenerationFailed)]

    async def test_vectors(self) -> None:
        """Each prompt is one of its own."""
        async with Scripted([], embeds=lambda _: (1.0,)) as engine:
            with _inside_a_call() as call:
                await alto.LLM(engine).embed(["a", "b"])
                await alto.LLM(engine).embed("a")
            assert [event[0] for event in call.events] == ["started"] * 2 + ["ended"] * 2 + [
                "started",
                "ended",
            ]
            assert {event[4] for event in call.events if event[0] == "ended"} == {type(None)}


def test_the_context_is_clean() -> None:
    """No call runs here."""
    assert current_call.get() is None
