from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from alto.engines._vllm.process_watcher import ProcessWatcher

psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.realtime


class _Waiting:
    """Processes that wait for their end."""

    def __init__(self, count):
        self.processes = [
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            for _ in range(count)
        ]

    def __enter__(self):
        return [psutil.Process(process.pid) for process in self.processes]

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def _open_files():
    return psutil.Process().num_fds()


@pytest.fixture(params=["pidfd", "looking"])
def _way(request, monkeypatch):
    """The kernel's help, or none."""
    if request.param == "looking":
        monkeypatch.delattr(os, "pidfd_open", raising=False)


@pytest.mark.usefixtures("_way")
async def test_the_first_death_is_told_once():
    """Of three processes two end, and that is said once, and no file stays open."""
    before = _open_files()
    told = []
    heard = asyncio.Event()
    with _Waiting(3) as processes:
        at_work = _open_files()
        deaths = ProcessWatcher(processes, lambda: (told.append(1), heard.set()))
        assert not heard.is_set()
        for process in processes[:2]:
            process.kill()  # and nobody waits for it: it stays, as a zombie
        async with asyncio.timeout(120):
            await heard.wait()
        assert told == [1]
        assert _open_files() == at_work
        deaths.close()
        await asyncio.sleep(0)
    assert told == [1]
    assert _open_files() == before


@pytest.mark.usefixtures("_way")
async def test_after_the_end_nobody_is_told():
    """Who has closed it hears of no death, and no file and no task is left."""
    told = []
    with _Waiting(1) as processes:
        before = _open_files()
        deaths = ProcessWatcher(processes, lambda: told.append(1))
        deaths.close()
        deaths.close()
        assert _open_files() == before
        processes[0].kill()
        await asyncio.sleep(0)
    assert told == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_one_that_is_gone_already_is_told():
    """A process that ended before anybody listened counts."""
    waiting = _Waiting(1)
    with waiting as processes:
        waiting.processes[0].kill()
        waiting.processes[0].wait()
        heard = asyncio.Event()
        deaths = ProcessWatcher(processes, heard.set)
        async with asyncio.timeout(120):
            await heard.wait()
        deaths.close()
