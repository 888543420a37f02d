"""What a caller holds while its requests run."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Generic, Self, TypeVar, final

from alto._aio import uncut
from alto._run.call import check_outside, parking_call
from alto._run.request import Request
from alto.errors import Closed

__all__ = ("StreamHandle",)

R = TypeVar("R")


@final
class StreamHandle(Generic[R]):
    """The results of one request, as they come.

    An async iterator: ``async for result in app.stream(x)``. It ends when the request has ended,
    and nothing of the request runs any more. A failed request first gives the results it had, then
    raises. Leaving the loop early and dropping the handle cancels the request, down to the
    engine's generation; so does ``aclose``. Made by ``app.stream``.

    Cancellation: cancelling the task that reads loses no result; the request goes on until the
    handle is closed or dropped.
    """

    __slots__ = ("__weakref__", "_closed", "_finished", "_loop", "_reading", "_request")

    def __init__(self, request: object, /) -> None:
        if not isinstance(request, Request):
            msg = "a StreamHandle is made by app.stream(...), never by hand"
            raise TypeError(msg)
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._finished = False
        self._reading = False

    def __repr__(self) -> str:
        request = self._request
        state = "ended" if request.ended else "stopping" if request.stopping else "running"
        name = request.installed.declaration.name
        return f"<StreamHandle of {name!r}: {state}, {request.sink.held} unread>"

    def __aiter__(self) -> Self:
        """Itself: results are handed out once."""
        return self

    async def __anext__(self) -> R:
        """The next result.

        Raises:
            RequestError: The request failed; all results it had have been handed out.
            Closed: The handle was closed, or its app was.
        """
        sink = self._request.sink
        while not self._closed:
            if sink.buffer:
                result: R = sink.buffer.popleft()
                if sink.waiters.some:
                    sink.waiters.wake()
                return result
            if self._request.ended:
                raise self._end()
            await self._more()
        msg = "this stream was closed; call app.stream(...) again for a new one"
        raise Closed(msg)

    async def __aenter__(self) -> Self:
        """Itself; closed on leaving."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the request if it has not ended, and wait until nothing of it runs. Idempotent.

        Raises:
            RuntimeError: This is a stage call of the request, or of one inside it.

        Cancellation: shielded.
        """
        check_outside((self._request,), "request")
        self._closed = True
        self._request.cancel()
        self._request.sink.wake()
        await uncut(self._request.wait_ended)

    async def list(self) -> list[R]:
        """All results that have not been read, in the order of the handle."""
        return [result async for result in self]

    def __del__(self) -> None:
        # May run anywhere, also inside a machine's step: act in a step of its own.
        request = getattr(self, "_request", None)
        if request is not None and not request.ended and not request.stopping:
            with contextlib.suppress(RuntimeError):  # The loop is closed: so is the request.
                self._loop.call_soon_threadsafe(request.cancel)

    def _end(self) -> Exception:
        request = self._request
        if not self._finished:
            self._finished = True
            if request.error is not None:
                return request.error
            if request.stopping:
                return Closed("the request was cancelled, since its app was closed")
        return StopAsyncIteration()

    async def _more(self) -> None:
        if self._reading:
            msg = "another task already reads this stream; results go to one reader"
            raise RuntimeError(msg)
        sink = self._request.sink
        sink.reader = reader = self._loop.create_future()
        self._reading = True
        call = parking_call()
        if call is not None:
            call.park()
        try:
            await reader
        except BaseException:
            if call is not None:
                await call.unpark_cut()
            raise
        finally:
            self._reading = False
            sink.reader = None
        if call is not None:
            await call.unpark()
