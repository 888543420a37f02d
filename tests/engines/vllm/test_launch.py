from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from alto.engines._vllm import launch as _launch
from alto.engines.vllm import VLLM
from alto.errors import Closed, EngineStartError
from alto.model import EngineStatistics, GenerateRequest

psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.realtime


class _NoVLLM:
    """Finds that there is no vLLM."""

    def find_spec(self, name, path=None, target=None):
        if name == "vllm":
            raise ModuleNotFoundError(name=name)


async def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    """A program without vLLM learns so when it starts an engine, and how to get it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoVLLM(), *sys.meta_path])
    with pytest.raises(EngineStartError, match=r"vLLM is not installed; install alto-llm\[vllm\]"):
        await VLLM("org/model").start()


async def test_an_engine_that_was_not_started_is_closed():
    """It does nothing, and says what to do."""
    engine = VLLM("org/model")
    assert engine.statistics() == EngineStatistics()
    await engine.stop()
    for use in (engine.check_health, lambda: engine.max_model_len, lambda: engine.max_num_seqs):
        with pytest.raises(Closed, match="start it first"):
            use()
    with pytest.raises(Closed):
        engine.generate(GenerateRequest(prompt="x"))


@pytest.mark.parametrize("given", [None, "fork"])
def test_children_are_spawned_unless_the_program_chose(monkeypatch, given):
    """The variable is ours while an engine starts, and the program's before and after."""
    name = "VLLM_WORKER_MULTIPROC_METHOD"
    monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(name, given)
    with _launch._launch_environment():
        with _launch._launch_environment():
            assert os.environ[name] == (given or "spawn")
        assert os.environ[name] == (given or "spawn")
    assert os.environ.get(name) == given


def test_children_are_found_by_the_thread_that_made_them():
    """Of the children of two threads each sees its own."""
    seen = {}

    def make(name):
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            seen[name] = (child.pid, _launch._children(threading.get_native_id()))
            barrier.wait(10)
            child.communicate(b"\n")

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=make, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(children == {pid} for pid, children in seen.values())
    assert _launch._children(0) == frozenset()


def test_a_child_that_does_not_go_is_killed():
    """After the grace the whole family is ended, and those that have gone by themselves are fine."""
    program = (
        "import signal, subprocess, sys;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
        "print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        family = _launch._family(psutil.Process(parent.pid))
        assert len(family) == 2
        parent.terminate()
        begin = time.monotonic()
        _launch._end(family, grace=0.2)
        assert time.monotonic() - begin >= 0.2
        assert parent.wait() == -signal.SIGKILL
    assert not any(map(_launch.is_alive, family))
    _launch._end(family, grace=0)
    assert _launch._family(family[0]) == (family[0],)


def test_interrupts_pass_by_what_is_started():
    """A child started inside has the signal blocked, and this thread has its mask back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    program = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    with _launch._interrupts_blocked():
        inside = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    outside = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (inside.stdout, outside.stdout) == (b"True\n", b"False\n")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
