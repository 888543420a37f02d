"""`Pool`: several engines behind one scheduler, as one engine.

Calls wait in the pool, not inside an engine, so the choice of the next call and its engine is made
late and over all engines (:mod:`alto.sched`). A call that runs is driven by the task that iterates it,
chunk by chunk, without a task in between. An engine is done when *it* is done, read or not, and a pool
sees that only by reading. So where calls wait for an engine and a reader has been away from it for a
moment, the pool reads on in the reader's place, and keeps what it gets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Sequence
from types import TracebackType
from typing import Self, cast

import anyio

from alto._wait import LoopLock
from alto.engines._pool.calls import Calls
from alto.engines._pool.encoder import PromptEncoder
from alto.engines._pool.members import EngineState, Members, PoolEngine, PoolProgress
from alto.errors import Closed, EngineError
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    EngineCapacity,
    EngineStatistics,
    GenerateRequest,
    Prompt,
)
from alto.protocols import CacheListener, Engine
from alto.sched import Policy, Recorder, Scheduler

__all__ = ("EngineState", "Pool", "PoolEngine", "PoolProgress")


class Pool:
    """Engines that serve the same model, as one engine.

    Args:
        engines: At least one, or an async function that makes them, which is called at the first
            start, and again if that failed. Those that run already are used and not stopped with the pool. An
            :class:`alto.protocols.Member` reports its limits, its prefix cache and its death; the death of any
            other engine is noticed when a call on it fails.
        policy: Chooses an engine for a call; None: :class:`alto.sched.PromptAware`.
        name: For messages and statistics.
        recorder: Gets every decision, see :class:`alto.sched.Decision`.
        replace: Whether an engine that dies is started again.
        attempts: How many engines a call is tried on, and how many starts in a row may fail.
        backoff: First and longest pause before a dead engine is started, in seconds. There is none
            if the engine ran for longer than the longest pause, or has not died before.
        start_group: Returns the group of an engine. Engines of one group start one after another;
            None: all start at the same time.
        progress: Called at every start, death and replacement; True: a line each on stderr.
        max_waiting: Largest number of calls that wait; with 0 only those are accepted that can start
            at once. None: no limit.

    Raises:
        ValueError: There is no engine, one is given twice, or a number is out of its range.
        TypeError: Something is not an engine, or not a policy.
    """

    def __init__(  # noqa: PLR0913  # settings of a long-lived object, all but the first with defaults
        self,
        engines: Sequence[Engine] | Callable[[], Awaitable[Sequence[Engine]]],
        /,
        *,
        policy: Policy | None = None,
        name: str = "pool",
        recorder: Recorder | None = None,
        replace: bool = True,
        attempts: int = 3,
        backoff: tuple[float, float] = (0.5, 30.0),
        start_group: Callable[[Engine], Hashable] | None = None,
        progress: bool | Callable[[PoolProgress], object] = False,
        max_waiting: int | None = None,
    ) -> None:
        _check_options(attempts, backoff, max_waiting)
        self._make = engines if callable(engines) else None
        """Makes the engines; None: they have been made."""
        self._name = name
        self._scheduler = Scheduler(policy, on_fault=self._policy_failed, recorder=recorder)
        self._members = Members(
            () if callable(engines) else _checked(engines),
            self._scheduler,
            replace=replace,
            attempts=attempts,
            backoff=backoff,
            start_group=start_group,
            progress=progress,
            changed=self._engines_changed,
        )
        self._encoder = PromptEncoder(name, self._members, attempts=attempts)
        self._calls = Calls(
            self._scheduler,
            self._members,
            self._encoder,
            attempts=attempts,
            max_waiting=max_waiting,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifecycle = LoopLock()
        self._state: EngineState = "stopped"
        self._over = asyncio.Event()
        """Set when the pool has been stopped; a new one for each start."""
        self._starts: set[anyio.CancelScope] = set()
        self._entered = 0
        """Number of ``async with`` blocks that are inside."""
        self._news: list[asyncio.Event] = []

    def __repr__(self) -> str:
        """Return its state in a line."""
        slots = self._members.slots
        state = "stopped" if self._state == "stopped" else f"{self._scheduler.waiting} waiting"
        return f"<Pool {self._name!r}: {len(self._members.running)} of {len(slots)} run, {state}>"

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        return self._name

    @property
    def scheduler(self) -> Scheduler:
        """Scheduler of the pool, to be read only: the pool itself drives it."""
        return self._scheduler

    @property
    def engines(self) -> tuple[PoolEngine, ...]:
        """State of each engine at this moment; empty until they have been made."""
        return tuple(self._members.statistics())

    @property
    def capacity(self) -> EngineCapacity:
        """Limits of the running engines: their sums, and the shortest context.

        Raises:
            Closed: It is not running.
        """
        self._check_running()
        each = [book.capacity for book in self._scheduler.engines]
        if not each:
            raise self._encoder.death()
        kv = [c.kv_tokens for c in each]
        contexts = [c.max_model_len for c in each if c.max_model_len is not None]
        return EngineCapacity(
            max_num_seqs=sum(c.max_num_seqs for c in each),
            max_num_batched_tokens=sum(c.max_num_batched_tokens for c in each),
            kv_tokens=None if None in kv else sum(cast("list[int]", kv)),
            block_size=each[0].block_size,
            max_model_len=min(contexts, default=None),
        )

    @property
    def load(self) -> int:
        """Number of generations on the engine that has the fewest, those that wait for it included."""
        books = self._scheduler.engines
        return min((book.load for book in books), default=self._scheduler.waiting)

    @property
    def scores_pairs(self) -> bool:
        """True if its engines score a pair of texts at once; False before the first start."""
        return any(slot.scores_pairs for slot in self._members.slots)

    async def start(self) -> None:
        """Start all engines that do not run yet. Starting a running pool does nothing.

        A pool whose engines are all dead for good is stopped and started again. While the pool is
        being stopped, wait until it has, and start it again.

        Raises:
            EngineStartError: One could not be started; the others have been stopped again.
            Closed: :meth:`stop` was called meanwhile.

        Cancellation: nothing is left behind; the pool can be started again.
        """
        with anyio.CancelScope() as scope:
            self._starts.add(scope)
            try:
                while not await self._start_in_turn():
                    await self._over.wait()
                return
            finally:
                self._starts.discard(scope)
        raise Closed(f"pool {self._name!r} was stopped while it started")

    async def stop(self, *, drain: bool = False) -> None:
        """End all calls and stop the engines that the pool started, also where blocks are inside.

        Starts that are under way, or wait, end with ``Closed``.

        Args:
            drain: Refuse new calls, and wait until the open ones have been read or closed, or the pool
                is stopped by another task.

        Cancellation: shielded; while it drains, a cancellation ends the wait, and the calls.
        """
        for scope in self._starts:
            scope.cancel()
        drained: asyncio.Event | None = None
        try:
            if drain and self._state == "running" and self._calls.open:
                drained = self._over
                self._encoder.refusing = Closed(f"pool {self._name!r} is being stopped")
                await self._calls.wait_quiet()
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop_in_turn(drained)

    async def __aenter__(self) -> Self:
        """Start the pool. It may be entered several times; the last block that is left stops it."""
        await self.start()
        self._entered += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Stop the pool, unless other blocks are inside."""
        self._entered = max(0, self._entered - 1)  # 0 where it was started, and not entered
        if self._entered:
            return
        with anyio.CancelScope(shield=True):
            async with self._lifecycle.here():
                if not self._entered:  # another block may have entered while this one waited
                    await self._stop_now()

    def statistics(self) -> EngineStatistics:
        """Return the sum over all engines; calls that wait in the pool count as waiting."""
        each = [slot.statistics() for slot in self._members.slots]
        used = [s.kv_usage for s in each]
        return EngineStatistics(
            running=sum(s.running for s in each),
            waiting=self._scheduler.waiting + sum(s.waiting for s in each),
            finished=sum(s.finished for s in each),
            aborted=sum(s.aborted for s in each),
            prompt_tokens=sum(s.prompt_tokens for s in each),
            cached_tokens=sum(s.cached_tokens for s in each),
            output_tokens=sum(s.output_tokens for s in each),
            kv_usage=sum(used) / len(used) if used else 0.0,
            preempted=sum(s.preempted for s in each),
        )

    def check_health(self) -> None:
        """Return if an engine can serve.

        Raises:
            Closed: The pool is not running.
            EngineDied: All engines are dead. They may be starting again.
        """
        self._check_running()
        if not self._members.running:
            raise self._encoder.death()

    async def wait_died(self) -> None:
        """Wait until all engines are dead and none will be started again."""
        while self._state != "running" or self._members.hopeful:
            news = asyncio.Event()
            self._news.append(news)
            await news.wait()

    def listen(self, listener: CacheListener, /) -> bool:  # noqa: ARG002  # as the protocol has it
        """Return False: several engines have several caches."""
        return False

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the token ids of a prompt, or made-up ones where no engine is a :class:`alto.protocols.Member`."""
        self._check_running()
        return await self._encoder.encode(prompt)

    def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation on the engine that the policy chooses, when it has room.

        Raises:
            DeadlineExceeded: The deadline of the request passed before the generation began.
            Overloaded: ``max_waiting`` calls wait.
            PromptTooLong: The prompt does not fit the shortest context of the engines.
            EngineDied: The engine died after its first chunk, or several engines died before it.

        Otherwise it keeps the contract of :meth:`alto.Engine.generate`.
        """
        self._check_running()
        return self._calls.generate(request)

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Run one prompt on the engine that the policy chooses; see :meth:`alto.protocols.Embedder.embed`.

        Raises:
            InvalidRequest: The engines do not pool.
        """
        self._check_running()
        return await self._calls.embed(request)

    def _check_running(self) -> None:
        if self._state != "running":
            raise Closed(f"pool {self._name!r} is not running; start it first")
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return  # reading its state outside of any loop is allowed
        if not here:
            raise EngineError(self._name, "it belongs to the event loop that started it")

    async def _start_in_turn(self) -> bool:
        """Start the pool if it is stopped. Return False if it runs but is draining."""
        async with self._lifecycle.here():
            if self._state == "running":
                if self._members.hopeful:
                    return self._encoder.refusing is None
                await self._stop_now()
            self._state = "starting"
            self._loop = asyncio.get_running_loop()
            try:
                if self._make is not None:
                    self._members.fill(_checked(await self._make()))
                    self._make = None
                await self._members.start()
            except BaseException:
                self._state = "stopped"
                raise
            self._encoder.closed = self._encoder.refusing = None
            self._over = asyncio.Event()
            self._state = "running"
            return True

    async def _stop_in_turn(self, life: asyncio.Event | None) -> None:
        """Stop the pool, after the start or stop that is under way.

        Args:
            life: Stop only if this event, the ``_over`` of one life, is not set yet; None: always.
        """
        async with self._lifecycle.here():
            if life is None or not life.is_set():
                await self._stop_now()

    async def _stop_now(self) -> None:
        if self._state == "stopped":
            return
        self._state = "stopped"
        self._calls.close(Closed(f"pool {self._name!r} was stopped"))
        try:
            await self._members.stop()
        finally:
            self._over.set()

    def _engines_changed(self) -> None:
        self._calls.engines_changed()
        for news in self._news:
            news.set()
        self._news.clear()

    def _policy_failed(self, error: BaseException) -> None:
        policy = type(self._scheduler.policy).__name__
        asyncio.get_running_loop().call_exception_handler(
            {
                "message": f"policy {policy}, or its recorder, failed; the least loaded engine is used instead, "
                f"now and whenever it fails again",
                "exception": error,
            }
        )


def _checked(given: Sequence[Engine]) -> tuple[Engine, ...]:
    """Return the engines of a pool, if it can be made of them."""
    engines = tuple(given)
    if not engines:
        raise ValueError("a pool needs at least one engine")
    for engine in engines:
        if isinstance(engine, type) or not isinstance(engine, Engine):
            raise TypeError(f"a pool is made of engines, and this is not one: {engine!r}")
    if len({id(engine) for engine in engines}) < len(engines):
        raise ValueError("an engine is given twice; make a separate one for each place in the pool")
    return engines


def _check_options(attempts: int, backoff: tuple[float, float], max_waiting: int | None) -> None:
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    if not 0 < backoff[0] <= backoff[1]:
        raise ValueError(
            f"backoff must be a first and a longest pause in seconds, above 0, not {backoff}"
        )
    if max_waiting is not None and max_waiting < 0:
        raise ValueError(f"max_waiting must be at least 0, or None, not {max_waiting}")
