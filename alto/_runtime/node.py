"""A stage of an open pipeline: its replicas, and the routing of items and groups to them.

Theory of operation. While a stage has one replica, requests queue their calls there directly, and
this module is not on an item's path. With more replicas the stage is *routed*. An item of a stage that
does not gather waits in its request's run until some replica could start a call; then the router
chooses a replica for it. A group is bound to a replica when its first piece arrives, and its call runs
there. A stage that was ever scaled stays routed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Protocol

import anyio

from alto._graph.plan import NodePlan
from alto._graph.resources import with_handles
from alto._graph.spec import NodeSpec
from alto._runtime.lifespan import Lifespan, needs_lifespan
from alto._runtime.machines.binding import Binding
from alto._runtime.machines.permits import Rotation
from alto._runtime.observers import Notify
from alto._runtime.replica import Replica, ReplicaApp
from alto._safe_text import told
from alto.errors import ResourceError, RoutingError
from alto.model import Path
from alto.protocols import Router
from alto.routing import LeastWork

if TYPE_CHECKING:
    from alto._runtime.node_run import NodeRun

__all__ = ("Node", "NodeApp")


class NodeApp(ReplicaApp, Protocol):
    """The app, as its stages see it."""

    @property
    def notify_group(self) -> Notify | None:
        """Function that notifies observers of groups; None: no observer wants them."""
        ...


class Node:
    """A stage in a pipeline, shared by all requests of an app.

    Args:
        pipeline: Name of the pipeline.
        plan: Its position in the graph.
        spec: The stage.
        resources: Its keyword arguments; of ``per_replica`` resources the declarations.
        app: The app, as its stages see it.
    """

    __slots__ = (
        "_again",
        "_dispatching",
        "app",
        "arity",
        "binding",
        "done",
        "full_name",
        "group_slots",
        "has_lifespans",
        "join",
        "plan",
        "replicas",
        "resources",
        "routed",
        "scaling",
        "sole_replica",
        "spec",
        "waiting_runs",
    )  # fmt: skip

    def __init__(
        self,
        pipeline: str,
        plan: NodePlan,
        spec: NodeSpec,
        resources: Mapping[str, object],
        app: NodeApp,
    ) -> None:
        self.full_name = f"{pipeline}.{plan.name}"
        self.plan = plan
        self.spec = spec
        self.resources = resources
        self.app = app
        self.arity = len(plan.inputs)
        self.group_slots = tuple(k for k, source in enumerate(plan.inputs) if source.group)
        self.join: tuple[int | None, ...] = ()
        """Depths of the inputs, as :class:`Join` takes them; empty if a call needs one input only."""
        if self.arity > 1:
            self.join = tuple(None if s.group else s.depth for s in plan.inputs)
        self.has_lifespans = needs_lifespan(spec, resources)
        """True if each replica has resources of its own, which must be made before it works."""
        self.binding = Binding(_router(spec, plan.name), plan.name)
        self.replicas: dict[int, Replica] = {}
        """Replicas by number, in order, including those that drain."""
        self.waiting_runs: Rotation[NodeRun] = Rotation()
        """Runs with items that have not been routed yet."""
        self.done = 0
        """Number of calls that have ended by themselves at replicas that were removed."""
        self.scaling = anyio.Lock()
        """Held while replicas are added or removed."""
        self._dispatching = self._again = False
        self.routed = spec.stage.replicas > 1
        """True if a router chooses among several replicas."""
        for replica in [self.new_replica() for _ in range(spec.stage.replicas)]:
            self.add(replica)
        self.sole_replica: Replica = self.replicas[0]
        """The only replica, while the stage is not routed."""

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        return self.plan.name

    @property
    def concurrency(self) -> int:
        """Maximum number of calls that run concurrently, per replica."""
        return self.spec.stage.concurrency

    @property
    def generator(self) -> bool:
        """True if a call yields any number of outputs."""
        return self.spec.stage.generator

    # ---- replicas come and go

    def new_replica(self) -> Replica:
        """Make a replica that receives nothing yet."""
        number = self.binding.reserve()
        lifespan = None
        if self.has_lifespans:
            lifespan = Lifespan(self.spec, self.plan.name, number, self.resources)
        resources = {} if lifespan is not None else with_handles(self.spec, self.resources)
        return Replica(self, number, lifespan, self.spec.stage.fn, resources)

    def add(self, replica: Replica) -> None:
        """Route items and groups to a replica too, from now on."""
        self.binding.add(replica.number, self.concurrency)
        self.replicas[replica.number] = replica

    def route(self, runs: Iterable[NodeRun]) -> None:
        """Make the stage routed. *runs* are those of all open requests."""
        if self.routed:
            return
        self.routed = True
        for run in runs:
            run.route()

    def grow(self, replicas: Iterable[Replica], runs: Iterable[NodeRun]) -> None:
        """Add *replicas*, which have their resources. *runs* are those of all open requests."""
        self.route(runs)
        for replica in replicas:
            self.add(replica)
        self.dispatch()

    def shrink(self, count: int, runs: Sequence[NodeRun]) -> None:
        """Drain *count* replicas: those with the least to do, and of these the youngest."""
        for number in self.binding.least_loaded(count):
            self.drain(number, runs)

    def drain(self, number: int, runs: Iterable[NodeRun]) -> None:
        """Route nothing to a replica any more, and remove it when its last call has ended.

        Items that wait for it are routed again; groups stay bound to it.
        """
        self.binding.drain(number)
        if not self.group_slots:
            for run in runs:
                for _ in range(run.take_back(number)):
                    self.binding.withdrawn(number)
        self._retire(number)
        self.dispatch()

    def _retire(self, number: int) -> None:
        # Remove a draining replica that has nothing left.
        if self.binding.is_drained(number):
            self.binding.forget(number)
            replica = self.replicas.pop(number)
            self.done += replica.done
            replica.close()

    def close(self) -> None:
        """Close all replicas. No calls run any more."""
        for replica in self.replicas.values():
            replica.close()

    # ---- routing

    def enqueue(self, run: NodeRun) -> None:
        """Queue *run*, which has items to route, and route what can start."""
        self.waiting_runs.add(run)
        self.dispatch()

    def dispatch(self) -> None:
        """Route items while some replica could start one."""
        if self._dispatching:  # Placing a call can free a permit, which leads here again.
            self._again = True
            return
        self._dispatching = self._again = bool(self.waiting_runs)
        try:
            while self._again and self.waiting_runs:
                self._again = False
                free = self._update_loads()
                while free and self.waiting_runs:
                    free -= self._dispatch(self.waiting_runs.pop())
        finally:
            self._dispatching = False

    def _update_loads(self) -> int:
        # Update what routers see. Returns the number of replicas that could start a call.
        some = 0
        for load in self.binding.live:
            load.free = self.replicas[load.number].permits.spare
            some += load.free > 0
        return some

    def _dispatch(self, run: NodeRun) -> bool:
        # Returns whether a replica that could start a call no longer can.
        unplaced = run.unplaced
        if run.stalled or not unplaced:
            return False
        path, args = unplaced[0]
        if run.is_full(path) and (room := run.no_room_at(path)) is not None:
            run.stall(room)
            return False
        try:
            number = self.binding.place(run.request.number, path, args[0])
        except RoutingError as error:
            run.request.fail(error)
            return False
        unplaced.popleft()
        if unplaced:
            self.waiting_runs.add(run)
        replica = self.replicas[number]
        run.queue(replica).put(path, args)
        load = self.binding.loads[number]
        if not load.free:  # The router chose a busy replica.
            return False
        load.free = replica.permits.spare
        return not load.free

    def bind(self, run: NodeRun, path: Path, value: object) -> Replica:
        """Bind a new group to a replica, and return that."""
        self._update_loads()
        request = run.request
        try:
            number = self.binding.bind(request.number, path, value)
        except RoutingError as error:
            number = self.binding.live[0].number
            self.binding.bind_to(request.number, path, number)
            replica = self.replicas[number]
            run.grouped_calls[
                path
            ].replica = replica  # Before the request fails: that releases the group.
            request.fail(error)
            return replica
        return self.replicas[number]

    def release(self, run: NodeRun, path: Path) -> None:
        """Release a closed group from its replica."""
        self._retire(self.binding.release(run.request.number, path))

    def withdrawn(self, number: int, items: int) -> None:
        """Withdraw *items* from a replica: nothing needs them any more."""
        for _ in range(items):
            self.binding.withdrawn(number)
        self._retire(number)

    def ended(self, number: int, seconds: float | None) -> None:
        """Record the end of a call that ran for *seconds*; None: not known."""
        if self.group_slots:  # Its group was released already, and counted as the call.
            if seconds is not None and number in self.binding.loads:
                self.binding.record_time(number, seconds)
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
