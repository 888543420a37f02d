"""What a pipeline means: a sequential interpreter, a page of code.

Theory of operation. The stages of a pipeline are taken one after another, each is called for one
path after another, and each call is run to its end before anything else happens. A stream is a
dict from path to item, in ancestry order, because it was filled in that order. There is nothing to
wait for, so there is nothing to go wrong: whatever a schedule does, `app.run` must give this list.

It shares no code with the runtime, and of the plan it believes only the depths.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, TypeVarTuple, final, get_args

from alto._aio import Cleanup, current_call
from alto._declare import bind_resources, check_input
from alto._declare.nested import own_resources
from alto._spec import Declaration, NodeSpec, PerReplica
from alto.errors import Closed, StageError
from alto.llm import LLM
from alto.model import Path
from alto.pipeline import Pipeline
from alto.protocols import Engine
from alto.testing.group import group

__all__ = ("reference_run",)

Ins = TypeVarTuple("Ins")
R = TypeVar("R")

_Items: TypeAlias = dict[Path, Any]
"""A stream: what it carries, by path, in ancestry order."""


async def reference_run(
    pipeline: Pipeline[*Ins, R], /, *inputs: *Ins, **resources: object
) -> list[R]:
    """Run a pipeline without any concurrency: what ``app.run`` must return.

    Args:
        pipeline: The pipeline. Pipelines that its stages call are run in the same way, at the
            moment when their first result is asked for.
        inputs: One request's inputs, as ``app.run`` takes them.
        resources: As ``open`` takes them. Engines that do not run are started, and stopped again.

    Returns:
        All results, in ancestry order.

    Raises:
        StageError: A stage raised. The first in this order: stages as they are declared, then
            paths.

    Cancellation: stops where it is.
    """
    declaration = pipeline.declaration
    async with AsyncExitStack() as engines:
        bound = (value for node in declaration.nodes for value in node.bound.values())
        for value in (*resources.values(), *bound):
            await _start(value, engines)
        bind_resources(declaration, own_resources(declaration, resources))
        return await _Interpreter(resources, engines).run(declaration, inputs)


class _Interpreter:
    """Runs pipelines, all with the same resources."""

    def __init__(self, resources: Mapping[str, object], stack: AsyncExitStack) -> None:
        self._resources = resources
        self._stack = stack
        self._made: dict[tuple[int, int, str], object] = {}  # What replicas would make: once each.

    async def run(self, declaration: Declaration, inputs: Sequence[object]) -> list[Any]:
        """One request: every stage in order, and the items of the last stream."""
        for spec, value in zip(declaration.inputs, inputs, strict=True):
            check_input(declaration, spec, value)
        asked = {r.name for node in declaration.nodes for r in node.stage.resources}
        given = {name: value for name, value in self._resources.items() if name in asked}
        streams: list[_Items] = [{(): value} for value in inputs]
        levels: list[tuple[int, ...]] = [() for _ in inputs]  # Per stream: who opened its levels.
        for node, resources, plan in zip(
            declaration.nodes, bind_resources(declaration, given), declaration.plan.nodes,
            strict=True,
        ):  # fmt: skip
            sources = [source.source for source in plan.inputs]
            deepest = max((levels[s] for s in sources), key=len)
            opened = deepest[: plan.depth]  # The levels of a call: one per item of the innermost.
            paths = list(streams[opened[-1]]) if opened else [()]
            kwargs = _with_handles(
                node, {name: await self._own((id(declaration), plan.index, name), value)
                       for name, value in resources.items()}
            )  # fmt: skip
            items: _Items = {}
            for path in paths:
                args = [
                    group(_Pieces(_below(streams[s], path)))
                    if param.group
                    else streams[s][path[: len(levels[s])]]
                    for param, s in zip(node.stage.params, sources, strict=True)
                ]
                items |= await self._call(node, path, args, kwargs)
            levels.append((*opened, len(streams)) if node.stage.generator else opened)
            streams.append(items)
        return list(streams[declaration.plan.output].values())

    async def _own(self, key: tuple[int, int, str], value: object) -> object:
        # A stage has one replica here.
        if not isinstance(value, PerReplica):
            return value
        if key not in self._made:
            made: Any = value.make(0)
            if isinstance(made, AbstractAsyncContextManager):
                made = await self._stack.enter_async_context(made)
            elif isinstance(made, AbstractContextManager):
                made = self._stack.enter_context(made)
            elif inspect.isawaitable(made):
                made = await made
            self._made[key] = made
        return self._made[key]

    async def _call(
        self, node: NodeSpec, path: Path, args: list[Any], kwargs: Mapping[str, object]
    ) -> _Items:
        call = _Call(path, self)
        token = current_call.set(call)
        try:
            if node.stage.plain:
                return {path: node.stage.fn(*args, **kwargs)}
            if not node.stage.generator:
                return {path: await node.stage.fn(*args, **kwargs)}
            items: _Items = {}
            async for value in node.stage.fn(*args, **kwargs):
                items[*path, len(items)] = value
                await call.cleanup.close_abandoned()
            return items
        except Exception as error:
            raise StageError(node.name, path, error) from error
        finally:
            current_call.reset(token)
            await call.cleanup.close_all()


@final
class _Call:
    """The call that runs: what handles inside a stage look at, and how it calls pipelines."""

    priority = 0
    deadline: float | None = None
    origin = None

    def __init__(self, path: Path, interpreter: _Interpreter) -> None:
        self.path = path
        self.cleanup = Cleanup()
        self._interpreter = interpreter

    def interpret(self, declaration: Declaration, inputs: Sequence[object]) -> _Results:
        """What ``inner.stream(x)`` and ``inner.run(x)`` do inside a stage: see `alto._run`."""
        return _Results(self._interpreter, declaration, inputs)


@final
class _Results:
    """The results of a pipeline that a stage called. Stands in for a stream handle."""

    def __init__(
        self, interpreter: _Interpreter, declaration: Declaration, inputs: Sequence[object]
    ) -> None:
        self._interpreter = interpreter
        self._declaration = declaration
        self._inputs = inputs
        self._left: list[Any] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401  # the pipeline says what
        if self._closed:
            msg = "this stream was closed"
            raise Closed(msg)
        if self._left is None:
            self._left = await self._interpreter.run(self._declaration, self._inputs)
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Nothing runs; only say so to later readers."""
        self._closed = True

    async def list(self) -> list[Any]:
        """All results that have not been read."""
        return [result async for result in self]


@final
class _Pieces:
    """A group's pieces; unlike an async generator it has nothing to close when it is left."""

    def __init__(self, pieces: Sequence[object]) -> None:
        self._left = iter(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        for piece in self._left:
            return piece
        raise StopAsyncIteration


def _below(items: _Items, path: Path) -> list[Any]:
    # A group: everything on a stream that descends from one ancestor.
    return [item for key, item in items.items() if key[: len(path)] == path]


def _with_handles(node: NodeSpec, resources: Mapping[str, object]) -> dict[str, object]:
    # A stage that asks for an LLM is given a handle where there is an engine.
    asked = {spec.name: spec.type for spec in node.stage.resources}
    return {
        name: LLM(value)
        if not isinstance(value, LLM)
        and isinstance(value, Engine)
        and LLM in (asked[name], *get_args(asked[name]))
        else value
        for name, value in resources.items()
    }


async def _start(value: object, engines: AsyncExitStack) -> None:
    engine = value.engine if isinstance(value, LLM) else value
    if not isinstance(engine, Engine):
        return
    try:
        engine.check_health()
    except Closed:
        await engine.start()
        engines.push_async_callback(engine.stop)
