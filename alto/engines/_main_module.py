"""Let an engine's processes start without importing the program's main module again.

A spawned process of Python's multiprocessing first imports the parent's main module, under another
name, so that functions defined there can be found. vLLM's processes need none of the program's
functions, and the import harms: a script without ``if __name__ == "__main__"`` would start engines
in its own engine's processes, every library of the script would be loaded in each of them, and with
some (llvmlite, which numba and so bm25s import) vLLM 0.32's CPU worker fails to start.

multiprocessing has no switch for it. What it tells a new process is asked of one function, which is
wrapped here for the thread that builds an engine, and for no other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from typing import Any, Final, final

__all__ = ("main_module_left_alone",)

_KEYS: Final = ("init_main_from_name", "init_main_from_path")


@final
class _Wrapped:
    """The threads that build engines, and what is restored when none does."""

    lock = threading.Lock()
    threads: Final[set[int]] = set()
    original: Callable[..., dict[str, Any]] | None = None


@contextlib.contextmanager
def main_module_left_alone() -> Iterator[None]:
    """Processes that this thread starts meanwhile do not import the main module."""
    me = threading.get_ident()
    with _Wrapped.lock:
        if not _Wrapped.threads:
            _Wrapped.original = spawn.get_preparation_data
            spawn.get_preparation_data = _preparation_data
        _Wrapped.threads.add(me)
    try:
        yield
    finally:
        with _Wrapped.lock:
            _Wrapped.threads.discard(me)
            if not _Wrapped.threads and _Wrapped.original is not None:
                spawn.get_preparation_data = _Wrapped.original


def _preparation_data(name: str) -> dict[str, Any]:
    assert _Wrapped.original is not None
    data = _Wrapped.original(name)
    if threading.get_ident() in _Wrapped.threads:
        for key in _KEYS:
            data.pop(key, None)
    return data
