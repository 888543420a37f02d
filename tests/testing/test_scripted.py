from __future__ import annotations

import asyncio
import json

import pytest

from alto.errors import (
    Closed,
    EngineDied,
    EngineError,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
)
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    EngineStatistics,
    GenerateRequest,
    Message,
    StreamedPrompt,
    TokenLogprob,
    Usage,
)
from alto.protocols import Embedder
from alto.testing import run_virtual
from alto.testing.scripted import Line, Scripted, ScriptError


def _ask(prompt="hello", **options):
    return GenerateRequest(prompt=prompt, **options)


async def _texts(engine, prompt="hello", **options):
    return [chunk.text async for chunk in engine.generate(_ask(prompt, **options))]


async def _timed(engine, prompt="hello", **options):
    """Chunks with the virtual time of each."""
    loop = asyncio.get_running_loop()
    return [
        (round(loop.time(), 6), chunk.text)
        async for chunk in engine.generate(_ask(prompt, **options))
    ]


class TestLines:
    """What it says, and what is left over."""

    async def test_lines_are_said_in_order(self):
        """Each prompt gets the next line."""
        async with Scripted([["a", "b"], "c"]) as engine:
            assert [await _texts(engine), await _texts(engine)] == [["a", "b"], ["c"]]

    async def test_a_line_may_wait_for_its_prompt(self):
        """A prompt takes the first unsaid line that matches it, whatever the order."""
        script = [Line("one", match="1"), Line("two", match=lambda p: p.endswith("2")), "any"]
        async with Scripted(script) as engine:
            said = [await _texts(engine, p) for p in ("is 2", "3", "is 1")]
        assert said == [["two"], ["any"], ["one"]]

    async def test_an_unexpected_prompt_is_named(self):
        """The error quotes the prompt and the lines that are left."""
        engine = Scripted([Line("yes", match="X")])
        await engine.start()
        with pytest.raises(ScriptError, match=r"prompt 'what\?'; lines left: 'yes' for 'X'"):
            await _texts(engine, "what?")

    async def test_a_used_up_script_says_so(self):
        """A prompt after the last line is an error."""
        async with Scripted(["a"]) as engine:
            await _texts(engine)
            with pytest.raises(ScriptError, match="used up"):
                await _texts(engine)

    async def test_a_mapping_answers_whole_prompts_any_number_of_times(self):
        """Equal prompts get equal answers, other prompts an error, and no answer need be used."""
        async with Scripted({"a": ["1", "2"], "b": "3"}) as engine:
            assert [await _texts(engine, "a") for _ in range(2)] == [["1", "2"]] * 2
            with pytest.raises(ScriptError, match=r"'c'; known: 'a'; 'b'"):
                await _texts(engine, "c")

    async def test_a_function_answers_everything(self):
        """What it returns is said."""
        async with Scripted(str.split) as engine:
            assert await _texts(engine, "to be or") == ["to", "be", "or"]

    async def test_chats_and_token_ids_are_matched_as_text(self):
        """A chat reads as role and content lines, ids as numbers."""
        async with Scripted({"user: hi\nassistant: ho": "chat", "1 2 3": "ids"}) as engine:
            chat = [Message(role="user", content="hi"), Message(role="assistant", content="ho")]
            assert [await _texts(engine, p) for p in (chat, [1, 2, 3])] == [["chat"], ["ids"]]

    async def test_leftover_lines_fail_the_stop(self):
        """Stopping names the lines that nobody asked for, and the engine is stopped all the same."""
        engine = Scripted(["said", "unsaid", Line("silent", match="X")])
        await engine.start()
        await _texts(engine)
        with pytest.raises(ScriptError, match=r"2 of its lines:\n  'unsaid'\n  'silent' for 'X'"):
            await engine.stop()
        with pytest.raises(Closed):
            engine.check_health()
        await engine.stop()

    async def test_leftover_lines_do_not_hide_an_error(self):
        """An error in the block arrives, and not the complaint about lines."""
        with pytest.raises(ZeroDivisionError):
            async with Scripted(["unsaid"]):
                raise ZeroDivisionError

    async def test_leftovers_can_be_checked_at_any_time(self):
        """The check is a method of its own."""
        engine = Scripted(["a"])
        await engine.start()
        with pytest.raises(ScriptError, match="never asked for 1 of its lines"):
            engine.check_leftovers()
        await _texts(engine)
        engine.check_leftovers()
        await engine.stop()

    def test_one_text_is_no_script(self):
        """A bare text, which would be taken letter by letter, is refused."""
        with pytest.raises(TypeError, match="list of lines"):
            Scripted("hello")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"delay": -1}, "delay"),
            ({"first_delay": -1}, "delay"),
            ({"error": ValueError()}, "needs fail_at"),
            ({"fail_at": 3}, "from 0 to 2"),
            ({"logprobs": [-1.0]}, "must be 2 numbers"),
            ({"logprobs": [-1.0, 0.5]}, "none above 0"),
        ],
    )
    def test_an_impossible_line_is_refused(self, options, message):
        """A line is checked when it is made."""
        with pytest.raises(ValueError, match=message):
            Line(["a", "b"], **options)

    def test_samples_are_a_list(self):
        """A bare text, which would be taken letter by letter, is refused."""
        with pytest.raises(TypeError, match="samples are a list"):
            Line("a", samples="b")

    @pytest.mark.parametrize("options", [{"slots": 0}, {"delay": -1}, {"first_delay": -0.1}])
    def test_an_impossible_engine_is_refused(self, options):
        """So is an engine."""
        with pytest.raises(ValueError, match="must be"):
            Scripted([], **options)


class TestChunks:
    """How a line is cut to a request."""

    async def test_the_last_chunk_has_reason_and_usage(self):
        """One chunk counts as one token; the cache is as the line says, within the prompt."""
        async with Scripted([Line(["a", "b"], cached_tokens=99)]) as engine:
            first, last = [chunk async for chunk in engine.generate(_ask("three word prompt"))]
        assert (first.finish_reason, first.usage) == (None, None)
        assert last.finish_reason == "stop"
        assert last.usage == Usage(prompt_tokens=3, cached_tokens=3, output_tokens=2)

    async def test_equal_texts_have_equal_token_ids(self):
        """Ids are made up, one a chunk, and stand for the text."""
        async with Scripted([["a", "b", "a"]]) as engine:
            ids = [chunk.token_ids async for chunk in engine.generate(_ask())]
        assert ids[0] == ids[2] != ids[1]
        assert [len(i) for i in ids] == [1, 1, 1]

    async def test_a_line_of_nothing_still_ends(self):
        """There is always a chunk to carry the reason."""
        async with Scripted([Line([])]) as engine:
            chunks = [chunk async for chunk in engine.generate(_ask())]
        assert chunks == [
            Chunk(text="", finish_reason="stop", usage=Usage(prompt_tokens=1, output_tokens=0))
        ]

    async def test_a_line_may_end_for_another_reason(self):
        """The reason is the line's where nothing cuts it."""
        async with Scripted([Line(["a"], finish_reason="length")]) as engine:
            (chunk,) = [chunk async for chunk in engine.generate(_ask())]
        assert chunk.finish_reason == "length"

    async def test_max_tokens_cuts(self):
        """A longer line is cut, and says so."""
        async with Scripted(lambda _: ["a", "b", "c"]) as engine:
            chunks = [chunk async for chunk in engine.generate(_ask(max_tokens=2))]
            whole = [chunk async for chunk in engine.generate(_ask(max_tokens=3))]
        assert [(c.text, c.finish_reason) for c in chunks] == [("a", None), ("b", "length")]
        assert chunks[-1].usage.output_tokens == 2
        assert whole[-1].finish_reason == "stop"

    @pytest.mark.parametrize(
        ("stop", "said"),
        [
            (("c",), ["ab"]),
            (("bc",), ["a"]),
            (("d", "b"), ["a"]),
            (("a",), [""]),
            (("ef",), ["ab", "cd"]),
            (("x",), ["ab", "cd", "ef"]),
        ],
    )
    async def test_a_stop_text_cuts_before_it(self, stop, said):
        """Also where it spans two chunks; the first to occur wins."""
        async with Scripted([["ab", "cd", "ef"]]) as engine:
            got = [chunk async for chunk in engine.generate(_ask(stop=stop))]
        assert "".join(c.text for c in got) == "".join(said)
        assert got[-1].finish_reason == "stop"

    @pytest.mark.parametrize(
        ("options", "good", "bad", "message"),
        [
            ({"choice": ("yes", "no")}, "yes", "yep", "none of"),
            ({"regex": "[0-9]+"}, "12", "1x", "does not match"),
            ({"json_schema": {}}, json.dumps({"a": 1}), "{", "no JSON"),
        ],
    )
    async def test_a_line_must_keep_to_the_constraint(self, options, good, bad, message):
        """A scripted text that no engine could have said is an error of the test."""
        async with Scripted([good, bad]) as engine:
            assert await _texts(engine, **options) == [good]
            with pytest.raises(ScriptError, match=message):
                await _texts(engine, **options)

    async def test_a_cut_line_need_not_keep_to_the_constraint(self):
        """A text that max_tokens cuts may be incomplete, as an engine's would be."""
        async with Scripted([["y", "es"]]) as engine:
            assert await _texts(engine, choice=("yes",), max_tokens=1) == ["y"]

    async def test_requests_are_kept(self):
        """A test can look at what was asked."""
        async with Scripted(lambda _: "x") as engine:
            await _texts(engine, "a", temperature=0.5)
            await _texts(engine, "b")
        assert [(r.prompt, r.temperature) for r in engine.requests] == [("a", 0.5), ("b", 0.0)]

    async def test_a_long_prompt_is_refused(self):
        """With a context of its own the engine refuses as a real one does."""
        async with Scripted(lambda _: "x", max_model_len=3) as engine:
            assert await _texts(engine, "two words") == ["x"]
            with pytest.raises(PromptTooLong, match="3 tokens"):
                await _texts(engine, "one two three")


class TestSamples:
    """Several samples of one line, and log-probabilities."""

    async def test_all_samples_say_the_same_where_nothing_else_is_given(self):
        """Without samples a line serves any n."""
        async with Scripted([["a", "b"]]) as engine:
            chunks = [chunk async for chunk in engine.generate(_ask(n=2))]
        assert [(c.index, c.text, c.finish_reason) for c in chunks] == [
            (0, "a", None),
            (1, "a", None),
            (0, "b", "stop"),
            (1, "b", "stop"),
        ]
        assert [c.usage for c in chunks[:3]] == [None] * 3
        assert chunks[3].usage == Usage(prompt_tokens=1, output_tokens=4)

    async def test_a_line_has_no_more_samples_than_given(self):
        """Asking for more is an error of the test, and fewer is not."""
        line = Line("a", samples=["b"])
        async with Scripted(lambda _: line) as engine:
            with pytest.raises(ScriptError, match="asks for 3 samples, and the scripted 'a' has 2"):
                await _texts(engine, n=3)
            assert await _texts(engine, n=2) == ["a", "b"]
            assert await _texts(engine) == ["a"]

    async def test_a_step_takes_one_delay_for_all(self):
        """Samples are said side by side, and the slot is free after the longest."""
        line = Line(["a", "b"], samples=["x", ["1", "2", "3"]])
        async with Scripted([line, "next"], slots=1, delay=1.0) as engine:
            unread = engine.generate(_ask(n=3))
            await anext(unread)
            assert await _timed(engine) == [(4.0, "next")]
            await unread.aclose()

    @pytest.mark.parametrize(
        ("options", "texts"),
        [({"max_tokens": 1}, ["a", "c"]), ({"stop": ("d",)}, ["ab", "c"])],
    )
    async def test_each_sample_is_cut_by_itself(self, options, texts):
        """By max_tokens, and by stop texts."""
        async with Scripted([Line(["a", "b"], samples=[["c", "d"]])]) as engine:
            chunks = [chunk async for chunk in engine.generate(_ask(n=2, **options))]
        assert ["".join(c.text for c in chunks if c.index == i) for i in range(2)] == texts

    async def test_a_sample_of_nothing_still_ends(self):
        """It has a chunk of its own for the reason."""
        async with Scripted([Line("a", samples=[[]])]) as engine:
            chunks = [chunk async for chunk in engine.generate(_ask(n=2))]
        assert [(c.index, c.text, c.finish_reason) for c in chunks] == [
            (0, "a", "stop"),
            (1, "", "stop"),
        ]

    async def test_each_sample_must_keep_to_the_constraint(self):
        """Not only the first."""
        async with Scripted([Line("yes", samples=["maybe"])]) as engine:
            with pytest.raises(ScriptError, match="'maybe' is none of"):
                await _texts(engine, n=2, choice=("yes", "no"))

    async def test_a_failure_ends_all_samples(self):
        """In its step, where a shorter sample may have ended."""
        line = Line(["a", "b", "c"], samples=["x"], fail_at=2)
        async with Scripted([line]) as engine:
            got = []
            with pytest.raises(GenerationFailed):
                async for chunk in engine.generate(_ask(n=2)):
                    got.append((chunk.index, chunk.text))
        assert got == [(0, "a"), (1, "x"), (0, "b")]

    async def test_logprobs_are_the_lines_or_certain(self):
        """One for each chunk, with itself as the likeliest; none where none were asked for."""
        async with Scripted(lambda _: Line(["a", "b"], logprobs=[-1.0, -2.0])) as engine:
            first, second = [c async for c in engine.generate(_ask(logprobs=1))]
            (token,) = second.token_ids
            assert second.logprobs == (TokenLogprob(token, -2.0, ((token, -2.0),)),)
            assert first.logprobs[0].logprob == -1.0
            cut = [c async for c in engine.generate(_ask(logprobs=0, max_tokens=1))]
            assert [c.logprobs[0].top for c in cut] == [()]
            assert [c.logprobs async for c in engine.generate(_ask())] == [None, None]
        async with Scripted(["a"]) as engine:
            (chunk,) = [c async for c in engine.generate(_ask(logprobs=1))]
        assert chunk.logprobs[0].logprob == 0.0


class TestStreamedPrompts:
    """A prompt whose end is still being written."""

    async def test_the_whole_tail_is_read_first(self):
        """The line is found for all of it, once it is there."""

        async def tail():
            for piece in ["b ", "c"]:
                await asyncio.sleep(1)
                yield piece

        async with Scripted({"a b c": ["yes"]}, delay=1.0) as engine:
            chunks = [c async for c in engine.generate(_ask(StreamedPrompt("a ", tail())))]
        assert asyncio.get_running_loop().time() == 3.0
        assert chunks[0].usage == Usage(prompt_tokens=3, output_tokens=1)
        assert (chunks[0].usage.queue_time, chunks[0].usage.first_token_time) == (2.0, 3.0)

    @pytest.mark.parametrize(
        ("piece", "message"), [(5, "must yield str, not int"), ("", "is empty")]
    )
    async def test_a_prompt_that_is_none_is_refused(self, piece, message):
        """Once the tail is there."""

        async def tail():
            yield piece

        async with Scripted(lambda _: "x") as engine:
            with pytest.raises(InvalidRequest, match=message):
                await _texts(engine, StreamedPrompt("", tail()))

    async def test_an_engine_that_stops_meanwhile_serves_it_not(self):
        """The generation ends when its prompt does."""
        engine = Scripted(lambda _: "x")
        await engine.start()

        async def tail():
            await engine.stop()
            yield "b"

        with pytest.raises(Closed):
            await _texts(engine, StreamedPrompt("a", tail()))


class TestVectors:
    """An engine that pools."""

    async def test_vectors_come_from_a_mapping_or_a_function(self):
        """For a prompt of any kind, as lines see it."""
        async with Scripted([], embeds={"1 2": [1, 2]}) as engine:
            assert isinstance(engine, Embedder)
            got = await engine.embed(EmbedRequest(prompt=[1, 2]))
            assert got == Embedding(vectors=((1.0, 2.0),), prompt_tokens=2)
            with pytest.raises(ScriptError, match="no answer is given for 'x'; known: '1 2'"):
                await engine.embed(EmbedRequest(prompt="x"))
            assert [request.prompt for request in engine.embed_requests] == [[1, 2], "x"]
        async with Scripted([], embeds=lambda text: [len(text)]) as engine:
            got = await engine.embed(EmbedRequest(prompt="two words", tokens=True))
            assert got == Embedding(vectors=((9.0,), (9.0,)), prompt_tokens=2)

    async def test_scores_come_from_a_mapping_or_a_function(self):
        """For a pair of texts."""
        async with Scripted([], scores={("a b", "c"): 1}) as engine:
            assert engine.scores_pairs
            got = await engine.embed(EmbedRequest(prompt="a b", pair="c"))
            assert got == Embedding(vectors=((1.0,),), prompt_tokens=3)
            with pytest.raises(ScriptError, match="no answer is given"):
                await engine.embed(EmbedRequest(prompt="a b", pair="d"))
        async with Scripted([], scores=lambda one, other: one == other) as engine:
            assert (await engine.embed(EmbedRequest(prompt="a", pair="a"))).vectors == ((1.0,),)

    @pytest.mark.parametrize(
        ("pair", "message"), [(None, r"give Scripted\(embeds"), ("b", r"give Scripted\(scores")]
    )
    async def test_without_answers_it_does_not_pool(self, pair, message):
        """As a real engine it refuses."""
        async with Scripted([]) as engine:
            assert not engine.scores_pairs
            with pytest.raises(InvalidRequest, match=message):
                await engine.embed(EmbedRequest(prompt="a", pair=pair))

    async def test_a_vector_takes_a_slot_and_the_first_delay(self):
        """One after the other, and counted."""
        engine = Scripted([], embeds=lambda _: [1], slots=1, delay=9.0, first_delay=1.0)
        async with engine, asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.embed(EmbedRequest(prompt=p))) for p in "ab"]
            await asyncio.sleep(0.5)
            assert engine.statistics() == EngineStatistics(running=1, waiting=1)
        assert asyncio.get_running_loop().time() == 2.0
        assert [len(task.result().vectors) for task in tasks] == [1, 1]
        assert (engine.statistics(), engine.statistics().finished) == (EngineStatistics(), 2)

    async def test_it_must_be_started_and_alive(self):
        """As for generations."""
        engine = Scripted([], embeds=lambda _: [1])
        with pytest.raises(Closed):
            await engine.embed(EmbedRequest(prompt="a"))
        await engine.start()
        engine.kill()
        with pytest.raises(EngineDied):
            await engine.embed(EmbedRequest(prompt="a"))


class TestTime:
    """When chunks come."""

    async def test_delays_are_exact(self):
        """Chunks come at the first delay, and then every delay."""
        async with Scripted(lambda _: ["a", "b", "c"], delay=0.1, first_delay=1.0) as engine:
            assert await _timed(engine) == [(1.0, "a"), (1.1, "b"), (1.2, "c")]

    async def test_a_line_has_its_own_delays(self):
        """The line's delays win; its first delay is its delay unless it says more."""
        lines = [Line(["a", "b"], delay=2.0), Line(["c", "d"], first_delay=5.0), ["e"]]
        async with Scripted(lines, delay=1.0) as engine:
            assert await _timed(engine) == [(2.0, "a"), (4.0, "b")]
            assert await _timed(engine) == [(9.0, "c"), (10.0, "d")]
            assert await _timed(engine) == [(11.0, "e")]

    async def test_a_late_reader_gets_what_is_due_at_once(self):
        """The engine does not wait for its reader."""
        async with Scripted(lambda _: ["a", "b", "c", "d"], delay=1.0) as engine:
            chunks = engine.generate(_ask())
            assert (await anext(chunks)).text == "a"
            await asyncio.sleep(2.5)
            start = asyncio.get_running_loop().time()
            assert [(await anext(chunks)).text for _ in range(2)] == ["b", "c"]
            assert asyncio.get_running_loop().time() == start
            assert [c.text async for c in chunks] == ["d"]
            assert asyncio.get_running_loop().time() == pytest.approx(4.0)

    async def test_without_delay_no_time_passes(self):
        """A long text with no delay takes none."""
        async with Scripted([["x"] * 1000]) as engine:
            assert len(await _texts(engine, max_tokens=None)) == 1000
        assert asyncio.get_running_loop().time() == 0

    async def test_a_generation_lets_others_run_before_its_first_chunk(self):
        """Even without delay the first chunk is a checkpoint."""
        async with Scripted([["x"]]) as engine:
            order = []
            asyncio.get_running_loop().call_soon(order.append, "other")
            order += await _texts(engine)
        assert order == ["other", "x"]


class TestSlots:
    """How many at once."""

    async def test_others_wait_in_order(self):
        """With one slot, generations run one after the other, and waiting ones are counted."""
        async with Scripted(lambda p: [p], slots=1, delay=1.0) as engine, asyncio.TaskGroup() as g:
            tasks = [g.create_task(_timed(engine, p)) for p in "abc"]
            await asyncio.sleep(0.5)
            assert engine.statistics() == EngineStatistics(running=1, waiting=2)
            assert "1 running, 2 waiting" in repr(engine)
        assert [t.result() for t in tasks] == [[(1.0, "a")], [(2.0, "b")], [(3.0, "c")]]
        assert engine.statistics().finished == 3

    async def test_an_unread_generation_frees_its_slot(self):
        """The slot is free when the engine is done, read or not."""
        async with Scripted(lambda _: ["a", "b"], slots=1, delay=1.0) as engine:
            unread = engine.generate(_ask())
            await anext(unread)
            assert await _timed(engine) == [(3.0, "a"), (4.0, "b")]
            assert [chunk.text async for chunk in unread] == ["b"]

    async def test_the_slot_is_free_when_the_last_chunk_is_out(self):
        """Whoever has the last chunk sees the engine idle."""
        async with Scripted([["a"]], slots=1, delay=1.0) as engine:
            async for _ in engine.generate(_ask()):
                assert engine.statistics() == EngineStatistics()

    async def test_closing_early_frees_the_slot_at_once(self):
        """A reader that leaves gives the slot to the next."""
        async with Scripted(lambda _: ["a", "b"], slots=1, delay=1.0) as engine:
            chunks = engine.generate(_ask())
            await anext(chunks)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(_timed(engine))
                await asyncio.sleep(0.25)
                await chunks.aclose()
            assert task.result() == [(2.25, "a"), (3.25, "b")]
            assert (engine.statistics().finished, engine.statistics().aborted) == (1, 1)

    @pytest.mark.parametrize("moment", [0.5, 1.0, 1.5, 2.0])
    async def test_cancelling_frees_wherever_it_meets_the_reader(self, moment):
        """Waiting, just admitted or running: nothing is left behind."""
        engine = Scripted(lambda _: ["a"], slots=1, delay=1.0)
        await engine.start()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(_texts(engine))
            second = group.create_task(_texts(engine))
            await asyncio.sleep(moment)
            second.cancel()
        assert first.result() == ["a"]
        assert engine.statistics() == EngineStatistics()
        assert engine.statistics().finished + engine.statistics().aborted == 2
        await engine.stop()

    async def test_generations_without_delay_need_no_slot(self):
        """They are over at once, so none waits."""
        async with Scripted(lambda _: "x", slots=1) as engine:
            unread = [engine.generate(_ask()) for _ in range(3)]
            assert [(await anext(chunks)).text for chunks in unread] == ["x"] * 3
            assert engine.statistics() == EngineStatistics()


class TestFailures:
    """Lines that fail, engines that die."""

    @pytest.mark.parametrize("delay", [0.0, 1.0])
    async def test_a_line_fails_at_its_chunk(self, delay):
        """The chunks before it arrive, none has a finish reason, and the slot is free."""
        engine = Scripted([Line(["a", "b", "c"], fail_at=2)], slots=1, delay=delay)
        async with engine:
            got = []
            with pytest.raises(GenerationFailed, match="scripted failure"):
                async for chunk in engine.generate(_ask()):
                    got.append(chunk)  # what came before the error counts
            assert [(c.text, c.finish_reason) for c in got] == [("a", None), ("b", None)]
            assert engine.statistics() == EngineStatistics()
        assert asyncio.get_running_loop().time() == 3 * delay

    async def test_a_line_may_fail_with_any_error_and_after_everything(self):
        """The error is the line's; failing after the last chunk leaves no finish reason."""
        async with Scripted([Line("a", fail_at=1, error=OSError("gone"))]) as engine:
            chunks = engine.generate(_ask())
            assert (await anext(chunks)).finish_reason is None
            with pytest.raises(OSError, match="gone"):
                await anext(chunks)

    async def test_a_cut_line_does_not_reach_its_failure(self):
        """max_tokens before the failure: it ends as usual."""
        async with Scripted([Line(["a", "b", "c"], fail_at=2)]) as engine:
            assert await _texts(engine, max_tokens=1) == ["a"]

    async def test_a_killed_engine_fails_everything(self):
        """Running, waiting and later generations get EngineDied, and a new start revives it."""
        engine = Scripted(lambda _: ["a", "b"], slots=1, delay=1.0)
        await engine.start()
        outcomes = []

        async def read():
            try:
                outcomes.append(await _texts(engine))
            except EngineDied as error:
                outcomes.append(error.reason)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(read())
            await asyncio.sleep(1.5)
            engine.kill("power cut")
        assert outcomes == ["power cut"] * 2
        with pytest.raises(EngineDied):
            engine.check_health()
        with pytest.raises(EngineDied):
            await _texts(engine)
        assert engine.statistics() == EngineStatistics()
        assert "dead: power cut" in repr(engine)
        await engine.start()
        assert await _texts(engine) == ["a", "b"]
        await engine.stop()


class TestLife:
    """Start, stop, start."""

    async def test_it_must_be_started(self):
        """Before the start it is closed."""
        engine = Scripted(["x"])
        with pytest.raises(Closed, match="start it first"):
            await _texts(engine)
        await engine.stop()
        assert "stopped" in repr(engine)

    async def test_stopping_ends_what_runs_and_what_waits(self):
        """Both get Closed, also the reader that is not waiting at that moment."""
        engine = Scripted(lambda _: ["a", "b", "c"], slots=1, delay=1.0)
        await engine.start()
        running, waiting = engine.generate(_ask()), engine.generate(_ask())
        await anext(running)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_error_of(waiting))
            await asyncio.sleep(0)
            await engine.stop()
        assert isinstance(task.result(), Closed)
        assert isinstance(await _error_of(running), Closed)

    async def test_a_generation_admitted_in_the_stopping_step_ends(self):
        """Stopping between admission and first chunk ends it too."""
        engine = Scripted(lambda _: ["a"], delay=1.0)
        await engine.start()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_error_of(engine.generate(_ask())))
            await asyncio.sleep(0)
            await engine.stop()
        assert isinstance(task.result(), Closed)

    async def test_it_goes_on_after_a_restart(self):
        """What the script has left is said in the second life."""
        engine = Scripted(["a", "b"])
        await engine.start()
        await _texts(engine)
        with pytest.raises(ScriptError):
            await engine.stop()
        async with engine:
            assert await _texts(engine) == ["b"]

    def test_it_belongs_to_its_loop(self):
        """Another loop is refused in words."""
        engine = Scripted(lambda _: "x")

        async def use():
            with pytest.raises(EngineError, match="event loop"):
                await _texts(engine)

        run_virtual(engine.start)
        run_virtual(use)


async def _error_of(chunks):
    try:
        async for _ in chunks:
            pass
    except Exception as error:  # noqa: BLE001  # any is what the test wants to see
        return error
    return None
