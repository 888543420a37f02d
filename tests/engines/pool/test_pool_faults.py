from __future__ import annotations

import asyncio

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alto.engines.pool import Pool
from alto.engines.profiles import CPU_TINY
from alto.engines.simulated import Simulated
from alto.errors import (
    Closed,
    DeadlineExceeded,
    EngineDied,
    EngineStartError,
    GenerationFailed,
    InvalidRequest,
)
from alto.llm import LLM
from alto.model import EngineCapacity, EngineStatistics, GenerateRequest, Origin
from alto.sched import LeastLoaded, PromptAware, RoundRobin
from alto.testing import Line, Scripted, run_virtual

LENGTH = 6


def counting(prompt):
    """Numbers from the last in the prompt on, so that a text can be continued."""
    words = prompt.split()
    begin = int(words[-1]) + 1 if words and words[-1].isdigit() else 0
    return [f"{k} " for k in range(begin, LENGTH)] or ["end"]


class Mortal:
    """A member that says numbers, tells its tokens, and can be killed or kept from starting."""

    def __init__(self, name="mortal", *, seats=2, delay=1.0, lines=counting, tells=True):
        self.inner = Scripted(lines, slots=seats, name=name, delay=delay)
        self.capacity = EngineCapacity(max_num_seqs=seats, max_num_batched_tokens=1000)
        self.broken = None
        self.starts = 0
        self.over = 0
        self._tells = tells
        self._died = None

    name = property(lambda self: self.inner.name)
    statistics = property(lambda self: self.inner.statistics)
    check_health = property(lambda self: self.inner.check_health)
    stop = property(lambda self: self.inner.stop)

    async def start(self):
        """Make it ready."""
        self.starts += 1
        if self.broken is not None:
            raise self.broken
        self._died = asyncio.get_running_loop().create_future()
        await self.inner.start()

    async def encode(self, prompt):
        """Words are their own numbers."""
        self.inner.check_health()
        return [int(w) for w in prompt.split()] if isinstance(prompt, str) else list(prompt)

    async def generate(self, request):
        """As scripted; numbers are their own tokens."""
        self.over = max(self.over, self.inner.statistics().waiting)
        async for chunk in self.inner.generate(request):
            if chunk.text.strip().isdigit():
                chunk.token_ids = (int(chunk.text),)
            yield chunk

    def listen(self, _listener):
        """It cannot tell."""
        return False

    async def wait_died(self):
        """Wait for `kill`."""
        await self._died

    def kill(self):
        """Die."""
        self.inner.kill()
        if self._tells and self._died is not None and not self._died.done():
            self._died.set_result(None)


def pool_of(count, **options):
    """A pool of so many mortal engines, and these."""
    made = {name: options.pop(name) for name in ("seats", "delay", "tells") if name in options}
    engines = [Mortal(f"e{k}", **made) for k in range(count)]
    return Pool(engines, **options), engines


async def outcome(pool, prompt="7777", **options):
    """The text of one generation, or what it raised."""
    try:
        return await LLM(pool).text(prompt, **options)
    except Exception as error:  # noqa: BLE001  # looked at by the test
        return error


WHOLE = "".join(f"{k} " for k in range(LENGTH))


def from_zero(prompt):
    """A prompt that ends with 7777 is answered from 0 on."""
    return counting("") if prompt.endswith("7777") else counting(prompt)


@pytest.fixture
def pool_from_zero():
    """Makes pools whose engines count from 0 on."""

    def make(count, **options):
        pool, engines = pool_of(count, **options)
        for engine in engines:
            engine.inner = Scripted(from_zero, slots=2, name=engine.name, delay=1.0)
        return pool, engines

    return make


class TestDeath:
    """An engine dies while it has calls."""

    @pytest.mark.parametrize("tells", [True, False])
    async def test_what_has_said_nothing_runs_elsewhere(self, pool_from_zero, tells):
        """A call without a token yet goes to another engine, and its caller notices nothing."""
        pool, engines = pool_from_zero(2, tells=tells, policy=LeastLoaded())
        async with pool:
            task = asyncio.ensure_future(outcome(pool))
            await asyncio.sleep(0.5)
            engines[0].kill()
            assert await task == WHOLE
            pool.scheduler.check()

    @pytest.mark.parametrize("said", range(1, LENGTH))
    async def test_what_has_said_something_fails_with_the_cause(self, pool_from_zero, said):
        """A call in the middle ends with EngineDied, wherever in the middle, and others go on."""
        pool, engines = pool_from_zero(2, policy=LeastLoaded())
        async with pool:
            tasks = [asyncio.ensure_future(outcome(pool)) for _ in range(2)]
            await asyncio.sleep(said + 0.5)
            engines[0].kill()
            first, second = [await task for task in tasks]
            assert isinstance(first, EngineDied)
            assert "killed by the test" in str(first)
            assert second == WHOLE

    @pytest.mark.parametrize("said", range(1, LENGTH))
    async def test_a_call_that_may_resumes(self, pool_from_zero, said):
        """With resume= the text goes on seamlessly on another engine, and its usage is that of all."""
        pool, engines = pool_from_zero(2, policy=LeastLoaded())
        async with pool:
            request = GenerateRequest(prompt="7777", resume=True)
            chunks = []

            async def read():
                chunks.extend([chunk async for chunk in pool.generate(request)])

            task = asyncio.ensure_future(read())
            await asyncio.sleep(said + 0.5)
            engines[0].kill()
            await task
            assert "".join(chunk.text for chunk in chunks) == WHOLE
            usage = chunks[-1].usage
            assert (usage.prompt_tokens, usage.output_tokens) == (1, LENGTH)
            assert usage.first_token_time == pytest.approx(1.0)
            pool.scheduler.check()

    async def test_a_call_goes_from_engine_to_engine_only_so_often(self, pool_from_zero):
        """After as many deaths as it has attempts a call fails, instead of killing the whole pool."""
        pool, engines = pool_from_zero(5, attempts=3, policy=LeastLoaded())
        async with pool:
            task = asyncio.ensure_future(outcome(pool))
            for _ in range(3):
                await asyncio.sleep(0.1)
                running = [e for e in engines if e.statistics().running]
                running[0].kill()
            assert isinstance(await task, EngineDied)
            assert await outcome(pool) == WHOLE

    async def test_an_error_of_one_generation_is_no_death(self):
        """GenerationFailed passes to the caller, and the engine keeps its place."""

        def lines(prompt):
            return Line(["a"], fail_at=0) if "1" in prompt else ["fine"]

        engine = Mortal(lines=lines)
        pool = Pool([engine])
        async with pool:
            assert isinstance(await outcome(pool, "1"), GenerationFailed)
            assert await outcome(pool, "2") == "fine"
            assert engine.starts == 1
            pool.scheduler.check()

    async def test_one_death_below_an_inner_pool_is_not_its_death(self):
        """A pool of pools keeps an inner one that serves on, and its calls on other engines go on."""
        deepest = [Mortal(f"e{k}", lines=from_zero) for k in range(2)]
        inner = Pool(deepest, policy=LeastLoaded(), replace=False)
        async with Pool([inner]) as outer:
            tasks = [asyncio.ensure_future(outcome(outer)) for _ in range(2)]
            await asyncio.sleep(2.5)
            deepest[0].kill()
            results = [await task for task in tasks]
            assert sorted(type(result).__name__ for result in results) == ["EngineDied", "str"]
            inner.check_health()
            assert await outcome(outer) == WHOLE

    async def test_an_engine_that_somebody_else_has_stopped_is_lost(self, pool_from_zero):
        """Its place is not kept as if it ran, and calls that it refuses run elsewhere."""
        pool, engines = pool_from_zero(2, replace=False)
        async with pool:
            await engines[0].stop()
            assert [await outcome(pool) for _ in range(3)] == [WHOLE] * 3
            assert [e.state for e in pool.engines] == ["failed", "running"]

    async def test_a_death_while_the_pool_stops_is_no_error_of_its_own(self, pool_from_zero):
        """Whenever engines die during a stop, calls end with a typed error."""
        for ticks in range(8):
            pool, engines = pool_from_zero(2)
            await pool.start()
            tasks = [asyncio.ensure_future(outcome(pool)) for _ in range(3)]
            await asyncio.sleep(1.5)
            stopping = asyncio.ensure_future(pool.stop())
            for _ in range(ticks):
                await asyncio.sleep(0)
            for engine in engines:
                engine.kill()
            await stopping
            for task in tasks:
                assert isinstance(await task, Closed | EngineDied)

    async def test_calls_of_a_draining_pool_survive_a_death(self, pool_from_zero):
        """What is there when a drain begins is run again elsewhere like at any other time."""
        pool, engines = pool_from_zero(2, replace=False, policy=LeastLoaded())
        await pool.start()
        tasks = [asyncio.ensure_future(outcome(pool)) for _ in range(2)]
        await asyncio.sleep(0.5)
        stopping = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0.1)
        engines[0].kill()
        assert [await task for task in tasks] == [WHOLE] * 2
        await stopping

    async def test_constraints_cannot_be_resumed(self):
        """A generation whose grammar would begin anew is refused, before it costs anything."""
        for odd in ({"regex": "a"}, {"n": 2}, {"stop": ("x",)}, {"choice": ("a",)}):
            with pytest.raises(InvalidRequest, match="cannot be resumed"):
                GenerateRequest(prompt="1", resume=True, **odd)


class TestReplacement:
    """A dead engine is started again."""

    async def test_the_pool_is_back_at_full_strength(self, pool_from_zero):
        """It is stopped and started, and gets calls again."""
        pool, engines = pool_from_zero(2)
        async with pool:
            engines[0].kill()
            await asyncio.sleep(0.1)
            assert [e.state for e in pool.engines] == ["running", "running"]
            assert engines[0].starts == 2
            tasks = [asyncio.ensure_future(outcome(pool)) for _ in range(4)]
            await asyncio.sleep(0.5)
            assert [e.statistics().running for e in engines] == [2, 2]
            assert [await task for task in tasks] == [WHOLE] * 4

    async def test_starts_that_fail_are_repeated_with_a_growing_pause(self, pool_from_zero):
        """One second, two seconds; then it is given up, and the pool goes on without it."""
        states = []
        pool, engines = pool_from_zero(
            2, backoff=(1.0, 30.0), progress=lambda p: states.append((p.engine, p.state))
        )
        async with pool:
            engines[0].broken = EngineStartError("e0", "no memory")
            engines[0].kill()
            await asyncio.sleep(2.5)
            assert engines[0].starts == 3
            await asyncio.sleep(100)
            assert engines[0].starts == 4
            assert pool.engines[0].state == "failed"
            assert await outcome(pool) == WHOLE
            pool.check_health()
        assert states[4:] == [
            *[("e0", "dead"), ("e0", "starting")] * 3, ("e0", "failed"),
            ("e0", "stopped"), ("e1", "stopped"),
        ]  # fmt: skip

    async def test_calls_that_come_between_two_starts_wait(self, pool_from_zero):
        """While another start is to come, a call does not fail for the one that failed."""
        pool, engines = pool_from_zero(1, backoff=(5.0, 5.0))
        async with pool:
            engines[0].broken = EngineStartError("e0", "not yet")
            engines[0].kill()
            await asyncio.sleep(2)
            assert pool.engines[0].state == "dead"
            task = asyncio.ensure_future(outcome(pool))
            engines[0].broken = None
            assert await task == WHOLE

    async def test_an_engine_that_dies_again_and_again_is_started_ever_more_rarely(
        self, pool_from_zero
    ):
        """The pause grows up to the longest, and an engine that has lived for so long has none."""
        pool, engines = pool_from_zero(1, backoff=(1.0, 4.0))
        loop = asyncio.get_running_loop()
        pauses = []
        async with pool:
            for life in (0.5, 0.5, 0.5, 0.5, 0.5, 5.0):
                await asyncio.sleep(life)
                engines[0].kill()
                began = loop.time()
                assert await outcome(pool, max_tokens=1) == "0 "
                pauses.append(loop.time() - began - 1.0)
        assert pauses == pytest.approx([0.0, 1.0, 2.0, 4.0, 4.0, 0.0])

    async def test_when_none_is_left_calls_fail(self, pool_from_zero):
        """Those that wait, and those that come; the last cause is named."""
        pool, engines = pool_from_zero(1, replace=False)
        async with pool:
            tasks = [asyncio.ensure_future(outcome(pool)) for _ in range(5)]
            await asyncio.sleep(0.5)
            engines[0].kill()
            for task in tasks:
                error = await task
                assert isinstance(error, EngineDied)
                assert "killed by the test" in str(error)
            assert isinstance(await outcome(pool), EngineDied)
            with pytest.raises(EngineDied, match="no engine is left"):
                pool.check_health()
            await pool.wait_died()

    async def test_while_one_is_replaced_calls_wait_for_it(self, pool_from_zero):
        """With the only engine dead, calls wait until it is back."""
        pool, engines = pool_from_zero(1, backoff=(5.0, 5.0))
        async with pool:
            engines[0].broken = EngineStartError("e0", "not yet")
            engines[0].kill()
            task = asyncio.ensure_future(outcome(pool))
            await asyncio.sleep(1)
            engines[0].broken = None
            assert await task == WHOLE

    async def test_a_pool_can_be_stopped_while_it_replaces(self, pool_from_zero):
        """A pause between two starts is cut short, and nothing is left."""
        pool, engines = pool_from_zero(1, backoff=(50.0, 50.0))
        await pool.start()
        engines[0].broken = EngineStartError("e0", "not yet")
        engines[0].kill()
        await asyncio.sleep(1)
        await pool.stop()
        with pytest.raises(Closed):
            pool.check_health()

    async def test_it_starts_again_after_a_stop(self, pool_from_zero):
        """Also when its engines had died and been given up."""
        pool, engines = pool_from_zero(1, replace=False)
        async with pool:
            engines[0].kill()
            await asyncio.sleep(0.1)
        async with pool:
            assert await outcome(pool) == WHOLE


CALLS = st.lists(
    st.tuples(
        st.floats(0, 8),  # when it comes
        st.sampled_from([None, None, 0.5, 3.0]),  # when it is cancelled, after that
        st.booleans(),  # whether it may resume
        st.sampled_from([None, None, 20.0, -1.0]),  # its deadline, after that
        st.sampled_from([1, LENGTH]),  # max_tokens
    ),
    min_size=1,
    max_size=12,
)
KILLS = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2)), max_size=4)


@settings(deadline=None, max_examples=60)
@given(CALLS, KILLS, st.integers(1, 3), st.sampled_from([PromptAware, RoundRobin, LeastLoaded]))
def test_everything_ends_whatever_dies(calls, kills, engines, policy):
    """Every call ends with its text or a typed error, the books are empty, and nothing is overfull."""

    async def one(pool, when, cancel, resume, deadline, most):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(when)
        limit = None if deadline is None else loop.time() + deadline
        origin = Origin(stage="s", request=1, path=(0,), arrived=loop.time(), deadline=limit)
        request = GenerateRequest(prompt="7777", resume=resume, origin=origin, max_tokens=most)

        async def read():
            return "".join([chunk.text async for chunk in pool.generate(request)])

        task = asyncio.ensure_future(read())
        if cancel is not None:
            loop.call_later(cancel, task.cancel)
        try:
            text = await task
        except (EngineDied, DeadlineExceeded, asyncio.CancelledError) as error:
            return error
        assert text == ("0 " if most == 1 else WHOLE)
        return text

    async def main():
        members = [Mortal(f"e{k}", lines=from_zero) for k in range(engines)]
        pool = Pool(members, policy=policy(), attempts=3)
        async with pool:
            loop = asyncio.get_running_loop()
            for when, which in kills:
                loop.call_later(when, members[which % engines].kill)
            tasks = [asyncio.ensure_future(one(pool, *call)) for call in calls]
            outcomes = [await task for task in tasks]
            for call, result in zip(calls, outcomes, strict=True):
                assert not isinstance(result, DeadlineExceeded) or call[3] == -1.0
                assert not isinstance(result, asyncio.CancelledError) or call[1] is not None
                assert not isinstance(result, EngineDied) or kills
            await asyncio.sleep(20)
            pool.scheduler.check()
            assert pool.scheduler.waiting == 0
            assert all(not book.tickets for book in pool.scheduler.engines)
            assert [e.state for e in pool.engines] == ["running"] * engines
            assert pool.statistics() == EngineStatistics()
            assert all(member.over <= 1 for member in members)
            assert pool._calls._runs == {}
            assert pool._calls.open == 0

    run_virtual(main)


class TestCancellation:
    """A call is cut at every step of the loop, once and again."""

    @pytest.mark.parametrize("again", [None, 0, 1])
    @pytest.mark.parametrize("others", [0, 4])
    @pytest.mark.parametrize("steps", range(12))
    async def test_at_every_step(self, pool_from_zero, steps, others, again):
        """Nothing of it is left, the others end, also where it is cancelled while it ends."""
        pool, engines = pool_from_zero(1, seats=1, delay=0.0)
        slow = engines[0].inner._delay = 0.001
        async with pool:
            tasks = [asyncio.ensure_future(outcome(pool)) for _ in range(others)]
            task = asyncio.ensure_future(outcome(pool))
            for _ in range(steps):
                await asyncio.sleep(0 if steps < 8 else slow)
            task.cancel()
            if again is not None:
                for _ in range(again):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.result() == WHOLE
            assert [await other for other in tasks] == [WHOLE] * others
            assert pool.statistics() == EngineStatistics()
            assert all(not book.tickets for book in pool.scheduler.engines)
            assert pool._calls._runs == {}
            pool.scheduler.check()


READERS = st.lists(
    st.tuples(
        st.floats(0, 3),  # when it comes
        st.sampled_from([0.0, 0.0, 0.0, 0.01, 1.0, 40.0]),  # how long its reader is away per chunk
        st.sampled_from([None, None, 0.3, 2.0]),  # when it is cancelled, after that
    ),
    min_size=1,
    max_size=14,
)
SMALL = attrs.evolve(CPU_TINY, max_num_seqs=2)


async def read_slowly(pool, when, away, cancel, *, may_die):
    """Read one generation, *away* seconds away after each chunk."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(when)
    request = GenerateRequest(prompt=f"tell me {when}")

    async def read():
        count = 0
        async for chunk in pool.generate(request):
            count += len(chunk.token_ids)
            await asyncio.sleep(away)
        return count

    task = asyncio.ensure_future(read())
    if cancel is not None:
        loop.call_later(cancel, task.cancel)
    try:
        assert await task == 8
    except EngineDied:
        assert may_die
    except asyncio.CancelledError:
        assert cancel is not None


async def look(pool):
    """Nobody waits in the line of an engine that has room, and none has too much."""
    while True:
        for book in pool.scheduler.engines:
            assert not (book.queue.count and book.has_room)
            assert book.outstanding <= book.max_outstanding
        await asyncio.sleep(0.05)


@settings(deadline=None, max_examples=40)
@given(
    READERS,
    st.lists(st.tuples(st.floats(0, 4), st.integers(0, 1)), max_size=3),
    st.integers(1, 2),
    st.sampled_from([PromptAware, RoundRobin, LeastLoaded]),
)
def test_slow_readers_hold_nobody_up(readers, kills, engines, policy):
    """Whatever readers do, calls end, and none waits in the line of an engine that has room."""

    async def main():
        members = [Simulated(SMALL, 8, name=f"e{k}") for k in range(engines)]
        async with Pool(members, policy=policy()) as pool:
            loop = asyncio.get_running_loop()
            for when, which in kills:
                loop.call_later(when, members[which % engines].kill)
            looking = asyncio.ensure_future(look(pool))
            quick = [
                asyncio.ensure_future(read_slowly(pool, *reader, may_die=kills))
                for reader in readers
            ]
            last = asyncio.ensure_future(read_slowly(pool, 5.0, 0.0, None, may_die=kills))
            await last
            assert loop.time() < 30.0
            for task in quick:
                await task
            looking.cancel()
            await asyncio.wait([looking])
            assert looking.cancelled()
            pool.scheduler.check()
            assert pool.statistics() == EngineStatistics()
            assert all(not book.tickets for book in pool.scheduler.engines)

    run_virtual(main)
