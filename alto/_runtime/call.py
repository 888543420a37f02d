"""One call of a stage: its life, its permit, its waits, its cancellation.

Theory of operation. Every call begins, runs, hands over its outputs, is cleaned up and ends in one
function, :func:`run_calls`. This does not depend on the stage (a coroutine or an async generator)
or on its executor. What surrounds a call is chosen once per replica: the replica's executor provides
the function that a call awaits or iterates, and notifiers are None where no observer wants an event.

A call runs in one context, a copy of its request's: the worker runs each step with ``Context.run``
(worker.py). What a call sets is therefore seen by what it starts, and by nothing else.

A call holds a permit of its replica while it runs user code, and gives the permit back while one of
its tasks waits inside alto. All such waits go through :meth:`Call.wait`.
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
from alto._runtime.observers import Notifiers, Notify
from alto._runtime.room import Room
from alto._wait import wait_shielded
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
           "run_calls", "enclosing_calls", "check_not_inside", "active_call", "wait")  # fmt: skip


ENDED: Final = object()
"""Yielded by :func:`run_calls` when a call has ended."""


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
        """The request's id."""
        ...

    @property
    def root(self) -> Any:  # noqa: ANN401  # a request
        """The outermost request."""
        ...

    def stage_failed(self, call: Call, cause: BaseException) -> None:
        """Fail the request with the exception that a call has raised."""
        ...

    def add_usage(self, usage: Usage) -> None:
        """Add the cost of a generation."""
        ...

    def cancel(self) -> None:
        """Stop the request; its results are not needed any more."""
        ...

    async def wait_ended(self) -> None:
        """Wait until no call of the request runs any more."""
        ...


class CallRun(Protocol):
    """The request at the stage, as its calls see it."""

    @property
    def push(self) -> Callable[[Path, Any], None]:
        """Function that hands an item over to the consumers."""
        ...

    @property
    def is_full(self) -> Callable[[Path], bool]:
        """Function that returns whether an item must wait for room."""
        ...

    suspended: dict[Path, Call]
    values: Mapping[str, object] | None
    index: int
    routed: bool

    @property
    def request(self) -> CallRequest:
        """The request."""
        ...

    @property
    def stage(self) -> str:
        """Name of the stage, with the pipeline's name before it."""
        ...

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        ...

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:
        """Return ``is_full`` and ``push`` for the outputs of the generator call at *path*."""
        ...

    def no_room_at(self, path: Path) -> Room | None:
        """Return the full room that an item at *path* must wait for; None: no room is full."""
        ...

    def counted(self, path: Path, children: int) -> None:
        """Report that the call at *path* has ended after *children* outputs."""
        ...

    @property
    def tracks_calls(self) -> bool:
        """True if every call's end is reported, not only that of calls that have suspended."""
        ...

    def call_ended(self, call: Call, seconds: float | None) -> None:
        """Forget a call that has ended."""
        ...


class CallQueue(Protocol):
    """The queue that a call was taken from, as the call sees it."""

    blocked: bool

    @property
    def ready(self) -> Sized:
        """Calls that have not started."""
        ...

    @property
    def run(self) -> CallRun:
        """The request at the stage."""
        ...

    def ended(self) -> None:
        """Count a call that has ended."""
        ...


class CallReplica(Notifiers, Protocol):
    """The replica that runs a call, as the call sees it."""

    number: int
    generator: bool

    @property
    def fn(self) -> Callable[..., Any]:
        """Function whose result a call awaits or iterates."""
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
        """The replica's permits."""
        ...

    def use_permits(self) -> None:
        """Use free permits."""
        ...

    def permit_returned(self) -> None:
        """Use a permit that was given back."""
        ...


class CallWorker(Protocol):
    """The worker that steps a call, as the call sees it."""

    task: asyncio.Task[Any] | None
    call: Call | None

    @property
    def clock(self) -> Callable[[], float]:
        """Clock that measures the worker's time slice."""
        ...

    until: float

    @property
    def replica(self) -> CallReplica:
        """The worker's replica."""
        ...


class Call:
    """One call of a stage, from the moment it has a permit until it has ended; see the module's docstring."""

    inner_runner: InnerRunner | None = None
    """The app runs the pipelines that a call calls."""
    # Class attributes, not slots: a call that never waits sets only a few of them, and so costs less.
    cancelled = False
    """Nothing needs the call any more; its outputs are dropped."""
    closing = False
    """The stage's code has ended; what remains is clean-up, which is not interrupted."""
    done = False
    """The call has ended by itself and handed over all its outputs."""
    needs_cleanup = False
    """There may be something to close at the end: generations or inner requests."""
    ended = False
    outputs = 0
    """Number of items handed over."""
    _error: BaseException | None = None
    _task_cancelled = False  # alto has cancelled the worker's task to cancel this call.
    has_permit = True
    """True if the call has a permit."""
    has_suspended = False
    """True if the worker's task has waited since the call began, so that it can be cancelled."""
    _waits = 0
    _resume: asyncio.Event | None = None
    _cleanup: Cleanup | None = None
    _inner: set[CallRequest] | None = None
    _started: float = 0.0
    _since: float | None = None  # When it last took a permit; None where no router needs the times.
    _busy = 0.0
    # Open generations that observers know of: the engine by number.
    _generations: dict[int, str] | None = None

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

    # ---- begin, clean up, end; see also run_calls()

    def failed(self, error: BaseException) -> None:
        """Fail the request, unless *error* is how a cancelled call ends.

        Raises:
            KeyboardInterrupt: The call failed with it, so the program ends; likewise SystemExit.
        """
        # If something else cancelled the task, the task ends after this call: see Worker.is_cancelled.
        if self.cancelled and isinstance(error, asyncio.CancelledError):
            return
        if not self.ended:
            self._error = error
            self.run.request.stage_failed(self, error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.end()
            raise error

    async def clean_up(self) -> None:
        """Close everything that must not outlive the call. Cancellation: shielded."""
        self.closing = True  # From here on cancel() has no effect, so clean-up is not interrupted.
        try:
            if self._inner:
                self._waits += 1
                # Inner requests may need a permit of this very replica to end.
                self._give_permit()
                for request in list(self._inner):
                    request.cancel()  # All first, so that they stop side by side.
                for request in list(self._inner):
                    await wait_shielded(request.wait_ended)
                self._waits -= 1
            if self._cleanup is not None:
                await self._cleanup.close_all()
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            self.failed(error)

    def end(self) -> None:
        """End the call and release what it holds, except its permit. Idempotent.

        The worker passes the permit on to the next call (see ``Worker._serve``).
        """
        if self.ended:
            return
        # Generations of tasks that outlive the stage's function count as cancelled.
        if self._generations:
            for number, engine in list(self._generations.items()):
                self.generation_ended(number, engine, None, asyncio.CancelledError())
        self.ended = self.closing = True
        queue, replica = self.queue, self.worker.replica
        run = queue.run
        if self._task_cancelled:
            task = self.worker.task
            if task is not None and task.cancelling():
                task.uncancel()  # Only ours: another one may come from a loop that is shutting down.
        if self.done:
            replica.done += 1
        if replica.notify_call is not None:
            self._notify_end(replica.notify_call)
        if self._error is not None:
            # Break the cycle: its traceback may have frames that refer to this call.
            self._error = None
        if self.has_suspended or run.tracks_calls:
            if self.has_permit and self._since is not None:
                self._busy += replica.now() - self._since
            # The time of a call that failed says nothing about the replica's speed.
            known = self.done and self._since is not None
            run.call_ended(self, self._busy if known else None)
        queue.ended()

    def begin(self, run: CallRun) -> None:
        """Record the start of the call for observers and routers."""
        replica = self.worker.replica
        self._started = now = replica.now()
        if run.routed:
            self._since = now
        if (notify := replica.notify_call) is not None:
            # By position, which is twice as fast as by name.
            notify(CallStarted(run.request.id, run.stage, replica.number, self.path, now))

    async def hand_over_all(self, outputs: Any) -> None:  # noqa: ANN401, C901, PLR0912
        """Hand over all that an async generator yields. One loop, since every item passes through it."""
        run, worker, path = self.queue.run, self.worker, self.path
        is_full, push = run.is_full, run.push
        clock, request, notify = worker.clock, run.request, worker.replica.notify_item
        children = 0
        waiting = False  # For room, with *value* in hand.
        value: Any = None
        thrown: BaseException | None = None
        try:
            async for value in outputs:  # also used below, where the wait for room was cancelled
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
                value = None  # noqa: PLW2901  # do not keep the item alive while the generator runs on
                if children == 1:  # The consumer of the first output takes all others too: bind it.
                    is_full, push = run.inlet(path)
                    if request.fresh:  # Let later stages and the reader start on the first result.
                        await asyncio.sleep(0)
                elif clock() >= worker.until or request.first_unread:
                    await asyncio.sleep(0)
                if (
                    self.needs_cleanup
                    and (cleanup := self._cleanup) is not None
                    and cleanup.abandoned
                ):
                    await cleanup.close_abandoned()
                if self.cancelled:  # Pushing the item may have cancelled this call.
                    break  # type: ignore[unreachable]  # the attribute has changed meanwhile
            else:
                if not self.cancelled:
                    run.counted(path, children)
                    self.done = True
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            thrown = error
        if waiting and not self.cancelled and isinstance(thrown, asyncio.CancelledError):
            # A time limit inside the stage expired at its `yield`, while the output waited for room. The
            # output is kept: the stage has yielded it.
            push((*path, children), value)
            if notify is not None:
                self.produced((*path, children), value)
            children += 1
            thrown = await self._interrupted(outputs, thrown, children)
        self.outputs = children
        self.closing = True
        if not self.done:
            await self._close(outputs, thrown)
        thrown = None  # Break the cycle: its traceback refers to this frame.

    def produced(self, path: Path, value: object) -> None:
        """Notify observers of an item that was handed over."""
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
        # Throw the cancellation into the generator, as a plain `await` at the yield would: a time limit
        # turns it into an end or a TimeoutError.
        try:
            await outputs.athrow(error)
        except StopAsyncIteration:
            self.run.counted(self.path, children)
            self.done = True
            return error
        except BaseException as seen:  # noqa: BLE001  # the request fails with it
            return seen
        return RuntimeError("the stage yielded again after it was cancelled at a yield")

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

    # ---- for handles and engines that are used inside the call (see CurrentCall)

    @property
    def cleanup(self) -> Cleanup:
        """The call's open generations."""
        if self._cleanup is None:
            self._cleanup = Cleanup()
            self.needs_cleanup = True
        return self._cleanup

    @property
    def priority(self) -> int:
        """The request's priority; lower runs earlier."""
        return self.run.request.priority

    @property
    def deadline(self) -> float | None:
        """Time on the loop's clock at which the request times out; None: never."""
        return self.run.request.deadline

    @property
    def origin(self) -> Origin:
        """The origin, for engines that schedule. A path in an inner request continues the outer call's."""
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
        """Record that an engine was asked for something. Returns a number for :meth:`generation_ended`."""
        number = _next_generation()
        notify = self.replica.notify_generation
        # A task that outlives its call is outside of every call: observers see nothing of it.
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
        """Record that the engine has finished the generation, or that it was abandoned."""
        if usage is not None:
            self.run.request.add_usage(usage)
        notify = self.replica.notify_generation
        if notify is None or not self._generations or number not in self._generations:
            return
        del self._generations[number]
        now = self.replica.now()
        abandoned = isinstance(error, asyncio.CancelledError | GeneratorExit)
        outcome: Outcome = "done" if error is None else "cancelled" if abandoned else "failed"
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
                error=None if abandoned else error,
            )
        )
        if isinstance(error, EngineDied):
            notify(EngineFailed(engine=engine, time=now, error=error))

    def adopt(self, request: CallRequest) -> None:
        """Register *request*, which was started inside this call and must not outlive it."""
        if self._inner is None:
            self._inner = set()
            self.needs_cleanup = True
        self._inner.add(request)

    def disown(self, request: CallRequest) -> None:
        """Unregister *request*, which has ended."""
        if self._inner is not None:
            self._inner.discard(request)

    # ---- cancellation

    def cancel(self) -> None:
        """Cancel the call, once: nothing needs it any more. May be called from its own task."""
        if self.cancelled:
            return
        self.cancelled = True
        if self.closing:
            return
        if self.worker.task is asyncio.current_task():
            # Called from the call itself, which may end without another wait. Then its task, which
            # goes on to other calls, must not be cancelled.
            self.replica.loop.call_soon(self._cancel_task)
        else:
            self._cancel_task()

    def _cancel_task(self) -> None:
        task = self.worker.task
        if not self.closing and task is not None:
            self._task_cancelled = True
            task.cancel()

    @property
    def is_here(self) -> bool:
        """True in the thread of the call's loop: its context may have been copied to another thread."""
        return self.replica.loop is asyncio.get_running_loop()

    # ---- permits and waits

    async def wait(self, event: asyncio.Event) -> None:
        """Wait inside alto: give the permit back, wait for *event*, and take a permit again.

        Cancellation: nothing is lost. A call that catches the cancellation and continues has a permit
        again; a call that alto cancels needs none to clean up.
        """
        self._waits += 1
        self._give_permit()
        try:
            await event.wait()
        except BaseException:
            if self.cancelled:
                self._waits -= 1
            else:  # For example a time limit inside the stage: user code continues, and needs a permit.
                with anyio.CancelScope(shield=True):
                    await self._take_permit()
            raise
        await self._take_permit()

    def _give_permit(self) -> None:
        if self.has_permit:
            self._permit_given_back()
            self.worker.replica.permit_returned()

    def _permit_given_back(self) -> None:
        self.has_permit = False
        self.replica.permits.give_back()
        if self._since is not None:
            self._busy += self.replica.now() - self._since

    def _permit_taken(self) -> None:
        self.has_permit = True
        if self._since is not None:
            self._since = self.replica.now()

    async def _take_permit(self) -> None:
        # No permit is taken while another task of the call still waits (the last one to return takes
        # it), nor for a task that outlives its call.
        # Cancellation: the call continues without a permit, to clean up.
        self._waits -= 1
        if self._waits or self.has_permit or self.closing or self._resume is not None:
            return
        replica = self.replica
        if replica.permits.resume(self):
            self._permit_taken()
            return
        self._resume = resume = asyncio.Event()
        try:
            await resume.wait()
        except asyncio.CancelledError:
            # The permit may have been granted in the same turn of the loop: then it is passed on.
            if not replica.permits.cancel_resume(self):
                replica.permits.give_back()
                replica.permit_returned()
            raise
        finally:
            self._resume = None
        if self.closing:  # The call has ended meanwhile: this task outlives it.
            replica.permits.give_back()  # type: ignore[unreachable]  # it has changed meanwhile
            replica.permit_returned()
            return
        self._permit_taken()

    def resumed(self) -> None:
        """Resume the call: the replica has taken a permit for it."""
        if self._resume is not None:
            self._resume.set()

    async def room(self, path: Path) -> None:
        """Wait until every consumer of the stage has room for an item at *path*.

        Cancellation: the item is dropped; the room goes to the next call that waits for it.
        """
        run = self.run
        again = False
        waited_at: Room | None = None
        while (room := run.no_room_at(path)) is not None:
            granted = asyncio.Event()
            room.add(granted, first=again)  # A call that lost a race keeps its place in the queue.
            again = True
            try:
                await self.wait(granted)
            except asyncio.CancelledError:
                if granted.is_set():  # Granted and cancelled in the same turn: pass the room on.
                    room.wake()
                else:
                    room.remove(granted)
                raise
            waited_at = room
            if run.no_room_at(path) not in (None, room):
                room.wake()
        if waited_at is not None:
            # The item may not use the room that it was granted: its group may have been created
            # meanwhile and have room of its own. So let the next waiting call check too.
            waited_at.wake()


@coroutine
def run_calls(worker: CallWorker) -> Generator[Any, Any, None]:
    """Run calls: the one function in which a call begins, runs, hands over, is cleaned up and ends.

    A worker sends it a call and then steps it in that call's own context. It yields what the call
    waits for, as a coroutine does, and :data:`ENDED` when the call has ended. One generator runs many
    calls, one after another: a new generator per call would double the cost of a call.

    Raises:
        KeyboardInterrupt: A stage raised it; raised when its call has ended. Likewise SystemExit.
    """
    replica = worker.replica
    fn, own, generator = replica.fn, replica.resources, replica.generator
    notify_call, notify_item = replica.notify_call, replica.notify_item
    set_call = current_call.set
    call: Call = yield ENDED
    while True:
        set_call(call)
        run = call.queue.run
        # Most calls need no begin(): a notifier that calls are to have must be tested here too.
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
                    # While this worker leads, the call has not suspended since its queue checked for room.
                    if replica.leader is not worker and run.is_full(call.path):
                        yield from call.room(call.path)
                    run.push(call.path, value)
                    call.done = True
                    if notify_item is not None:
                        call.produced(call.path, value)
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            call.failed(error)
        if call.needs_cleanup:
            yield from call.clean_up()
        call.end()
        run = value = work = call = None  # type: ignore[assignment]  # keep no item alive while waiting
        call = yield ENDED


async def _awaited(work: Any) -> Any:  # noqa: ANN401  # any awaitable that a stage's function returned
    return await work


_generations = iter(range(1, 2**63))


def _next_generation() -> int:
    return next(_generations)


async def wait(event: asyncio.Event) -> None:
    """Wait for *event* inside alto. All waits of stages on alto go through here.

    A call that holds a permit gives it back during the wait; see :meth:`Call.wait`.

    Cancellation: nothing is lost.
    """
    call = active_call()
    if call is None:
        await event.wait()
    else:
        await call.wait(event)


def active_call() -> Call | None:
    """Return the stage call that runs in this context and can give its permit back, if any."""
    call = current_call.get()
    if not isinstance(call, Call) or call.closing:
        return None
    # is_here, inlined: every wait passes through here.
    return call if call.replica.loop is asyncio.get_running_loop() else None


def enclosing_calls() -> Iterator[Call]:
    """Yield the call of this context, which may have ended, then the calls around it, innermost first."""
    call = current_call.get()
    if isinstance(call, Call) and call.is_here:
        yield call
        while (call := call.run.request.parent) is not None:
            yield call


def check_not_inside(requests: Collection[Any], what: str) -> None:
    """Refuse to close *what* from inside one of its own calls, which would wait for itself.

    Raises:
        RuntimeError: This code runs in a call of *requests* or of their inner requests.
    """
    if any(call.run.request in requests and not call.ended for call in enclosing_calls()):
        msg = f"a stage cannot close the {what} that its own call belongs to; raise an exception instead"
        raise RuntimeError(msg)
