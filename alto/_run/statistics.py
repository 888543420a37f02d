"""What an app is doing at this moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from alto._run.app import Installed
    from alto._run.lane import Lane
    from alto._run.node import Node
    from alto._run.replica import Replica
    from alto._run.request import Request
    from alto._spec import Declaration

__all__ = ("AppStatistics", "ReplicaStatistics", "StageStatistics", "statistics_of")


@attrs.frozen(kw_only=True)
class ReplicaStatistics:
    """What one replica of a stage is doing at this moment."""

    number: int = attrs.field(eq=False)
    """Which one: 0, 1, ... in the order in which they came; not compared."""
    running: int = 0
    """Calls that have started and have not ended, those that wait inside alto included."""
    waiting: int = 0
    """Calls that it was given and that have not started."""
    bound: int = 0
    """Groups that are bound to it, those of its calls included."""
    draining: bool = False
    """Whether it gets nothing new, since the stage was scaled down."""
    done: int = attrs.field(default=0, eq=False)
    """Calls that have ended by themselves since it was made; not compared."""
    abandoned: int = 0
    """Threads that still run the function of a call that was cancelled."""


@attrs.frozen(kw_only=True)
class StageStatistics:
    """What one stage is doing at this moment."""

    running: int = 0
    """Calls that have started and have not ended, those that wait inside alto included."""
    waiting: int = 0
    """Calls that have all they need and have not started."""
    done: int = attrs.field(default=0, eq=False)
    """Calls that have ended by themselves since the app was opened; not compared."""
    replicas: tuple[ReplicaStatistics, ...] = ()
    """Its instances, by number."""


@attrs.frozen(kw_only=True)
class AppStatistics:
    """What an open pipeline is doing at this moment. An idle one equals a fresh one."""

    open_requests: int
    """Requests that have not ended, those that stages have started included."""
    stages: Mapping[str, StageStatistics]
    """By stage; those of pipelines that stages call only while they do something."""
    open_groups: int
    """Groups whose call has not ended."""
    buffered_items: int
    """Pieces in group and join buffers, and results that nobody has taken."""


def prefix_of(declaration: Declaration, own: Declaration) -> str:
    """What stands before the names of a pipeline's stages in an app of *own*."""
    return "" if declaration is own else f"{declaration.name}."


def statistics_of(
    declaration: Declaration, installed: Iterable[Installed], requests: Collection[Request]
) -> AppStatistics:
    """Add up what the requests of an app are doing."""
    stages: dict[str, StageStatistics] = {}
    lanes = [lane for request in requests for lane in request.lanes]
    running: dict[Node, int] = {}
    waiting: dict[Node, int] = {}
    for lane in lanes:
        running[lane.node] = running.get(lane.node, 0) + lane.active
        waiting[lane.node] = waiting.get(lane.node, 0) + len(lane.ready) + lane.placed
    for pipeline in installed:
        own = pipeline.declaration is declaration
        prefix = prefix_of(pipeline.declaration, declaration)
        for node in pipeline.nodes:
            replicas = _replicas(node, [lane for lane in lanes if lane.node is node])
            row = StageStatistics(
                running=running.get(node, 0),
                waiting=waiting.get(node, 0),
                done=node.done + sum(one.done for one in replicas),
                replicas=replicas,
            )
            if own or row.running or row.waiting:
                stages[prefix + node.plan.name] = row
    return AppStatistics(
        open_requests=len(requests),
        stages=MappingProxyType(stages),
        open_groups=sum(len(lane.rows) * len(lane.group_slots) for lane in lanes),
        buffered_items=sum(r.held + r.sink.held for r in requests),
    )


def _replicas(node: Node, lanes: Collection[Lane]) -> tuple[ReplicaStatistics, ...]:
    if not node.routed:
        return (
            ReplicaStatistics(
                number=0,
                running=sum(lane.active for lane in lanes),
                waiting=sum(len(lane.ready) for lane in lanes),
                bound=sum(len(lane.rows) for lane in lanes),
                done=node.home.done,
                abandoned=_abandoned(node.home),
            ),
        )
    live = {load.number for load in node.binding.live}
    return tuple(
        ReplicaStatistics(
            number=number,
            running=replica.active,
            waiting=sum(len(b.ready) for lane in lanes if (b := lane.berths.get(number))),
            bound=node.binding.loads[number].bound,
            draining=number not in live,
            done=replica.done,
            abandoned=_abandoned(replica),
        )
        for number, replica in node.replicas.items()
    )


def _abandoned(replica: Replica) -> int:
    return 0 if replica.keeper is None else replica.keeper.abandoned
