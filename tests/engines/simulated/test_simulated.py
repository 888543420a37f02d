"""The simulated engine: the contract, times to the tick, what it says, what it holds."""

from __future__ import annotations

import asyncio

import attrs
import pytest

from alto.engines import Simulated
from alto.engines.profiles import PROFILES, EngineProfile
from alto.errors import Closed, EngineDied, InvalidRequest, PromptTooLong
from alto.model import EngineStatistics, GenerateRequest, Message, StreamedPrompt
from alto.protocols import Member
from alto.testing import check_engine

FAST = EngineProfile(
    name="fast",
    source="made up",
    base_s=0.25,
    per_prefill_token_s=0.125,
    max_num_seqs=4,
    max_num_batched_tokens=8,
    kv_tokens=64,
    block_size=2,
    max_model_len=32,
)


def request(prompt="one two three", **changes) -> GenerateRequest:
    """A request for up to eight tokens."""
    return GenerateRequest(prompt=prompt, **{"max_tokens": 8} | changes)


async def read(engine, asked):
    """Its chunks, each with the time at which it came."""
    loop = asyncio.get_running_loop()
    return [(loop.time(), chunk) async for chunk in engine.generate(asked)]


async def text(engine, asked):
    """What it says."""
    return "".join([chunk.text async for chunk in engine.generate(asked)])


@pytest.mark.parametrize("says", [12, "to be or not to be", ["to ", "be ", "or ", "not"]])
@pytest.mark.parametrize("interval", [1, 3])
async def test_it_keeps_the_contract(says, interval):
    """Whatever it is told to say, it is an engine as any other."""
    await check_engine(
        lambda: Simulated(FAST, says, stream_interval=interval),
        unservable=(request("word " * 40), request([1] * 32)),
    )


@pytest.mark.parametrize("name", sorted(PROFILES))
async def test_each_known_profile_makes_an_engine(name):
    """Every profile has a source and keeps the contract."""
    profile = PROFILES[name]
    assert profile.source
    assert isinstance(Simulated(profile), Member)
    await check_engine(lambda: Simulated(profile))


async def test_tokens_come_at_the_times_of_the_steps():
    """A prompt costs its tokens, each step its base, and queue and first token are told."""
    async with Simulated(FAST, "a b c") as engine:
        start = asyncio.get_running_loop().time()
        chunks = await read(engine, request())
        assert [time - start for time, _ in chunks] == [0.625, 0.875, 1.125]
        assert [chunk.text for _, chunk in chunks] == ["a", " b", " c"]
        usage = chunks[-1][1].usage
        assert (usage.prompt_tokens, usage.output_tokens) == (3, 3)
        assert (usage.queue_time, usage.first_token_time) == (0.0, 0.625)


async def test_a_reader_that_lags_gets_what_it_missed_in_one_chunk():
    """Chunks merge, and the place is free when the engine is done."""
    async with Simulated(FAST, "a b c d e") as engine:
        chunks = engine.generate(request())
        assert (await anext(chunks)).text == "a"
        await asyncio.sleep(10)
        assert engine.statistics() == EngineStatistics()
        assert engine.statistics().finished == 1
        assert [chunk.text async for chunk in chunks] == [" b c d e"]


async def test_equal_beginnings_are_found_in_the_cache():
    """Full blocks that are still there are not computed anew, and adapters do not share."""
    async with Simulated(FAST, 2) as engine:
        asked = request("one two three four five")
        assert (await read(engine, asked))[-1][1].usage.cached_tokens == 0
        assert (await read(engine, asked))[-1][1].usage.cached_tokens == 4
        assert (await read(engine, request("one two three too")))[-1][1].usage.cached_tokens == 2
        adapted = attrs.evolve(asked, lora="polite")
        assert (await read(engine, adapted))[-1][1].usage.cached_tokens == 0
        assert engine.statistics().cached_tokens == 6


async def test_samples_share_the_prompt():
    """All say the same, one computes the prompt, and the usage is on the last chunk of all."""
    async with Simulated(FAST, "a b") as engine:
        chunks = [chunk for _, chunk in await read(engine, request("one two three", n=3))]
        for sample in range(3):
            assert "".join(c.text for c in chunks if c.index == sample) == "a b"
        assert [chunk.usage is not None for chunk in chunks] == [False] * 5 + [True]
        assert chunks[-1].usage.output_tokens == 6


async def test_what_it_says_is_cut_to_the_request():
    """Stops, limits and choices hold; a generation that ignores its end goes on to its limit."""
    async with Simulated(FAST, "a b c") as engine:
        assert await text(engine, request(stop=("b",))) == "a "
        assert await text(engine, request(max_tokens=2)) == "a b"
        assert await text(engine, request(choice=("a b c", "x"))) == "a b c"
        assert await text(engine, request(choice=("x", "y"))) in ("x", "y")
        chunks = await read(engine, request(ignore_eos=True))
        assert chunks[-1][1].usage.output_tokens == 8
        assert chunks[-1][1].finish_reason == "length"
        whole = await read(engine, request(max_tokens=None, ignore_eos=True))
        assert whole[-1][1].usage.output_tokens == 29


async def test_answers_are_given_by_prompt_or_by_function():
    """A mapping answers whole prompts, a function sees the request with its whole prompt."""
    async with Simulated(FAST, {"hello": "world", "user: hi": "hi"}) as engine:
        assert await text(engine, request("hello")) == "world"
        assert await text(engine, request([Message(role="user", content="hi")])) == "hi"
        with pytest.raises(InvalidRequest, match="no answer is given for the prompt 'bye'"):
            await text(engine, request("bye"))

    async def tail():
        yield " you"

    async with Simulated(FAST, lambda asked: asked.prompt.upper()) as engine:
        assert await text(engine, request(StreamedPrompt("hey", tail()))) == "HEY YOU"


async def test_priority_goes_first():
    """Of those that wait, the lowest starts, whoever came first."""
    async with Simulated(attrs.evolve(FAST, max_num_seqs=1), 4) as engine:
        done = []

        async def ask(name, priority):
            await text(engine, request(priority=priority))
            done.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("first", 5))
            await asyncio.sleep(0.1)
            group.create_task(ask("late", 1))
            group.create_task(ask("soon", 0))
            await asyncio.sleep(0.1)
            assert engine.statistics() == EngineStatistics(running=1, waiting=2)
            assert 0 < engine.statistics().kv_usage < 1
        assert done == ["first", "soon", "late"]


async def test_a_killed_engine_ends_all_and_starts_anew():
    """Readers and watchers learn of it, and a start gives it another life."""
    async with Simulated(FAST, 8) as engine:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(engine.wait_died())
            chunks = engine.generate(request())
            await anext(chunks)
            engine.kill("pulled out")
            with pytest.raises(EngineDied, match="pulled out"):
                await anext(chunks)
        assert watcher.done()
        await engine.wait_died()
        with pytest.raises(EngineDied):
            await engine.encode("a")
        assert "dead: pulled out" in repr(engine)
        await engine.start()
        assert len(await text(engine, request())) > 0
        assert "0 running" in repr(engine)
    with pytest.raises(Closed):
        engine.check_health()


class Ear:
    """Hears what an engine keeps."""

    def __init__(self):
        self.kept, self.lost = {}, 0

    def stored(self, parent, token_ids, keys, salt=0):
        """Blocks came to be."""
        assert parent is None or parent in self.kept
        size = len(token_ids) // len(keys)
        for k, key in enumerate(keys):
            self.kept[key] = (tuple(token_ids[k * size : (k + 1) * size]), salt)

    def removed(self, keys):
        """Blocks are gone."""
        for key in keys:
            del self.kept[key]
            self.lost += 1

    def cleared(self):
        """All are."""
        self.kept.clear()


async def test_a_listener_hears_what_is_in_the_cache():
    """Each block is told once when it comes, and once when it goes."""
    ear = Ear()
    async with Simulated(FAST, 2) as engine:
        assert engine.listen(ear)
        ids = await engine.encode("one two three four five")
        await text(engine, request("one two three four five"))
        assert [tokens for tokens, _ in ear.kept.values()] == [tuple(ids[:2]), tuple(ids[2:4])]
        for k in range(20):
            await text(engine, request(" ".join(f"{k}-{i}" for i in range(9))))
        assert ear.lost > 0
        assert len(ear.kept) == engine._machine._blocks.named
    assert not ear.kept


async def test_leaving_early_gives_the_place_to_the_next():
    """One that is closed counts as aborted, and who waits starts at the next step."""
    async with Simulated(attrs.evolve(FAST, max_num_seqs=1), 8) as engine:
        chunks = engine.generate(request())
        await anext(chunks)
        async with asyncio.TaskGroup() as group:
            other = group.create_task(text(engine, request()))
            await asyncio.sleep(0.05)
            await chunks.aclose()
            assert engine.statistics() == EngineStatistics(waiting=1)
        assert other.result()
        assert engine.statistics().aborted == 1


@pytest.mark.parametrize("says", [0, True, 1.5, [1, 2]])
async def test_what_is_no_answer_is_refused(says):
    """An answer is a text, a number of tokens above 0, or texts."""
    with pytest.raises((TypeError, ValueError), match="an answer"):
        async with Simulated(FAST, says) as engine:
            await text(engine, request())


async def test_a_prompt_that_fills_the_context_is_refused():
    """The error has both lengths."""
    async with Simulated(FAST) as engine:
        with pytest.raises(PromptTooLong) as caught:
            await text(engine, request("word " * 31 + "word"))
        assert (caught.value.prompt_tokens, caught.value.limit) == (32, 32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_s": -1.0}, "base_s must be finite and at least 0"),
        ({"base_s": 0.0}, "a step must take time"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_num_seqs": 9}, r"max_num_batched_tokens \(8\) must be at least max_num_seqs \(9\)"),
        ({"kv_tokens": 31}, r"kv_tokens \(31, in whole blocks of 2\) must hold"),
    ],
)
def test_impossible_profiles_are_refused(changes, says):
    """The message has the limits and what to do."""
    with pytest.raises(ValueError, match=says):
        attrs.evolve(FAST, **changes)
