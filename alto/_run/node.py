"""One stage in a pipeline, as long as the app is open: its replicas, and who of them gets what.

Theory of operation. As long as a stage has one replica, requests stand in that one's line
themselves, and nothing here is in the way. With more, the stage is *routed*: an item of a stage that
does not gather waits in its request's lane until some replica could start a call; then the router
says where it goes. A group is bound to a replica when its first piece comes, and its call goes
there. What has been given to a replica waits in a *berth*. A stage that was ever scaled stays routed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

import anyio

from alto._core.binding import Binding
from alto._run.keeper import Keeper, needs_keeper
from alto._run.replica import Replica
from alto._run.resources import with_handles
from alto._told import told
from alto.errors import ResourceError, RoutingError
from alto.routing import LeastWork

if TYPE_CHECKING:
    from alto._core.binding import Router
    from alto._core.graph import NodePlan
    from alto._run.call import Call
    from alto._run.group import Row
    from alto._run.lane import Lane
    from alto._run.worker import Worker
    from alto._spec import NodeSpec
    from alto.model import Path

__all__ = ("Node",)


class Node:
    """A stage in a pipeline, shared by all requests of an app.

    Args:
        plan: Where it stands in the graph.
        spec: The stage.
        resources: Its keyword arguments; those that each replica makes for itself as they were
            given.
        spawn: Starts a worker's task.
    """

    __slots__ = ("_again", "_dispatching", "arity", "binding", "done", "group_slots", "home", "join", "keeps",
                 "line", "loop", "plan", "replicas", "resources", "routed", "scaling", "spawn",
                 "spec")  # fmt: skip

    def __init__(
        self,
        plan: NodePlan,
        spec: NodeSpec,
        resources: Mapping[str, object],
        spawn: Callable[[Worker], None],
    ) -> None:
        self.plan = plan
        self.spec = spec
        self.resources = resources
        self.spawn = spawn
        self.loop = asyncio.get_running_loop()
        self.arity = len(plan.inputs)
        self.group_slots = tuple(k for k, source in enumerate(plan.inputs) if source.group)
        self.join: tuple[int | None, ...] = ()
        """Depths as :class:`Join` wants them; empty where a call needs one thing only."""
        if self.arity > 1:
            self.join = tuple(None if s.group else s.depth for s in plan.inputs)
        self.keeps = needs_keeper(spec, resources)
        """Whether each replica has something of its own, which must be made before it works."""
        self.binding = Binding(_router(spec, plan.name), plan.name)
        self.replicas: dict[int, Replica] = {}
        """By number, in order; those that drain included."""
        self.line: dict[Lane, None] = {}
        """Requests with items that no replica has been given yet, in turns."""
        self.done = 0
        """Calls that have ended by themselves at replicas that have gone."""
        self.scaling = anyio.Lock()
        """Held by whoever adds or removes replicas."""
        self._dispatching = self._again = False
        for replica in [self.new_replica() for _ in range(spec.stage.replicas)]:
            self.add(replica)
        self.home: Replica = self.replicas[0]
        """The only replica, as long as there is only one."""
        self.routed = spec.stage.replicas > 1
        """Whether a router says who gets what."""

    # ---- replicas come and go

    def new_replica(self) -> Replica:
        """A replica that gets nothing yet."""
        stage = self.spec.stage
        number = self.binding.reserve()
        keeper = None
        if self.keeps:
            keeper = Keeper(self.spec, self.plan.name, number, self.resources)
        resources = {} if keeper is not None else with_handles(self.spec, self.resources)
        return Replica(self, number, keeper, stage.fn, resources)

    def add(self, replica: Replica) -> None:
        """A replica gets items and groups from now on."""
        self.binding.add(replica.number, self.spec.stage.concurrency)
        self.replicas[replica.number] = replica

    def route(self, lanes: Iterable[Lane]) -> None:
        """From now on there may be several replicas. *lanes* are those of all open requests."""
        if self.routed:
            return
        self.routed = True
        for lane in lanes:
            self.home.turns.withdrawn(lane)
            self.home.active += lane.active
            lane.route()

    def drain(self, number: int, lanes: Iterable[Lane]) -> None:
        """A replica gets nothing new; it goes when its last call has ended.

        Items that wait for it go to others; groups stay where they are.
        """
        self.binding.drain(number)
        if not self.group_slots:
            for lane in lanes:
                for _ in range(lane.take_back(number)):
                    self.binding.withdrawn(number)
        self._retire(number)
        self.dispatch()

    def _retire(self, number: int) -> None:
        # See whether a replica that drains has nothing left.
        if self.binding.is_drained(number):
            self.binding.forget(number)
            replica = self.replicas.pop(number)
            self.done += replica.done
            replica.close()

    def close(self) -> None:
        """Let the workers end. No calls run any more."""
        for replica in self.replicas.values():
            replica.close()

    # ---- who gets what

    def offer(self, lane: Lane) -> None:
        """A request has items to start, where a router says who gets them."""
        if lane not in self.line:
            self.line[lane] = None
        self.dispatch()

    def dispatch(self) -> None:
        """Route items as long as some replica could start one."""
        if self._dispatching:
            self._again = True
            return
        self._dispatching = self._again = bool(self.line)
        try:
            while self._again and self.line:
                self._again = False
                free = self._look()
                while free and self.line:
                    lane = next(iter(self.line))
                    del self.line[lane]
                    free -= self._dispatch(lane)
        finally:
            self._dispatching = False

    def _look(self) -> int:
        # Bring up to date what routers see; how many replicas could start a call.
        some = 0
        for load in self.binding.live:
            load.free = self.replicas[load.number].turns.spare
            some += load.free > 0
        return some

    def _dispatch(self, lane: Lane) -> bool:
        # Whether a replica that could start a call cannot start another one now.
        ready = lane.ready
        if lane.stalled or not ready:
            return False
        path, args = ready[0]
        if lane.is_full(path) and (waiters := lane.blocked_by(path)) is not None:
            waiters.block(lane)
            lane.stalled = True
            return False
        try:
            number = self.binding.place(lane.request.number, path, args[0])
        except RoutingError as error:
            lane.request.fail(error)
            return False
        ready.popleft()
        if ready:
            self.line[lane] = None
        replica = self.replicas[number]
        lane.berth(replica).put(path, args)
        load = self.binding.loads[number]
        if not load.free:  # Of a router that named one which is busy.
            return False
        load.free = replica.turns.spare
        return not load.free

    def bind(self, lane: Lane, row: Row, value: object) -> None:
        """A group comes to be: choose its replica."""
        self._look()
        request = lane.request
        try:
            number = self.binding.bind(request.number, row.path, value)
        except RoutingError as error:
            number = self.binding.live[0].number
            self.binding.hold(request.number, row.path, number)
            row.replica = self.replicas[number]
            request.fail(error)
        else:
            row.replica = self.replicas[number]

    def release(self, lane: Lane, path: Path) -> None:
        """A group is closed."""
        self._retire(self.binding.release(lane.request.number, path))

    def dropped(self, number: int, items: int) -> None:
        """Nobody needs *items* that a replica had been given."""
        for _ in range(items):
            self.binding.withdrawn(number)
        self._retire(number)

    def ended(self, call: Call, seconds: float | None) -> None:
        """A call has ended, after it ran for *seconds*; None: it began before there were several."""
        replica = call.replica
        replica.active -= 1
        number = replica.number
        if self.group_slots:  # Its row has gone already, and counts for it.
            if seconds is not None and number in self.binding.loads:
                self.binding.took(number, seconds)
            return
        self.binding.ended(number, seconds)
        self._retire(number)


def _router(spec: NodeSpec, name: str) -> Router:
    if spec.stage.router is None:
        return LeastWork()
    try:
        return deepcopy(spec.stage.router)
    except Exception as error:
        msg = (
            f"stage {name!r}: its router {type(spec.stage.router).__name__} cannot be copied, and "
            f"each app works with a copy ({told(error)}); give it a __deepcopy__ "
            f"that makes a new one, or returns itself to be shared"
        )
        raise ResourceError(msg) from error
