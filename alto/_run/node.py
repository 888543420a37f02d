"""One stage in a pipeline, as long as the app is open: its permits and its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from alto._core.turns import Turns
from alto._run.worker import Worker

if TYPE_CHECKING:
    from alto._core.graph import NodePlan
    from alto._run.call import Call
    from alto._run.lane import Lane
    from alto._spec import NodeSpec

__all__ = ("Node",)


class Node:
    """A stage in a pipeline, shared by all requests of an app.

    Args:
        plan: Where it stands in the graph.
        spec: The stage.
        resources: Its keyword arguments.
        spawn: Starts a worker's task.
    """

    __slots__ = ("arity", "closing", "done", "group_slots", "idle", "join", "leader", "loop",
                 "plan", "resources", "spawn", "spec", "turns")  # fmt: skip

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
        self.turns: Turns[Lane, Call] = Turns(spec.stage.concurrency)
        self.leader: Worker | None = None
        """The worker that is being woken, or runs calls that have not suspended. See worker.py."""
        self.idle: list[Worker] = []
        self.closing = False
        self.done = 0
        """Calls that have ended by themselves since the app was opened."""
        self.arity = len(plan.inputs)
        self.group_slots = tuple(k for k, source in enumerate(plan.inputs) if source.group)
        self.join: tuple[int | None, ...] = ()
        """Depths as :class:`Join` wants them; empty where a call needs one thing only."""
        if self.arity > 1:
            self.join = tuple(None if s.group else s.depth for s in plan.inputs)

    def kick(self) -> None:
        """A permit or something to start has come: see that it is used."""
        turns = self.turns
        while (call := turns.next_resume()) is not None:
            call.resumed()
        if self.leader is None and turns.has_next:
            if self.idle:
                self.leader = self.idle.pop()
                self.leader.wake()
            else:
                self.leader = Worker(self)
                self.spawn(self.leader)

    def close(self) -> None:
        """Let the workers end. No calls run any more."""
        self.closing = True
        while self.idle:
            self.idle.pop().wake()
