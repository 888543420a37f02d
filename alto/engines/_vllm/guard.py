"""Ends an engine's process when the one that started it has gone, however that went.

vLLM's processes outlive a program that is killed, and hold the GPU's memory. So this file is the
first that each of them runs: a thread waits for the end of the parent, and then ends the process on
the spot. Its own children have the same guard, so a whole engine goes within a moment.

Why a thread, and not the kernel's ``PR_SET_PDEATHSIG``: that signal is sent when the *thread* which
started the process ends, and engines are started in threads that do not live as long as they. A
pipe would do, but every copy of its other end, in whatever else the program has forked, would
hold it open. A ``pidfd`` of the parent (Linux) has neither flaw. Where there is none, the number of
the parent is looked at twice a second: it changes when the parent has gone.

It is run by its path, in processes that may not find alto, before anything else there: so it imports
the standard library only, and little of it. Processes that these start in the same way run it too,
since it is then what multiprocessing takes for their main module (see
:mod:`alto.engines._vllm.main_module`). Processes that are *forked* do not have it.
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
"""Seconds between two looks at the parent's number."""


def watch_parent() -> None:
    """End this process as soon as its parent has ended. Returns at once."""
    thread = threading.Thread(
        target=_wait_and_end, args=(os.getppid(),), name="alto-guard", daemon=True
    )
    thread.start()


def _wait_and_end(parent: int) -> None:
    """Wait until *parent*, seen when this process began, is not the parent any more."""
    if parent == _true_parent(parent):
        _wait_for_end(parent)
    # What it works for is gone, and what it shares is cleaned up by multiprocessing's own helper.
    os.kill(os.getpid(), signal.SIGKILL)


def _true_parent(parent: int) -> int | None:
    """Who has started us, as multiprocessing says, which it does only some time after the start.

    If the parent ended before we could look, *parent* is whoever adopts orphans. None: it changed.
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
    except (AttributeError, OSError):  # not on this system, or it has just gone
        fd = None
    if fd is not None:
        poll = select.poll()  # any number of a descriptor will do, unlike with select()
        poll.register(fd, select.POLLIN)
        poll.poll()
    while os.getppid() == parent:
        time.sleep(_INTERVAL)


if __name__ in {"__mp_main__", "__main__"}:
    watch_parent()
