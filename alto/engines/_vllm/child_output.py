"""Output of an engine's processes: passed on as it comes, with its last lines kept.

When an engine does not start, the reason is only in the output of its children. Children inherit the
file descriptors 1 and 2, so these are pipes while an engine is started. A thread passes everything on to
where it would have gone, until the last child has ended. Engines that start at the same time share the
pipes, so each of them keeps the lines of all.
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
"""Errors which only say that another process has failed."""


@final
class ChildOutput:
    """Last lines that the processes of one engine have written, from its start on.

    Enter it around the start, in any thread; :meth:`close` it when the processes have ended.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._tap: _PipeTee | None = None  # source of the lines, until this is closed
        self._inside: _PipeTee | None = None  # the same, until the block is left

    def __enter__(self) -> ChildOutput:
        """Redirect this process's outputs: lines of processes started from here on are kept."""
        self._tap = self._inside = _PipeTee.join(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore this process's outputs; lines of children started meanwhile are still kept."""
        tap, self._inside = self._inside, None
        if tap is not None:
            tap.restore()

    def add(self, line: str, /) -> None:
        """Keep one more line."""
        self._lines.append(line)

    def lines(self) -> tuple[str, ...]:
        """Return the last lines, oldest first."""
        return tuple(self._lines)

    def settle(self, timeout: float) -> None:
        """Wait until all writers have ended and everything is read, at most *timeout* seconds."""
        if self._tap is not None:
            self._tap.thread.join(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Keep no more lines. Blocks until everything is passed on, unless other engines listen."""
        tap, self._tap = self._tap, None
        if tap is not None:
            if tap.is_only_for(self):
                tap.thread.join(timeout)
            tap.leave(self)


def _all_open(*fds: int) -> bool:
    """Return whether all of *fds* are open.

    A daemon may have closed them, and the next file that is opened would get such a number.
    """
    try:
        for fd in fds:
            os.fstat(fd)
    except OSError:
        return False
    return True


@final
class _PipeTee:
    """Pipes in place of this process's outputs, and the thread that empties them.

    A program without outputs gets no pipes. The thread ends when the last process that holds an end of a
    pipe has ended.
    """

    _lock = threading.Lock()
    _current: _PipeTee | None = None
    """The tee that is in place now; None: there is none."""

    def __init__(self) -> None:
        heard = (1, 2) if _all_open(0, 1, 2) else ()  # before the pipes get these numbers
        self._listeners: list[ChildOutput] = []
        self._starting = 0  # Invariant: the pipes are in place exactly while this is above 0.
        self._targets: dict[int, int] = {}  # descriptor that the text for each descriptor goes to
        self._saved: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        for fd in heard:
            self._saved[fd] = os.dup(fd)
            readable, writable = os.pipe()
            os.dup2(writable, fd)
            os.close(writable)  # descriptor *fd* and its copies in children are the only writers
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
            # This process lets go of its ends of the pipes, so the reader sees their end of file when the
            # last child has ended.
            for fd, saved in self._saved.items():
                os.dup2(saved, fd)
                self._targets[fd] = fd  # the program may redirect it later; then that is followed
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
                return  # it is closed; dropped, since the children would block on a full pipe


def find_cause(lines: Sequence[str], *, keep: int = 12) -> tuple[str | None, tuple[str, ...]]:
    """Find the error in the output of a failing child.

    Args:
        lines: Output of the processes.
        keep: Largest number of lines to return.

    Returns:
        The line that names the error (None: there is none), and the lines that lead up to it and
        include it, without prefixes, progress bars and later output.
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
    """A line of output without its prefixes."""

    source: str
    """Process, and place in its program, that wrote the line, where the line names them."""
    text: str
    matters: bool
    """True if the line may belong to an error."""

    @classmethod
    def parse(cls, line: str) -> Self:
        line = _COLOUR.sub("", line)
        process = _PROCESS.match(line)
        text = line if process is None else line[process.end() :]
        log = _LOG.match(text)
        source = "" if process is None else process.group()
        matters = "%|" not in text  # a progress bar of tqdm
        if log is not None:
            text = text[log.end() :]
            source += log.group("place")
            matters = log.group("level") in ("ERROR", "CRITICAL")
        return cls(source, text, matters and not re.fullmatch(r"[\s^~]*", text))

    def continues(self, error: Self) -> bool:
        """Return whether this is a further line of the message that *error* begins."""
        beginnings = ("Traceback", "Process ", "  File ", "During ", "The above ")
        return self.source == error.source and not self.text.startswith(beginnings)
