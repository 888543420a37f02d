"""A replica of a stage: its permits, workers and resources."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from alto._runtime.call import Call
from alto._runtime.lifespan import Lifespan
from alto._runtime.machines.permits import Permits
from alto._runtime.observers import Notifiers
from alto._runtime.queue import ReadyQueue
from alto._runtime.worker import Worker

__all__ = ("Replica", "ReplicaNode", "ReplicaApp")


class ReplicaApp(Notifiers, Protocol):
    """The app, as its replicas see it."""

    loop: asyncio.AbstractEventLoop

    @property
    def now(self) -> Callable[[], float]:
        """Function that returns the time on the loop's clock."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Clock that measures the time slices of workers."""
        ...

    def spawn_worker(self, worker: Worker) -> None:
        """Start a worker's task."""
        ...


class ReplicaNode(Protocol):
    """The stage, as its replicas see it."""

    routed: bool

    @property
    def app(self) -> ReplicaApp:
        """The app that the replica belongs to."""
        ...

    @property
    def name(self) -> str:
        """Name of the stage in its pipeline."""
        ...

    @property
    def concurrency(self) -> int:
        """Maximum number of calls that run concurrently, per replica."""
        ...

    @property
    def generator(self) -> bool:
        """True if a call yields any number of outputs."""
        ...

    def dispatch(self) -> None:
        """Route items that wait for a free replica."""
        ...


class Replica:
    """An instance of a stage in a pipeline, shared by all requests of an app.

    Args:
        node: The stage.
        number: Number of the replica, never reused.
        lifespan: Makes and gives back the replica's own resources; None: it has none.
        fn: Function whose result a call awaits or iterates; replaced when a lifespan is ready.
        resources: Keyword arguments of *fn*; likewise.
    """

    __slots__ = (
        "clock",
        "closing",
        "done",
        "fn",
        "generator",
        "idle",
        "leader",
        "lifespan",
        "loop",
        "node",
        "notify_call",
        "notify_generation",
        "notify_item",
        "now",
        "number",
        "permits",
        "resources",
    )  # fmt: skip

    def __init__(
        self,
        node: ReplicaNode,
        number: int,
        lifespan: Lifespan | None,
        fn: Callable[..., Any],
        resources: Mapping[str, object],
    ) -> None:
        app = node.app
        self.node = node
        self.number = number
        self.lifespan = lifespan
        self.fn = fn
        self.resources = resources
        self.generator = node.generator
        self.loop = app.loop
        self.clock: Any = app.clock  # Any: pyright takes it for a method
        self.now: Any = app.now
        self.notify_call: Any = app.notify_call
        self.notify_item: Any = app.notify_item
        self.notify_generation: Any = app.notify_generation
        self.permits: Permits[ReadyQueue, Call] = Permits(node.concurrency)
        self.leader: Worker | None = None
        """The worker that is being woken or runs calls that have not suspended; see worker.py."""
        self.idle: list[Worker] = []
        self.closing = False
        self.done = 0
        """Number of calls that have ended by themselves since the app was opened."""

    def __repr__(self) -> str:
        return f"<Replica {self.number} of {self.node.name!r}>"

    @property
    def name(self) -> str:
        """Name of its stage."""
        return self.node.name

    @property
    def routed(self) -> bool:
        """True if a router chooses among several replicas of the stage."""
        return self.node.routed

    def dispatch(self) -> None:
        """Route items that wait for a free replica."""
        self.node.dispatch()

    def enqueue(self, queue: ReadyQueue) -> None:
        """Queue *queue* for a permit and wake a worker, unless one leads."""
        self.permits.enqueue(queue)
        if self.leader is None:
            self.use_permits()

    def dequeue(self, queue: ReadyQueue) -> None:
        """Remove *queue*, which has nothing to start, from those that wait for a permit."""
        self.permits.dequeue(queue)

    def use_permits(self) -> None:
        """Use free permits: resume waiting calls, then wake a worker for queued ones."""
        permits = self.permits
        while (call := permits.next_resume()) is not None:
            call.resumed()
        if self.leader is None and permits.has_next:
            if self.idle:
                self.leader = self.idle.pop()
                self.leader.wake()
            else:
                self.leader = Worker(self)
                self.node.app.spawn_worker(self.leader)

    def permit_returned(self) -> None:
        """Use a permit that was given back, here or by routing items that wait."""
        self.use_permits()
        if self.node.routed:
            self.node.dispatch()

    def close(self) -> None:
        """End the workers and the lifespan. No calls run any more."""
        self.closing = True
        while self.idle:
            self.idle.pop().wake()
        if self.lifespan is not None:
            self.lifespan.close()
