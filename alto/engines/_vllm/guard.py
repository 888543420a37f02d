"""Guard of an engine's processes: end the process when its parent has ended, for whatever reason.

vLLM's processes outlive a program that is killed, and hold the GPU's memory. So this file is the
first that each of them runs: a thread waits for the end of the parent, and then kills the process.
Its own children have the same guard, so a whole engine ends within a moment.

The kernel's ``PR_SET_PDEATHSIG`` does not serve: that signal is sent when the *thread* which started
the process ends, and the threads that start engines end before them. A pipe to the parent does not
serve either: each process that the program forks holds a copy of its other end, and keeps it open. A
``pidfd`` of the parent (Linux) has neither flaw. Without it, the number of the parent is read twice a
second: it changes when the parent has ended.

The file is run by its path, in processes that may not be able to import alto, and before anything else:
so it imports only the standard library, and little of it. Processes that are started from there in
the same way run it too, since multiprocessing then takes it for their main module (see
:mod:`alto.engines._vllm.main_module`). Processes that are *forked* do not have the guard.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

__all__ = ("watch_parent",)

_INTERVAL = 0.5
"""Seconds between two reads of the parent's number."""


def watch_parent() -> None:
    """End this process as soon as its parent has ended. Returns at once."""
    thread = threading.Thread(
        target=_wait_and_end, args=(os.getppid(),), name="alto-guard", daemon=True
    )
    thread.start()


def _wait_and_end(parent: int) -> None:
    """Wait until *parent*, as seen when this process began, is not the parent any more; then kill."""
    if parent == _true_parent(parent):
        _wait_for_end(parent)
    # SIGKILL ends the process whatever it is doing. What it shares with others is cleaned up by
    # multiprocessing's resource tracker.
    os.kill(os.getpid(), signal.SIGKILL)


def _true_parent(parent: int) -> int | None:
    """Return the number of the process that started this one; None: the parent has changed.

    If the parent ended before this process could look, *parent* is the process that adopts orphans.
    multiprocessing knows the true one, but only some time after the start.
    """
    while os.getppid() == parent:
        process = sys.modules.get("multiprocessing.process")
        known = process.parent_process() if process is not None else None
        if known is not None:
            return int(known.pid)
        time.sleep(_INTERVAL)
    return None


def _wait_for_end(parent: int) -> None:
    try:
        fd = os.pidfd_open(parent)
    except (AttributeError, OSError):  # not on this system, or it has just ended
        fd = None
    if fd is not None:
        poll = select.poll()  # select() fails for descriptors above 1023
        poll.register(fd, select.POLLIN)
        poll.poll()
    # Without a pidfd this waits for the end; with one, only until the kernel has changed the parent.
    while os.getppid() == parent:
        time.sleep(_INTERVAL)


# "__mp_main__" is the name under which multiprocessing runs the main module of a spawned process.
if __name__ in {"__mp_main__", "__main__"}:
    watch_parent()
