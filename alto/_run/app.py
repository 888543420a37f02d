"""An open pipeline: its resources, its workers, its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, final

import anyio
import anyio.abc
import attrs

from alto._aio import current_call
from alto._declare import bind_resources, check_input
from alto._declare.nested import own_resources
from alto._run.call import Call
from alto._run.handles import StreamHandle
from alto._run.map import MapHandle, Progress, map_requests
from alto._run.node import Node
from alto._run.request import Request
from alto._run.resources import Resources, with_handles
from alto._run.worker import Worker
from alto._spec import Declaration, GroupOrder
from alto.errors import Closed

__all__ = ("App", "AppStatistics", "Installed", "StageStatistics", "nested_run",
           "nested_stream")  # fmt: skip


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


class Installed:
    """A pipeline inside an app: its nodes, shared by all its requests."""

    __slots__ = ("app", "declaration", "nodes")

    def __init__(self, app: App, declaration: Declaration, values: Mapping[str, object]) -> None:
        self.app = app
        self.declaration = declaration
        bound = bind_resources(declaration, values)
        self.nodes = tuple(
            Node(plan, spec, with_handles(spec, kwargs), app.spawn_worker)
            for plan, spec, kwargs in zip(
                declaration.plan.nodes, declaration.nodes, bound, strict=True
            )
        )


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
        _check_count("open(capacity=...)", capacity)
        _check_count("open(max_held_items=...)", max_held_items)
        self.declaration = declaration
        self.capacity = capacity
        self.max_held_items = max_held_items
        # Refuse at once what cannot work.
        bind_resources(declaration, own_resources(declaration, resources))
        self._resources = Resources(declaration, resources)
        self._values = resources
        self._tasks: anyio.abc.TaskGroup | None = None
        self._installed: dict[int, Installed] = {}
        self._requests: set[Request] = set()
        self._feeders: set[anyio.CancelScope] = set()
        self._quiet: asyncio.Future[None] | None = None
        self._state: Literal["new", "open", "closed"] = "new"

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
        await self._resources.start()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._state = "open"
        self._install(self.declaration)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Cancel what still runs, wait until it has ended, and stop the engines.

        Cancellation: shielded.
        """
        self._state = "closed"
        tasks = self._tasks
        assert tasks is not None
        try:
            for request in list(self._requests):
                request.cancel()
            with anyio.CancelScope(shield=True):
                if self._requests:
                    self._quiet = asyncio.get_running_loop().create_future()
                    await self._quiet
            for installed in self._installed.values():
                for node in installed.nodes:
                    node.close()
            for scope in self._feeders:
                scope.cancel()
            if isinstance(error, asyncio.CancelledError):
                return await tasks.__aexit__(kind, error, traceback)
            # What the caller raised is the caller's: it leaves as it is, in no group.
            await tasks.__aexit__(None, None, None)
            return None
        finally:
            await self._resources.stop()

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
        _check_count("map(concurrency=...)", concurrency)
        if order not in ("input", "completed"):
            msg = f"map(order=...) must be 'input' or 'completed', not {order!r}"
            raise ValueError(msg)

        def start(value: object) -> Request:
            return self._begin(unpack(value), order=None, timeout=timeout, priority=0)

        return map_requests(
            self, inputs, start, concurrency=concurrency, order=order, progress=progress
        )

    def statistics(self) -> AppStatistics:
        """What it is doing now."""
        stages: dict[str, StageStatistics] = {}
        lanes = [lane for request in self._requests for lane in request.lanes]
        running: dict[Node, int] = {}
        waiting: dict[Node, int] = {}
        for lane in lanes:
            running[lane.node] = running.get(lane.node, 0) + lane.active
            waiting[lane.node] = waiting.get(lane.node, 0) + len(lane.ready)
        for installed in self._installed.values():
            own = installed.declaration is self.declaration
            prefix = "" if own else f"{installed.declaration.name}."
            for node in installed.nodes:
                row = StageStatistics(
                    running=running.get(node, 0), waiting=waiting.get(node, 0), done=node.done
                )
                if own or row.running or row.waiting:
                    stages[prefix + node.plan.name] = row
        return AppStatistics(
            open_requests=len(self._requests),
            stages=MappingProxyType(stages),
            open_groups=sum(len(lane.rows) * len(lane.group_slots) for lane in lanes),
            buffered_items=sum(r.held + r.sink.held for r in self._requests),
        )

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
        _check_inputs(declaration, inputs)
        request = Request(
            installed, parent=call, priority=call.priority, order=order, timeout=timeout
        )
        return self._started(request, inputs)

    def spawn_worker(self, worker: Worker) -> None:
        """Start a worker's task."""
        assert self._tasks is not None
        self._tasks.start_soon(worker.main, name=f"alto {worker.node.plan.name}")

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

    def request_ended(self, request: Request) -> None:
        """A request has ended."""
        self._requests.discard(request)
        if not self._requests and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _install(self, declaration: Declaration) -> Installed:
        installed = self._installed.get(id(declaration))
        if installed is None:
            installed = Installed(self, declaration, self._own_values(declaration))
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
        _check_inputs(self.declaration, inputs)
        _check_options(order, timeout)
        installed = self._install(self.declaration)
        request = Request(installed, order=order, timeout=timeout, priority=priority)
        return self._started(request, inputs)

    def _started(self, request: Request, inputs: Sequence[object]) -> Request:
        self._requests.add(request)
        request.start(inputs)
        return request

    def _check_open(self) -> None:
        if self._state != "open":
            how = "is closed" if self._state == "closed" else "is not open yet"
            msg = (
                f"this app of {self.declaration.name!r} {how}; "
                f"use it inside `async with {self.declaration.name}.open(...) as app:`"
            )
            raise Closed(msg)


def nested_stream(
    declaration: Declaration,
    inputs: Sequence[object],
    *,
    timeout: float | None = None,
    order: GroupOrder = "arrival",
) -> StreamHandle[Any]:
    """Start a request of *declaration* inside the running stage call, and read as it comes.

    Raises:
        Closed: No stage call runs in this context.
    """
    if (interpret := getattr(current_call.get(), "interpret", None)) is not None:
        return interpret(declaration, inputs)  # type: ignore[no-any-return]  # alto.testing.reference
    return StreamHandle(_nested(declaration, inputs, order=order, timeout=timeout))


async def nested_run(
    declaration: Declaration, inputs: Sequence[object], *, timeout: float | None = None
) -> list[Any]:
    """Start a request of *declaration* inside the running stage call, and wait for all of it.

    Raises:
        Closed: No stage call runs in this context.
    """
    if (interpret := getattr(current_call.get(), "interpret", None)) is not None:
        return await interpret(declaration, inputs).list()  # type: ignore[no-any-return]
    return await _nested(declaration, inputs, order=None, timeout=timeout).results()


def _nested(
    declaration: Declaration,
    inputs: Sequence[object],
    *,
    order: GroupOrder | None,
    timeout: float | None,
) -> Request:
    call = current_call.get()
    if not isinstance(call, Call) or call.closing:
        name = declaration.name
        msg = (
            f"pipeline {name!r} is not open, and no stage runs here that could call it; "
            f"use `async with {name}.open(...) as app:` and app.stream(...) or app.run(...)"
        )
        raise Closed(msg)
    _check_options(order, timeout)
    app = call.lane.request.installed.app
    return app.nested(declaration, inputs, call, order=order, timeout=timeout)


def _check_inputs(declaration: Declaration, inputs: Sequence[object]) -> None:
    for spec, value in zip(declaration.inputs, inputs, strict=True):
        check_input(declaration, spec, value)


def _check_count(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{what} must be a whole number >= 1, not {value!r}"
        raise ValueError(msg)


def _check_options(order: GroupOrder | None, timeout: object) -> None:
    if order not in ("arrival", "ancestry", None):
        msg = f"order= must be 'arrival' or 'ancestry', not {order!r}"
        raise ValueError(msg)
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        msg = f"timeout= must be a number of seconds > 0, or None, not {timeout!r}"
        raise ValueError(msg)
