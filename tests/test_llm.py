from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from contextlib import contextmanager

import attrs
import pytest

from alto._aio import Cleanup, current_call
from alto.errors import Closed, GenerationFailed, InvalidRequest
from alto.llm import LLM
from alto.model import Chunk, Completion, EngineStatistics, GenerateRequest, Usage
from alto.testing.scripted import Line, Scripted


@attrs.define
class _Call:
    """What a running stage call shows to a handle."""

    cleanup: Cleanup = attrs.Factory(Cleanup)
    priority: int = 7
    deadline: float | None = None


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
        }
        await LLM(engine).text([1, 2], stop=["x", "y"], choice=["a b c"], **options)
        assert engine.requests == (
            GenerateRequest(prompt=[1, 2], stop=("x", "y"), choice=("a b c",), **options),
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
        ],
    )
    def test_an_impossible_request_is_refused_at_once(self, options):
        """generate() itself raises, so the traceback points at the stage's line."""
        with pytest.raises(InvalidRequest):
            LLM(Scripted([])).generate(**{"prompt": "p", **options})

    async def test_priority_is_the_calls_own(self, engine):
        """Inside of a stage call a request inherits its priority, unless it has its own."""
        llm = LLM(engine)
        with _inside_a_call():
            await llm.text("inherited")
            await llm.text("given", priority=1)
        await llm.text("outside")
        assert [request.priority for request in engine.requests] == [7, 1, 0]


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
        """Of a generation, and in short."""
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
        """A failure in the middle is raised by whoever waits."""
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


class TestCleanup:
    """Who closes what was left early."""

    async def test_a_loop_that_is_left_is_closed_at_the_next_checkpoint(self, engine):
        """Inside of a call, break hands the generation to the call's cleanup."""
        with _inside_a_call() as call:
            async for _ in LLM(engine).generate("p"):
                assert not call.cleanup.pending
                break
        assert call.cleanup.pending
        assert engine.statistics().running == 1
        await call.cleanup.close_abandoned()
        assert engine.statistics() == EngineStatistics()
        assert call.cleanup.empty

    async def test_a_loop_that_ends_leaves_nothing_to_clean(self, engine):
        """A generation that was read to its end is forgotten at once."""
        with _inside_a_call() as call:
            async for _ in LLM(engine).generate("p"):
                assert not call.cleanup.empty
        assert call.cleanup.empty

    async def test_a_failed_generation_leaves_nothing_to_clean(self):
        """Nor does one that the engine gave up."""
        async with Scripted([Line("x", fail_at=1)]) as engine:
            with _inside_a_call() as call:
                with pytest.raises(GenerationFailed):
                    await _use(LLM(engine).generate("p"), "iterate")
                gc.collect()  # the error's traceback held the loop
                assert call.cleanup.empty

    async def test_an_iterator_that_is_kept_is_closed_when_the_call_ends(self, engine):
        """Somebody may still use it, so it is not closed before."""
        with _inside_a_call() as call:
            kept = aiter(LLM(engine).generate("p"))
            await anext(kept)
            assert not call.cleanup.pending
            await call.cleanup.close_all()
            assert engine.statistics() == EngineStatistics()
            with pytest.raises(StopAsyncIteration):
                await anext(kept)

    async def test_a_chunk_that_is_still_awaited_is_not_cut_off(self, engine):
        """A task that waits for a chunk keeps the generation, though the iterator is gone."""
        with _inside_a_call() as call:
            async with asyncio.TaskGroup() as group:
                chunks = aiter(LLM(engine).generate("p"))
                task = group.create_task(_first(chunks.__anext__()))
                await asyncio.sleep(0)
                del chunks
                assert not call.cleanup.pending
            assert task.result().text == "a "
            await call.cleanup.close_all()
        assert engine.statistics() == EngineStatistics()

    async def test_outside_of_a_call_asyncio_closes(self, engine):
        """Without a call the loop's own hook finalises the generator soon after."""
        async for _ in LLM(engine).generate("p"):
            break
        await asyncio.sleep(0.1)
        assert engine.statistics() == EngineStatistics()

    async def test_a_chunk_passes_no_frame_of_ours(self, engine):
        """What is awaited for a chunk is the engine generator's own awaitable."""
        chunks = aiter(LLM(engine).generate("p"))
        assert aiter(chunks) is chunks
        step = chunks.__anext__()
        assert type(step).__name__ == "async_generator_asend"
        assert (await step).text == "a "


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


async def _first(step):
    return await step
