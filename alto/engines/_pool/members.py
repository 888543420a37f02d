"""The engines of a pool: how they are started, watched, replaced and stopped.

An engine that dies is taken out of the scheduler's books at once. Whoever notices first tells: a
generation on it, or the engine itself where it can (:meth:`alto.protocols.Member.wait_died`). It is stopped, so
that nothing of it is left, and started again; where that fails, again after a pause that doubles.
Nothing is asked at intervals: a pool that has nothing to do has no timer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, TypeAlias, final

import anyio
import anyio.abc
import attrs

from alto.errors import EngineDied, EngineError, PromptTooLong
from alto.model import EngineCapacity, EngineStatistics
from alto.protocols import Engine, Member
from alto.sched import EngineLoad, Scheduler

__all__ = ("EngineState", "Members", "PoolEngine", "PoolProgress", "Seat")

EngineState: TypeAlias = Literal["stopped", "starting", "running", "dead", "failed"]

UNLIMITED = EngineCapacity(max_num_seqs=1 << 20, max_num_batched_tokens=1 << 30)
"""Of an engine that does not say what it can do."""


@attrs.frozen(kw_only=True)
class PoolEngine:
    """One engine of a pool at this moment."""

    name: str
    """Unique in its pool."""
    state: EngineState
    """``failed`` is an engine that died and could not be started again."""
    statistics: EngineStatistics
    """What it is doing."""


@attrs.frozen(kw_only=True)
class PoolProgress:
    """A change in the life of one engine of a pool."""

    engine: str
    """Its name."""
    state: EngineState
    """What it is now."""
    seconds: float
    """Since it was last asked to start."""
    running: int
    """Engines of the pool that run now."""
    total: int
    """Engines of the pool."""
    cause: BaseException | None = None
    """Why it is dead or failed."""

    def __str__(self) -> str:
        """One line for a person."""
        why = "" if self.cause is None else f": {self.cause}"
        return (
            f"{self.engine} is {self.state} after {self.seconds:.1f} s "
            f"({self.running} of {self.total} run){why}"
        )


@final
@attrs.define(eq=False, kw_only=True)
class Seat:
    """A place in a pool, and the engine in it."""

    engine: Engine
    name: str
    state: EngineState = "stopped"
    book: EngineLoad | None = None
    """Invariant: there while it runs, and only then."""
    since: float = 0.0
    cause: BaseException | None = None
    member: Member | None = None
    """The engine again, while it runs and is a `Member`."""
    up: float = 0.0
    """When it began to serve."""
    life: int = 0
    """How often it was started; tells one life from the next."""
    pause: float = 0.0
    """Seconds to wait before it is started again; grows while it does not live for long."""
    group: Hashable = None
    """Those that have the same start one after another."""
    context: int | None = None
    """Of a `Member` that has run: most tokens of a prompt and its output."""

    def statistics(self) -> EngineStatistics:
        """What its engine is doing."""
        return self.engine.statistics()


@final
class Members:
    """The engines of one pool.

    Args:
        engines: They are not running, or run already.
        scheduler: Gets and loses their books.
        replace: Whether an engine that died is started again.
        attempts: Starts in a row that may fail before an engine is given up.
        backoff: First and longest pause between two of them, in seconds.
        start_group: Engines with equal values start one after another.
        progress: Hears of every change.
        changed: Called after every change of who runs.
    """

    def __init__(  # noqa: PLR0913  # a pool's own, handed down
        self,
        engines: Sequence[Engine],
        scheduler: Scheduler,
        *,
        replace: bool,
        attempts: int,
        backoff: tuple[float, float],
        start_group: Callable[[Engine], Hashable] | None,
        progress: bool | Callable[[PoolProgress], object],
        changed: Callable[[], None],
    ) -> None:
        self.seats = [
            Seat(engine=engine, name=name)
            for engine, name in zip(engines, _names(engines), strict=True)
        ]
        self.scheduler = scheduler
        self._replace = replace
        self._attempts = attempts
        self._backoff = backoff
        self._start_group = start_group
        self._progress = _print if progress is True else progress or None
        self._changed = changed
        self._mine: list[Seat] = []
        self._turns: dict[Hashable, asyncio.Lock] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None

    @property
    def running(self) -> list[Seat]:
        """Those that serve."""
        return [seat for seat in self.seats if seat.book is not None]

    @property
    def hopeful(self) -> bool:
        """Whether some engine runs, or will again."""
        return any(seat.state in ("running", "starting", "dead") for seat in self.seats)

    def seat_of(self, book: EngineLoad) -> Seat | None:
        """Who has *book*."""
        return next((seat for seat in self.seats if seat.book is book), None)

    def spawn(self, function: Callable[..., object], *args: object) -> None:
        """Start a task that ends with the pool."""
        assert self._tasks is not None
        self._tasks.start_soon(function, *args)  # type: ignore[arg-type]  # an async function

    async def start(self) -> None:
        """Start all. If one fails, the others are stopped again, and its error is raised."""
        groups = self._groups()  # it asks the user's function, before there is anything to end
        ready = asyncio.Event()
        self._main = asyncio.get_running_loop().create_task(self._supervise(ready))
        errors: list[BaseException] = []
        self._turns = {}  # the loop may be another one

        async def start_in_turn(seats: Sequence[Seat]) -> None:
            for seat in seats:
                if errors:
                    return
                try:
                    await self._start(seat)
                except Exception as error:  # noqa: BLE001  # raised below, without a group around it
                    self._report(seat, "failed")
                    errors.append(error)
                    tasks.cancel_scope.cancel()

        try:
            await ready.wait()
            async with anyio.create_task_group() as tasks:
                for seats in groups.values():
                    tasks.start_soon(start_in_turn, seats)
        except BaseException:
            await self.stop()
            raise
        if errors:
            await self.stop()
            raise errors[0]

    async def stop(self) -> None:
        """Stop all that run or are being started. Shielded."""
        main, self._main = self._main, None
        with anyio.CancelScope(shield=True):
            if main is not None:
                main.cancel()
                await asyncio.wait([main])
            for seat in self.seats:
                self._take_out(seat, "stopped")
            errors: list[BaseException] = []
            if main is not None and not main.cancelled() and (bug := main.exception()) is not None:
                errors.append(bug)

            async def stop(seat: Seat) -> None:
                try:
                    await seat.engine.stop()
                except Exception as error:  # noqa: BLE001  # raised below
                    errors.append(error)

            async with anyio.create_task_group() as tasks:
                while self._mine:
                    tasks.start_soon(stop, self._mine.pop())
        if errors:
            raise errors[0]

    def fits_all(self, length: int, /) -> bool:
        """Whether a prompt of *length* tokens fits whichever engine gets it, now or after a death."""
        return all(length < limit for limit, _ in self._contexts())

    def check_fits(self, length: int, /, *, output: int = 1) -> None:
        """Refuse a prompt that some engines could run, and others not: any of them may get it.

        One that fits none is refused by whoever makes its tokens, or runs it.
        """
        contexts = self._contexts()
        limit, name = min(contexts, default=(0, ""))
        if length + output > limit and limit < max(contexts, default=(0, ""))[0]:
            detail = f"that of engine {name!r}, the shortest in its pool"
            raise PromptTooLong(length, limit, detail=detail)

    def died(self, seat: Seat, life: int, cause: BaseException) -> bool:
        """The engine in *seat* has died in its *life*, or was stopped by somebody else.

        Telling so twice changes nothing. An engine that serves all the same keeps its place: what
        has died is one of several below it.

        Returns:
            Whether a call that got *cause* from it may go on elsewhere.
        """
        if seat.life != life or seat.book is None:
            return True
        if _runs(seat.engine):
            return isinstance(cause, EngineDied)
        seat.cause = cause
        self._take_out(seat, "dead" if self._replace else "failed")
        if self._replace and self._main is not None:
            self.spawn(self._bring_back, seat)
        self._changed()
        return True

    def statistics(self) -> list[PoolEngine]:
        """Each engine."""
        return [
            PoolEngine(name=seat.name, state=seat.state, statistics=seat.statistics())
            for seat in self.seats
        ]

    def last_cause(self) -> str:
        """Why nothing runs any more."""
        causes = [str(seat.cause) for seat in self.seats if seat.cause is not None]
        return causes[-1] if causes else "its engines are gone"

    def _groups(self) -> dict[Hashable, list[Seat]]:
        groups: dict[Hashable, list[Seat]] = {}
        for number, seat in enumerate(self.seats):
            seat.group = number if self._start_group is None else self._start_group(seat.engine)
            groups.setdefault(seat.group, []).append(seat)
        return groups

    def _contexts(self) -> list[tuple[int, str]]:
        """Of those that run or will again, and tell; with their names."""
        hopeful = [seat for seat in self.seats if seat.state != "failed"]
        return [(seat.context, seat.name) for seat in hopeful if seat.context is not None]

    async def _supervise(self, ready: asyncio.Event) -> None:
        async with anyio.create_task_group() as self._tasks:
            ready.set()
            await anyio.sleep_forever()

    async def _start(self, seat: Seat) -> None:
        loop = asyncio.get_running_loop()
        seat.since = loop.time()
        self._report(seat, "starting")
        if seat not in self._mine and not _runs(seat.engine):
            self._mine.append(seat)
        try:
            async with self._turns.setdefault(seat.group, asyncio.Lock()):
                await seat.engine.start()
        except Exception as error:
            seat.cause = error
            raise
        engine, seat.life = seat.engine, seat.life + 1
        member = engine if isinstance(engine, Member) else None
        capacity = _capacity(engine) if member is None else member.capacity
        book = self.scheduler.add_engine(seat.name, capacity, now=loop.time())
        seat.book, seat.cause, seat.up = book, None, loop.time()
        seat.member = member
        if member is not None:
            seat.context = capacity.max_model_len
            member.listen(self.scheduler.listener(book))
            self.spawn(self._watch, seat, member, seat.life)
        self._report(seat, "running")
        self._changed()

    async def _watch(self, seat: Seat, member: Member, life: int) -> None:
        try:
            await member.wait_died()
            seat.engine.check_health()
            cause: BaseException = EngineError(seat.name, "it died")
        except EngineError as error:
            cause = error
        except Exception:  # noqa: BLE001  # it was stopped by somebody else
            return
        self.died(seat, life, cause)

    async def _bring_back(self, seat: Seat) -> None:
        first, longest = self._backoff
        if asyncio.get_running_loop().time() - seat.up > longest:
            seat.pause = 0.0  # it has lived for a while
        if seat not in self._mine:
            self._mine.append(seat)
        for attempt in range(1, self._attempts + 1):
            try:
                await seat.engine.stop()
                await asyncio.sleep(seat.pause)
                seat.pause = min(max(first, 2 * seat.pause), longest)
                await self._start(seat)
            except Exception as error:  # noqa: BLE001  # whatever a start may raise; kept, and told
                seat.cause = error
                self._report(seat, "dead" if attempt < self._attempts else "failed")
            else:
                return
        self._changed()

    def _take_out(self, seat: Seat, state: EngineState) -> None:
        book, seat.book, seat.member = seat.book, None, None
        if book is not None:
            self.scheduler.remove_engine(book, now=asyncio.get_running_loop().time())
        if seat.state != state:
            self._report(seat, state)

    def _report(self, seat: Seat, state: EngineState) -> None:
        seat.state = state
        if self._progress is None:
            return
        loop = asyncio.get_running_loop()
        progress = PoolProgress(
            engine=seat.name,
            state=state,
            seconds=loop.time() - seat.since,
            running=len(self.running),
            total=len(self.seats),
            cause=seat.cause,
        )
        try:
            self._progress(progress)
        except Exception as error:  # noqa: BLE001  # a user's; the engines must not suffer for it
            loop.call_exception_handler(
                {"message": "the progress function of a pool failed", "exception": error}
            )


def _print(progress: PoolProgress) -> None:
    print(progress, file=sys.stderr, flush=True)  # noqa: T201  # it was asked for


def _runs(engine: Engine) -> bool:
    try:
        engine.check_health()
    except Exception:  # noqa: BLE001  # it is to be started, whatever is wrong
        return False
    return True


def _capacity(engine: Engine) -> EngineCapacity:
    """Of an engine that is no `Member`: what it says of itself all the same."""
    capacity = getattr(engine, "capacity", None)
    return capacity if isinstance(capacity, EngineCapacity) else UNLIMITED


def _names(engines: Sequence[Engine]) -> list[str]:
    """The engines' own names, numbered where they are not unique."""
    own = [engine.name for engine in engines]
    return [
        name if own.count(name) == 1 else f"{name}[{number}]" for number, name in enumerate(own)
    ]
