"""What a caller holds while a request runs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Generic, NoReturn, Self, TypeVar, final

from alto._aio import uncut
from alto._run.call import check_outside, wait
from alto._run.request import Request, RequestUsage
from alto.errors import Closed

__all__ = ("StreamHandle",)

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_TURNS: Final = 8 if sys.version_info < (3, 12) else 1
"""Turns of the event loop that a reader whose read was cut has to read on. Python 3.11's
``asyncio.wait_for`` reads in a task of its own, so its caller goes on some turns later."""


@final
class StreamHandle(Generic[R]):
    """The results of one request, as they come.

    An async iterator: ``async for result in app.stream(x)``. It ends when the request has ended,
    and nothing of the request runs any more. A failed request first gives the results it had, then
    raises. Made by ``app.stream``.

    Leaving is leaving: when the loop over it is left, by ``break``, an error, or a cancelled task,
    the request is cancelled, down to the engine's generation; so it is by ``aclose``, and by the end
    of ``async with app.stream(x) as results:``, which also waits until nothing of it runs.

    A read that was cut is not the end: a read with a time limit, ``wait_for(anext(handle), 1)``, may
    be made again and loses nothing. In a loop over the handle it must be made again at once.

    A handle that is dropped before it was read to its end, left or closed warns with
    ``ResourceWarning``, and its request is cancelled.
    """

    __slots__ = ("__weakref__", "_closed", "_entered", "_finished", "_left", "_loop", "_reading",
                 "_reads", "_request")  # fmt: skip

    def __init__(self, request: object, /) -> None:
        if not isinstance(request, Request):
            msg = "a StreamHandle is made by app.stream(...), never by hand"
            raise TypeError(msg)
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._entered = False  # By `async with`, whose end closes it.
        self._left = False
        self._finished = False
        self._reading = False
        self._reads = 0

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

    def __aiter__(self) -> AsyncIterator[R]:
        """Read the results, each of which is handed out once; leaving cancels the request."""
        return _Reading(self)

    async def __anext__(self) -> R:
        """Give the next result.

        Raises:
            RequestError: The request failed; all results it had have been handed out.
            Closed: The handle was closed, or its app was.
            RuntimeError: Another task reads it at this moment.

        Cancellation: nothing is lost, and the request goes on: the read can be made again.
        """
        sink = self._request.sink
        self._reads += 1
        while not self._closed:
            if sink.buffer:
                result: R = sink.take()
                return result
            if self._request.ended:
                raise self._end()
            await self._more()
        msg = "this stream was closed; call app.stream(...) again for a new one"
        raise Closed(msg)

    async def __aenter__(self) -> Self:
        """Hold it; the request is cancelled when the block is left."""
        self._entered = True
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
        check_outside((self._request,), "request")
        self.cancel()
        await uncut(self._request.wait_ended)

    async def list(self) -> list[R]:
        """Give all results that have not been read, in the order of the handle.

        Cancellation: as leaving a loop over it.
        """
        return [result async for result in self]

    def leave(self, *, later: bool = False) -> None:
        """Cancel the request, since a loop over the handle was left; *later* unless it is read on."""
        if self._entered or self._request.ended or self._request.stopping:
            return
        if later:
            self._loop.call_soon(self._look, self._reads, _TURNS)
        else:
            self._left = True
            self._request.cancel()

    def _look(self, reads: int, turns: int) -> None:
        # Cancel unless a read was begun since. Runs on, turn by turn, while there is time for that.
        if self._reads != reads or self._entered:
            return
        if turns:
            self._loop.call_soon(self._look, reads, turns - 1)
        else:
            self.leave()

    def __del__(self) -> None:
        # May run anywhere, also inside a machine's step: act in a step of its own.
        request = getattr(self, "_request", None)
        if request is None or request.ended or request.stopping:
            return
        with contextlib.suppress(RuntimeError):  # The loop is closed: so is the request.
            self._loop.call_soon_threadsafe(request.cancel)
        if not self._left:
            warnings.warn(
                f"the results of app.stream(...) of {request.declaration.name!r} were never read to "
                f"their end, and the request is cancelled; use `async with app.stream(...) as results:`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def dropped(self) -> None:
        """Note that a loop over the handle is no more: dropping the handle too is leaving it."""
        self._left = True

    def _end(self) -> Exception:
        request = self._request
        if not self._finished:
            self._finished = True
            if request.stopping:
                return request.take_error()
        return StopAsyncIteration()

    async def _more(self) -> None:
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


@final
class _Reading(AsyncIterator[R_co]):
    """One loop over a handle, which leaves the handle when a read of it is cut."""

    __slots__ = ("_handle",)

    def __init__(self, handle: StreamHandle[R_co]) -> None:
        self._handle = handle

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R_co:
        handle = self._handle
        try:
            return await handle.__anext__()
        except asyncio.CancelledError:
            handle.leave(later=True)
            raise

    async def aclose(self) -> None:
        """Leave the handle, and wait until nothing of its request runs."""
        await self._handle.aclose()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.dropped()
