"""The form of a declared function: what is wrong with it before any annotation is looked up."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Final

import attrs

from alto._declare.show import show
from alto._spec import RunsIn
from alto.errors import GraphError

__all__ = ("Parameter", "Shape", "check_name", "pipeline_shape", "stage_shape")

RESERVED: Final = ("capacity", "max_held_items", "timeout")
"""Options of ``open`` and ``run_sync``, which take resources as keywords beside them."""


@attrs.frozen(str=False)
class Parameter:
    """A parameter as written."""

    name: str
    annotation: object
    """A string where the module postpones annotations."""
    has_default: bool

    def __str__(self) -> str:
        """As it stands in a signature: ``llm: LLM``."""
        return f"{self.name}: {show(self.annotation)}" + (" = ..." if self.has_default else "")


@attrs.frozen(kw_only=True, eq=False, str=False)
class Shape:
    """A function as written."""

    name: str
    fn: Callable[..., object]
    generator: bool
    """Whether it is an async generator function."""
    plain: bool
    """Whether it is neither that nor a coroutine function."""
    streams: tuple[Parameter, ...]
    """The positional parameters."""
    resources: tuple[Parameter, ...]
    """The keyword-only parameters."""
    returns: object
    """The annotation of its result."""

    def __str__(self) -> str:
        """The signature: ``(claim: str, *, llm: LLM) -> Verdict``."""
        parts = [str(parameter) for parameter in self.streams]
        if self.resources:
            parts += ["*", *map(str, self.resources)]
        return f"({', '.join(parts)}) -> {show(self.returns)}"


def check_name(kind: str, name: object) -> None:
    """Refuse what cannot be the ``name=`` of a stage or pipeline.

    Raises:
        GraphError: It is no text, or an empty one.
    """
    if name is not None and not (isinstance(name, str) and name):
        msg = f"@{kind}(name=...) must be a non-empty text, not {name!r}"
        raise GraphError(msg)


def stage_shape(fn: object, name: str | None, where: RunsIn | None = "loop") -> Shape:
    """Look at the function of a stage.

    Args:
        fn: The function.
        name: What it is called; None: as the function.
        where: Where it runs; None: in an executor that is not alto's, and may run any kind.

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
    shape = _shape(function, name or function.__name__, what, generator=generator, plain=plain)
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
    """Look at the function of a pipeline.

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
    shape = _shape(function, name or function.__name__, what)
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
        msg = (
            f"{what}, not of the method {fn.__qualname__!r}; "
            f"keep the object in a resource (a keyword-only parameter)"
        )
    elif isinstance(fn, staticmethod | classmethod):
        msg = f"{what}, not of a {type(fn).__name__}; move it out of its class"
    elif hasattr(fn, "fn"):
        msg = f"{what}, not of {fn!r}, which is declared already; use it as it is"
    else:
        msg = f"{what}, not of {fn!r}"
    raise GraphError(msg)


def _shape(
    function: FunctionType, name: str, what: str, *, generator: bool = False, plain: bool = True
) -> Shape:
    signature = _signature(function)
    streams: list[Parameter] = []
    resources: list[Parameter] = []
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
            if not streams and parameter.name in ("self", "cls"):
                msg = f"{what} is a method; move it out of its class, and its state to a resource"
            raise GraphError(msg)
        has_default = parameter.default is not parameter.empty
        kept = Parameter(parameter.name, parameter.annotation, has_default)
        if parameter.kind is parameter.KEYWORD_ONLY:
            resources.append(kept)
            continue
        if has_default:
            msg = (
                f"{what}: parameter {parameter.name!r} is positional, so it takes a stream and "
                f"can have no default; put a `*` before it to make it a resource, or take the "
                f"default away"
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


def _signature(function: FunctionType) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # pragma: no cover  # annotations may not have a value yet
        from annotationlib import Format  # noqa: PLC0415  # new in 3.14

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)
