"""Handles: what a caller holds while a request runs.

An ``async for`` holds its iterator, and nothing else does: the iterator of a loop that was left, however
it was, is dropped in that moment, with the garbage collector off and the traceback kept. So the
iterator, not the handle, says that the handle was left.

An iterator that lives on after a read of it was cut is one that a program reads by hand, as in
``await wait_for(anext(iterator), 1)``. It belongs to the task that made it: while that task goes on,
the read can be made again; when the task ends, or is being cancelled, the handle was left.

An iterator may also live on in a generator that waits at its ``yield``, below a framework that keeps it
with the traceback of a cancelled task. So the task that made the iterator is watched: where it ends
cancelled, and no other task reads on, the handle was left too.
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
"""Turns of the event loop in which a task that is being cancelled may read on.

Whether that is a time limit of its own, which ends well, shows only when the cancellation has come up
to it: a task that waits for the one which reads hears of it two turns later, and for each
``asyncio.wait_for`` of Python 3.11, which reads in a task of its own, three turns later. Limits in the
same task (``asyncio.timeout``, ``anyio.move_on_after``, ``wait_for`` since 3.12) take no turn.
"""


class Handle(Protocol[R_co]):
    """What is read."""

    async def __anext__(self) -> R_co:
        """Return the next result."""
        ...

    async def aclose(self) -> None:
        """Stop, and wait until it has."""
        ...


class ReadState:
    """How a handle is read, and whether it was left.

    Args:
        stop: Stops what is read, when the handle was left.
    """

    __slots__ = ("_stop", "count", "finished", "in_block", "left", "loop")

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.loop = asyncio.get_running_loop()
        self.count = 0
        """Reads that have begun."""
        self.in_block = False
        """True if ``async with`` holds the handle: its end closes it, and no loop over it does."""
        self.finished = False
        """True if it was read to its end."""
        self.left = False
        """True if a loop over it was left."""

    @property
    def open(self) -> bool:
        """Return whether it would be left now."""
        return not (self.in_block or self.finished or self.left)

    def leave(self) -> None:
        """Stop, since a loop over the handle was left. Idempotent."""
        if self.open:
            self.left = True
            self._stop()

    def leave_soon(self) -> None:
        """Do the same, from anywhere: also another thread, or inside a machine's step."""
        if self.open:
            self.left = True
            self.stop_soon()

    def stop_soon(self) -> None:
        """Stop in a step of the loop's own."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: so is what is read.
            self.loop.call_soon_threadsafe(self._stop)


@final
class HandleIterator(AsyncIterator[R_co]):
    """One loop over a handle, which leaves the handle when it is left itself."""

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
        # A traceback that is kept must not keep the iterator of a loop that was left.
        del self
        try:
            result: R_co = await state.handle.__anext__()
        except asyncio.CancelledError:
            state.cut()
            raise
        return result

    async def aclose(self) -> None:
        """Leave the handle, and wait until nothing of its request runs."""
        await self._state.handle.aclose()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None:
            state.reads.leave_soon()
            if (task := self._task()) is not None:
                task.remove_done_callback(self._ended)


class _IterationState:
    """A loop over a handle, without the loop's hold on it."""

    __slots__ = ("__weakref__", "_cut_at", "_owner", "_watched", "handle", "reads")

    def __init__(self, handle: Handle[Any], reads: ReadState) -> None:
        self.handle = handle
        self.reads = reads
        # Weak: a task has its exception, which has the traceback, which has this.
        self._owner = _current_task()
        self._watched = _no_task
        self._cut_at = 0  # The read that was cut last.

    def cut(self) -> None:
        """See whether the read that was cut is made again."""
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
        """Leave the handle, unless a read was made since the last one that was cut."""
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
    """The results of one request, as they come.

    An async iterator: ``async for result in app.stream(x)``. It ends when the request has ended,
    and nothing of the request runs any more. A failed request first gives the results it had, then
    raises. Made by ``app.stream``.

    Leaving is leaving: when a loop over it is left, by ``break``, an error, or a cancelled task, the
    request is cancelled, down to the engine's generation; so it is by ``aclose``, and by the end of
    ``async with app.stream(x) as results:``, which also waits until nothing of it runs. Inside such a
    block a loop may be left and the rest be read by another.

    A read that was cut is not the end: a read with a time limit, ``wait_for(anext(handle), 1)``, may
    be made again and loses nothing.

    A handle that is dropped before it was read to its end, left or closed warns with
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
        """The request's id: as in its events and errors, unique, also among processes."""
        return self._request.id

    @property
    def usage(self) -> RequestUsage:
        """What the request's generations have cost so far."""
        return self._request.usage

    def __iter__(self) -> NoReturn:
        """Refused: results are read by ``async for``."""
        msg = "the results of app.stream(...) come over time: read them with `async for`"
        raise TypeError(msg)

    if not TYPE_CHECKING:  # For type checkers it cannot be awaited at all.

        def __await__(self) -> NoReturn:
            """Refuse: it is read, not awaited."""
            msg = (
                "the results of app.stream(...) come over time: read them with `async for`, or write "
                "`await app.run(...)`, or `await app.stream(...).list()`"
            )
            raise TypeError(msg)

    def __aiter__(self) -> AsyncIterator[R]:
        """Read the results, each of which is handed out once; leaving cancels the request."""
        return HandleIterator(self, self._reads)

    async def __anext__(self) -> R:
        """Return the next result.

        Raises:
            RequestError: The request failed; all results it had have been handed out.
            RequestCancelled: The handle was closed or left, or its app was closed.
            RuntimeError: Another task reads it at this moment.

        Cancellation: nothing is lost, and the request goes on: the read can be made again.
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
        """Hold it; the request is cancelled when the block is left."""
        self._reads.in_block = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.aclose()

    def cancel(self) -> None:
        """Cancel the request, and do not wait until it has ended. Idempotent."""
        self._closed = True
        self._request.cancel()
        self._request.sink.wake()

    async def aclose(self) -> None:
        """Cancel the request if it has not ended, and wait until nothing of it runs. Idempotent.

        Raises:
            RuntimeError: This is a stage call of the request, or of one inside it.

        Cancellation: shielded.
        """
        check_not_inside((self._request,), "request")
        self.cancel()
        await wait_shielded(self._request.wait_ended)

    async def list(self) -> list[R]:
        """Return all results that have not been read, in the order of the handle.

        Cancellation: as leaving a loop over it.
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
        # Made here, so that no frame of its traceback refers to it.
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
            msg = "another task already reads this stream; results go to one reader"
            raise RuntimeError(msg)
        self._reading = True
        sink = self._request.sink
        try:
            await wait(sink.next_change())
        finally:
            self._reading = False
            sink.waiting = False
