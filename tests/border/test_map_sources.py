"""The inputs of a map: closed whole when the map is left, and when its app closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import alto
from alto.testing import run_virtual


@alto.stage
async def slowly(n: int) -> int:
    """A second."""
    await asyncio.sleep(1)
    return n


@alto.pipeline
def slow(n: alto.Stream[int]) -> alto.Stream[int]:
    """For maps."""
    return slowly(n)


class Source:
    """Inputs whose cleaning up takes five seconds, with waits of every kind."""

    def __init__(self, *, ends: int = 100, fails: bool = False, pause: float = 0.1) -> None:
        """How many there are, and whether cleaning up fails at last."""
        self.ends = ends
        self.fails = fails
        self.pause = pause
        self.said: list[str] = []

    async def over_time(self) -> AsyncIterator[int]:
        """An async generator."""
        try:
            for k in range(self.ends):
                yield k
                await asyncio.sleep(self.pause)
        finally:
            self.said.append("begins")
            await asyncio.sleep(1)
            await anyio.sleep(1)
            async with asyncio.timeout(10):
                await asyncio.sleep(1)
            with anyio.move_on_after(1):
                await anyio.sleep_forever()
            await asyncio.shield(asyncio.ensure_future(asyncio.sleep(1)))
            self.said.append("ends")
            if self.fails:
                raise LookupError

    def plain(self) -> Iterator[int]:
        """A generator."""
        try:
            yield from range(self.ends)
        finally:
            self.said.append("closed")


@pytest.mark.parametrize("pause", [0.1, 1e6], ids=["waits for room", "waits for an input"])
@pytest.mark.parametrize("way", ["break", "block", "cancel", "drop", "app", "app twice"])
async def test_an_async_source_cleans_up_whole(way: str, pause: float) -> None:
    """Whatever is left; whoever closes waits for it, but for who only leaves."""
    source = Source(pause=pause)
    app = await slow.open()
    clock = asyncio.get_running_loop().time
    records = app.map(source.over_time(), concurrency=2)
    await anext(records)
    begun = clock()
    if way == "break":
        async for _ in app.map(source.over_time(), concurrency=2):
            break
        await records.aclose()
    elif way == "block":
        async with records:
            pass
        assert clock() - begun == pytest.approx(5, abs=0.1)
    elif way == "cancel":
        with anyio.move_on_after(0.5):
            async for _ in records:
                pass
    elif way == "drop":
        with pytest.warns(ResourceWarning, match="never read to their end"):
            del records
    closing = [asyncio.ensure_future(app.aclose())]
    if way == "app twice":
        await asyncio.sleep(2)
        closing[0].cancel()
        closing.append(asyncio.ensure_future(app.aclose()))
    await asyncio.wait(closing)
    assert sorted(source.said) == sorted(["begins", "ends"] * (2 if way == "break" else 1))


async def test_a_source_that_ends_by_itself_cleans_up_before_the_map_ends() -> None:
    """So that what it closes is closed for whoever goes on behind the loop."""
    source = Source(ends=3)
    async with slow.open() as app:
        assert len(await app.map(source.over_time()).list()) == 3
        assert source.said == ["begins", "ends"]


async def test_a_source_that_fails_while_it_cleans_up() -> None:
    """A reader gets the error; where the map was left, the loop's handler does, and the app goes on."""
    async with slow.open() as app:
        with pytest.raises(LookupError):
            await app.map(Source(ends=3, fails=True).over_time()).list()

        said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with app.map(Source(fails=True).over_time()) as records:
            await anext(records)
        assert [type(one["exception"]) for one in said] == [LookupError]
        assert "the inputs of a map that was closed" in said[0]["message"]
        assert await app.run(1) == [1]


class Odd:
    """An async iterator whose `aclose` fails."""

    def __init__(self) -> None:
        """None."""
        self.left = 2

    def __aiter__(self) -> Odd:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left

    async def aclose(self) -> None:
        """Fails."""
        raise LookupError


async def test_a_source_that_cannot_be_closed() -> None:
    """The error is the reader's, behind the results, and nobody else's."""
    async with slow.open() as app:
        records = app.map(Odd())
        assert [(await anext(records)).unwrap() for _ in range(2)] == [[1], [0]]
        with pytest.raises(LookupError):
            await anext(records)
        assert await app.run(1) == [1]


@pytest.mark.parametrize("way", ["break", "block", "error", "end", "app", "drop"])
async def test_a_plain_generator_is_closed(way: str) -> None:
    """In the same ways; when the app closes, its reader's next read closes it."""
    source = Source(ends=3 if way == "end" else 10**9)
    app = await slow.open()
    records = app.map(source.plain(), concurrency=2)
    if way == "break":
        async for _ in records:
            break
    elif way == "block":
        async with records:
            await anext(records)
    elif way == "error":
        with pytest.raises(ZeroDivisionError):
            async for _ in records:
                raise ZeroDivisionError
    elif way == "end":
        await records.list()
    elif way == "app":
        await anext(records)
        await app.aclose()
        kinds = []
        with pytest.raises(alto.Closed, match="was closed"):
            async for record in records:
                kinds.append(type(record.error))  # the loop raises
        assert kinds == [type(None), *[alto.RequestCancelled] * 2]
    else:
        with pytest.warns(ResourceWarning, match="never read to their end"):
            del records
    for _ in range(10):
        await asyncio.sleep(0)
    assert source.said == (["closed"] if way != "drop" else [])  # It had not begun.
    await app.aclose()


async def test_a_source_of_an_app_that_closed_is_pulled_no_more() -> None:
    """An endless one ends with `Closed`, and not with a record for each of its inputs."""
    source = Source(ends=10**9)
    async with slow.open() as app:
        records = app.map(source.plain())
        over_time = app.map(source.over_time())
    for one in (records, over_time):
        with pytest.raises(alto.Closed):
            await one.list()


def test_a_loop_that_goes_down_lets_a_source_clean_up() -> None:
    """`asyncio.run` that ends under an app cancels the source once, and it ends."""
    source = Source(pause=0)

    async def main() -> None:
        app = await slow.open()
        async for _ in app.map(source.over_time(), concurrency=2):
            raise ZeroDivisionError

    async def short() -> None:
        await asyncio.wait_for(main(), 60)

    with pytest.raises(ZeroDivisionError):
        run_virtual(short)
    assert source.said[0] == "begins"
