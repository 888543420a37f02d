"""Ports: the inputs of a request's run at a stage, one per stream parameter.

A port has four sync methods: ``is_full`` (must a call with an item wait?), ``room_for`` (the room to
wait for), ``push`` (an item has arrived), ``counted`` (a call had so many children). A request's
results (sink.py) implement the same interface, :class:`Target`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from alto._runtime.group import GroupedCall, GroupRequest
from alto._runtime.machines.completion import CompletionCounter
from alto._runtime.machines.join import Join
from alto._runtime.queue import ReadyQueue
from alto._runtime.room import Room
from alto.model import Path

__all__ = ("GroupPort", "ItemPort", "JoinPort", "Port", "PortRun", "Target")


class Target(Protocol):
    """A consumer of items: a port, or a request's results."""

    def is_full(self, path: Path) -> bool:
        """Return whether an item at *path*, or below it, must wait."""
        ...

    def room_for(self, path: Path) -> Room:
        """Return the room to wait for while it is full."""
        ...

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:
        """Return ``is_full`` and ``push`` for the outputs of the generator call at *path*."""
        ...

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Accept an item."""
        ...

    def counted(self, parent: Path, children: int) -> None:
        """Accept the number of children of the node at *parent*."""
        ...


class PortRun(Protocol):
    """The request at the stage, as its ports see it."""

    capacity: int
    room: Room
    grouped_calls: dict[Path, GroupedCall]
    dropped: set[Path]
    join: Join | None
    sole: ReadyQueue | None
    unplaced: deque[Any]

    @property
    def request(self) -> GroupRequest:
        """The request."""
        ...

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        ...

    @property
    def depth(self) -> int:
        """Length of the calls' paths."""
        ...

    @property
    def in_arrival_order(self) -> bool:
        """True if groups hand out their pieces in arrival order."""
        ...

    @property
    def waiting(self) -> int:
        """Number of ready calls that have not started."""
        ...

    def input_depth(self, slot: int) -> int:
        """Length of the paths that come in at parameter *slot*."""
        ...

    def rank(self, slot: int) -> int:
        """Return the position of parameter *slot* among the stage's group parameters."""
        ...

    def put(self, path: Path, args: Any) -> None:  # noqa: ANN401  # what the stage takes
        """Queue a call that has all its inputs."""
        ...

    def grouped_call(self, path: Path, value: object = None) -> GroupedCall:
        """Return the groups of the call at *path*, creating them if necessary."""
        ...

    def start_all(self, starts: list[tuple[Path, list[Any]]]) -> None:
        """Queue calls that have all their inputs."""
        ...

    def is_dropped(self, path: Path) -> bool:
        """Return whether nothing needs inputs at *path*."""
        ...


class Port:
    """A stream parameter of a stage, for one request."""

    __slots__ = ("dropped", "run", "slot")

    def __init__(self, run: PortRun, slot: int) -> None:
        self.run = run
        self.slot = slot
        self.dropped: set[Path] = set()
        """Ancestors at and below which this parameter needs nothing any more."""

    def is_full(self, path: Path) -> bool:  # noqa: ARG002
        """Return whether an item at *path*, or below it, must wait."""
        run = self.run
        return run.waiting >= run.capacity

    def room_for(self, path: Path) -> Room:  # noqa: ARG002
        """Return the room to wait for while it is full."""
        return self.run.room

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:  # noqa: ARG002
        """Return ``is_full`` and ``push`` for the outputs of the generator call at *path*."""
        return self.is_full, self.push

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Accept an item."""
        raise NotImplementedError

    def counted(self, parent: Path, children: int) -> None:
        """Accept the number of children of the node at *parent*."""
        raise NotImplementedError

    def is_dropped(self, path: Path) -> bool:
        """Return whether this parameter needs nothing at *path*."""
        return any(path[:n] in self.dropped for n in range(len(path) + 1))


class ItemPort(Port):
    """The only parameter of its stage, and not a group: each item starts a call."""

    __slots__ = ()

    def is_full(self, path: Path) -> bool:  # noqa: ARG002
        """Return whether an item at *path*, or below it, must wait."""
        run = self.run
        sole = run.sole
        return (len(sole.ready) if sole is not None else run.waiting) >= run.capacity

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Queue a call."""
        if self.dropped and self.is_dropped(path):
            return
        run = self.run
        sole = run.sole
        if sole is None:
            run.put(path, (value,))
        else:
            sole.put(path, (value,))
        if run.room.awaited and run.waiting < run.capacity:
            run.room.wake()

    def counted(self, parent: Path, children: int) -> None:
        """Do nothing: this parameter is not a group."""


class JoinPort(Port):
    """One of several parameters, and not a group."""

    __slots__ = ()

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Match an item with the other inputs of its calls."""
        if self.dropped and self.is_dropped(path):
            return
        run = self.run
        join = run.join
        assert join is not None
        held = join.held
        run.start_all(join.arrived(self.slot, path, value))
        run.request.add_held(join.held - held, run)
        if run.room.awaited and run.waiting < run.capacity:
            run.room.wake()

    def counted(self, parent: Path, children: int) -> None:
        """Release items that have served all calls below them."""
        run = self.run
        if (self.dropped and self.is_dropped(parent)) or (run.dropped and run.is_dropped(parent)):
            return
        join = run.join
        assert join is not None
        held = join.held
        join.counted(self.slot, parent, children)
        run.request.remove_held(held - join.held)


class GroupPort(Port):
    """The port of a group parameter."""

    __slots__ = ("completion", "depth", "rank", "top")

    def __init__(self, run: PortRun, slot: int) -> None:
        super().__init__(run, slot)
        self.top = run.depth
        self.rank = run.rank(slot)
        self.depth = run.input_depth(slot)
        self.completion: CompletionCounter | None = None
        """Counts pieces in arrival order; in ancestry order each group's reorder buffer does."""
        if run.in_arrival_order:
            self.completion = CompletionCounter(self.top, self.depth)

    def is_full(self, path: Path) -> bool:
        """Return whether its group is full; before there is one, whether the stage has enough ready calls."""
        grouped_call = self.run.grouped_calls.get(path[: self.top])
        if grouped_call is None:
            if self.dropped and self.is_dropped(path):
                return False
            return self.run.waiting >= self.run.capacity
        group = grouped_call.groups[self.rank]
        return len(group.buffer) >= group.capacity and group.is_full()

    def room_for(self, path: Path) -> Room:
        """Return the room to wait for while it is full."""
        grouped_call = self.run.grouped_calls.get(path[: self.top])
        return self.run.room if grouped_call is None else grouped_call.groups[self.rank].room

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Add a piece to its group, which may complete the group."""
        if self.dropped and self.is_dropped(path):
            return
        run, key = self.run, path[: self.top]
        grouped_call = run.grouped_calls.get(key)
        if grouped_call is None:
            grouped_call = run.grouped_call(key, value)
        grouped_call.groups[self.rank].push(path, value)

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:
        """Return the methods of the group itself: all outputs of one generator call go to one group."""
        grouped_call = self.run.grouped_calls.get(path[: self.top])
        if grouped_call is None:  # The group was dropped.
            return self.is_full, self.push
        group = grouped_call.groups[self.rank]
        return group.is_full, group.push

    def counted(self, parent: Path, children: int) -> None:
        """Accept the number of children of an inner node, which may complete the group."""
        if self.dropped and self.is_dropped(parent):
            return
        self.run.grouped_call(parent[: self.top]).groups[self.rank].counted(parent, children)
