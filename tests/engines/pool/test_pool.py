from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import attrs
import pytest

import alto
from alto.engines.pool import Pool
from alto.errors import (
    Closed,
    DeadlineExceeded,
    EngineDied,
    EngineError,
    EngineStartError,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
)
from alto.llm import LLM
from alto.model import (
    Chunk,
    EngineCapacity,
    EngineStatistics,
    GenerateRequest,
    Origin,
    StreamedPrompt,
)
from alto.sched import LeastLoaded, PromptAware, RoundRobin
from alto.testing import Scripted, check_engine

WORDS = ["one ", "two ", "three ", "four "]


def says(_prompt):
    """The same to everything."""
    return WORDS


class Limited:
    """A scripted engine that tells its limits and its tokens, as a member does."""

    def __init__(self, *, seats=2, name="limited", delay=1.0, context=50, lines=says):
        self.inner = Scripted(lines, slots=seats, name=name, delay=delay)
        self.capacity = EngineCapacity(
            max_num_seqs=seats, max_num_batched_tokens=1000, max_model_len=context
        )
        self.encoded = []
        self.died = None

    name = property(lambda self: self.inner.name)
    requests = property(lambda self: self.inner.requests)
    statistics = property(lambda self: self.inner.statistics)
    check_health = property(lambda self: self.inner.check_health)
    stop = property(lambda self: self.inner.stop)

    async def start(self):
        """Make it ready."""
        self.died = asyncio.get_running_loop().create_future()
        await self.inner.start()

    async def encode(self, prompt):
        """A token for each letter."""
        self.inner.check_health()
        self.encoded.append(prompt)
        await asyncio.sleep(0)
        return [ord(letter) for letter in prompt] if isinstance(prompt, str) else list(prompt)

    def generate(self, request):
        """As scripted."""
        return self.inner.generate(request)

    def listen(self, _listener):
        """It cannot tell."""
        return False

    async def wait_died(self):
        """Wait for `kill`."""
        await self.died

    def kill(self):
        """Die."""
        self.inner.kill()
        self.died.set_result(None)


def pool_of(count, **options):
    """A pool of so many limited engines, and these."""
    made = {name: options.pop(name) for name in ("seats", "delay", "context") if name in options}
    engines = [Limited(name=f"e{k}", **made) for k in range(count)]
    return Pool(engines, **options), engines


async def ask(pool, prompt="p", **options):
    """The text of one generation."""
    return await LLM(pool).text(prompt, **options)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("policy", [PromptAware, RoundRobin, LeastLoaded])
async def test_a_pool_is_an_engine(count, policy):
    """A pool keeps the whole contract of an engine, whatever its policy and its size."""

    def make():
        engines = [Scripted(says, delay=0.1, slots=4, name=f"e{k}") for k in range(count)]
        return Pool(engines, policy=policy())

    await check_engine(make, expect="".join(WORDS))


async def test_a_pool_of_limited_engines_is_an_engine():
    """The contract holds where engines tell their limits, and calls wait in the pool."""
    await check_engine(lambda: pool_of(2, seats=2, delay=0.1)[0], expect="".join(WORDS))


class TestFeeding:
    """Who gets what, and when."""

    async def test_engines_are_kept_full_and_not_fuller(self):
        """While calls wait every engine has all places taken and one call ready to follow, no more."""
        pool, engines = pool_of(3, seats=2, policy=LeastLoaded())
        async with pool, asyncio.TaskGroup() as group:
            for k in range(20):
                group.create_task(ask(pool, f"{k}"))
            await asyncio.sleep(0.5)
            for _ in range(14):
                await asyncio.sleep(1.0)
                each = [engine.statistics() for engine in engines]
                waiting = pool.scheduler.waiting
                assert waiting == 0 or [(e.running, e.waiting) for e in each] == [(2, 1)] * 3
                assert all(e.waiting <= 1 for e in each)
                assert pool.statistics().waiting == waiting + sum(e.waiting for e in each)
        assert pool.scheduler.waiting == 0

    async def test_a_reader_that_is_away_holds_nobody_up(self):
        """A generation that nobody reads gives its place to the next when its engine is done."""
        pool, (engine,) = pool_of(1, seats=1)
        async with pool:
            away = pool.generate(GenerateRequest(prompt="away"))
            assert (await anext(away)).text == "one "
            assert await ask(pool, "next", max_tokens=1) == "one "
            assert engine.statistics() == EngineStatistics()
            rest = [chunk.text async for chunk in away]
            assert rest == WORDS[1:]

    async def test_without_need_nobody_reads_on(self):
        """While nobody waits, a chunk is asked of the engine when its reader asks for it."""
        pool, _ = pool_of(1, seats=2)
        async with pool:
            slow = pool.generate(GenerateRequest(prompt="slow"))
            await anext(slow)
            tasks = len(asyncio.all_tasks())
            await asyncio.sleep(10)
            assert len(asyncio.all_tasks()) == tasks
            assert len([chunk async for chunk in slow]) == 3

    async def test_leaving_while_the_pool_reads_on_frees_the_place(self):
        """A reader that comes back only to close leaves nothing behind."""
        pool, (engine,) = pool_of(1, seats=1)
        async with pool:
            away = pool.generate(GenerateRequest(prompt="away"))
            await anext(away)
            waiting = asyncio.ensure_future(ask(pool, "next"))
            await asyncio.sleep(0.5)
            await away.aclose()
            assert pool.scheduler.waiting == 0
            assert await waiting == "".join(WORDS)
            assert engine.statistics() == EngineStatistics()
            pool.scheduler.check()

    async def test_a_prompt_is_made_to_tokens_once(self):
        """Engines get the token ids, and the declared prefix is made to tokens once for all calls."""
        pool, engines = pool_of(2)
        async with pool:
            for end in "abc":
                await ask(pool, f"head {end}", prefix="head ")
        encoded = [p for engine in engines for p in engine.encoded]
        assert sorted(encoded) == ["head ", "head a", "head b", "head c"]
        given = [r for engine in engines for r in engine.requests]
        assert sorted(r.prompt for r in given) == [[*b"head a"], [*b"head b"], [*b"head c"]]
        assert {r.prefix for r in given} == {None}

    async def test_times_are_those_of_the_caller(self):
        """Waiting in the pool counts as queue time, and the first token is timed from the call on."""
        pool, _ = pool_of(1, seats=1)
        async with pool, asyncio.TaskGroup() as group:
            llm = LLM(pool)
            tasks = [group.create_task(llm.generate(f"{k}").collect()) for k in range(2)]
        usages = [task.result().usage for task in tasks]
        assert [u.queue_time for u in usages] == pytest.approx([0.0, 4.0])
        assert [u.first_token_time for u in usages] == pytest.approx([1.0, 5.0])

    async def test_older_requests_go_first(self):
        """Among calls that wait, those of the older request are given first."""
        pool, (engine,) = pool_of(1, seats=1, delay=0.1)
        now = asyncio.get_running_loop().time()

        async def call(name, arrived):
            origin = Origin(stage="s", request=1, path=(), arrived=arrived)
            request = GenerateRequest(prompt=name, origin=origin)
            return [chunk async for chunk in pool.generate(request)]

        async with pool, asyncio.TaskGroup() as group:
            for name, arrived in (("a", 0.0), ("b", -1.0), ("c", -3.0), ("d", -2.0)):
                group.create_task(call(name, now + arrived))
        order = ["".join(map(chr, r.prompt)) for r in engine.requests]
        assert order == ["a", "c", "d", "b"]

    async def test_a_streamed_prompt_is_read_to_its_end(self):
        """Engines that cannot begin early get the whole prompt."""
        pool, (engine,) = pool_of(1, delay=0.1)

        async def tail():
            yield "lo "
            await asyncio.sleep(1)
            yield "you"

        async with pool:
            assert await ask(pool, StreamedPrompt("hel", tail())) == "".join(WORDS)
        assert engine.requests[0].prompt == [*b"hello you"]

    async def test_engines_that_can_get_a_few_streamed_prompts_as_they_are(self):
        """A quarter of an engine's places, for each is held while somebody writes; others wait."""
        pool, (engine,) = pool_of(1, seats=8, delay=0.1)
        engine.streams_prompts = True
        released = asyncio.Event()

        async def tail():
            await released.wait()
            yield "you"

        async with pool, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ask(pool, StreamedPrompt(f"{k} ", tail()))) for k in range(3)
            ]
            await asyncio.sleep(60)
            assert [type(r.prompt) for r in engine.requests] == [StreamedPrompt] * 2
            assert not pool.scheduler.engines[0].silent
            assert await ask(pool, "meanwhile") == "".join(WORDS)
            released.set()
        assert {task.result() for task in tasks} == {"".join(WORDS)}
        assert engine.requests[-1].prompt == [*b"2 you"]
        pool.scheduler.check()

    async def test_a_stop_ends_calls_whose_prompts_are_being_written(self):
        """A call that reads a tail which never ends is ended with the pool."""
        pool, _ = pool_of(1)

        async def tail():
            await asyncio.Event().wait()
            yield ""

        await pool.start()
        task = asyncio.ensure_future(ask(pool, StreamedPrompt("hello ", tail())))
        await asyncio.sleep(1)
        await pool.stop()
        with pytest.raises(Closed, match="was stopped"):
            await task

    async def test_chunks_pass_unchanged(self):
        """But for the last, whose usage has the times, a reader gets the engine's own chunks."""
        chunks = [Chunk(text="x", token_ids=(1,)), Chunk(text="y", token_ids=(2,))]
        pool, (engine,) = pool_of(1, delay=0.0)

        async def generate(_request):
            for chunk in chunks:
                yield chunk
            yield Chunk(text="", finish_reason="stop", usage=None)

        engine.generate = generate
        async with pool:
            got = [c async for c in pool.generate(GenerateRequest(prompt="p"))]
        assert [a is b for a, b in zip(got, chunks, strict=False)] == [True, True]
        assert got[-1].finish_reason == "stop"


class TestAway:
    """Readers that are away, and calls that wait for the same engine."""

    async def test_also_long_after_the_engine_has_said_anything(self):
        """An engine that seems silent since nobody reads is found to be alive when it is needed."""
        pool, (engine,) = pool_of(1, seats=1)
        async with pool:
            away = pool.generate(GenerateRequest(prompt="away"))
            await anext(away)
            await asyncio.sleep(100)
            texts = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(3)]
            assert [await text for text in texts] == ["".join(WORDS)] * 3
            assert engine.statistics() == EngineStatistics()
            assert [chunk.text async for chunk in away] == WORDS[1:]
            pool.scheduler.check()

    @pytest.mark.parametrize("count", [1, 3])
    async def test_all_places_taken_by_readers_that_are_away(self, count):
        """Any number of calls gets through, however many generations nobody reads on."""
        pool, _ = pool_of(count, seats=2, policy=LeastLoaded())
        async with pool:
            away = [pool.generate(GenerateRequest(prompt=f"{k}")) for k in range(4 * count)]
            async with asyncio.TaskGroup() as group:
                for generation in away:
                    group.create_task(anext(generation))
            await asyncio.sleep(30)
            texts = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(20)]
            assert [await text for text in texts] == ["".join(WORDS)] * 20
            for generation in away:
                assert [chunk.text async for chunk in generation] == WORDS[1:]
            pool.scheduler.check()
            assert all(not book.tickets for book in pool.scheduler.engines)

    async def test_a_slow_reader_is_no_reader_that_is_away(self):
        """One that comes back before the moment is over reads for itself."""
        pool, _ = pool_of(1, seats=1, delay=0.001)
        async with pool:
            slow = pool.generate(GenerateRequest(prompt="slow"))
            await anext(slow)
            others = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(2)]
            tasks = set()
            async for _ in slow:
                await asyncio.sleep(0.015)
                tasks |= {task.get_coro().__name__ for task in asyncio.all_tasks()}
            assert "_read_on" not in tasks
            assert [await other for other in others] == ["".join(WORDS)] * 2

    @pytest.mark.parametrize("moment", [0.5, 1.0, 1.01, 1.5, 2.0, 3.0, 4.0])
    async def test_an_engine_that_dies_while_the_pool_reads_on(self, moment):
        """What was read is given, then the error; nothing is left."""
        pool, (engine,) = pool_of(1, seats=1)
        async with pool:
            away = pool.generate(GenerateRequest(prompt="away"))
            await anext(away)
            others = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(3)]
            await asyncio.sleep(moment)
            engine.kill()
            got = []
            try:
                async for chunk in away:
                    got.append(chunk.text)
            except EngineDied:
                assert len(got) < 3
            assert got == WORDS[1 : 1 + len(got)]
            await asyncio.gather(*others, return_exceptions=True)
            assert pool.statistics() == EngineStatistics()
            pool.scheduler.check()


class TestRefusals:
    """What never reaches an engine."""

    async def test_a_deadline_that_is_past(self):
        """A call whose request is out of time costs nothing."""
        pool, (engine,) = pool_of(1)
        origin = Origin(stage="s", request=1, path=(), arrived=-5.0, deadline=-1.0)
        async with pool:
            with pytest.raises(DeadlineExceeded, match="timeout of 4 s"):
                await anext(pool.generate(GenerateRequest(prompt="p", origin=origin)))
        assert (engine.encoded, engine.requests) == ([], ())

    async def test_a_prompt_that_is_too_long(self):
        """The length is known before an engine is asked, and others go on."""
        pool, (engine,) = pool_of(1, context=10, delay=0.1)
        async with pool:
            with pytest.raises(PromptTooLong) as caught:
                await ask(pool, "x" * 10)
            assert (caught.value.prompt_tokens, caught.value.limit) == (10, 10)
            assert engine.requests == ()
            assert await ask(pool, "x" * 9)

    async def test_a_full_line(self):
        """Above max_waiting a call is refused, and says how many wait."""
        pool, _ = pool_of(1, seats=1, max_waiting=2)
        async with pool, asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(pool, f"{k}")) for k in range(3)]
            await asyncio.sleep(0.5)
            with pytest.raises(Overloaded, match="2 calls wait for an engine, and no more than 2"):
                await ask(pool, "one too many")
        assert {task.result() for task in tasks} == {"".join(WORDS)}

    async def test_a_burst_does_not_overfill_the_line(self):
        """Of calls that come in one moment, those above max_waiting are refused."""
        pool, _ = pool_of(1, seats=1, max_waiting=2)
        async with pool:
            tasks = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(10)]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(o) for o in outcomes].count(Overloaded) == 7
            assert outcomes.count("".join(WORDS)) == 3
            pool.scheduler.check()
            assert pool.statistics() == EngineStatistics()

    async def test_no_line_at_all(self):
        """With max_waiting=0 a call is taken if it can start at once, and refused if not."""
        pool, _ = pool_of(1, seats=1, max_waiting=0)
        async with pool:
            tasks = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(3)]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [str, Overloaded, Overloaded]

    async def test_engines_that_cannot_embed(self):
        """An engine that generates says so, and says what would."""
        pool = Pool([Limited()])
        async with pool:
            with pytest.raises(InvalidRequest, match="runner='pooling'"):
                await pool.embed(alto.model.EmbedRequest(prompt="p"))
            pool.scheduler.check()
            assert pool.statistics() == EngineStatistics()

    @pytest.mark.parametrize(
        ("engines", "options", "error"),
        [
            ([], {}, "at least one engine"),
            (["x"], {}, "this is not one: 'x'"),
            ([Scripted], {}, "this is not one"),
            (None, {"attempts": 0}, "attempts must be at least 1"),
            (None, {"backoff": (0.0, 1.0)}, "first and a longest pause"),
            (None, {"backoff": (2.0, 1.0)}, "first and a longest pause"),
            (None, {"max_waiting": -1}, "max_waiting"),
            (None, {"policy": RoundRobin}, r"such as LeastLoaded\(\)"),
        ],
    )
    def test_what_makes_no_pool(self, engines, options, error):
        """Wrong settings are refused when the pool is made."""
        given = [Scripted(says)] if engines is None else engines
        with pytest.raises((ValueError, TypeError), match=error):
            Pool(given, **options)

    def test_an_engine_twice(self):
        """One engine cannot have two places."""
        engine = Scripted(says)
        with pytest.raises(ValueError, match="twice"):
            Pool([engine, engine])

    async def test_another_loop(self):
        """A pool belongs to the loop that started it."""
        pool, _ = pool_of(1)
        async with pool:

            def elsewhere():
                return asyncio.run(anext(pool.generate(GenerateRequest(prompt="p"))))

            with pytest.raises(EngineError, match="event loop that started it"):
                await asyncio.to_thread(elsewhere)


class TestLife:
    """Start, stop, and what they say."""

    async def test_progress_can_be_followed(self, capsys):
        """Each change of an engine is a line, with how many run."""
        pool, _ = pool_of(2, progress=True)
        async with pool:
            pass
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("e1 is stopped")
        assert sum("is running after 0.0 s" in line for line in lines) == 2
        assert any("(2 of 2 run)" in line for line in lines)

    async def test_engines_of_a_group_start_one_after_another(self):
        """Those that share something wait for each other, the others do not."""
        events = []

        def slow(name):
            engine = Limited(name=name)
            start = engine.start

            async def begin():
                events.append(f"+{name}")
                await asyncio.sleep(1)
                await start()
                events.append(f"-{name}")

            engine.start = begin
            return engine

        pool = Pool([slow("a0"), slow("a1"), slow("b0")], start_group=lambda e: e.name[0])
        async with pool:
            assert asyncio.get_running_loop().time() == 2.0
        assert events == ["+a0", "+b0", "-a0", "+a1", "-b0", "-a1"]

    async def test_one_that_fails_stops_the_others(self):
        """The first error is raised, and no engine is left running."""
        pool, engines = pool_of(3)

        async def fail():
            await asyncio.sleep(1)
            raise EngineStartError("e1", "no memory")

        engines[1].start = fail
        with pytest.raises(EngineStartError, match="no memory"):
            await pool.start()
        for engine in engines:
            with pytest.raises(Closed):
                engine.check_health()
        with pytest.raises(Closed):
            pool.check_health()

    async def test_one_that_fails_ends_the_other_starts(self):
        """Nobody waits for engines that are not wanted any more."""
        pool, engines = pool_of(2)

        async def fail():
            raise EngineStartError("e1", "no memory")

        async def never():
            await asyncio.Event().wait()

        engines[0].start, engines[1].start = never, fail
        with pytest.raises(EngineStartError, match="no memory"):
            await pool.start()

    async def test_a_progress_function_that_fails_harms_nobody(self):
        """Its error goes to the loop's exception handler, and the pool runs."""

        def fail(_progress):
            raise ZeroDivisionError

        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        pool, (engine,) = pool_of(1, progress=fail)
        async with pool:
            engine.kill()
            assert await ask(pool) == "".join(WORDS)
        assert {type(context["exception"]) for context in told} == {ZeroDivisionError}

    async def test_a_cancelled_start_leaves_nothing(self):
        """Engines that run already when the start is cancelled are stopped again."""
        pool, engines = pool_of(2)

        async def never():
            await asyncio.Event().wait()

        engines[1].start = never
        task = asyncio.ensure_future(pool.start())
        await asyncio.sleep(1)
        engines[0].check_health()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Closed):
            engines[0].check_health()

    async def test_engines_that_run_already_are_left_running(self):
        """A pool stops what it has started, and nothing else."""
        pool, engines = pool_of(2)
        await engines[0].start()
        async with pool:
            await ask(pool)
        engines[0].check_health()
        with pytest.raises(Closed):
            engines[1].check_health()
        await engines[0].stop()

    async def test_draining_finishes_what_is_there(self):
        """A draining stop lets calls end, those that wait included, and takes no new ones."""
        pool, _ = pool_of(1, seats=1)
        await pool.start()
        tasks = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(3)]
        await asyncio.sleep(0.5)
        stopping = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0.5)
        with pytest.raises(Closed, match="being stopped"):
            await ask(pool, "late")
        await stopping
        assert [task.result() for task in tasks] == ["".join(WORDS)] * 3
        with pytest.raises(Closed, match="start it first"):
            await ask(pool, "later")

    async def test_a_stop_ends_a_drain(self):
        """Both return, and so does a second drain; what still runs ends with Closed."""
        pool, _ = pool_of(1, seats=1)
        await pool.start()
        task = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.5)
        drains = [asyncio.ensure_future(pool.stop(drain=True)) for _ in range(2)]
        await asyncio.sleep(0.5)
        await pool.stop()
        with pytest.raises(Closed):
            await task
        for drain in drains:
            await drain

    async def test_stopping_ends_what_runs_on_engines_that_go_on(self):
        """On an engine that is left running, a generation of the pool ends all the same."""
        (engine,) = pool_of(1)[1]
        await engine.start()
        pool = Pool([engine])
        await pool.start()
        reading = asyncio.ensure_future(ask(pool))
        away = pool.generate(GenerateRequest(prompt="away"))
        await anext(away)
        await pool.stop()
        with pytest.raises(Closed):
            await anext(away)
        with pytest.raises(Closed):
            await reading
        assert engine.statistics() == EngineStatistics()
        await engine.stop()

    async def test_a_cancelled_drain_stops_at_once(self):
        """Whoever does not want to wait any more cancels, and all is stopped."""
        pool, _ = pool_of(1, seats=1)
        await pool.start()
        task = asyncio.ensure_future(ask(pool))
        await asyncio.sleep(0.5)
        stopping = asyncio.ensure_future(pool.stop(drain=True))
        await asyncio.sleep(0.5)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        with pytest.raises(Closed):
            await task
        assert pool.statistics() == EngineStatistics()

    async def test_stopping_ends_those_that_wait(self):
        """Calls that run and calls that wait end with Closed."""
        pool, _ = pool_of(1, seats=1)
        await pool.start()
        tasks = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(3)]
        await asyncio.sleep(0.5)
        await pool.stop()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Closed] * 3

    async def test_it_says_what_it_can_do(self):
        """Its capacity is that of its engines together, with the shortest context."""
        pool, _ = pool_of(2, seats=3, context=50)
        with pytest.raises(Closed):
            _ = pool.capacity
        async with pool:
            assert pool.capacity == EngineCapacity(
                max_num_seqs=6, max_num_batched_tokens=2000, max_model_len=50
            )
            assert [e.name for e in pool.engines] == ["e0", "e1"]
            assert repr(pool) == "<Pool 'pool': 2 of 2 run, 0 waiting>"
        assert repr(pool) == "<Pool 'pool': 0 of 2 run, stopped>"

    async def test_equal_names_are_numbered(self):
        """Engines of one name are told apart."""
        pool = Pool([Scripted(says), Scripted(says)])
        assert [e.name for e in pool.engines] == ["scripted[0]", "scripted[1]"]


class TestPolicies:
    """Policies that do wrong."""

    async def test_a_recorder_that_fails_costs_no_call(self):
        """Its error is told once, and it is not asked again."""
        told, asked = [], []

        def broken(decision):
            asked.append(decision)
            raise OSError("disk full")

        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        pool, _ = pool_of(2, recorder=broken, delay=0.1)
        async with pool, asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(pool, f"{k}")) for k in range(9)]
        assert {task.result() for task in tasks} == {"".join(WORDS)}
        assert (len(told), len(asked)) == (1, 1)
        assert "disk full" in str(told[0]["exception"])

    async def test_a_policy_that_fails_is_told_once(self):
        """Calls are placed all the same, and the loop's exception handler hears of it once."""

        class Broken:
            def choose(self, call, engines):
                raise ZeroDivisionError

        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        pool, _ = pool_of(2, policy=Broken(), delay=0.0)
        async with pool:
            assert await ask(pool) == await ask(pool) == "".join(WORDS)
        assert len(told) == 1
        assert "policy Broken, or its recorder, failed" in told[0]["message"]


@alto.stage
async def pieces(question: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """What the model says, piece by piece."""
    async for chunk in llm.generate(question):
        yield chunk.text


@alto.stage
async def check(piece: str, *, llm: alto.LLM) -> str:
    """One more word on a piece."""
    return piece + await llm.text(f"check {piece}", max_tokens=1)


@alto.pipeline
def application(question: alto.Stream[str]) -> alto.Stream[str]:
    """Both."""
    return check(pieces(question))


async def test_a_pipeline_runs_on_a_pool():
    """A pipeline starts a pool that it is given, uses it, tells it who asks, and stops it."""
    decisions = []
    pool, _ = pool_of(2, recorder=decisions.append)
    async with application.open(llm=pool) as app:
        assert await app.run("go") == [word + "one " for word in WORDS]
        assert app.statistics().open_requests == 0
    assert {d.facts["template"][0] for d in decisions} == {
        "application.pieces", "application.check",
    }  # fmt: skip
    with pytest.raises(Closed):
        pool.check_health()


async def test_cancelling_at_every_step_leaves_nothing():
    """Wherever a call is cut, the pool is as before, and its books are empty."""
    for steps in range(12):
        pool, engines = pool_of(1, seats=1, delay=0.0)
        async with pool:
            fresh = attrs.asdict(pool.statistics())
            tasks = [asyncio.ensure_future(ask(pool, f"{k}")) for k in range(2)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert pool.statistics() == EngineStatistics(**{**fresh, "finished": 0})
            assert pool.scheduler.waiting == 0
            assert all(not book.tickets for book in pool.scheduler.engines)
            pool.scheduler.check()
            assert await ask(pool, "again") == "".join(WORDS)
        assert engines[0].statistics() == EngineStatistics()
