"""Handles: objects through which a caller reads the results of a running request.

A loop over a handle may be left by ``break``, an error or a cancellation, and then the request must be
cancelled. The loop's iterator detects this. Only the ``async for`` refers to the iterator, so it is
freed at the moment at which the loop is left, even if the garbage collector is off and a traceback is
kept. The handle itself may have other references.

An iterator that outlives a cancelled read is read by hand, as in
``await wait_for(anext(iterator), 1)``. It belongs to the task that made it. While that task continues,
the read can be repeated; when the task ends or is being cancelled, the loop counts as left.

An iterator may also live on in a generator that waits at its ``yield``, inside a framework that keeps
it through the traceback of a cancelled task. So the task that made the iterator is watched too: if it
ends cancelled and no other task continues to read, the loop counts as left.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, Self, TypeVar, final

from alto._runtime.call import check_not_inside, wait
from alto._runtime.request import Request, RequestUsage
from alto._wait import wait_shielded
from alto.errors import RequestCancelled

__all__ = ("Handle", "HandleIterator", "ReadState", "StreamHandle")

R_co = TypeVar("R_co", covariant=True)

_TURNS: Final = 8
"""Turns of the event loop that a task whose read was cancelled has to read again.

The cancellation may come from a time limit, after which the task continues. That is known only when
the cancellation has propagated to the limit. It reaches a task that awaits the reading task two turns
later, and takes three more for each ``asyncio.wait_for`` of Python 3.11, which reads in a separate
task. Limits in the same task (``asyncio.timeout``, ``anyio.move_on_after``, ``wait_for`` since 3.12)
take no turn.
"""


class Handle(Protocol[R_co]):
    """A handle, as its iterators see it."""

    async def __anext__(self) -> R_co:
        """Return the next result."""
        ...

    async def aclose(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        ...


class ReadState:
    """The state of reading a handle, shared by the handle and its iterators.

    Args:
        stop: Cancels what is read, when the handle is left.
    """

    __slots__ = ("_stop", "count", "finished", "in_block", "left", "loop")

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.loop = asyncio.get_running_loop()
        self.count = 0
        """Number of reads that have begun."""
        self.in_block = False
        """True inside ``async with handle``: the end of the block closes the handle, not that of a loop."""
        self.finished = False
        """True if the handle was read to its end."""
        self.left = False
        """True if a loop over the handle was left."""

    @property
    def open(self) -> bool:
        """True if leaving a loop now would leave the handle."""
        return not (self.in_block or self.finished or self.left)

    def leave(self) -> None:
        """Leave the handle, since a loop over it was left. Idempotent."""
        if self.open:
            self.left = True
            self._stop()

    def leave_soon(self) -> None:
        """Leave the handle, from any thread and at any moment, also inside a machine's step."""
        if self.open:
            self.left = True
            self.stop_soon()

    def stop_soon(self) -> None:
        """Cancel what is read in a separate step of the loop."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: so is what is read.
            self.loop.call_soon_threadsafe(self._stop)


@final
class HandleIterator(AsyncIterator[R_co]):
    """One loop over a handle; the handle is left when the loop is left."""

    __slots__ = ("_ended", "_state", "_task")

    def __init__(self, handle: Handle[R_co], reads: ReadState) -> None:
        self._state = state = _IterationState(handle, reads)
        self._task = _current_task()
        self._ended = partial(_owner_ended, weakref.ref(state))
        if (task := self._task()) is not None:
            task.add_done_callback(self._ended)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R_co:
        state = self._state
        # A kept traceback must not keep the iterator alive, or leaving the loop would go unnoticed.
        del self
        try:
            result: R_co = await state.handle.__anext__()
        except asyncio.CancelledError:
            state.cut()
            raise
        return result

    async def aclose(self) -> None:
        """Leave the handle, and wait until its request has ended."""
        await self._state.handle.aclose()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None:
            state.reads.leave_soon()
            if (task := self._task()) is not None:
                task.remove_done_callback(self._ended)


class _IterationState:
    """The state of one loop over a handle, without a reference to its iterator."""

    __slots__ = ("__weakref__", "_cut_at", "_owner", "_watched", "handle", "reads")

    def __init__(self, handle: Handle[Any], reads: ReadState) -> None:
        self.handle = handle
        self.reads = reads
        # Weak: a task refers to its exception, that to its traceback, and that to this object.
        self._owner = _current_task()
        self._watched = _no_task
        self._cut_at = 0  # Number of the last read that was cancelled.

    def cut(self) -> None:
        """Watch whether the cancelled read is made again; if not, leave the handle."""
        if self.reads.open:
            self._cut_at = self.reads.count
            self._check_left(self._cut_at, _current_task(), _TURNS)

    def _check_left(
        self, read: int, reader: Callable[[], asyncio.Task[Any] | None], turns: int
    ) -> None:
        reads = self.reads
        if not reads.open or reads.count != read:
            return
        if turns:
            reads.loop.call_soon(self._check_left, read, reader, turns - 1)
            return
        for task in (self._owner(), reader()):
            if task is not None and not task.done() and not task.cancelling():
                self._watch(task)
                return
        reads.leave()

    def _watch(self, task: asyncio.Task[Any]) -> None:
        if self._watched() is not task:
            self._watched = weakref.ref(task)
            task.add_done_callback(partial(_task_ended, weakref.ref(self)))

    def task_ended(self) -> None:
        """Leave the handle, unless a read was made since the last cancelled one."""
        if self.reads.count == self._cut_at:
            self.reads.leave()


def _owner_ended(state: Callable[[], _IterationState | None], task: asyncio.Task[Any]) -> None:
    if task.cancelled() and (still := state()) is not None:
        still.cut()


def _task_ended(state: Callable[[], _IterationState | None], _: object) -> None:
    if (still := state()) is not None:
        still.task_ended()


def _no_task() -> asyncio.Task[Any] | None:
    return None


def _current_task() -> Callable[[], asyncio.Task[Any] | None]:
    task = asyncio.current_task()
    return _no_task if task is None else weakref.ref(task)


R = TypeVar("R")


@final
class StreamHandle(Generic[R]):
    """The results of one request, as they arrive.

    Made by ``app.stream``. An async iterator: ``async for result in app.stream(x)``. It ends when the
    request has ended and none of its calls runs. If the request fails, its results so far are
    returned first, then its error is raised.

    Leaving a loop over it, by ``break``, an error or a cancellation, cancels the request, down to the
    engine's generations. So do ``aclose`` and the end of ``async with app.stream(x) as results:``,
    which also wait until the request has ended. Inside such a block a loop may be left, and another
    one may read the rest.

    A cancelled read loses nothing and is not the end: a read with a time limit,
    ``wait_for(anext(handle), 1)``, can be repeated.

    A handle that is dropped before it was read to its end, left or closed emits a
    ``ResourceWarning``, and its request is cancelled.
    """

    __slots__ = ("__weakref__", "_closed", "_reading", "_reads", "_request")

    def __init__(self, request: object, /) -> None:
        if not isinstance(request, Request):
            msg = "a StreamHandle is made by app.stream(...), never by hand"
            raise TypeError(msg)
        self._request = request
        self._closed = False
        self._reading = False
        self._reads = ReadState(request.cancel)

    def __repr__(self) -> str:
        request = self._request
        state = "ended" if request.ended else "stopping" if request.stopping else "running"
        name = request.declaration.name
        return f"<StreamHandle of {name!r}: {state}, {request.sink.held} unread>"

    @property
    def id(self) -> str:
        """Id of the request, as in its events and errors; unique also among processes."""
        return self._request.id

    @property
    def usage(self) -> RequestUsage:
        """Usage of the request's generations so far."""
        return self._request.usage

    def __iter__(self) -> NoReturn:
        """Raise TypeError: results are read by ``async for``."""
        msg = "the results of app.stream(...) arrive over time: read them with `async for`"
        raise TypeError(msg)

    if not TYPE_CHECKING:  # Hidden from type checkers, for which it is not awaitable.

        def __await__(self) -> NoReturn:
            """Raise TypeError: it is read, not awaited."""
            msg = (
                "the results of app.stream(...) arrive over time: read them with `async for`, or write "
                "`await app.run(...)`, or `await app.stream(...).list()`"
            )
            raise TypeError(msg)

    def __aiter__(self) -> AsyncIterator[R]:
        """Iterate over the results, each of which is returned once. Leaving cancels the request."""
        return HandleIterator(self, self._reads)

    async def __anext__(self) -> R:
        """Return the next result.

        Raises:
            RequestError: The request failed; its results so far have been returned.
            RequestCancelled: The handle was closed or left, or its app was closed.
            RuntimeError: Another task is reading it.

        Cancellation: nothing is lost and the request continues; the read can be repeated.
        """
        sink, reads = self._request.sink, self._reads
        reads.count += 1
        while not (self._closed or reads.left):
            if sink.buffer:
                result: R = sink.take()
                return result
            if self._request.ended:
                raise self._end()
            await self._wait_for_result()
        raise self._cancelled()

    async def __aenter__(self) -> Self:
        """Return the handle; the request is cancelled when the block is left."""
        self._reads.in_block = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the handle."""
        await self.aclose()

    def cancel(self) -> None:
        """Cancel the request without waiting until it has ended. Idempotent."""
        self._closed = True
        self._request.cancel()
        self._request.sink.wake()

    async def aclose(self) -> None:
        """Cancel the request if it has not ended, and wait until it has. Idempotent.

        Raises:
            RuntimeError: Called by a stage call of the request, or of one of its inner requests.

        Cancellation: shielded.
        """
        check_not_inside((self._request,), "request")
        self.cancel()
        await wait_shielded(self._request.wait_ended)

    async def list(self) -> list[R]:
        """Return all unread results, in the order of the handle.

        Cancellation: the request is cancelled, as by leaving a loop.
        """
        return [result async for result in self]

    def __del__(self) -> None:
        request, reads = getattr(self, "_request", None), getattr(self, "_reads", None)
        if request is None or reads is None or self._closed or reads.left or reads.finished:
            return
        if not (request.ended or request.stopping):
            reads.stop_soon()
            became = "and the request is cancelled"
        elif request.error is not None:
            became = f"and the request had failed: {request.error}"
        elif request.sink.held:
            became = "and are lost"
        else:
            return
        name = request.declaration.name
        warnings.warn(
            f"the results of app.stream(...) of {name!r} were never read to their end, {became}; "
            f"use `async with app.stream(...) as results:`",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    def _cancelled(self) -> RequestCancelled:
        # Created in a function of its own, so that no frame of its traceback refers to the error.
        reason = "its handle was closed"
        if not self._closed:
            reason = (
                "a loop over its handle was left (inside `async with app.stream(...) as results:` a "
                "loop may be left and the rest be read)"
            )
        error = RequestCancelled(reason)
        error.request_id = self.id
        return error

    def _end(self) -> Exception:
        request = self._request
        if not self._reads.finished:
            self._reads.finished = True
            if request.stopping:
                return request.take_error()
        return StopAsyncIteration()

    async def _wait_for_result(self) -> None:
        if self._reading:
            msg = "another task is already reading this stream; it has one reader at a time"
            raise RuntimeError(msg)
        self._reading = True
        sink = self._request.sink
        try:
            await wait(sink.next_change())
        finally:
            self._reading = False
            sink.waiting = False
