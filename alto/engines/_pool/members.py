"""The engines of a pool: how they are started, watched, replaced and stopped.

An engine that dies is removed from the scheduler at once, when the first of two things happens: a
generation on it fails, or :meth:`alto.protocols.Member.wait_died` returns. The engine is stopped, so that
nothing of it is left behind, and started again; where that fails, again after a pause that doubles.
Nothing is polled: an idle pool has no timer.
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
from alto.protocols import Engine, HasCapacity, Member, Scorer, StreamsPrompts
from alto.sched import EngineLoad, Scheduler

__all__ = ("EngineState", "Members", "PoolEngine", "PoolProgress", "PoolSlot")

EngineState: TypeAlias = Literal["stopped", "starting", "running", "dead", "failed"]

UNLIMITED = EngineCapacity(max_num_seqs=1 << 20, max_num_batched_tokens=1 << 30)
"""Capacity of an engine that does not report one."""


@attrs.frozen(kw_only=True)
class PoolEngine:
    """Snapshot of one engine of a pool."""

    name: str
    """Unique in its pool."""
    state: EngineState
    """``failed`` is an engine that died and could not be started again."""
    statistics: EngineStatistics
    """Counters of the engine."""


@attrs.frozen(kw_only=True)
class PoolProgress:
    """A change of the state of one engine of a pool."""

    engine: str
    """Name of the engine."""
    state: EngineState
    """State of the engine from now on."""
    seconds: float
    """Seconds since its last start began."""
    running: int
    """Number of engines of the pool that run."""
    total: int
    """Number of engines of the pool."""
    cause: BaseException | None = None
    """Error that made it dead or failed; None in other states."""

    def __str__(self) -> str:
        """Return the change as one line of text."""
        why = "" if self.cause is None else f": {self.cause}"
        return (
            f"{self.engine} is {self.state} after {self.seconds:.1f} s "
            f"({self.running} of {self.total} run){why}"
        )


@final
@attrs.define(eq=False, kw_only=True)
class PoolSlot:
    """A slot of a pool, and the engine in it."""

    engine: Engine
    name: str
    state: EngineState = "stopped"
    book: EngineLoad | None = None
    """Scheduler state of the engine. Invariant: set exactly while the engine runs."""
    since: float = 0.0
    cause: BaseException | None = None
    member: Member | None = None
    """The engine, while it runs, if it is a `Member`."""
    up: float = 0.0
    """Time at which it last began to serve."""
    life: int = 0
    """Number of starts; distinguishes a call on an earlier life of the engine."""
    pause: float = 0.0
    """Seconds to wait before the next restart; doubles while the engine dies early."""
    group: Hashable = None
    """Start group: engines of the same group start one after another."""
    context: int | None = None
    """Context of a `Member` that has run, in tokens; None: not known."""
    scores_pairs: bool = False
    """True if its engine scores pairs; as of its last start."""
    streams_prompts: bool = False
    """True if its engine takes streamed prompts; as of its last start."""

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing."""
        return self.engine.statistics()


@final
class Members:
    """The engines of one pool.

    Args:
        engines: Running ones are used, and not stopped with the pool.
        scheduler: Engines are added to it when they run, and removed when they do not.
        replace: Whether an engine that died is started again.
        attempts: Number of failed starts in a row after which an engine is given up.
        backoff: First and longest pause between two of them, in seconds.
        start_group: Engines with equal values start one after another.
        progress: Called at every change of an engine's state.
        changed: Called after the set of running engines has changed.
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
        self.slots: list[PoolSlot] = []
        self.fill(engines)
        self.scheduler = scheduler
        self._replace = replace
        self._attempts = attempts
        self._backoff = backoff
        self._start_group = start_group
        self._progress = _print if progress is True else progress or None
        self._changed = changed
        self._mine: list[PoolSlot] = []
        self._turns: dict[Hashable, asyncio.Lock] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None

    def fill(self, engines: Sequence[Engine]) -> None:
        """Make a slot for each engine; there are none yet."""
        self.slots = [
            PoolSlot(engine=engine, name=name)
            for engine, name in zip(engines, _names(engines), strict=True)
        ]

    @property
    def running(self) -> list[PoolSlot]:
        """Slots whose engines serve."""
        return [slot for slot in self.slots if slot.book is not None]

    @property
    def hopeful(self) -> bool:
        """True if an engine runs, or may run again."""
        return any(slot.state in ("running", "starting", "dead") for slot in self.slots)

    def slot_of(self, book: EngineLoad) -> PoolSlot | None:
        """Return the slot with *book*; None: its engine was removed."""
        return next((slot for slot in self.slots if slot.book is book), None)

    def spawn(self, function: Callable[..., object], *args: object) -> None:
        """Start a task that ends with the pool."""
        assert self._tasks is not None
        self._tasks.start_soon(function, *args)  # type: ignore[arg-type]  # an async function

    async def start(self) -> None:
        """Start all engines. If one fails, stop the others again and raise its error."""
        groups = (
            self._groups()
        )  # calls the user's function, which may raise, before anything has started
        ready = asyncio.Event()
        self._main = asyncio.get_running_loop().create_task(self._supervise(ready))
        errors: list[BaseException] = []
        self._turns = {}  # the loop may be another one

        async def start_in_turn(slots: Sequence[PoolSlot]) -> None:
            for slot in slots:
                if errors:
                    return
                try:
                    await self._start(slot)
                except Exception as error:  # noqa: BLE001  # raised below, without a group around it
                    self._report(slot, "failed")
                    errors.append(error)
                    tasks.cancel_scope.cancel()

        try:
            await ready.wait()
            async with anyio.create_task_group() as tasks:
                for slots in groups.values():
                    tasks.start_soon(start_in_turn, slots)
        except BaseException:
            await self.stop()
            raise
        if errors:
            await self.stop()
            raise errors[0]

    async def stop(self) -> None:
        """Stop all engines that run or are being started. Shielded."""
        main, self._main = self._main, None
        with anyio.CancelScope(shield=True):
            if main is not None:
                main.cancel()
                await asyncio.wait([main])
            for slot in self.slots:
                self._take_out(slot, "stopped")
            errors: list[BaseException] = []
            if main is not None and not main.cancelled() and (bug := main.exception()) is not None:
                errors.append(bug)

            async def stop(slot: PoolSlot) -> None:
                try:
                    await slot.engine.stop()
                except Exception as error:  # noqa: BLE001  # raised below
                    errors.append(error)

            async with anyio.create_task_group() as tasks:
                while self._mine:
                    tasks.start_soon(stop, self._mine.pop())
        if errors:
            raise errors[0]

    def fits_all(self, length: int, /) -> bool:
        """Return whether *length* tokens fit every engine that may get the call, now or later."""
        return all(length < limit for limit, _ in self._contexts())

    def check_fits(self, length: int, /, *, output: int = 1) -> None:
        """Refuse a prompt that fits some engines and not others, since any of them may get it.

        A prompt that fits none is refused where its tokens are made, or by the engine that runs it.

        Raises:
            PromptTooLong: The message names the engine with the shortest context.
        """
        contexts = self._contexts()
        limit, name = min(contexts, default=(0, ""))
        if length + output > limit and limit < max(contexts, default=(0, ""))[0]:
            detail = f"that of engine {name!r}, the shortest in its pool"
            raise PromptTooLong(length, limit, detail=detail)

    def died(self, slot: PoolSlot, life: int, cause: BaseException) -> bool:
        """Replace the engine in *slot*, which died in its *life* or was stopped from outside.

        A second call for the same life does nothing. An engine that still serves is kept: it has
        several engines of its own, and one of these has died.

        Returns:
            Whether a call that got *cause* from the engine may go on elsewhere.
        """
        if slot.life != life or slot.book is None:
            return True
        if _runs(slot.engine):
            return isinstance(cause, EngineDied)
        slot.cause = cause
        self._take_out(slot, "dead" if self._replace else "failed")
        if self._replace and self._main is not None:
            self.spawn(self._bring_back, slot)
        self._changed()
        return True

    def statistics(self) -> list[PoolEngine]:
        """Return a snapshot of each engine."""
        return [
            PoolEngine(name=slot.name, state=slot.state, statistics=slot.statistics())
            for slot in self.slots
        ]

    def last_cause(self) -> str:
        """Return the latest error of an engine, as text."""
        causes = [str(slot.cause) for slot in self.slots if slot.cause is not None]
        return causes[-1] if causes else "all its engines were stopped"

    def _groups(self) -> dict[Hashable, list[PoolSlot]]:
        groups: dict[Hashable, list[PoolSlot]] = {}
        for number, slot in enumerate(self.slots):
            slot.group = number if self._start_group is None else self._start_group(slot.engine)
            groups.setdefault(slot.group, []).append(slot)
        return groups

    def _contexts(self) -> list[tuple[int, str]]:
        """Return contexts and names of the engines that run or may run again, where they are known."""
        hopeful = [slot for slot in self.slots if slot.state != "failed"]
        return [(slot.context, slot.name) for slot in hopeful if slot.context is not None]

    async def _supervise(self, ready: asyncio.Event) -> None:
        async with anyio.create_task_group() as self._tasks:
            ready.set()
            await anyio.sleep_forever()

    async def _start(self, slot: PoolSlot) -> None:
        loop = asyncio.get_running_loop()
        slot.since = loop.time()
        self._report(slot, "starting")
        if slot not in self._mine and not _runs(slot.engine):
            self._mine.append(slot)
        try:
            async with self._turns.setdefault(slot.group, asyncio.Lock()):
                await slot.engine.start()
        except Exception as error:
            slot.cause = error
            raise
        engine, slot.life = slot.engine, slot.life + 1
        member = engine if isinstance(engine, Member) else None
        capacity = engine.capacity if isinstance(engine, HasCapacity) else UNLIMITED
        slot.scores_pairs = isinstance(engine, Scorer) and engine.scores_pairs
        slot.streams_prompts = isinstance(engine, StreamsPrompts) and engine.streams_prompts
        book = self.scheduler.add_engine(slot.name, capacity, now=loop.time())
        slot.book, slot.cause, slot.up = book, None, loop.time()
        slot.member = member
        if member is not None:
            slot.context = capacity.max_model_len
            member.listen(self.scheduler.listener(book))
            self.spawn(self._watch, slot, member, slot.life)
        self._report(slot, "running")
        self._changed()

    async def _watch(self, slot: PoolSlot, member: Member, life: int) -> None:
        try:
            await member.wait_died()
            slot.engine.check_health()
            cause: BaseException = EngineError(slot.name, "it died")
        except EngineError as error:
            cause = error
        except Exception:  # noqa: BLE001  # it was stopped from outside
            return
        self.died(slot, life, cause)

    async def _bring_back(self, slot: PoolSlot) -> None:
        first, longest = self._backoff
        if asyncio.get_running_loop().time() - slot.up > longest:
            slot.pause = 0.0  # it ran for long enough to count as healthy
        if slot not in self._mine:
            self._mine.append(slot)
        for attempt in range(1, self._attempts + 1):
            try:
                await slot.engine.stop()
                await asyncio.sleep(slot.pause)
                slot.pause = min(max(first, 2 * slot.pause), longest)
                await self._start(slot)
            except Exception as error:  # noqa: BLE001  # a start may raise anything; kept as the cause, and reported
                slot.cause = error
                self._report(slot, "dead" if attempt < self._attempts else "failed")
            else:
                return
        self._changed()

    def _take_out(self, slot: PoolSlot, state: EngineState) -> None:
        book, slot.book, slot.member = slot.book, None, None
        if book is not None:
            self.scheduler.remove_engine(book, now=asyncio.get_running_loop().time())
        if slot.state != state:
            self._report(slot, state)

    def _report(self, slot: PoolSlot, state: EngineState) -> None:
        slot.state = state
        if self._progress is None:
            return
        loop = asyncio.get_running_loop()
        progress = PoolProgress(
            engine=slot.name,
            state=state,
            seconds=loop.time() - slot.since,
            running=len(self.running),
            total=len(self.slots),
            cause=slot.cause,
        )
        try:
            self._progress(progress)
        except Exception as error:  # noqa: BLE001  # a failure of the user's function must not stop the engines
            loop.call_exception_handler(
                {"message": "the progress function of a pool failed", "exception": error}
            )


def _print(progress: PoolProgress) -> None:
    print(progress, file=sys.stderr, flush=True)  # noqa: T201  # progress=True asks for it


def _runs(engine: Engine) -> bool:
    try:
        engine.check_health()
    except Exception:  # noqa: BLE001  # whatever is wrong, it is to be started
        return False
    return True


def _names(engines: Sequence[Engine]) -> list[str]:
    """Return the engines' names, numbered where they are not unique."""
    own = [engine.name for engine in engines]
    return [
        name if own.count(name) == 1 else f"{name}[{number}]" for number, name in enumerate(own)
    ]
