"""Group buffers: the pieces of one parent on their way to the one call that gathers them.

A :class:`Row` is what one call of a gathering stage has: one :class:`RunGroup` per group parameter.
A row is *pending* until its call can start, *begun* from then on. Pieces of a pending row have
nowhere else to go, so there is no bound but the request's cap. In a begun row a group with as many
unread pieces as the capacity is full, unless its call waits for another of its groups
(*starving*): then the pieces that would end that wait may have to come past this one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar, final

from alto._core.order import Order
from alto._run.call import parking_call
from alto._run.ports import GroupPort
from alto.errors import Closed
from alto.stream import Group

if TYPE_CHECKING:
    from alto._run.berth import Berth
    from alto._run.lane import Lane
    from alto._run.replica import Replica
    from alto.model import Path

__all__ = ("Row", "RunGroup", "Waiters")

T_co = TypeVar("T_co", covariant=True)


class Waiters:
    """Who waits for room at one place: calls with an item in hand, or a lane that may not start.

    Room is given to one call at a time: whoever takes it passes on what is left, whoever cannot
    take it passes it on whole. Lanes are told all at once, and look for themselves.
    """

    __slots__ = ("_lanes", "_pushers", "some")

    def __init__(self) -> None:
        self._pushers: deque[asyncio.Future[None]] = deque()
        self._lanes: list[Lane | Berth] = []
        self.some = False
        """Whether anybody waits."""

    def add(self, granted: asyncio.Future[None], *, first: bool) -> None:
        """A call waits, at the end of the line or (again) at its head."""
        if first:
            self._pushers.appendleft(granted)
        else:
            self._pushers.append(granted)
        self.some = True

    def remove(self, granted: asyncio.Future[None]) -> None:
        """A call waits no more."""
        if granted in self._pushers:
            self._pushers.remove(granted)
        self.some = bool(self._pushers or self._lanes)

    def block(self, lane: Lane | Berth) -> None:
        """A lane waits, behind all calls."""
        self._lanes.append(lane)
        self.some = True

    def wake(self) -> None:
        """There may be room: tell the first. Calls go before lanes that would start new ones."""
        pushers = self._pushers
        while pushers:
            granted = pushers.popleft()
            if not granted.done():
                granted.set_result(None)
                self.some = bool(pushers or self._lanes)
                return
        self.some = False
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.unblock()

    def wake_all(self) -> None:
        """There is no bound any more. Everybody is told once, and may find that there is one."""
        pushers, lanes = self._pushers, self._lanes
        self._pushers, self._lanes, self.some = deque(), [], False
        for granted in pushers:
            if not granted.done():
                granted.set_result(None)
        for lane in lanes:
            lane.unblock()


class Row:
    """The groups of one call. See the module."""

    __slots__ = ("begun", "groups", "lane", "offered", "path", "replica", "starving")

    def __init__(self, lane: Lane, path: Path) -> None:
        self.lane = lane
        self.path = path
        self.begun = False
        self.replica: Replica | None = None  # Where the call is bound, if there are several.
        self.offered = False  # Whether the lane has been told that it can begin.
        self.starving = 0  # Reads of this row that wait for a piece.
        self.groups = tuple(RunGroup[Any](self, lane, port) for port in lane.group_slots)

    def begin(self) -> None:
        """One of its groups has its first piece, or is complete: its call may be able to start."""
        if not self.offered:
            self.offered = True
            self.lane.begin(self)

    def starves(self) -> None:
        """A read waits: no group of this row is full now."""
        self.starving += 1
        for group in self.groups:
            group.waiters.wake_all()


@final
class RunGroup(Group[T_co]):
    """The pieces of one parent, for one call."""

    __slots__ = ("_capacity", "_closure", "_iterated", "_lane", "_reader", "_row", "_slot",
                 "buffer", "complete", "dropped", "left", "order", "waiters")  # fmt: skip

    def __init__(self, row: Row, lane: Lane, slot: int) -> None:
        self._row = row
        self._lane = lane
        self._slot = slot
        self._iterated = False
        self._reader: asyncio.Future[None] | None = None
        self.buffer: deque[Any] = deque()
        """Pieces that can be read now."""
        port = lane.ports[slot]
        assert isinstance(port, GroupPort)
        self._capacity = lane.capacity
        # One of the two says when it is complete.
        self._closure = port.closure
        self.order: Order[Any] | None = None
        if port.closure is None:
            self.order = Order(port.depth - port.top, self.buffer, skip=port.top)
        self.complete = False
        """All pieces there will ever be have arrived."""
        self.dropped = False
        """Nobody needs the call that reads it any more."""
        self.left = False
        """Nobody reads it any more."""
        self.waiters = Waiters()

    def __repr__(self) -> str:
        state = "left" if self.left else "complete" if self.complete else "open"
        return f"<Group at {self._row.path}: {state}, {len(self.buffer)} unread>"

    def __aiter__(self) -> AsyncIterator[T_co]:
        if self._iterated:
            msg = (
                "a Group may be iterated once; keep what you need in a list "
                "(`pieces = await group.list()`)"
            )
            raise Closed(msg)
        self._iterated = True
        return self._pieces()

    def is_full(self, path: Path = ()) -> bool:  # noqa: ARG002
        """Whether whoever has another piece must wait. Speaks the language of a port."""
        if len(self.buffer) < self._capacity:
            return False
        row = self._row
        return row.begun and not row.starving and not self.left

    @property
    def held(self) -> int:
        """Pieces that have arrived and have not been read."""
        return len(self.buffer) + (len(self.order) if self.order is not None else 0)

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """A piece is here."""
        if self.left:
            return
        request, buffer = self._lane.request, self.buffer
        request.held += 1
        if self.order is not None:
            complete = self.order.arrived(path, value)
        else:
            assert self._closure is not None
            buffer.append(value)
            complete = self._closure.arrived(path) is not None
        if complete:
            self.finish()
        elif self._reader is not None and buffer:
            self.wake()
        if not self._row.offered:
            self._row.begin()
        if self.waiters.some and not self.is_full():
            self.waiters.wake()
        if request.held > request.max_held:
            request.overflowed(self._lane)

    def counted(self, parent: Path, children: int) -> None:
        """The node at *parent* has that many children."""
        if self.left:
            return
        if self.order is not None:
            complete = self.order.counted(parent, children)
        else:
            assert self._closure is not None
            complete = self._closure.counted(parent, children) is not None
        if complete:
            self.finish()
            self._row.begin()
        elif self._reader is not None and self.buffer:
            self.wake()

    def finish(self) -> None:
        """All pieces have arrived."""
        self.complete = True
        self.wake()

    def leave(self) -> None:
        """Nobody reads it any more; what only it was waiting for is cancelled. Idempotent."""
        if self.left:
            return
        self.left = True
        self._lane.request.held -= self.held
        self.buffer.clear()
        self.order = None
        if not self.complete:
            if self._closure is not None:
                self._closure.drop(self._row.path)
            self._lane.release(self._slot, self._row.path)
        self.waiters.wake_all()
        self.wake()

    def wake(self) -> None:
        """There is something for the reader."""
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def _pieces(self) -> AsyncGenerator[T_co, None]:
        buffer, request = self.buffer, self._lane.request
        waiters = self.waiters
        try:
            while not self.left:
                while buffer:
                    piece = buffer.popleft()
                    request.held -= 1
                    if waiters.some:
                        waiters.wake()
                    yield piece
                if self.complete:
                    return
                await self._more()
            if self.dropped:  # As if the call's cancellation had come in this very moment.
                raise asyncio.CancelledError
            msg = "this Group's call has ended; iterate a Group only inside the call that got it"
            raise Closed(msg)
        finally:
            self.leave()

    async def _more(self) -> None:
        # Cancellation: nothing is lost, the pieces stay in the buffer.
        call = parking_call()
        self._reader = reader = self._lane.node.loop.create_future()
        row = self._row
        row.starves()
        if call is not None:
            call.park()
        try:
            await reader
        except BaseException:
            if call is not None:
                await call.unpark_cut()
            raise
        finally:
            self._reader = None
            row.starving -= 1
        if call is not None:
            await call.unpark()
