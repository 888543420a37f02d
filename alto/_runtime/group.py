"""Group buffers: the pieces of one parent on their way to the call that gathers them.

A :class:`GroupedCall` holds the groups of one call of a gathering stage: one :class:`RunGroup` per
group parameter. It is *pending* until its call can start, and *begun* from then on. The pieces of a
pending group have nowhere else to go, so only the request's cap bounds them. In a begun call, a group
with as many unread pieces as the capacity is full. The exception: while a read of any group of the
call waits for a piece (the call is *starving*), none of its groups is full, because the producer of
the awaited piece may first have to hand over pieces to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol, Self, TypeVar, final

from alto._runtime.call import wait
from alto._runtime.machines.completion import CompletionCounter
from alto._runtime.machines.reorder import ReorderBuffer
from alto._runtime.room import Room
from alto.errors import Closed
from alto.model import Path
from alto.stream import Group

__all__ = ("GroupParameter", "GroupRequest", "GroupRun", "GroupedCall", "NamedRun", "RunGroup")

T_co = TypeVar("T_co", covariant=True)

_AHEAD: Final = 8
"""Multiple of its capacity that a group may hold while its reader is about to continue.

Otherwise a producer that never waits would alternate with the reader after every *capacity* pieces.
"""


class NamedRun(Protocol):
    """The request at a stage, as error messages name it."""

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        ...


class GroupRequest(Protocol):
    """The request, as its groups see it."""

    def add_held(self, items: int, run: NamedRun) -> None:
        """Count items that are held in a buffer; fail the request where there are too many."""
        ...

    def remove_held(self, items: int) -> None:
        """Count items that are held no more."""
        ...


class GroupRun(NamedRun, Protocol):
    """The request at the stage, as its groups see it."""

    capacity: int

    @property
    def request(self) -> GroupRequest:
        """The request."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The app's event loop."""
        ...

    def begin(self, grouped: GroupedCall) -> None:
        """Start a call one of whose groups has begun, if it has all its inputs."""
        ...

    def release(self, slot: int, ancestor: Path) -> None:
        """Cancel what only parameter *slot* needs below *ancestor*."""
        ...

    def completed(self, path: Path, slot: int) -> None:
        """Report that a group is complete."""
        ...


class GroupParameter(Protocol):
    """The parameter that gathers, as its groups see it."""

    slot: int
    top: int
    depth: int
    completion: CompletionCounter | None


class GroupedCall:
    """The groups of one call; see the module's docstring."""

    __slots__ = ("begun", "groups", "path", "replica", "reported", "run", "starving")

    def __init__(self, run: GroupRun, path: Path, places: tuple[GroupParameter, ...]) -> None:
        self.run = run
        self.path = path
        self.begun = False
        self.replica: Any = None  # The replica that the call is bound to, in a routed stage.
        self.reported = False  # Whether the run was notified that it can begin.
        self.starving = 0  # Reads of its groups that wait for a piece.
        self.groups = tuple(RunGroup[Any](self, run, place) for place in places)

    def begin(self) -> None:
        """Notify the run, once, that one of the groups has its first piece or is complete."""
        if not self.reported:
            self.reported = True
            self.run.begin(self)

    def leave(self) -> None:
        """Leave all groups: the call has ended, or will not be made."""
        for group in self.groups:
            group.leave()

    def starves(self) -> None:
        """Count a read that waits, and wake all waiters for room: no group of the call is full now."""
        self.starving += 1
        for group in self.groups:
            group.room.wake_all()


class _NoCall(GroupedCall):
    """The call of every group that was left."""

    def __init__(self) -> None:
        self.path = ()
        self.begun = False
        self.reported = True
        self.starving = 0
        self.groups = ()


_NO_CALL: Final = _NoCall()


@final
class RunGroup(Group[T_co]):
    """The pieces of one parent, for one call."""

    __slots__ = (
        "_add_held",
        "_arrival",
        "_completion",
        "_exhausted",
        "_grouped",
        "_iterated",
        "_path",
        "_reading",
        "_run",
        "_slot",
        "_starving",
        "_waking",
        "buffer",
        "capacity",
        "complete",
        "dropped",
        "left",
        "order",
        "room",
    )  # fmt: skip

    def __init__(self, grouped: GroupedCall, run: GroupRun, place: GroupParameter) -> None:
        self._grouped = grouped
        self._path = grouped.path
        self._run = run
        self._add_held = run.request.add_held
        self._slot = place.slot
        self._iterated = False
        self._exhausted = False
        self._reading = False
        self._starving = False  # A read waits for a piece.
        self._waking = False  # A read that has waited is about to continue.
        self._arrival: asyncio.Event | None = None
        self.buffer: deque[Any] = deque()
        """Pieces that can be read now."""
        self.capacity = run.capacity
        # Exactly one of the two counts the pieces: the buffer in arrival or in ancestry order.
        self._completion = place.completion
        self.order: ReorderBuffer[Any] | None = None
        if place.completion is None:
            self.order = ReorderBuffer(place.depth - place.top, self.buffer, skip=place.top)
        self.complete = False
        """All pieces there will ever be have arrived."""
        self.dropped = False
        """Nothing needs the call that reads it any more."""
        self.left = False
        """It is not read any more."""
        self.room = Room()

    def __repr__(self) -> str:
        state = "left" if self.left else "complete" if self.complete else "open"
        return f"<Group at {self._path}: {state}, {len(self.buffer)} unread>"

    def __aiter__(self) -> AsyncIterator[T_co]:
        if self._iterated:
            msg = (
                "a Group may be iterated once; keep what you need in a list "
                "(`pieces = await group.list()`)"
            )
            raise Closed(msg)
        self._iterated = True
        return _GroupIterator(self, self._run.request.remove_held)

    async def __anext__(self) -> T_co:
        """Read the next piece; see :class:`alto.Group`."""
        buffer = self.buffer
        while not self.left:
            if buffer:
                piece: T_co = buffer.popleft()
                self._add_held(-1, self._run)
                if self.room.awaited:
                    self.room.wake()
                return piece
            if self.complete:
                self._exhausted = True
                self.leave()
                break
            await self._wait_for_piece()
        if self._exhausted:
            raise StopAsyncIteration
        if self.dropped:  # As if the call's cancellation had arrived at this moment.
            raise asyncio.CancelledError
        msg = (
            "this Group was left: its call has ended, or a loop over it was left; read it inside "
            "the call that got it, in one loop"
        )
        raise Closed(msg)

    # ---- called by ports

    def is_full(self, path: Path = ()) -> bool:  # noqa: ARG002  # the interface of a port
        """Return whether a call with another piece must wait. Also bound as a port's ``is_full``."""
        size = len(self.buffer)
        if size < self.capacity:
            return False
        grouped = self._grouped
        if grouped.starving or self.left or not grouped.begun:
            return False
        return not self._waking or size >= _AHEAD * self.capacity

    @property
    def held(self) -> int:
        """Number of pieces that have arrived and have not been read."""
        return len(self.buffer) + (len(self.order) if self.order is not None else 0)

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Take a piece."""
        if self.left:
            return
        buffer = self.buffer
        if self.order is not None:
            complete = self.order.arrived(path, value)
        else:
            assert self._completion is not None
            buffer.append(value)
            complete = self._completion.arrived(path) is not None
        if complete:
            self._finish()
        elif self._starving and buffer:
            self._wake_reader()
        if not self._grouped.reported:
            self._grouped.begin()
        if self.room.awaited and not self.is_full():
            self.room.wake()
        self._add_held(1, self._run)

    def counted(self, parent: Path, children: int) -> None:
        """Take the count of children of the node at *parent*."""
        if self.left:
            return
        if self.order is not None:
            complete = self.order.counted(parent, children)
        else:
            assert self._completion is not None
            complete = self._completion.counted(parent, children) is not None
        if complete:
            self._finish()
            self._grouped.begin()
        elif self._starving and self.buffer:
            self._wake_reader()

    def _finish(self) -> None:
        self.complete = True
        self._run.completed(self._path, self._slot)
        self._wake_reader()

    def leave(self) -> None:
        """Stop reading, and cancel what only this group was waiting for. Idempotent."""
        if self.left:
            return
        self.left = True
        self._add_held(-self.held, self._run)
        self.buffer.clear()
        self.order = None
        if not self.complete:
            if self._completion is not None:
                self._completion.drop(self._path)
            self._run.release(self._slot, self._path)
        self.room.wake_all()
        self._wake_reader()
        self._grouped = _NO_CALL  # Break the reference cycle with the call.

    # ---- reading

    def _wake_reader(self) -> None:
        # Wake the read that waits. It no longer starves, so the other groups are bounded again.
        if self._starving:
            self._starving, self._waking = False, True
            self._grouped.starving -= 1
            assert self._arrival is not None
            self._arrival.set()

    async def _wait_for_piece(self) -> None:
        # Cancellation: nothing is lost; the pieces stay in the buffer.
        if self._reading:
            msg = "another task is already reading this Group; it has one reader at a time"
            raise RuntimeError(msg)
        if self._arrival is None:
            self._arrival = asyncio.Event()
        self._arrival.clear()
        self._reading = self._starving = True
        self._grouped.starves()
        try:
            await wait(self._arrival)
        finally:
            self._reading = self._waking = False
            if self._starving:
                self._starving = False
                self._grouped.starving -= 1


@final
class _GroupIterator(AsyncIterator[T_co]):
    """One loop over a group; the group is left when the loop is left."""

    __slots__ = ("_group", "_remove_held")

    def __init__(self, group: RunGroup[T_co], remove_held: Callable[[int], None]) -> None:
        self._group = group
        self._remove_held = remove_held

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        group = self._group
        buffer = group.buffer
        # RunGroup.__anext__, inlined: saves a coroutine per piece.
        if buffer and not group.room.awaited:
            self._remove_held(1)
            piece: T_co = buffer.popleft()
            return piece
        return await group.__anext__()

    async def aclose(self) -> None:
        """Leave the group."""
        self._group.leave()

    def __del__(self) -> None:
        # May run anywhere, also inside a machine's step: act in a separate step of the loop.
        group = getattr(self, "_group", None)
        if group is not None and not group.left:
            with contextlib.suppress(RuntimeError):  # The loop is closed: so is the request.
                group._run.loop.call_soon_threadsafe(group.leave)  # noqa: SLF001  # two halves of one
