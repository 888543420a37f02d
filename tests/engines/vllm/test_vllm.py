from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import attrs
import pytest

from alto._sched.prefix import PrefixIndex, chain
from alto.engines._vllm.child_output import ChildOutput
from alto.engines._vllm.launch import RunningEngine
from alto.engines._vllm.session import Session
from alto.engines.vllm import VLLM
from alto.errors import (
    Closed,
    EngineDied,
    EngineError,
    EngineStartError,
    GenerationFailed,
    InvalidRequest,
    OutputTruncated,
    PromptTooLong,
)
from alto.llm import LLM
from alto.model import EngineStatistics, GenerateRequest, Message
from alto.testing.checks import check_engine

psutil = pytest.importorskip("psutil")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.realtime,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]


@attrs.frozen
class Colour:
    """What a random model is asked for."""

    name: Literal["red", "green"]


def _processes():
    """Processes below this one, but for the standard library's own helper."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and not any(
                "resource_tracker" in part for part in process.cmdline()
            ):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


async def _until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.01)


class TestStarts:
    """Starts that fail, and starts that are cancelled."""

    async def test_a_missing_folder_is_named_at_once(self, tmp_path):
        """A path that is not there fails without asking vLLM."""
        with pytest.raises(EngineStartError, match=r"engine 'gone'.*there is no model folder"):
            await VLLM(tmp_path / "gone").start()

    async def test_an_unknown_model_is_named(self, small, vllm_environment):
        """A name that the hub does not know, or that cannot be asked for offline."""
        with pytest.raises(EngineStartError, match="no-such-organisation/no-such-model"):
            await VLLM("no-such-organisation/no-such-model", **small).start()

    async def test_an_unknown_argument_is_named_with_its_neighbours(self, tiny_model):
        """A misspelt engine argument is refused in words that help."""
        with pytest.raises(EngineStartError, match=r"'max_modle_len' \(did you mean max_model_len"):
            await VLLM(tiny_model, max_modle_len=512).start()

    async def test_a_childs_error_is_the_reason(
        self, tiny_model, small, tmp_path, vllm_environment
    ):
        """What a child process dies of is in the message, as its last line, and nothing is left."""
        before = _processes()
        broken = shutil.copytree(tiny_model, tmp_path / "broken")
        os.truncate(broken / "model.safetensors", 1000)
        with pytest.raises(EngineStartError) as caught:
            await VLLM(broken, **small).start()
        assert "SafetensorError" in caught.value.reason
        assert "SafetensorError" in caught.value.output[-1]
        assert str(caught.value).endswith(caught.value.output[-1])
        assert _processes() == before

    @pytest.mark.parametrize("moment", ["at once", "with a worker"])
    async def test_a_cancelled_start_leaves_nothing(
        self, moment, tiny_model, small, vllm_environment
    ):
        """Cancelled before or after it has made processes, a start leaves none."""
        before = _processes()
        engine = VLLM(tiny_model, **small)
        task = asyncio.ensure_future(engine.start())
        await asyncio.sleep(0.01)
        if moment == "with a worker":
            await _until(lambda: len(_processes() - before) >= 2, 240)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _processes() == before
        with pytest.raises(Closed):
            engine.check_health()

    async def test_nothing_leads_to_a_name(self):
        """An empty model name is refused when the engine is made."""
        with pytest.raises(ValueError, match="name or a folder"):
            VLLM("")

    async def test_the_name_is_the_models_last_part(self):
        """Unless another is given."""
        assert VLLM("org/model-7b").name == "model-7b"
        assert VLLM("org/model-7b", name="judge").name == "judge"
        assert repr(VLLM("org/model-7b")) == "<VLLM 'model-7b', stopped>"


async def test_the_contract_holds(shared_engine):
    """The engine goes through the whole contract, and leaves no process and no thread."""
    await shared_engine.stop()
    before = _processes()
    await check_engine(
        lambda: shared_engine,
        prompt="Tell me something.",
        unservable=[
            GenerateRequest(prompt="x" * 600),
            GenerateRequest(prompt=[100_000]),
            GenerateRequest(prompt="x", temperature=9.0),
            GenerateRequest(prompt="x", regex="["),
        ],
        restart=False,  # the tests below start it again
        timeout=240,
    )
    assert _processes() == before
    await _until(lambda: not any(t.name.startswith("alto-") for t in threading.enumerate()))


class TestGenerating:
    """What a running engine does with requests."""

    async def test_text_ids_and_chat_are_prompts(self, engine):
        """Text is tokenised, ids are taken as they are, a chat goes through its template."""
        llm = LLM(engine)
        tokenizer = engine._life.session._engine.tokenizer
        chat = [Message(role="user", content="hi"), Message(role="assistant", content="ho")]
        for prompt, plain in (
            ("hello", "hello"),
            (tokenizer.encode("hello"), "hello"),
            (tuple(tokenizer.encode("hello")), "hello"),
        ):
            got = await llm.generate(prompt, max_tokens=8).collect()
            assert got.usage.prompt_tokens == 1 + len(plain)
            assert got.text == await llm.text("hello", max_tokens=8)
        got = await llm.generate(chat, max_tokens=1).collect()
        assert got.usage.prompt_tokens == len("user: hi\nassistant: ho\nassistant:")

    async def test_chunks_stream(self, engine):
        """Chunks come one by one, and the tokens are those of the text."""
        chunks = [chunk async for chunk in LLM(engine).generate("hello", max_tokens=50)]
        assert len(chunks) > 10
        ids = [token for chunk in chunks for token in chunk.token_ids]
        assert len(ids) == chunks[-1].usage.output_tokens == 50
        assert engine._life.session._engine.tokenizer.decode(ids) == "".join(c.text for c in chunks)

    async def test_a_lagging_reader_gets_what_it_missed_in_one(self, engine):
        """The engine goes on unread, and nothing is lost."""
        whole = await LLM(engine).text("hello", max_tokens=50)
        chunks = engine.generate(GenerateRequest(prompt="hello", max_tokens=50))
        got = [await anext(chunks)]
        await _until(lambda: engine.statistics() == EngineStatistics())
        got += [chunk async for chunk in chunks]
        assert len(got) <= 3
        assert "".join(chunk.text for chunk in got) == whole

    async def test_choice_regex_and_schema_constrain(self, engine):
        """The output is what the constraint allows."""
        llm = LLM(engine)
        assert await llm.text("?", choice=["yes", "no"]) in ("yes", "no")
        assert (await llm.text("?", regex="[0-9]{3}-[a-c]{2}")).replace("-", "").isalnum()
        assert json.loads(await llm.text("?", json_schema={"enum": ["a", "b"]})) in ("a", "b")

    async def test_items_come_while_the_engine_goes_on(self, engine):
        """Items of a type are whole and right, and the first is there before the last is said."""

        async def ask(seed):
            generation = LLM(engine).generate(
                "?", schema=list[Colour], temperature=1.0, seed=seed, max_tokens=200
            )
            items, ended = [], []
            with suppress(OutputTruncated):  # a random model may not find an end
                async for item in generation.items():
                    items.append(item)
                    ended.append(generation.usage is not None)
            return items, ended

        got = await asyncio.gather(*map(ask, range(24)))
        assert all(isinstance(item, Colour) for items, _ in got for item in items)
        several = [ended for items, ended in got if len(items) >= 2]
        assert several
        assert not any(ended[0] for ended in several)

    async def test_a_stop_text_ends_before_it(self, engine):
        """The text ends where the stop text would begin."""
        llm = LLM(engine)
        whole = await llm.text("hello", max_tokens=30)
        stop = whole[10:12]
        got = await llm.generate("hello", max_tokens=30, stop=stop).collect()
        assert got.text == whole[: whole.index(stop)]
        assert got.finish_reason == "stop"

    async def test_a_seed_repeats_luck(self, engine):
        """Sampling with a seed is repeatable, and another seed says something else."""
        llm = LLM(engine)
        texts = [await llm.text("hello", temperature=1.0, seed=s, max_tokens=30) for s in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    async def test_an_equal_long_prompt_is_cached(self, engine):
        """The second time, whole blocks of the prompt come from the cache."""
        prompt = "A prompt that nobody has used before, longer than two blocks of the cache. " * 2
        first = await LLM(engine).generate(prompt, max_tokens=4).collect()
        second = await LLM(engine).generate(prompt, max_tokens=4).collect()
        assert first.usage.cached_tokens < 32 <= second.usage.cached_tokens
        assert first.text == second.text

    async def test_max_tokens_none_goes_to_the_end_of_the_context(self, engine):
        """Without a limit the context is filled."""
        got = await LLM(engine).generate("x" * 450, max_tokens=None).collect()
        assert (
            got.usage.prompt_tokens + got.usage.output_tokens
            == engine.capacity.max_model_len
            == 512
        )
        assert got.finish_reason == "length"

    async def test_a_long_prompt_says_how_long(self, engine):
        """The error has the numbers, for text and for ids."""
        for prompt, length in (("x" * 511, 512), ([5] * 600, 600)):
            with pytest.raises(PromptTooLong) as caught:
                await LLM(engine).text(prompt)
            assert (caught.value.prompt_tokens, caught.value.limit) == (length, 512)

    async def test_priorities_are_the_engines_business(self, engine):
        """The engine schedules by priority unless told otherwise, so ours mean something."""
        assert engine._life.session._engine.vllm_config.scheduler_config.policy == "priority"
        assert await LLM(engine).text("x", priority=-3, max_tokens=1)

    async def test_figures_are_kept_without_a_word(self, engine, capfd):
        """The engine's own figures are in its statistics, and nothing is printed for them."""
        before, prompt = engine.statistics(), [9 + n % 80 for n in range(200)]
        await LLM(engine).text(prompt, max_tokens=10, ignore_eos=True)
        got = await LLM(engine).generate(prompt, max_tokens=10, ignore_eos=True).collect()
        now = engine.statistics()
        assert now.prompt_tokens - before.prompt_tokens == 400
        assert now.output_tokens - before.output_tokens == 20
        assert now.cached_tokens - before.cached_tokens >= got.usage.cached_tokens == 192
        assert (now.kv_usage, now.preempted) == (0.0, 0)
        assert 0 < got.usage.queue_time < got.usage.first_token_time
        assert "throughput" not in "".join(capfd.readouterr())

    async def test_the_cache_tells_what_it_holds(self, engine):
        """A listener's index knows the blocks of a prompt, and no others, once they are computed."""
        index = PrefixIndex(engine.capacity.block_size)
        index.add(0, 1000)
        prompt = [11 + n % 97 for n in range(300)]
        mine = index.thin(chain(prompt, index.block_size))
        assert engine.listen(_Follower(index))
        assert index.hits(mine, 1) == [0]
        await LLM(engine).text(prompt, max_tokens=2)
        await _until(lambda: index.hits(mine, 1) == [64 * len(mine)])
        other = index.thin(chain([12, *prompt[1:]], index.block_size))
        assert index.hits(other, 1) == [0]
        assert await engine._life.session._engine.reset_prefix_cache()
        await LLM(engine).text("x", max_tokens=1)  # events leave with a step
        await _until(lambda: index.hits(mine, 1) == [0])
        index.check()

    async def test_more_than_fit_wait_inside(self, engine):
        """Generations above the batch size count as waiting."""
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(LLM(engine).text(f"{number}", max_tokens=100))
            await asyncio.sleep(0.1)
            now = engine.statistics()
            assert (now.running, now.waiting) == (engine.capacity.max_num_seqs, 40 - 32)
            assert "32 running" in repr(engine)
        assert engine.statistics() == EngineStatistics()

    @pytest.mark.parametrize("moment", [0.0, 0.0005, 0.002, 0.01, 0.05])
    async def test_cancelling_frees_wherever_it_meets_the_reader(self, engine, moment):
        """Tokenising, submitting or decoding: the engine is told, and forgets."""
        vllm = engine._life.session._engine
        aborted = engine.statistics().aborted
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(LLM(engine).text(f"{n} and on", max_tokens=400)) for n in range(8)
            ]
            await asyncio.sleep(moment)
            for task in tasks:
                task.cancel()
        assert engine.statistics() == EngineStatistics()
        assert engine.statistics().aborted - aborted in (0, 8)
        assert not vllm.output_processor.request_states
        assert await LLM(engine).text("still there?", max_tokens=1)

    async def test_a_ctrl_c_does_not_reach_the_children(self, engine):
        """The signal that a terminal sends to the whole group leaves a generation alone."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(LLM(engine).text("hello", max_tokens=200))
            await asyncio.sleep(0.05)
            for pid in _processes():
                os.kill(pid, signal.SIGINT)
        assert len(task.result()) > 100
        engine.check_health()

    async def test_another_loop_is_refused(self, engine):
        """An engine belongs to the loop that started it, and says so."""

        async def use():
            async for _ in engine.generate(GenerateRequest(prompt="x")):
                pass

        with pytest.raises(EngineError, match="event loop"):
            await asyncio.to_thread(asyncio.run, use())


async def test_a_killed_engine_is_dead_for_all(engine):
    """Its generations, later ones and the health check say so, and stopping it leaves nothing."""
    llm = LLM(engine)
    tasks = [asyncio.ensure_future(llm.text(f"{n}", max_tokens=400)) for n in range(4)]
    await asyncio.sleep(0.1)
    children = [process.pid for process in engine._life.started.processes]
    assert children
    told = asyncio.ensure_future(engine.wait_died())
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    done, pending = await asyncio.wait(tasks, timeout=120)
    assert not pending
    await asyncio.wait_for(told, 120)
    for task in done:
        assert isinstance(task.exception(), EngineDied)
    with pytest.raises(EngineDied, match="it died"):
        engine.check_health()
    with pytest.raises(EngineDied):
        await llm.text("x")
    assert engine.statistics() == EngineStatistics()
    assert "dead" in repr(engine)
    await engine.stop()
    assert not _processes()
    with pytest.raises(Closed):
        engine.check_health()


class _FakeEngine:
    """As much of an AsyncLLM as a session touches, saying what a test tells it."""

    errored = False
    tokenizer = None
    output_handler = None
    engine_core = None
    output_processor = SimpleNamespace()
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=100),
        scheduler_config=SimpleNamespace(max_num_seqs=2),
    )

    def __init__(self, *said):
        self.said = said
        self.aborted = []

    async def generate(self, prompt, params, rid, *, priority):
        for what in self.said:
            if isinstance(what, BaseException):
                raise what
            text, reason = what
            output = SimpleNamespace(text=text, token_ids=[1], finish_reason=reason)
            yield SimpleNamespace(
                outputs=[output], finished=reason is not None, num_cached_tokens=None
            )

    async def abort(self, rid):
        self.aborted.append(rid)


class _Follower:
    """Keeps an index up to date."""

    def __init__(self, index):
        self.index = index

    def stored(self, *what):
        self.index.stored(0, *what)

    def removed(self, keys):
        self.index.removed(0, keys)

    def cleared(self):
        self.index.cleared(0)


def _session(*said):
    fake = _FakeEngine(*said)
    return fake, Session("fake", RunningEngine(engine=fake, processes=(), output=ChildOutput()))


class TestTranslating:
    """What vLLM reports, in our words."""

    @pytest.mark.parametrize(
        ("said", "error", "message"),
        [
            ([("a", None), ("", "abort")], GenerationFailed, "aborted a generation by itself"),
            ([("a", None), ("", "error")], GenerationFailed, "reported 'error'"),
            ([("a", None)], GenerationFailed, "without a finish reason"),
            ([("a", None), OSError("no disk")], GenerationFailed, "OSError: no disk"),
            ([ValueError("bad")], InvalidRequest, "bad"),
        ],
    )
    async def test_a_failure_has_its_class(self, said, error, message):
        """Each way to fail arrives as the error that says what to do."""
        fake, session = _session(*said)
        with pytest.raises(error, match=message):
            await _drain(session.generate(GenerateRequest(prompt=[1])))
        assert session.statistics() == EngineStatistics()
        assert fake.aborted == ["alto-0"]

    async def test_a_wrapped_failure_is_unwrapped(self):
        """A wrapper says nothing; what it wraps does."""
        exceptions = pytest.importorskip("vllm.v1.engine.exceptions")
        wrapped = exceptions.EngineGenerateError()
        wrapped.__cause__ = ValueError("bad")
        _, session = _session(wrapped)
        with pytest.raises(InvalidRequest, match="bad"):
            await _drain(session.generate(GenerateRequest(prompt=[1])))

    async def test_a_repetition_is_an_end_like_any(self):
        """Reasons that only vLLM has are mapped to ours."""
        _, session = _session(("a", "repetition"))
        chunks = await _drain(session.generate(GenerateRequest(prompt=[1])))
        assert chunks[-1].finish_reason == "stop"

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [("text", "no tokenizer"), ([Message(role="user", content="x")], "no tokenizer")],
    )
    async def test_without_a_tokenizer_only_ids_do(self, prompt, message):
        """An engine without a tokenizer says what it needs."""
        _, session = _session(("a", "stop"))
        with pytest.raises(InvalidRequest, match=message):
            await _drain(session.generate(GenerateRequest(prompt=prompt)))

    async def test_without_a_template_there_is_no_chat(self):
        """A tokenizer without a chat template cannot take messages."""
        fake, session = _session(("a", "stop"))
        fake.tokenizer = SimpleNamespace(chat_template=None)
        with pytest.raises(InvalidRequest, match="no chat template"):
            await _drain(session.generate(GenerateRequest(prompt=[Message(role="u", content="x")])))

    async def test_a_tokenizers_failure_is_the_prompts(self):
        """A prompt that the tokenizer cannot take is an invalid request."""
        fake, session = _session(("a", "stop"))
        fake.tokenizer = SimpleNamespace(encode=lambda _: 1 / 0)
        with pytest.raises(InvalidRequest, match="cannot be tokenised"):
            await _drain(session.generate(GenerateRequest(prompt="x")))


async def _drain(chunks):
    return [chunk async for chunk in chunks]


_PROGRAM = """
import asyncio, sys
from alto.engines._vllm.child_output import ChildOutput
from alto.engines._vllm.launch import RunningEngine
from alto.engines._vllm.session import Session
from alto.engines.vllm import VLLM
from alto.llm import LLM

async def main(model):
    engine = VLLM(model, max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512,
                  block_size=32, kv_cache_memory_bytes=64 << 20, enforce_eager=True)
    try:
        async with engine:
            count = 0
            try:
                while True:  # until it is interrupted, however late that comes
                    async for chunk in LLM(engine).generate("hello", max_tokens=500):
                        count += 1
                        if count == 5:
                            print("ready", flush=True)
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
                engine.check_health()
                print("alive", await LLM(engine).text("hello", max_tokens=3) != "", flush=True)
                raise
    finally:
        print("stopped", engine, flush=True)

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


def _interrupt(script, model, number):
    """Run *script*, send it a signal when it is ready, and give what it said and its children."""
    with subprocess.Popen(
        [sys.executable, str(script), model],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as program:
        lines, family = [], []
        send = os.killpg if number == signal.SIGINT else os.kill  # a terminal means all
        for line in program.stdout:
            lines.append(line)
            if line == "ready\n":
                family = psutil.Process(program.pid).children(recursive=True)
                send(program.pid, number)
        program.wait()
    return "".join(lines), family


async def test_a_program_that_is_interrupted_ends_in_order(tiny_model, tmp_path, vllm_environment):
    """Ctrl-C cancels the program, whose engine still works, and is then stopped with its children."""
    script = tmp_path / "program.py"
    script.write_text(_PROGRAM)
    said, family = await asyncio.to_thread(_interrupt, script, tiny_model, signal.SIGINT)
    assert "alive True\n" in said, said
    assert "stopped <VLLM 'tiny', stopped>\n" in said, said
    assert "KeyboardInterrupt" in said
    assert "Exception ignored" not in said, said
    assert "ResourceWarning" not in said
    assert len(family) >= 2
    _, left = psutil.wait_procs(family, timeout=120)
    assert not left


async def test_engines_go_with_a_killed_program(tiny_model, tmp_path, vllm_environment):
    """A program that is killed outright takes its engine's processes with it within seconds."""
    script = tmp_path / "program.py"
    script.write_text(_PROGRAM)
    said, family = await asyncio.to_thread(_interrupt, script, tiny_model, signal.SIGKILL)
    assert "ready\n" in said, said
    assert "stopped" not in said
    assert len(family) >= 2
    _, left = await asyncio.to_thread(psutil.wait_procs, family, timeout=120)
    assert not left
