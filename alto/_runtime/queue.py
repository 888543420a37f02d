"""The queue of one request's ready calls at one replica."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol

from alto._runtime.call import CallRun
from alto._runtime.room import Room
from alto.model import Path

__all__ = ("QueueReplica", "QueueRun", "ReadyQueue", "ReadyCall")

ReadyCall = tuple[Path, Any]
"""A call that can start: its path and the stage's positional arguments."""


class QueueRun(CallRun, Protocol):
    """The request at the stage, as its queues see it."""

    room: Room

    @property
    def priority(self) -> int:
        """The request's priority."""
        ...

    @property
    def root(self) -> Hashable:
        """The outermost request."""
        ...

    def idle(self) -> None:
        """Check whether the request has ended, since no call of it runs at one replica."""
        ...


class QueueReplica(Protocol):
    """The replica, as the queues before it see it."""

    number: int

    def enqueue(self, queue: ReadyQueue) -> None:
        """Queue *queue*, which has something to start, and wake a worker."""
        ...

    def dequeue(self, queue: ReadyQueue) -> None:
        """Remove *queue*, which has nothing to start."""
        ...


class ReadyQueue:
    """Calls of one request that have all their inputs and wait for a permit of one replica.

    A worker takes calls from it. While a worker serves it, it is not queued for a permit.
    """

    __slots__ = ("active", "blocked", "priority", "ready", "replica", "request", "root", "run")

    def __init__(self, run: QueueRun, replica: QueueReplica) -> None:
        self.run = run
        self.request = run.request
        self.replica = replica
        self.priority = run.priority
        self.root = run.root
        self.ready: deque[ReadyCall] = deque()
        """The calls, in order. Only this class changes it."""
        self.active = 0
        """Number of calls that were taken and have not ended."""
        self.blocked = False
        """True if the next call may not start, because its outputs would have no room."""

    def put(self, path: Path, args: Any) -> None:  # noqa: ANN401  # what the stage takes
        """Append a call and wake a worker."""
        ready = self.ready
        ready.append((path, args))
        if len(ready) == 1 and not self.blocked:  # Otherwise it is queued or being served.
            self.replica.enqueue(self)

    def take(self) -> ReadyCall | None:
        """Take the next call to start; None if there is none or it must wait. The caller has a permit."""
        ready = self.ready
        if not ready:
            return None
        run, path = self.run, ready[0][0]
        if run.is_full(path) and (room := run.no_room_at(path)) is not None:
            room.block(self)
            self.blocked = True
            return None
        start = ready.popleft()
        self.active += 1
        if run.room.awaited:
            run.room.wake()
        return start

    def ended(self) -> None:
        """Count a call that has ended."""
        self.active -= 1
        if not self.active and not self.ready:
            self.run.idle()

    def unblock(self) -> None:
        """Queue again: there is room for the outputs of the next call."""
        self.blocked = False
        if self.ready:
            self.replica.enqueue(self)

    def drop(self, ancestor: Path) -> int:
        """Remove the calls at and below *ancestor*. Returns their number."""
        size = len(ancestor)
        ready = self.ready
        kept = [start for start in ready if start[0][:size] != ancestor]
        gone = len(ready) - len(kept)
        if gone:
            ready.clear()
            ready.extend(kept)
        return gone

    def take_all(self) -> list[ReadyCall]:
        """Remove all calls, which will wait elsewhere, and return them."""
        self.replica.dequeue(self)
        starts = list(self.ready)
        self.ready.clear()
        self.blocked = False
        return starts
