"""What an engine's processes print: passed on as it comes, and its last lines kept.

When an engine does not start, the reason is in its children's output only. Children inherit file
descriptors 1 and 2, so these are pipes while an engine is started. A thread passes everything on to
where it would have gone, as long as a child lives; engines that start at the same time share the
pipes, so each then keeps the lines of all.
"""

from __future__ import annotations

import os
import re
import selectors
import threading
from collections import deque
from collections.abc import Sequence
from typing import Self, final

import attrs

__all__ = ("ChildOutput", "find_cause")

_KEPT_LINES = 400
_LONGEST_LINE = 4000

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PROCESS = re.compile(r"^\(\w[^()]* pid=\d+\) ?")  # (EngineCore pid=123)
_LOG = re.compile(r"^(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[(?P<place>[^\]]*)\] ?")
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?::\s|$)")
_WRAPPERS = (
    "WorkerProc initialization failed",
    "Engine core initialization failed",
    "Engine core proc",
)
"""Errors that only say that another process has the true one."""


@final
class ChildOutput:
    """The lines that one engine's processes have written, from its start on.

    Enter it around the start, in any thread; :meth:`close` it when the processes are gone.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._tap: _PipeTee | None = None  # what is listened to, until it is closed
        self._inside: _PipeTee | None = None  # what is in place, until the block is left

    def __enter__(self) -> ChildOutput:
        """Processes started from here on are heard."""
        self._tap = self._inside = _PipeTee.join(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Give this process its own outputs back; children started meanwhile are still heard."""
        tap, self._inside = self._inside, None
        if tap is not None:
            tap.restore()

    def add(self, line: str, /) -> None:
        """Keep one more line."""
        self._lines.append(line)

    def lines(self) -> tuple[str, ...]:
        """What was written last, oldest first."""
        return tuple(self._lines)

    def settle(self, timeout: float) -> None:
        """Wait until all writers are gone and read, at most *timeout* seconds."""
        if self._tap is not None:
            self._tap.thread.join(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Stop listening. Blocks until all is passed on, where nobody else listens."""
        tap, self._tap = self._tap, None
        if tap is not None:
            if tap.is_only_for(self):
                tap.thread.join(timeout)
            tap.leave(self)


def _all_open(*fds: int) -> bool:
    """Whether none of *fds* is closed, as a daemon may have it: a new file would take its place."""
    try:
        for fd in fds:
            os.fstat(fd)
    except OSError:
        return False
    return True


@final
class _PipeTee:
    """Pipes in place of this process's outputs, and the thread that empties them.

    In a program without outputs nothing is heard. The thread ends when the last process that holds a pipe has ended.
    """

    _lock = threading.Lock()
    _current: _PipeTee | None = None
    """The one that is in place now, if any."""

    def __init__(self) -> None:
        heard = (1, 2) if _all_open(0, 1, 2) else ()  # before anything here opens a file
        self._listeners: list[ChildOutput] = []
        self._starting = 0  # Invariant: the pipes are in place exactly while this is above 0.
        self._targets: dict[int, int] = {}  # where a descriptor's text goes now
        self._saved: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        for fd in heard:
            self._saved[fd] = os.dup(fd)
            readable, writable = os.pipe()
            os.dup2(writable, fd)
            os.close(writable)
            self._targets[fd] = self._saved[fd]
            self._selector.register(readable, selectors.EVENT_READ, fd)
        self.thread = threading.Thread(target=self._pass_on, name="alto-child-output", daemon=True)
        self.thread.start()

    @classmethod
    def join(cls, listener: ChildOutput) -> _PipeTee:
        with cls._lock:
            if cls._current is None:
                cls._current = cls()
            cls._current.enter(listener)
            return cls._current

    def enter(self, listener: ChildOutput) -> None:
        self._starting += 1
        self._listeners.append(listener)

    def restore(self) -> None:
        with self._lock:
            self._starting -= 1
            if self._starting:
                return
            _PipeTee._current = None
            for fd, saved in self._saved.items():
                os.dup2(saved, fd)
                self._targets[fd] = fd  # from now on to whatever the descriptor is, then
                os.close(saved)
            self._saved.clear()

    def is_only_for(self, listener: ChildOutput) -> bool:
        with self._lock:
            return self._listeners == [listener] and not self._starting

    def leave(self, listener: ChildOutput) -> None:
        with self._lock:
            self._listeners.remove(listener)

    def _pass_on(self) -> None:
        partial = dict.fromkeys(self._targets, b"")
        while self._selector.get_map():
            for key, _ in self._selector.select():
                data = os.read(key.fd, 1 << 16)
                fd = key.data
                lines = (partial[fd] + data).split(b"\n")
                if data:
                    partial[fd] = lines.pop()[-_LONGEST_LINE:]
                else:
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
                with self._lock:
                    self._write(fd, data)
                    for line in filter(None, lines):
                        text = line[-_LONGEST_LINE:].decode(errors="replace").rstrip("\r")
                        for listener in self._listeners:
                            listener.add(text.rpartition("\r")[2])
        self._selector.close()

    def _write(self, fd: int, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._targets[fd], data) :]
            except OSError:
                return  # nobody reads it; the children must not block for that


def find_cause(lines: Sequence[str], *, keep: int = 12) -> tuple[str | None, tuple[str, ...]]:
    """The error that a failing child's output is about.

    Args:
        lines: What the processes wrote.
        keep: At most this many lines are given back.

    Returns:
        The line that names the error (None where there is none), and the lines that lead up to and
        include it, without prefixes, progress and what followed.
    """
    kept = [said for said in map(_OutputLine.parse, lines) if said.matters]
    cause, inside = None, False
    for number, said in enumerate(kept):
        if said.text.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not said.text.startswith(" ") and _RAISED.match(said.text):
            inside = False
            if not any(wrapper in said.text for wrapper in _WRAPPERS):
                cause = number
    if cause is None:
        return None, tuple(said.text for said in kept[-keep:])
    end = cause + 1
    while end < len(kept) and end - cause < keep and kept[end].continues(kept[cause]):
        end += 1
    return kept[cause].text, tuple(said.text for said in kept[max(0, end - keep) : end])


@final
@attrs.frozen
class _OutputLine:
    """A line without its prefixes."""

    source: str
    """Which process and which line of its program wrote it, as far as the line tells."""
    text: str
    matters: bool
    """Whether it may belong to an error."""

    @classmethod
    def parse(cls, line: str) -> Self:
        line = _COLOUR.sub("", line)
        process = _PROCESS.match(line)
        text = line if process is None else line[process.end() :]
        log = _LOG.match(text)
        source = "" if process is None else process.group()
        matters = "%|" not in text
        if log is not None:
            text = text[log.end() :]
            source += log.group("place")
            matters = log.group("level") in ("ERROR", "CRITICAL")
        return cls(source, text, matters and not re.fullmatch(r"[\s^~]*", text))

    def continues(self, error: Self) -> bool:
        """Whether this is a further line of the message that *error* begins."""
        beginnings = ("Traceback", "Process ", "  File ", "During ", "The above ")
        return self.source == error.source and not self.text.startswith(beginnings)
