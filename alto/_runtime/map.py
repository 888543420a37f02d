"""Maps: many requests, a bounded number at a time, with one result record each."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    final,
)

import anyio
import attrs

from alto._runtime.call import check_not_inside, wait
from alto._runtime.handles import HandleIterator, ReadState
from alto._runtime.request import Request, RequestUsage
from alto._wait import wait_shielded
from alto.errors import AltoError, Closed

__all__ = (
    "Failed",
    "Feeder",
    "MapApp",
    "MapHandle",
    "Progress",
    "Result",
    "Succeeded",
    "map_requests",
)


@final
class Feeder:
    """A task of an app that pulls a map's inputs. It is cancelled natively, and once.

    A cancel scope would cancel it again at each wait of its clean-up.
    """

    __slots__ = ("_cancelled", "_task")

    def __init__(self) -> None:
        self._cancelled = False
        self._task: asyncio.Task[Any] | None = None

    @property
    def cancelled(self) -> bool:
        """True if it was cancelled."""
        return self._cancelled

    async def run(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Call *function* in the current task, unless :meth:`cancel` was called before."""
        if self._cancelled:
            return
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            with anyio.CancelScope(shield=True):
                await function(*args)
        except asyncio.CancelledError:
            if not self.cancelled or task.uncancel():  # Cancelled by a loop that shuts down.
                raise
        finally:
            self._task = None

    def cancel(self) -> None:
        """Cancel the task. Only the first call has an effect."""
        if not self._cancelled:
            self._cancelled = True
            if self._task is not None:
                self._task.cancel()


_APP_CLOSED: Final = "the app was closed before all inputs of this map were taken"

In = TypeVar("In")
R = TypeVar("R")


@attrs.frozen(kw_only=True)
class Succeeded(Generic[In, R]):
    """The record of an input of ``app.map`` whose request succeeded."""

    index: int
    """Position of the input, from 0."""
    input: In
    """The input of the request."""
    id: str = attrs.field(eq=False, default="")
    """The request's id; not compared."""
    values: list[R]
    """All results of the request, in ancestry order."""
    seconds: float = attrs.field(eq=False, default=0.0)
    """Seconds from its start to its end; not compared."""
    usage: RequestUsage = attrs.field(eq=False, factory=RequestUsage)
    """Usage of its generations; not compared."""

    ok: Literal[True] = attrs.field(init=False, repr=False, default=True)
    """Always True. Pyright narrows by ``result.ok is True``, not by ``result.ok`` alone."""
    error: None = attrs.field(init=False, repr=False, default=None)
    """Always None. ``result.error is None`` narrows a :data:`alto.Result` for type checkers."""

    def unwrap(self) -> list[R]:
        """Return the results. A :class:`alto.Failed` record raises its error instead."""
        return self.values


@attrs.frozen(kw_only=True)
class Failed(Generic[In]):
    """The record of an input of ``app.map`` whose request failed or was refused."""

    index: int
    """Position of the input, from 0."""
    input: In
    """The input of the request."""
    id: str | None = attrs.field(eq=False, default=None)
    """The request's id; None if it was refused before anything was started. Not compared."""
    error: AltoError
    """The error that it failed with."""
    seconds: float = attrs.field(eq=False, default=0.0)
    """Seconds from its start to its end; not compared."""
    usage: RequestUsage = attrs.field(eq=False, factory=RequestUsage)
    """Usage of its generations; not compared."""

    ok: Literal[False] = attrs.field(init=False, repr=False, default=False)
    """Always False."""
    values: None = attrs.field(init=False, repr=False, default=None)
    """Always None."""

    def unwrap(self) -> NoReturn:
        """Raise the error of the failed request."""
        raise self.error


Result: TypeAlias = Succeeded[In, R] | Failed[In]
"""The record of one input of ``app.map``.

mypy and pyright narrow it by ``isinstance``, by ``match`` and by ``result.error is None``.
"""


@attrs.frozen(kw_only=True)
class Progress:
    """Progress of a map, in numbers of requests."""

    started: int
    """Number of inputs whose requests have been started."""
    succeeded: int
    """Number of requests that have succeeded."""
    failed: int
    """Number of requests that have failed."""


class MapApp(Protocol):
    """The app, as its maps see it."""

    @property
    def state(self) -> str:
        """``open``, ``draining`` or ``closed``."""
        ...

    @property
    def has_room(self) -> bool:
        """True if another request may start."""
        ...

    def wait_for_room(self, wake: Callable[[], None]) -> None:
        """Call *wake* when another request may start."""
        ...

    def map_begun(self, map_run: object) -> None:
        """Record that a map has inputs left or running requests."""
        ...

    def map_over(self, map_run: object) -> None:
        """Record that a map has neither, or was closed. Idempotent."""
        ...

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: object) -> Feeder:
        """Start a task that is cancelled when the app closes."""
        ...


class _MapRun:
    """The state of one map. Its requests refer to it and not to the handle, so a dropped handle is freed."""

    def __init__(
        self,
        app: MapApp,
        start: Callable[[Any], Request],
        *,
        concurrency: int,
        ordered: bool,
        report: Callable[[Progress], object] | None,
    ) -> None:
        self.app = app
        self.start = start
        # A plain iterable, pulled by the reader; an async one has a task.
        self.source: Iterator[object] | None = None
        self.concurrency = concurrency
        self.ordered = ordered
        self.report = report
        self.running: dict[int, tuple[Request, object]] = {}
        self.finished: dict[int, Result[Any, Any]] = {}
        # Finished inputs that are not taken, in the order of completion.
        self.completed: deque[int] = deque()
        self.started = self.next = self.failed = 0
        self.exhausted = False
        self.error: BaseException | None = None
        self.closed = False
        self.reading = False
        self.changed = asyncio.Event()  # Wakes the reader.
        self.wanted = asyncio.Event()  # Wakes the task that pulls.
        self.source_closed: asyncio.Event | None = None
        self.feeder: Feeder | None = None

    @property
    def has_room(self) -> bool:
        if (
            self.closed
            or len(self.running) >= self.concurrency
            or len(self.running) + len(self.finished) >= 2 * self.concurrency
        ):
            return False
        if not self.app.has_room:
            self.app.wait_for_room(self.wake)
            return False
        return True

    def wake(self) -> None:
        self.changed.set()
        self.wanted.set()
        self.check_over()

    def check_over(self) -> None:
        """Report the end of the map, if it is over."""
        if self.closed or (self.exhausted and not self.running):
            self.app.map_over(self)

    def done(self, index: int, result: Result[Any, Any]) -> None:
        self.failed += not result.ok
        self.finished[index] = result
        self.completed.append(index)
        if self.report is not None:
            ended = self.started - len(self.running)
            progress = Progress(
                started=self.started, succeeded=ended - self.failed, failed=self.failed
            )
            try:
                self.report(progress)
            except Exception as error:  # noqa: BLE001  # raised to the reader, after the results before it
                self.report, self.exhausted, self.error = None, True, error
        self.wake()

    def pop(self) -> Result[Any, Any] | None:
        if self.ordered:
            result = self.finished.pop(self.next, None)
            self.next += result is not None
            return result
        return self.finished.pop(self.completed.popleft()) if self.completed else None

    def cancel(self) -> None:
        self.closed = True
        for request, _ in list(self.running.values()):
            request.cancel()
        if self.feeder is not None:
            self.feeder.cancel()
        self.wake()
        self.close_source()

    def close_source(self) -> None:
        # Closes a plain generator; an async one is closed by the task that pulls.
        source, self.source = self.source, None
        if (close := getattr(source, "close", None)) is not None:
            close()

    def refill(self) -> None:
        """Start as many requests as may run, from a plain iterable."""
        while self.source is not None and not self.exhausted and self.has_room:
            try:
                _start_one(self, next(self.source))
            except StopIteration:
                self.exhausted = True
            except Exception as error:  # noqa: BLE001  # raised to the reader, after the results before it
                self.exhausted, self.error = True, error
                self.close_source()
        self.check_over()

    def source_failed(self, error: Exception) -> None:
        """Raise *error* to the reader or, if the map was closed, pass it to the loop's handler."""
        if self.closed:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the inputs of a map that was closed: {error!r}", "exception": error}
            )
        else:
            self.error = error

    async def wait_source_closed(self) -> None:
        """Wait until the task that pulls the inputs has ended."""
        if self.source_closed is not None:
            await self.source_closed.wait()


@final
class MapHandle(Generic[In, R]):
    """The results of many requests, one :data:`alto.Result` per input. Made by ``app.map``.

    At most *concurrency* requests run at the same time, and at most twice as many are running or
    finished and not taken. So neither a slow reader nor an endless input fills memory. An input whose
    request fails becomes a :class:`alto.Failed` record; the others continue.

    Leaving a loop over it, by ``break``, an error or a cancellation, cancels the running requests and
    closes the inputs. So do ``aclose`` and the end of ``async with app.map(xs) as results:``, which
    also wait until the requests have ended. Inside such a block a loop may be left, and another one
    may read the rest.

    Cancellation: a cancelled read, as in ``wait_for(anext(handle), 1)``, loses no result and can be
    repeated.

    A handle that is dropped before it was read to its end, left or closed emits a
    ``ResourceWarning``, and running requests are cancelled.
    """

    __slots__ = ("_reads", "_run")

    def __init__(self, map_run: object, /) -> None:
        if not isinstance(map_run, _MapRun):
            msg = "a MapHandle is made by app.map(...), never by hand"
            raise TypeError(msg)
        self._run = map_run
        self._reads = ReadState(map_run.cancel)

    def __repr__(self) -> str:
        map_run = self._run
        state = "closed" if map_run.closed else "open"
        return (
            f"<MapHandle: {state}, {map_run.started} started, {len(map_run.running)} running, "
            f"{len(map_run.finished)} unread>"
        )

    def __iter__(self) -> NoReturn:
        """Raise TypeError: results are read by ``async for``."""
        msg = "the results of app.map(...) arrive over time: read them with `async for`"
        raise TypeError(msg)

    if not TYPE_CHECKING:  # Hidden from type checkers, for which it is not awaitable.

        def __await__(self) -> NoReturn:
            """Raise TypeError: it is read, not awaited."""
            msg = (
                "the results of app.map(...) arrive over time: read them with `async for`, or write "
                "`await app.map(...).list()`"
            )
            raise TypeError(msg)

    def __aiter__(self) -> AsyncIterator[Result[In, R]]:
        """Iterate over the results, each of which is returned once. Leaving cancels what runs."""
        return HandleIterator(self, self._reads)

    async def __anext__(self) -> Result[In, R]:
        """Return the next result.

        Raises:
            Closed: The handle was closed or left, or its app was closed.
            BaseException: The iterable of inputs raised it; the results of earlier inputs come first.
            RuntimeError: Another task is reading it.
        """
        map_run, reads = self._run, self._reads
        reads.count += 1
        while True:
            if map_run.closed or reads.left:
                msg = "this map was closed; call app.map(...) again for a new one"
                if reads.left:
                    msg = (
                        "a loop over this map was left, which has cancelled its requests; to leave a loop "
                        "and continue to read, use `async with app.map(...) as results:`"
                    )
                raise Closed(msg)
            map_run.refill()
            if (result := map_run.pop()) is not None:
                map_run.refill()
                map_run.wake()
                return result
            if map_run.exhausted and not map_run.running:
                reads.finished = True
                if (error := map_run.error) is not None:
                    map_run.error = None
                    raise error
                raise StopAsyncIteration
            await self._wait_for_result()

    async def __aenter__(self) -> Self:
        """Return the handle; what runs is cancelled when the block is left."""
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

    async def list(self) -> list[Result[In, R]]:
        """Return all unread results, in the order of the handle."""
        return [result async for result in self]

    async def aclose(self) -> None:
        """Cancel what runs, wait until it has ended, and close the inputs. Idempotent.

        Raises:
            RuntimeError: Called by a stage call of one of its requests, or of their inner requests.

        Cancellation: shielded.
        """
        map_run = self._run
        requests = [request for request, _ in map_run.running.values()]
        check_not_inside(requests, "map")
        try:
            map_run.cancel()
        finally:
            for request in requests:
                await wait_shielded(request.wait_ended)
            await wait_shielded(map_run.wait_source_closed)

    def __del__(self) -> None:
        map_run, reads = getattr(self, "_run", None), getattr(self, "_reads", None)
        if map_run is None or reads is None or map_run.closed or reads.left or reads.finished:
            return
        reads.stop_soon()
        if map_run.app.state == "closed":
            return
        if map_run.running or map_run.finished or not map_run.exhausted or map_run.error:
            warnings.warn(
                "the results of app.map(...) were never read to their end, and running requests are "
                "cancelled; use `async with app.map(...) as results:`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    async def _wait_for_result(self) -> None:
        map_run = self._run
        if map_run.reading:
            msg = "another task is already reading this map; it has one reader at a time"
            raise RuntimeError(msg)
        map_run.reading = True
        map_run.changed.clear()
        try:
            await wait(map_run.changed)
        finally:
            map_run.reading = False


def map_requests(
    app: MapApp,
    source: Iterable[Any] | AsyncIterable[Any],
    start: Callable[[Any], Request],
    *,
    concurrency: int,
    order: Literal["input", "completed"],
    progress: bool | Callable[[Progress], object],
) -> MapHandle[Any, Any]:
    """Start a request for each input of *source*, as results are taken."""
    report = _print_progress if progress is True else progress or None
    map_run = _MapRun(app, start, concurrency=concurrency, ordered=order == "input", report=report)
    if isinstance(source, AsyncIterable):
        map_run.source_closed = asyncio.Event()
        map_run.feeder = app.spawn(_feed, map_run, aiter(source))
    else:
        map_run.source = iter(source)
    return MapHandle(map_run)


def _start_one(map_run: _MapRun, value: object) -> None:
    index = map_run.started
    map_run.started += 1
    if not index:
        map_run.app.map_begun(map_run)
    try:
        request = map_run.start(value)
    except Closed as error:  # The app was closed: stop pulling, since the inputs may be endless.
        map_run.started -= 1
        raise Closed(_APP_CLOSED) from error
    except AltoError as error:
        map_run.done(index, Failed(index=index, input=value, error=error))
        return
    if request.ended:
        map_run.done(index, _result(index, value, request))
        return
    map_run.running[index] = (request, value)
    request.on_end = _ResultTaker(map_run, index, value)


class _ResultTaker:
    """Callback that takes the result of a request that has ended."""

    __slots__ = ("_index", "_run", "_value")

    def __init__(self, map_run: _MapRun, index: int, value: object) -> None:
        self._run = map_run
        self._index = index
        self._value = value

    def __call__(self, request: Request) -> None:
        del self._run.running[self._index]
        self._run.done(self._index, _result(self._index, self._value, request))


def _result(index: int, value: object, request: Request) -> Result[Any, Any]:
    seconds = request.finished - request.arrived
    if request.stopping:
        return Failed(
            index=index, input=value, id=request.id, error=request.take_error(),
            seconds=seconds, usage=request.usage,
        )  # fmt: skip
    return Succeeded(
        index=index, input=value, id=request.id, values=request.take_all(),
        seconds=seconds, usage=request.usage,
    )  # fmt: skip


async def _feed(map_run: _MapRun, source: AsyncIterator[object]) -> None:
    # Runs in a task of the app, which pulls an async iterable while requests run. It is cancelled
    # once, so that nothing interrupts the clean-up of the source.
    assert map_run.source_closed is not None
    try:
        try:
            await _pull(map_run, source)
        finally:
            await _close(source)
    except asyncio.CancelledError:
        map_run.error = Closed(_APP_CLOSED)
        raise
    except Exception as error:  # noqa: BLE001  # raised to the reader, after the results before it
        map_run.source_failed(error)
    finally:
        map_run.exhausted = True
        map_run.source_closed.set()
        map_run.wake()


async def _pull(map_run: _MapRun, source: AsyncIterator[object]) -> None:
    while True:
        while not map_run.has_room:
            map_run.wanted.clear()
            await map_run.wanted.wait()
        try:
            value = await anext(source)
        except StopAsyncIteration:
            return
        _start_one(map_run, value)
        if map_run.exhausted:  # The app has closed.
            return


async def _close(source: AsyncIterator[object]) -> None:
    if (close := getattr(source, "aclose", None)) is not None:
        await close()


def _print_progress(progress: Progress) -> None:
    failed = f", {progress.failed} failed" if progress.failed else ""
    sys.stderr.write(f"\r{progress.succeeded} of {progress.started} done{failed}")
    sys.stderr.flush()
