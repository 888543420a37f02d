"""Plain functions in worker processes.

Theory of operation. A replica has one process, which lives as long as the replica does and runs one
call at a time. It is made by Python's ``spawn``: a new interpreter, which imports the module of the
stage's function and makes the replica's resources there. Functions travel by their name, everything
else is pickled here, so that what cannot be is said to whoever gave it.

A process that dies is replaced. The call that it ran is run once more, in the new one; when that
dies too, the call fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

from alto._aio import uncut
from alto._spec import PerReplica
from alto._told import message, told
from alto.errors import ResourceError, WorkerDied

if TYPE_CHECKING:
    from alto._spec import NodeSpec

__all__ = ("Process",)

_GRACE_S = 10.0
"""For what is being made when nobody needs it any more, to be given back."""
_PLAIN = "give it plain data, or let the stage run elsewhere: runs_in='thread'"


class _Ended(Exception):
    """The process ended before it had begun."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"exit code {exit_code}")


class Process:
    """The worker process of one replica.

    Args:
        spec: The stage.
        name: Its name in messages.
        number: Number of the replica.
        resources: Its keyword arguments, as they were given.

    Raises:
        ResourceError: The function or a resource cannot be sent to another process.
    """

    def __init__(
        self, spec: NodeSpec, name: str, number: int, resources: Mapping[str, object]
    ) -> None:
        self._name = name
        self._number = number
        self._payload = _payload(spec, name, number, resources)
        self._pool: ProcessPoolExecutor | None = None
        self._worker: BaseProcess | None = None
        self._busy = False
        self._aborted = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Callable[..., Any]]:
        """Start it, and give what a call awaits; let it give back what it has made, and end it.

        Raises:
            ResourceError: It ended while it started, or could not make a resource.
        """
        try:
            await self._start()
        except _Ended as error:
            msg = (
                f"stage {self._name!r}: the worker process of replica {self._number} ended while it "
                f"started (exit code {error.exit_code}); its output says why. A program that uses "
                f"worker processes must be importable: put what it runs under `if __name__ == "
                f'"__main__":`'
            )
            raise ResourceError(msg) from error
        try:
            yield self._call
        finally:
            failure = await self._finish()
            await self._stop()
        if failure is not None:
            raise failure

    def abort(self) -> None:
        """If a call runs, kill it: nobody needs its result any more."""
        if self._busy and self._worker is not None:
            self._aborted = True
            self._worker.kill()

    async def _start(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        began = self._submit(_begin, self._payload)
        started = getattr(self._pool, "_processes", None) or {}
        self._worker = next(iter(started.values()), None)
        try:
            await asyncio.wait([began])
            if (error := pickle.loads(began.result())) is not None:  # noqa: S301  # our own
                raise error  # noqa: TRY301  # made in the process
        except BrokenProcessPool:
            raise _Ended(await self._stop()) from None
        except BaseException:  # Cancelled: it is to give back what it has made so far.
            if not began.done() and self._worker is not None:
                self._worker.terminate()
                await _ended(began, at_most=_GRACE_S)
                if not began.done():
                    self._worker.kill()
            await self._stop()
            raise

    async def _finish(self) -> Exception | None:
        # Returns what was raised while the process gave back what it had made.
        if self._pool is None or self._is_dead():
            return None
        ended = self._submit(_end, b"")
        try:
            await _ended(ended)
            failure: Exception | None = pickle.loads(ended.result())  # noqa: S301  # our own
        except BrokenProcessPool:
            return None
        return failure

    def _is_dead(self) -> bool:
        return self._worker is not None and not self._worker.is_alive()

    async def _stop(self) -> int | None:
        # Returns how the process ended, where that is known.
        pool, self._pool = self._pool, None
        worker, self._worker = self._worker, None
        if pool is not None:
            stopped = asyncio.get_running_loop().run_in_executor(None, pool.shutdown)

            async def wait() -> None:
                await asyncio.wait([stopped])

            await uncut(wait)
        return None if worker is None else worker.exitcode

    async def _call(self, *args: object) -> object:
        try:
            sent = pickle.dumps(args, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            msg = f"an item cannot be sent to the worker process ({told(error)}); {_PLAIN}"
            raise TypeError(msg) from error
        code, deaths = None, 0
        while deaths < 2:
            try:
                if self._is_dead():  # While it had nothing to do, which is no fault of this call.
                    await self._stop()
                if self._pool is None:
                    await self._start()
                done = self._submit(_run, sent)
                if done.done():  # As above, and only the pool had noticed.
                    await self._stop()
                    continue
                self._busy = True
                await _ended(done)
                failed, value = pickle.loads(done.result())  # noqa: S301  # from our own process
            except BrokenProcessPool:
                code = await self._stop()
                deaths += 1
                if self._aborted:
                    break
                continue
            except _Ended as error:
                code = error.exit_code
                deaths += 1
                continue
            finally:
                self._busy = False
            if failed:
                raise value
            return value
        raise WorkerDied(self._name, self._number, code)

    def _submit(self, function: Callable[[bytes], bytes], data: bytes) -> asyncio.Future[bytes]:
        assert self._pool is not None
        loop = asyncio.get_running_loop()
        try:
            return loop.run_in_executor(self._pool, function, data)
        except BrokenProcessPool as error:  # It died while it had nothing to do.
            broken: asyncio.Future[bytes] = loop.create_future()
            broken.set_exception(error)
            broken.exception()  # Seen.
            return broken


async def _ended(done: asyncio.Future[bytes], at_most: float | None = None) -> None:
    # Cancellation: raised when it has ended, since nothing can interrupt it; see Process.abort.
    async def wait() -> None:
        await asyncio.wait([done], timeout=at_most)

    try:
        await uncut(wait)
    finally:
        done.add_done_callback(_seen)  # Also where nobody is left to hear of it.


def _seen(done: asyncio.Future[bytes]) -> None:
    if not done.cancelled():
        done.exception()


# ---- what is sent


def _payload(spec: NodeSpec, name: str, number: int, resources: Mapping[str, object]) -> bytes:
    asked = [resource for resource in spec.stage.resources if resource.name in resources]
    sent = []
    for resource in asked:
        value = resources[resource.name]
        try:
            sent.append((resource.name, pickle.dumps(value)))
        except Exception as error:
            remedy = f"make it there, with {resource.name}=alto.per_replica(make_it)"
            if isinstance(value, PerReplica):
                remedy = "define its factory at the top level of a module"
            msg = (
                f"stage {name!r} runs in worker processes, and resource {resource.name!r} cannot be "
                f"sent there ({told(error)}); {remedy}"
            )
            raise ResourceError(msg) from error
    return pickle.dumps((_reference(spec.stage.fn, name), name, number, sent))


def _reference(fn: Callable[..., Any], name: str) -> tuple[str, str]:
    # A stage stands in its module where its function would, so the function goes by name.
    assert isinstance(fn, FunctionType)
    module, where = fn.__module__, fn.__qualname__
    why = ""
    if "<locals>" in where:
        why = f"it is defined inside a function ({where})"
    elif module == "__main__" and getattr(sys.modules[module], "__file__", None) is None:
        why = "it is defined in a notebook or an interactive session"
    elif _found(module, where) is not fn:
        why = f"{module}.{where} is not it"
    if why:
        msg = (
            f"stage {name!r} runs in worker processes, and its function cannot be found there: "
            f"{why}; define it at the top level of a module"
        )
        raise ResourceError(msg)
    return module, where


def _found(module: str, where: str) -> object:
    found: object = sys.modules.get(module)
    for part in where.split("."):
        found = getattr(found, part, None)
    return getattr(found, "fn", found)


# ---- in the process


class _State:
    """What the process works with."""

    fn: Callable[..., Any]
    resources: ClassVar[dict[str, object]] = {}
    kept: ClassVar[ExitStack] = ExitStack()


def _begin(payload: bytes) -> bytes:
    """Make everything. Returns what was raised, or None, pickled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever is interrupted ends this process too.
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, name="alto-guard", daemon=True).start()
    try:
        (module, where), name, number, sent = pickle.loads(payload)  # noqa: S301  # our parent's
        __import__(module)
        found = _found(module, where)
        assert callable(found), (module, where)
        _State.fn = found
        Finalize(None, _State.kept.close, exitpriority=10)
        for resource, data in sent:
            _State.resources[resource] = _made(name, resource, number, data, _State.kept)
    except BaseException as error:  # noqa: BLE001  # raised by the parent
        return pickle.dumps(_sendable(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return pickle.dumps(None)


def _leave(number: int, _: object) -> None:
    # Nobody waits for what is being made: leave it as an error does, so that it is given back.
    sys.exit(128 + number)


def _made(name: str, resource: str, number: int, data: bytes, kept: ExitStack) -> object:
    value = pickle.loads(data)  # noqa: S301  # our parent's
    if not isinstance(value, PerReplica):
        return value
    try:
        made = value.make(number)
        if isinstance(made, AbstractContextManager):
            made = kept.enter_context(made)
        if hasattr(made, "__aenter__") or asyncio.iscoroutine(made):
            if asyncio.iscoroutine(made):
                made.close()
            msg = "a worker process has no event loop; make it with a plain function or `with`"
            raise TypeError(msg)  # noqa: TRY301  # said as any other reason
    except Exception as error:
        msg = (
            f"stage {name!r}: resource {resource!r} of replica {number} could not be made: "
            f"{told(error)}"
        )
        raise ResourceError(msg) from error
    return made


def _end(_: bytes) -> bytes:
    """Give everything back. Returns what was raised, or None, pickled."""
    try:
        _State.kept.close()
    except BaseException as error:  # noqa: BLE001  # raised by the parent
        return pickle.dumps(_sendable(error))
    return pickle.dumps(None)


def _run(sent: bytes) -> bytes:
    """Run a call. Returns whether it raised, and what it raised or returned, pickled."""
    try:
        value = _State.fn(*pickle.loads(sent), **_State.resources)  # noqa: S301  # our parent's
    except BaseException as error:  # noqa: BLE001  # raised by the parent
        return pickle.dumps((True, _sendable(error)))
    try:
        return pickle.dumps((False, value), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  # raised by the parent
        why = f"its result cannot be sent back from the worker process ({told(error)}); {_PLAIN}"
        return pickle.dumps((True, TypeError(why)))


def _sendable(error: BaseException) -> Exception:
    # Not every exception survives the way: those whose constructor takes something else do not.
    where = f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            survived = pickle.loads(pickle.dumps(error))  # noqa: S301  # made here
            if type(survived) is not type(error):
                raise TypeError(survived)
            error.add_note(f"in worker process {os.getpid()}{_traced(error)}")
            return error
    return RuntimeError(f"{where}: {message(error)}{_traced(error)}")


def _traced(error: BaseException) -> str:
    lines, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"\n  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return "".join(lines[1:])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
