from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from multiprocessing import spawn, util
from pathlib import Path

import pytest

from alto.engines._vllm import guard as _guard
from alto.engines._vllm.main_module import main_module_left_alone

psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.realtime

ROOT = Path(__file__).parents[3]

_FAMILY = """
import multiprocessing, threading, time
from alto.engines._vllm.main_module import main_module_left_alone

BELOW = '''
import multiprocessing, time
worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
worker.start()
print("below", worker.pid, flush=True)
worker.join()
'''

def start():
    with main_module_left_alone():
        core = multiprocessing.get_context("spawn").Process(target=exec, args=(BELOW,))
        core.start()
        print("core", core.pid, flush=True)

thread = threading.Thread(target=start)
thread.start()
thread.join()  # the thread that has started the process is gone, and the process stays
time.sleep(600)
"""


def _gone(pids, seconds):
    processes = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            continue
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


def _run(program, **more):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **more,
    )


def test_children_and_theirs_go_with_a_killed_program():
    """A SIGKILL of the program ends what it has spawned, in a thread that has gone, and all below."""
    with _run(_FAMILY) as program:
        said = dict(program.stdout.readline().split() for _ in range(2))
        pids = [int(said["core"]), int(said["below"])]
        assert not _gone(pids, 1.5)  # the end of the thread has not harmed them
        program.kill()
        assert _gone(pids, 20)


@pytest.mark.parametrize("pidfd", [True, False])
def test_a_guarded_process_ends_when_its_parent_does(pidfd):
    """With the kernel's help or without, the guard outlasts its parent by a moment only."""
    child = f"""
        import os, runpy, sys, time, types
        if not {pidfd} and hasattr(os, "pidfd_open"):
            del os.pidfd_open
        known = types.SimpleNamespace(pid=os.getppid())
        sys.modules["multiprocessing.process"] = types.SimpleNamespace(parent_process=lambda: known)
        runpy.run_path({_guard.__file__!r}, run_name="__mp_main__")
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    program = f"""
        import subprocess, sys
        subprocess.run([sys.executable, "-c", {textwrap.dedent(child)!r}])
    """
    with _run(program) as parent:
        pid = int(parent.stdout.readline())
        assert not _gone([pid], 1.0)
        parent.kill()
        assert _gone([pid], 20)


def test_an_orphan_ends_at_once():
    """A process whose parent went before it could look is not taken in by whoever adopts it."""
    program = f"""
        import os, runpy, sys, time, types
        gone = types.SimpleNamespace(pid=os.getppid() + 1)
        sys.modules["multiprocessing.process"] = types.SimpleNamespace(parent_process=lambda: gone)
        runpy.run_path({_guard.__file__!r}, run_name="__mp_main__")
        time.sleep(600)
    """
    with _run(program) as process:
        assert process.wait(30) == -signal.SIGKILL


def test_the_guard_needs_the_standard_library_only():
    """It runs first in an engine's processes, which may not find alto, so it does not ask for it."""
    program = (
        f"import runpy, sys; runpy.run_path({_guard.__file__!r}, run_name='other');"
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["__main__"]


def test_each_thread_has_variables_of_its_own(tmp_path):
    """Two threads start processes at once, and each finds its own variable, and this process none."""
    name = "ALTO_TEST_VARIABLE"
    assert name not in os.environ
    program = "import os, pathlib; pathlib.Path({!r}).write_text(os.environ.get({!r}, 'none'))"
    barrier = threading.Barrier(3)

    def start(value):
        variables = {} if value is None else {name: value}
        with main_module_left_alone(variables):
            barrier.wait(30)
            process = multiprocessing.get_context("spawn").Process(
                target=exec, args=(program.format(str(tmp_path / str(value)), name),)
            )
            process.start()
        process.join(60)

    threads = [threading.Thread(target=start, args=(value,)) for value in ("0-3", "4-7", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert said == {"0-3": "0-3", "4-7": "4-7", "None": "none"}
    assert name not in os.environ


def test_what_was_wrapped_is_itself_again():
    """Outside of a start multiprocessing is as it was."""
    before = spawn.get_preparation_data, util.spawnv_passfds
    with main_module_left_alone():
        data = spawn.get_preparation_data("x")
        assert data["init_main_from_path"] == _guard.__file__
        assert "init_main_from_name" not in data
    assert (spawn.get_preparation_data, util.spawnv_passfds) == before
