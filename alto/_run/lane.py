"""One request at one node: what has arrived, what can start, what runs, where results go.

Theory of operation. A lane has one *port* per stream parameter of its stage, and one target per
consumer of its own stream. Upstream calls it with ``push`` (an item) and ``counted`` (a call has
had so many children), in any order, and asks ``is_full`` before. All of these are sync: they feed
a machine of ``_core`` and apply what it says.

``ready`` holds the calls that have all they need; only these count against the capacity. What
still waits for something else from upstream is *held*: it has nowhere else to go.

Why nothing deadlocks: a call that waits for room waits for a consumer which has all it needs from
upstream (a ready call, or a begun group whose call does not wait for a piece). Waiting calls hold
no permits. So following whom a call waits for leads strictly downstream, and ends at user code
that runs, or at the reader of the request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from alto._aio import current_call
from alto._core.demand import Demand
from alto._core.join import Join
from alto._run.berth import Berth
from alto._run.call import Call
from alto._run.group import Row, Waiters
from alto._run.ports import GroupPort, ItemPort, JoinPort, Port

if TYPE_CHECKING:
    from alto._run.node import Node
    from alto._run.replica import Replica
    from alto._run.request import Request
    from alto._run.sink import Sink
    from alto.model import Path

__all__ = ("Lane",)


class Lane:
    """One request at one node. See the module."""

    __slots__ = ("active", "berths", "blocked", "calls", "capacity", "demand", "dropped",
                 "group_slots", "is_full", "join", "lane", "node", "placed", "ports", "push",
                 "ready", "request", "routed", "rows", "stalled", "targets", "told",
                 "waiters")  # fmt: skip

    def __init__(self, request: Request, node: Node) -> None:
        self.request = request
        self.node = node
        self.lane = self  # A worker takes calls from lanes and berths alike.
        self.capacity: int = request.capacity
        self.routed: bool = node.routed
        """Whether a router says which replica gets what; see node.py."""
        self.berths: dict[int, Berth] = {}
        """Where that is so: what waits for each replica, by its number."""
        self.placed = 0
        """Calls in them."""
        self.ready: deque[tuple[Path, Any]] = deque()
        self.waiters = Waiters()
        """Who waits for room in ``ready``."""
        self.stalled = False
        """Whether the next ready call may not start, since its results would have no room."""
        self.blocked = self.routed
        """Whether no worker may take a call from here."""
        self.active: int = 0
        """Calls that have started and have not ended."""
        self.calls: dict[Path, Call] = {}
        """Those of them that have suspended, so that somebody could cancel them."""
        self.rows: dict[Path, Row] = {}
        """Groups whose call has not ended."""
        self.dropped: set[Path] = set()
        """Ancestors below which nothing is needed any more."""
        self.demand: Demand | None = None
        """What the consumers of this lane's stream have released; made at need."""
        self.group_slots: tuple[int, ...] = node.group_slots
        self.join: Join | None = Join(node.plan.depth, node.join) if node.join else None
        self.ports: tuple[Port, ...] = tuple(self._port(slot) for slot in range(node.arity))
        # Filled by the request once all lanes exist:
        self.targets: tuple[Port | Sink, ...] = ()
        self.told: tuple[Port | Sink, ...] = ()
        self.push: Any = self._push_all
        self.is_full: Any = self._any_full

    def _port(self, slot: int) -> Port:
        if self.node.plan.inputs[slot].group:
            return GroupPort(self, slot)
        return ItemPort(self, slot) if self.join is None else JoinPort(self, slot)

    def connect(self, targets: tuple[Port | Sink, ...], told: tuple[Port | Sink, ...]) -> None:
        """Say where results go, and who must know how many there were."""
        self.targets = targets
        self.told = told
        if len(targets) == 1:  # The common case, without the loop.
            self.push = targets[0].push
            self.is_full = targets[0].is_full

    # ---- what can start

    def offer(self) -> None:
        """There is something ready: stand in line, and see that somebody looks."""
        if self.routed:
            self.node.offer(self)
            return
        home = self.node.home
        home.turns.offered(self)
        if home.leader is None:
            home.kick()

    def take(self) -> tuple[Path, Any] | None:
        """The next call to start, whose permit is taken, or None if there is none after all.

        The lane is out of line; the worker sees that it is offered again.
        """
        ready = self.ready
        if not ready:
            return None
        path = ready[0][0]
        if self.is_full(path) and (waiters := self.blocked_by(path)) is not None:
            waiters.block(self)
            self.blocked = self.stalled = True
            return None
        start = ready.popleft()
        self.active += 1
        if self.waiters.some:
            self.waiters.wake()
        return start

    def unblock(self) -> None:
        """There is room again for what a call would give."""
        self.stalled = False
        self.blocked = self.routed
        if self.ready:
            self.offer()

    def start(self, path: Path, args: list[Any]) -> None:
        """A call has all it needs."""
        if self.routed and self.group_slots:
            replica = self.rows[path].replica
            assert replica is not None
            self.berth(replica).put(path, args)
            return
        self.ready.append((path, args))
        if not self.stalled:
            self.offer()

    def row(self, path: Path, value: object = None) -> Row:
        """The groups of the call at *path*, made when the first of them begins, with *value*."""
        row = self.rows.get(path)
        if row is None:
            row = self.rows[path] = Row(self, path)
            if self.routed:
                self.node.bind(self, row, value)
        return row

    def begin(self, row: Row) -> None:
        """A group of *row* has its first piece, or is complete. Once per row."""
        if self.join is None:
            row.begun = True
            self.start(row.path, list(row.groups))
            return
        held = self.join.held
        self.started(self.join.begun(row.path))
        self.request.held += self.join.held - held

    def started(self, starts: list[tuple[Path, list[Any]]]) -> None:
        """These calls have all their items."""
        for path, args in starts:
            if self.group_slots:
                row = self.rows[path]
                row.begun = True
                for slot, group in zip(self.group_slots, row.groups, strict=True):
                    args[slot] = group
            self.start(path, args)

    # ---- where a router says who gets what

    def berth(self, replica: Replica) -> Berth:
        """What waits for *replica*."""
        berth = self.berths.get(replica.number)
        if berth is None:
            berth = self.berths[replica.number] = Berth(self, replica)
        return berth

    def route(self) -> None:
        """From now on a router says who gets what. What has begun is the first replica's."""
        node = self.node
        home = node.home
        self.routed = self.blocked = True
        if not self.group_slots:
            node.binding.adopt(home.number, self.active)
            if self.ready and not self.stalled:
                node.offer(self)
            return
        for path, row in self.rows.items():
            row.replica = home
            node.binding.hold(self.request.number, path, home.number)
        berth, self.stalled = self.berth(home), False
        while self.ready:
            berth.put(*self.ready.popleft())

    def take_back(self, number: int) -> int:
        """What waits for replica *number* is to be given to others.

        Returns:
            How many items that was.
        """
        berth = self.berths.pop(number, None)
        if berth is None:
            return 0
        berth.replica.turns.withdrawn(berth)
        items = len(berth.ready)
        self.placed -= items
        self.ready.extendleft(reversed(berth.ready))
        berth.ready.clear()
        if items and not self.stalled:
            self.node.offer(self)
        return items

    # ---- where results go

    def blocked_by(self, path: Path) -> Waiters | None:
        """Where there is no room for an item at *path*, or below it; None: everywhere is."""
        for target in self.targets:
            if target.is_full(path):
                return target.waiters_for(path)
        return None

    def inlet(self, path: Path) -> tuple[Any, Any]:
        """``is_full`` and ``push`` for what the generator call at *path* gives."""
        if len(self.targets) == 1:
            return self.targets[0].inlet(path)
        return self.is_full, self.push

    def counted(self, path: Path, children: int) -> None:
        """The call at *path* has ended after *children* outputs."""
        for port in self.told:
            port.counted(path, children)

    def _push_all(self, path: Path, value: Any) -> None:  # noqa: ANN401
        for target in self.targets:
            target.push(path, value)

    def _any_full(self, path: Path) -> bool:
        return any(target.is_full(path) for target in self.targets)

    # ---- what ends

    def leave_row(self, path: Path) -> None:
        """The call at *path* has ended: what only its groups waited for is cancelled."""
        if (row := self.rows.pop(path, None)) is not None:
            for group in row.groups:
                group.leave()
            if row.replica is not None:
                self.node.release(self, path)

    def _forget(self, path: Path) -> None:
        if self.rows.pop(path).replica is not None:
            self.node.release(self, path)

    def is_dropped(self, path: Path) -> bool:
        """Whether nobody needs what comes in at *path*."""
        return any(path[:n] in self.dropped for n in range(len(path) + 1))

    def release(self, slot: int, ancestor: Path) -> None:
        """This lane needs nothing of its input *slot* at or below *ancestor* any more."""
        self.ports[slot].dropped.add(ancestor)
        source = self.node.plan.inputs[slot]
        producer = self.request.producer(source.source)
        if producer is None:
            return
        if producer.demand is None:
            producer.demand = Demand(len(producer.targets))
        for dead in producer.demand.release(source.rank, ancestor):
            self.request.drop_soon(producer, dead)

    def _below(self, ancestor: Path) -> Callable[[Mapping[Path, object]], list[Path]]:
        # The paths of calls at or below an ancestor. Most often it is one: then without a search.
        size = len(ancestor)
        if size == self.node.plan.depth:
            return lambda paths: [ancestor] if ancestor in paths else []
        return lambda paths: [p for p in paths if p[:size] == ancestor]

    def drop(self, ancestor: Path) -> None:  # noqa: C901  # a list of all that there is to stop
        """Nobody needs what this lane gives at or below *ancestor* any more: stop making it."""
        size = len(ancestor)
        if self.is_dropped(ancestor):
            return
        self.dropped.add(ancestor)
        self._drop_ready(ancestor)
        if self.join is not None:
            held = self.join.held
            self.join.drop(ancestor)
            self.request.held += self.join.held - held
        below = self._below(ancestor)
        running = [self.calls[path] for path in below(self.calls)]
        mine = current_call.get()  # A call that has not suspended yet is in no set.
        if isinstance(mine, Call) and mine.lane is self and mine.path[:size] == ancestor:
            running.append(mine)
        for call in running:
            call.cancel()
        paths = {call.path for call in running}
        for path in below(self.rows):
            for group in self.rows[path].groups:
                group.dropped = True
                group.leave()
            if path not in paths:  # A running call's row goes when the call has ended.
                self._forget(path)
        for slot, source in enumerate(self.node.plan.inputs):
            # Below its calls the levels of what a lane gives are its own, not those of its inputs.
            if size <= min(source.depth, self.node.plan.depth):
                self.release(slot, ancestor)
        self.waiters.wake_all()
        if self.stalled:
            self.unblock()
        for berth in list(self.berths.values()):
            if berth.blocked:
                berth.unblock()

    def _drop_ready(self, ancestor: Path) -> None:
        size = len(ancestor)
        kept = [start for start in self.ready if start[0][:size] != ancestor]
        if len(kept) < len(self.ready):
            self.ready.clear()
            self.ready.extend(kept)
        for number, berth in list(self.berths.items()):
            gone = berth.drop(ancestor)
            if gone and not self.group_slots:
                self.node.dropped(number, gone)
