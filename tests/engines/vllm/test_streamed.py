from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from alto.engines._vllm.requests import Adapters, Detokenizer, OutputReader, Times, capacity_of
from alto.engines._vllm.streamed import IncomingPrompt, Prefill, PrefillBudget
from alto.errors import Closed, GenerationFailed, InvalidRequest, PromptTooLong
from alto.model import EngineCapacity, GenerateRequest, StreamedPrompt

WORDS = "word " * 200
CAPACITY = EngineCapacity(max_num_seqs=8, max_num_batched_tokens=512, kv_tokens=4000)


class _Host:
    """As much of a session as reading a prompt needs; a token a character."""

    def __init__(self, tokenize=None):
        self.tokenize = tokenize or (lambda text: [ord(letter) for letter in text])
        self.stopped = False

    async def encode(self, prompt):
        await asyncio.sleep(0)
        return self.tokenize(prompt)

    def check_usable(self):
        if self.stopped:
            raise Closed("stopped")

    def translate(self, error):
        return GenerationFailed("host", str(error))


class _Engine:
    """Takes chunks as vLLM does, and says one thing for each."""

    def __init__(self, failure=None):
        self.taken = []
        self.failure = failure
        self.closed = False

    async def generate(self, chunks):
        try:
            async for chunk in chunks:
                self.taken.append(chunk.prompt["prompt_token_ids"])
                if self.failure is not None:
                    raise self.failure
            yield "end"
        finally:
            self.closed = True


def make(prompt, sampling_params):
    """Stand in for vLLM's class of a chunk."""
    return SimpleNamespace(prompt=prompt, sampling_params=sampling_params)


def new_budget(capacity=CAPACITY):
    """As if vLLM could."""
    budget = PrefillBudget(None, enabled=False, capacity=capacity)
    budget.make = make
    return budget


class _Reading:
    """One prompt on its way into an engine."""

    def __init__(self, prompt, *, host=None, engine=None, limit=2000, budget=None):
        self.host = host or _Host()
        self.engine = engine or _Engine()
        self.budget = budget or new_budget()
        self.incoming = IncomingPrompt(prompt, self.host, limit=limit)
        self.dropped = 0
        self.prefills = []

    def open(self):
        self.prefills.append(Prefill(self.engine.generate, make, self.incoming.cut))
        return self.prefills[-1]

    async def drop(self, prefill):
        self.dropped += 1
        await prefill.aclose()

    async def read(self):
        try:
            return await self.incoming.streamed(self.budget, None, open_=self.open, drop=self.drop)
        finally:
            for prefill in self.prefills:
                await asyncio.sleep(0.1)
                await prefill.aclose()


async def _pieces(text, size, delay=0.01):
    for start in range(0, len(text), size):
        await asyncio.sleep(delay)
        yield text[start : start + size]


class TestIncoming:
    """A prompt is read, and what is certain of it sent."""

    async def test_a_whole_prompt_is_head_and_tail(self):
        """Without prefill the text is put together, however it comes."""
        incoming = IncomingPrompt(StreamedPrompt("he", _pieces("llo there", 3)), _Host(), limit=100)
        assert await incoming.whole() == [ord(letter) for letter in "hello there"]

    @pytest.mark.parametrize("head", ["", WORDS[:500]])
    async def test_what_was_sent_and_the_rest_are_the_prompt(self, head):
        """Nothing is sent twice or left out, and most of it is sent before the end."""
        reading = _Reading(StreamedPrompt(head, _pieces(WORDS[len(head) :], 20)))
        whole, rest = await reading.read()
        assert whole == [ord(letter) for letter in WORDS]
        sent = [token for chunk in reading.engine.taken for token in chunk]
        assert sent + rest == whole
        assert len(rest) < 300
        assert reading.incoming.prefill.chunks == len(reading.engine.taken) >= 3
        assert reading.budget.waiting == 0
        assert reading.budget.used == 1

    async def test_a_short_prompt_is_sent_whole(self):
        """It is not worth a chunk."""
        reading = _Reading(StreamedPrompt("", _pieces("a few words", 3)))
        whole, rest = await reading.read()
        assert rest == whole
        assert reading.incoming.prefill is None
        assert reading.budget.used == 0

    @pytest.mark.parametrize("last", ["", " end!"])
    async def test_a_tokenizer_that_thinks_again_starts_anew(self, last):
        """What was sent is dropped, once, and the whole prompt is to be sent."""
        host = _Host(lambda text: [ord(letter) + text.count("!") for letter in text])
        text = WORDS[:400] + ("! more words " * 30 if not last else "") + last
        reading = _Reading(StreamedPrompt("", _pieces(text, 50)), host=host)
        whole, rest = await reading.read()
        assert (whole, rest) == (host.tokenize(text), None)
        assert reading.dropped == 1
        assert reading.engine.closed
        assert reading.incoming.prefill is None
        assert reading.budget.waiting == 0

    @pytest.mark.parametrize(
        ("tail", "error"),
        [([3], "must yield str, not int"), ([], "the prompt is empty"), (["", ""], "is empty")],
    )
    @pytest.mark.parametrize("way", ["whole", "read"])
    async def test_a_tail_that_is_no_text_is_refused(self, tail, error, way):
        """By either way, with a message that says what is wrong."""

        async def odd():
            for piece in tail:
                yield piece

        reading = _Reading(StreamedPrompt("", odd()))
        with pytest.raises(InvalidRequest, match=error):
            await (reading.incoming.whole() if way == "whole" else reading.read())

    async def test_a_prompt_that_is_too_long_is_refused_before_its_end(self):
        """And the rest is not waited for."""

        async def endless():
            while True:
                yield "word " * 30

        reading = _Reading(StreamedPrompt("", endless()), limit=500)
        with pytest.raises(PromptTooLong):
            await reading.read()
        assert sum(map(len, reading.engine.taken)) < 500
        assert reading.budget.waiting == 0

    async def test_a_failing_tail_fails_as_itself(self):
        """Its own error, and the tail is closed."""
        closed = []

        async def broken():
            try:
                yield WORDS
                raise ZeroDivisionError
            finally:
                closed.append(True)

        reading = _Reading(StreamedPrompt("", broken()))
        with pytest.raises(ZeroDivisionError):
            await reading.read()
        assert closed == [True]
        assert reading.budget.waiting == 0

    @pytest.mark.parametrize("way", ["whole", "read"])
    async def test_a_cancelled_wait_closes_the_tail(self, way):
        """The prompt is given up; a generator that writes it is closed, in its reader's task."""
        closed = []

        async def slow():
            try:
                yield WORDS
                await asyncio.sleep(1000)
            finally:
                closed.append(asyncio.current_task())

        reading = _Reading(StreamedPrompt("", slow()))
        waiting = reading.incoming.whole() if way == "whole" else reading.read()
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(5)
        assert reading.budget.waiting == (way == "read")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == [task]
        assert reading.budget.waiting == 0

    @pytest.mark.parametrize("way", ["whole", "read"])
    async def test_an_engine_that_stops_ends_the_wait(self, way):
        """Whoever waits for text is told, though no text comes."""

        async def slow():
            await asyncio.sleep(1000)
            yield "x"

        reading = _Reading(StreamedPrompt(WORDS, slow()))
        waiting = reading.incoming.whole() if way == "whole" else reading.read()
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(5)
        reading.host.stopped = True
        reading.incoming.cut()
        with pytest.raises(Closed):
            await task
        assert asyncio.get_running_loop().time() < 10

    async def test_an_engine_that_is_not_known_to_be_dead_ends_the_wait_too(self):
        """Somebody who cuts it knows better than vLLM; a half prompt is never taken for a whole."""

        async def slow():
            await asyncio.sleep(1000)
            yield "x"

        reading = _Reading(StreamedPrompt(WORDS, slow()))
        task = asyncio.ensure_future(reading.read())
        await asyncio.sleep(5)
        reading.incoming.cut()
        with pytest.raises(GenerationFailed, match="does not answer"):
            await task

    async def test_a_failure_of_the_engine_ends_the_wait(self):
        """It is noticed while the text is still being written."""

        async def slow():
            await asyncio.sleep(1000)
            yield "x"

        reading = _Reading(StreamedPrompt(WORDS, slow()), engine=_Engine(OSError("no memory")))
        with pytest.raises(GenerationFailed, match="no memory"):
            await reading.read()
        assert asyncio.get_running_loop().time() < 10


class TestStreams:
    """How many prompts may wait inside an engine."""

    def test_a_quarter_of_the_slots_and_of_the_memory(self):
        """Both bound a new prompt, and memory an old one, too."""
        budget = new_budget()
        first, second = object(), object()
        assert budget.room(None) == 1000
        budget.sent(first, 300)
        assert budget.room(None) == budget.room(first) == 700
        budget.sent(second, 600)
        assert budget.room(None) == 0
        assert budget.room(second) == 100
        budget.left(first)
        assert budget.room(None) == 400

    def test_without_a_known_memory_slots_bound(self):
        """An engine that does not say its memory is trusted to have it."""
        budget = new_budget(EngineCapacity(max_num_seqs=4, max_num_batched_tokens=1))
        assert budget.room(None) is None
        budget.sent(object(), 10_000)
        assert budget.room(None) == 0

    def test_a_small_engine_has_no_place(self):
        """A quarter of few slots is none, so prompts wait for their whole text."""
        budget = new_budget(EngineCapacity(max_num_seqs=3, max_num_batched_tokens=1))
        assert budget.room(None) == 0

    @pytest.mark.parametrize(
        ("others", "fits"),
        [
            ({}, True),
            ({"temperature": 0.5}, True),
            ({"seed": 3}, True),
            ({"seed": 3, "temperature": 0.5}, False),
            ({"stop": ("x",)}, False),
            ({"n": 2}, False),
            ({"logprobs": 0}, False),
            ({"regex": "a"}, False),
            ({"choice": ("a",)}, False),
            ({"json_schema": {}}, False),
        ],
        ids=str,
    )
    def test_what_fits(self, others, fits):
        """Whatever the parts of a prompt would disturb waits for the whole."""
        request = GenerateRequest(prompt="x", **others)
        assert new_budget().fits(request) == fits
        assert not PrefillBudget(None, enabled=False, capacity=CAPACITY).fits(request)


class TestReader:
    """Chunks from what vLLM says."""

    def _reader(self, **others):
        return OutputReader(
            request=GenerateRequest(prompt=[1]),
            prompt_tokens=3,
            times=Times(asked=1.0, submitted=1.5),
            reason=lambda reason: reason,
            **others,
        )

    def _output(self, *said, finished=False, **others):
        return SimpleNamespace(
            outputs=[
                SimpleNamespace(text=text, token_ids=ids, finish_reason=reason, index=index)
                for index, (text, ids, reason) in enumerate(said)
            ],
            finished=finished,
            num_cached_tokens=2,
            **others,
        )

    def test_tokens_of_the_prompts_parts_are_counted_off(self):
        """Alone, glued to each other, or to the answer."""
        tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
        for cut in range(6):
            reader = self._reader(skip=3, detokenizer=Detokenizer(tokenizer, [88]))
            tokens = [90, 90, 90, 97, 98]
            chunks = []
            for part in filter(None, (tokens[:cut], tokens[cut:])):
                reason = "length" if part[-1] == 98 else None
                got, done = reader.read(self._output(("?", part, reason)), 2.0)
                chunks += got
            assert "".join(chunk.text for chunk in chunks) == "ab"
            assert [t for chunk in chunks for t in chunk.token_ids] == [97, 98]
            assert done
            assert chunks[-1].usage.output_tokens == 2

    def test_a_part_that_failed_is_a_failure(self):
        """An engine that gives up on a part of the prompt has given up."""

        def refuse(reason):
            raise GenerationFailed("x", reason)

        reader = self._reader(skip=3)
        reader.reason = refuse
        with pytest.raises(GenerationFailed, match="abort"):
            reader.read(self._output(("", [], "abort"), finished=True), 2.0)

    def test_the_usage_is_on_the_last_of_several(self):
        """Samples that end at different times have one usage, at the end of all."""
        reader = self._reader()
        stats = SimpleNamespace(queued_ts=10.0, scheduled_ts=10.25)
        first, done = reader.read(self._output(("a", [1], "stop"), ("b", [2], None)), 2.0)
        assert not done
        assert [chunk.usage for chunk in first] == [None, None]
        said = self._output(("", [], None), ("c", [3], "length"), finished=True, metrics=stats)
        last, done = reader.read(said, 3.0)
        assert done
        usage = last[-1].usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (3, 2, 3)
        assert usage.queue_time == 0.75
        assert usage.first_token_time == 1.0

    def test_characters_wait_until_they_are_whole(self):
        """Bytes of one character give nothing until the last of them."""
        tokenizer = SimpleNamespace(decode=lambda ids, **_: bytes(ids).decode(errors="replace"))
        text = "aß🙂z"
        texts = Detokenizer(tokenizer, list(b"context"))
        said = [texts.add([byte]) for byte in text.encode()]
        assert said == ["a", "", "ß", "", "", "", "🙂", "z"]


class TestAdapters:
    """Adapters by name."""

    @pytest.mark.vllm
    async def test_it_is_loaded_once_under_its_own_number(self, tmp_path):
        """Numbers follow the order in which adapters were given, not that of their use."""
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": 8}))
        loaded = []

        async def add_lora(request):
            loaded.append(request)

        engine = SimpleNamespace(add_lora=add_lora, errored=False)
        adapters = Adapters("e", {n: str(tmp_path / n) for n in ("a", "b")}, enabled=True)
        for name in ("b", "b", "a"):
            adapters.check(name)
            request = (await adapters.load(name, engine))["lora_request"]
            assert (request.lora_name, request.lora_int_id) == (name, {"a": 1, "b": 2}[name])
        assert [request.lora_name for request in loaded] == ["b", "a"]
        assert await adapters.load(None, engine) == {}

    @pytest.mark.vllm
    async def test_one_that_cannot_be_loaded_says_why(self, tmp_path):
        """A folder that is gone, or that vLLM refuses."""

        async def add_lora(_):
            raise ValueError("Traceback\n  many lines\nValueError: rank 9000 is too much\n")

        engine = SimpleNamespace(add_lora=add_lora, errored=False)
        adapters = Adapters("e", {"a": str(tmp_path)}, enabled=True)
        with pytest.raises(InvalidRequest, match="there is no adapter_config"):
            await adapters.load("a", engine)
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(InvalidRequest, match="cannot be loaded: ValueError: rank 9000"):
            await adapters.load("a", engine)

    @pytest.mark.parametrize(
        ("folders", "enabled", "message"),
        [
            ({}, True, "no LoRA adapter 'x'; it has none"),
            ({"a": "", "b": ""}, True, "it has 'a', 'b'"),
            ({"x": ""}, False, "start it with enable_lora=True"),
        ],
    )
    def test_one_that_is_not_known_is_refused(self, folders, enabled, message):
        """The message says what there is."""
        with pytest.raises(InvalidRequest, match=message):
            Adapters("e", folders, enabled=enabled).check("x")


@pytest.mark.parametrize(
    ("cache", "tokens"),
    [
        ({"kv_cache_size_tokens": 900, "num_gpu_blocks": 10}, 900),
        ({"num_gpu_blocks": 10}, 320),
        ({}, None),
    ],
)
def test_the_capacity_is_what_this_vllm_says(cache, tokens):
    """Newer ones say the size of the cache, older ones its blocks."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=100),
        scheduler_config=SimpleNamespace(max_num_seqs=2, max_num_batched_tokens=64),
        cache_config=SimpleNamespace(block_size=32, **cache),
    )
    assert capacity_of(config) == EngineCapacity(
        max_num_seqs=2,
        max_num_batched_tokens=64,
        kv_tokens=tokens,
        block_size=32,
        max_model_len=100,
    )
