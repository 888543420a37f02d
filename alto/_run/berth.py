"""What of one request waits for one replica, where a stage has several.

To a worker a berth is what a lane is where there is one replica only: a queue that it takes calls from.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alto._run.lane import Lane
    from alto._run.replica import Replica
    from alto.model import Path

__all__ = ("Berth",)


class Berth:
    """Calls of one request that have been given to one replica and have not started."""

    __slots__ = ("blocked", "lane", "ready", "replica")

    def __init__(self, lane: Lane, replica: Replica) -> None:
        self.lane = lane
        self.replica = replica
        self.ready: deque[tuple[Path, Any]] = deque()
        self.blocked = False
        """Whether the next call may not start, since its results would have no room."""

    def put(self, path: Path, args: Any) -> None:  # noqa: ANN401  # what the stage takes
        """A call is here."""
        self.ready.append((path, args))
        self.lane.placed += 1
        if not self.blocked:
            self.offer()

    def offer(self) -> None:
        """Stand in line, and see that somebody looks."""
        self.replica.turns.offered(self)
        if self.replica.leader is None:
            self.replica.kick()

    def take(self) -> tuple[Path, Any] | None:
        """The next call to start, whose permit is taken, or None if there is none after all."""
        ready = self.ready
        if not ready:
            return None
        lane, path = self.lane, ready[0][0]
        if lane.is_full(path) and (waiters := lane.blocked_by(path)) is not None:
            waiters.block(self)
            self.blocked = True
            return None
        start = ready.popleft()
        lane.placed -= 1
        lane.active += 1
        self.replica.active += 1
        if lane.waiters.some:
            lane.waiters.wake()
        return start

    def unblock(self) -> None:
        """There is room again for what a call would give."""
        self.blocked = False
        if self.ready:
            self.offer()

    def drop(self, ancestor: Path) -> int:
        """Nobody needs the calls at and below *ancestor*.

        Returns:
            How many were here.
        """
        size = len(ancestor)
        kept = [start for start in self.ready if start[0][:size] != ancestor]
        gone = len(self.ready) - len(kept)
        if gone:
            self.ready.clear()
            self.ready.extend(kept)
            self.lane.placed -= gone
        return gone
