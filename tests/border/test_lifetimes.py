"""Opening and closing an app: from any task, in any order, in odd loops, cut at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import alto
from alto.testing import Scripted
from tests.border.cuts import cut_everywhere


@alto.stage
async def speak(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """Say what the engine says."""
    async for chunk in llm.generate(word, max_tokens=10**6):
        yield chunk.text


@alto.pipeline
def say(word: alto.Stream[str]) -> alto.Stream[str]:
    """One stage, on an engine."""
    return speak(word)


def says(prompt: str) -> list[str]:
    """``xyz`` letter by letter; ``long`` for hours."""
    return ["word "] * 10_000 if prompt == "long" else list(prompt)


def engine() -> Scripted:
    """A second per letter."""
    return Scripted(says, delay=1)


def stopped(one: Scripted) -> bool:
    """Whether it is as before it was started."""
    with contextlib.suppress(alto.Closed):
        one.check_health()
        return False
    return one.statistics().running == 0


class Server:
    """What many programs have: a thing with start() and stop(), which others call."""

    def __init__(self, one: Scripted) -> None:
        """Nothing is opened yet."""
        self.engine = one
        self.stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open everything that it needs."""
        self.app = await self.stack.enter_async_context(say.open(llm=self.engine))

    async def stop(self) -> None:
        """Close it in reverse order."""
        await self.stack.aclose()


async def in_a_task(what: Any) -> Any:
    """Await it in a task of its own, which ends with it."""
    return await asyncio.ensure_future(what)


async def test_a_server_object() -> None:
    """An exit stack that one task fills and another empties, while a third reads."""
    one = engine()
    server = Server(one)
    await in_a_task(server.start())
    assert await in_a_task(server.app.run("ab")) == ["a", "b"]
    reader = asyncio.ensure_future(server.app.run("long"))
    await asyncio.sleep(3)
    await in_a_task(server.stop())
    with pytest.raises(alto.RequestCancelled, match="app was closed"):
        await reader
    assert stopped(one)


@pytest.mark.parametrize("order", ["old first", "new first"])
@pytest.mark.parametrize("tasks", ["one", "several"])
@pytest.mark.parametrize("shared", [False, True], ids=["engines", "one engine"])
async def test_an_app_replaces_another(order: str, tasks: str, shared: bool) -> None:
    """The new app is opened before the old one is closed, or after; requests of both run."""
    first = engine()
    second = first if shared else engine()

    async def here(what: Any) -> Any:
        return await (in_a_task(what) if tasks == "several" else what)

    async def opened(one: Scripted) -> alto.App[str, str]:
        return await say.open(llm=one)

    old = await here(opened(first))
    new = await here(opened(second))
    read = asyncio.ensure_future(new.run("xyz"))
    await asyncio.sleep(0.5)
    if order == "old first":
        await here(old.aclose())
        assert await read == ["x", "y", "z"]
        await here(new.aclose())
    else:
        read_too = asyncio.ensure_future(old.run("xyz"))
        assert await read == ["x", "y", "z"]
        await here(new.aclose())
        assert await read_too == ["x", "y", "z"]
        await here(old.aclose())
    assert stopped(first)
    assert stopped(second)


async def test_apps_on_one_exit_stack() -> None:
    """Many apps, opened by tasks at once, closed by a task that opened none."""
    engines = [engine() for _ in range(5)]
    stack = contextlib.AsyncExitStack()
    async with asyncio.TaskGroup() as tasks:
        for one in engines:
            tasks.create_task(stack.enter_async_context(say.open(llm=one)))
    await in_a_task(stack.aclose())
    assert all(stopped(one) for one in engines)


@pytest.mark.parametrize("scope", ["timeout", "task group"])
async def test_a_scope_that_ends_before_the_app_does(scope: str) -> None:
    """What opened it within a time limit or a task group may leave that, and the app goes on."""
    one = engine()
    stack = contextlib.AsyncExitStack()
    if scope == "timeout":
        async with asyncio.timeout(2):
            app = await stack.enter_async_context(say.open(llm=one))
    else:
        async with asyncio.TaskGroup():
            app = await stack.enter_async_context(say.open(llm=one))
    assert await app.run("abcd") == ["a", "b", "c", "d"]
    await stack.aclose()
    assert stopped(one)


# ------------------------------------------------------------------------------ closing


async def test_closing_twice() -> None:
    """Closing again does nothing; closing before opening does nothing either, and ends it."""
    one = engine()
    app = await say.open(llm=one)
    await app.aclose()
    await app.aclose()
    assert stopped(one)
    unopened = say.open(llm=one)
    await unopened.aclose()
    with pytest.raises(alto.Closed, match="call open"):
        await unopened
    assert stopped(one)


async def test_closing_at_once_from_many_tasks() -> None:
    """All of them return when it is closed, and not before."""
    one = engine()
    app = await say.open(llm=one)
    read = asyncio.ensure_future(app.run("long"))
    await asyncio.sleep(2)

    async def close() -> bool:
        await app.aclose()
        return stopped(one) and read.done()

    assert await asyncio.gather(*(close() for _ in range(4))) == [True] * 4
    with pytest.raises(alto.RequestCancelled):
        await read


async def test_closing_while_it_opens() -> None:
    """The opening is cut short, and whoever opens gets an error, not a closed app."""

    class Slow:
        def __init__(self) -> None:
            self.inner = engine()
            self.name = "slow"

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def generate(self, request: Any) -> Any:
            return self.inner.generate(request)

        def check_health(self) -> None:
            self.inner.check_health()

        def statistics(self) -> alto.model.EngineStatistics:
            return self.inner.statistics()

        async def start(self) -> None:
            await asyncio.sleep(5)
            await self.inner.start()

        async def stop(self) -> None:
            await asyncio.sleep(1)
            await self.inner.stop()

    slow = Slow()
    app = say.open(llm=slow)

    async def opened() -> alto.App[str, str]:
        return await app

    start = asyncio.get_running_loop().time()
    opening = asyncio.ensure_future(opened())
    await asyncio.sleep(1)
    await app.aclose()
    assert asyncio.get_running_loop().time() - start <= 2  # Not the five of the engine's start.
    assert stopped(slow.inner)
    with pytest.raises(alto.Closed, match="closed while it opened"):
        await opening
    with pytest.raises(alto.Closed):
        await app.run("a")


async def test_closing_in_the_turn_in_which_it_has_opened() -> None:
    """Whatever turn of the loop it is, opening gives an open app or an error."""
    for turns in range(12):
        one = engine()
        app = say.open(llm=one)

        async def opened(app: Any = app) -> str:
            async with app:
                return str(app)

        opening = asyncio.ensure_future(opened())
        for _ in range(turns):
            await asyncio.sleep(0)
        await app.aclose()
        await asyncio.wait([opening])
        if opening.exception() is None:
            assert ": open," in opening.result()
        else:
            assert isinstance(opening.exception(), alto.Closed)
        assert stopped(one)


async def test_a_stage_cannot_close_its_app() -> None:
    """It would wait for itself; the message says so, and the app works on."""
    found: list[alto.App[str, str]] = []

    @alto.stage
    async def closes(word: str) -> str:
        await found[0].aclose()
        return word

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return closes(word)

    async with p.open() as app:
        found.append(app)
        with pytest.raises(alto.StageError, match="a stage cannot close the app"):
            await app.run("a")
        assert app.statistics().open_requests == 0


async def test_closing_by_another_task_while_results_are_read() -> None:
    """Each reader learns it, by the error that says so."""
    one = engine()
    app = await say.open(llm=one)

    async def loop() -> None:
        async for _ in app.stream("long"):
            pass

    async def block() -> None:
        async with app.stream("long") as results:
            async for _ in results:
                pass

    async def records() -> None:
        async for result in app.map(["long", "long"]):
            result.unwrap()

    readers = [asyncio.ensure_future(read()) for read in (loop, block, records)]
    await asyncio.sleep(3)
    await app.aclose()
    await asyncio.wait(readers)
    assert all(isinstance(reader.exception(), alto.Closed) for reader in readers)
    assert stopped(one)


# ---------------------------------------------------------------------------- being cut


@pytest.mark.parametrize("way", ["block", "awaited", "stack"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.filterwarnings("ignore:an app of 'say':ResourceWarning")
async def test_cut_at_each_suspension(way: str, busy: bool) -> None:
    """Opening, using and closing can be cut anywhere: the engine is stopped, no task is left."""
    one = engine()
    kept: list[Any] = []

    async def use(app: alto.App[str, str]) -> None:
        if busy:
            handle = app.stream("long")
            kept.append(handle)
            await anext(handle)
        else:
            assert await app.run("a") == ["a"]

    async def life() -> None:
        if way == "block":
            async with say.open(llm=one) as app:
                await use(app)
        elif way == "awaited":
            app = await say.open(llm=one)
            try:
                await use(app)
            finally:
                await app.aclose()
        else:
            async with contextlib.AsyncExitStack() as stack:
                await use(await stack.enter_async_context(say.open(llm=one)))

    async def check() -> None:
        kept.clear()
        for _ in range(5):
            await asyncio.sleep(0)
        assert stopped(one)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    assert await cut_everywhere(life, check) >= 3


@pytest.mark.parametrize("times", [2, 3])
async def test_cut_again_and_again(times: int) -> None:
    """A task that is cancelled several times while it closes still closes whole."""
    one = engine()

    @alto.stage
    async def careful(word: str, *, llm: alto.LLM) -> str:
        try:
            return await llm.text("long", max_tokens=10**6)
        finally:
            await asyncio.sleep(10)

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return careful(word)

    async def life() -> None:
        async with p.open(llm=one) as app:
            await app.run("a")

    task = asyncio.ensure_future(life())
    await asyncio.sleep(2)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(1)
        assert not task.done()
    await asyncio.wait([task])
    assert task.cancelled()
    assert stopped(one)


# -------------------------------------------------------------------------------- loops


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def eager_loop() -> asyncio.AbstractEventLoop:
    """A loop whose tasks run their first step at once."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest):
    """A loop that the test drives itself."""
    loop = LOOPS[request.param]()
    asyncio.set_event_loop(loop)
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert asyncio.all_tasks(loop) == set()
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()


def quick() -> Scripted:
    """An engine in real time."""
    return Scripted(says, delay=0.001)


async def opened(one: Scripted) -> alto.App[str, str]:
    """Open it."""
    return await say.open(llm=one)


@pytest.mark.realtime
def test_a_loop_that_is_driven_step_by_step(loop: asyncio.AbstractEventLoop) -> None:
    """Each step is a task of its own; between steps nothing runs."""
    one = quick()
    app = loop.run_until_complete(opened(one))
    assert loop.run_until_complete(app.run("ab")) == ["a", "b"]

    async def begin() -> Any:
        return app.stream("abc")

    handle = loop.run_until_complete(begin())
    assert [loop.run_until_complete(handle.__anext__()) for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(StopAsyncIteration):
        loop.run_until_complete(handle.__anext__())
    left = loop.run_until_complete(begin())
    assert loop.run_until_complete(left.__anext__()) == "a"
    loop.run_until_complete(left.aclose())
    assert loop.run_until_complete(app.drain(timeout=5))
    loop.run_until_complete(app.aclose())
    assert stopped(one)


@pytest.mark.realtime
def test_a_new_loop_for_each_run() -> None:
    """One engine object, over many loops, as where a framework runs the script again."""
    one = quick()
    for make in (*LOOPS.values(), *LOOPS.values()):
        for _ in range(2):
            with asyncio.Runner(loop_factory=make) as runner:
                app = runner.run(opened(one))
                assert runner.run(app.run("abc")) == ["a", "b", "c"]
                runner.run(app.aclose())
            assert stopped(one)
        assert say.run_sync("ab", llm=one) == ["a", "b"]


@pytest.mark.realtime
def test_leaving_on_every_loop(loop: asyncio.AbstractEventLoop) -> None:
    """A cancelled reader takes its request with it, with the collector off."""
    one = quick()
    gc.disable()
    try:
        app = loop.run_until_complete(opened(one))

        async def read() -> None:
            async for _ in app.stream("long"):
                pass

        async def leave() -> None:
            task = asyncio.ensure_future(read())
            await asyncio.sleep(0.05)
            assert app.statistics().open_requests == 1
            task.cancel()
            await asyncio.wait([task])
            for _ in range(200):
                if app.statistics().open_requests == 0:
                    break
                await asyncio.sleep(0)
            assert app.statistics().open_requests == 0
            assert one.statistics().running == 0

        loop.run_until_complete(leave())
        loop.run_until_complete(app.aclose())
    finally:
        gc.enable()
    assert stopped(one)


@pytest.mark.realtime
def test_many_on_every_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Maps and nested task groups run on every loop, and equal each other."""
    one = quick()

    async def main() -> None:
        async with say.open(llm=one, capacity=1) as app:
            words = [f"w{number}" for number in range(50)]
            got = [result.unwrap() async for result in app.map(words, concurrency=8)]
            assert got == [list(word) for word in words]
            assert app.statistics().open_requests == 0

    loop.run_until_complete(main())
    assert stopped(one)


@pytest.mark.realtime
def test_another_loop_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    """An app belongs to the loop that opened it: used or closed in another it says so."""
    one = quick()
    app = loop.run_until_complete(opened(one))
    with asyncio.Runner() as other:
        for use in (lambda: app.run("a"), app.aclose, app.drain):
            with pytest.raises(RuntimeError, match="belongs to the event loop that opened it"):
                other.run(use())
    assert loop.run_until_complete(app.run("a")) == ["a"]
    loop.run_until_complete(app.aclose())
    assert stopped(one)
