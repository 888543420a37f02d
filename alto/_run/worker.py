"""The tasks that run stage calls, and how few of them are awake.

Theory of operation. A node (a stage in a pipeline) has a pool of worker tasks, shared by all
requests. At most one idle worker at a time is being woken or runs calls that have not suspended
yet: the *leader*. As long as its calls end without ever suspending, the leader takes call after
call without a task switch. The moment it suspends, it stops being leader, and if there is more to
start another worker is woken. So work that never waits costs no wake-ups, and work that waits gets
as many workers as there are permits.

To see the moment of suspension a worker drives its own loop by hand (:class:`_Driven`), passing
every future through unchanged.

Workers shield themselves from cancellation from outside: the app ends them by saying so, after
their calls have ended. A single call is cancelled with ``Task.cancel`` (see ``Call.cancel``),
once, and what the call does to clean up runs undisturbed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any

import anyio

from alto._aio import current_call
from alto._run.call import Call

if TYPE_CHECKING:
    from alto._run.lane import Lane
    from alto._run.node import Node

__all__ = ("Worker",)

_MOST_IDLE = 64  # Idle workers kept per node; more were needed for a burst and end.


class _Driven:
    """Await a coroutine, and tell the worker whenever it is about to suspend."""

    __slots__ = ("_coroutine", "_worker")

    def __init__(self, worker: Worker, coroutine: Coroutine[Any, Any, None]) -> None:
        self._worker = worker
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, None]:
        send, throw = self._coroutine.send, self._coroutine.throw
        suspends = self._worker.suspends
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = send(None) if thrown is None else throw(thrown)
            except StopIteration:
                return
            suspends()
            thrown = None
            try:
                yield waited_for
            except BaseException as error:  # noqa: BLE001  # passed on to where it belongs
                thrown = error


class Worker:
    """One task that runs calls of one node."""

    __slots__ = ("_idle", "call", "lane", "node", "task")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.task: asyncio.Task[Any] | None = None
        self.call: Call | None = None
        """The call it runs, as long as that has not suspended."""
        self.lane: Lane | None = None
        """That call's lane, which is out of line in this time."""
        self._idle: asyncio.Future[None] | None = None

    async def main(self) -> None:
        """Run calls until the app ends."""
        self.task = asyncio.current_task()
        with anyio.CancelScope(shield=True):
            await _Driven(self, self._loop())

    def wake(self) -> None:
        """Stop being idle. No effect on a worker that has not begun yet."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def suspends(self) -> None:
        """The worker is about to wait: its call can be cancelled now, and somebody else may lead."""
        call, self.call = self.call, None
        if call is not None:
            call.lane.calls.add(call)
        node = self.node
        lane, self.lane = self.lane, None
        if lane is not None and lane.ready and not lane.blocked:
            node.turns.offered(lane)
        if node.leader is self:
            node.leader = None
            if node.turns.has_next:
                node.kick()

    async def _loop(self) -> None:
        node = self.node
        turns = node.turns
        serve = self._generators if node.spec.stage.generator else self._coroutines
        while True:
            if (lane := turns.next_queue()) is not None:
                await serve(lane)
            if node.leader is self:
                node.leader = None
            if node.closing or len(node.idle) >= _MOST_IDLE:
                return
            current_call.set(None)  # Do not keep the last request alive.
            self._idle = node.loop.create_future()
            node.idle.append(self)
            await self._idle

    async def _coroutines(self, lane: Lane | None) -> None:
        # Serves until nothing can be started. One permit has been taken for *lane*.
        node, turns, task = self.node, self.node.turns, self.task
        while lane is not None:
            if (start := lane.take()) is None:
                turns.gave()
                lane = turns.next_queue()
                continue
            path, args = start
            self.call = call = Call(lane, path, task)
            self.lane = lane
            current_call.set(call)
            try:
                value = await lane.fn(*args, **lane.resources)
                if not call.cancelled:
                    # A leader has not suspended since the lane saw that there is room.
                    if node.leader is not self and lane.is_full(path):
                        await call.room(path)
                    lane.push(path, value)
                    call.done = True
            except asyncio.CancelledError as error:
                self._cancelled(call, error)
            except Exception as error:  # noqa: BLE001  # the request fails with it
                lane.request.stage_failed(call, error)
            if call.untidy:
                call.closing = True
                await self._tidy(call)
            self.call = self.lane = None
            call.end()
            lane = turns.next_after(lane, bool(lane.ready) and not lane.blocked)

    async def _generators(self, lane: Lane | None) -> None:
        # As above.
        turns = self.node.turns
        while lane is not None:
            if (start := lane.take()) is None:
                turns.gave()
                lane = turns.next_queue()
            else:
                await self._run_generator(lane, *start)
                lane = turns.next_after(lane, bool(lane.ready) and not lane.blocked)

    async def _run_generator(self, lane: Lane, path: tuple[int, ...], args: list[Any]) -> None:
        self.call = call = Call(lane, path, self.task)
        self.lane = lane
        current_call.set(call)
        outputs = lane.fn(*args, **lane.resources)
        is_full, push = lane.is_full, lane.push
        children = 0
        try:
            async for value in outputs:
                if call.cancelled:
                    break
                child = (*path, children)
                if is_full(child):
                    await call.room(child)
                push(child, value)
                children += 1
                if children == 1:  # From here on it is known where all of them go.
                    is_full, push = lane.inlet(path)
                if call.untidy and call.must_close:
                    await call.cleanup.close_abandoned()
                if call.cancelled:  # By what it pushed, for example.
                    break  # type: ignore[unreachable]  # the attribute has changed meanwhile
            else:
                if not call.cancelled:
                    lane.counted(path, children)
                    call.done = True
        except asyncio.CancelledError as error:
            self._cancelled(call, error)
        except Exception as error:  # noqa: BLE001  # the request fails with it
            lane.request.stage_failed(call, error)
        call.closing = True
        if not call.done:
            await self._close(call, outputs)
        if call.untidy:
            await self._tidy(call)
        self.call = self.lane = None
        call.end()

    @staticmethod
    def _cancelled(call: Call, error: asyncio.CancelledError) -> None:
        task = call.task
        if not call.cancelled and task is not None and task.cancelling():
            call.end()  # The loop itself is going down.
            raise error
        if not call.cancelled:  # The stage awaited something that somebody else cancelled.
            call.lane.request.stage_failed(call, error)

    @staticmethod
    async def _close(call: Call, outputs: Any) -> None:  # noqa: ANN401
        try:
            await outputs.aclose()
        except asyncio.CancelledError as error:
            Worker._cancelled(call, error)
        except Exception as error:  # noqa: BLE001  # the request fails with it
            call.lane.request.stage_failed(call, error)

    @staticmethod
    async def _tidy(call: Call) -> None:
        try:
            await call.tidy()
        except asyncio.CancelledError as error:
            Worker._cancelled(call, error)
        except Exception as error:  # noqa: BLE001  # the request fails with it
            call.lane.request.stage_failed(call, error)
