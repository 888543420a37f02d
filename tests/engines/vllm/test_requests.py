"""What one real vLLM engine does with a request: samples, adapters, constraints, vectors, prompts in parts."""

from __future__ import annotations

import asyncio
import json
import math
import shutil

import pytest
import pytest_asyncio

from alto.engines._vllm.engine import VLLMEngine
from alto.errors import Closed, EngineError, InvalidRequest, PromptTooLong
from alto.model import EmbedRequest, EngineStatistics, GenerateRequest, Message, StreamedPrompt
from alto.protocols import Embedder, Member

pytest.importorskip("vllm")
np = pytest.importorskip("numpy")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.realtime,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]

CONTEXT = 1024


def _adapter(folder, seed):
    """A LoRA adapter of random weights, large enough to change what the tiny model says."""
    from safetensors.numpy import save_file  # noqa: PLC0415  # where vLLM is, it is

    luck = np.random.default_rng(seed)
    folder.mkdir()
    tensors = {}
    for layer in range(2):
        for part, width in (("q_proj", 128), ("v_proj", 64)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = luck.standard_normal((8, 128)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = luck.standard_normal((width, 8)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def generator(tiny_model, small, vllm_environment, tmp_path_factory):
    """An engine with adapters that takes prompts in parts."""
    folder = tmp_path_factory.mktemp("adapters")
    lora = {"formal": _adapter(folder / "formal", 1), "rude": _adapter(folder / "rude", 2)}
    settings = {**small, "max_model_len": CONTEXT, "max_num_seqs": 16}
    made = VLLMEngine(tiny_model, name="able", lora=lora, streamed_prompts=True, **settings)
    async with made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def embedder(tiny_model, small, vllm_environment):
    """An engine that gives vectors."""
    made = VLLMEngine(tiny_model, name="vectors", runner="pooling", convert="embed", **small)
    async with made:
        yield made


def _with_scores(tiny_model, folder):
    """The tiny model with one more layer, which makes a number of what it thinks in the end."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415  # as above
    from torch import bfloat16, manual_seed, randn  # noqa: PLC0415  # as above

    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    manual_seed(0)
    tensors["score.weight"] = randn((1, 128)).to(bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def judge(tiny_model, small, vllm_environment, tmp_path_factory):
    """An engine that scores pairs of texts."""
    made = VLLMEngine(
        _with_scores(tiny_model, tmp_path_factory.mktemp("models") / "judge"),
        name="judge",
        runner="pooling",
        convert="classify",
        hf_overrides={"num_labels": 1},
        **small,
    )
    async with made:
        yield made


async def _read(engine, **request):
    return [chunk async for chunk in engine.generate(GenerateRequest(**request))]


async def _said(engine, **request):
    """Text and tokens of a generation."""
    chunks = await _read(engine, **request)
    return "".join(c.text for c in chunks), [t for c in chunks for t in c.token_ids]


async def _in_pieces(text, size, delay=0.0):
    for start in range(0, len(text), size):
        await asyncio.sleep(delay)
        yield text[start : start + size]


def _prose(length, seed=0):
    letters = (
        " " if i % 6 == 5 else chr(97 + (i * 7 + i // 13 + seed * 5) % 26) for i in range(length)
    )
    return "".join(letters)


class TestLimits:
    """What an engine says about itself."""

    async def test_it_is_a_member_that_says_its_limits(self, generator, small):
        """The limits are those that it was started with, and what the KV cache holds."""
        capacity = generator.capacity
        assert isinstance(generator, Member)
        assert isinstance(generator, Embedder)
        assert capacity.max_num_seqs == 16
        assert capacity.max_num_batched_tokens == small["max_num_batched_tokens"]
        assert capacity.max_model_len == CONTEXT
        assert capacity.block_size == small["block_size"]
        assert capacity.kv_tokens is not None
        assert capacity.kv_tokens >= CONTEXT

    async def test_encoding_is_what_a_generation_counts(self, generator):
        """Text, ids and a chat are as many tokens as their generation's usage says."""
        for prompt in ("hello", [5, 6, 7], [Message(role="user", content="hello")]):
            token_ids = await generator.encode(prompt)
            chunks = await _read(generator, prompt=prompt, max_tokens=1)
            assert chunks[-1].usage.prompt_tokens == len(token_ids)

    async def test_a_long_prompt_does_not_reach_the_engine(self, generator):
        """It is refused with its length, as it would leave no place for an answer."""
        with pytest.raises(PromptTooLong) as caught:
            await _read(generator, prompt=[5] * CONTEXT)
        assert (caught.value.prompt_tokens, caught.value.limit) == (CONTEXT, CONTEXT)
        assert generator.statistics() == EngineStatistics()


class TestSamples:
    """Several samples, log-probabilities, times."""

    async def test_each_sample_has_its_end_and_the_last_has_the_usage(self, generator):
        """Chunks say whose they are; one end for each; one usage, of all, on the last of all."""
        chunks = await _read(
            generator, prompt="hello", n=3, temperature=1.0, seed=7, max_tokens=20, ignore_eos=True
        )
        ends = [chunk for chunk in chunks if chunk.finish_reason is not None]
        assert sorted(chunk.index for chunk in ends) == [0, 1, 2]
        assert [chunk for chunk in chunks if chunk.usage is not None] == [chunks[-1]]
        assert chunks[-1] is ends[-1]
        assert chunks[-1].usage.output_tokens == 60
        texts = {i: "".join(c.text for c in chunks if c.index == i) for i in range(3)}
        assert len(set(texts.values())) == 3

    async def test_samples_that_are_left_are_forgotten(self, generator):
        """Closing one generation aborts all of its samples."""
        chunks = generator.generate(
            GenerateRequest(prompt="x", n=3, temperature=1.0, max_tokens=500, ignore_eos=True)
        )
        await anext(chunks)
        await chunks.aclose()
        processor = generator._life.session._engine.output_processor
        assert generator.statistics() == EngineStatistics()
        assert not processor.request_states
        assert not processor.parent_requests

    @pytest.mark.parametrize("asked", [0, 1, 3])
    async def test_each_token_has_its_log_probability(self, generator, asked):
        """One for each token, with as many of the likeliest as asked, likeliest first."""
        chunks = await _read(generator, prompt="hello", max_tokens=10, logprobs=asked)
        told = [each for chunk in chunks for each in chunk.logprobs]
        assert [each.token_id for each in told] == [t for c in chunks for t in c.token_ids]
        for each in told:
            assert -20 < each.logprob <= 0
            assert len(each.top) == asked
            assert [p for _, p in each.top] == sorted((p for _, p in each.top), reverse=True)
            if asked:
                assert each.top[0] == (each.token_id, each.logprob)  # greedy

    async def test_without_being_asked_there_are_none(self, generator):
        """A generation that did not ask has no log-probabilities."""
        assert all(c.logprobs is None for c in await _read(generator, prompt="x", max_tokens=3))

    async def test_times_are_told_in_order(self, generator):
        """Waiting, then the first token, then the end, all of them after it was asked for."""
        begin = asyncio.get_running_loop().time()
        usage = (await _read(generator, prompt="hello", max_tokens=30))[-1].usage
        elapsed = asyncio.get_running_loop().time() - begin
        assert 0 <= usage.queue_time <= usage.first_token_time <= elapsed
        assert usage.first_token_time > 0


class TestConstraints:
    """Constraints that no backend can express are the request's fault, and nobody else's."""

    @pytest.mark.parametrize(
        "constraint",
        [
            {"regex": "["},
            {"regex": "(a"},
            {"regex": "(?P<n"},
            {"json_schema": {"type": "nope"}},
            {"json_schema": {"$ref": "#/nowhere"}},
            {"json_schema": {"type": "string", "pattern": "("}},
            {"json_schema": {"x": {1, 2}}},
            {"regex": "(?<=a)b"},
            {"regex": "a\0"},
            {"choice": ("a\0b", "c")},
            {"json_schema": {"not": {"type": "string"}}},
            {"json_schema": {"type": "array", "uniqueItems": True}},
            {"json_schema": {"type": "string", "format": "nope"}},
            {"json_schema": {"type": "integer", "minimum": 5, "maximum": 2}},
            {"json_schema": {"$ref": "http://x.invalid/a.json"}},
            {"json_schema": {"type": "object", "dependentRequired": {"a": ["b"]}}},
        ],
        ids=str,
    )
    async def test_it_is_refused_with_the_reason(self, generator, constraint):
        """At the first iteration, while another generation goes on unharmed."""
        async with asyncio.TaskGroup() as group:
            other = group.create_task(_said(generator, prompt="hello", max_tokens=100))
            await asyncio.sleep(0.02)
            with pytest.raises(InvalidRequest) as caught:
                await _read(generator, prompt="hello", max_tokens=5, **constraint)
        assert len(str(caught.value)) > 10
        assert other.result() == await _said(generator, prompt="hello", max_tokens=100)
        assert generator.statistics() == EngineStatistics()

    @pytest.mark.parametrize(
        ("schema", "allowed"),
        [
            ({"type": "boolean"}, [True, False]),
            ({"enum": ["x", "y", 3]}, ["x", "y", 3]),
            ({"type": "integer", "minimum": 3, "maximum": 5}, [3, 4, 5]),
        ],
        ids=str,
    )
    async def test_what_can_be_expressed_holds(self, generator, schema, allowed):
        """An output keeps to its schema."""
        text, _ = await _said(generator, prompt="?", max_tokens=100, json_schema=schema)
        assert json.loads(text) in allowed


class TestAdapters:
    """LoRA adapters by name."""

    async def test_an_adapter_changes_what_is_said(self, generator):
        """Each adapter, and none, says something of its own, again and again."""
        said = [
            await _said(generator, prompt="hello there", max_tokens=20, lora=name)
            for name in (None, "formal", "rude", "formal", None)
        ]
        assert said[0] == said[4]
        assert said[1] == said[3]
        assert len({text for text, _ in said}) == 3

    async def test_an_unknown_adapter_is_named_with_the_known(self, generator):
        """The message lists what the engine has."""
        with pytest.raises(InvalidRequest, match=r"'polite'; it has 'formal', 'rude'"):
            await _read(generator, prompt="x", lora="polite")
        assert generator.statistics() == EngineStatistics()

    async def test_an_adapter_goes_with_a_prompt_in_parts(self, generator):
        """Which is computed with the adapter from its first part on."""
        text = _prose(500)
        prompt = StreamedPrompt("", _in_pieces(text, 50))
        plain = await _said(generator, prompt=text, max_tokens=20, lora="rude")
        assert await _said(generator, prompt=prompt, max_tokens=20, lora="rude") == plain


class TestVectors:
    """Engines that pool."""

    async def test_a_prompt_has_a_vector(self, embedder):
        """Of the model's width and of length one, equal for equal prompts, else another."""
        first, again, other = [
            await embedder.embed(EmbedRequest(prompt=text)) for text in ("hello", "hello", "world")
        ]
        assert first == again
        assert first.vectors != other.vectors
        ((*vector,),) = first.vectors
        assert len(vector) == 128
        assert math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-3)
        assert first.prompt_tokens == len(await embedder.encode("hello"))

    async def test_each_token_has_a_vector_if_asked(self, embedder):
        """As late interaction wants it."""
        got = await embedder.embed(EmbedRequest(prompt="hello", tokens=True))
        assert len(got.vectors) == got.prompt_tokens == 6
        assert {len(vector) for vector in got.vectors} == {128}

    async def test_a_pair_has_a_score(self, judge):
        """A cross-encoder reads both texts at once, and their order matters."""
        pair = EmbedRequest(prompt="what is it?", pair="it is this")
        turned = EmbedRequest(prompt="it is this", pair="what is it?")
        got = await judge.embed(pair)
        assert got == await judge.embed(pair)
        (((score,)),) = got.vectors
        assert 0 <= score <= 1
        assert got.vectors != (await judge.embed(turned)).vectors
        assert judge.scores_pairs

    async def test_an_engine_says_what_it_cannot(self, generator, embedder, judge):
        """And which engine could."""
        with pytest.raises(InvalidRequest, match=r"runner='pooling'"):
            await generator.embed(EmbedRequest(prompt="x"))
        for engine in (embedder, judge):
            with pytest.raises(InvalidRequest, match="to generate text"):
                await _read(engine, prompt="x")
        with pytest.raises(InvalidRequest, match="does not score pairs"):
            await embedder.embed(EmbedRequest(prompt="x", pair="y"))
        with pytest.raises(InvalidRequest, match="does not give vectors"):
            await judge.embed(EmbedRequest(prompt="x"))
        assert not embedder.scores_pairs
        for engine in (generator, embedder, judge):
            assert engine.statistics() == EngineStatistics()

    async def test_a_long_prompt_is_refused(self, embedder, small):
        """Before it reaches the engine."""
        with pytest.raises(PromptTooLong) as caught:
            await embedder.embed(EmbedRequest(prompt=[5] * 600))
        assert (caught.value.prompt_tokens, caught.value.limit) == (600, small["max_model_len"])

    @pytest.mark.parametrize("moment", [0.0, 0.001, 0.005])
    async def test_a_cancelled_prompt_is_forgotten(self, embedder, moment):
        """Wherever the cancellation meets it."""
        async with asyncio.TaskGroup() as group:
            prompts = [EmbedRequest(prompt=_prose(400, seed)) for seed in range(8)]
            tasks = [group.create_task(embedder.embed(prompt)) for prompt in prompts]
            await asyncio.sleep(moment)
            for task in tasks:
                task.cancel()
        assert embedder.statistics() == EngineStatistics()
        assert not embedder._life.session._engine.output_processor.request_states
        assert await embedder.embed(EmbedRequest(prompt="still there?"))


class TestPromptsInParts:
    """Prompts that are computed while their end is written."""

    @pytest.fixture
    def budget(self, generator):
        """What the engine knows of them."""
        return generator._life.session._budget

    @pytest.mark.parametrize("size", [7, 60, 250])
    @pytest.mark.parametrize(("head", "length"), [(0, 900), (300, 700), (5, 120), (600, 620)])
    async def test_it_says_what_the_whole_prompt_says(self, generator, budget, head, length, size):
        """Text and tokens are those of the plain prompt, however it comes."""
        text = _prose(length, seed=size + head)
        used = budget.used
        prompt = StreamedPrompt(text[:head], _in_pieces(text[head:], size))
        chunks = await _read(generator, prompt=prompt, max_tokens=40)
        got = "".join(c.text for c in chunks), [t for c in chunks for t in c.token_ids]
        assert got == await _said(generator, prompt=text, max_tokens=40)
        assert budget.used == used + (length > 128)
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].usage.prompt_tokens == length + 1
        assert chunks[-1].usage.output_tokens == 40
        assert budget.waiting == 0
        assert generator.statistics() == EngineStatistics()

    async def test_characters_of_several_tokens_come_out_whole(self, generator):
        """Prompts of characters that are several tokens each, with no spaces between."""
        text = "äöü好界🙂" * 40
        prompt = StreamedPrompt("", _in_pieces(text, 13))
        plain = await _said(generator, prompt=text, max_tokens=30)
        assert await _said(generator, prompt=prompt, max_tokens=30) == plain

    async def test_a_reader_that_lags_misses_nothing(self, generator):
        """Outputs that were glued together are still told apart from the prompt's."""
        text = _prose(800)
        chunks = generator.generate(
            GenerateRequest(prompt=StreamedPrompt("", _in_pieces(text, 100)), max_tokens=50)
        )
        got = [await anext(chunks)]
        await asyncio.sleep(0.5)
        got += [chunk async for chunk in chunks]
        plain = await _said(generator, prompt=text, max_tokens=50)
        assert ("".join(c.text for c in got), [t for c in got for t in c.token_ids]) == plain

    async def test_an_answer_may_fill_the_context(self, generator):
        """Never more than that, which would kill the engine."""
        for limit in (None, 5000):
            prompt = StreamedPrompt("", _in_pieces(_prose(900), 100))
            usage = (await _read(generator, prompt=prompt, max_tokens=limit))[-1].usage
            assert usage.prompt_tokens + usage.output_tokens == CONTEXT
        generator.check_health()

    async def test_a_prompt_that_grows_too_long_is_refused_early(self, generator):
        """Before its end, and the engine forgets it."""
        written = []

        async def endless():
            while True:
                written.append(1)
                await asyncio.sleep(0)
                yield _prose(100)

        with pytest.raises(PromptTooLong):
            await _read(generator, prompt=StreamedPrompt("", endless()))
        assert 10 <= len(written) <= 20
        assert generator.statistics() == EngineStatistics()
        generator.check_health()

    @pytest.mark.parametrize(
        "others",
        [{"stop": ("zz",)}, {"logprobs": 1}, {"choice": ("yes", "no")}, {"regex": "[ab]{3}"}],
        ids=str,
    )
    async def test_what_vllm_does_not_take_in_parts_waits_for_the_whole(
        self, generator, budget, others
    ):
        """The answer is the same, only later."""
        text, used = _prose(500), budget.used
        prompt = StreamedPrompt("", _in_pieces(text, 50))
        plain = await _said(generator, prompt=text, max_tokens=20, **others)
        assert await _said(generator, prompt=prompt, max_tokens=20, **others) == plain
        assert budget.used == used

    async def test_wrong_parameters_are_found_before_the_end(self, generator):
        """Whatever the text is, it will not be served."""
        prompt = StreamedPrompt(_prose(300), _never())
        with pytest.raises(InvalidRequest, match="temperature"):
            await asyncio.wait_for(_read(generator, prompt=prompt, temperature=9.0), 30)

    async def test_the_tails_failure_is_its_own(self, generator):
        """It comes as it is, and the engine forgets what it had."""

        async def broken():
            yield _prose(400)
            await asyncio.sleep(0.05)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await _read(generator, prompt=StreamedPrompt("", broken()))
        assert generator.statistics() == EngineStatistics()
        assert not generator._life.session._engine.output_processor.request_states

    async def test_cancelling_while_it_is_written_frees_all(self, generator, budget):
        """A prompt that waits for text holds a slot until it is given up."""
        ended = []

        async def tail():
            try:
                yield _prose(400)
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        task = asyncio.ensure_future(_read(generator, prompt=StreamedPrompt("", tail())))
        await _until(lambda: budget.waiting == 1)
        assert generator.statistics().running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [True]
        assert budget.waiting == 0
        assert generator.statistics() == EngineStatistics()
        assert not generator._life.session._engine.output_processor.request_states

    async def test_few_may_wait_and_others_are_served(self, generator, budget):
        """A quarter of the slots at most hold prompts that wait; more wait outside."""
        prompts = [
            StreamedPrompt(_prose(300, seed), _then_never(_prose(300, seed))) for seed in range(12)
        ]
        tasks = [asyncio.ensure_future(_read(generator, prompt=prompt)) for prompt in prompts]
        await _until(lambda: budget.waiting == 4)
        await asyncio.sleep(0.1)
        assert budget.waiting == generator.statistics().running == 4
        assert await _said(generator, prompt="and me?", max_tokens=5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert generator.statistics() == EngineStatistics()


async def _never():
    await asyncio.Event().wait()
    yield ""


async def _then_never(text):
    yield text
    await asyncio.Event().wait()


async def _until(condition, seconds=120.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what it waits for tells nobody
            await asyncio.sleep(0.01)


async def test_stopping_an_engine_ends_prompts_that_are_being_written(generator):
    """They are told, though nobody writes them on; last, since it stops the engine."""
    budget = generator._life.session._budget
    prompts = [StreamedPrompt(_prose(400), _never()), StreamedPrompt("x", _never())]
    tasks = [asyncio.ensure_future(_read(generator, prompt=prompt)) for prompt in prompts]
    await _until(lambda: budget.waiting == 1)
    await asyncio.wait_for(generator.stop(), 60)
    done, _ = await asyncio.wait(tasks, timeout=120)
    assert done == set(tasks)
    for task in tasks:
        assert isinstance(task.exception(), Closed)
    with pytest.raises((Closed, EngineError)):
        await generator.encode("x")
