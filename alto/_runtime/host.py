"""An open pipeline: its stages, its requests, and the task that holds its scopes.

Theory of operation. A cancel scope, a task group or a resource must be left by the task that entered
it. But any task may open an app, and any other may close it. So an app has a task of its own, the
*host task*, which enters everything, waits, and leaves everything. The tasks that open and close the
app only signal the host task and wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import difflib
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import anyio
import anyio.abc

from alto._graph import bind_resources
from alto._graph.nested import inner_resources, mentioned, own_resources
from alto._graph.spec import Declaration
from alto._runtime.call import Call, enclosing_calls
from alto._runtime.checks import check_inputs, check_loop, check_open
from alto._runtime.lifespan import Lifespans
from alto._runtime.map import Feeder
from alto._runtime.node import Node
from alto._runtime.node_run import NodeRun
from alto._runtime.observers import Observers, check_observers
from alto._runtime.request import Options, Request
from alto._runtime.resources import Resources, check_inner, check_names, values_of_request
from alto._runtime.statistics import AppStatistics, prefix_of, statistics_of
from alto._runtime.worker import Worker, WorkerTasks, clock_of, has_real_time
from alto._safe_text import noted, shown
from alto._validate import check_count
from alto._wait import wait_shielded
from alto.errors import Closed, Overloaded, ResourceError
from alto.events import (
    CallEnded,
    CallStarted,
    EngineFailed,
    EngineStarted,
    EngineStopped,
    GenerationEnded,
    GenerationStarted,
    GroupCompleted,
    ItemProduced,
    RequestEnded,
    RequestStarted,
)
from alto.protocols import Observer

__all__ = ("Host", "Installed")


class Installed:
    """A pipeline inside an app: its stages, shared by all its requests."""

    __slots__ = ("_finalizer", "has_lifespans", "name", "nodes", "prefix")

    def __init__(
        self, host: Host, declaration: Declaration, values: Mapping[str, object], prefix: str
    ) -> None:
        self.name = declaration.name
        self.prefix = prefix
        """Prefix of its stages' names in the app's statistics."""
        bound = bind_resources(declaration, values)
        self.nodes = tuple(
            Node(declaration.name, plan, spec, kwargs, host)
            for plan, spec, kwargs in zip(
                declaration.plan.nodes, declaration.nodes, bound, strict=True
            )
        )
        self.has_lifespans = any(node.has_lifespans for node in self.nodes)
        """True if replicas have resources of their own, which are made when the app opens."""
        self._finalizer: weakref.finalize[[], Declaration] | None = None

    def close_with(self, declaration: Declaration, loop: asyncio.AbstractEventLoop) -> None:
        """Close when *declaration* is garbage-collected, as a pipeline defined inside a stage is."""

        # A finalizer may run anywhere, also inside a machine's step: act in a separate step of the loop.
        def close_soon() -> None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: so is the app.
                loop.call_soon_threadsafe(self.close)

        self._finalizer = weakref.finalize(declaration, close_soon)
        self._finalizer.atexit = False

    def close(self) -> None:
        """End the workers. No calls run any more."""
        if self._finalizer is not None:
            self._finalizer.detach()
        for node in self.nodes:
            node.close()


class Host:
    """An open pipeline; see the module's docstring.

    Args:
        declaration: The pipeline.
        resources: Values of the stages' keyword-only parameters, by name. Engines that do not run
            yet are started when the app opens and stopped when it closes.
        capacity: Maximum number of ready items per edge and request.
        max_held_items: Maximum number of items per request in group and join buffers, which have
            no other bound; a request that needs more fails.
        max_requests: Maximum number of open requests; None: no limit.
        observers: Receivers of events of requests, calls, generations, groups and engines.
    """

    loop: asyncio.AbstractEventLoop
    clock: Any
    now: Any
    context: contextvars.Context

    def __init__(
        self,
        declaration: Declaration,
        resources: Mapping[str, object],
        *,
        capacity: int,
        max_held_items: int,
        max_requests: int | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        check_count("open(capacity=...)", capacity)
        check_count("open(max_held_items=...)", max_held_items)
        if max_requests is not None:
            check_count("open(max_requests=...)", max_requests)
        self.declaration = declaration
        self.capacity = capacity
        self.max_held_items = max_held_items
        self.max_requests = max_requests
        # Raise here, not when the app opens, if resources do not fit.
        bind_resources(declaration, own_resources(declaration, resources))
        notifiers = Observers(check_observers(observers))
        self.notify_request = notifiers.notifier(RequestStarted, RequestEnded)
        self.notify_call = notifiers.notifier(CallStarted, CallEnded)
        self.notify_item = notifiers.notifier(ItemProduced)
        self.notify_group = notifiers.notifier(GroupCompleted)
        self.notify_generation = notifiers.notifier(
            GenerationStarted, GenerationEnded, EngineFailed
        )
        self._resources = Resources(
            declaration, resources, notifiers.notifier(EngineStarted, EngineStopped)
        )
        self._values = resources
        self._installed: weakref.WeakKeyDictionary[Declaration, Installed] = (
            weakref.WeakKeyDictionary()
        )
        self._own: Installed | None = None
        self._requests: set[Request] = set()
        # Number of requests that no stage has started: those that max_requests counts.
        self._top_level = 0
        self._feeders: set[Feeder] = set()
        # Callbacks of maps that wait for room under max_requests.
        self._waiting_maps: set[Callable[[], None]] = set()
        self._maps: set[object] = set()  # Maps that have begun and are not over.
        self._lifespans = Lifespans(self._spawn_lifespan)
        self._state: Literal["new", "opening", "open", "draining", "closed"] = "new"
        self._has_opened = False
        self._task: asyncio.Task[None] | None = None
        self._opening: anyio.CancelScope | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._workers: WorkerTasks | None = None
        self._opened: asyncio.Event | None = None
        self._closing: asyncio.Event | None = None
        self._ended: asyncio.Event | None = None
        self._quiet: asyncio.Event | None = None
        self._failures: list[BaseException] = []
        """Exceptions of opening and closing, to be raised in the task that opens or closes the app."""

    @property
    def state(self) -> str:
        """``new``, ``opening``, ``open``, ``draining`` or ``closed``."""
        return self._state

    @property
    def open_requests(self) -> int:
        """Number of requests that have not ended, including those started by stages."""
        return len(self._requests)

    # ---- opening and closing

    async def open(self) -> None:
        """Start the host task, which starts the engines, and wait until the app is open.

        Raises:
            EngineStartError: An engine did not start; those that did are stopped again.
            Closed: It was opened before, or closed while it opened.

        Cancellation: raised when everything that was started has been stopped.
        """
        if self._state != "new":
            msg = f"this app of {self.declaration.name!r} was opened before; call open() again"
            raise Closed(msg)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            msg = (
                f"{self.declaration.name}.open() needs asyncio, and no asyncio event loop runs here; "
                f"alto does not run under trio: call it from what asyncio.run(...) runs, and with "
                f"anyio's pytest plugin let the fixture `anyio_backend` return 'asyncio'"
            )
            raise RuntimeError(msg) from error
        self._state, self._opening = "opening", anyio.CancelScope()
        self.loop, self.clock = loop, clock_of(loop)
        self.now = time.monotonic if has_real_time(loop) else loop.time
        self.context = contextvars.copy_context()
        self._opened, self._closing, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        # Not by the program's task factory: an eager one would run it inside this step.
        self._task = asyncio.Task(
            self._main(),
            loop=loop,
            name=f"alto app {self.declaration.name}",
            context=self.context.copy(),
        )
        try:
            await self._opened.wait()
        except asyncio.CancelledError:
            # Only the wait was cancelled: the host task must still stop what it has started.
            self._opening.cancel()
            self.close_soon()
            await wait_shielded(self._wait_closed)
            self.raise_failure(None)
            raise
        if self.state == "closed":
            await wait_shielded(self._wait_closed)
            self.raise_failure(None)
            msg = f"this app of {self.declaration.name!r} was closed while it opened"
            raise Closed(msg)

    async def close(self) -> None:
        """Cancel what still runs, wait until it has ended, and stop the engines. Idempotent.

        Raises:
            RuntimeError: A call of one of its requests runs here.

        Cancellation: shielded.
        """
        if self._state == "new":
            self._state = "closed"
            return
        if any(call.run.request in self._requests for call in enclosing_calls()):
            msg = "a stage cannot close the app that runs it; let the stage end, or raise an exception"
            raise RuntimeError(msg)
        if self.state == "closed" and self.loop.is_closed():
            return  # Its loop has ended and has closed it.
        self._check_loop()
        if self._state == "opening":
            assert self._opening is not None
            self._opening.cancel()
        self.close_soon()
        await wait_shielded(self._wait_closed)

    async def _wait_closed(self) -> None:
        assert self._ended is not None
        await self._ended.wait()

    def close_soon(self) -> None:
        """Cancel all requests and let the host task close the app. New requests are refused from now on."""
        if self._closing is not None:
            if self._state in ("open", "draining"):
                self._state = "closed"
            for request in list(self._requests):
                request.cancel("its app was closed")
            self._maps.clear()  # Maps start no more requests.
            self._check_quiet()
            self._closing.set()

    def raise_failure(self, error: BaseException | None) -> None:
        """Raise a failure of opening or closing, once; if *error* is being raised, add a note to it."""
        failures, self._failures = self._failures, []
        if not failures:
            return
        if error is not None:
            for failure in failures:
                noted(error, f"while the app closed, also: {shown(failure)}")
            return
        try:
            raise failures[0]
        finally:
            del failures

    async def drain(self, timeout: float | None) -> bool:
        """Refuse new requests, and wait until the open ones have ended.

        Returns:
            True if all have ended, False if *timeout* seconds passed first.
        """
        if self._state != "draining":  # Two tasks may drain an app: both wait.
            self.check_open()
        self._check_loop()
        self._state = "draining"
        with anyio.move_on_after(timeout):
            await self._wait_quiet()
        return not self._requests and not self._maps

    async def _wait_quiet(self) -> None:
        while self._requests or self._maps:
            if self._quiet is None:
                self._quiet = asyncio.Event()
            self._quiet.clear()
            await self._quiet.wait()

    async def _main(self) -> None:
        assert self._opened is not None
        assert self._ended is not None
        try:
            await self._open_and_close()
        except BaseException as error:
            self._failures.append(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        finally:
            self._state = "closed"
            self._opened.set()
            self._ended.set()
            self._task = None

    async def _open_and_close(self) -> None:
        assert self._opened is not None
        assert self._closing is not None
        assert self._opening is not None
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._workers = WorkerTasks(self.loop, self.context, self._worker_failed)
        self._tasks.start_soon(self._workers.wait_closed)
        try:
            with self._opening:
                await self._resources.start()
                await self._set_up()
                self._state, self._has_opened = "open", True
                self._opened.set()
            if self._has_opened:
                with contextlib.suppress(asyncio.CancelledError):  # Of a loop that shuts down.
                    await self._closing.wait()
            self.close_soon()
            with contextlib.suppress(asyncio.CancelledError):
                await wait_shielded(self._wait_quiet)
        finally:
            self._state = "closed"
            try:
                await self._leave_tasks()
            finally:
                await self._resources.stop()

    async def _leave_tasks(self) -> None:
        assert self._tasks is not None
        assert self._workers is not None
        for installed in self._installed.values():
            installed.close()
        self._lifespans.give_up()
        self._workers.close()
        for feeder in self._feeders:
            feeder.cancel()
        self._tasks.cancel_scope.shield = True
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            # Both may have failed, so both are asked.
            for check in (self._workers.check, partial(self._lifespans.raise_late, None)):
                try:
                    check()
                except BaseException as failure:  # noqa: BLE001  # raised by close()
                    self._failures.append(failure)

    async def _set_up(self) -> None:
        # Install the pipelines that have resources of their own, and let their replicas make them.
        self._own = self._install(self.declaration)
        self._install_mentioned(lambda found: found.has_lifespans)
        replicas = [r for _, node in self.named_nodes() for r in node.replicas.values()]
        await self._lifespans.start(replicas)

    # ---- pipelines inside the app

    def _install(self, declaration: Declaration) -> Installed:
        installed = self._installed.get(declaration)
        if installed is None:
            installed = self._made(declaration)
            if installed.has_lifespans and self._state != "opening":
                raise ResourceError(_not_foreseen(declaration.name, self.declaration.name))
            self._keep(declaration, installed)
        return installed

    def _made(self, declaration: Declaration) -> Installed:
        prefix = prefix_of(declaration, self.declaration)
        return Installed(self, declaration, self._own_values(declaration), prefix)

    def _keep(self, declaration: Declaration, installed: Installed) -> None:
        self._installed[declaration] = installed
        if declaration is not self.declaration:
            installed.close_with(declaration, self.loop)

    def _install_mentioned(self, wanted: Callable[[Installed], bool]) -> None:
        for other in mentioned(self.declaration, self._values.values()):
            if other not in self._installed:
                with contextlib.suppress(ResourceError):  # Raised where a stage calls it.
                    found = self._made(other)
                    if wanted(found):
                        self._keep(other, found)

    def _own_values(self, declaration: Declaration) -> Mapping[str, object]:
        # An inner pipeline takes the resources that it needs from the app's.
        if declaration is self.declaration:
            return own_resources(declaration, self._values)
        return inner_resources(declaration, self._values)

    def named_nodes(self) -> list[tuple[str, Node]]:
        """Return the stages with their names in the statistics."""
        return [
            (installed.prefix + node.plan.name, node)
            for installed in self._installed.values()
            for node in installed.nodes
        ]

    # ---- requests

    def check_open(self) -> None:
        """Raise an error unless the app is open and belongs to the running loop.

        Raises:
            Closed: It is not open, or it is being drained.
            RuntimeError: It belongs to another event loop.
        """
        loop_closed = self._state == "closed" and self._has_opened and self.loop.is_closed()
        check_open(self.declaration.name, "loop closed" if loop_closed else self._state)
        self._check_loop()

    def _check_loop(self) -> None:
        check_loop(self.declaration.name, self.loop)

    def check_values(self, given: Mapping[str, object]) -> tuple[Mapping[str, object] | None, ...]:
        """Return, for each stage, the resources of requests with the values *given*.

        Raises:
            ResourceError: No stage takes a name, or a value does not fit.
        """
        others = mentioned(self.declaration, [*self._values.values(), *given.values()])
        check_names(self.declaration, others, given)
        check_inner(self.declaration, others, given)
        return values_of_request(self.declaration, given)

    @property
    def has_room(self) -> bool:
        """True if another request may start."""
        return self.max_requests is None or self._top_level < self.max_requests

    def wait_for_room(self, wake: Callable[[], None]) -> None:
        """Call *wake* when another request may start."""
        self._waiting_maps.add(wake)

    def begin(self, inputs: Sequence[object], options: Options, *, waits: bool = False) -> Request:
        """Start a request.

        Args:
            inputs: One value per input of the pipeline.
            options: Options of the request.
            waits: True for a request of a map: it has waited for room, and was accepted before the
                app began to drain.

        Raises:
            InputError: An input does not fit.
            Overloaded: As many requests are open as ``max_requests`` allows.
        """
        if not (waits and self._state == "draining"):
            self.check_open()
        check_inputs(self.declaration, inputs)
        if not waits and not self.has_room:
            assert self.max_requests is not None
            raise Overloaded(self._top_level, self.max_requests, kind="requests")
        assert self._own is not None
        request = Request(self, self.declaration, self._own.nodes, options)
        self._top_level += 1
        return self._started(request, inputs)

    def inner(
        self, declaration: Declaration, inputs: Sequence[object], call: Call, options: Options
    ) -> Request:
        """Start a request of another pipeline from inside a call of this app."""
        installed = self._install(declaration)
        check_inputs(declaration, inputs)
        request = Request(self, declaration, installed.nodes, options, parent=call)
        return self._started(request, inputs)

    def _started(self, request: Request, inputs: Sequence[object]) -> Request:
        self._requests.add(request)
        request.start(inputs)
        return request

    def request_ended(self, request: Request) -> None:
        """Forget a request that has ended."""
        if request not in self._requests:
            return
        self._requests.discard(request)
        if request.parent is None:
            self._top_level -= 1
            if self._waiting_maps:
                woken, self._waiting_maps = self._waiting_maps, set()
                for wake in woken:
                    wake()
        self._check_quiet()

    def _check_quiet(self) -> None:
        if not self._requests and not self._maps and self._quiet is not None:
            self._quiet.set()

    def map_begun(self, map_run: object) -> None:
        """Record that a map has inputs left or running requests."""
        if self._state in ("open", "draining"):
            self._maps.add(map_run)

    def map_over(self, map_run: object) -> None:
        """Record that a map has neither, or was closed. Idempotent."""
        self._maps.discard(map_run)
        self._check_quiet()

    def runs_at(self, node: Node) -> list[NodeRun]:
        """Return the open requests' runs at a stage."""
        return [run for request in self._requests for run in request.runs if run.node is node]

    def statistics(self) -> AppStatistics:
        """Return the statistics of this moment."""
        return statistics_of(self._installed.values(), self._requests)

    async def scale(self, stage: str, replicas: int) -> None:
        """Change the number of a stage's replicas."""
        if "." in str(stage):  # A stage of an inner pipeline that may not have been called yet.
            self._install_mentioned(lambda _: True)
        node = _find_node(self.named_nodes(), stage, self.declaration.name)
        async with node.scaling:
            self.check_open()
            more = replicas - len(node.binding.live)
            if more > 0:
                new = [node.new_replica() for _ in range(more)]
                await self._lifespans.start(new)
                self.check_open()
                node.grow(new, self.runs_at(node))
            else:
                node.shrink(-more, self.runs_at(node))

    # ---- tasks

    def spawn_worker(self, worker: Worker) -> None:
        """Start a worker's task."""
        assert self._workers is not None
        self._workers.spawn(worker.main(), f"alto {worker.replica.name}")

    def _worker_failed(self) -> None:
        # A bug in alto, or the end of the program: calls may never end, so do not wait for them.
        try:
            for request in list(self._requests):
                request.give_up()
        finally:
            for request in list(self._requests):  # Those that did not end even so.
                self.request_ended(request)
            self.close_soon()

    def _spawn_lifespan(self, lifespan: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._tasks is not None
        self.context.copy().run(partial(self._tasks.start_soon, lifespan))

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: object) -> Feeder:
        """Start a task that is cancelled when the app closes."""
        assert self._tasks is not None
        feeder = Feeder()
        self._feeders.add(feeder)
        self._tasks.start_soon(self._feed, feeder, function, *args)
        return feeder

    async def _feed(
        self, feeder: Feeder, function: Callable[..., Awaitable[Any]], *args: object
    ) -> None:
        try:
            await feeder.run(function, *args)
        finally:
            self._feeders.discard(feeder)


def _find_node(nodes: Sequence[tuple[str, Node]], stage: object, pipeline: str) -> Node:
    """Find the stage of that name.

    Raises:
        ValueError: There is none; the message names those that there are.
    """
    for name, node in nodes:
        if name == stage:
            return node
    names = [name for name, _ in nodes]
    near = difflib.get_close_matches(str(stage), names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names))}"
    msg = f"scale(...): pipeline {pipeline!r} has no stage {stage!r}; {remedy}"
    raise ValueError(msg)


def _not_foreseen(pipeline: str, app: str) -> str:
    """Return the message for an inner pipeline whose replicas open() should have set up."""
    return (
        f"pipeline {pipeline!r}, which a stage of {app!r} calls, has resources of its replicas or "
        f"worker processes, which are made when an app opens, and open() did not see that it would "
        f"be called; mention it by name in the stage, or give it to open() as a resource"
    )
