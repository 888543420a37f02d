"""Two real engines behind one name, and what happens to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import alto
from alto.engines._vllm.engine import VLLMEngine
from alto.engines.pool import Pool
from alto.engines.vllm import VLLM
from alto.errors import AltoError, EngineDied, EngineStartError, StageError
from alto.llm import LLM
from alto.model import EngineStatistics, GenerateRequest
from alto.testing.checks import check_engine

psutil = pytest.importorskip("psutil")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.realtime,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]


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


def _engines(pool):
    return [seat.engine for seat in pool._members.slots]


def _family(engine):
    core = engine._life.started.processes[0]
    return [core, *core.children(recursive=True)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_pool(tiny_model, small, vllm_environment):
    """Two engines; started by the first test that needs them."""
    events = []
    pool = VLLM(tiny_model, replicas=2, progress=events.append, **small)
    pool.events = events
    yield pool
    await pool.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def pool(shared_pool):
    """The two engines, both running."""
    await shared_pool.start()
    assert [engine.state for engine in shared_pool.engines] == ["running", "running"]
    return shared_pool


@alto.stage
async def answer(question: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """Say something, token by token."""
    async for chunk in llm.generate(question, max_tokens=150, ignore_eos=True):
        yield chunk.text


@alto.stage
async def words(pieces: alto.Group[str]) -> AsyncIterator[str]:
    """Cut it in pieces of forty characters."""
    text = ""
    async for piece in pieces:
        text += piece
        while len(text) >= 40:
            yield text[:40]
            text = text[40:]


@alto.stage
async def judge(word: str, *, llm: alto.LLM) -> str:
    """Say something about a piece."""
    return await llm.text(word, choice=["good", "bad"])


@alto.pipeline
def application(question: alto.Stream[str]) -> alto.Stream[str]:
    """Two generations one after the other, the second while the first goes on."""
    return judge(words(answer(question)))


async def test_a_pool_of_one_keeps_the_contract(tiny_model, small, vllm_environment):
    """One engine behind its scheduler goes through the whole contract, and leaves nothing."""
    before = _processes()
    await check_engine(
        lambda: VLLM(tiny_model, **small),
        prompt="Tell me something.",
        unservable=[GenerateRequest(prompt="x" * 600), GenerateRequest(prompt="x", regex="[")],
        restart=False,
        timeout=300,
    )
    assert _processes() == before


async def test_a_broken_engine_takes_the_others_with_it(
    tiny_model, small, tmp_path, vllm_environment
):
    """Where one of two cannot be started its error is raised, and no process of either is left."""
    before = _processes()
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    engines = [VLLMEngine(tiny_model, **small), VLLMEngine(broken, **small)]
    pool = Pool(engines)
    with pytest.raises(EngineStartError, match=r"engine 'broken'.*SafetensorError"):
        await pool.start()
    assert _processes() == before


class TestTwoEngines:
    """A pool of two, in the order in which a day goes wrong."""

    async def test_both_serve(self, pool):
        """Each has its cores, its share of the work and its figures; the sums are the pool's."""
        async with asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(LLM(pool).text(f"{number} is a number", max_tokens=40))
            await _until(lambda: all(e.statistics.running for e in pool.engines))
            assert pool.statistics().running > 1
        assert pool.statistics() == EngineStatistics()
        each = [engine.statistics for engine in pool.engines]
        assert min(one.finished for one in each) > 0
        assert sum(one.finished for one in each) == pool.statistics().finished == 24
        assert pool.statistics().output_tokens > 24
        assert [engine.name for engine in pool.engines] == ["tiny[0]", "tiny[1]"]
        assert (pool.max_model_len, pool.max_num_seqs) == (512, 32)
        assert pool.capacity.max_num_seqs == 64
        assert repr(pool) == "<VLLM 'tiny', 0 running on 2 of 2 engines>"
        bound = [min((p.cpu_affinity() for p in _family(e)), key=len) for e in _engines(pool)]
        if len(os.sched_getaffinity(0)) > 1:
            assert not set(bound[0]) & set(bound[1])

    async def test_progress_was_told(self, pool):
        """Each start was reported, as it began and when it was done."""
        said = [(event.engine, event.state) for event in pool.events[:4]]
        assert sorted(said) == [
            (f"tiny[{n}]", state) for n in (0, 1) for state in ("running", "starting")
        ]
        assert pool.events[3].running == 2

    async def test_the_scheduler_hears_of_the_cache(self, pool):
        """What an engine has computed is in the scheduler's index, from its own events."""
        prompt = [7 + n % 90 for n in range(300)]
        await LLM(pool).text(prompt, max_tokens=2)
        accounting = pool.scheduler._accounting
        await _until(lambda: accounting._index._exact)  # it has heard of an engine
        heard = accounting._index._exact & {book.index for book in pool.scheduler.engines}
        assert max(accounting._index.held(index) for index in heard) >= 4

    async def test_a_stopped_process_delays_its_own_calls_only(self, pool):
        """While an engine stands still the other serves, and its own calls end when it goes on."""
        still, other = _engines(pool)
        tasks = [
            asyncio.ensure_future(LLM(pool).text(f"{n} and so on", max_tokens=300))
            for n in range(8)
        ]
        await _until(lambda: still.statistics().running and other.statistics().running)
        family = _family(still)
        for process in family:
            process.send_signal(signal.SIGSTOP)
        try:
            later = [
                asyncio.ensure_future(LLM(pool).text(f"later {n}", max_tokens=20)) for n in range(8)
            ]
            await asyncio.wait(tasks + later, timeout=6)
            done = [task for task in tasks if task.done()]
            assert 0 < len(done) < len(tasks)
            assert any(task.done() for task in later)
        finally:
            for process in family:
                process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(300):
            for task in tasks + later:
                assert await task
        assert [engine.state for engine in pool.engines] == ["running", "running"]
        assert pool.statistics() == EngineStatistics()

    async def test_a_killed_engine_is_replaced(self, pool):
        """Every request of a pipeline ends, with its result or its error, and there are two again."""
        killed = _engines(pool)[0]
        pids = {process.pid for process in _family(killed)}

        async def outcome(app, number):
            try:
                return await app.run(f"question {number}")
            except AltoError as error:
                return error

        async with application.open(llm=pool) as app, asyncio.TaskGroup() as group:
            tasks = [group.create_task(outcome(app, number)) for number in range(12)]
            await _until(lambda: killed.statistics().running)
            await asyncio.sleep(0.05)
            os.kill(killed._life.started.processes[0].pid, signal.SIGKILL)
            await _until(lambda: pool.engines[0].state != "running")
            assert repr(pool).endswith("on 1 of 2 engines>")
        outcomes = [task.result() for task in tasks]
        for result in outcomes:
            if isinstance(result, Exception):
                assert isinstance(result, StageError)
                assert isinstance(result.cause, EngineDied)
            else:
                assert result
                assert set(result) <= {"good", "bad"}
        assert any(isinstance(result, list) for result in outcomes)
        await _until(lambda: pool.engines[0].state == "running", 300)
        assert not pids & _processes()
        assert "dead" in [event.state for event in pool.events if event.engine == "tiny[0]"]
        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(LLM(pool).text(f"{number} again", max_tokens=20))
            await _until(lambda: all(e.statistics.running for e in pool.engines))
        assert pool.statistics() == EngineStatistics()

    async def test_stopping_leaves_nothing(self, pool):
        """No process, no thread and no file of theirs outlives the pool, and what runs is told."""
        task = asyncio.ensure_future(LLM(pool).text("and on", max_tokens=400))
        await _until(lambda: pool.statistics().running)
        folders = [engine._life.events._folder for engine in _engines(pool)]
        assert all(folder.exists() for folder in folders)
        await pool.stop()
        with pytest.raises(alto.Closed):
            await task
        assert not _processes()
        assert not any(folder.exists() for folder in folders)
        await _until(lambda: not any(t.name.startswith("alto-") for t in threading.enumerate()))
        assert pool.statistics() == EngineStatistics()
        assert repr(pool) == "<VLLM 'tiny', stopped>"
