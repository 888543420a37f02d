"""Resources that a replica makes for itself, in the event loop or in a thread of the replica."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from typing import Any, Final, TypeAlias

from alto._graph import check_resource
from alto._graph.models import engines_in, wrapped
from alto._graph.spec import PerReplica, ResourceSpec
from alto._runtime.resources import runs
from alto._safe_text import told
from alto.errors import ResourceError
from alto.model import StageInfo

__all__ = ("Run", "make_resources")

Run: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a plain function to its end: ``await run(function, *args)``."""
_NOTHING: Final = (None, None, None)


async def _here(function: Callable[..., Any], /, *args: object) -> Any:  # noqa: ANN401
    return function(*args)


async def make_resources(
    stage: StageInfo,
    number: int,
    given: Mapping[str, object],
    stack: AsyncExitStack,
    run: Run = _here,
) -> Mapping[str, object]:
    """Make the resources of ``per_replica``; *stack* gives them back.

    Args:
        stage: The stage.
        number: Number of the replica.
        given: Its keyword arguments, as they were given.
        stack: Where what is entered is left.
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
    run: Run,
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
    value: PerReplica[object], wanted: object, number: int, run: Run
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


async def _enter(manager: AbstractContextManager[object], run: Run) -> object:
    inside: list[object] = []

    def enter() -> None:
        inside.append(manager.__enter__())

    try:
        await run(enter)
    except asyncio.CancelledError:
        if inside:  # Cancelled while it was being entered, in a thread.
            await run(manager.__exit__, *_NOTHING)
        raise
    return inside[0]
