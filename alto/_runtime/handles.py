"""What a caller holds while a request runs."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NoReturn, Self, TypeVar, final

from alto._runtime.call import check_outside, wait
from alto._runtime.reading import Reading, Reads
from alto._runtime.request import Request, RequestUsage
from alto._wait import uncut
from alto.errors import RequestCancelled

__all__ = ("StreamHandle",)

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
        self._reads = Reads(request.cancel)

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
        return Reading(self, self._reads)

    async def __anext__(self) -> R:
        """Give the next result.

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
            await self._more()
        raise self._cancelled()

    async def __aenter__(self) -> Self:
        """Hold it; the request is cancelled when the block is left."""
        self._reads.held = True
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
