"""A private folder for vLLM's socket files, removed with the last engine that may use it.

vLLM and its processes talk through sockets that are files, and most of the files are left where they
are when an engine ends. Their folder is named by an environment variable, and a process has one
environment however many engines it starts at a time; so those engines share one folder.
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
"""Bytes that the folder's path may have: a socket's may have 107 on Linux and 103 on macOS."""


@final
class _Folder:
    """The folder, and how many need it."""

    lock = threading.Lock()
    path = ""
    engines = 0
    """Those that may have sockets in it."""
    launches = 0
    """Those for which the variable is set."""
    remove: util.Finalize[None] | None = None


@final
class Sockets:
    """One engine's share of the folder; to be released when the engine has ended."""

    def __init__(self) -> None:
        self._shares = False

    @contextlib.contextmanager
    def put_together(self) -> Iterator[None]:
        """An engine that is built meanwhile has its sockets in the folder.

        Unless the program has chosen another, or none can be made.
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
        """The engine has ended, or was never there; again does nothing."""
        with _Folder.lock:
            shared, self._shares = self._shares, False
            _Folder.engines -= shared
            if shared and not _Folder.engines and _Folder.remove is not None:
                _Folder.remove()


def _share() -> bool:
    """Count one engine and one launch more, and set the variable; False: it is left as it is."""
    chosen = os.environ.get(_VARIABLE)
    if chosen is not None and not (_Folder.launches and chosen == _Folder.path):
        return False
    there = _Folder.engines and Path(_Folder.path).is_dir()  # unless somebody has tidied up
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
    # Also called where the program ends without a word to its engines, but not in its forks.
    remove = util.Finalize(None, shutil.rmtree, (path, True), exitpriority=-100)
    if len(os.fsencode(path)) > _ROOM:
        remove()
        return False
    _Folder.path, _Folder.remove = path, remove
    return True
