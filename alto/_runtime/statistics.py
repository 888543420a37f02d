"""Statistics of an app."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

import attrs

from alto._graph.spec import Declaration
from alto._runtime.node import Node
from alto._runtime.node_run import NodeRun
from alto._runtime.replica import Replica
from alto._runtime.request import Request

__all__ = ("AppStatistics", "ReplicaStatistics", "StageStatistics", "prefix_of", "statistics_of")


@attrs.frozen(kw_only=True)
class ReplicaStatistics:
    """Statistics of one replica of a stage, at one moment."""

    number: int = attrs.field(eq=False)
    """Number of the replica, 0, 1, ... in the order in which they were made; not compared."""
    running: int = 0
    """Number of calls that have started and have not ended, including those that wait inside alto."""
    waiting: int = 0
    """Number of calls that wait for this replica and have not started."""
    bound: int = 0
    """Number of groups that are bound to it, including those of its calls."""
    draining: bool = False
    """True if it receives nothing new, because the stage was scaled down."""
    done: int = attrs.field(default=0, eq=False)
    """Number of calls that have ended by themselves since it was made; not compared."""
    abandoned: int = 0
    """Number of threads that still run the function of a cancelled call."""


@attrs.frozen(kw_only=True)
class StageStatistics:
    """Statistics of one stage, at one moment."""

    running: int = 0
    """Number of calls that have started and have not ended, including those that wait inside alto."""
    waiting: int = 0
    """Number of calls that have all their inputs and have not started."""
    done: int = attrs.field(default=0, eq=False)
    """Number of calls that have ended by themselves since the app was opened; not compared."""
    replicas: tuple[ReplicaStatistics, ...] = ()
    """Its replicas, in the order of their numbers."""


@attrs.frozen(kw_only=True)
class AppStatistics:
    """Statistics of an app, at one moment. Those of an idle app equal those of a new one."""

    open_requests: int
    """Number of requests that have not ended, including those started by stages."""
    stages: Mapping[str, StageStatistics]
    """By stage. Stages of inner pipelines are included only while they have calls."""
    open_groups: int
    """Number of groups whose call has not ended."""
    buffered_items: int
    """Number of items in group and join buffers, and of results that have not been taken."""


def prefix_of(declaration: Declaration, own: Declaration) -> str:
    """Return the prefix of a pipeline's stage names in the statistics of an app of *own*."""
    return "" if declaration is own else f"{declaration.name}."


class InstalledPipeline(Protocol):
    """A pipeline inside an app."""

    prefix: str
    nodes: tuple[Node, ...]


def statistics_of(
    installed: Iterable[InstalledPipeline], requests: Collection[Request]
) -> AppStatistics:
    """Return the statistics of an app with these *requests*."""
    stages: dict[str, StageStatistics] = {}
    at: dict[Node, list[NodeRun]] = {}
    for request in requests:
        for run in request.runs:
            at.setdefault(run.node, []).append(run)
    for pipeline in installed:
        for node in pipeline.nodes:
            runs = at.get(node, [])
            replicas = _replicas(node, runs)
            row = StageStatistics(
                running=sum(run.active for run in runs),
                waiting=sum(run.waiting for run in runs),
                done=node.done + sum(one.done for one in replicas),
                replicas=replicas,
            )
            if not pipeline.prefix or row.running or row.waiting:
                stages[pipeline.prefix + node.plan.name] = row
    return AppStatistics(
        open_requests=len(requests),
        stages=MappingProxyType(stages),
        open_groups=sum(
            len(run.grouped_calls) * len(run.node.group_slots)
            for runs in at.values()
            for run in runs
        ),
        buffered_items=sum(r.held + r.sink.held for r in requests),
    )


def _replicas(node: Node, runs: Collection[NodeRun]) -> tuple[ReplicaStatistics, ...]:
    live = {load.number for load in node.binding.live}
    rows: list[ReplicaStatistics] = []
    for number, replica in node.replicas.items():
        queues = [queue for run in runs if (queue := run.queues.get(number)) is not None]
        bound = node.binding.loads[number].bound
        rows.append(
            ReplicaStatistics(
                number=number,
                running=sum(queue.active for queue in queues),
                waiting=sum(len(queue.ready) for queue in queues),
                bound=bound if node.routed else sum(len(run.grouped_calls) for run in runs),
                draining=number not in live,
                done=replica.done,
                abandoned=_abandoned(replica),
            )
        )
    return tuple(rows)


def _abandoned(replica: Replica) -> int:
    return 0 if replica.lifespan is None else replica.lifespan.abandoned
