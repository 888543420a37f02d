"""Start an engine's processes with a guard in place of the program's main module.

A spawned process of Python's multiprocessing first imports the parent's main module, under another
name, so that functions defined there can be found. vLLM's processes need none of the program's
functions, and the import does harm: a script without ``if __name__ == "__main__"`` would start engines
in its own engine's processes, every library of the script would be loaded in each of them, and with
some (llvmlite, which numba and so bm25s import) vLLM 0.32's CPU worker fails to start. Instead they
run :mod:`alto.engines._vllm.guard`, and so do the processes that *they* spawn.

Some variables must differ between engines that are started at the same time, and this process has one
environment. So they are set for the moment in which a child is made, by one thread at a time.

multiprocessing has no setting for either. One function of it prepares the data for a new process, and
another one makes the process; both are wrapped here while engines are built, and the wrappers act only
in the threads that build them.
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
    """Threads that build engines, and the functions to restore when none does."""

    lock = threading.Lock()
    making = threading.Lock()
    threads: Final[dict[int, Mapping[str, str]]] = {}
    """Variables of the processes that each of these threads starts, by the thread."""
    preparation: Callable[[str], dict[str, Any]] = spawn.get_preparation_data
    spawn: Callable[[bytes, Sequence[Any], Sequence[int]], int] = util.spawnv_passfds


@contextlib.contextmanager
def main_module_left_alone(variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Let processes that this thread starts run the guard and not import the main module.

    Args:
        variables: Environment variables of these processes, besides those of this process.
    """
    me = threading.get_ident()
    with _Wrapped.lock:
        if not _Wrapped.threads:
            _Wrapped.preparation = (
                spawn.get_preparation_data
            )  # now, and not at import: another library may have wrapped it
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
        # multiprocessing runs the module of this name or the file at this path; only the path is left.
        data.pop(_FROM_NAME, None)
        data[_FROM_PATH] = _guard.__file__
    return data


def _spawn(path: bytes, arguments: Sequence[Any], fds: Sequence[int]) -> int:
    variables = _Wrapped.threads.get(threading.get_ident())
    if variables is None:
        return _Wrapped.spawn(path, arguments, fds)
    with environment(variables):  # also without any: it must not see those of another thread
        return _Wrapped.spawn(path, arguments, fds)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Add *variables* to the environment of this process; one thread at a time, so be quick."""
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
