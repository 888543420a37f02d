from __future__ import annotations

import asyncio
import contextlib

import attrs
import pytest

from alto.engines.pool import Pool
from alto.engines.profiles import CPU_TINY
from alto.engines.simulated import Simulated
from alto.errors import Closed, EngineDied, EngineStartError, PromptTooLong
from alto.llm import LLM
from alto.model import EmbedRequest, GenerateRequest
from alto.sched import RoundRobin
from alto.testing import Scripted

WORDS = ["one ", "two ", "three ", "four "]
WHOLE = "".join(WORDS)
LENGTHS = (32, 64)
"""Contexts of the engines in `TestContexts`, in tokens."""


class Slow:
    """A scripted engine that takes its time to start, and counts how often it did."""

    def __init__(self, name="slow", *, seconds=10.0):
        self.inner = Scripted(lambda _prompt: WORDS, name=name, delay=1.0)
        self.seconds = seconds
        self.starts = 0
        self.stops = 0

    name = property(lambda self: self.inner.name)
    statistics = property(lambda self: self.inner.statistics)
    check_health = property(lambda self: self.inner.check_health)

    async def start(self):
        """Make it ready, in a while."""
        self.starts += 1
        await asyncio.sleep(self.seconds)
        await self.inner.start()

    async def stop(self):
        """Stop it, which takes a second."""
        self.stops += 1
        await asyncio.sleep(1)
        await self.inner.stop()

    def generate(self, request):
        """As scripted."""
        return self.inner.generate(request)


def now():
    """Seconds of the virtual clock."""
    return asyncio.get_running_loop().time()


def runs(engine):
    """Whether an engine, or a pool, runs."""
    try:
        engine.check_health()
    except Closed:
        return False
    return True


async def ask(pool):
    """The text of one generation."""
    return await LLM(pool).text("p")


class TestStartWhileItStops:
    """A start that comes while an earlier life is being stopped."""

    async def test_it_waits_for_a_drain_and_then_starts(self):
        """A start during a drain begins a new life when the drain is over, which goes on."""
        pool = Pool([engine := Slow()])
        await pool.start()
        for lives in (1, 2, 3):
            reading = asyncio.ensure_future(ask(pool))
            await asyncio.sleep(0.5)
            stopping = asyncio.ensure_future(pool.stop(drain=True))
            await asyncio.sleep(0.5)
            await pool.start()
            assert stopping.done()
            assert reading.result() == WHOLE
            assert (engine.starts, engine.stops) == (lives + 1, lives)
        assert await ask(pool) == WHOLE
        await pool.stop()
        assert not runs(engine)

    async def test_a_drain_that_was_cut_does_not_stop_what_was_started_since(self):
        """A drain whose pool was stopped and started again by others ends, and stops nothing."""
        pool = Pool([engine := Slow()])
        await pool.start()
        away = pool.generate(GenerateRequest(prompt="away"))
        await anext(away)
        draining = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0.5)
        await pool.stop()
        starting = asyncio.ensure_future(pool.start())
        await asyncio.sleep(0.5)
        assert draining.done()
        await starting
        with pytest.raises(Closed):
            await anext(away)
        await asyncio.sleep(5)
        assert await ask(pool) == WHOLE
        assert (engine.starts, engine.stops) == (2, 1)
        await pool.stop()

    async def test_a_drain_that_is_cut_in_the_moment_of_a_new_start(self):
        """Also where the start is in the line before the drain, the drain stops nothing after it."""
        pool = Pool([engine := Slow()])
        await pool.start()
        reading = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.5)
        draining = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0.5)
        await asyncio.gather(pool.stop(), pool.start())
        with pytest.raises(Closed):
            await reading
        await draining
        assert await ask(pool) == WHOLE
        assert (engine.starts, engine.stops) == (2, 1)
        await pool.stop()

    async def test_several_drains_and_starts(self):
        """Of two drains one stops the pool, and of two starts that wait one starts it again."""
        pool = Pool([engine := Slow()])
        await pool.start()
        reading = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.5)
        drains = [asyncio.ensure_future(pool.stop(drain=True)) for _ in range(2)]
        await asyncio.sleep(0.5)
        await asyncio.gather(pool.start(), pool.start())
        assert all(drain.done() for drain in drains)
        assert await reading == WHOLE
        assert (engine.starts, engine.stops) == (2, 1)
        await pool.stop()

    async def test_it_waits_for_a_stop(self):
        """A start during a stop begins when that is over."""
        pool = Pool([engine := Slow()])
        await pool.start()
        stopping = asyncio.ensure_future(pool.stop())
        await asyncio.sleep(0.5)
        await pool.start()
        assert stopping.done()
        assert now() == 21.0
        assert await ask(pool) == WHOLE
        await pool.stop()
        assert (engine.starts, engine.stops) == (2, 2)

    async def test_a_start_that_waits_can_be_cancelled(self):
        """Whoever does not want it any more cancels, and the drain goes on."""
        pool = Pool([engine := Slow()])
        await pool.start()
        reading = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.5)
        stopping = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0)  # It has begun: since Python 3.12 `wait_for` does not wait for that.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.start(), 0.5)
        await stopping
        assert await reading == WHOLE
        assert engine.starts == 1
        assert not runs(pool)


class TestStopWhileItStarts:
    """A stop that comes while the pool starts."""

    @pytest.mark.parametrize("drain", [False, True])
    @pytest.mark.parametrize("count", [1, 2])
    async def test_it_ends_the_start(self, drain, count):
        """Starts under way end with Closed, those that wait for them too, and nothing runs."""
        engines = [Slow("quick", seconds=1.0), Slow("never", seconds=1e9)]
        pool = Pool(engines)
        starts = [asyncio.ensure_future(pool.start()) for _ in range(count)]
        await asyncio.sleep(2)
        assert runs(engines[0])
        await pool.stop(drain=drain)
        assert now() == 3.0
        for start in starts:
            with pytest.raises(Closed, match="was stopped while it started"):
                await start
        assert not any(runs(engine) for engine in [*engines, pool])
        assert [engine.starts for engine in engines] == [1, 1]

    @pytest.mark.parametrize("steps", range(16))
    async def test_at_every_step(self, steps):
        """Whenever the stop comes, nothing runs after it, and the pool can be started again."""
        pool = Pool(engines := [Slow(f"e{k}", seconds=0.0) for k in range(2)])
        start = asyncio.ensure_future(pool.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        await pool.stop()
        await asyncio.wait([start])
        if steps:  # before its first step a start is one that comes after the stop
            assert not any(runs(engine) for engine in [*engines, pool])
        await pool.stop()
        assert not any(runs(engine) for engine in [*engines, pool])
        await pool.start()
        assert await ask(pool) == WHOLE
        await pool.stop()

    async def test_a_start_that_waits_for_a_drain_is_ended_too(self):
        """The last word counts: after drain, start, stop the pool is stopped."""
        pool = Pool([engine := Slow()])
        await pool.start()
        reading = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.5)
        stopping = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0.5)
        starting = asyncio.ensure_future(pool.start())
        await asyncio.sleep(0.5)
        await pool.stop()
        for task in (reading, starting):
            with pytest.raises(Closed):
                await task
        await stopping
        assert engine.starts == 1
        assert not runs(engine)

    async def test_a_start_that_comes_after_the_stop_is_done(self):
        """A stop ends starts that were there before it, and no others."""
        pool = Pool([engine := Slow(seconds=5.0)])
        first = asyncio.ensure_future(pool.start())
        await asyncio.sleep(1)
        stopping = asyncio.ensure_future(pool.stop())
        await asyncio.sleep(0)
        await pool.start()
        with pytest.raises(Closed):
            await first
        await stopping
        assert await ask(pool) == WHOLE
        await pool.stop()
        assert not runs(engine)


class TestStartGroup:
    """A start_group that does wrong."""

    async def test_its_error_is_that_of_the_start(self):
        """What it raises arrives at the caller, no engine was touched, and no task is left."""

        def fail(_engine):
            raise ZeroDivisionError

        pool = Pool([engine := Slow()], start_group=fail)
        tasks = asyncio.all_tasks()
        with pytest.raises(ZeroDivisionError):
            await pool.start()
        assert asyncio.all_tasks() == tasks
        assert (engine.starts, engine.stops) == (0, 0)
        assert not runs(pool)
        await pool.stop()

    async def test_what_cannot_be_compared(self):
        """A value that cannot be a key is refused like an error of its own."""
        pool = Pool([Slow()], start_group=lambda _engine: [])
        tasks = asyncio.all_tasks()
        with pytest.raises(TypeError, match="unhashable"):
            await pool.start()
        assert asyncio.all_tasks() == tasks

    async def test_it_is_asked_once_per_engine_and_start(self):
        """One that fails later does not keep an engine from being replaced."""
        asked = []
        engines = [Slow(f"e{k}", seconds=0.0) for k in range(2)]

        def group(engine):
            asked.append(engine.name)
            if len(asked) > 2:
                raise ZeroDivisionError
            return 0

        async with (pool := Pool(engines, start_group=group)):
            engines[0].inner.kill()
            assert await ask(pool) == await ask(pool) == WHOLE
            await asyncio.sleep(5)
            assert [e.state for e in pool.engines] == ["running"] * 2
        assert asked == ["e0", "e1"]


class TestEntries:
    """Several that enter one pool."""

    async def test_the_last_that_leaves_stops_it(self):
        """While somebody is inside, the pool runs, whoever entered first."""
        pool = Pool([engine := Slow(seconds=1.0)])

        async def user(comes, stays):
            await asyncio.sleep(comes)
            async with pool:
                await asyncio.sleep(stays)
                return await ask(pool)

        users = [asyncio.ensure_future(user(*times)) for times in ((0, 1), (0, 4), (3, 10))]
        await asyncio.wait(users)
        assert [u.result() for u in users] == [WHOLE] * 3
        assert not any(map(runs, (engine, pool)))
        assert (engine.starts, engine.stops) == (1, 1)

    async def test_one_that_enters_while_the_last_leaves(self):
        """It waits for the stop, and starts the pool again."""
        pool = Pool([engine := Slow(seconds=1.0)])
        async with pool:
            pass
        leaving = asyncio.ensure_future(pool.__aenter__())
        await leaving
        last = asyncio.ensure_future(pool.__aexit__(None, None, None))
        await asyncio.sleep(0.5)
        async with pool:
            assert last.done()
            assert await ask(pool) == WHOLE
        assert (engine.starts, engine.stops) == (3, 3)

    async def test_a_stop_stops_it_all_the_same(self):
        """Whoever asks for a stop gets it; those inside can leave, and enter again."""
        pool = Pool([engine := Slow(seconds=1.0)])
        async with pool:
            async with pool:
                await pool.stop()
                assert not runs(engine)
            assert not runs(engine)
            async with pool:
                assert await ask(pool) == WHOLE
            assert runs(pool)
        assert not runs(engine)

    async def test_one_that_could_not_enter_does_not_count(self):
        """A start that failed, or was cancelled, leaves nobody inside."""
        pool = Pool([engine := Slow(seconds=5.0)])
        first, second = (asyncio.ensure_future(pool.__aenter__()) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await second
        assert engine.starts == 2
        assert first.cancelled()
        await pool.__aexit__(None, None, None)
        assert not runs(engine)

    async def test_one_that_enters_and_is_cancelled_while_another_leaves(self):
        """The one that leaves is the last, and stops the pool."""
        pool = Pool([engine := Slow(seconds=1.0)])
        await pool.__aenter__()
        await pool.stop()
        await pool.start()
        stopping = asyncio.ensure_future(pool.stop())
        await asyncio.sleep(0)
        entering = asyncio.ensure_future(pool.__aenter__())
        await asyncio.sleep(0)
        leaving = asyncio.ensure_future(pool.__aexit__(None, None, None))
        await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([stopping, entering, leaving])
        assert not any(map(runs, (engine, pool)))

    async def test_one_that_leaves_while_another_waits_to_enter(self):
        """The one that enters starts the pool, and the one that left does not stop it again."""
        pool = Pool([engine := Slow(seconds=1.0)])
        await pool.__aenter__()
        stopping = asyncio.ensure_future(pool.stop())
        await asyncio.sleep(0.5)
        entering = asyncio.ensure_future(pool.__aenter__())
        await asyncio.sleep(0)
        leaving = asyncio.ensure_future(pool.__aexit__(None, None, None))
        await asyncio.wait([stopping, entering, leaving])
        assert await ask(pool) == WHOLE
        await pool.__aexit__(None, None, None)
        assert not runs(engine)
        assert engine.starts == 2

    async def test_leaving_what_was_started_and_not_entered(self):
        """An exit alone stops the pool, as when it is pushed on an exit stack, and counts for nothing."""
        pool = Pool([engine := Slow(seconds=1.0)])
        for _ in range(2):
            async with contextlib.AsyncExitStack() as stack:
                await pool.start()
                stack.push_async_exit(pool)
            assert not runs(engine)
        async with pool:
            assert await ask(pool) == WHOLE
        assert not runs(engine)

    async def test_a_start_that_fails_on_entering(self):
        """The error arrives, and the next that enters starts the pool."""
        engine = Slow(seconds=1.0)
        pool = Pool([engine, broken := Slow("broken")])
        good = broken.start

        async def fail():
            raise EngineStartError("broken", "no memory")

        broken.start = fail
        with pytest.raises(EngineStartError):
            await pool.__aenter__()
        broken.start = good
        async with pool:
            assert await ask(pool) == WHOLE
        assert not runs(engine)


class TestContexts:
    """Engines of one pool that have different contexts."""

    @pytest.fixture
    def pool(self):
        """Two engines, of which the first has the shorter context."""
        engines = [
            Simulated(attrs.evolve(CPU_TINY, max_model_len=length), 4, name=f"e{length}")
            for length in LENGTHS
        ]
        return Pool(engines, policy=RoundRobin())

    async def test_a_prompt_for_some_of_them_only_is_refused(self, pool):
        """Each time, before an engine has it, and with the name of the engine that is the limit."""
        async with pool:
            for _ in range(4):
                with pytest.raises(PromptTooLong, match="'e32'") as caught:
                    await anext(pool.generate(GenerateRequest(prompt=[1] * 32)))
                assert (caught.value.prompt_tokens, caught.value.limit) == (32, 32)
            assert pool.capacity.max_model_len == 32
            for _ in range(2):
                await anext(pool.generate(GenerateRequest(prompt=[1] * 31)))

    async def test_also_while_the_shorter_one_is_replaced(self, pool):
        """It comes back, so a prompt that it cannot take is refused also meanwhile."""
        async with pool:
            short = pool._members.slots[0].engine

            async def later(start=short.start):
                await asyncio.sleep(5)
                await start()

            short.start = later
            short.kill()
            await asyncio.sleep(1)
            assert [e.state for e in pool.engines] == ["starting", "running"]
            with pytest.raises(PromptTooLong):
                await anext(pool.generate(GenerateRequest(prompt=[1] * 32)))

    async def test_one_that_is_given_up_is_no_limit(self):
        """When the engine with the shorter context is lost, that of the others counts."""
        engines = [
            Simulated(attrs.evolve(CPU_TINY, max_model_len=length), 4, name=f"e{length}")
            for length in LENGTHS
        ]
        async with Pool(engines, replace=False) as pool:
            engines[0].kill()
            await asyncio.sleep(1)
            await anext(pool.generate(GenerateRequest(prompt=[1] * 63)))
            with pytest.raises(PromptTooLong):
                await anext(pool.generate(GenerateRequest(prompt=[1] * 64)))

    async def test_what_has_outgrown_the_shorter_one_is_not_resumed(self):
        """Its engine's death is raised, not that the prompt were too long."""
        engines = [
            Simulated(attrs.evolve(CPU_TINY, max_model_len=length), 20, name=f"e{length}")
            for length in LENGTHS
        ]
        async with Pool(engines, policy=RoundRobin(), replace=False) as pool:
            request = GenerateRequest(prompt=[1] * 30, resume=True)
            await anext(pool.generate(request))  # on the shorter one
            chunks = pool.generate(request)
            for _ in range(5):
                await anext(chunks)
            engines[1].kill()
            with pytest.raises(EngineDied):
                await anext(chunks)

    async def test_prompts_that_are_embedded(self, pool):
        """They may fill the context, and are refused above it."""
        given = []

        async def embed(request):
            given.append(request)

        for seat in pool._members.slots:
            seat.engine.embed = embed
        async with pool:
            await pool.embed(EmbedRequest(prompt=[1] * 32))
            with pytest.raises(PromptTooLong, match="'e32'"):
                await pool.embed(EmbedRequest(prompt=[1] * 33))
        assert len(given) == 1


class TestMadeEngines:
    """A pool whose engines are made at its first start."""

    async def test_they_are_made_once(self):
        """The function is called at the first start, and not at the second."""
        made = []

        async def make():
            await asyncio.sleep(1)
            made.append(Scripted(lambda _prompt: WORDS))
            return made[-1:]

        pool = Pool(make)
        assert (pool.engines, pool.statistics().kv_usage, pool.load) == ((), 0.0, 0)
        for _ in range(2):
            async with pool:
                assert await LLM(pool).text("x") == WHOLE
        assert len(made) == 1

    async def test_a_failure_is_raised_and_they_are_made_at_the_next_start(self):
        """What the function raises ends the start, and nothing is left of it."""
        tries = []

        async def make():
            tries.append(now())
            if len(tries) == 1:
                raise EngineStartError("pool", "no room")
            return [Scripted(lambda _prompt: WORDS)]

        pool = Pool(make)
        with pytest.raises(EngineStartError, match="no room"):
            await pool.start()
        with pytest.raises(Closed, match="start it first"):
            pool.check_health()
        async with pool:
            assert await LLM(pool).text("x") == WHOLE
        assert len(tries) == 2

    @pytest.mark.parametrize("made", [[], ["x"]])
    async def test_they_are_checked(self, made):
        """No engine at all, and something else than an engine, are refused at the start."""

        async def make():
            return made

        pool = Pool(make)
        with pytest.raises((ValueError, TypeError), match=r"at least one engine|not one: 'x'"):
            await pool.start()

    async def test_a_start_that_is_cancelled_while_they_are_made(self):
        """The pool is stopped, and can be started again."""

        async def make():
            await asyncio.sleep(10)
            return [Scripted(lambda _prompt: WORDS)]

        pool = Pool(make)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await pool.start()
        assert not runs(pool)
        async with pool:
            assert runs(pool)


async def test_a_pool_whose_engines_are_all_dead_for_good_is_started_again():
    """``start`` on a pool that nothing can bring back stops it and starts its engines."""
    engine = Scripted(lambda _prompt: WORDS)
    async with Pool([engine], replace=False) as pool:
        engine.kill()
        with pytest.raises(EngineDied):
            await LLM(pool).text("x")
        assert pool.engines[0].state == "failed"
        await pool.start()
        assert await LLM(pool).text("x") == WHOLE
