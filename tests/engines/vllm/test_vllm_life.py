"""What a real engine says of waiting, and how it ends where a part of it does."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import pytest
import pytest_asyncio

from alto.engines._vllm.engine import VLLMEngine
from alto.errors import EngineDied, EngineStartError
from alto.llm import LLM
from alto.model import EngineStatistics

psutil = pytest.importorskip("psutil")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.realtime,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
]


async def _until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.01)


async def test_it_says_how_long_a_generation_waits(engine):
    """More generations than run at once wait, and the usage of each says how long, and for what."""
    llm = LLM(engine)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(llm.generate(f"{n} waits", max_tokens=60, ignore_eos=True).collect())
            for n in range(2 * engine.capacity.max_num_seqs)
        ]
        await _until(lambda: engine.statistics().kv_usage > 0)
    usages = [task.result().usage for task in tasks]
    assert all(0 <= usage.queue_time < usage.first_token_time for usage in usages)
    assert max(u.queue_time for u in usages) > min(u.first_token_time for u in usages)
    assert engine.statistics().output_tokens >= 60 * len(tasks)
    assert engine.statistics() == EngineStatistics()


async def test_a_lost_worker_is_the_engines_death(engine):
    """A process below vLLM's first is missed at once, and what runs ends within seconds."""
    llm = LLM(engine)
    core = engine._life.started.processes[0]
    workers = core.children()
    assert workers
    family = [core, *core.children(recursive=True)]
    tasks = [asyncio.ensure_future(llm.text(f"{n}", max_tokens=400)) for n in range(4)]
    died = asyncio.ensure_future(engine.wait_died())
    await _until(lambda: engine.statistics().running == 4)
    assert not died.done()
    for process in workers:
        process.kill()
    done, pending = await asyncio.wait([died, *tasks], timeout=120)
    assert not pending
    assert died in done
    assert all(isinstance(task.exception(), EngineDied) for task in tasks)
    with pytest.raises(EngineDied):
        engine.check_health()
    await engine.stop()
    _, left = psutil.wait_procs(family, timeout=120)
    assert not left


@pytest_asyncio.fixture(loop_scope="session")
async def temporary(shared_engine, monkeypatch):
    """The folder for temporary files, with a short path, and no engine that has sockets."""
    await shared_engine.stop()
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def _sockets(folder):
    """Sockets anywhere in *folder*, and folders of ours, which are to be gone with them."""
    return [path for path in folder.rglob("*") if path.is_socket()], [*folder.glob("alto-*")]


@pytest.mark.parametrize("dies", [False, True])
async def test_no_socket_is_left(temporary, tiny_model, small, dies):
    """An engine's sockets are in a folder of ours, and go with it, however it ends."""
    async with VLLMEngine(tiny_model, **small) as engine:
        sockets, folders = _sockets(temporary)
        assert sockets
        assert {path.parent for path in sockets} <= {*folders}
        assert "VLLM_RPC_BASE_PATH" not in os.environ
        if dies:
            engine._life.started.processes[0].kill()
            await engine.wait_died()
    assert _sockets(temporary) == ([], [])


async def test_a_start_that_fails_leaves_no_socket(temporary, tiny_model, small):
    """Those that were made before it failed are gone, and their folder."""
    with pytest.raises(EngineStartError):
        await VLLMEngine(tiny_model, **{**small, "kv_cache_memory_bytes": 1 << 60}).start()
    assert _sockets(temporary) == ([], [])
