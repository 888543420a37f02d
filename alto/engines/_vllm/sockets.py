"""Private folder for vLLM's socket files, removed with the last engine that may use it.

vLLM's processes communicate through socket files, most of which remain when an engine ends. An
environment variable names their folder. A process has one environment, however many engines it starts
at a time, so these engines share one folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path
from typing import Final, final

__all__ = ("Sockets",)

_VARIABLE: Final = "VLLM_RPC_BASE_PATH"
_ROOM: Final = 103 - len("/01234567-89ab-cdef-0123-456789abcdef")
"""Maximum bytes of the folder's path: a socket's path may have 107 on Linux and 103 on macOS."""


@final
class _Folder:
    """State of the shared folder: its path and its users."""

    lock = threading.Lock()
    path = ""
    engines = 0
    """Number of engines that may have sockets in it."""
    launches = 0
    """Number of engines being started, for which the variable is set."""
    remove: util.Finalize[None] | None = None


@final
class Sockets:
    """One engine's use of the folder; release it when the engine has ended."""

    def __init__(self) -> None:
        self._shares = False

    @contextlib.contextmanager
    def put_together(self) -> Iterator[None]:
        """Put the sockets of an engine that is built in this context into the folder.

        The folder is not used if the program has set the variable, or if none can be created.
        """
        with _Folder.lock:
            self._shares = _share()
        try:
            yield
        finally:
            if self._shares:
                with _Folder.lock:
                    _Folder.launches -= 1
                    if not _Folder.launches and os.environ.get(_VARIABLE) == _Folder.path:
                        del os.environ[_VARIABLE]

    def release(self) -> None:
        """Release the folder: the engine has ended, or did not start. A second call does nothing."""
        with _Folder.lock:
            shared, self._shares = self._shares, False
            _Folder.engines -= shared
            if shared and not _Folder.engines and _Folder.remove is not None:
                _Folder.remove()


def _share() -> bool:
    """Count one more engine and launch and set the variable; return False if it is left as it is."""
    chosen = os.environ.get(_VARIABLE)
    if chosen is not None and not (_Folder.launches and chosen == _Folder.path):
        return False
    there = _Folder.engines and Path(_Folder.path).is_dir()  # it may have been removed by a cleanup
    if not there and not _make():
        return False
    _Folder.engines += 1
    _Folder.launches += 1
    os.environ[_VARIABLE] = _Folder.path
    return True


def _make() -> bool:
    try:
        path = tempfile.mkdtemp(prefix="alto-")
    except OSError:
        return False
    # Also runs at exit if the program did not stop its engines, but not in forked processes.
    remove = util.Finalize(None, shutil.rmtree, (path, True), exitpriority=-100)
    if len(os.fsencode(path)) > _ROOM:
        remove()
        return False
    _Folder.path, _Folder.remove = path, remove
    return True
