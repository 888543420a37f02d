"""One call of a stage: its life, its permit, its waits, its cancellation.

Theory of operation. A call begins, runs, hands its outputs over, is tidied and ends in one place,
:func:`calls`, whatever its stage is (a coroutine or an async generator) and wherever that is
executed. What can be put around a call is chosen once per replica: the function that it awaits or
iterates comes from the replica's executor, and observers are asked for only where there are some.

All of a call runs in one context, a copy of its request's: each step of it is a ``Context.run`` by
the worker (worker.py). So what a call sets is seen by what it starts, and by nothing else.

A call holds a permit of its replica while it runs user code, and gives it back while one of its tasks
waits inside alto. It does so in one place, :meth:`Call.wait`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sized
from contextvars import Context
from types import CoroutineType, coroutine
from typing import Any, Final, Protocol

import anyio

from alto._current_call import Cleanup, InnerRunner, current_call
from alto._runtime.machines.permits import Permits
from alto._runtime.observers import Notifies, Notify
from alto._runtime.room import Room
from alto._wait import uncut
from alto.errors import EngineDied
from alto.events import (
    CallEnded,
    CallStarted,
    EngineFailed,
    GenerationEnded,
    GenerationStarted,
    ItemProduced,
    Outcome,
)
from alto.model import Origin, Path, Usage

__all__ = ("ENDED", "Call", "CallQueue", "CallReplica", "CallRequest", "CallRun", "CallWorker",
           "calls", "calls_around", "check_outside", "parking_call", "wait")  # fmt: skip


ENDED: Final = object()
"""What :func:`calls` yields when a call has ended."""


class CallRequest(Protocol):
    """The request of a call, as the call sees it."""

    context: Context
    number: int
    arrived: float
    parent: Call | None
    priority: int
    deadline: float | None
    fresh: bool
    first_unread: bool
    given: Mapping[str, object]

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def root(self) -> Any:  # noqa: ANN401  # a request
        """The outermost request."""
        ...

    def stage_failed(self, call: Call, cause: BaseException) -> None:
        """Fail with what a call has raised."""
        ...

    def add_usage(self, usage: Usage) -> None:
        """Count what a generation has cost."""
        ...

    def cancel(self) -> None:
        """Stop; its results are not wanted any more."""
        ...

    async def wait_ended(self) -> None:
        """Wait until nothing of it runs any more."""
        ...


class CallRun(Protocol):
    """The request at the stage: where a call's outputs go, and what is done when it has ended."""

    @property
    def push(self) -> Callable[[Path, Any], None]:
        """Hand an item over."""
        ...

    @property
    def is_full(self) -> Callable[[Path], bool]:
        """Whether an item must wait."""
        ...

    suspended: dict[Path, Call]
    values: Mapping[str, object] | None
    index: int
    routed: bool

    @property
    def request(self) -> CallRequest:
        """Its request."""
        ...

    @property
    def stage(self) -> str:
        """Name of the stage, with its pipeline's."""
        ...

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        ...

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:
        """Give ``is_full`` and ``push`` for the outputs of the generator call at *path*."""
        ...

    def no_room_at(self, path: Path) -> Room | None:
        """Give where an item at *path* has no room; None: it has room everywhere."""
        ...

    def counted(self, path: Path, children: int) -> None:
        """Say that the call at *path* has ended after *children* outputs."""
        ...

    @property
    def keeps_calls(self) -> bool:
        """Whether it must hear of the end of every call, also of those that have not suspended."""
        ...

    def call_ended(self, call: Call, seconds: float | None) -> None:
        """Let go of a call that has ended."""
        ...


class CallQueue(Protocol):
    """The queue that a call was taken from, as the call sees it."""

    blocked: bool

    @property
    def ready(self) -> Sized:
        """What has not started."""
        ...

    @property
    def run(self) -> CallRun:
        """The request at the stage."""
        ...

    def ended(self) -> None:
        """Count a call that has ended."""
        ...


class CallReplica(Notifies, Protocol):
    """The replica that runs a call, as the call sees it."""

    number: int
    generator: bool

    @property
    def fn(self) -> Callable[..., Any]:
        """What a call awaits or iterates."""
        ...

    resources: Mapping[str, object]
    loop: asyncio.AbstractEventLoop
    done: int

    @property
    def now(self) -> Callable[[], float]:
        """The time on the loop's clock."""
        ...

    @property
    def leader(self) -> CallWorker | None:
        """The worker that runs calls which have not suspended."""
        ...

    @property
    def permits(self) -> Permits[Any, Call]:
        """Its permits."""
        ...

    def kick(self) -> None:
        """See that a free permit is used."""
        ...

    def freed(self) -> None:
        """See that a permit which was given back is used."""
        ...


class CallWorker(Protocol):
    """The worker that steps a call, as the call sees it."""

    task: asyncio.Task[Any] | None
    call: Call | None

    @property
    def clock(self) -> Callable[[], float]:
        """Says when a worker has had the loop for long."""
        ...

    until: float

    @property
    def replica(self) -> CallReplica:
        """Whose worker it is."""
        ...


class Call:
    """One call of a stage, from the moment it has a permit until it has ended. See the module."""

    inner_runner: InnerRunner | None = None
    """The app runs the pipelines that a call calls."""
    # Class attributes, not slots: of a call that never waits only a few are ever set.
    cancelled = False
    """Nothing needs it any more; its outputs are dropped."""
    closing = False
    """Its code has ended; what is left is cleaning up, which nothing interrupts."""
    done = False
    """It has ended by itself and given all its outputs."""
    untidy = False
    """There may be something to close at the end: generations, inner requests."""
    ended = False
    outputs = 0
    """Items that it has handed over."""
    _error: BaseException | None = None
    _struck = False  # Its task was cancelled for it.
    holds = True
    """Whether it has a permit."""
    has_suspended = False
    """Whether its task has waited since it began, so that it can be cancelled."""
    _waits = 0
    _resume: asyncio.Event | None = None
    _cleanup: Cleanup | None = None
    _inner: set[CallRequest] | None = None
    _started: float = 0.0
    _since: float | None = None  # When it last got a permit, where that is to be known.
    _busy = 0.0
    _generations: dict[int, str] | None = None  # Open ones that observers know of: their engines.

    def __init__(self, queue: CallQueue, path: Path, args: Any, worker: CallWorker) -> None:  # noqa: ANN401
        self.queue = queue
        self.path = path
        self.args = args
        self.worker = worker

    @property
    def run(self) -> CallRun:
        """The request at the stage."""
        return self.queue.run

    @property
    def replica(self) -> CallReplica:
        """The replica that runs it."""
        return self.worker.replica

    # ---- its life: see also calls()

    def failed(self, error: BaseException) -> None:
        """Fail the request, unless *error* is how a cancelled call ends.

        Raises:
            KeyboardInterrupt: That is what it failed with, and so the program ends; so SystemExit.
        """
        # A task that something else cancelled ends after this call: see Worker.is_cancelled.
        if self.cancelled and isinstance(error, asyncio.CancelledError):
            return
        if not self.ended:
            self._error = error
            self.run.request.stage_failed(self, error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.end()
            raise error

    async def tidy(self) -> None:
        """Close everything that must not outlive the call. Cancellation: shielded."""
        self.closing = True
        try:
            if self._inner:
                self._waits += 1
                self._give_permit()
                for request in list(self._inner):
                    request.cancel()
                for request in list(self._inner):
                    await uncut(request.wait_ended)
                self._waits -= 1
            if self._cleanup is not None:
                await self._cleanup.close_all()
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            self.failed(error)

    def end(self) -> None:
        """Let go of everything, its permit but for that of a call that has never waited. Idempotent."""
        if self.ended:
            return
        if self._generations:  # Of tasks that the stage has left behind: the call leaves them.
            for number, engine in list(self._generations.items()):
                self.generation_ended(number, engine, None, asyncio.CancelledError())
        self.ended = self.closing = True
        queue, replica = self.queue, self.worker.replica
        run = queue.run
        if self._struck:
            task = self.worker.task
            if task is not None and task.cancelling():
                task.uncancel()  # One cancellation: another one may be the loop's, which goes down.
        if self.done:
            replica.done += 1
        if replica.notify_call is not None:
            self._notify_end(replica.notify_call)
        if self._error is not None:
            self._error = None  # Its traceback may have frames that have this call.
        if self.has_suspended or run.keeps_calls:
            if self.holds and self._since is not None:
                self._busy += replica.now() - self._since
            # A call that fails at once is not quick.
            known = self.done and self._since is not None
            run.call_ended(self, self._busy if known else None)
        queue.ended()

    def begin(self, run: CallRun) -> None:
        """Note when it began, where that is to be known."""
        replica = self.worker.replica
        self._started = now = replica.now()
        if run.routed:
            self._since = now
        if (notify := replica.notify_call) is not None:
            # By position, which is twice as fast as by name.
            notify(CallStarted(run.request.id, run.stage, replica.number, self.path, now))

    async def hand_over_all(self, outputs: Any) -> None:  # noqa: ANN401, C901, PLR0912
        """Hand over what an async generator yields, to its end. One loop, on the path of every item."""
        run, worker, path = self.queue.run, self.worker, self.path
        is_full, push = run.is_full, run.push
        clock, request, notify = worker.clock, run.request, worker.replica.notify_item
        children = 0
        waiting = False  # For room, with *value* in hand.
        value: Any = None
        thrown: BaseException | None = None
        try:
            async for value in outputs:  # looked at below, where a wait was cut
                if self.cancelled:
                    break
                child = path + (children,)  # noqa: RUF005  # twice as fast as (*path, children)
                if is_full(child):
                    waiting = True
                    await self.room(child)
                    waiting = False
                push(child, value)
                children += 1
                if notify is not None:
                    self.produced(child, value)
                value = None  # noqa: PLW2901  # not to be kept while the generator works on
                if children == 1:  # From here on it is known where all of them go.
                    is_full, push = run.inlet(path)
                    if request.fresh:  # Let the stages below, and the reader, begin with it.
                        await asyncio.sleep(0)
                elif clock() >= worker.until or request.first_unread:
                    await asyncio.sleep(0)
                if self.untidy and (cleanup := self._cleanup) is not None and cleanup.abandoned:
                    await cleanup.close_abandoned()
                if self.cancelled:  # By what it pushed, for example.
                    break  # type: ignore[unreachable]  # the attribute has changed meanwhile
            else:
                if not self.cancelled:
                    run.counted(path, children)
                    self.done = True
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            thrown = error
        if waiting and not self.cancelled and isinstance(thrown, asyncio.CancelledError):
            # A time limit of the stage struck at its `yield`, while the output waited for room.
            push((*path, children), value)
            if notify is not None:
                self.produced((*path, children), value)
            children += 1
            thrown = await self._interrupted(outputs, thrown, children)
        self.outputs = children
        self.closing = True
        if not self.done:
            await self._close(outputs, thrown)
        thrown = None  # Its traceback has this frame.

    def produced(self, path: Path, value: object) -> None:
        """Show an item that was handed over to the observers that want it."""
        assert self.replica.notify_item is not None
        self.replica.notify_item(
            ItemProduced(
                request=self.run.request.id,
                stage=self.run.stage,
                path=path,
                time=self.replica.now(),
                value=value,
            )
        )

    async def _interrupted(
        self,
        outputs: Any,  # noqa: ANN401  # any async generator
        error: BaseException,
        children: int,
    ) -> BaseException:
        # Let the generator see what struck it: a time limit turns it into an end or a TimeoutError.
        try:
            await outputs.athrow(error)
        except StopAsyncIteration:
            self.run.counted(self.path, children)
            self.done = True
            return error
        except BaseException as seen:  # noqa: BLE001  # the request fails with it
            return seen
        return RuntimeError("the stage went on to yield after it was cancelled at a yield")

    async def _close(self, outputs: Any, error: BaseException | None) -> None:  # noqa: ANN401
        if error is not None:
            self.failed(error)
        try:
            await outputs.aclose()
        except BaseException as late:  # noqa: BLE001  # the request fails with it
            self.failed(late)

    def _notify_end(self, notify: Notify) -> None:
        replica, run, error = self.worker.replica, self.queue.run, self._error
        now = replica.now()
        outcome: Outcome = "failed" if error else "done" if self.done else "cancelled"
        outputs = self.outputs if replica.generator else int(self.done)
        # By position, which is twice as fast as by name.
        notify(
            CallEnded(
                run.request.id, run.stage, replica.number, self.path, now,
                now - self._started, outputs, outcome, error,
            )
        )  # fmt: skip

    # ---- what it shows to handles and engines that are used inside it

    @property
    def cleanup(self) -> Cleanup:
        """Where the call's open generations are kept."""
        if self._cleanup is None:
            self._cleanup = Cleanup()
            self.untidy = True
        return self._cleanup

    @property
    def priority(self) -> int:
        """The request's priority; lower runs earlier."""
        return self.run.request.priority

    @property
    def deadline(self) -> float | None:
        """When the request's time is over, on the loop's clock; None: never."""
        return self.run.request.deadline

    @property
    def origin(self) -> Origin:
        """Who asks, for engines that schedule. Paths of inner requests go on from the call's."""
        run, path, depth = self.run, self.path, self.run.index
        request = run.request
        while (parent := request.parent) is not None:
            path = (*parent.path, *path)
            depth += parent.run.index + 1
            request = parent.run.request
        return Origin(
            stage=run.stage,
            request=request.number,
            id=request.id,
            path=path,
            arrived=request.arrived,
            deadline=run.request.deadline,
            depth=depth,
        )

    def generation_started(self, engine: str, /) -> int:
        """Note that an engine was asked for something, and give the number of the pair of events."""
        number = _next_generation()
        notify = self.replica.notify_generation
        # What a task that the stage has left behind does is outside of every call.
        if notify is not None and not self.ended:
            if self._generations is None:
                self._generations = {}
            self._generations[number] = engine
            notify(
                GenerationStarted(
                    generation=number,
                    engine=engine,
                    request=self.run.request.id,
                    root=self.run.request.root.id,
                    stage=self.run.stage,
                    path=self.path,
                    time=self.replica.now(),
                )
            )
        return number

    def generation_ended(
        self, number: int, engine: str, usage: Usage | None, error: BaseException | None, /
    ) -> None:
        """Note that the engine is done with it, or that it was left."""
        if usage is not None:
            self.run.request.add_usage(usage)
        notify = self.replica.notify_generation
        if notify is None or not self._generations or number not in self._generations:
            return
        del self._generations[number]
        now = self.replica.now()
        left = isinstance(error, asyncio.CancelledError | GeneratorExit)
        outcome: Outcome = "done" if error is None else "cancelled" if left else "failed"
        notify(
            GenerationEnded(
                generation=number,
                engine=engine,
                request=self.run.request.id,
                root=self.run.request.root.id,
                stage=self.run.stage,
                path=self.path,
                time=now,
                outcome=outcome,
                usage=usage,
                error=None if left else error,
            )
        )
        if isinstance(error, EngineDied):
            notify(EngineFailed(engine=engine, time=now, error=error))

    def adopt(self, request: CallRequest) -> None:
        """Keep *request*, which was started inside this call, so that it does not outlive it."""
        if self._inner is None:
            self._inner = set()
            self.untidy = True
        self._inner.add(request)

    def disown(self, request: CallRequest) -> None:
        """Let go of *request*, which has ended."""
        if self._inner is not None:
            self._inner.discard(request)

    # ---- its cancellation

    def cancel(self) -> None:
        """Cancel it, once: nothing needs it any more. Its own task may say so too."""
        if self.cancelled:
            return
        self.cancelled = True
        if self.closing:
            return
        if self.worker.task is asyncio.current_task():
            # It may end without another wait, and its task must not be cancelled then.
            self.replica.loop.call_soon(self._strike)
        else:
            self._strike()

    def _strike(self) -> None:
        task = self.worker.task
        if not self.closing and task is not None:
            self._struck = True
            task.cancel()

    @property
    def is_here(self) -> bool:
        """Whether its loop runs here: its context may have been copied to another thread."""
        return self.replica.loop is asyncio.get_running_loop()

    # ---- its permit, and its waits

    async def wait(self, event: asyncio.Event) -> None:
        """Wait inside alto: give the permit back, wait for *event*, and take a permit again.

        Cancellation: nothing is lost. A call that goes on takes a permit first; one that is to end
        needs none to clean up.
        """
        self._waits += 1
        self._give_permit()
        try:
            await event.wait()
        except BaseException:
            if self.cancelled:
                self._waits -= 1
            else:
                with anyio.CancelScope(shield=True):
                    await self._take_permit()
            raise
        await self._take_permit()

    def _give_permit(self) -> None:
        if self.holds:
            self._gave()
            self.worker.replica.freed()

    def _gave(self) -> None:
        self.holds = False
        self.replica.permits.gave()
        if self._since is not None:
            self._busy += self.replica.now() - self._since

    def _has(self) -> None:
        self.holds = True
        if self._since is not None:
            self._since = self.replica.now()

    async def _take_permit(self) -> None:
        # Unless another task of the call still waits. A task that the call has left behind gets none.
        # Cancellation: the call goes on without a permit, to clean up.
        self._waits -= 1
        if self._waits or self.holds or self.closing or self._resume is not None:
            return
        replica = self.replica
        if replica.permits.resume(self):
            self._has()
            return
        self._resume = resume = asyncio.Event()
        try:
            await resume.wait()
        except asyncio.CancelledError:
            if not replica.permits.left(self):
                replica.permits.gave()
                replica.freed()
            raise
        finally:
            self._resume = None
        if self.closing:  # A task that the call has left behind.
            replica.permits.gave()  # type: ignore[unreachable]  # it has changed meanwhile
            replica.freed()
            return
        self._has()

    def resumed(self) -> None:
        """Go on: the replica has taken a permit for this call."""
        if self._resume is not None:
            self._resume.set()

    async def room(self, path: Path) -> None:
        """Wait until every consumer of the stage has room for an item at *path*.

        Cancellation: the item is dropped; the room goes to the next who waits for it.
        """
        run = self.run
        again = False
        waited_at: Room | None = None
        while (room := run.no_room_at(path)) is not None:
            granted = asyncio.Event()
            room.add(granted, first=again)  # Another was quicker: keep the place in the line.
            again = True
            try:
                await self.wait(granted)
            except asyncio.CancelledError:
                if granted.is_set():
                    room.wake()
                else:
                    room.remove(granted)
                raise
            waited_at = room
            if run.no_room_at(path) not in (None, room):
                room.wake()
        if waited_at is not None:
            # The item may not take the room that was given: its group may have come to be
            # meanwhile, and have room of its own. So the next one looks too.
            waited_at.wake()


@coroutine
def calls(worker: CallWorker) -> Generator[Any, Any, None]:
    """Run calls: the one place in which a call begins, runs, hands over, is tidied and ends.

    A worker sends it a call, and steps it on in a context of that call's own. It yields what the call
    waits for, as a coroutine does, and :data:`ENDED` when the call has ended. One generator serves
    call after call, for making one anew would cost as much as the rest.

    Raises:
        KeyboardInterrupt: As a stage did, when its call has ended; so SystemExit.
    """
    replica = worker.replica
    fn, own, generator = replica.fn, replica.resources, replica.generator
    notify_call, notify_item = replica.notify_call, replica.notify_item
    set_call = current_call.set
    call: Call = yield ENDED
    while True:
        set_call(call)
        run = call.queue.run
        if notify_call is not None or run.routed:
            call.begin(run)
        try:
            if run.values is not None:
                work = fn(*call.args, **{**own, **run.values})
            else:
                work = fn(*call.args, **own) if own else fn(*call.args)
            if generator:
                yield from call.hand_over_all(work)
            else:
                if type(work) is not CoroutineType:
                    work = _awaited(work)
                value = yield from work  # pyright: ignore[reportGeneralTypeIssues]
                if not call.cancelled:
                    # A leader has not suspended since the queue saw that there is room.
                    if replica.leader is not worker and run.is_full(call.path):
                        yield from call.room(call.path)
                    run.push(call.path, value)
                    call.done = True
                    if notify_item is not None:
                        call.produced(call.path, value)
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            call.failed(error)
        if call.untidy:
            yield from call.tidy()
        call.end()
        run = value = work = call = None  # type: ignore[assignment]  # keep nothing alive
        call = yield ENDED


async def _awaited(work: Any) -> Any:  # noqa: ANN401  # what a stage's function has returned
    return await work


_generations = iter(range(1, 2**63))


def _next_generation() -> int:
    return next(_generations)


async def wait(event: asyncio.Event) -> None:
    """Wait for *event* inside alto: whatever a stage awaits of alto's waits here.

    A call that holds a permit gives it back meanwhile; see :meth:`Call.wait`.

    Cancellation: nothing is lost.
    """
    call = parking_call()
    if call is None:
        await event.wait()
    else:
        await call.wait(event)


def parking_call() -> Call | None:
    """Give the stage call that runs in this context and has a permit to give back, if any."""
    call = current_call.get()
    if not isinstance(call, Call) or call.closing:
        return None
    # Not is_here: whatever waits comes through here.
    return call if call.replica.loop is asyncio.get_running_loop() else None


def calls_around() -> Iterator[Call]:
    """Give the call that this context is of, perhaps ended; the one that waits for it; and so on."""
    call = current_call.get()
    if isinstance(call, Call) and call.is_here:
        yield call
        while (call := call.run.request.parent) is not None:
            yield call


def check_outside(requests: Collection[Any], what: str) -> None:
    """Refuse to close *what* where that would wait for the call that closes it.

    Raises:
        RuntimeError: A call that has not ended, of one of *requests* or of one inside them, runs here.
    """
    if any(call.run.request in requests and not call.ended for call in calls_around()):
        msg = f"a stage cannot close the {what} that it works for, and wait; raise instead"
        raise RuntimeError(msg)
