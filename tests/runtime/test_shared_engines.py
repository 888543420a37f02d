"""Engines that several apps use, and who starts and stops them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import alto
from alto.engines import Pool
from alto.testing.scripted import Scripted


@alto.stage
async def say(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """Repeat what the engine says."""
    async for chunk in llm.generate(word):
        yield chunk.text


@alto.pipeline
def talk(word: alto.Stream[str]) -> alto.Stream[str]:
    """One stage."""
    return say(word)


@alto.stage
async def say_two(word: str, *, llm: alto.LLM, other: alto.LLM) -> str:
    """Ask two engines."""
    return await llm.text(word) + await other.text(word)


@alto.pipeline
def ask_two(word: alto.Stream[str]) -> alto.Stream[str]:
    """One stage with two engines."""
    return say_two(word)


def scripted() -> Scripted:
    """Says `a` and `b`, half a second each."""
    return Scripted({"x": ["a", "b"]}, delay=0.5)


def pool() -> Pool:
    """Two such engines."""
    return Pool([scripted(), scripted()])


@pytest.mark.parametrize("make", [scripted, pool])
class TestApps:
    """Apps whose lives overlap."""

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("first_closes_first", [True, False])
    async def test_the_last_app_stops_an_engine(
        self, make, first_closes_first: bool, together: bool
    ) -> None:
        """The app that has started it may close before another one that uses it."""
        engine = make()
        one, two = talk.open(llm=engine), talk.open(llm=engine)
        async with asyncio.TaskGroup() as tasks:
            close = [asyncio.Event(), asyncio.Event()]
            closed = [asyncio.Event(), asyncio.Event()]
            ready = [asyncio.Event(), asyncio.Event()]

            async def use(number: int, app: alto.App) -> None:
                async with app:
                    assert await app.run("x") == ["a", "b"]
                    ready[number].set()
                    await close[number].wait()
                    assert await app.run("x") == ["a", "b"]
                closed[number].set()

            for number, app in enumerate((one, two)):
                tasks.create_task(use(number, app))
                await asyncio.sleep(0 if together else 5)
            await ready[0].wait()
            await ready[1].wait()
            for number in (0, 1) if first_closes_first else (1, 0):
                engine.check_health()
                close[number].set()
                await closed[number].wait()
        with pytest.raises(alto.Closed):
            engine.check_health()
        async with talk.open(llm=engine) as again:
            assert await again.run("x") == ["a", "b"]
        with pytest.raises(alto.Closed):
            engine.check_health()

    async def test_an_engine_that_the_program_started_is_left_alone(self, make) -> None:
        """No app stops it, however many use it."""
        engine = make()
        async with engine:
            for _ in range(2):
                async with talk.open(llm=engine) as one, talk.open(llm=engine) as two:
                    assert await one.run("x") == await two.run("x") == ["a", "b"]
                engine.check_health()

    async def test_an_app_that_fails_to_open_stops_only_what_nobody_uses(self, make) -> None:
        """The engine of another app goes on."""
        engine = make()
        async with talk.open(llm=engine) as app:
            with pytest.raises(RuntimeError, match="no such model"):
                async with ask_two.open(llm=engine, other=_Broken({})):
                    pass
            assert await app.run("x") == ["a", "b"]
        with pytest.raises(alto.Closed):
            engine.check_health()


async def test_an_app_that_opens_while_the_last_one_stops_waits() -> None:
    """It finds the engine stopped and starts it, instead of taking it for somebody else's."""
    engine = _Slow({"x": ["a", "b"]}, delay=0.5)

    async def use_first() -> None:
        async with talk.open(llm=engine) as app:
            assert await app.run("x") == ["a", "b"]

    first = asyncio.create_task(use_first())
    await asyncio.sleep(1.5)  # it stops the engine now
    assert not first.done()
    engine.check_health()
    async with talk.open(llm=engine) as second:
        assert await second.run("x") == ["a", "b"]
    await first
    with pytest.raises(alto.Closed):
        engine.check_health()


class _Slow(Scripted):
    """An engine that takes a second before it stops."""

    async def stop(self) -> None:
        """Take time, and stop."""
        await asyncio.sleep(1)
        await super().stop()


class _Broken(Scripted):
    """An engine that does not start."""

    async def start(self) -> None:
        """Fail."""
        msg = "no such model"
        raise RuntimeError(msg)
