"""Plain functions in worker processes.

Theory of operation. A replica has one process, which lives as long as the replica and runs one call
at a time. Python's ``spawn`` starts it: a new interpreter, which imports the module of the stage's
function and makes the replica's resources. Functions are sent by name. Everything else is pickled
here, so that an error for what cannot be pickled is raised where that is passed.

A process that dies is replaced, and its call runs once more in the new one. If that dies too, the
call fails. A call that is cancelled returns immediately. Its process is killed, because nothing else
can interrupt a function, and is replaced in the background.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from multiprocessing.process import BaseProcess
from types import FunctionType
from typing import Any, Final

from alto._graph.spec import PerReplica
from alto._runtime import process_worker
from alto._runtime.process_worker import PLAIN, Location, find_function
from alto._safe_text import told
from alto._wait import wait_shielded
from alto.errors import ResourceError, WorkerDied
from alto.model import StageInfo

__all__ = ("WorkerProcess",)

_GRACE_S: Final = 10.0
"""Seconds that a process has to give back resources, if it is cancelled while it makes them."""
_UNSET: Final = object()


class _ProcessEnded(Exception):
    """The process ended while it started."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"exit code {exit_code}")


class WorkerProcess:
    """The worker process of one replica, and its replacements.

    Args:
        stage: The stage.
        number: Number of the replica.
        resources: Its keyword arguments, with ``per_replica`` declarations.
        context: Context variables whose values are sent with each call.

    Raises:
        ResourceError: The function, a resource or a context variable cannot be sent to another
            process.
    """

    def __init__(
        self,
        stage: StageInfo,
        number: int,
        resources: Mapping[str, object],
        context: Sequence[ContextVar[Any]] = (),
    ) -> None:
        self._name = stage.name
        self._number = number
        self._context = {_location_of(variable, stage): variable for variable in context}
        self._payload = _payload(stage, number, resources)
        self._child: _Child | None = None
        """The process, if one has started. It may have died since."""
        self._renewal: asyncio.Task[_Child] | None = None
        """Task that ends the last process and starts the next one."""
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start the process; at the end let it give back its resources, and end it.

        Raises:
            ResourceError: It ended while it started, or could not make a resource.
        """
        try:
            self._child = await _Child.start(self._payload)
        except _ProcessEnded as error:
            msg = (
                f"stage {self._name!r}: the worker process of replica {self._number} ended while it "
                f"started (exit code {error.exit_code}); its output says why. A program that uses "
                f"worker processes must be importable: put what it runs under `if __name__ == "
                f'"__main__":`'
            )
            raise ResourceError(msg) from error
        try:
            yield
        finally:
            failure = await self._finish()
        if failure is not None:
            raise failure

    async def _finish(self) -> Exception | None:
        # Returns the exception of giving back the process's resources, if any.
        self._closed = True
        if (renewal := self._renewal) is not None:
            renewal.cancel()

            async def wait() -> None:
                await asyncio.wait([renewal])

            await wait_shielded(wait)
        child, self._child = self._child, None
        if child is None:
            return None
        try:
            return await child.give_back()
        finally:
            await child.end()

    async def call(self, *args: object, **values: object) -> object:
        """Run the function in the process, once more if the process dies.

        Cancellation: raised immediately; the process is killed, and another one is started.

        Raises:
            WorkerDied: Two processes died during this call.
            TypeError: An argument, a context variable's value or the result cannot be pickled.
        """
        sent = self._packed(args, values)
        code, deaths = None, 0
        while deaths < 2:
            try:
                child = await self._ready()
            except _ProcessEnded as error:
                code = error.exit_code
                deaths += 1
                continue
            done = child.submit(process_worker.run, sent)
            # It had died while idle, and only its pool noticed. Not this call's fault.
            if done.done():
                self._replace()
                continue
            try:
                await asyncio.wait([done])
            finally:
                if not done.done():  # Cancelled: only killing the process ends the function.
                    child.kill()
                    # Replace it now, in the background, since the next call needs a process. Not if a
                    # loop that shuts down cancels everything and has closed this already.
                    if not self._closed:
                        self._replace()
            try:
                failed, value = pickle.loads(done.result())  # noqa: S301  # from our own process
            except BrokenProcessPool:
                deaths += 1
                self._replace()
                code = await child.exit_code()
                continue
            if failed:
                raise value
            return value
        raise WorkerDied(self._name, self._number, code)

    def _packed(self, args: Sequence[object], values: Mapping[str, object]) -> bytes:
        context = {
            place: value
            for place, variable in self._context.items()
            if (value := variable.get(_UNSET)) is not _UNSET
        }
        try:
            return pickle.dumps((args, values, context), protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:
            for item in args:
                _check_pickles(item, "an item")
            for name, value in values.items():
                _check_pickles(value, f"resource {name!r}")
            for place, value in context.items():
                _check_pickles(value, f"the value of context variable {place[1]!r}")
            raise

    async def _ready(self) -> _Child:
        # Returns an idle process. asyncio.wait: a cancelled call does not cancel the start of a process.
        child = self._child
        if child is not None and child.is_alive():
            return child
        renewal = self._renewal or self._replace()
        await asyncio.wait([renewal])
        return renewal.result()

    def _replace(self) -> asyncio.Task[_Child]:
        # Not in a request's context, and not by the program's task factory: it outlives the request.
        old, self._child = self._child, None
        self._renewal = renewal = asyncio.Task(
            self._renew(old),
            loop=asyncio.get_running_loop(),
            name=f"alto {self._name} {self._number}: starts a process",
            context=Context(),
        )
        renewal.add_done_callback(self._renewed, context=Context())
        return renewal

    async def _renew(self, old: _Child | None) -> _Child:
        if old is not None:
            await old.end()
        return await _Child.start(self._payload)

    def _renewed(self, renewal: asyncio.Task[_Child]) -> None:
        # A failure is raised by the call that waits for it. Without one, the next call tries again.
        self._renewal = None
        if not renewal.cancelled() and renewal.exception() is None:
            self._child = renewal.result()


class _Child:
    """A process that has made the resources of its calls."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._process: BaseProcess | None = None
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    async def start(cls, payload: bytes) -> _Child:
        """Start a process.

        Raises:
            _ProcessEnded: It ended while it started.
            ResourceError: A resource could not be made.

        Cancellation: raised when the process has given back what it had made so far, or after
        ``_GRACE_S`` seconds.
        """
        child = cls()
        began = child.submit(process_worker.begin, payload)
        started = getattr(child._pool, "_processes", None) or {}
        child._process = next(iter(started.values()), None)
        try:
            await asyncio.wait([began])
            if (error := pickle.loads(began.result())) is not None:  # noqa: S301  # our own
                raise error  # noqa: TRY301  # made in the process
        except BrokenProcessPool:
            raise _ProcessEnded(await child.exit_code()) from None
        except BaseException:
            try:
                # Cancelled: SIGTERM makes the process give back what it has made (process_worker.py).
                if not began.done() and child._process is not None:
                    child._process.terminate()
                    await _wait(began, at_most=_GRACE_S)
            finally:
                if not began.done():
                    child.kill()
                await child.end()
            raise
        return child

    def is_alive(self) -> bool:
        """Return whether the process is still running."""
        return self._process is None or self._process.is_alive()

    def kill(self) -> None:
        """Kill the process. Its resources are lost."""
        if self._process is not None:
            self._process.kill()

    async def give_back(self) -> Exception | None:
        """Let the process give back its resources. Returns the exception of that, if any."""
        if not self.is_alive():
            return None
        ended = self.submit(process_worker.end, b"")
        try:
            await _wait(ended)
            failure: Exception | None = pickle.loads(ended.result())  # noqa: S301  # our own
        except BrokenProcessPool:
            return None
        return failure

    async def end(self) -> None:
        """End the idle process. Cancellation: raised when it has ended."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.run_in_executor(None, self._pool.shutdown)
        ended = self._ended

        async def wait() -> None:
            await asyncio.wait([ended])

        await wait_shielded(wait)

    async def exit_code(self) -> int | None:
        """Wait until the process has ended. Returns its exit code, if that is known."""
        await self.end()
        return None if self._process is None else self._process.exitcode

    def submit(self, function: Callable[[bytes], bytes], data: bytes) -> asyncio.Future[bytes]:
        """Run a function in the process."""
        loop = asyncio.get_running_loop()
        try:
            done = loop.run_in_executor(self._pool, function, data)
        except BrokenProcessPool as error:  # It died while idle.
            done = loop.create_future()
            done.set_exception(error)
        done.add_done_callback(_seen, context=Context())
        return done


async def _wait(done: asyncio.Future[bytes], at_most: float | None = None) -> None:
    # Cancellation: raised when the wait is over.
    async def wait() -> None:
        await asyncio.wait([done], timeout=at_most)

    await wait_shielded(wait)


def _seen(done: asyncio.Future[bytes]) -> None:
    # Mark the exception as retrieved, since no call may wait for it any more.
    if not done.cancelled():
        done.exception()


# ---- pickling for the process


def _payload(stage: StageInfo, number: int, resources: Mapping[str, object]) -> bytes:
    sent = []
    for name, value in resources.items():
        try:
            sent.append((name, pickle.dumps(value)))
        except Exception as error:
            remedy = f"make it there, with {name}=alto.per_replica(make_it)"
            if isinstance(value, PerReplica):
                remedy = "define its factory at the top level of a module"
            msg = (
                f"stage {stage.name!r} runs in worker processes, and resource {name!r} cannot be "
                f"sent there ({told(error)}); {remedy}"
            )
            raise ResourceError(msg) from error
    return pickle.dumps((_reference(stage.function, stage.name), stage.name, number, sent))


def _check_pickles(value: object, what: str) -> None:
    try:
        pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        msg = f"{what} cannot be sent to the worker process ({told(error)}); {PLAIN}"
        raise TypeError(msg) from error


def _location_of(variable: ContextVar[Any], stage: StageInfo) -> Location:
    # A context variable does not know its module, so search for it, first in the stage's module.
    modules = {stage.function.__module__: None, **dict.fromkeys(list(sys.modules))}
    for module in modules:
        names = getattr(sys.modules.get(module), "__dict__", None)
        if isinstance(names, dict) and _is_importable(module):
            for name, value in list(names.items()):
                if value is variable:
                    return module, name
    msg = (
        f"stage {stage.name!r} runs in worker processes, and context variable {variable.name!r} "
        f"cannot be found there; define it at the top level of a module"
    )
    raise ResourceError(msg)


def _is_importable(module: str) -> bool:
    # Not a notebook or an interactive session.
    return module != "__main__" or getattr(sys.modules[module], "__file__", None) is not None


def _reference(fn: Callable[..., Any], name: str) -> Location:
    # The decorated stage has the function's name in its module, so the function is sent by name.
    assert isinstance(fn, FunctionType)
    module, where = fn.__module__, fn.__qualname__
    why = ""
    if "<locals>" in where:
        why = f"it is defined inside a function ({where})"
    elif not _is_importable(module):
        why = "it is defined in a notebook or an interactive session"
    elif find_function(module, where) is not fn:
        why = f"{module}.{where} is not it"
    if why:
        msg = (
            f"stage {name!r} runs in worker processes, and its function cannot be found there: "
            f"{why}; define it at the top level of a module"
        )
        raise ResourceError(msg)
    return module, where
