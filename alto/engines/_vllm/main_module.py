"""What an engine's processes begin with: a guard instead of the program's main module.

A spawned process of Python's multiprocessing first imports the parent's main module, under another
name, so that functions defined there can be found. vLLM's processes need none of the program's
functions, and the import harms: a script without ``if __name__ == "__main__"`` would start engines
in its own engine's processes, every library of the script would be loaded in each of them, and with
some (llvmlite, which numba and so bm25s import) vLLM 0.32's CPU worker fails to start. In its place
they run :mod:`alto.engines._vllm.guard`, and so do the processes that *they* spawn.

Some variables are to differ between engines that are started at the same time, and all a process has
is one environment. They are set for the instant in which the child is made, and by one thread at a
time.

multiprocessing has no switch for either. What it tells a new process is asked of one function, and
a process is made by another; both are wrapped here for the threads that build engines, and for no
other.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import spawn, util
from typing import Any, Final, final

from alto.engines._vllm import guard as _guard

__all__ = ("environment", "main_module_left_alone")

_FROM_NAME, _FROM_PATH = "init_main_from_name", "init_main_from_path"


@final
class _Wrapped:
    """The threads that build engines, and what is restored when none does."""

    lock = threading.Lock()
    making = threading.Lock()
    threads: Final[dict[int, Mapping[str, str]]] = {}
    """Those threads, and the variables of the processes that each starts."""
    preparation: Callable[[str], dict[str, Any]] = spawn.get_preparation_data
    spawn: Callable[[bytes, Sequence[Any], Sequence[int]], int] = util.spawnv_passfds


@contextlib.contextmanager
def main_module_left_alone(variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Processes that this thread starts meanwhile run the guard, and do not import the main module.

    Args:
        variables: What they find in their environment, besides what this process has there.
    """
    me = threading.get_ident()
    with _Wrapped.lock:
        if not _Wrapped.threads:
            _Wrapped.preparation = spawn.get_preparation_data  # another's wrapper, perhaps
            _Wrapped.spawn = util.spawnv_passfds
            spawn.get_preparation_data = _preparation_data
            util.spawnv_passfds = _spawn  # type: ignore[assignment]  # names of arguments
        _Wrapped.threads[me] = dict(variables or {})
    try:
        yield
    finally:
        with _Wrapped.lock:
            _Wrapped.threads.pop(me, None)
            if not _Wrapped.threads:
                spawn.get_preparation_data = _Wrapped.preparation  # type: ignore[assignment]
                util.spawnv_passfds = _Wrapped.spawn  # type: ignore[assignment]


def _preparation_data(name: str) -> dict[str, Any]:
    data = _Wrapped.preparation(name)
    if threading.get_ident() in _Wrapped.threads:
        data.pop(_FROM_NAME, None)
        data[_FROM_PATH] = _guard.__file__
    return data


def _spawn(path: bytes, arguments: Sequence[Any], fds: Sequence[int]) -> int:
    variables = _Wrapped.threads.get(threading.get_ident())
    if variables is None:
        return _Wrapped.spawn(path, arguments, fds)
    with environment(variables):  # without any, too: it may not find those of another
        return _Wrapped.spawn(path, arguments, fds)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with *variables*; one thread at a time, so do not dwell in it."""
    with _Wrapped.making:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
