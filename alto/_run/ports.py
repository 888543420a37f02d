"""Where items come in: one port per stream parameter of a lane, and one for the result.

A port answers four things, all sync: ``is_full`` (must whoever has an item wait), ``waiters_for``
(where to wait), ``push`` (an item is here), ``counted`` (a call has had so many children).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alto._core.closure import Closure

if TYPE_CHECKING:
    from alto._run.group import Waiters
    from alto._run.lane import Lane
    from alto.model import Path

__all__ = ("GroupPort", "ItemPort", "JoinPort", "Port")


class Port:
    """A stream parameter of a lane."""

    __slots__ = ("dropped", "lane", "slot")

    def __init__(self, lane: Lane, slot: int) -> None:
        self.lane = lane
        self.slot = slot
        self.dropped: set[Path] = set()
        """Ancestors at and below which nothing is needed here any more."""

    def is_full(self, path: Path) -> bool:  # noqa: ARG002
        """Whether an item at *path*, or below it, must wait."""
        lane = self.lane
        return len(lane.ready) + lane.placed >= lane.capacity

    def waiters_for(self, path: Path) -> Waiters:  # noqa: ARG002
        """Where to wait while it is full."""
        return self.lane.waiters

    def inlet(self, path: Path) -> tuple[Any, Any]:  # noqa: ARG002
        """``is_full`` and ``push`` for what the generator call at *path* gives, maybe faster."""
        return self.is_full, self.push

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """An item is here."""
        raise NotImplementedError

    def counted(self, parent: Path, children: int) -> None:
        """The node at *parent* has that many children."""
        raise NotImplementedError

    def is_dropped(self, path: Path) -> bool:
        """Whether nobody needs *path* here."""
        return any(path[:n] in self.dropped for n in range(len(path) + 1))


class ItemPort(Port):
    """The only parameter of its stage, and not a group: an item is all that a call needs."""

    __slots__ = ()

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """A call can start."""
        if self.dropped and self.is_dropped(path):
            return
        lane = self.lane
        ready = lane.ready
        ready.append((path, (value,)))
        if not lane.stalled:
            if len(ready) == 1:
                lane.offer()
            if lane.waiters.some and len(ready) + lane.placed < lane.capacity:
                lane.waiters.wake()

    def counted(self, parent: Path, children: int) -> None:
        """Nobody gathers here."""


class JoinPort(Port):
    """One of several parameters, and not a group."""

    __slots__ = ()

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Match it with what else its calls need."""
        if self.dropped and self.is_dropped(path):
            return
        lane = self.lane
        join = lane.join
        assert join is not None
        request, held = lane.request, join.held
        lane.started(join.arrived(self.slot, path, value))
        request.held += join.held - held
        if request.held > request.max_held:
            request.overflowed(lane)
        if lane.waiters.some and len(lane.ready) + lane.placed < lane.capacity:
            lane.waiters.wake()

    def counted(self, parent: Path, children: int) -> None:
        """A shallow item may have served all calls below it."""
        lane = self.lane
        if (self.dropped and self.is_dropped(parent)) or (lane.dropped and lane.is_dropped(parent)):
            return
        join = self.lane.join
        assert join is not None
        held = join.held
        join.counted(self.slot, parent, children)
        self.lane.request.held += join.held - held


class GroupPort(Port):
    """A parameter that gathers."""

    __slots__ = ("closure", "depth", "rank", "top")

    def __init__(self, lane: Lane, slot: int) -> None:
        super().__init__(lane, slot)
        self.top = lane.node.plan.depth
        self.rank = lane.group_slots.index(slot)
        self.depth = lane.node.plan.inputs[slot].depth
        self.closure: Closure | None = None
        """Counts where pieces come as they arrive; else every group's order does."""
        if lane.node.spec.stage.order == "arrival":
            self.closure = Closure(self.top, self.depth)

    def is_full(self, path: Path) -> bool:
        """As its group says; without one yet, as the lane's other calls say."""
        row = self.lane.rows.get(path[: self.top])
        if row is None:
            if self.dropped and self.is_dropped(path):
                return False
            return len(self.lane.ready) + self.lane.placed >= self.lane.capacity
        full: bool = row.groups[self.rank].is_full()
        return full

    def waiters_for(self, path: Path) -> Waiters:
        """Where to wait while it is full."""
        row = self.lane.rows.get(path[: self.top])
        return self.lane.waiters if row is None else row.groups[self.rank].waiters

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Put it into its group, and see whether that is complete."""
        if self.dropped and self.is_dropped(path):
            return
        lane, key = self.lane, path[: self.top]
        row = lane.rows.get(key)
        if row is None:
            row = lane.row(key, value)
        row.groups[self.rank].push(path, value)

    def inlet(self, path: Path) -> tuple[Any, Any]:
        """All that one generator call gives goes to one group."""
        key = path[: self.top]
        row = self.lane.rows.get(key)
        if row is None:  # Nobody needs it any more.
            return self.is_full, self.push
        group = row.groups[self.rank]
        return group.is_full, group.push

    def counted(self, parent: Path, children: int) -> None:
        """An inner node has that many children; with its last piece, a group is complete."""
        if self.dropped and self.is_dropped(parent):
            return
        self.lane.row(parent[: self.top]).groups[self.rank].counted(parent, children)
