"""Run many requests, a bounded number at a time, with one result record each."""

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

from alto._runtime.call import check_outside, wait
from alto._runtime.handles import Reading, Reads
from alto._runtime.request import Request, RequestUsage
from alto._wait import uncut
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
    """A task of an app that can be cancelled once, natively.

    A cancel scope would cancel it again at each wait of what it does to clean up.
    """

    __slots__ = ("_asked", "_task")

    def __init__(self) -> None:
        self._asked = False  # To end.
        self._task: asyncio.Task[Any] | None = None

    @property
    def asked(self) -> bool:
        """Whether it was asked to end."""
        return self._asked

    async def run(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Call *function*, unless it was cancelled before."""
        if self._asked:
            return
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            with anyio.CancelScope(shield=True):
                await function(*args)
        except asyncio.CancelledError:
            if not self.asked or task.uncancel():  # By the loop, which is going down.
                raise
        finally:
            self._task = None

    def cancel(self) -> None:
        """Cancel it, once."""
        if not self._asked:
            self._asked = True
            if self._task is not None:
                self._task.cancel()


_APP_CLOSED: Final = "the app was closed before all inputs of this map were taken"

In = TypeVar("In")
R = TypeVar("R")


@attrs.frozen(kw_only=True)
class Succeeded(Generic[In, R]):
    """One input of ``app.map`` whose request gave all its results."""

    index: int
    """Position of the input, from 0."""
    input: In
    """The input itself."""
    id: str = attrs.field(eq=False, default="")
    """The request's id; not compared."""
    values: list[R]
    """All results of the request, in ancestry order."""
    seconds: float = attrs.field(eq=False, default=0.0)
    """From its start to its end; not compared."""
    usage: RequestUsage = attrs.field(eq=False, factory=RequestUsage)
    """What its generations have cost; not compared."""

    ok: Literal[True] = attrs.field(init=False, repr=False, default=True)
    """True: it did not fail. Pyright narrows by ``result.ok is True``, not by ``result.ok`` alone."""
    error: None = attrs.field(init=False, repr=False, default=None)
    """None: it did not fail. ``result.error is None`` narrows a :data:`Result` for type checkers."""

    def unwrap(self) -> list[R]:
        """Return the results; of a request that failed, the error is raised."""
        return self.values


@attrs.frozen(kw_only=True)
class Failed(Generic[In]):
    """One input of ``app.map`` whose request failed, or was refused."""

    index: int
    """Position of the input, from 0."""
    input: In
    """The input itself."""
    id: str | None = attrs.field(eq=False, default=None)
    """The request's id; None: it was refused, and nothing was started. Not compared."""
    error: AltoError
    """Why it failed."""
    seconds: float = attrs.field(eq=False, default=0.0)
    """From its start to its end; not compared."""
    usage: RequestUsage = attrs.field(eq=False, factory=RequestUsage)
    """What its generations have cost; not compared."""

    ok: Literal[False] = attrs.field(init=False, repr=False, default=False)
    """False: it failed."""
    values: None = attrs.field(init=False, repr=False, default=None)
    """None: it has no results."""

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error


Result: TypeAlias = Succeeded[In, R] | Failed[In]
"""What became of one input of ``app.map``: both type checkers tell the two apart by ``isinstance``, by
``match``, and by ``result.error is None``."""


@attrs.frozen(kw_only=True)
class Progress:
    """How far a map is."""

    started: int
    """Inputs whose requests have been started."""
    succeeded: int
    """Requests that have ended well."""
    failed: int
    """Requests that have failed."""


class MapApp(Protocol):
    """The app, as its maps see it."""

    @property
    def state(self) -> str:
        """``open``, ``draining`` or ``closed``."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another request may start."""
        ...

    def wait_for_room(self, wake: Callable[[], None]) -> None:
        """Call *wake* when another request may start."""
        ...

    def map_begun(self, feeding: object) -> None:
        """Note that a map has inputs left, or requests that run."""
        ...

    def map_over(self, feeding: object) -> None:
        """Note that it has neither any more, or was closed. Idempotent."""
        ...

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: object) -> Feeder:
        """Start a task that is cancelled when the app closes."""
        ...


class _Feeding:
    """The state that requests and their handle share, so that a dropped handle is noticed."""

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
        self.source: Iterator[object] | None = None  # What is pulled by the reader, not by a task.
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
        self.reading = False
        self.changed = asyncio.Event()  # For the reader.
        self.wanted = asyncio.Event()  # For the task that pulls.
        self.fed: asyncio.Event | None = None
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
        self.look()

    def look(self) -> None:
        """See whether it is over."""
        if self.closed or (self.exhausted and not self.running):
            self.app.map_over(self)

    def done(self, index: int, result: Result[Any, Any]) -> None:
        self.failed += not result.ok
        self.finished[index] = result
        self.line.append(index)
        if self.report is not None:
            ended = self.started - len(self.running)
            progress = Progress(
                started=self.started, succeeded=ended - self.failed, failed=self.failed
            )
            try:
                self.report(progress)
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
        if self.feeder is not None:
            self.feeder.cancel()
        self.wake()
        self.close_source()

    def close_source(self) -> None:
        # Of a plain generator: an async one is closed by the task that pulls.
        source, self.source = self.source, None
        if (close := getattr(source, "close", None)) is not None:
            close()

    def refill(self) -> None:
        """Start what may run, of a plain iterable."""
        while self.source is not None and not self.exhausted and self.has_room:
            try:
                _start_one(self, next(self.source))
            except StopIteration:
                self.exhausted = True
            except Exception as error:  # noqa: BLE001  # raised to the reader, in its place
                self.exhausted, self.error = True, error
                self.close_source()
        self.look()

    def source_failed(self, error: Exception) -> None:
        """Raise *error* to the reader; where the map was left, to the loop's handler."""
        if self.closed:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the inputs of a map that was left: {error!r}", "exception": error}
            )
        else:
            self.error = error

    async def wait_fed(self) -> None:
        """Wait until nothing is pulled from the inputs any more."""
        if self.fed is not None:
            await self.fed.wait()


@final
class MapHandle(Generic[In, R]):
    """Results of many requests, one :data:`alto.Result` per input. Made by ``app.map``.

    At most *concurrency* requests run at once, and at most twice as many are running or done and
    not taken, so neither a slow reader nor an endless input fills memory. A failed input becomes
    a :class:`alto.Failed` record; the others go on.

    Leaving is leaving: when a loop over it is left, by ``break``, an error, or a cancelled task, what
    still runs is cancelled and the inputs are closed; so it is by ``aclose``, and by the end of
    ``async with app.map(xs) as results:``, which also waits until nothing runs. Inside such a block a
    loop may be left and the rest be read by another.

    Cancellation: a read that was cut, ``wait_for(anext(handle), 1)``, loses no result, and can be made
    again.

    A handle that is dropped before it was read to its end, left or closed warns with
    ``ResourceWarning``; what still runs is cancelled.
    """

    __slots__ = ("_feeding", "_reads")

    def __init__(self, feeding: object, /) -> None:
        if not isinstance(feeding, _Feeding):
            msg = "a MapHandle is made by app.map(...), never by hand"
            raise TypeError(msg)
        self._feeding = feeding
        self._reads = Reads(feeding.cancel)

    def __repr__(self) -> str:
        feeding = self._feeding
        state = "closed" if feeding.closed else "open"
        return (
            f"<MapHandle: {state}, {feeding.started} started, {len(feeding.running)} running, "
            f"{len(feeding.finished)} unread>"
        )

    def __iter__(self) -> NoReturn:
        """Refused: results are read by ``async for``."""
        msg = "the results of app.map(...) come over time: read them with `async for`"
        raise TypeError(msg)

    if not TYPE_CHECKING:  # For type checkers it cannot be awaited at all.

        def __await__(self) -> NoReturn:
            """Refuse: it is read, not awaited."""
            msg = (
                "the results of app.map(...) come over time: read them with `async for`, or write "
                "`await app.map(...).list()`"
            )
            raise TypeError(msg)

    def __aiter__(self) -> AsyncIterator[Result[In, R]]:
        """Read the results, each of which is handed out once; leaving cancels what runs."""
        return Reading(self, self._reads)

    async def __anext__(self) -> Result[In, R]:
        """Give the next result.

        Raises:
            Closed: The handle was closed or left, or its app was closed.
            BaseException: What the iterable of inputs raised, after the results of those before.
            RuntimeError: Another task reads it at this moment.
        """
        feeding, reads = self._feeding, self._reads
        reads.count += 1
        while True:
            if feeding.closed or reads.left:
                msg = "this map was closed; call app.map(...) again for a new one"
                if reads.left:
                    msg = (
                        "a loop over this map was left, and so what ran was cancelled; to leave a loop "
                        "and read on, use `async with app.map(...) as results:`"
                    )
                raise Closed(msg)
            feeding.refill()
            if (result := feeding.pop()) is not None:
                feeding.refill()
                feeding.wake()
                return result
            if feeding.exhausted and not feeding.running:
                reads.finished = True
                if (error := feeding.error) is not None:
                    feeding.error = None
                    raise error
                raise StopAsyncIteration
            await self._more()

    async def __aenter__(self) -> Self:
        """Hold it; what runs is cancelled when the block is left."""
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

    async def list(self) -> list[Result[In, R]]:
        """Give all results that have not been read, in the order of the handle."""
        return [result async for result in self]

    async def aclose(self) -> None:
        """Cancel what runs, wait until it has ended, and close the inputs. Idempotent.

        Raises:
            RuntimeError: This is a stage call of one of its requests, or of one inside them.

        Cancellation: shielded.
        """
        feeding = self._feeding
        requests = [request for request, _ in feeding.running.values()]
        check_outside(requests, "map")
        try:
            feeding.cancel()
        finally:
            for request in requests:
                await uncut(request.wait_ended)
            await uncut(feeding.wait_fed)

    def __del__(self) -> None:
        feeding, reads = getattr(self, "_feeding", None), getattr(self, "_reads", None)
        if feeding is None or reads is None or feeding.closed or reads.left or reads.finished:
            return
        reads.stop_soon()
        if feeding.app.state == "closed":
            return
        if feeding.running or feeding.finished or not feeding.exhausted or feeding.error:
            warnings.warn(
                "the results of app.map(...) were never read to their end, and what still ran is "
                "cancelled; use `async with app.map(...) as results:`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    async def _more(self) -> None:
        feeding = self._feeding
        if feeding.reading:
            msg = "another task already reads this map; results go to one reader"
            raise RuntimeError(msg)
        feeding.reading = True
        feeding.changed.clear()
        try:
            await wait(feeding.changed)
        finally:
            feeding.reading = False


def map_requests(
    app: MapApp,
    source: Iterable[Any] | AsyncIterable[Any],
    start: Callable[[Any], Request],
    *,
    concurrency: int,
    order: Literal["input", "completed"],
    progress: bool | Callable[[Progress], object],
) -> MapHandle[Any, Any]:
    """Start a request per input of *source*, as results are taken."""
    report = _print_progress if progress is True else progress or None
    feeding = _Feeding(app, start, concurrency=concurrency, ordered=order == "input", report=report)
    if isinstance(source, AsyncIterable):
        feeding.fed = asyncio.Event()
        feeding.feeder = app.spawn(_feed, feeding, aiter(source))
    else:
        feeding.source = iter(source)
    return MapHandle(feeding)


def _start_one(feeding: _Feeding, value: object) -> None:
    index = feeding.started
    feeding.started += 1
    if not index:
        feeding.app.map_begun(feeding)
    try:
        request = feeding.start(value)
    except Closed as error:  # The app: nothing more can be started, and the inputs may be endless.
        feeding.started -= 1
        raise Closed(_APP_CLOSED) from error
    except AltoError as error:
        feeding.done(index, Failed(index=index, input=value, error=error))
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


async def _feed(feeding: _Feeding, source: AsyncIterator[object]) -> None:
    # A task of the app: an async iterable of inputs is pulled beside the requests. It is cancelled
    # once, so that the source can clean up undisturbed.
    assert feeding.fed is not None
    try:
        try:
            await _pull(feeding, source)
        finally:
            await _close(source)
    except asyncio.CancelledError:
        feeding.error = Closed(_APP_CLOSED)
        raise
    except Exception as error:  # noqa: BLE001  # raised to the reader, in its place
        feeding.source_failed(error)
    finally:
        feeding.exhausted = True
        feeding.fed.set()
        feeding.wake()


async def _pull(feeding: _Feeding, source: AsyncIterator[object]) -> None:
    while True:
        while not feeding.has_room:
            feeding.wanted.clear()
            await feeding.wanted.wait()
        try:
            value = await anext(source)
        except StopAsyncIteration:
            return
        _start_one(feeding, value)
        if feeding.exhausted:  # The app has closed.
            return


async def _close(source: AsyncIterator[object]) -> None:
    if (close := getattr(source, "aclose", None)) is not None:
        await close()


def _print_progress(progress: Progress) -> None:
    failed = f", {progress.failed} failed" if progress.failed else ""
    sys.stderr.write(f"\r{progress.succeeded} of {progress.started} done{failed}")
    sys.stderr.flush()
