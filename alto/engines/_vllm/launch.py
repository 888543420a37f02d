"""Start vLLM's `AsyncLLM` in a worker thread, and end it, so that nothing is left behind.

The engine's work is done by child processes. They must not die of a Ctrl-C that is meant for the
program, their output must be heard, and when a start is cancelled or fails they must go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final, Literal, final

import attrs

from alto.engines._vllm.arguments import (
    check_model_folder,
    engine_arguments,
    memory_remedy,
    unknown_arguments,
)
from alto.engines._vllm.child_output import ChildOutput, find_cause
from alto.engines._vllm.main_module import main_module_left_alone
from alto.engines._vllm.placement import CACHE_SPACE
from alto.engines._vllm.process_watcher import is_alive
from alto.engines._vllm.sockets import Sockets
from alto.engines._vllm.stat_logger import EngineCounters, stat_loggers
from alto.errors import EngineStartError

__all__ = ("Launch", "LaunchCancelled", "RunningEngine", "shut_down")

_VARIABLES: Final = {
    # Not forked: this process has threads, and perhaps a GPU that it has used.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # On a CPU workers do not go before they are told to, and the engine's end waits for them.
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
}
_GRACE: Final = 5.0
"""Seconds that processes of a failed start get to go by themselves before they are killed."""
_TELL_ALL, _KILL_ALL = 1.0, 4.0
"""Seconds into a cancellation, which somebody waits for, after which its processes' own children are
told to go, and all are killed."""


class LaunchCancelled(Exception):
    """The start was cancelled; nothing is left of it."""


@attrs.define(eq=False, kw_only=True)
class RunningEngine:
    """An engine that runs, and what must go with it."""

    engine: Any
    """vLLM's ``AsyncLLM``."""
    processes: tuple[Any, ...]
    """Its child processes, as psutil sees them; empty where the system cannot tell."""
    output: ChildOutput
    """What they write."""
    counters: EngineCounters = attrs.field(factory=EngineCounters)
    """What the engine says of its work."""
    sockets: Sockets = attrs.field(factory=Sockets)
    """Its share of the folder for sockets."""


@final
class Launch:
    """One start of one engine. :meth:`run` it in a thread; the loop may :meth:`cancel` it.

    Args:
        name: Of the engine, for errors.
        model: Name or folder.
        arguments: Of vLLM's ``AsyncEngineArgs``.
        variables: What the engine's processes find in their environment, besides the program's.
        events: Where it is to publish what its cache holds; None: nowhere.
    """

    def __init__(
        self,
        name: str,
        model: str,
        arguments: Mapping[str, Any],
        /,
        *,
        variables: Mapping[str, str] | None = None,
        events: str | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._arguments = arguments
        self._variables = dict(variables or {})
        self._events = events
        self._sockets = Sockets()
        self._cpu = False
        self._lock = threading.Lock()
        self._cancelled = False
        self._stage: Literal["reading", "building", "done"] = "reading"
        # Invariant: child processes appear only while building.
        self._thread = 0
        self._children_before: frozenset[int] = frozenset()
        self._family: dict[int, Any] = {}
        self._cancelled_at = 0.0
        self._told = 0
        self._started: RunningEngine | None = None

    def run(self) -> None:
        """Build the engine, for :meth:`take`; blocks for as long as its model takes to load.

        The engine is not returned: an exception that a library below keeps would keep the frames
        it came through, and with them an engine that is a local variable there.

        Raises:
            EngineStartError: It did not work; nothing is left behind.
            LaunchCancelled: :meth:`cancel` was called; nothing is left behind.
        """
        problem = check_model_folder(self._model)
        if problem is not None:
            raise EngineStartError(self._name, problem)
        output, counters = ChildOutput(), EngineCounters()
        try:
            self._started = RunningEngine(
                engine=self._build(output, counters),
                processes=self._new_children(),
                output=output,
                counters=counters,
                sockets=self._sockets,
            )
        except LaunchCancelled:
            self._sweep(output)
            raise
        except (Exception, SystemExit) as error:
            traceback.clear_frames(error.__traceback__)  # they hold the half-built engine
            if not self._cancelled:  # who waits for the end wants no reason
                output.settle(2.0)
            self._sweep(output)
            if self._cancelled:
                raise LaunchCancelled from error
            if isinstance(error, EngineStartError):
                raise
            raise self._explain(error, output) from error
        with self._lock:
            if not self._cancelled:
                self._stage = "done"
                return
        shut_down(self.take())
        raise LaunchCancelled

    def take(self) -> RunningEngine:
        """The engine that :meth:`run` has built; to be asked for once."""
        started, self._started = self._started, None
        assert started is not None
        return started

    def cancel(self) -> bool:
        """Ask :meth:`run` to give up. Call it again until it has, from any thread.

        Returns:
            Whether :meth:`run` is to be waited for, since processes may have been started; if it
            succeeds after all, shut down what it has built. Else it only imports and reads, and
            will leave nothing behind.
        """
        with self._lock:
            self._cancelled = True
            stage = self._stage
        if stage == "building":
            self._tell_to_go()
        return stage != "reading"

    def _tell_to_go(self) -> None:
        """Ever more firmly: vLLM's first process minds SIGTERM only once it serves."""
        children = self._new_children()
        for child in children:
            self._remember(child)
        now = time.monotonic()
        self._cancelled_at = self._cancelled_at or now
        elapsed = now - self._cancelled_at
        family = tuple(self._family.values())
        if elapsed > _KILL_ALL:
            _signal(family, signal.SIGKILL)
        elif self._told == 1 and elapsed > _TELL_ALL:
            _signal(family, signal.SIGTERM)
            self._told = 2
        elif self._told == 0 and children:
            _signal(children, signal.SIGTERM)
            self._told = 1

    def _build(self, output: ChildOutput, counters: EngineCounters) -> Any:  # noqa: ANN401  # vLLM's
        with _launch_environment(), main_module_left_alone(self._variables):
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            arguments = self._checked_arguments(AsyncEngineArgs)
            with _interrupts_blocked(), output:  # in this order: else the tracker keeps a pipe
                settings = AsyncEngineArgs(**arguments)
                self._stop_if_cancelled()
                config = settings.create_engine_config()
                self._thread = threading.get_native_id()
                self._children_before = _children(self._thread)
                with self._lock:
                    self._stop_if_cancelled()
                    self._stage = "building"
                with self._sockets.put_together():
                    return AsyncLLM.from_vllm_config(
                        config,
                        enable_log_requests=settings.enable_log_requests,
                        disable_log_stats=settings.disable_log_stats,
                        stat_loggers=stat_loggers(counters),
                    )

    def _stop_if_cancelled(self) -> None:
        if self._cancelled:
            raise LaunchCancelled

    def _checked_arguments(self, fields_of: Any) -> dict[str, Any]:  # noqa: ANN401  # as above
        import psutil
        from vllm.platforms import current_platform

        known = {field.name for field in dataclasses.fields(fields_of)} - {"model"}
        problem = unknown_arguments(self._arguments, known)
        if problem is not None:
            raise EngineStartError(self._name, problem)
        self._cpu = bool(current_platform.is_cpu())
        arguments = engine_arguments(
            self._model,
            self._arguments,
            known=known,
            cpu=self._cpu,
            memory=psutil.virtual_memory().total,
            cache_chosen=bool(os.environ.get(CACHE_SPACE)),  # as vLLM asks
        )
        if self._events is not None and "kv_events_config" in known:
            from vllm.config import KVEventsConfig

            arguments["kv_events_config"] = KVEventsConfig(
                enable_kv_cache_events=True, publisher="zmq", endpoint=self._events
            )
        return arguments

    def _explain(self, error: BaseException, output: ChildOutput) -> EngineStartError:
        reason = f"model {self._model!r}: {type(error).__name__}: {error}"
        lines: tuple[str, ...] = ()
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            reason = "vLLM is not installed; install alto-llm[vllm], or [cpu] where there is no GPU"
        if isinstance(error, (RuntimeError, TimeoutError)):
            cause, lines = find_cause(output.lines())
            reason = cause or (
                f"{reason}; its processes named no error, so they may have been killed, "
                "for instance for want of memory"
            )
            reason += memory_remedy(reason, cpu=self._cpu)
        return EngineStartError(self._name, reason, output=lines)

    def _new_children(self) -> tuple[Any, ...]:
        import psutil

        found = []
        for pid in _children(self._thread) - self._children_before:
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(pid))
        return tuple(found)

    def _remember(self, process: Any) -> None:  # noqa: ANN401  # psutil is not typed
        for member in _family(process):
            self._family.setdefault(member.pid, member)

    def _sweep(self, output: ChildOutput) -> None:
        """End what a failed or cancelled build has left."""
        if self._stage == "building":
            for child in self._new_children():
                self._remember(child)
            _end(tuple(self._family.values()), grace=_GRACE if self._family else 0)
        self._sockets.release()
        output.close()


def shut_down(started: RunningEngine) -> None:
    """End an engine and all of its processes. Blocks for seconds; the loop must run meanwhile."""
    family = tuple(member for process in started.processes for member in _family(process))
    engine, started.engine = started.engine, None
    try:
        # time for the processes to free what they share, or it would stay until this program ends
        patient = "timeout" in inspect.signature(engine.shutdown).parameters
        engine.shutdown(**({"timeout": 2 * _GRACE} if patient else {}))
    finally:
        _end(family, grace=1.0)
        _close_sockets(engine)
        started.sockets.release()
        started.output.close()


def _close_sockets(engine: Any) -> None:  # noqa: ANN401  # vLLM is not typed here
    """Close the context of the sockets, which vLLM leaves to the garbage collector.

    That waits until the loop has closed the sockets, and for ever if one were forgotten: so not
    here.
    """
    context = getattr(getattr(engine.engine_core, "resources", None), "ctx", None)
    if context is not None:
        closing = threading.Thread(target=context.term, name="alto-zmq-term", daemon=True)
        closing.start()
        closing.join(1.0)


def _family(process: Any) -> tuple[Any, ...]:  # noqa: ANN401  # psutil is not typed
    """*process* and all below it that can still be seen."""
    import psutil

    try:
        return (process, *process.children(recursive=True))
    except psutil.Error:
        return (process,)


def _end(processes: tuple[Any, ...], *, grace: float) -> None:
    """Wait until *processes* are gone; those that take longer than *grace* are killed."""
    deadline, killed = time.monotonic() + grace, False
    while True:
        multiprocessing.active_children()  # reaps those that have ended
        left = [process for process in processes if is_alive(process)]
        if not left or (killed and time.monotonic() > deadline):
            return
        if not killed and time.monotonic() > deadline:
            _signal(left, signal.SIGKILL)
            deadline, killed = time.monotonic() + grace + 1.0, True
        time.sleep(0.01)


def _signal(processes: Sequence[Any], number: int) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _children(thread: int) -> frozenset[int]:
    """Processes that *thread* of this process has started; none where the system cannot tell."""
    try:
        listed = Path(f"/proc/self/task/{thread}/children").read_text()
    except OSError:
        return frozenset()
    return frozenset(map(int, listed.split()))


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started by this thread ignore Ctrl-C, which the terminal sends to all of a group.

    Else a program that catches Ctrl-C, to end in order, would find its engines dead already.
    """
    resource_tracker.ensure_running()  # before, or it would undo the mask when a child starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@final
class _Environment:
    """Counts the launches that need variables which this program has not set."""

    lock = threading.Lock()
    users: Final[dict[str, int]] = {}


@contextlib.contextmanager
def _launch_environment() -> Iterator[None]:
    """Variables that an engine's processes inherit, where the program has not chosen itself."""
    mine = []
    with _Environment.lock:
        for name, value in _VARIABLES.items():
            if name in _Environment.users or name not in os.environ:
                mine.append(name)
                _Environment.users[name] = _Environment.users.get(name, 0) + 1
                os.environ[name] = value
    try:
        yield
    finally:
        with _Environment.lock:
            for name in mine:
                _Environment.users[name] -= 1
                if _Environment.users[name] == 0:
                    del _Environment.users[name]
                    os.environ.pop(name, None)
