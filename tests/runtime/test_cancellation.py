"""For each public wait: cancel at each suspension, then everything is as in a fresh object."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import pytest

import alto
from alto.testing.scripted import Scripted
from tests.border.cuts import cut_everywhere


@alto.stage
async def letters(word: str) -> AsyncIterator[str]:
    """One item a second."""
    for letter in word:
        await asyncio.sleep(1)
        yield letter


@alto.stage(concurrency=2)
async def slow(letter: str) -> str:
    """Takes its time, and cleans up slowly."""
    try:
        await asyncio.sleep(1.5)
    finally:
        await asyncio.sleep(0.1)
    return letter


@alto.stage
async def joined(pieces: alto.Group[str]) -> AsyncIterator[str]:
    """Gathers, and gives what it gathered piece by piece."""
    got = [piece async for piece in pieces]
    for piece in got:
        yield piece


@alto.pipeline
def spell(word: alto.Stream[str]) -> alto.Stream[str]:
    """The pipeline most tests cut."""
    return joined(slow(letters(word)))


@pytest.mark.parametrize("capacity", [1, 32])
async def test_run(capacity: int) -> None:
    """Cutting `app.run` anywhere leaves nothing of the request."""
    async with spell.open(capacity=capacity) as app:
        fresh = app.statistics()

        async def check() -> None:
            assert app.statistics() == fresh
            assert await app.run("xy") == ["x", "y"]

        assert await cut_everywhere(lambda: app.run("abc"), check) >= 1


@pytest.mark.parametrize("capacity", [1, 32])
async def test_stream(capacity: int) -> None:
    """Cutting the reader of a stream anywhere, and closing it, leaves nothing of the request."""
    async with spell.open(capacity=capacity) as app:
        fresh = app.statistics()

        async def read() -> None:
            async with app.stream("abc") as handle:
                assert [x async for x in handle] == ["a", "b", "c"]

        async def check() -> None:
            assert app.statistics() == fresh

        assert await cut_everywhere(read, check) >= 1


async def test_reading_loses_nothing_when_it_is_cut() -> None:
    """Cancelling one read of a stream loses no result: the next read gets it."""
    async with spell.open() as app:
        handle = app.stream("abc")
        got = []
        for _ in range(3):
            task = asyncio.ensure_future(anext(handle))  # type: ignore[arg-type,var-annotated]
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                got.append(task.result())
        got += [x async for x in handle]
        assert got == ["a", "b", "c"]


async def test_dropping_an_unread_stream_in_a_cut_task() -> None:
    """A task that is cut while it iterates an unnamed stream takes the request with it."""
    async with spell.open() as app:
        fresh = app.statistics()

        async def read() -> None:
            async for _ in app.stream("abc"):
                await asyncio.sleep(0.5)

        async def check() -> None:
            gc.collect()  # asyncio leaves a cycle where a task cancels itself, as this cut does.
            await asyncio.sleep(1)
            assert app.statistics() == fresh

        assert await cut_everywhere(read, check) >= 1


async def test_map() -> None:
    """Cutting the reader of a map anywhere leaves nothing of its requests."""
    async with spell.open() as app:
        fresh = app.statistics()

        async def read() -> None:
            async with app.map(["ab", "c", "de"], concurrency=2) as results:
                assert [r.unwrap() async for r in results] == [["a", "b"], ["c"], ["d", "e"]]

        async def check() -> None:
            assert app.statistics() == fresh

        assert await cut_everywhere(read, check) >= 2


async def test_map_over_an_async_iterable() -> None:
    """Cutting a map leaves no feeder behind, and closes its source."""
    closed = []

    async def source() -> AsyncIterator[str]:
        try:
            for word in ("ab", "c"):
                await asyncio.sleep(0.7)
                yield word
        finally:
            closed.append(True)

    async with spell.open() as app:
        fresh = app.statistics()

        async def read() -> None:
            async with app.map(source(), concurrency=2) as results:
                assert [r.unwrap() async for r in results] == [["a", "b"], ["c"]]

        async def check() -> None:
            await asyncio.sleep(10)
            assert app.statistics() == fresh

        cuts = await cut_everywhere(read, check)
        assert cuts >= 2
        assert len(closed) == cuts + 1


@pytest.mark.filterwarnings("ignore:the results of app.stream:ResourceWarning")
async def test_close() -> None:
    """Cutting `aclose` anywhere still closes: it is shielded."""
    async with spell.open() as app:
        fresh = app.statistics()

        async def close() -> None:
            handle = app.stream("abc")
            await asyncio.sleep(1.2)
            await handle.aclose()

        async def check() -> None:
            gc.collect()  # As above: cut before `aclose`, the handle is merely dropped.
            await asyncio.sleep(0.5)
            assert app.statistics() == fresh

        assert await cut_everywhere(close, check) >= 2


async def test_open() -> None:
    """Cutting an opening, open or closing app anywhere stops its engine and its requests."""
    engine = Scripted({"x": ["a", "b"]}, delay=0.5)

    @alto.stage
    async def say(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
        async for chunk in llm.generate(word):
            yield chunk.text

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return say(word)

    async def use() -> None:
        async with p.open(llm=engine) as app:
            assert await app.run("x") == ["a", "b"]

    async def check() -> None:
        assert engine.statistics() == alto.model.EngineStatistics()
        with pytest.raises(alto.Closed):
            engine.check_health()

    assert await cut_everywhere(use, check) >= 1


async def test_generation() -> None:
    """Cutting a generation anywhere frees the engine's slot."""
    async with Scripted({"x": ["a", "b", "c"]}, delay=0.5, slots=1) as engine:
        llm = alto.LLM(engine)

        async def check() -> None:
            assert engine.statistics() == alto.model.EngineStatistics()

        assert await cut_everywhere(lambda: llm.text("x"), check) >= 1


async def test_cancelled_request_closes_its_generations_in_their_own_task() -> None:
    """Leaving a request aborts its generation, in the task that iterated it."""
    tasks: list[bool] = []

    class Watching(Scripted):
        async def generate(self, request):  # type: ignore[no-untyped-def,override]
            mine = asyncio.current_task()
            inner = super().generate(request)
            try:
                async for chunk in inner:
                    yield chunk
            finally:
                tasks.append(asyncio.current_task() is mine)
                await inner.aclose()

    engine = Watching({"x": ["a"] * 50}, delay=0.5)

    @alto.stage
    async def say(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
        async for chunk in llm.generate(word):
            yield chunk.text

    @alto.stage
    async def say_first(word: str, *, llm: alto.LLM) -> str:
        async for chunk in llm.generate(word):
            if chunk.text:
                break
        await asyncio.sleep(1)
        return chunk.text

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return say(word)

    @alto.pipeline
    def first(word: alto.Stream[str]) -> alto.Stream[str]:
        return say_first(word)

    async with engine:
        async with p.open(llm=engine) as app:
            async with app.stream("x") as handle:
                await anext(handle)
            assert engine.statistics().running == 0
        async with first.open(llm=engine) as app:
            assert await app.run("x") == ["a"]
            assert engine.statistics().running == 0
    assert tasks == [True, True]


async def test_stage_that_swallows_cancellation() -> None:
    """A stage that swallows its cancellation and goes on harms nobody."""

    @alto.stage
    async def stubborn(word: str) -> AsyncIterator[str]:
        for letter in word:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)
            yield letter

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return joined(stubborn(word))

    async with p.open() as app:
        fresh = app.statistics()
        with pytest.raises(alto.DeadlineExceeded):
            await app.run("abcdef", timeout=2.5)
        assert app.statistics() == fresh
        assert await app.run("xy") == ["x", "y"]


async def test_stage_whose_own_task_is_cancelled_elsewhere() -> None:
    """A CancelledError that the stage itself provoked is that stage's failure."""

    @alto.stage
    async def confused(word: str) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return confused(word)

    async with p.open() as app:
        with pytest.raises(alto.StageError, match="CancelledError"):
            await app.run("a")


async def test_failing_cleanup_is_not_lost() -> None:
    """An error while a failed request cleans up becomes a note of the first error."""

    @alto.stage
    async def messy(letter: str) -> str:
        if letter == "b":
            message = "first"
            raise ValueError(message)
        try:
            await asyncio.sleep(100)
        finally:
            message = "second"
            raise OSError(message)

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return messy(letters(word))

    async with p.open() as app:
        with pytest.raises(alto.StageError, match="first") as caught:
            await app.run("ab")
    assert "second" in "".join(caught.value.__notes__)


async def test_outer_timeout_around_an_app() -> None:
    """A timeout around the whole app ends its requests, and lets stages clean up."""
    import anyio  # noqa: PLC0415

    cleaned = []

    @alto.stage
    async def careful(word: str) -> str:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            cleaned.append(word)
        return word

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return careful(word)

    with pytest.raises(TimeoutError):
        with anyio.fail_after(5):
            async with p.open() as app:
                await app.run("a")
    assert cleaned == ["a"]
