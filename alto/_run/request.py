"""One request: its lanes, its results, its end."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from alto._aio import uncut
from alto._run.call import parking_call
from alto._run.lane import Lane
from alto._run.sink import Sink
from alto.errors import BufferExceeded, Closed, DeadlineExceeded, RequestError, StageError

if TYPE_CHECKING:
    from alto._run.app import Installed
    from alto._run.call import Call
    from alto._run.ports import Port
    from alto._spec import GroupOrder
    from alto.model import Path

__all__ = ("Request",)


class Request:
    """One run of a pipeline, from its input to its last result. Everything in here is sync.

    It has ended when all results are there, or it was stopped, *and* none of its calls runs or
    could start any more: nothing of a request outlives it.
    """

    __slots__ = ("_drops", "_ended", "_timer", "arrived", "capacity", "deadline", "ended",
                 "error", "held", "installed", "lanes", "max_held", "number", "on_end", "parent",
                 "priority", "sink", "stopping")  # fmt: skip

    _numbers = itertools.count()

    def __init__(
        self,
        installed: Installed,
        *,
        order: GroupOrder | None,
        timeout: float | None,
        priority: int,
        parent: Call | None = None,
    ) -> None:
        app = installed.app
        self.installed = installed
        self.capacity = app.capacity
        self.max_held = app.max_held_items
        self.priority = priority
        self.parent = parent
        """The call that started it, where a stage called a pipeline."""
        self.number = next(self._numbers)
        """Unique in this process."""
        self.arrived = installed.nodes[0].loop.time() if installed.nodes else 0.0
        """When it began, on the loop's clock."""
        self.deadline: float | None = None
        """When its time is over, on the loop's clock."""
        self.held = 0
        """Pieces and items in group and join buffers."""
        self.error: RequestError | None = None
        self.stopping = False
        """It failed or was cancelled: nothing new is started, nothing is kept."""
        self.ended = False
        self.on_end: Callable[[Request], None] | None = None
        self._drops: deque[tuple[Lane, Path]] = deque()
        self._ended: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        plan = installed.declaration.plan
        self.sink = Sink(self, plan.depth, order)
        self.lanes = tuple(Lane(self, node) for node in installed.nodes)
        for lane in self.lanes:
            lane.connect(
                self._ports(lane.node.plan.consumers), self._ports(lane.node.plan.counts_to)
            )
        if parent is not None:
            self.deadline = parent.deadline
            parent.adopt(self)
        if timeout is not None:
            loop = asyncio.get_running_loop()
            at = loop.time() + timeout
            if self.deadline is None or at < self.deadline:
                self.deadline = at
            self._timer = loop.call_at(at, self.fail, DeadlineExceeded(timeout))

    def start(self, inputs: Sequence[object]) -> None:
        """Give it its input."""
        for value, consumers in zip(inputs, self.installed.declaration.plan.inputs, strict=True):
            for port in self._ports(consumers):
                port.push((), value)
        self.check_end()

    def producer(self, source: int) -> Lane | None:
        """The lane whose stream has that number; None for an input of the pipeline."""
        index = source - len(self.installed.declaration.plan.inputs)
        return self.lanes[index] if index >= 0 else None

    def drop_soon(self, lane: Lane, ancestor: Path) -> None:
        """Nobody needs what *lane* gives below *ancestor*. One after the other: graphs are deep."""
        self._drops.append((lane, ancestor))
        if len(self._drops) == 1:
            while self._drops:
                lane, ancestor = self._drops[0]
                lane.drop(ancestor)
                self._drops.popleft()

    def overflowed(self, lane: Lane) -> None:
        """It holds more than it may."""
        self.fail(BufferExceeded(lane.node.plan.name, self.max_held))

    def stage_failed(self, call: Call, cause: BaseException) -> None:
        """A call has raised."""
        error = StageError(call.lane.node.plan.name, call.path, cause)
        error.__cause__ = cause
        self.fail(error)

    def fail(self, error: RequestError) -> None:
        """Stop with *error*. Of several errors the first counts; the others become notes of it."""
        if self.ended:
            return
        if self.error is not None:
            self.error.add_note(f"while stopping, also: {error}")
            return
        if self.stopping:  # Cancelled before: nobody will ask for the error.
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"while a cancelled request was stopping: {error}", "exception": error}
            )
            return
        self.error = error
        self._stop()

    def cancel(self) -> None:
        """Stop; nobody wants the results any more. Idempotent."""
        if not self.stopping and not self.ended:
            self.sink.clear()
            self._stop()

    def give_up(self) -> None:
        """Stop without waiting for calls, which may never end since alto itself has failed."""
        self.cancel()
        if not self.ended:
            self._end()

    async def wait_ended(self) -> None:
        """Wait until nothing of it runs any more.

        Cancellation: the request goes on.
        """
        if not self.ended:
            if self._ended is None:
                self._ended = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._ended)

    async def results(self) -> list[object]:
        """Wait for all results, in ancestry order.

        Raises:
            RequestError: It failed.
            Closed: It was cancelled.

        Cancellation: the request is cancelled, and has ended when this raises.
        """
        call = parking_call()
        if call is not None:
            call.park()
        try:
            await self.wait_ended()
        except BaseException:
            self.cancel()
            await uncut(self.wait_ended)
            if call is not None:
                await call.unpark_cut()
            raise
        if call is not None:
            await call.unpark()
        return self.taken()

    def taken(self) -> list[object]:
        """All results of a request that has ended, in ancestry order; its error is raised."""
        if self.error is not None:
            raise self.error
        if self.stopping:
            msg = "the request was cancelled, since its app was closed or its handle was left"
            raise Closed(msg)
        assert self.sink.kept is not None
        self.sink.kept.sort(key=_path)
        return [value for _, value in self.sink.kept]

    def _ports(self, consumers: Sequence[tuple[int, int]]) -> tuple[Port | Sink, ...]:
        return tuple(self.sink if n < 0 else self.lanes[n].ports[slot] for n, slot in consumers)

    def _stop(self) -> None:
        self.stopping = True
        for lane in self.lanes:
            self.drop_soon(lane, ())
        self.sink.waiters.wake_all()
        self.check_end()

    def check_end(self) -> None:
        """See whether it has ended, now that no call of it runs or it was told to stop."""
        if self.ended or not (self.sink.complete or self.stopping):
            return
        # All results may be there while calls still run whose results go nowhere (the other side of
        # an empty join). They are waited for: a request makes the calls that a sequential run makes.
        if any(lane.active or lane.ready or lane.placed for lane in self.lanes):
            return
        self._end()

    def _end(self) -> None:
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        self.sink.wake()
        if self.parent is not None:
            self.parent.disown(self)
        self.installed.app.request_ended(self)
        if self.on_end is not None:
            self.on_end(self)


def _path(result: tuple[tuple[int, ...], object]) -> tuple[int, ...]:
    return result[0]
