"""Workers: the tasks that run stage calls.

They are asyncio's own, not an anyio group's: there are as many as calls wait, and the scopes of a
group's tasks cost each of them several times what it costs itself. Workers are not cancelled from
outside; they end when they are asked to. One task in the app's group stands for all of them, so that
the group ends when they have. The app raises what they failed with when it closes.

Theory of operation. A replica of a stage has a pool of worker tasks, shared by all requests. At most
one idle worker at a time is being woken or runs calls that have not suspended yet: the *leader*. As
long as its calls end without ever suspending, the leader takes call after call without a task
switch. The moment a call suspends, its worker stops being leader, and if there is more to start
another worker is woken. So work that never waits costs no wake-ups, and work that waits gets as many
workers as there are permits.

A worker steps each call by hand, in the call's own context. That is also how it sees the moment of
suspension. Every future is passed through unchanged.

Calls that never suspend are interrupted every few milliseconds, so that the event loop can do
something else.

Workers are in no cancel scope (worker_tasks.py): the app ends them by saying so, after their calls
have ended. A single call is cancelled with ``Task.cancel`` (see ``Call.cancel``), once, and what the
call does to clean up runs undisturbed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, Final, Protocol, cast, final

import anyio

from alto._runtime.call import ENDED, Call, CallReplica, run_calls
from alto._runtime.queue import ReadyQueue

__all__ = ("Worker", "WorkerReplica", "WorkerTasks", "clock_of", "has_real_time")


@final
class WorkerTasks:
    """The tasks of an app's workers: starts them, and waits until they have ended.

    Args:
        loop: Where they run.
        context: Each runs in a copy of it; calls have contexts of their own.
        failed: Called at once when one has failed, with no effect on the others.
    """

    __slots__ = (
        "_callback",
        "_changed",
        "_closing",
        "_context",
        "_failed",
        "_failures",
        "_loop",
        "_tasks",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: Context, failed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._context = context
        self._failed = failed
        self._failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._changed = asyncio.Event()
        """Set when a task has ended, or none is started any more."""
        self._callback = self._done  # One object for all.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a worker's task."""
        # Past the program's task factory: an eager one would run the stage at once, within the call
        # that has just handed over an item.
        task = asyncio.Task(work, loop=self._loop, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._callback, context=self._context)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        try:
            if not task.cancelled() and (failure := task.exception()) is not None:
                self._failures.append(failure)
                self._failed()
        finally:
            if not self._tasks:
                self._changed.set()

    def close(self) -> None:
        """Wait only for the workers that there are: none is started any more."""
        self._closing = True
        self._changed.set()

    def check(self) -> None:
        """Raise what workers have failed with.

        Not a matter of `stand`, for a task that ends with a KeyboardInterrupt stops its loop, and
        the worker's has done so already.

        Raises:
            BaseExceptionGroup: One or more have failed.
        """
        # The loop itself has raised what ends the program.
        failures = [one for one in self._failures
                    if not isinstance(one, KeyboardInterrupt | SystemExit)]  # fmt: skip
        if failures:
            msg = "an app's workers failed"
            raise BaseExceptionGroup(msg, failures)

    async def wait_closed(self) -> None:
        """Wait until it was closed and all have ended.

        Cancellation: shielded from scopes. Natively only a loop that goes down cancels it, which
        cancels the workers too: it is raised when they have ended, closed or not.
        """
        cut: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while self._tasks or not self._closing:
                self._changed.clear()
                try:
                    await self._changed.wait()
                except asyncio.CancelledError as error:
                    self._closing, cut = True, error
        if cut is not None:
            raise cut


_MOST_IDLE: Final = 1024
"""Idle workers kept per replica, 5 KB each; those beyond, which a burst has needed, end."""

_SLICE_S: Final = 0.005
"""Seconds after which calls that do not suspend give the event loop back."""

_STEP_S: Final = 0.00002
"""Seconds that an item or a call is taken to last where time is virtual."""


class _StepClock:
    """Counts instead of measuring, so that runs on a virtual clock are all alike."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += _STEP_S
        return self._now


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock that says when a worker has had the loop for long."""
    own = isinstance(loop, asyncio.BaseEventLoop) and not has_real_time(loop)
    return _StepClock() if own else time.monotonic


def has_real_time(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether ``loop.time()`` is ``time.monotonic()``, which then is the quicker way to ask."""
    return isinstance(loop, asyncio.BaseEventLoop) and type(loop).time is asyncio.BaseEventLoop.time


class WorkerReplica(CallReplica, Protocol):
    """The replica, as its workers see it."""

    leader: Worker | None
    idle: list[Worker]
    closing: bool

    @property
    def clock(self) -> Callable[[], float]:
        """Says when a worker has had the loop for long."""
        ...

    @property
    def name(self) -> str:
        """Name of its stage."""
        ...

    @property
    def routed(self) -> bool:
        """Return whether a router says which replica of the stage gets what."""
        ...

    def enqueue(self, queue: ReadyQueue) -> None:
        """Put *queue* in line."""
        ...

    def dispatch(self) -> None:
        """Route what has waited for a free replica."""
        ...


@coroutine
def _run_suspended(
    worker: Worker, context: Context, waited_for: Any  # noqa: ANN401
) -> Generator[Any, Any, None]:  # fmt: skip
    """Step a call, which has suspended, to its end, and say whenever it suspends."""
    step, runner = context.run, worker.runner
    while waited_for is not ENDED:
        worker.on_suspend()
        try:
            yield waited_for
        except BaseException as error:  # noqa: BLE001  # passed on to where it belongs
            worker.until = worker.clock() + _SLICE_S
            waited_for = step(runner.throw, error)
        else:
            worker.until = worker.clock() + _SLICE_S
            waited_for = step(runner.send, None)


class Worker:
    """One task that runs calls of one replica."""

    __slots__ = ("_idle", "call", "clock", "replica", "runner", "task", "until")

    def __init__(self, replica: WorkerReplica) -> None:
        self.replica = replica
        self.clock: Any = replica.clock  # Any: pyright takes it for a method
        self.task: asyncio.Task[Any] | None = None
        self.call: Call | None = None
        """The call it runs, as long as that has not suspended. Its queue is out of line so long."""
        self.runner = cast("Generator[Any, Any, None]", run_calls(self))
        self.runner.send(None)  # Up to where it takes a call.
        self.until = 0.0
        """When it has had the loop for long, on its clock."""
        self._idle: asyncio.Event | None = None

    async def main(self) -> None:
        """Run calls until the app ends."""
        self.task = asyncio.current_task()
        try:
            await self._work()
        finally:
            replica = self.replica
            if self.call is not None and self.call.ended and self.call.has_permit:
                replica.permits.give_back()  # It has ended the program.
            if self in replica.idle:  # Cancelled by the loop, which is going down.
                replica.idle.remove(self)
            if replica.leader is self:
                replica.leader = None
            if replica.permits.has_next and not replica.closing:
                replica.use_permits()

    def wake(self) -> None:
        """Stop being idle. No effect on a worker that has not begun yet."""
        if self._idle is not None:
            self._idle.set()

    def on_suspend(self) -> None:
        """Let another worker lead: the call is about to wait, and can be cancelled from now on."""
        call, self.call = self.call, None
        replica = self.replica
        if call is not None and not call.ended:
            call.has_suspended = True
            queue = call.queue
            queue.run.suspended[call.path] = call
            if queue.ready and not queue.blocked:
                replica.permits.enqueue(queue)
        if replica.leader is self:
            replica.leader = None
        elif call is None:  # It has suspended before: nothing has come since.
            return
        if replica.leader is None:
            if replica.permits.has_next:
                replica.use_permits()
            elif replica.routed:
                replica.dispatch()

    async def _work(self) -> None:
        replica = self.replica
        while not self.is_cancelled():
            self.until = self.clock() + _SLICE_S
            if (queue := self._next()) is not None:
                if await self._serve(queue):
                    await asyncio.sleep(0)  # It leads on; a second leader would be one too many.
                continue
            if replica.leader is self:
                replica.leader = None
            if replica.closing or len(replica.idle) >= _MOST_IDLE:
                return
            self._idle = idle = asyncio.Event()
            replica.idle.append(self)
            await idle.wait()
            self._idle = None

    def _next(self) -> ReadyQueue | None:
        # Take a permit for what is next in line. Where a router says who gets what, it may have
        # waited for this moment.
        replica = self.replica
        queue = replica.permits.next_queue()
        if queue is None and replica.routed and not replica.closing:
            if replica.leader is None:  # No other is to be woken for what this one can take.
                replica.leader = self
            replica.dispatch()
            queue = replica.permits.next_queue()
        return queue

    async def _serve(self, queue: ReadyQueue | None) -> bool:
        # Serve until nothing can be started, or for long: True then. A permit was taken for *queue*.
        permits, clock, send = self.replica.permits, self.clock, self.runner.send
        assert self.task is not None
        cancelling = self.task.cancelling
        while queue is not None:
            if (start := queue.take()) is None:
                permits.give_back()
                queue = self._next()
                continue
            request = queue.request
            path, args = start
            self.call = call = Call(queue, path, args, self)
            context = request.context.copy()
            waited_for = context.run(send, call)
            if waited_for is not ENDED:
                await _run_suspended(self, context, waited_for)
                self.call = call  # It has the permit still, if it has one.
                permits.move_to_end(queue)
            more = bool(queue.ready) and not queue.blocked
            if call.has_permit:
                call.has_permit = False
                queue = permits.give_back_and_next(queue, more)
                if queue is None and permits.resuming:
                    self.replica.use_permits()
            else:
                queue = permits.enqueue_and_next(queue, more)
            if queue is not None and (
                clock() >= self.until or request.first_unread or cancelling()
            ):
                self.call = None
                return self._give_up(queue)
        self.call = None
        return False

    def is_cancelled(self) -> bool:
        """Return whether its task was cancelled by something else than alto, so that it is to end."""
        return self.task is not None and self.task.cancelling() > 0

    def _give_up(self, queue: ReadyQueue) -> bool:
        # The permit for *queue* goes to whichever worker comes next: another one, where the task is
        # cancelled, or this one, which only pauses. Gives whether it pauses.
        replica = self.replica
        pauses = not self.is_cancelled()
        if pauses and replica.leader is None:
            replica.leader = self
        replica.permits.give_back()
        replica.enqueue(queue)
        return pauses
