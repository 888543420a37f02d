"""Executors: the calls of a replica run in the event loop, in threads or in a process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
)
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeAlias, final

import attrs

from alto._graph import check_resource
from alto._graph.resources import engines_in, wrapped
from alto._graph.spec import OwnExecutor, PerReplica, ResourceSpec, RunsIn
from alto._runtime.resources import runs
from alto._runtime.threads import Threads
from alto._safe_text import told
from alto.errors import AltoError, ResourceError
from alto.model import StageInfo
from alto.protocols import Executor

__all__ = (
    "CallFunction",
    "InThread",
    "Loop",
    "Process",
    "RunFunction",
    "Thread",
    "enter_replica",
    "executor_of",
    "make_resources",
)

RunFunction: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a plain function to its end: ``await run(function, *args)``."""
_NOTHING: Final = (None, None, None)


async def _here(function: Callable[..., Any], /, *args: object) -> Any:  # noqa: ANN401
    return function(*args)


async def make_resources(
    stage: StageInfo,
    number: int,
    given: Mapping[str, object],
    stack: AsyncExitStack,
    run: RunFunction = _here,
) -> Mapping[str, object]:
    """Make ``per_replica`` resources; *stack* gives them back.

    Args:
        stage: The stage.
        number: Number of the replica.
        given: Its keyword arguments, with ``per_replica`` declarations.
        stack: Exit stack that leaves what is entered.
        run: Runs a factory, and the two methods of a plain context manager.

    Returns:
        The keyword arguments of a call.

    Raises:
        ResourceError: A factory failed, or made something of a wrong type.

    Cancellation: *stack* gives back what was made so far.
    """
    made = dict(given)
    for name, value in given.items():
        if isinstance(value, PerReplica):
            made[name] = await _make(stage, number, name, value, stack, run)
    return wrapped(stage.resources, made)


async def _make(
    stage: StageInfo,
    number: int,
    name: str,
    value: PerReplica[object],
    stack: AsyncExitStack,
    run: RunFunction,
) -> object:
    try:
        wanted = stage.resources.get(name)
        made = await stack.enter_async_context(_entered(value, wanted, number, run))
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        msg = (
            f"stage {stage.name!r}: resource {name!r} of replica {number} could not be made: "
            f"{told(error)}"
        )
        raise ResourceError(msg) from error
    if name in stage.resources:
        spec = ResourceSpec(name, stage.resources[name], required=True)
        check_resource(stage.name, spec, made, number)
    return made


@asynccontextmanager
async def _entered(
    value: PerReplica[object], wanted: object, number: int, run: RunFunction
) -> AsyncGenerator[object]:
    made = await run(value.make, number)
    if isinstance(made, AbstractAsyncContextManager):
        async with made as inside:
            yield inside
    elif isinstance(made, AbstractContextManager):
        inside = await _enter(made, run)
        try:
            yield inside
        finally:
            await run(made.__exit__, *_NOTHING)
    else:
        if inspect.isawaitable(made):
            made = await made
        async with AsyncExitStack() as started:
            for engine in engines_in(made, wanted):
                if not runs(engine):
                    await engine.start()
                    started.push_async_callback(engine.stop)
            yield made


async def _enter(manager: AbstractContextManager[object], run: RunFunction) -> object:
    inside: list[object] = []

    def enter() -> None:
        inside.append(manager.__enter__())

    try:
        await run(enter)
    except asyncio.CancelledError:
        if inside:  # Cancelled while a thread was entering it.
            await run(manager.__exit__, *_NOTHING)
        raise
    return inside[0]


CallFunction: TypeAlias = Callable[..., Any]
"""Function that makes a call: its result is awaited or, for a generator stage, iterated."""


@final
@attrs.frozen
class Loop(OwnExecutor, short="loop"):
    """Runs the calls of a stage in the event loop: ``runs_in="loop"``, the default."""

    @asynccontextmanager
    async def replica(
        self, stage: StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AsyncIterator[CallFunction]:
        """Make the resources of a replica, and yield the function that makes calls."""
        async with AsyncExitStack() as stack:
            made = await make_resources(stage, number, resources, stack)
            yield partial(stage.function, **made)


@final
@attrs.frozen
class Thread(OwnExecutor, short="thread"):
    """Runs the calls of a stage, a plain function, in threads: ``runs_in="thread"``."""

    @asynccontextmanager
    async def replica(
        self, stage: StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AsyncIterator[CallFunction]:
        """Make the resources of a replica in its threads, and yield the function that makes calls."""
        threads = Threads(stage.name, number, stage.concurrency)
        async with AsyncExitStack() as stack:
            stack.callback(threads.close)
            made = await make_resources(stage, number, resources, stack, threads.run_to_end)
            stack.push_async_callback(threads.settle)
            yield partial(InThread(stage.function, threads), **made)


@final
@attrs.frozen
class InThread:
    """A plain function, to be awaited while it runs in a thread."""

    _function: Callable[..., Any]
    _threads: Threads

    def __call__(self, *args: object, **values: object) -> Coroutine[Any, Any, Any]:
        """Run the function in a thread; see :meth:`Threads.run`."""
        return self._threads.run(self._function, *args, **values)

    @property
    def abandoned(self) -> int:
        """Number of threads that still run the function of a cancelled call."""
        return self._threads.abandoned


@final
@attrs.frozen
class Process(OwnExecutor, short="process"):
    """Runs the calls of a stage, a plain function, in one process of each replica.

    ``runs_in="process"`` is ``runs_in=alto.executors.Process()``.

    Args:
        context: Context variables whose values are sent to the process with each call, if they are
            set. They must be defined at the top level of modules, and their values must pickle.
            All other variables have their defaults there, or no value.

    Raises:
        TypeError: *context* contains something other than context variables.
    """

    context: tuple[ContextVar[Any], ...] = attrs.field(default=(), converter=tuple, repr=False)
    """Context variables whose values are sent with each call."""

    def __attrs_post_init__(self) -> None:
        """Raise TypeError unless *context* contains context variables only."""
        given: tuple[object, ...] = self.context
        for variable in given:
            if not isinstance(variable, ContextVar):
                msg = (
                    f"alto.executors.Process(context=...) takes context variables, each a "
                    f"contextvars.ContextVar, not {variable!r}"
                )
                raise TypeError(msg)

    @asynccontextmanager
    async def replica(
        self, stage: StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AsyncIterator[CallFunction]:
        """Start the process of a replica, and yield the function that makes calls."""
        from alto._runtime.processes import WorkerProcess  # noqa: PLC0415  # takes 20 ms, and few programs need it

        worker = WorkerProcess(stage, number, resources, self.context)
        async with worker.running():
            yield worker.call


_OWN: Final[Mapping[RunsIn, OwnExecutor]] = {
    "loop": Loop(),
    "thread": Thread(),
    "process": Process(),
}


def executor_of(runs_in: RunsIn | Executor) -> Executor:
    """Return the executor for a stage's ``runs_in=``."""
    return _OWN[runs_in] if isinstance(runs_in, str) else runs_in


async def enter_replica(
    executor: Executor,
    stage: StageInfo,
    number: int,
    resources: Mapping[str, object],
    stack: AsyncExitStack,
) -> CallFunction:
    """Enter a replica of *executor*; *stack* leaves it.

    Raises:
        ResourceError: The executor failed, or does not implement :class:`alto.protocols.Executor`.
    """
    if isinstance(executor, OwnExecutor):
        return await stack.enter_async_context(executor.replica(stage, number, resources))
    who = f"stage {stage.name!r}: its executor {type(executor).__name__}"
    resources = wrapped(stage.resources, resources)
    try:
        manager: object = executor.replica(stage, number, resources)
        if not isinstance(manager, AbstractAsyncContextManager):
            if inspect.iscoroutine(manager):
                manager.close()
            msg = (
                f"{who}: replica(...) must return an async context manager, not "
                f"{type(manager).__name__}; decorate it with @contextlib.asynccontextmanager"
            )
            raise ResourceError(msg)  # noqa: TRY301  # passed on below, like other errors of alto
        call: object = await stack.enter_async_context(manager)
    except AltoError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        msg = f"{who} could not make replica {number}: {told(error)}"
        raise ResourceError(msg) from error
    if not callable(call):
        msg = (
            f"{who}: `async with replica(...) as call` must give what a call is made with, a "
            f"callable, not {type(call).__name__}"
        )
        raise ResourceError(msg)
    return _generating(call, who) if stage.generator else _awaiting(call, who)


def _awaiting(call: CallFunction, who: str) -> CallFunction:
    def checked(*args: object, **values: object) -> Awaitable[object]:
        given = call(*args, **values)
        if inspect.isawaitable(given):
            return given
        msg = f"{who}: its call must return an awaitable, not {type(given).__name__}"
        raise TypeError(msg)

    return checked


def _generating(call: CallFunction, who: str) -> CallFunction:
    def checked(*args: object, **values: object) -> AsyncGenerator[object, None]:
        try:
            given = call(*args, **values)
        except Exception as error:  # noqa: BLE001  # raised when iterated, like the stage's own errors
            return _raises(error)
        if isinstance(given, AsyncGenerator):
            return given
        if isinstance(given, AsyncIterable):
            return _iterated(given)
        if inspect.iscoroutine(given):
            given.close()
        msg = (
            f"{who}: its call must return an async iterator, since the stage is an async generator, "
            f"not {type(given).__name__}"
        )
        return _raises(TypeError(msg))

    return checked


async def _raises(error: Exception) -> AsyncGenerator[object, None]:
    raise error
    yield  # type: ignore[unreachable]  # this makes it a generator


async def _iterated(outputs: AsyncIterable[object]) -> AsyncGenerator[object, None]:
    iterator: Any = aiter(outputs)
    try:
        async for output in iterator:
            yield output
    finally:
        if hasattr(iterator, "aclose"):
            await iterator.aclose()
