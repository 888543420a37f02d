"""`Pool`: several engines behind one scheduler, as one engine.

Calls wait in the pool, not inside an engine, so who goes next and where is decided late and over all
engines (:mod:`alto.sched`). A call that an engine has is read by whoever iterates it, chunk by chunk,
without a task in between. But an engine is done when *it* is done, read or not, and a reader may be
away: so where somebody waits for a place on an engine and a reader has not come back for a moment,
the pool reads on in its place, and keeps what it gets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from types import TracebackType
from typing import Self, cast, final

import anyio

from alto._wait import LoopLock
from alto.engines._pool.calls import Calls
from alto.engines._pool.members import EngineState, Members, PoolEngine, PoolProgress
from alto.engines._pool.prompts import Prompts
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


@final
class Pool:
    """Engines that serve the same model, as one engine.

    Args:
        engines: At least one. Those that run already are used and not stopped with the pool. An
            :class:`alto.protocols.Member` tells its limits, what it holds in its cache, and that it died; of any
            other engine a pool knows nothing but what it says.
        policy: Chooses an engine for a call; None: :class:`alto.sched.PromptAware`.
        name: For messages and statistics.
        recorder: Gets every decision, see :class:`alto.sched.Decision`.
        replace: Whether an engine that dies is started again.
        attempts: How many engines a call is tried on, and how many starts in a row may fail.
        backoff: First and longest pause before a dead engine is started, in seconds. There is none
            if it has lived for longer than the longest, or has not died before.
        start_group: Engines for which it gives the same start one after another; None: all start at
            the same time.
        progress: Hears of every start, death and replacement; True: a line each on stderr.
        max_waiting: Most calls that wait; with 0 only those are taken that can start at once. None:
            no limit.

    Raises:
        ValueError: No engines, one twice, or a number out of its range.
        TypeError: Something that is no engine, or no policy.
    """

    def __init__(  # noqa: PLR0913  # settings of a long-lived object, all but the first with defaults
        self,
        engines: Sequence[Engine],
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
        engines = tuple(engines)
        _check(engines, attempts, backoff, max_waiting)
        self._name = name
        self._scheduler = Scheduler(policy, on_fault=self._policy_failed, recorder=recorder)
        self._members = Members(
            engines,
            self._scheduler,
            replace=replace,
            attempts=attempts,
            backoff=backoff,
            start_group=start_group,
            progress=progress,
            changed=self._engines_changed,
        )
        self._prompts = Prompts(name, self._members, attempts=attempts)
        self._calls = Calls(
            self._scheduler,
            self._members,
            self._prompts,
            attempts=attempts,
            max_waiting=max_waiting,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifecycle = LoopLock()
        self._state: EngineState = "stopped"
        self._over = asyncio.Event()
        """Of this life, or the last: set when it has been stopped. Another one in each."""
        self._starts: set[anyio.CancelScope] = set()
        self._entered = 0
        """Blocks that are inside, see `__aenter__`."""
        self._news: list[asyncio.Event] = []

    def __repr__(self) -> str:
        """Its state in a line."""
        seats = self._members.seats
        state = "stopped" if self._state == "stopped" else f"{self._scheduler.waiting} waiting"
        return f"<Pool {self._name!r}: {len(self._members.running)} of {len(seats)} run, {state}>"

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        return self._name

    @property
    def scheduler(self) -> Scheduler:
        """Its books. To look at; a pool feeds them itself."""
        return self._scheduler

    @property
    def engines(self) -> tuple[PoolEngine, ...]:
        """Its engines at this moment."""
        return tuple(self._members.statistics())

    @property
    def capacity(self) -> EngineCapacity:
        """What its engines can do at once, all together; the shortest context of any.

        Raises:
            Closed: It is not running.
        """
        self._check_running()
        each = [book.capacity for book in self._scheduler.engines]
        if not each:
            raise self._prompts.death()
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
        """Generations of the engine that has the fewest, those that wait for it among them."""
        books = self._scheduler.engines
        return min((book.load for book in books), default=self._scheduler.waiting)

    @property
    def scores_pairs(self) -> bool:
        """Whether its engines score a pair of texts at once, as a cross-encoder does."""
        return any(getattr(s.engine, "scores_pairs", False) for s in self._members.seats)

    async def start(self) -> None:
        """Start all engines that do not run yet. Starting a running pool does nothing.

        While the pool is being stopped, this waits until that is over, and starts it again.

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
        """End all calls and stop the engines that were started here, whoever is inside.

        Starts that are under way, or wait, end with ``Closed``.

        Args:
            drain: Take no new calls, and wait until those that are there have been read or closed,
                or somebody else stops the pool.

        Cancellation: shielded; while it drains, a cancellation ends the wait, and the calls.
        """
        for scope in self._starts:
            scope.cancel()
        drained: asyncio.Event | None = None
        try:
            if drain and self._state == "running" and self._calls.open:
                drained = self._over
                self._prompts.refusing = Closed(f"pool {self._name!r} is being stopped")
                await self._calls.wait_quiet()
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop_in_turn(drained)

    async def __aenter__(self) -> Self:
        """Start it. It may be entered several times; the last that leaves stops it."""
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
        """Stop it, unless others are inside."""
        self._entered = max(0, self._entered - 1)  # 0 where it was started, and not entered
        if self._entered:
            return
        with anyio.CancelScope(shield=True):
            async with self._lifecycle.here():
                if not self._entered:  # nobody has come meanwhile
                    await self._stop_now()

    def statistics(self) -> EngineStatistics:
        """The sum over its engines; calls that wait in the pool are among those that wait."""
        each = [seat.statistics() for seat in self._members.seats]
        used = [s.kv_usage for s in each]
        return EngineStatistics(
            running=sum(s.running for s in each),
            waiting=self._scheduler.waiting + sum(s.waiting for s in each),
            finished=sum(s.finished for s in each),
            aborted=sum(s.aborted for s in each),
            prompt_tokens=sum(s.prompt_tokens for s in each),
            cached_tokens=sum(s.cached_tokens for s in each),
            output_tokens=sum(s.output_tokens for s in each),
            kv_usage=sum(used) / len(used),
            preempted=sum(s.preempted for s in each),
        )

    def check_health(self) -> None:
        """Return if some engine serves.

        Raises:
            Closed: The pool is not running.
            EngineDied: All engines are dead; perhaps they are being started again.
        """
        self._check_running()
        if not self._members.running:
            raise self._prompts.death()

    async def wait_died(self) -> None:
        """Wait until no engine is left and none will be."""
        while self._state != "running" or self._members.hopeful:
            news = asyncio.Event()
            self._news.append(news)
            await news.wait()

    def listen(self, listener: CacheListener, /) -> bool:  # noqa: ARG002  # as the protocol has it
        """A pool has no one cache to tell of."""
        return False

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """The token ids of a prompt, as its engines make them; made up where they do not tell."""
        self._check_running()
        return await self._prompts.encode(prompt)

    def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation on the engine that suits it, when there is room.

        Raises:
            DeadlineExceeded: The time of the request that asks was over before it began.
            Overloaded: ``max_waiting`` calls wait.
            PromptTooLong: The prompt does not fit the shortest context of its engines.
            EngineDied: Its engine died after it had said something, or several did before.

        For the rest see :class:`alto.Engine`.
        """
        self._check_running()
        return self._calls.generate(request)

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Run one prompt on the engine that suits it; see :class:`alto.protocols.Embedder`.

        Raises:
            InvalidRequest: Its engines do not pool.
        """
        self._check_running()
        return await self._calls.embed(request)

    def _check_running(self) -> None:
        if self._state != "running":
            raise Closed(f"pool {self._name!r} is not running; start it first")
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return  # a look at it from outside of any loop
        if not here:
            raise EngineError(self._name, "it belongs to the event loop that started it")

    async def _start_in_turn(self) -> bool:
        """Start it if it is stopped. Returns False if it runs, but is about to be stopped."""
        async with self._lifecycle.here():
            if self._state == "running":
                return self._prompts.refusing is None
            self._state = "starting"
            self._loop = asyncio.get_running_loop()
            try:
                await self._members.start()
            except BaseException:
                self._state = "stopped"
                raise
            self._prompts.closed = self._prompts.refusing = None
            self._over = asyncio.Event()
            self._state = "running"
            return True

    async def _stop_in_turn(self, life: asyncio.Event | None) -> None:
        """Stop it, after whoever starts or stops it now; with *life* only if that is not over."""
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


def _check(
    engines: Sequence[object], attempts: int, backoff: tuple[float, float], max_waiting: int | None
) -> None:
    if not engines:
        raise ValueError("a pool needs at least one engine")
    for engine in engines:
        if isinstance(engine, type) or not isinstance(engine, Engine):
            raise TypeError(f"a pool is made of engines, and this is none: {engine!r}")
    if len({id(engine) for engine in engines}) < len(engines):
        raise ValueError("an engine is in the pool twice; make one for each place")
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    if not 0 < backoff[0] <= backoff[1]:
        raise ValueError(f"backoff is a first and a longest pause in seconds, not {backoff}")
    if max_waiting is not None and max_waiting < 0:
        raise ValueError(f"max_waiting must be at least 0, or None, not {max_waiting}")
