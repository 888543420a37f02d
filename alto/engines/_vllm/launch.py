"""Start vLLM's `AsyncLLM` in a worker thread, and shut it down, without leaving anything behind.

The work of the engine is done by child processes. They must not die of a Ctrl-C that is meant for the
program, their output is needed to explain a failure, and when a start is cancelled or fails they must
be ended.
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
    # A fork would copy locks that other threads hold, and cannot use CUDA after its parent has.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # On a CPU the workers ignore a shutdown until this timeout, and the engine's end waits for them.
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
}
_GRACE: Final = 5.0
"""Seconds that the processes of a failed start get to end by themselves before they are killed."""
_TERMINATE_ALL, _KILL_ALL = 1.0, 4.0
"""Seconds after a cancellation, for which a caller waits: then the children's own children get SIGTERM
too; then all are killed."""


class LaunchCancelled(Exception):
    """The start was cancelled, and has left nothing behind."""


@attrs.define(eq=False, kw_only=True)
class RunningEngine:
    """A running engine of vLLM, and what must be freed with it."""

    engine: Any
    """vLLM's ``AsyncLLM``."""
    processes: tuple[Any, ...]
    """Its child processes, as psutil objects; empty where the system does not list them."""
    output: ChildOutput
    """Output of these processes."""
    counters: EngineCounters = attrs.field(factory=EngineCounters)
    """Statistics that the engine reports."""
    sockets: Sockets = attrs.field(factory=Sockets)
    """Its share of the folder for sockets."""


@final
class Launch:
    """One start of one engine. :meth:`run` it in a thread; the loop may :meth:`cancel` it.

    Args:
        name: Name of the engine, for errors.
        model: Name or folder of the model.
        arguments: Arguments of vLLM's ``AsyncEngineArgs``.
        variables: Environment variables of the engine's processes, besides the program's.
        events: Endpoint at which it publishes the events of its prefix cache; None: it does not.
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
        self._signals_sent = 0
        self._started: RunningEngine | None = None

    def run(self) -> None:
        """Build the engine, for :meth:`take`. Blocks while the model loads.

        The engine is not returned: an exception that some library keeps also keeps the frames it
        passed through, and with them an engine that is a local variable there.

        Raises:
            EngineStartError: The start failed; nothing is left behind.
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
            traceback.clear_frames(error.__traceback__)  # its frames hold the half-built engine
            if not self._cancelled:  # a cancelled start needs no cause, and its caller waits
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
        # It was cancelled between the end of the build and here: `cancel` has seen "building", and
        # its caller waits for this thread to leave nothing behind.
        shut_down(self.take())
        raise LaunchCancelled

    def take(self) -> RunningEngine:
        """Hand over the engine that :meth:`run` has built. Call it once."""
        started, self._started = self._started, None
        assert started is not None
        return started

    def cancel(self) -> bool:
        """Ask :meth:`run` to give up. Call it again until it has, from any thread.

        Returns:
            Whether to wait for :meth:`run`, since processes may have been started; if it succeeds
            after all, shut down the engine that it has built. If False, it only imports and reads,
            and will leave nothing behind.
        """
        with self._lock:
            self._cancelled = True
            stage = self._stage
        if stage == "building":
            self._signal_children()
        return stage != "reading"

    def _signal_children(self) -> None:
        """Ask the processes to end, at each call more firmly as time goes by.

        First SIGTERM to the children, which vLLM's first process heeds only once it serves; then SIGTERM
        to all processes below them; then SIGKILL.
        """
        children = self._new_children()
        for child in children:
            self._remember(child)
        now = time.monotonic()
        self._cancelled_at = self._cancelled_at or now
        elapsed = now - self._cancelled_at
        family = tuple(self._family.values())
        if elapsed > _KILL_ALL:
            _signal(family, signal.SIGKILL)
        elif self._signals_sent == 1 and elapsed > _TERMINATE_ALL:
            _signal(family, signal.SIGTERM)
            self._signals_sent = 2
        elif self._signals_sent == 0 and children:
            _signal(children, signal.SIGTERM)
            self._signals_sent = 1

    def _build(self, output: ChildOutput, counters: EngineCounters) -> Any:  # noqa: ANN401  # vLLM's
        with _launch_environment(), main_module_left_alone(self._variables):
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            arguments = self._checked_arguments(AsyncEngineArgs)
            with (
                _interrupts_blocked(),
                output,
            ):  # in this order: otherwise the resource tracker, which the first starts, inherits the pipes
                settings = AsyncEngineArgs(**arguments)
                self._stop_if_cancelled()
                config = settings.create_engine_config()
                # Children are found by the thread that starts them, since other engines may be
                # starting in other threads at the same time.
                self._thread = threading.get_native_id()
                self._children_before = _children(self._thread)
                with self._lock:  # from here on `cancel` must signal processes
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
            cache_chosen=bool(os.environ.get(CACHE_SPACE)),  # empty counts as not set, as in vLLM
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
        """End the processes that a failed or cancelled build has left, and free its resources."""
        if self._stage == "building":
            for child in self._new_children():
                self._remember(child)
            _end(tuple(self._family.values()), grace=_GRACE if self._family else 0)
        self._sockets.release()
        output.close()


def shut_down(started: RunningEngine) -> None:
    """End an engine and all of its processes. Blocks for seconds; the loop must run meanwhile."""
    # Listed first: when a parent has ended, its children cannot be found any more.
    family = tuple(member for process in started.processes for member in _family(process))
    engine, started.engine = started.engine, None
    try:
        # The timeout lets the processes free their shared memory, which would otherwise stay until this
        # program ends. Some versions of vLLM have no such parameter.
        patient = "timeout" in inspect.signature(engine.shutdown).parameters
        engine.shutdown(**({"timeout": 2 * _GRACE} if patient else {}))
    finally:
        _end(family, grace=1.0)
        _close_sockets(engine)
        started.sockets.release()
        started.output.close()


def _close_sockets(engine: Any) -> None:  # noqa: ANN401  # vLLM is not typed here
    """Close the context of the sockets, which vLLM leaves to the garbage collector.

    The call waits until the loop has closed all sockets, for ever if one was forgotten. So it is made
    in a thread of its own, and waited for at most a second.
    """
    context = getattr(getattr(engine.engine_core, "resources", None), "ctx", None)
    if context is not None:
        closing = threading.Thread(target=context.term, name="alto-zmq-term", daemon=True)
        closing.start()
        closing.join(1.0)


def _family(process: Any) -> tuple[Any, ...]:  # noqa: ANN401  # psutil is not typed
    """Return *process* and all processes below it that the system still lists."""
    import psutil

    try:
        return (process, *process.children(recursive=True))
    except psutil.Error:
        return (process,)


def _end(processes: tuple[Any, ...], *, grace: float) -> None:
    """Wait until *processes* have ended, and kill those that take longer than *grace* seconds."""
    deadline, killed = time.monotonic() + grace, False
    while True:
        multiprocessing.active_children()  # has a side effect: it reaps children that have ended
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
    """Return the processes that *thread* of this process started; none where /proc has no such list."""
    try:
        listed = Path(f"/proc/self/task/{thread}/children").read_text()
    except OSError:
        return frozenset()
    return frozenset(map(int, listed.split()))


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes that this thread starts ignore Ctrl-C, which a terminal sends to a whole group.

    Otherwise a program that catches Ctrl-C, to shut down in order, would find its engines dead.
    """
    # A child inherits the signal mask of the thread that starts it. multiprocessing starts its resource
    # tracker with the first child, and unblocks SIGINT after that; so it is started before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@final
class _Environment:
    """Number of launches that need each variable which the program has not set itself."""

    lock = threading.Lock()
    users: Final[dict[str, int]] = {}


@contextlib.contextmanager
def _launch_environment() -> Iterator[None]:
    """Set the variables that an engine's processes inherit, unless the program has set them itself.

    Launches may overlap: a variable is removed when the last of those that need it has ended.
    """
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
