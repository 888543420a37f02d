"""Workers: the tasks that run stage calls.

Workers are plain asyncio tasks, not tasks of an anyio group: there is one for each call that waits,
and the cancel scopes of a group's task cost several times as much as the task. One task in the app's
group waits for all workers (:class:`WorkerTasks`), so the group ends after them. When the app closes,
it raises the exceptions that workers have failed with.

Theory of operation. A replica of a stage has a pool of worker tasks, shared by all requests. At most
one worker at a time is the *leader*: it is being woken, or runs calls that have not suspended. While
its calls end without suspending, the leader takes call after call without a task switch. When a call
suspends, its worker stops being the leader, and another worker is woken if more calls can start. So
work that never waits costs no wake-ups, and work that waits gets as many workers as there are
permits.

A worker steps each call by hand, in the call's own context, instead of awaiting it. This shows it
the moment at which the call suspends. Every future that a call yields is passed on unchanged.

Calls that never suspend would starve the event loop. So after a time slice of a few milliseconds a
worker yields to the loop before it starts the next call.

Workers are in no cancel scope. The app ends them with a flag, after their calls have ended. A single
call is cancelled with one ``Task.cancel`` of its worker's task (see ``Call.cancel``), and its
clean-up is not interrupted.
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
    """The tasks of an app's workers.

    Args:
        loop: The loop in which they run.
        context: Each task runs in a copy of it; calls have their own contexts.
        failed: Called when a task has failed. The other tasks are not affected.
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
        """Set when the last task has ended, or when it was closed."""
        self._callback = self._done  # One bound method for all tasks.

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a worker's task."""
        # Not by the program's task factory: an eager one would run the stage immediately, inside the
        # call that has just handed over an item.
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
        """Let :meth:`wait_closed` return when the last worker has ended. No more are started."""
        self._closing = True
        self._changed.set()

    def check(self) -> None:
        """Raise the exceptions that workers have failed with.

        :meth:`wait_closed` does not raise them: a task that ends with a KeyboardInterrupt stops the
        loop, and the worker's task has already done so.

        Raises:
            BaseExceptionGroup: One or more have failed.
        """
        # The loop itself has raised those that end the program.
        failures = [one for one in self._failures
                    if not isinstance(one, KeyboardInterrupt | SystemExit)]  # fmt: skip
        if failures:
            msg = "an app's workers failed"
            raise BaseExceptionGroup(msg, failures)

    async def wait_closed(self) -> None:
        """Wait until it is closed and all tasks have ended.

        Cancellation: shielded from scopes. Only a loop that shuts down cancels it natively, and the
        workers with it: then it is raised when they have ended, closed or not.
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
"""Idle workers kept per replica, 5 KB each. More than that, left over from a burst, end."""

_SLICE_S: Final = 0.005
"""Time slice, in seconds, after which a worker whose calls do not suspend yields to the loop."""

_STEP_S: Final = 0.00002
"""Seconds that each reading of the clock adds where time is virtual."""


class _StepClock:
    """A clock that counts instead of measuring, so that runs on a virtual clock are reproducible."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += _STEP_S
        return self._now


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock that measures time slices on *loop*."""
    own = isinstance(loop, asyncio.BaseEventLoop) and not has_real_time(loop)
    return _StepClock() if own else time.monotonic


def has_real_time(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether ``loop.time()`` is ``time.monotonic()``, which is the faster call then."""
    return isinstance(loop, asyncio.BaseEventLoop) and type(loop).time is asyncio.BaseEventLoop.time


class WorkerReplica(CallReplica, Protocol):
    """The replica, as its workers see it."""

    leader: Worker | None
    idle: list[Worker]
    closing: bool

    @property
    def clock(self) -> Callable[[], float]:
        """Clock that measures the time slices of workers."""
        ...

    @property
    def name(self) -> str:
        """Name of its stage."""
        ...

    @property
    def routed(self) -> bool:
        """True if a router chooses among several replicas of the stage."""
        ...

    def enqueue(self, queue: ReadyQueue) -> None:
        """Queue *queue* for a permit."""
        ...

    def dispatch(self) -> None:
        """Route items that wait for a free replica."""
        ...


@coroutine
def _run_suspended(
    worker: Worker, context: Context, waited_for: Any  # noqa: ANN401
) -> Generator[Any, Any, None]:  # fmt: skip
    """Step a call that has suspended to its end; notify *worker* of each suspension."""
    step, runner = context.run, worker.runner
    while waited_for is not ENDED:
        worker.on_suspend()
        try:
            yield waited_for
        except BaseException as error:  # noqa: BLE001  # thrown into the call, as an await would
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
        self.clock: Any = replica.clock  # Any: pyright takes a callable attribute for a method
        self.task: asyncio.Task[Any] | None = None
        self.call: Call | None = None
        """The running call, until it suspends. Meanwhile its queue is not queued for a permit."""
        self.runner = cast("Generator[Any, Any, None]", run_calls(self))
        self.runner.send(None)  # Run to the first yield, where it takes a call.
        self.until = 0.0
        """End of its time slice, on its clock."""
        self._idle: asyncio.Event | None = None

    async def main(self) -> None:
        """Run calls until the app ends."""
        self.task = asyncio.current_task()
        try:
            await self._work()
        finally:
            replica = self.replica
            if self.call is not None and self.call.ended and self.call.has_permit:
                replica.permits.give_back()  # The call raised an exception that ends the program.
            if self in replica.idle:  # Cancelled by a loop that shuts down.
                replica.idle.remove(self)
            if replica.leader is self:
                replica.leader = None
            if replica.permits.has_next and not replica.closing:
                replica.use_permits()

    def wake(self) -> None:
        """End its idle wait. No effect on a worker that has not begun yet."""
        if self._idle is not None:
            self._idle.set()

    def on_suspend(self) -> None:
        """Hand the lead to another worker: the call is about to wait, and can be cancelled from now on."""
        call, self.call = self.call, None
        replica = self.replica
        if call is not None and not call.ended:
            call.has_suspended = True
            queue = call.queue
            queue.run.suspended[call.path] = call
            # The queue was taken out while this worker served it; others may serve it now.
            if queue.ready and not queue.blocked:
                replica.permits.enqueue(queue)
        if replica.leader is self:
            replica.leader = None
        elif call is None:  # Not the first suspension of the call: nothing to hand over.
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
                    await asyncio.sleep(
                        0
                    )  # It stays leader during the pause, so no second one is woken.
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
        # Take a permit for the queue whose turn it is. In a routed stage, items may have waited for a
        # free permit of this replica: route them first.
        replica = self.replica
        queue = replica.permits.next_queue()
        if queue is None and replica.routed and not replica.closing:
            # Lead, so that dispatch() wakes no other worker for this one's work.
            if replica.leader is None:
                replica.leader = self
            replica.dispatch()
            queue = replica.permits.next_queue()
        return queue

    async def _serve(self, queue: ReadyQueue | None) -> bool:
        # Run calls until none can start, or until the time slice is over: then return True. A permit was
        # taken for *queue*.
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
            # Step by hand: most calls end in this one step, without a coroutine or a task switch.
            waited_for = context.run(send, call)
            if waited_for is not ENDED:
                await _run_suspended(self, context, waited_for)
                self.call = call  # If it has a permit, main() gives it back should this task fail.
                permits.move_to_end(queue)
            more = bool(queue.ready) and not queue.blocked
            if call.has_permit:  # Hand its permit to the next call, without giving it back first.
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
        """Return whether something other than alto has cancelled its task, so that it must end."""
        return self.task is not None and self.task.cancelling() > 0

    def _give_up(self, queue: ReadyQueue) -> bool:
        # Give back the permit for *queue*: to this worker, after a pause, or to another one if this
        # task is cancelled. Returns whether this worker only pauses.
        replica = self.replica
        pauses = not self.is_cancelled()
        if pauses and replica.leader is None:
            replica.leader = self
        replica.permits.give_back()
        replica.enqueue(queue)
        return pauses
