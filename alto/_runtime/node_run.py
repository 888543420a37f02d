"""One request at one stage: its inputs, ready calls, running calls, and the consumers of its outputs.

Theory of operation. A run has one *port* per stream parameter of its stage, and one target per
consumer of its own stream. Upstream calls ``push`` (an item has arrived) and ``counted`` (a call had so
many children) on its ports, in any order, and ``is_full`` before. All of these are sync: they feed an
event to a machine (machines/) and apply the answer.

Calls that have all their inputs wait in the ready queue of a replica (queue.py); only these count
against the capacity. If the stage has several replicas, a call waits in ``unplaced`` until the router
has chosen its queue (node.py). Items that still wait for other inputs are *held*: there is nowhere
else for them to go.

Why nothing deadlocks: a call that waits for room waits for a consumer that has all its inputs from
upstream (a ready call, or a begun group whose call does not wait for a piece). Waiting calls hold no
permits. So each wait is for something further downstream, and the chain of waits ends at user code
that runs, or at the reader of the request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alto._current_call import current_call
from alto._runtime.call import Call
from alto._runtime.group import GroupedCall
from alto._runtime.machines.join import Join
from alto._runtime.machines.liveness import Liveness
from alto._runtime.ports import GroupPort, ItemPort, JoinPort, Port, Target
from alto._runtime.queue import ReadyCall, ReadyQueue
from alto._runtime.replica import Replica
from alto._runtime.room import Room
from alto.events import GroupCompleted
from alto.model import Path

if TYPE_CHECKING:
    import asyncio

    from alto._runtime.node import Node
    from alto._runtime.request import Request

__all__ = ("NodeRun",)


class NodeRun:
    """One request at one stage; see the module's docstring."""

    __slots__ = (
        "_counts_to",
        "_group_ports",
        "_liveness",
        "_targets",
        "capacity",
        "dropped",
        "grouped_calls",
        "index",
        "is_full",
        "join",
        "node",
        "ports",
        "push",
        "queues",
        "request",
        "room",
        "routed",
        "sole",
        "stage",
        "stalled",
        "suspended",
        "tracks_calls",
        "unplaced",
        "values",
    )  # fmt: skip

    def __init__(self, request: Request, node: Node, values: Mapping[str, object] | None) -> None:
        self.request = request
        self.node = node
        self.index: int = node.plan.index
        self.stage: str = node.full_name
        """Name of the stage, with the pipeline's name before it."""
        self.values = values
        """Resources of the stage for this request alone; None: none."""
        self.capacity: int = request.capacity
        self.queues: dict[int, ReadyQueue] = {}
        """Queue of ready calls for each replica, by the replica's number."""
        self.sole: ReadyQueue | None = None
        """The only queue, while the stage is not routed."""
        self.unplaced: deque[ReadyCall] = deque()
        """Ready calls that have not been routed to a replica yet."""
        self.stalled = False
        """True if the next of them may not be routed, because its outputs would have no room."""
        self.routed: bool = node.routed
        """True if a router chooses among several replicas, and learns how long calls run."""
        self.tracks_calls: bool = node.routed or bool(node.group_slots)
        """True if the end of every call must be reported here, not only of those that suspended."""
        if not node.routed:
            self.sole = self.queues[node.sole_replica.number] = ReadyQueue(self, node.sole_replica)
        self.room = Room()
        """Waiters for room among the ready calls."""
        self.suspended: dict[Path, Call] = {}
        """Calls that have suspended, and can be cancelled, by path."""
        self.grouped_calls: dict[Path, GroupedCall] = {}
        """Groups whose call has not ended, by path."""
        self.dropped: set[Path] = set()
        """Ancestors below which nothing is needed any more."""
        self._liveness: Liveness | None = None
        self.join: Join | None = Join(node.plan.depth, node.join) if node.join else None
        self.ports: tuple[Port, ...] = tuple(self._port(slot) for slot in range(node.arity))
        self._group_ports = tuple(port for port in self.ports if isinstance(port, GroupPort))
        # Filled by the request once all runs exist:
        self._targets: tuple[Target, ...] = ()
        self._counts_to: tuple[Target, ...] = ()
        # Any: pyright takes a function in a slot for a method. connect() replaces both by those of the
        # only target, so that an item passes no loop.
        self.push: Any = self._push_all
        self.is_full: Any = self._any_full

    def _port(self, slot: int) -> Port:
        if self.node.plan.inputs[slot].group:
            return GroupPort(self, slot)
        return ItemPort(self, slot) if self.join is None else JoinPort(self, slot)

    def connect(self, targets: tuple[Target, ...], counts_to: tuple[Target, ...]) -> None:
        """Set the consumers of outputs, and those of the counts of children."""
        self._targets = targets
        self._counts_to = counts_to
        if len(targets) == 1:  # The common case: no loop over the targets.
            self.push = targets[0].push
            self.is_full = targets[0].is_full

    # ---- properties that the protocols of ports, queues and calls ask for

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        return self.node.plan.name

    @property
    def depth(self) -> int:
        """Length of the calls' paths."""
        return self.node.plan.depth

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The app's event loop."""
        return self.node.app.loop

    @property
    def priority(self) -> int:
        """The request's priority."""
        return self.request.priority

    @property
    def root(self) -> Request:
        """The outermost request."""
        return self.request.root

    @property
    def in_arrival_order(self) -> bool:
        """True if groups hand out their pieces in arrival order."""
        return self.node.spec.stage.order == "arrival"

    def input_depth(self, slot: int) -> int:
        """Length of the paths that come in at parameter *slot*."""
        return self.node.plan.inputs[slot].depth

    def rank(self, slot: int) -> int:
        """Return the position of parameter *slot* among the stage's group parameters."""
        return self.node.group_slots.index(slot)

    @property
    def waiting(self) -> int:
        """Number of ready calls that have not started."""
        if self.sole is not None:
            return len(self.sole.ready)
        return len(self.unplaced) + sum(len(queue.ready) for queue in self.queues.values())

    @property
    def active(self) -> int:
        """Number of calls that have started and have not ended."""
        return sum(queue.active for queue in self.queues.values())

    @property
    def busy(self) -> bool:
        """True if a call runs or could start."""
        if self.sole is not None:
            return bool(self.sole.active or self.sole.ready)
        return bool(self.unplaced) or any(q.active or q.ready for q in self.queues.values())

    # ---- starting calls

    def put(self, path: Path, args: Any) -> None:  # noqa: ANN401  # what the stage takes
        """Queue a call that has all its inputs."""
        if self.sole is not None:
            self.sole.put(path, args)
        elif self._group_ports:
            self.queue(self.grouped_calls[path].replica).put(path, args)
        else:
            self.unplaced.append((path, args))
            if not self.stalled:
                self.node.enqueue(self)

    def grouped_call(self, path: Path, value: object = None) -> GroupedCall:
        """Return the groups of the call at *path*, creating them at the first piece, *value*."""
        grouped_call = self.grouped_calls.get(path)
        if grouped_call is None:
            grouped_call = self.grouped_calls[path] = GroupedCall(self, path, self._group_ports)
            if self.sole is None:
                grouped_call.replica = self.node.bind(self, path, value)
        return grouped_call

    def begin(self, grouped: GroupedCall) -> None:
        """Queue the call of *grouped*, one of whose groups has begun, if it has all its inputs."""
        if self.join is None:
            grouped.begun = True
            self.put(grouped.path, grouped.groups)
            return
        held = self.join.held
        self.start_all(self.join.begun(grouped.path))
        self.request.add_held(self.join.held - held, self)

    def start_all(self, starts: list[tuple[Path, list[Any]]]) -> None:
        """Queue calls that have all their inputs."""
        for path, args in starts:
            if self._group_ports:
                grouped_call = self.grouped_calls[path]
                grouped_call.begun = True
                for port, group in zip(self._group_ports, grouped_call.groups, strict=True):
                    args[port.slot] = group
            self.put(path, args)

    def completed(self, path: Path, slot: int) -> None:
        """Report that a group is complete."""
        if (notify := self.node.app.notify_group) is not None:
            notify(
                GroupCompleted(
                    request=self.request.id,
                    stage=self.stage,
                    path=path,
                    parameter=self.node.spec.stage.params[slot].name,
                    time=self.loop.time(),
                )
            )

    # ---- routing

    def queue(self, replica: Replica) -> ReadyQueue:
        """Return the queue for *replica*, creating it if necessary."""
        queue = self.queues.get(replica.number)
        if queue is None:
            queue = self.queues[replica.number] = ReadyQueue(self, replica)
        return queue

    def route(self) -> None:
        """Make the run routed. What has begun stays at its replica."""
        sole, self.sole = self.sole, None
        if sole is None:
            return
        self.routed = self.tracks_calls = True
        node = self.node
        if self._group_ports:
            for path, grouped_call in self.grouped_calls.items():
                grouped_call.replica = node.sole_replica
                node.binding.bind_to(self.request.number, path, node.sole_replica.number)
            return
        node.binding.count_existing(node.sole_replica.number, sole.active)
        self._take_back(sole)

    def take_back(self, number: int) -> int:
        """Route again what waits for replica *number*. Returns the number of items."""
        queue = self.queues.get(number)
        return 0 if queue is None else self._take_back(queue)

    def _take_back(self, queue: ReadyQueue) -> int:
        starts = queue.take_all()
        self.unplaced.extendleft(reversed(starts))
        if starts and not self.stalled:
            self.node.enqueue(self)
        return len(starts)

    def stall(self, room: Room) -> None:
        """Route nothing more until there is *room* for the outputs of the next call."""
        room.block(self)
        self.stalled = True

    def unblock(self) -> None:
        """Route again: there is room."""
        self.stalled = False
        if self.unplaced:
            self.node.enqueue(self)

    # ---- outputs

    def no_room_at(self, path: Path) -> Room | None:
        """Return the full room that an item at or below *path* must wait for; None: no room is full."""
        for target in self._targets:
            if target.is_full(path):
                return target.room_for(path)
        return None

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:
        """Return ``is_full`` and ``push`` for the outputs of the generator call at *path*."""
        if len(self._targets) == 1:
            return self._targets[0].inlet(path)
        return self.is_full, self.push

    def counted(self, path: Path, children: int) -> None:
        """Report that the call at *path* has ended after *children* outputs."""
        for port in self._counts_to:
            port.counted(path, children)

    def _push_all(self, path: Path, value: Any) -> None:  # noqa: ANN401
        for target in self._targets:
            target.push(path, value)

    def _any_full(self, path: Path) -> bool:
        return any(target.is_full(path) for target in self._targets)

    # ---- ends and drops

    def call_ended(self, call: Call, seconds: float | None) -> None:
        """Forget a call that has ended after *seconds*; None: the time is not known."""
        self.suspended.pop(call.path, None)
        if (
            self._group_ports
            and (grouped_call := self.grouped_calls.pop(call.path, None)) is not None
        ):
            # Cancel what only its groups waited for.
            grouped_call.leave()
            if grouped_call.replica is not None:
                self.node.release(self, call.path)
        if self.routed:
            self.node.waiting_runs.move_to_end(self)
            self.node.ended(call.replica.number, seconds)

    def idle(self) -> None:
        """Check whether the request has ended, since no call of it runs at one replica."""
        self.request.check_end()

    def is_dropped(self, path: Path) -> bool:
        """Return whether nothing needs inputs at *path*."""
        return any(path[:n] in self.dropped for n in range(len(path) + 1))

    def release(self, slot: int, ancestor: Path) -> None:
        """Release what input *slot* needed at or below *ancestor*. What no other consumer needs is cancelled."""
        self.ports[slot].dropped.add(ancestor)
        source = self.node.plan.inputs[slot]
        producer = self.request.producer(source.source)
        if producer is not None:
            producer.released(source.rank, ancestor)

    def released(self, rank: int, ancestor: Path) -> None:
        """Record that consumer *rank* needs nothing below *ancestor*, and drop what is dead now."""
        if self._liveness is None:
            self._liveness = Liveness(len(self._targets))
        for dead in self._liveness.release(rank, ancestor):
            self.request.drop_soon(self, dead)

    def drop(self, ancestor: Path) -> None:
        """Stop all work at and below *ancestor*: nothing needs its results any more."""
        size = len(ancestor)
        if self.is_dropped(ancestor):
            return
        # First of all: whatever is pushed or counted from here on is ignored. Then every place in
        # which a call can be is emptied: ready queues, the join, running calls, groups.
        self.dropped.add(ancestor)
        self._drop_waiting(ancestor)
        if self.join is not None:
            held = self.join.held
            self.join.drop(ancestor)
            self.request.remove_held(held - self.join.held)
        running = self._cancel_running(ancestor)
        for path in self._below(ancestor, self.grouped_calls):
            grouped_call = self.grouped_calls[path]
            for group in grouped_call.groups:
                group.dropped = True
            grouped_call.leave()
            if path not in running:  # Else call_ended() does this when the call has ended.
                del self.grouped_calls[path]
                if grouped_call.replica is not None:
                    self.node.release(self, path)
        for slot, source in enumerate(self.node.plan.inputs):
            # Deeper levels are the stage's own: its inputs have no such ancestor to release.
            if size <= min(source.depth, self.node.plan.depth):
                self.release(slot, ancestor)
        # Waiters check again: a dropped path is never full.
        self.room.wake_all()
        if self.stalled:
            self.unblock()
        for queue in list(self.queues.values()):
            if queue.blocked:
                queue.unblock()

    def _cancel_running(self, ancestor: Path) -> set[Path]:
        size = len(ancestor)
        running = [self.suspended[path] for path in self._below(ancestor, self.suspended)]
        # A call that has not suspended is not in *suspended*: it can only be the current one.
        mine = current_call.get()
        if isinstance(mine, Call) and mine.run is self and mine.path[:size] == ancestor:
            running.append(mine)
        for call in running:
            call.cancel()
        return {call.path for call in running}

    def _below(self, ancestor: Path, paths: Mapping[Path, object]) -> Sequence[Path]:
        # Paths of calls at or below an ancestor. Usually it is a call's own path: no search then.
        size = len(ancestor)
        if size == self.node.plan.depth:
            return [ancestor] if ancestor in paths else []
        return [path for path in paths if path[:size] == ancestor]

    def _drop_waiting(self, ancestor: Path) -> None:
        size = len(ancestor)
        kept = [start for start in self.unplaced if start[0][:size] != ancestor]
        if len(kept) < len(self.unplaced):
            self.unplaced.clear()
            self.unplaced.extend(kept)
        for number, queue in list(self.queues.items()):
            gone = queue.drop(ancestor)
            if gone and self.sole is None and not self._group_ports:
                self.node.withdrawn(number, gone)

    def close(self) -> None:
        """Drop all references: the request has ended, and must not keep items alive."""
        for path, grouped_call in self.grouped_calls.items():
            for group in grouped_call.groups:
                group.left = True
            grouped_call.groups = ()
            if grouped_call.replica is not None:
                self.node.release(self, path)
        self._targets = self._counts_to = ()
        self.push, self.is_full = _closed_push, _closed_full
        self.ports = self._group_ports = ()
        self.grouped_calls.clear()
        self.unplaced.clear()
        self.suspended.clear()
        self.queues.clear()
        self.sole = None
        self.join = None
        self.values = None


def _closed_push(path: Path, value: Any) -> None:  # noqa: ANN401
    """Drop an item: the request has ended."""


def _closed_full(path: Path) -> bool:  # noqa: ARG001
    return False
