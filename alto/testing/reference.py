"""The meaning of a pipeline, as a sequential interpreter of one page.

Theory of operation. The stages of a pipeline are taken one after another, each is called for one
path after another, and each call is run to its end before anything else happens. A stream is a
dict from path to item, in ancestry order, because it was filled in that order. There is nothing to
wait for, so no schedule can change the result: `app.run` must return this list under every schedule.

It shares no code with the runtime, and uses only the depths of the plan.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, TypeVarTuple, final

from alto._current_call import Cleanup, current_call
from alto._graph import bind_resources, check_input
from alto._graph.nested import inner_resources, mentioned, own_resources
from alto._graph.resources import engine_of, engines_in, engines_of, with_handles
from alto._graph.spec import Declaration, NodeSpec, PerReplica
from alto.errors import Closed, StageError
from alto.model import Path, Usage
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
    """Run a pipeline without any concurrency, and return the list that ``app.run`` must return.

    Args:
        pipeline: The pipeline. Pipelines that its stages call are run in the same way, when their
            first result is read.
        inputs: The inputs of one request, as ``app.run`` takes them.
        resources: As ``open`` takes them. Engines that do not run are started, and stopped again.

    Returns:
        All results, in ancestry order.

    Raises:
        StageError: A stage raised. The first in this order: stages as they are declared, then
            paths.

    Cancellation: the stage that runs is cancelled.
    """
    declaration = pipeline.declaration
    async with AsyncExitStack() as engines:
        given = [e for e in map(engine_of, resources.values()) if e is not None]
        pipelines = [declaration, *mentioned(declaration, resources.values())]
        found = (engine for one in pipelines for engine in engines_of(one, resources))
        for engine in (*given, *found):
            await _start(engine, engines)
        bind_resources(declaration, own_resources(declaration, resources))
        return await _Interpreter(resources, engines).run(declaration, inputs)


class _Interpreter:
    """An interpreter of pipelines that all have the same resources."""

    def __init__(self, resources: Mapping[str, object], stack: AsyncExitStack) -> None:
        self._resources = resources
        self._stack = stack
        self._made: dict[
            tuple[int, int, str], object
        ] = {}  # Resources of replicas, each made once.

    def stream(self, declaration: Declaration, inputs: Sequence[object], /) -> _Results:
        """Return the results of a pipeline that a stage calls, computed when the first is read."""
        return _Results(self, declaration, inputs)

    async def run(self, declaration: Declaration, inputs: Sequence[object], /) -> list[Any]:
        """Run one request, every stage in order, and return the items of the last stream."""
        for spec, value in zip(declaration.inputs, inputs, strict=True):
            check_input(declaration, spec, value)
        given = inner_resources(declaration, self._resources)
        streams: list[_Items] = [{(): value} for value in inputs]
        levels: list[tuple[int, ...]] = [
            () for _ in inputs
        ]  # By stream: the streams that opened its levels.
        for node, resources, plan in zip(
            declaration.nodes, bind_resources(declaration, given), declaration.plan.nodes,
            strict=True,
        ):  # fmt: skip
            sources = [source.source for source in plan.inputs]
            deepest = max((levels[s] for s in sources), key=len)
            opened = deepest[: plan.depth]  # The levels of a call: one per item of the innermost.
            paths = list(streams[opened[-1]]) if opened else [()]
            kwargs = with_handles(
                node, {spec.name: await self._own((id(declaration), plan.index, spec.name),
                                                  resources[spec.name], spec.type)
                       for spec in node.stage.resources if spec.name in resources}
            )  # fmt: skip
            items: _Items = {}
            for path in paths:
                args = [
                    group(_PiecesInOrder(_below(streams[s], path)))
                    if param.group
                    else streams[s][path[: len(levels[s])]]
                    for param, s in zip(node.stage.params, sources, strict=True)
                ]
                items |= await self._call(node, path, args, kwargs)
            levels.append((*opened, len(streams)) if node.stage.generator else opened)
            streams.append(items)
        return list(streams[declaration.plan.output].values())

    async def _own(self, key: tuple[int, int, str], value: object, wanted: object) -> object:
        # Here every stage has one replica.
        if not isinstance(value, PerReplica):
            return value
        if key not in self._made:
            made: Any = value.make(0)
            if isinstance(made, AbstractAsyncContextManager):
                made = await self._stack.enter_async_context(made)
            elif isinstance(made, AbstractContextManager):
                made = self._stack.enter_context(made)
            else:
                made = await made if inspect.isawaitable(made) else made
                for engine in engines_in(made, wanted):
                    await _start(engine, self._stack)
            self._made[key] = made
        return self._made[key]

    async def _call(
        self, node: NodeSpec, path: Path, args: list[Any], kwargs: Mapping[str, object]
    ) -> _Items:
        call = _ReferenceCall(path, self)
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
class _ReferenceCall:
    """The running call, as handles inside a stage see it. Implements ``CurrentCall``."""

    cancelled = False
    priority = 0
    deadline: float | None = None
    origin = None

    def __init__(self, path: Path, interpreter: _Interpreter) -> None:
        self.path = path
        self.cleanup = Cleanup()
        self.inner_runner = interpreter  # Also runs the pipelines that a stage calls.

    def generation_started(self, engine: str, /) -> int:  # noqa: ARG002
        """Return 0: there are no observers."""
        return 0

    def generation_ended(
        self, number: int, engine: str, usage: Usage | None, error: BaseException | None, /
    ) -> None:
        """Do nothing: there are no observers."""


@final
class _Results:
    """The results of a pipeline that a stage called, in place of a stream handle."""

    def __init__(
        self, interpreter: _Interpreter, declaration: Declaration, inputs: Sequence[object]
    ) -> None:
        self._interpreter = interpreter
        self._declaration = declaration
        self._inputs = inputs
        self._remaining: list[Any] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401  # a result of any pipeline
        if self._closed:
            msg = "this stream was closed"
            raise Closed(msg)
        if self._remaining is None:
            self._remaining = await self._interpreter.run(self._declaration, self._inputs)
        if not self._remaining:
            raise StopAsyncIteration
        return self._remaining.pop(0)

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
        """Refuse later reads. Nothing runs that must be closed."""
        self._closed = True

    async def list(self) -> list[Any]:
        """Return all unread results."""
        return [result async for result in self]


@final
class _PiecesInOrder:
    """The pieces of a group. Unlike an async generator it need not be closed when a loop is left."""

    def __init__(self, pieces: Sequence[object]) -> None:
        self._remaining = iter(pieces)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        for piece in self._remaining:
            return piece
        raise StopAsyncIteration


def _below(items: _Items, path: Path) -> list[Any]:
    # The pieces of a group: the items of a stream that descend from one ancestor.
    return [item for key, item in items.items() if key[: len(path)] == path]


async def _start(engine: Engine, engines: AsyncExitStack) -> None:
    try:
        engine.check_health()
    except Closed:
        await engine.start()
        engines.push_async_callback(engine.stop)
