"""Declared functions before their annotations are looked up: their form, and their options."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Final, get_args

import attrs

from alto._graph.spec import GroupOrder, OwnExecutor, RunsIn
from alto._graph.types import show
from alto._validate import check_count
from alto.errors import GraphError
from alto.protocols import Executor, Router

__all__ = (
    "DEFAULT_CONCURRENCY",
    "Parameter",
    "Shape",
    "StageOptions",
    "check_name",
    "pipeline_shape",
    "stage_options",
    "stage_shape",
)

RESERVED: Final = ("capacity", "max_held_items", "max_requests", "observers", "timeout")
"""Names of the options of ``open`` and ``run_sync``; no resource may have one of these."""


@attrs.frozen(str=False)
class Parameter:
    """A parameter of a stage or pipeline function, as declared."""

    name: str
    annotation: object
    """A string where the module postpones annotations."""
    default: object = inspect.Parameter.empty

    @property
    def has_default(self) -> bool:
        """Return whether the signature has a default for it."""
        return self.default is not inspect.Parameter.empty

    def __str__(self) -> str:
        """Return its source in a signature: ``llm: LLM``."""
        return f"{self.name}: {show(self.annotation)}" + (" = ..." if self.has_default else "")


@attrs.frozen(kw_only=True, eq=False, str=False)
class Shape:
    """The parameters and the result of a function, as declared."""

    name: str
    fn: Callable[..., object]
    generator: bool
    """True for an async generator function."""
    plain: bool
    """True for a plain function: neither an async generator function nor a coroutine function."""
    streams: tuple[Parameter, ...]
    """The positional parameters, in order."""
    resources: tuple[Parameter, ...]
    """The keyword-only parameters."""
    returns: object
    """The annotation of its result."""

    def __str__(self) -> str:
        """Return the signature: ``(claim: str, *, llm: LLM) -> Verdict``."""
        parts = [str(parameter) for parameter in self.streams]
        if self.resources:
            parts += ["*", *map(str, self.resources)]
        return f"({', '.join(parts)}) -> {show(self.returns)}"


def check_name(kind: str, name: object) -> None:
    """Check the ``name=`` of a stage or pipeline.

    Raises:
        GraphError: It is no text, or an empty one.
    """
    if name is not None and not (isinstance(name, str) and name):
        msg = f"@{kind}(name=...) must be a non-empty text, not {name!r}"
        raise GraphError(msg)


def stage_shape(fn: object, name: str | None, where: RunsIn | None = "loop") -> Shape:
    """Read the form of a stage's function; its annotations are not looked up.

    Args:
        fn: The function.
        name: Its name; None: the name of the function.
        where: Short name of its executor; None: one that is not alto's, which may run any kind.

    Raises:
        GraphError: No stage can be made of it; the message names stage, parameter and remedy.
    """
    function = _function(fn, "stage", "def" if where in ("thread", "process") else "async def")
    what = f"stage {name or function.__name__!r}"
    if inspect.isgeneratorfunction(function):
        msg = (
            f"{what} is a plain generator; write `async def` with `yield`, "
            f"annotated `-> AsyncIterator[...]`"
        )
        raise GraphError(msg)
    generator = inspect.isasyncgenfunction(function)
    plain = not generator and not inspect.iscoroutinefunction(function)
    if plain and where == "loop":
        inner = inspect.unwrap(function)
        if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
            msg = (
                f"{what} is async, but a decorator has put a plain function around it; write the "
                f"decorator's wrapper with `async def` (with `yield`, around a generator)"
            )
            raise GraphError(msg)
        msg = (
            f"{what} is a plain function; write `async def`, or, if it blocks or computes for long, "
            f'`@stage(runs_in="thread")` or `@stage(runs_in="process")`'
        )
        raise GraphError(msg)
    if not plain and where in ("thread", "process"):
        msg = (
            f"{what} is async, and runs in the event loop; write a plain `def` for "
            f"runs_in={where!r}, or leave runs_in out"
        )
        raise GraphError(msg)
    shape = _shape(function, "stage", name or function.__name__, generator=generator, plain=plain)
    for parameter in shape.resources:
        if parameter.name in RESERVED:
            msg = (
                f"{what}: resource {parameter.name!r} has the name of an option of open() or "
                f"run_sync(); rename the parameter"
            )
            raise GraphError(msg)
    if not shape.streams:
        msg = (
            f"{what} has no stream parameter; give it at least one positional parameter, which "
            f"takes the items (`x: T`) or groups (`xs: Group[T]`) of a stream"
        )
        raise GraphError(msg)
    return shape


def pipeline_shape(fn: object, name: str | None) -> Shape:
    """Read the form of a pipeline's function; its annotations are not looked up.

    Raises:
        GraphError: No pipeline can be made of it; the message names it, the parameter, the remedy.
    """
    function = _function(fn, "pipeline", "def")
    what = f"pipeline {name or function.__name__!r}"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        msg = (
            f"{what} is async; write a plain `def`: it only says how stages are connected, "
            f"and is read once, before anything runs"
        )
        raise GraphError(msg)
    if inspect.isgeneratorfunction(function):
        msg = f"{what} is a generator; `return` the stream that holds its results"
        raise GraphError(msg)
    shape = _shape(function, "pipeline", name or function.__name__)
    if shape.resources:
        msg = (
            f"{what}: parameter {shape.resources[0].name!r} is keyword-only, but a pipeline takes "
            f"streams only; resources belong to stages, and open() finds them there"
        )
        raise GraphError(msg)
    if not shape.streams:
        msg = f"{what} has no input; give it at least one parameter, `x: Stream[T]`"
        raise GraphError(msg)
    return shape


def _function(fn: object, kind: str, how: str) -> FunctionType:
    what = f"a {kind} is made of a function written with `{how}`"
    if isinstance(fn, FunctionType):
        if fn.__name__ == "<lambda>":
            msg = f"{what}, not of a lambda, which has no annotations"
            raise GraphError(msg)
        return fn
    if isinstance(fn, type):
        msg = (
            f"{what}, not of the class {fn.__qualname__!r}; "
            f"keep its state in a resource (a keyword-only parameter)"
        )
    elif isinstance(fn, functools.partial):
        inner = getattr(fn.func, "__name__", repr(fn.func))
        bind = " and fix its resources with `stage.bind(...)`" if kind == "stage" else ""
        msg = f"{what}, not of a functools.partial of {inner!r}; decorate {inner!r} itself{bind}"
    elif isinstance(fn, MethodType):
        msg = f"{what}, not of the method {fn.__qualname__!r}; {_moved(fn.__func__, kind)}"
    elif isinstance(fn, staticmethod | classmethod):
        msg = f"{what}, not of a {type(fn).__name__}; move the function out of its class"
    elif hasattr(fn, "fn"):
        msg = f"{what}, not of {fn!r}, which is declared already; use it as it is"
    else:
        msg = f"{what}, not of {fn!r}"
    raise GraphError(msg)


def _shape(
    function: FunctionType, kind: str, name: str, *, generator: bool = False, plain: bool = True
) -> Shape:
    what = f"{kind} {name!r}"
    signature = _signature(function)
    streams: list[Parameter] = []
    resources: list[Parameter] = []
    if _is_method(function, signature):
        msg = f"{what} is a method; {_moved(function, kind)}"
        raise GraphError(msg)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            msg = (
                f"{what}: parameter {stars + parameter.name!r} stands for any number of "
                f"parameters; name each one, the signature is the declaration"
            )
            raise GraphError(msg)
        if parameter.annotation is parameter.empty:
            msg = f"{what}: parameter {parameter.name!r} has no annotation; write its type"
            raise GraphError(msg)
        kept = Parameter(parameter.name, parameter.annotation, parameter.default)
        if parameter.kind is parameter.KEYWORD_ONLY:
            resources.append(kept)
            continue
        if kept.has_default:
            remedy = "take the default away"
            if kind == "pipeline":
                remedy += (
                    ", and give a value with each request; what has a default is a resource of the "
                    "stage that uses it, `*, name: T = ...`"
                )
            elif streams and not _gathers(parameter.annotation):
                remedy = f"put a `*` before it to make it a resource, or {remedy}"
            msg = (
                f"{what}: parameter {parameter.name!r} is positional, so it takes a stream and "
                f"can have no default; {remedy}"
            )
            raise GraphError(msg)
        streams.append(kept)
    if signature.return_annotation is signature.empty:
        msg = f"{what} has no return annotation; write the type of what it gives"
        raise GraphError(msg)
    return Shape(
        name=name,
        fn=function,
        generator=generator,
        plain=plain,
        streams=tuple(streams),
        resources=tuple(resources),
        returns=signature.return_annotation,
    )


def _is_method(function: FunctionType, signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.name not in ("self", "cls"):
        return False
    return first.annotation is first.empty or _owner(function) is not None


def _owner(function: Callable[..., object]) -> str | None:
    # Name of the class whose body the function is written in.
    inner = function.__qualname__.rpartition("<locals>.")[2]
    return inner.rpartition(".")[0] or None


def _moved(function: Callable[..., object], kind: str) -> str:
    # Show the method rewritten as a stage, with its object as a resource.
    owner = _owner(function)
    if kind == "pipeline" or owner is None or not isinstance(function, FunctionType):
        return "move it out of its class, and its state to a resource of a stage"
    owner = owner.rpartition(".")[2]
    name = owner.lower()
    signature = _signature(function)
    _, *others = signature.parameters.values()
    keyword_only = [p for p in others if p.kind is p.KEYWORD_ONLY]
    written = [*map(_written, others[: len(others) - len(keyword_only)]), "*", f"{name}: {owner}"]
    written += map(_written, keyword_only)
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    returns = signature.return_annotation
    gives = "" if returns is signature.empty else f" -> {show(returns)}"
    return (
        f"move it out of its class and take the object as a resource, so that `self.x` becomes "
        f"`{name}.x`:\n"
        f"    {'async def' if is_async else 'def'} {function.__name__}({', '.join(written)}){gives}: ...\n"
        f"    async with pipeline.open({name}={owner}(...)) as app: ..."
    )


def _written(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return parameter.name
    default = "" if parameter.default is parameter.empty else " = ..."
    return f"{parameter.name}: {show(parameter.annotation)}{default}"


def _gathers(annotation: object) -> bool:
    return re.match(r"([\w]+\.)*(Group|Stream)\b", show(annotation)) is not None


def _signature(function: FunctionType) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # pragma: no cover  # annotations may not have a value yet
        from annotationlib import Format  # noqa: PLC0415  # new in 3.14

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


DEFAULT_CONCURRENCY: Final = 32
"""Most calls of a replica that run at once, unless the stage says otherwise."""


@attrs.frozen(kw_only=True)
class StageOptions:
    """The options of ``@stage``, checked."""

    concurrency: int
    order: GroupOrder
    name: str | None
    replicas: int
    router: Router | None
    runs_in: RunsIn | Executor

    @property
    def where(self) -> RunsIn | None:
        """Short name of its executor; None for one that is not alto's."""
        return _short_name(self.runs_in)


def stage_options(
    *,
    concurrency: int | None,
    order: GroupOrder,
    name: str | None,
    replicas: int,
    router: object,
    runs_in: RunsIn | Executor,
) -> StageOptions:
    """Check the options of a stage.

    Raises:
        GraphError: An option is not valid; the message names it and what it may be.
    """
    check_name("stage", name)
    if order not in get_args(GroupOrder):
        msg = f"@stage(order=...) must be 'ancestry' or 'arrival', not {order!r}"
        raise GraphError(msg)
    _check_runs_in(runs_in)
    in_process = _short_name(runs_in) == "process"
    if concurrency is None:
        concurrency = 1 if in_process else DEFAULT_CONCURRENCY
    check_count("@stage(concurrency=...)", concurrency, GraphError)
    check_count("@stage(replicas=...)", replicas, GraphError)
    if in_process and concurrency > 1:
        msg = (
            "@stage(runs_in='process') runs one call at a time in each process; for more at once "
            "write replicas=..., and leave concurrency out"
        )
        raise GraphError(msg)
    if router is not None and (isinstance(router, type) or not isinstance(router, Router)):
        made = f", made: {router.__name__}()" if isinstance(router, type) else ""
        msg = (
            f"@stage(router=...) must be a router{made}, such as alto.routing.RoundRobinRouter(), or any "
            f"object with a method choose(item, replicas), not {router!r}"
        )
        raise GraphError(msg)
    if router is not None:
        _check_choose(router)
    return StageOptions(
        concurrency=concurrency, order=order, name=name, replicas=replicas,
        router=router, runs_in=runs_in,
    )  # fmt: skip


def _short_name(runs_in: RunsIn | Executor) -> RunsIn | None:
    if isinstance(runs_in, str):
        return runs_in
    return runs_in.short if isinstance(runs_in, OwnExecutor) else None


def _check_runs_in(runs_in: object) -> None:
    if isinstance(runs_in, str) and runs_in in get_args(RunsIn):
        return
    if isinstance(runs_in, type) or not isinstance(runs_in, Executor):
        made = f", made: {runs_in.__name__}()" if isinstance(runs_in, type) else ""
        msg = (
            f"@stage(runs_in=...) must be 'loop', 'thread' or 'process', or an executor{made}, any "
            f"object with a method replica(stage, number, resources), not {runs_in!r}"
        )
        raise GraphError(msg)
    kind, replica = type(runs_in).__name__, runs_in.replica
    if inspect.iscoroutinefunction(replica) or inspect.isasyncgenfunction(replica):
        msg = (
            f"@stage(runs_in=...): {kind}.replica() must return an async context manager; decorate "
            f"it with @contextlib.asynccontextmanager, and `yield` the call"
        )
        raise GraphError(msg)
    try:
        inspect.signature(replica).bind("stage", 0, {})
    except TypeError:
        msg = (
            f"@stage(runs_in=...): {kind}.replica() must take a stage, a number and the resources, "
            f"but it is declared replica{inspect.signature(replica)}"
        )
        raise GraphError(msg) from None
    except ValueError:  # Written in C, without a signature.
        return


def _check_choose(router: Router) -> None:
    kind = type(router).__name__
    if inspect.iscoroutinefunction(router.choose):
        msg = f"@stage(router=...): {kind}.choose() must be a plain function, not an async one"
        raise GraphError(msg)
    try:
        inspect.signature(router.choose).bind("item", "replicas")
    except TypeError:
        msg = (
            f"@stage(router=...): {kind}.choose() must take an item and the replicas, but it is "
            f"declared choose{inspect.signature(router.choose)}"
        )
        raise GraphError(msg) from None
    except ValueError:  # Written in C, without a signature.
        return
