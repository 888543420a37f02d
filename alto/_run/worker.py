"""The tasks that run stage calls, and how few of them are awake.

Theory of operation. A replica of a stage has a pool of worker tasks, shared by all requests. At most one idle worker at a time is being woken or runs calls that have not suspended
yet: the *leader*. As long as its calls end without ever suspending, the leader takes call after
call without a task switch. The moment it suspends, it stops being leader, and if there is more to
start another worker is woken. So work that never waits costs no wake-ups, and work that waits gets
as many workers as there are permits.

To see the moment of suspension a worker drives its own loop by hand (:func:`_driven`), passing
every future through unchanged.

Workers are in no cancel scope (crew.py): the app ends them by saying so, after
their calls have ended. A single call is cancelled with ``Task.cancel`` (see ``Call.cancel``),
once, and what the call does to clean up runs undisturbed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import TYPE_CHECKING, Any

from alto._aio import current_call
from alto._run.call import Call

if TYPE_CHECKING:
    from alto._run.berth import Berth
    from alto._run.lane import Lane
    from alto._run.replica import Replica

__all__ = ("Worker",)

_MOST_IDLE = 1024  # Idle workers kept per replica, 5 KB each; more were needed for a burst and end.

_MANY = 256  # Calls, or items of a generator, after which others get a turn.


@coroutine
def _driven(worker: Worker, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await a coroutine, and tell the worker whenever it is about to suspend."""
    # No bound method is kept while it waits: each is one more object for the garbage collector.
    thrown: BaseException | None = None
    while True:
        try:
            waited_for = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration:
            return
        worker.suspends()
        thrown = None
        try:
            yield waited_for
        except BaseException as error:  # noqa: BLE001  # passed on to where it belongs
            thrown = error


class Worker:
    """One task that runs calls of one replica."""

    __slots__ = ("_idle", "call", "pauses", "queue", "replica", "task")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.task: asyncio.Task[Any] | None = None
        self.call: Call | None = None
        """The call it runs, as long as that has not suspended."""
        self.pauses = False
        """It lets others have the loop for a moment."""
        self.queue: Lane | Berth | None = None
        """Where that call was taken from, which is out of line in this time."""
        self._idle: asyncio.Future[None] | None = None

    async def main(self) -> None:
        """Run calls until the app ends."""
        self.task = asyncio.current_task()
        try:
            await _driven(self, self._loop())
        finally:
            replica = self.replica
            if self in replica.idle:  # Cancelled by the loop, which is going down.
                replica.idle.remove(self)
            if replica.leader is self:
                replica.leader = None
            if replica.turns.has_next and not replica.closing:
                replica.kick()

    def wake(self) -> None:
        """Stop being idle. No effect on a worker that has not begun yet."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def suspends(self) -> None:
        """The worker is about to wait: its call can be cancelled now, and somebody else may lead."""
        if self.pauses:  # It leads on in a moment; a second leader would be one too many.
            return
        call, self.call = self.call, None
        if call is not None:
            call.lane.calls[call.path] = call
        replica = self.replica
        queue, self.queue = self.queue, None
        if queue is not None and queue.ready and not queue.blocked:
            replica.turns.offered(queue)
        if replica.leader is self:
            replica.leader = None
            if replica.turns.has_next:
                replica.kick()
            elif replica.node.routed:
                replica.node.dispatch()

    async def _loop(self) -> None:
        replica = self.replica
        generators = replica.node.spec.stage.generator
        while not self._is_cancelled():
            if (queue := self._next()) is not None:
                served = self._generators(queue) if generators else self._coroutines(queue)
                if await served:  # Calls that never wait must not stop the loop.
                    self.pauses = True
                    await asyncio.sleep(0)
                    self.pauses = False
                continue
            if replica.leader is self:
                replica.leader = None
            if replica.closing or len(replica.idle) >= _MOST_IDLE:
                return
            current_call.set(None)  # Do not keep the last request alive.
            self._idle = replica.loop.create_future()
            replica.idle.append(self)
            await self._idle

    def _next(self) -> Lane | Berth | None:
        # Take a permit for what is next in line. Where a router says who gets what, it may have
        # waited for this moment.
        replica = self.replica
        queue = replica.turns.next_queue()
        if queue is None and replica.node.routed and not replica.closing:
            if replica.leader is None:  # Nobody else is to be woken for what this one can take.
                replica.leader = self
            replica.node.dispatch()
            queue = replica.turns.next_queue()
        return queue

    async def _coroutines(self, queue: Lane | Berth | None) -> bool:
        # Serves until nothing can be started, or for long: True then. A permit was taken for *queue*.
        replica = self.replica
        turns, fn, resources = replica.turns, replica.fn, replica.resources
        calls = 0
        while queue is not None:
            if (start := queue.take()) is None:
                turns.gave()
                queue = self._next()
                continue
            path, args = start
            lane = queue.lane
            self.call = call = Call(lane, path, self)
            self.queue = queue
            current_call.set(call)
            try:
                value = await fn(*args, **resources)
                if not call.cancelled:
                    # A leader has not suspended since the lane saw that there is room.
                    if replica.leader is not self and lane.is_full(path):
                        await call.room(path)
                    lane.push(path, value)
                    call.done = True
            except BaseException as error:  # noqa: BLE001  # the request fails with it
                self._failed(call, error)
            if call.untidy:
                call.closing = True
                await self._tidy(call)
            self.call = self.queue = None
            call.end()
            following = turns.next_after(queue, bool(queue.ready) and not queue.blocked)
            calls += 1
            if following is not None and (calls == _MANY or self._is_cancelled()):
                return self._give_up(following, pauses=calls == _MANY)
            queue = following
        return False

    def _is_cancelled(self) -> bool:
        # By somebody else than alto, for the calls that alto cancels take it back at their end.
        return self.task is not None and self.task.cancelling() > 0

    def _give_up(self, queue: Lane | Berth, *, pauses: bool) -> bool:
        # The permit for *queue* goes to whoever comes next: another worker, where the task is
        # cancelled, or this one, which only pauses. Gives *pauses*.
        replica = self.replica
        if pauses and replica.leader is None:
            replica.leader = self
        replica.turns.gave()
        queue.offer()
        return pauses

    async def _generators(self, queue: Lane | Berth | None) -> bool:
        # As above.
        turns = self.replica.turns
        calls = 0
        while queue is not None:
            if (start := queue.take()) is None:
                turns.gave()
                queue = self._next()
            else:
                await self._run_generator(queue, *start)
                queue = turns.next_after(queue, bool(queue.ready) and not queue.blocked)
                calls += 1
                if queue is not None and (calls == _MANY or self._is_cancelled()):
                    return self._give_up(queue, pauses=calls == _MANY)
        return False

    async def _run_generator(  # noqa: C901, PLR0912  # one loop, on the path of every item
        self, queue: Lane | Berth, path: tuple[int, ...], args: list[Any]
    ) -> None:
        lane = queue.lane
        self.call = call = Call(lane, path, self)
        self.queue = queue
        current_call.set(call)
        outputs = self.replica.fn(*args, **self.replica.resources)
        is_full, push = lane.is_full, lane.push
        children = 0
        waits, in_hand = False, None
        thrown: BaseException | None = None
        try:
            async for value in outputs:
                if call.cancelled:
                    break
                child = (*path, children)
                if is_full(child):
                    waits, in_hand = True, value
                    await call.room(child)
                    waits = False
                push(child, value)
                children += 1
                if children == 1:  # From here on it is known where all of them go.
                    is_full, push = lane.inlet(path)
                if call.untidy and call.must_close:
                    await call.cleanup.close_abandoned()
                if not children % _MANY:  # A generator that never waits must not stop the clock.
                    await asyncio.sleep(0)
                if call.cancelled:  # By what it pushed, for example.
                    break  # type: ignore[unreachable]  # the attribute has changed meanwhile
            else:
                if not call.cancelled:
                    lane.counted(path, children)
                    call.done = True
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            thrown = error
        if waits and not call.cancelled and isinstance(thrown, asyncio.CancelledError):
            # A time limit of the stage struck at its `yield`, while the output waited for room.
            push((*path, children), in_hand)
            thrown = await self._interrupted(call, outputs, thrown, children + 1)
        call.closing = True
        if not call.done:
            await self._close(call, outputs, thrown)
        if call.untidy:
            await self._tidy(call)
        self.call = self.queue = None
        call.end()

    @staticmethod
    def _failed(call: Call, error: BaseException) -> None:
        # Its own cancellation is how a cancelled call ends; anything else fails the request. A task
        # that somebody else cancelled ends after this call: see _is_cancelled.
        if call.cancelled and isinstance(error, asyncio.CancelledError):
            return
        call.lane.request.stage_failed(call, error)
        if isinstance(error, KeyboardInterrupt | SystemExit):  # The program is to end.
            call.end()
            raise error

    @staticmethod
    async def _interrupted(
        call: Call,
        outputs: Any,  # noqa: ANN401  # any async generator
        error: BaseException,
        children: int,
    ) -> BaseException:
        # Let the generator see what struck it: a time limit turns it into an end or a TimeoutError.
        try:
            await outputs.athrow(error)
        except StopAsyncIteration:
            call.lane.counted(call.path, children)
            call.done = True
            return error
        except BaseException as seen:  # noqa: BLE001  # the request fails with it
            return seen
        return RuntimeError("the stage went on to yield after it was cancelled at a yield")

    @staticmethod
    async def _close(call: Call, outputs: Any, error: BaseException | None) -> None:  # noqa: ANN401
        if error is not None:
            Worker._failed(call, error)
        try:
            await outputs.aclose()
        except BaseException as late:  # noqa: BLE001  # the request fails with it
            Worker._failed(call, late)

    @staticmethod
    async def _tidy(call: Call) -> None:
        try:
            await call.tidy()
        except BaseException as error:  # noqa: BLE001  # the request fails with it
            Worker._failed(call, error)
