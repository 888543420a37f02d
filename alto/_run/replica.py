"""One instance of a stage: its permits, its workers, its resources."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from alto._core.turns import Turns
from alto._run.berth import Berth
from alto._run.worker import Worker

if TYPE_CHECKING:
    from alto._run.call import Call
    from alto._run.keeper import Keeper
    from alto._run.lane import Lane
    from alto._run.node import Node

__all__ = ("Replica",)


class Replica:
    """An instance of a stage in a pipeline, shared by all requests of an app.

    Args:
        node: The stage.
        number: Which instance this is; never used again by another one.
        keeper: Who makes and keeps what only this instance has; None: it has nothing of its own.
        fn: What a call awaits or iterates, as long as no keeper says otherwise.
        resources: Its keyword arguments, likewise.
    """

    __slots__ = ("active", "closing", "done", "fn", "idle", "keeper", "leader", "loop", "node", "number",
                 "resources", "spawn", "turns")  # fmt: skip

    def __init__(
        self,
        node: Node,
        number: int,
        keeper: Keeper | None,
        fn: Callable[..., Any],
        resources: Mapping[str, object],
    ) -> None:
        self.node = node
        self.number = number
        self.keeper = keeper
        self.fn = fn
        self.resources = resources
        self.spawn = node.spawn
        self.loop: asyncio.AbstractEventLoop = node.loop
        self.turns: Turns[Lane | Berth, Call] = Turns(node.spec.stage.concurrency)
        self.leader: Worker | None = None
        """The worker that is being woken, or runs calls that have not suspended. See worker.py."""
        self.idle: list[Worker] = []
        self.closing = False
        self.active = 0
        """Calls that run, where a router says who gets what; see node.py."""
        self.done = 0
        """Calls that have ended by themselves since the app was opened."""

    def __repr__(self) -> str:
        return f"<Replica {self.number} of {self.node.plan.name!r}>"

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

    def freed(self) -> None:
        """A permit was given back."""
        self.kick()
        if self.node.routed:
            self.node.dispatch()

    def close(self) -> None:
        """Let the workers end. No calls run any more."""
        self.closing = True
        while self.idle:
            self.idle.pop().wake()
        if self.keeper is not None:
            self.keeper.close()
