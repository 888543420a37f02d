"""An event loop on virtual time, which raises an error when it can never continue.

The loop never waits for its timers. When no callback is ready and no file is readable, it moves its
clock to the next timer and continues. So a year's sleep takes microseconds, and every time is exact: after ``await asyncio.sleep(0.1)`` the clock has moved by 0.1 and by nothing else.

When nothing is ready and no timer is armed, a real loop would wait for ever. This one raises
`Deadlock`, which names the waiting tasks and the lines in which they wait.

Threads and files live in real time. Before the loop jumps or gives up, it grants those that it can
see (jobs of its executor, and, when no timer is armed, other threads and open files) a little real
time, ``patience``. That is enough for `asyncio.to_thread` in a test. Code whose point is a thread, a
socket or another process belongs on the ordinary loop.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol, TypeAlias, TypeVar, TypeVarTuple, final

__all__ = ("Deadlock", "TaskLeak", "VirtualClockLoop", "run_virtual")

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_File: TypeAlias = int | _HasFileno
_Ready: TypeAlias = list[tuple[selectors.SelectorKey, int]]

_RESOLUTION: Final = 1e-6
"""Seconds within which two times are equal.

asyncio's own 1e-9 is finer than a float past 4e6 seconds: the loop would spin on a timer that it can
never reach.
"""

_NEVER: Final = 1e9
"""Seconds (about thirty years) from which on a timer is ignored.

``sleep(math.inf)`` is a wait without an end, and `Deadlock` must see it as one.
"""


@final
class Deadlock(RuntimeError):
    """Nothing is ready, no timer is armed, and tasks still wait: the program can never continue.

    It is raised from ``run_until_complete``, not in a task; the tasks stay as they are.
    """

    time: float
    """Time of the deadlock, in virtual seconds."""

    tasks: tuple[str, ...]
    """The waiting tasks, each with the file, line and function that it waits in."""

    def __init__(self, time: float, tasks: tuple[str, ...]) -> None:
        self.time = time
        self.tasks = tasks
        super().__init__(
            f"nothing is ready and no timer is armed at t={time:g} s;"
            f" {len(tasks)} task(s) wait for ever:{_indented(tasks)}"
        )


@final
class TaskLeak(RuntimeError):
    """A function returned and left tasks running that it, or something it called, had started."""

    tasks: tuple[str, ...]
    """The leaked tasks, each with the file, line and function that it was in."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks
        super().__init__(f"{len(tasks)} task(s) outlived the call:{_indented(tasks)}")


def run_virtual(
    function: Callable[[*_Ts], Coroutine[Any, Any, _T]],  # Any: no value is sent into it
    /,
    *args: *_Ts,
) -> _T:
    """Run a coroutine function to its end on a fresh virtual loop.

    Args:
        function: Called once with *args*, on a loop whose clock shows 0.
        args: Its arguments.

    Returns:
        The result of *function*.

    Raises:
        Deadlock: *function* waits for something that can never happen.
        TaskLeak: It returned while tasks were still running; they have been cancelled.
        BaseException: *function* raised it; leaked tasks are then a note on it.

    The thread must have no running loop. The loop is closed in every case.
    """
    loop = VirtualClockLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            result = runner.run(function(*args))
        except Deadlock:
            raise
        except BaseException as error:
            if leaked := loop.unfinished():
                error.add_note(str(TaskLeak(leaked)))
            raise
        if leaked := loop.unfinished():
            raise TaskLeak(leaked)
        return result


@final
class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An asyncio loop that jumps to its next timer instead of waiting for it.

    Args:
        start: What its clock shows at first, in seconds.
        patience: Real seconds that threads and files get before the loop jumps or gives up. Spent
            only where there are any, and only when nothing else is left to do.

    Raises:
        ValueError: *start* or *patience* is negative, or too large to count with.

    Cost: an iteration costs what one of the ordinary loop costs, however far the clock moves.
    """

    _scheduled: list[asyncio.TimerHandle]
    # asyncio's own heap of timers, the next one first; it has had this name since 3.4. It is read
    # because the timeout that asyncio hands to a selector is rounded, and cut to a day.

    def __init__(self, *, start: float = 0.0, patience: float = 1.0) -> None:
        self._now = start
        self._patience = patience
        self._jobs = 0  # Invariant: executor jobs that were started and have not called back.
        self._files = _JumpingSelector(self._patience_now, self._advance)
        super().__init__(self._files)
        self._own_files = len(self._files.get_map())  # the pipe that wakes the loop
        self._clock_resolution = _RESOLUTION
        if refusal := _refusal(start, patience):
            self.close()  # first, since asyncio's __del__ expects a whole loop, and a closed one
            raise ValueError(refusal)

    def time(self) -> float:
        """Return what the virtual clock shows, in seconds."""
        return self._now

    def unfinished(self) -> tuple[str, ...]:
        """Return the tasks that are not done, each with the calls that it waits in."""
        return tuple(sorted(_whereabouts(task) for task in asyncio.all_tasks(self)))

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Run a function in a thread; the clock does not move meanwhile (see *patience*)."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._job_done)
        return future

    async def shutdown_default_executor(
        self,
        timeout: float | None = None,  # noqa: ARG002 - asyncio's signature since 3.12
    ) -> None:
        """Wait for the executor's threads to end; *timeout*, in virtual seconds, is ignored."""
        self._jobs += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._jobs -= 1

    def _job_done(self, _future: asyncio.Future[_T]) -> None:
        self._jobs -= 1

    def _next_timer(self) -> float | None:
        when = self._scheduled[0].when() if self._scheduled else _NEVER
        return when if when < _NEVER else None

    def _patience_now(self) -> float:
        """Real seconds that the outside gets before `_advance`."""
        outside = self._jobs > 0
        if self._next_timer() is None:
            others = threading.active_count() > 1
            outside = outside or others or len(self._files.get_map()) > self._own_files
        return self._patience if outside else 0.0

    def _advance(self) -> None:
        """Move the clock to the next timer, or raise `Deadlock` where there is none."""
        when = self._next_timer()
        if when is None:
            raise Deadlock(self._now, self.unfinished())
        self._now = max(self._now, when)


@final
class _JumpingSelector(selectors.BaseSelector):
    """A selector that asks what to do instead of waiting.

    It still sees real files, the pipe behind ``call_soon_threadsafe`` among them.
    """

    def __init__(self, patience: Callable[[], float], advance: Callable[[], None]) -> None:
        self._real = selectors.DefaultSelector()
        self._patience = patience
        self._advance = advance

    def select(self, timeout: float | None = None) -> _Ready:
        ready = self._real.select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if (patience := self._patience()) and (ready := self._real.select(patience)):
            return ready
        self._advance()
        return []

    def register(self, fileobj: _File, events: int, data: object = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: _File) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: _File, events: int, data: object = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def _refusal(start: float, patience: float) -> str:
    if not 0.0 <= start < _NEVER:
        return f"start must be at least 0 and below {_NEVER:g} seconds, not {start}"
    if not 0.0 <= patience < math.inf:
        return f"patience must be finite and at least 0 seconds, not {patience}"
    return ""


def _whereabouts(task: asyncio.Task[Any]) -> str:
    """A task's name and the calls it is suspended in, the outermost first."""
    calls = []
    inner: object = task.get_coro()
    while inner is not None:
        frame = _first(inner, "cr_frame", "gi_frame", "ag_frame")
        if isinstance(frame, FrameType):
            code = frame.f_code
            calls.append(f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})")
        inner = _first(inner, "cr_await", "gi_yieldfrom", "ag_await")
    return f"{task.get_name()}: {' > '.join(calls)}"


def _first(value: object, *names: str) -> object:
    found: object = None
    for name in names:
        found = found or getattr(value, name, None)
    return found


def _indented(lines: tuple[str, ...]) -> str:
    return "".join(f"\n  {line}" for line in lines)
