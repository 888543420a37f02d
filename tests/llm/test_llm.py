from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from contextlib import contextmanager

import attrs
import pytest

from alto._current_call import Cleanup, current_call
from alto.errors import Closed, EngineDied, GenerationFailed, InvalidRequest
from alto.llm import LLM
from alto.model import (
    Chunk,
    Completion,
    EmbedRequest,
    EngineStatistics,
    GenerateRequest,
    Origin,
    StreamedPrompt,
    TokenLogprob,
    Usage,
)
from alto.testing import group
from alto.testing.scripted import Line, Scripted

ORIGIN = Origin(stage="s", request=1, path=(0,), arrived=0.0)


@attrs.define
class _Call:
    """Stand-in for a running stage call."""

    cleanup: Cleanup = attrs.Factory(Cleanup)
    cancelled: bool = False
    priority: int = 7
    deadline: float | None = None
    origin: Origin | None = ORIGIN
    events: list[tuple[object, ...]] = attrs.Factory(list)

    def generation_started(self, engine):
        self.events.append(("started", engine))
        return len(self.events)

    def generation_ended(self, number, engine, usage, error):
        self.events.append(("ended", number, engine, usage, type(error)))


@contextmanager
def _inside_a_call():
    call = _Call()
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)


@pytest.fixture
async def engine():
    """Says `a b c`, a second each."""
    scripted = Scripted(lambda _: ["a ", "b ", "c"], delay=1.0)
    await scripted.start()
    yield scripted
    await scripted.stop()


class TestRequests:
    """From keyword arguments to what the engine gets."""

    async def test_every_option_reaches_the_engine(self, engine):
        """The engine gets the request that the arguments describe."""
        options = {
            "max_tokens": 3,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 4,
            "ignore_eos": True,
            "priority": 2,
            "prefix": [1],
            "n": 1,
            "logprobs": 2,
            "lora": "poems",
        }
        await LLM(engine).text([1, 2], stop=["x", "y"], choice=["a b c"], **options)
        await LLM(engine).text("p", resume=True)
        assert engine.requests == (
            GenerateRequest(prompt=[1, 2], stop=("x", "y"), choice=("a b c",), **options),
            GenerateRequest(prompt="p", resume=True),
        )

    async def test_defaults_are_the_requests_own(self, engine):
        """Without options the request has its defaults."""
        await LLM(engine).text("p")
        assert engine.requests == (GenerateRequest(prompt="p"),)

    async def test_one_stop_text_needs_no_list(self, engine):
        """A bare text stops as a list of one."""
        assert await LLM(engine).text("p", stop="b") == "a "

    async def test_constraints_reach_the_engine(self, engine):
        """A regular expression and a JSON schema are passed on."""
        await LLM(engine).text("p", regex="[a-c ]+")
        assert engine.requests[0].regex == "[a-c ]+"
        request = LLM(engine).generate("p", json_schema={"type": "string"})._request
        assert request.json_schema == {"type": "string"}

    @pytest.mark.parametrize(
        "options",
        [
            {"max_tokens": 0},
            {"max_tokens": -1},
            {"max_tokens": 2.5},
            {"temperature": -1.0},
            {"temperature": "hot"},
            {"temperature": float("nan")},
            {"top_p": 0.0},
            {"top_p": None},
            {"stop": ""},
            {"stop": ["x", ""]},
            {"choice": "yes"},
            {"choice": []},
            {"choice": [""]},
            {"choice": ["a"], "regex": "a"},
            {"prompt": ""},
            {"prompt": [1.5]},
            {"prompt": [-1]},
            {"stop": 5},
            {"choice": 5},
            {"seed": 1.5},
            {"seed": 2**63},
            {"seed": -(2**63) - 1},
            {"seed": 2**70},
            {"regex": 5},
            {"regex": ""},
            {"json_schema": "x"},
            {"ignore_eos": "no"},
            {"priority": "high"},
            {"priority": 10**400},
            {"prompt": [1], "prefix": []},
            {"prompt": [1, 1 << 31]},
            {"prefix": "q"},
            {"n": 0},
            {"n": 2},
            {"n": 2, "temperature": 0.0},
            {"n": 2, "temperature": 1.0, "prompt": StreamedPrompt("p", None)},
            {"logprobs": 21},
            {"lora": ""},
            {"resume": True, "stop": "x"},
            {"schema": 5},
        ],
    )
    def test_an_impossible_request_is_refused_at_once(self, options):
        """generate() itself raises, so the traceback points at the stage's line."""
        with pytest.raises(InvalidRequest):
            LLM(Scripted([])).generate(**{"prompt": "p", **options})

    async def test_the_largest_seeds_are_taken(self, engine):
        """Any signed number of 64 bits is one."""
        for seed in (-(2**63), 2**63 - 1):
            await LLM(engine).text("p", seed=seed)
        assert [request.seed for request in engine.requests] == [-(2**63), 2**63 - 1]

    async def test_priority_is_the_calls_own(self, engine):
        """Inside of a stage call a request inherits its priority, unless it has its own."""
        llm = LLM(engine)
        with _inside_a_call():
            await llm.text("inherited")
            await llm.text("given", priority=1)
        await llm.text("outside")
        assert [request.priority for request in engine.requests] == [7, 1, 0]

    async def test_the_engine_is_told_who_asks(self, engine):
        """Inside of a stage call a request has its origin, and outside none."""
        llm = LLM(engine)
        with _inside_a_call() as call:
            await llm.text("inside")
            call.origin = None
            await llm.text("nobody knows")
        await llm.text("outside")
        assert [request.origin for request in engine.requests] == [ORIGIN, None, None]

    async def test_a_prompt_may_stream_in(self):
        """A group after a head is one prompt, which the engine reads."""
        async with Scripted({"Say: a b": "yes"}) as engine:
            prompt = StreamedPrompt("Say: ", group(["a ", "b"]))
            assert await LLM(engine).text(prompt) == "yes"
            assert engine.requests[0].prompt is prompt


class TestUse:
    """Iterating, waiting, closing."""

    async def test_chunks_arrive_as_they_are_made(self, engine):
        """Iterating gives the engine's chunks, at the engine's times."""
        loop = asyncio.get_running_loop()
        got = [(loop.time(), chunk.text) async for chunk in LLM(engine).generate("p")]
        assert got == [(1.0, "a "), (2.0, "b "), (3.0, "c")]

    async def test_collect_gives_everything_at_once(self, engine):
        """The completion has text, tokens, reason and usage; the generation then has them too."""
        generation = LLM(engine).generate("two words", max_tokens=2)
        assert (generation.usage, generation.finish_reason) == (None, None)
        completion = await generation.collect()
        usage = Usage(prompt_tokens=2, output_tokens=2)
        assert completion == Completion(
            text="a b ", token_ids=completion.token_ids, finish_reason="length", usage=usage
        )
        assert len(completion.token_ids) == 2
        assert (generation.usage, generation.finish_reason) == (usage, "length")

    async def test_text_gives_the_text(self, engine):
        """`text()` of a generation and `llm.text()` return the text."""
        llm = LLM(engine)
        assert await llm.generate("p").text() == await llm.text("p") == "a b c"

    @pytest.mark.parametrize("first", ["iterate", "text", "aclose"])
    @pytest.mark.parametrize("then", ["iterate", "text"])
    async def test_a_generation_is_used_once(self, engine, first, then):
        """A second use raises, and says what to do."""
        generation = LLM(engine).generate("p")
        await _use(generation, first)
        with pytest.raises(Closed, match=r"used once.*call generate\(\) again"):
            await _use(generation, then)

    async def test_a_generation_can_be_closed_any_number_of_times(self, engine):
        """Before, within and after its use."""
        generation = LLM(engine).generate("p")
        async for _ in generation:
            break
        await generation.aclose()
        await generation.aclose()
        assert engine.statistics() == EngineStatistics()
        assert engine.statistics().aborted == 1

    async def test_a_with_block_closes(self, engine):
        """On the way out of the block the engine is free, whatever happened inside."""
        with pytest.raises(ZeroDivisionError):  # the block is what is tested
            async with LLM(engine).generate("p") as chunks:
                async for _ in chunks:
                    raise ZeroDivisionError
        assert engine.statistics() == EngineStatistics()

    async def test_cancelling_a_wait_aborts(self, engine):
        """A cancelled text() leaves nothing running."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(LLM(engine).text("p"))
            await asyncio.sleep(1.5)
            task.cancel()
        assert engine.statistics() == EngineStatistics()
        assert engine.statistics().aborted == 1

    @pytest.mark.parametrize("chunks", [[], [Chunk(text="x")]])
    async def test_an_end_without_a_reason_is_a_failure(self, chunks):
        """An engine that just ends has failed, and half a text is not a text."""
        with pytest.raises(GenerationFailed, match="without a finish reason"):
            await LLM(_Plain(chunks)).text("p")

    async def test_an_engine_may_leave_the_usage_out(self):
        """A completion always has one."""
        completion = (
            await LLM(_Plain([Chunk(text="x", finish_reason="stop")])).generate("p").collect()
        )
        assert completion.usage == Usage()

    async def test_the_engines_error_arrives_as_it_is(self):
        """A failure in the middle is raised by the waiting read."""
        async with Scripted([Line("x", fail_at=1, error=OSError("gone"))]) as engine:
            with pytest.raises(OSError, match="gone"):
                await LLM(engine).text("p")

    async def test_reprs_say_where_they_are(self, engine):
        """A handle names its engine, a generation also its state."""
        llm = LLM(engine)
        generation = llm.generate("p")
        seen = [repr(llm), repr(generation)]
        await generation.text()
        seen.append(repr(generation))
        iterated, closed = llm.generate("p"), llm.generate("p")
        aiter(iterated)
        await closed.aclose()
        seen += [repr(iterated), repr(closed)]
        assert seen == [
            "<LLM on 'scripted'>",
            "<Generation on 'scripted', not started>",
            "<Generation on 'scripted', complete>",
            "<Generation on 'scripted', used>",
            "<Generation on 'scripted', closed>",
        ]
        assert llm.engine is engine


class TestSamples:
    """Several answers to one prompt, and what comes with them."""

    @pytest.fixture
    async def engine(self):
        """Says three samples of different lengths, a chunk of each in a second."""
        line = Line(["a", "b"], samples=["x", ["1", "2", "3"]], logprobs=[-0.5, -1.0])
        async with Scripted(lambda _: line, delay=1.0) as scripted:
            yield scripted

    async def test_chunks_of_samples_come_interleaved(self, engine):
        """Each chunk says which sample it is of, and each sample ends once."""
        generation = LLM(engine).generate("p", n=3, temperature=1.0)
        got = [(chunk.index, chunk.text, chunk.finish_reason) async for chunk in generation]
        assert got == [
            (0, "a", None),
            (1, "x", "stop"),
            (2, "1", None),
            (0, "b", "stop"),
            (2, "2", None),
            (2, "3", "stop"),
        ]

    async def test_samples_are_given_in_order_with_one_usage(self, engine):
        """Each is a completion, and the usage is of all of them."""
        generation = LLM(engine).generate("p", n=3, temperature=1.0, max_tokens=2)
        samples = await generation.samples()
        assert [(s.text, s.finish_reason) for s in samples] == [
            ("ab", "stop"),
            ("x", "stop"),
            ("12", "length"),
        ]
        usage = Usage(prompt_tokens=1, output_tokens=5)
        assert [s.usage for s in samples] == [usage] * 3
        assert (generation.usage, generation.finish_reason) == (usage, "stop")
        assert [len(s.token_ids) for s in samples] == [2, 1, 2]

    async def test_one_sample_is_a_list_of_one(self, engine):
        """Without n there is one."""
        samples = await LLM(engine).generate("p").samples()
        assert [sample.text for sample in samples] == ["ab"]

    @pytest.mark.parametrize("method", ["text", "collect"])
    async def test_one_text_of_several_is_refused_at_once(self, engine, method):
        """The error says what to use, nothing was asked for, and the generation is still good."""
        generation = LLM(engine).generate("p", n=3, temperature=1.0)
        with pytest.raises(InvalidRequest, match=rf"{method}\(\) is for one.*use samples\(\)"):
            await getattr(generation, method)()
        assert engine.requests == ()
        assert len(await generation.samples()) == 3

    async def test_logprobs_come_with_the_tokens(self, engine):
        """A completion has one for each token of its sample, where they were asked for."""
        one, two = await LLM(engine).generate("p", n=2, temperature=1.0, logprobs=1).samples()
        assert one.logprobs == tuple(
            TokenLogprob(token, value, ((token, value),))
            for token, value in zip(one.token_ids, [-0.5, -1.0], strict=True)
        )
        assert [entry.logprob for entry in two.logprobs] == [0.0]
        assert (await LLM(engine).generate("p").collect()).logprobs is None

    async def test_times_are_in_the_usage(self):
        """Usage has the seconds in the queue, and until the first token."""
        engine = Scripted(lambda _: ["a", "b"], slots=1, delay=1.0)
        async with engine, asyncio.TaskGroup() as tasks:
            first = tasks.create_task(LLM(engine).generate("p").collect())
            second = tasks.create_task(LLM(engine).generate("p").collect())
        times = [(t.result().usage.queue_time, t.result().usage.first_token_time)
                 for t in (first, second)]  # fmt: skip
        assert times == [(0.0, 1.0), (2.0, 3.0)]

    @pytest.mark.parametrize(
        ("chunks", "message"),
        [
            ([Chunk(text="x", finish_reason="stop")], "without a finish reason"),
            ([Chunk(text="x", index=2)], "a chunk of sample 2, where 2 were asked for"),
        ],
    )
    async def test_samples_that_are_not_as_asked_for_are_a_failure(self, chunks, message):
        """An engine gives each of them, and no other."""
        with pytest.raises(GenerationFailed, match=message):
            await LLM(_Plain(chunks)).generate("p", n=2, temperature=1.0).samples()


VECTORS = {"a": (1.0, 0.0), "b": (0.0, 2.0), "ab": (3.0, 3.0), "none": (0.0, 0.0), "1 2": (7.0,)}


class TestPooling:
    """Vectors and scores."""

    @pytest.fixture
    async def engine(self):
        """Knows some vectors, and takes a second for each."""
        async with Scripted([], embeds=VECTORS, first_delay=1.0) as scripted:
            yield scripted

    async def test_one_prompt_has_one_vector(self, engine):
        """Text or token ids."""
        llm = LLM(engine)
        assert await llm.embed("a") == (1.0, 0.0)
        assert await llm.embed([1, 2]) == (7.0,)

    async def test_several_prompts_are_computed_at_once(self, engine):
        """Their vectors come in order, after the time of one."""
        assert await LLM(engine).embed(["b", "a", [1, 2]]) == [(0.0, 2.0), (1.0, 0.0), (7.0,)]
        assert asyncio.get_running_loop().time() == 1.0
        assert await LLM(engine).embed([]) == []

    async def test_each_token_may_have_a_vector(self, engine):
        """One prompt or several may be embedded token by token."""
        assert await LLM(engine).embed_tokens([1, 2]) == ((7.0,), (7.0,))
        assert await LLM(engine).embed_tokens(["a"]) == [((1.0, 0.0),)]
        assert engine.embed_requests[0] == EmbedRequest(prompt=[1, 2], tokens=True)

    async def test_priority_and_origin_are_the_calls_own(self, engine):
        """Embedding requests inherit them as generations do."""
        with _inside_a_call():
            await LLM(engine).embed("a")
            await LLM(engine).score("a", [], priority=1)
        asked = [(request.priority, request.origin) for request in engine.embed_requests]
        assert asked == [(7, ORIGIN), (1, ORIGIN)]

    async def test_documents_are_scored_by_their_vectors(self, engine):
        """The cosine, and nothing for a vector of zeros."""
        scores = await LLM(engine).score("a", ["a", "b", "ab", "none"])
        assert scores == pytest.approx([1.0, 0.0, 0.5**0.5, 0.0])

    async def test_documents_are_scored_in_pairs_where_the_engine_can(self):
        """The engine says that it can, or the caller says how."""
        pairs = {("q", "a"): 0.25, ("q", "b"): -3}
        embeds = {"q": (1.0,), "a": (2.0,), "b": (-2.0,)}
        async with Scripted([], embeds=embeds, scores=pairs) as engine:
            llm = LLM(engine)
            assert await llm.score("q", ["b", "a"]) == [-3.0, 0.25]
            assert await llm.score("q", ["b", "a"], by="pair") == [-3.0, 0.25]
            assert await llm.score("q", ["b", "a"], by="embedding") == [-1.0, 1.0]
        assert engine.embed_requests[0] == EmbedRequest(prompt="q", pair="b")

    async def test_an_engine_that_does_not_pool_is_refused(self):
        """The error says what to start."""
        llm = LLM(_Plain([]))
        for work in (llm.embed("p"), llm.embed_tokens(["p"]), llm.score("q", ["d"])):
            with pytest.raises(InvalidRequest, match=r"alto.VLLM\(model, runner='pooling'\)"):
                await work

    @pytest.mark.parametrize(
        ("documents", "options", "message"),
        [
            ("d", {}, "several texts"),
            (["d"], {"by": "magic"}, "by must be"),
            ([""], {}, "empty"),
            ([""], {"by": "pair"}, "two texts"),
        ],
    )
    async def test_an_impossible_score_is_refused(self, engine, documents, options, message):
        """Before anything is asked for."""
        with pytest.raises(InvalidRequest, match=message):
            await LLM(engine).score("a", documents, **options)
        assert engine.embed_requests == ()

    async def test_the_first_failure_arrives_alone_and_ends_the_others(self, engine):
        """An error is raised as it is, and nothing runs on."""
        with pytest.raises(InvalidRequest, match="no scores"):
            await LLM(engine).score("a", ["b", "c"], by="pair")
        engine_dies = LLM(engine).embed(["a", "b"])
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(_outcome(engine_dies))
            await asyncio.sleep(0.5)
            engine.kill()
        assert isinstance(task.result(), EngineDied)
        assert engine.statistics() == EngineStatistics()

    @pytest.mark.parametrize("prompts", ["a", ["a", "b"]])
    async def test_cancelling_forgets_them(self, engine, prompts):
        """One or several."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(LLM(engine).embed(prompts))
            await asyncio.sleep(0.5)
            task.cancel()
        assert engine.statistics() == EngineStatistics()


class TestCleanup:
    """Closing of generations that were left early."""

    async def test_a_loop_that_is_left_is_closed_at_the_next_checkpoint(self, engine):
        """Inside of a call, break hands the generation to the call's cleanup."""
        with _inside_a_call() as call:
            async for _ in LLM(engine).generate("p"):
                assert not call.cleanup.abandoned
                break
        assert call.cleanup.abandoned
        assert engine.statistics().running == 1
        await call.cleanup.close_abandoned()
        assert engine.statistics() == EngineStatistics()
        assert not call.cleanup._live
        assert not call.cleanup.abandoned

    async def test_a_loop_that_ends_leaves_nothing_to_clean(self, engine):
        """A generation that was read to its end is forgotten at once."""
        with _inside_a_call() as call:
            async for _ in LLM(engine).generate("p"):
                assert call.cleanup._live or call.cleanup.abandoned
        assert not call.cleanup._live
        assert not call.cleanup.abandoned

    async def test_a_failed_generation_leaves_nothing_to_clean(self):
        """Nor does one that the engine gave up."""
        async with Scripted([Line("x", fail_at=1)]) as engine:
            with _inside_a_call() as call:
                with pytest.raises(GenerationFailed):
                    await _use(LLM(engine).generate("p"), "iterate")
                gc.collect()  # the error's traceback held the loop
                assert not call.cleanup._live
                assert not call.cleanup.abandoned

    async def test_an_iterator_that_is_kept_is_closed_when_the_call_ends(self, engine):
        """Somebody may still use it, so it is not closed before."""
        with _inside_a_call() as call:
            kept = aiter(LLM(engine).generate("p"))
            await anext(kept)
            assert not call.cleanup.abandoned
            await call.cleanup.close_all()
            assert engine.statistics() == EngineStatistics()
            with pytest.raises(Closed, match="before its end"):
                await anext(kept)

    async def test_a_chunk_that_is_still_awaited_is_not_cut_off(self, engine):
        """A task that waits for a chunk keeps the generation alive after the iterator was dropped."""
        with _inside_a_call() as call:
            async with asyncio.TaskGroup() as group:
                chunks = aiter(LLM(engine).generate("p"))
                task = group.create_task(_first(chunks.__anext__()))
                await asyncio.sleep(0)
                del chunks
                assert not call.cleanup.abandoned
            assert task.result().text == "a "
            await call.cleanup.close_all()
        assert engine.statistics() == EngineStatistics()

    async def test_outside_of_a_call_asyncio_closes(self, engine):
        """Without a call the loop's own hook finalises the generator soon after."""
        async for _ in LLM(engine).generate("p"):
            break
        await asyncio.sleep(0.1)
        assert engine.statistics() == EngineStatistics()


@pytest.mark.slow
def test_importing_the_handle_imports_no_engine():
    """`alto.llm` needs neither vllm nor torch."""
    program = "import sys, alto.llm; sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class _Plain:
    """An engine that ends as it likes."""

    name = "plain"

    def __init__(self, chunks):
        self.chunks = chunks

    async def generate(self, request):
        for chunk in self.chunks:
            yield chunk


async def _use(generation, how):
    if how == "iterate":
        async for _ in generation:
            pass
    else:
        await getattr(generation, how)()


async def _outcome(work):
    try:
        return await work
    except EngineDied as error:
        return error


async def _first(step):
    return await step
