"""What an app is doing at this moment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from alto._run.app import Installed
    from alto._run.node import Node
    from alto._run.request import Request
    from alto._spec import Declaration

__all__ = ("AppStatistics", "StageStatistics", "statistics_of")


@attrs.frozen(kw_only=True)
class StageStatistics:
    """What one stage is doing at this moment."""

    running: int = 0
    """Calls that have started and have not ended, those that wait inside alto included."""
    waiting: int = 0
    """Calls that have all they need and have not started."""
    done: int = attrs.field(default=0, eq=False)
    """Calls that have ended by themselves since the app was opened; not compared."""


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
        waiting[lane.node] = waiting.get(lane.node, 0) + len(lane.ready)
    for pipeline in installed:
        own = pipeline.declaration is declaration
        prefix = "" if own else f"{pipeline.declaration.name}."
        for node in pipeline.nodes:
            row = StageStatistics(
                running=running.get(node, 0), waiting=waiting.get(node, 0), done=node.done
            )
            if own or row.running or row.waiting:
                stages[prefix + node.plan.name] = row
    return AppStatistics(
        open_requests=len(requests),
        stages=MappingProxyType(stages),
        open_groups=sum(len(lane.rows) * len(lane.group_slots) for lane in lanes),
        buffered_items=sum(r.held + r.sink.held for r in requests),
    )
