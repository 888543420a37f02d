"""Many requests, a bounded number at a time, one result record each."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, final

import anyio
import attrs

from alto._aio import uncut
from alto._run.call import check_outside, parking_call
from alto._run.request import Request
from alto.errors import AltoError, Closed

if TYPE_CHECKING:
    from alto._run.app import App

__all__ = ("MapHandle", "Progress", "Result", "map_requests")

In = TypeVar("In")
R = TypeVar("R")


@attrs.frozen(kw_only=True)
class Result(Generic[In, R]):
    """What became of one input of ``app.map``."""

    index: int
    """Position of the input, from 0."""
    input: In
    """The input itself."""
    values: list[R] | None = None
    """All results of the request, in ancestry order; None where it failed."""
    error: AltoError | None = None
    """Why it failed; None where it did not."""

    def unwrap(self) -> list[R]:
        """The results; raises the error of a request that failed."""
        if self.error is not None:
            raise self.error
        assert self.values is not None
        return self.values


@attrs.frozen(kw_only=True)
class Progress:
    """How far a map is."""

    started: int
    """Inputs whose requests have been started."""
    succeeded: int
    """Requests that have ended well."""
    failed: int
    """Requests that have failed."""


class _Feeding:
    """The state that requests and their handle share, so that a dropped handle is noticed."""

    def __init__(
        self,
        start: Callable[[Any], Request],
        *,
        concurrency: int,
        ordered: bool,
        report: Callable[[Progress], object] | None,
    ) -> None:
        self.start = start
        self.concurrency = concurrency
        self.ordered = ordered
        self.report = report
        self.running: dict[int, tuple[Request, object]] = {}
        self.finished: dict[int, Result[Any, Any]] = {}
        self.line: deque[int] = deque()  # Finished inputs in order of completion.
        self.started = self.next = self.failed = 0
        self.exhausted = False
        self.error: BaseException | None = None
        self.closed = False
        self.reader: asyncio.Future[None] | None = None
        self.feeder: asyncio.Future[None] | None = None
        self.fed: asyncio.Future[None] | None = None
        self.scope: anyio.CancelScope | None = None

    @property
    def has_room(self) -> bool:
        return (
            not self.closed
            and len(self.running) < self.concurrency
            and len(self.running) + len(self.finished) < 2 * self.concurrency
        )

    def wake(self) -> None:
        for future in (self.reader, self.feeder):
            if future is not None and not future.done():
                future.set_result(None)

    def done(self, index: int, result: Result[Any, Any]) -> None:
        self.failed += result.error is not None
        self.finished[index] = result
        self.line.append(index)
        if self.report is not None:
            ended = self.started - len(self.running)
            told = Progress(started=self.started, succeeded=ended - self.failed, failed=self.failed)
            try:
                self.report(told)
            except Exception as error:  # noqa: BLE001  # raised to the reader, in its place
                self.report, self.exhausted, self.error = None, True, error
        self.wake()

    def pop(self) -> Result[Any, Any] | None:
        if self.ordered:
            result = self.finished.pop(self.next, None)
            self.next += result is not None
            return result
        return self.finished.pop(self.line.popleft()) if self.line else None

    def cancel(self) -> None:
        self.closed = True
        for request, _ in list(self.running.values()):
            request.cancel()
        if self.scope is not None:
            self.scope.cancel()
        self.wake()

    async def wait_fed(self) -> None:
        """Wait until nothing is pulled from the inputs any more."""
        if self.fed is not None:
            await asyncio.shield(self.fed)


@final
class MapHandle(Generic[In, R]):
    """Results of many requests, one :class:`Result` per input. Made by ``app.map``.

    At most *concurrency* requests run at once, and at most twice as many are running or done and
    not taken, so neither a slow reader nor an endless input fills memory. A failed input becomes
    a result with an ``error``; the others go on. Leaving the loop early and dropping the handle
    cancels what still runs.

    Cancellation: cancelling the task that reads loses no result.
    """

    __slots__ = ("_feeding", "_loop", "_source")

    def __init__(self, feeding: object, source: Iterator[object] | None, /) -> None:
        if not isinstance(feeding, _Feeding):
            msg = "a MapHandle is made by app.map(...), never by hand"
            raise TypeError(msg)
        self._feeding = feeding
        self._loop = asyncio.get_running_loop()
        self._source = source

    def __aiter__(self) -> Self:
        """Itself: results are handed out once."""
        return self

    async def __anext__(self) -> Result[In, R]:
        """The next result.

        Raises:
            Closed: The handle or its app was closed.
            BaseException: What the iterable of inputs raised, after the results of those before.
        """
        feeding = self._feeding
        while True:
            if feeding.closed:
                msg = "this map was closed; call app.map(...) again for a new one"
                raise Closed(msg)
            self._refill()
            if (result := feeding.pop()) is not None:
                self._refill()
                feeding.wake()
                return result
            if feeding.exhausted and not feeding.running:
                if (error := feeding.error) is not None:
                    feeding.error = None
                    raise error
                raise StopAsyncIteration
            await self._more()

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
        """Cancel what runs, and wait until it has ended. Idempotent.

        Raises:
            RuntimeError: This is a stage call of one of its requests, or of one inside them.

        Cancellation: shielded.
        """
        feeding = self._feeding
        requests = [request for request, _ in feeding.running.values()]
        check_outside(requests, "map")
        feeding.cancel()
        for request in requests:
            await uncut(request.wait_ended)
        await uncut(feeding.wait_fed)

    def __del__(self) -> None:
        feeding = getattr(self, "_feeding", None)
        if feeding is not None and (feeding.running or not feeding.exhausted):
            with contextlib.suppress(RuntimeError):  # The loop is closed: so are the requests.
                self._loop.call_soon_threadsafe(feeding.cancel)

    def _refill(self) -> None:
        feeding, source = self._feeding, self._source
        while source is not None and feeding.has_room and not feeding.exhausted:
            try:
                value = next(source)
            except StopIteration:
                feeding.exhausted = True
            except Exception as error:  # noqa: BLE001  # raised to the reader, in its place
                feeding.exhausted, feeding.error = True, error
            else:
                _start_one(feeding, value)

    async def _more(self) -> None:
        feeding = self._feeding
        if feeding.reader is not None:
            msg = "another task already reads this map; results go to one reader"
            raise RuntimeError(msg)
        feeding.reader = reader = self._loop.create_future()
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
            feeding.reader = None
        if call is not None:
            await call.unpark()


def map_requests(
    app: App,
    source: Iterable[Any] | AsyncIterable[Any],
    start: Callable[[Any], Request],
    *,
    concurrency: int,
    order: Literal["input", "completed"],
    progress: bool | Callable[[Progress], object],
) -> MapHandle[Any, Any]:
    """Start a request per input of *source*, as results are taken."""
    report = _print_progress if progress is True else progress or None
    feeding = _Feeding(start, concurrency=concurrency, ordered=order == "input", report=report)
    if isinstance(source, AsyncIterable):
        feeding.fed = asyncio.get_running_loop().create_future()
        app.spawn(_feed, feeding, aiter(source))
        return MapHandle(feeding, None)
    return MapHandle(feeding, iter(source))


def _start_one(feeding: _Feeding, value: object) -> None:
    index = feeding.started
    feeding.started += 1
    try:
        request = feeding.start(value)
    except AltoError as error:
        feeding.done(index, Result(index=index, input=value, error=error))
        return
    if request.ended:
        feeding.done(index, _result(index, value, request))
        return
    feeding.running[index] = (request, value)
    request.on_end = _Ended(feeding, index, value)


class _Ended:
    """Takes the result of a request that has ended."""

    __slots__ = ("_feeding", "_index", "_value")

    def __init__(self, feeding: _Feeding, index: int, value: object) -> None:
        self._feeding = feeding
        self._index = index
        self._value = value

    def __call__(self, request: Request) -> None:
        del self._feeding.running[self._index]
        self._feeding.done(self._index, _result(self._index, self._value, request))


def _result(index: int, value: object, request: Request) -> Result[Any, Any]:
    try:
        return Result(index=index, input=value, values=request.taken())
    except AltoError as error:
        return Result(index=index, input=value, error=error)


async def _feed(feeding: _Feeding, source: AsyncIterator[object]) -> None:
    # A task of the app: an async iterable of inputs is pulled beside the requests.
    assert feeding.fed is not None
    try:
        with anyio.CancelScope() as feeding.scope:
            if feeding.closed:
                feeding.scope.cancel()
            await _pull(feeding, source)
    except asyncio.CancelledError:
        feeding.error = Closed("the app was closed before all inputs of this map were taken")
        raise
    except Exception as error:  # noqa: BLE001  # raised to the reader, in its place
        feeding.error = error
    finally:
        feeding.exhausted = True
        with anyio.CancelScope(shield=True):
            if (close := getattr(source, "aclose", None)) is not None:
                await close()
        feeding.fed.set_result(None)
        feeding.wake()


async def _pull(feeding: _Feeding, source: AsyncIterator[object]) -> None:
    while True:
        while not feeding.has_room:
            feeding.feeder = asyncio.get_running_loop().create_future()
            await feeding.feeder
        try:
            value = await anext(source)
        except StopAsyncIteration:
            return
        _start_one(feeding, value)


def _print_progress(progress: Progress) -> None:
    failed = f", {progress.failed} failed" if progress.failed else ""
    sys.stderr.write(f"\r{progress.succeeded} of {progress.started} done{failed}")
    sys.stderr.flush()
