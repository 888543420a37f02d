"""An open pipeline: its resources, its workers, its requests."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, final

import anyio
import anyio.abc

from alto._aio import uncut
from alto._declare import bind_resources
from alto._declare.nested import mentioned, own_resources
from alto._run.call import Call, calls_around
from alto._run.checks import (
    check_count,
    check_function,
    check_inputs,
    check_loop,
    check_open,
    check_options,
    check_priority,
)
from alto._run.crew import Crew
from alto._run.handles import StreamHandle
from alto._run.lane import Lane
from alto._run.map import MapHandle, Progress, map_requests
from alto._run.node import Node
from alto._run.request import Request
from alto._run.resources import Resources
from alto._run.scaling import Keepers, add_replicas, find_node, remove_replicas, unseen
from alto._run.statistics import AppStatistics, prefix_of, statistics_of
from alto._run.worker import Worker
from alto._spec import Declaration, GroupOrder
from alto._told import shown
from alto.errors import Closed, ResourceError

__all__ = ("App", "Installed")


class Installed:
    """A pipeline inside an app: its nodes, shared by all its requests."""

    __slots__ = ("app", "declaration", "keeps", "nodes")

    def __init__(self, app: App, declaration: Declaration, values: Mapping[str, object]) -> None:
        self.app = app
        self.declaration = declaration
        bound = bind_resources(declaration, values)
        self.nodes = tuple(
            Node(plan, spec, kwargs, app.spawn_worker)
            for plan, spec, kwargs in zip(
                declaration.plan.nodes, declaration.nodes, bound, strict=True
            )
        )
        self.keeps = any(node.keeps for node in self.nodes)
        """Whether replicas have something of their own, made when the app opens."""


@final
class App:
    """An open pipeline.

    Args:
        declaration: The pipeline.
        resources: By name, what its stages' keyword-only parameters get. Engines are started
            when the app opens, unless they run already, and stopped when it closes.
        capacity: Most items per edge and request that have all they need and wait.
        max_held_items: Most items per request in group and join buffers, which have no other
            bound; a request that needs more fails.
    """

    def __init__(
        self,
        declaration: Declaration,
        resources: Mapping[str, object],
        *,
        capacity: int,
        max_held_items: int,
    ) -> None:
        check_count("open(capacity=...)", capacity)
        check_count("open(max_held_items=...)", max_held_items)
        self.declaration = declaration
        self.capacity = capacity
        self.max_held_items = max_held_items
        # Refuse at once what cannot work.
        bind_resources(declaration, own_resources(declaration, resources))
        self._resources = Resources(declaration, resources)
        self._values = resources
        self._tasks: anyio.abc.TaskGroup | None = None
        self._crew: Crew | None = None
        self._installed: dict[int, Installed] = {}
        self._requests: set[Request] = set()
        self._feeders: set[anyio.CancelScope] = set()
        self._keepers = Keepers(self._spawn_keeper)
        self._quiet: asyncio.Future[None] | None = None
        self._state: Literal["new", "opening", "open", "closed"] = "new"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()

    def __repr__(self) -> str:
        state = f"{self._state}, {len(self._requests)} requests"
        return f"<App of {self.declaration.name!r}: {state}>"

    async def __aenter__(self) -> Self:
        """Start the engines and open.

        Raises:
            EngineStartError: An engine did not start; those that did are stopped again.
        """
        if self._state != "new":
            msg = f"this app of {self.declaration.name!r} was opened before; call open() again"
            raise Closed(msg)
        self._state = "opening"
        await self._resources.start()
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._crew = Crew(self._loop, self._context, self._worker_failed)
        self._tasks.start_soon(self._crew.stand)
        try:
            await self._set_up()
        except BaseException:
            self._state = "closed"
            self._close_nodes()
            self._tasks.cancel_scope.shield = True
            try:
                await self._tasks.__aexit__(None, None, None)
            finally:
                await self._resources.stop()
            raise
        self._state = "open"
        return self

    async def _set_up(self) -> None:
        # Install what there is to install, and let replicas make what each has of its own.
        self._install(self.declaration)
        self._install_mentioned(lambda found: found.keeps)
        replicas = [r for _, node in self._named_nodes() for r in node.replicas.values()]
        await self._keepers.start(replicas)

    def _install_mentioned(self, wanted: Callable[[Installed], bool]) -> None:
        for other in mentioned(self.declaration, self._values.values()):
            if id(other) not in self._installed:
                with contextlib.suppress(ResourceError):  # Said where a stage calls it.
                    found = Installed(self, other, self._own_values(other))
                    if wanted(found):
                        self._installed[id(other)] = found

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Cancel what still runs, wait until it has ended, and stop the engines.

        Cancellation: shielded. A RuntimeError, and no effect, in code that runs for a request of it.
        """
        if any(call.lane.request in self._requests for call in calls_around()):
            msg = "a stage cannot close the app that it works for; let it end, or raise"
            raise RuntimeError(msg)
        self._state = "closed"
        tasks = self._tasks
        assert tasks is not None
        assert self._crew is not None
        try:
            for request in list(self._requests):
                request.cancel()
            late = await self._quieten()
            self._close_nodes()
            for scope in self._feeders:
                scope.cancel()
            # What the caller raised leaves as it is: in no group, and not replaced by a scope's end.
            cut = isinstance(error, asyncio.CancelledError)
            tasks.cancel_scope.shield = not cut
            try:
                await tasks.__aexit__(*((kind, error, traceback) if cut else (None, None, None)))
            finally:
                self._crew.check()
            if cut:
                return None
            if late is not None:
                raise late
            self._keepers.raise_late(error)
            return None
        finally:
            await self._stop_engines(error)

    def _close_nodes(self) -> None:
        for _, node in self._named_nodes():
            node.close()
        self._keepers.give_up()
        assert self._crew is not None
        self._crew.close()

    async def _quieten(self) -> asyncio.CancelledError | None:
        # Returns a cancellation that came meanwhile.
        async def quiet() -> None:
            if self._requests:
                self._quiet = asyncio.get_running_loop().create_future()
                await self._quiet

        try:
            await uncut(quiet)
        except asyncio.CancelledError as late:
            return late
        return None

    async def _stop_engines(self, error: BaseException | None) -> None:
        # What the caller raised goes before what an engine raises while it stops.
        try:
            await self._resources.stop()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"while its engines stopped, also: {shown(failure)}")

    def stream(
        self,
        inputs: Sequence[object],
        *,
        timeout: float | None = None,
        order: GroupOrder = "arrival",
        priority: int = 0,
    ) -> StreamHandle[Any]:
        """Start a request whose results are read as they come."""
        return StreamHandle(self._begin(inputs, order=order, timeout=timeout, priority=priority))

    async def run(
        self, inputs: Sequence[object], *, timeout: float | None = None, priority: int = 0
    ) -> list[Any]:
        """Start a request and wait for all its results, in ancestry order."""
        request = self._begin(inputs, order=None, timeout=timeout, priority=priority)
        return await request.results()

    def map(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        unpack: Callable[[Any], Sequence[object]],
        concurrency: int = 16,
        order: Literal["input", "completed"] = "input",
        timeout: float | None = None,
        progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[Any, Any]:
        """Start a request per input, a bounded number at a time."""
        self._check_open()
        check_count("map(concurrency=...)", concurrency)
        check_function("map(progress=...)", progress)
        if order not in ("input", "completed"):
            msg = f"map(order=...) must be 'input' or 'completed', not {order!r}"
            raise ValueError(msg)

        def start(value: object) -> Request:
            return self._begin(unpack(value), order=None, timeout=timeout, priority=0)

        return map_requests(
            self, inputs, start, concurrency=concurrency, order=order, progress=progress
        )

    async def scale(self, stage: str, replicas: int) -> None:
        """Change the number of a stage's replicas."""
        self._check_open()
        check_count("scale(replicas=...)", replicas)
        if "." in str(stage):  # Of a pipeline that nobody has called yet.
            self._install_mentioned(lambda _: True)
        node = find_node(self._named_nodes(), stage, self.declaration.name)
        async with node.scaling:
            self._check_open()
            more = replicas - len(node.binding.live)
            if more > 0:
                new = [node.new_replica() for _ in range(more)]
                await self._keepers.start(new)
                self._check_open()
                add_replicas(node, new, self._lanes(node))
            else:
                remove_replicas(node, -more, self._lanes(node))

    def _lanes(self, node: Node) -> list[Lane]:
        return [lane for r in self._requests for lane in r.lanes if lane.node is node]

    def _named_nodes(self) -> list[tuple[str, Node]]:
        return [
            (prefix_of(installed.declaration, self.declaration) + node.plan.name, node)
            for installed in self._installed.values()
            for node in installed.nodes
        ]

    def statistics(self) -> AppStatistics:
        """What it is doing now."""
        return statistics_of(self.declaration, self._installed.values(), self._requests)

    def nested(
        self,
        declaration: Declaration,
        inputs: Sequence[object],
        call: Call,
        *,
        order: GroupOrder | None,
        timeout: float | None,
    ) -> Request:
        """Start a request of another pipeline from inside a call of this app."""
        installed = self._install(declaration)
        check_inputs(declaration, inputs)
        request = Request(
            installed, parent=call, priority=call.priority, order=order, timeout=timeout
        )
        return self._started(request, inputs)

    def spawn_worker(self, worker: Worker) -> None:
        """Start a worker's task."""
        assert self._crew is not None
        self._crew.spawn(worker.main(), f"alto {worker.replica.node.plan.name}")

    def _worker_failed(self) -> None:
        # Alto's own fault: calls may never end, and nobody must wait for them.
        assert self._tasks is not None
        try:
            for request in list(self._requests):
                request.give_up()
        finally:
            self._tasks.cancel_scope.cancel()
            self.request_ended(*self._requests)  # Whatever did not end even so.

    def _spawn_keeper(self, keeper: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._tasks is not None
        self._context.copy().run(partial(self._tasks.start_soon, keeper))

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Start a task that is cancelled when the app closes."""
        assert self._tasks is not None
        self._tasks.start_soon(self._feed, function, *args)

    async def _feed(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        with anyio.CancelScope() as scope:
            self._feeders.add(scope)
            try:
                await function(*args)
            finally:
                self._feeders.discard(scope)

    def request_ended(self, *requests: Request) -> None:
        """A request has ended."""
        self._requests.difference_update(requests)
        if not self._requests and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _install(self, declaration: Declaration) -> Installed:
        installed = self._installed.get(id(declaration))
        if installed is None:
            installed = Installed(self, declaration, self._own_values(declaration))
            if installed.keeps and self._state != "opening":
                raise ResourceError(unseen(declaration.name, self.declaration.name))
            self._installed[id(declaration)] = installed
        return installed

    def _own_values(self, declaration: Declaration) -> Mapping[str, object]:
        # A nested pipeline takes what it needs of the app's resources.
        if declaration is self.declaration:
            return own_resources(declaration, self._values)
        wanted = {r.name for node in declaration.nodes for r in node.stage.resources}
        return {name: value for name, value in self._values.items() if name in wanted}

    def _begin(
        self, inputs: Sequence[object], *, order: GroupOrder | None, timeout: float | None,
        priority: int,
    ) -> Request:  # fmt: skip
        self._check_open()
        check_inputs(self.declaration, inputs)
        check_options(order, timeout)
        check_priority(priority)
        installed = self._install(self.declaration)
        request = Request(installed, order=order, timeout=timeout, priority=priority)
        return self._started(request, inputs)

    def _started(self, request: Request, inputs: Sequence[object]) -> Request:
        self._requests.add(request)
        request.start(inputs)
        return request

    def _check_open(self) -> None:
        check_open(self.declaration.name, self._state)
        check_loop(self.declaration.name, self._loop)
