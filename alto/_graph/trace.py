"""Tracing: a pipeline's function is called once with symbolic streams, and its calls are recorded.

Every stage call is checked where it is made, so a traceback points at the line. Results that no
stage takes are known only at the end, to ``make_plan``.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, get_args

from alto._graph.plan import NodeDecl, ParamDecl, call_levels, make_plan
from alto._graph.resources import bind_stages
from alto._graph.signature import PipelineSpec
from alto._graph.spec import Declaration, NodeSpec, ParamSpec, StageSpec
from alto._graph.type_variables import TypeVariables
from alto._graph.types import class_of, fits, plain, show
from alto._safe_text import short
from alto.errors import GraphError
from alto.stream import Stream, Symbol, symbol_of

__all__ = ("Tracer", "call_stage", "inline", "reading", "trace")

GATHERED = (list, abc.AsyncIterable, abc.AsyncIterator, abc.Iterable, abc.Sequence)
"""Classes that are often written by mistake for Group."""

RESOURCE = "constants are resources: a keyword-only parameter, given to open() or stage.bind()"
ANCESTOR = "name an input, or what a stage gives"


class Tracer:
    """One reading of a pipeline.

    Invariant: ``stack`` holds the pipelines whose functions are running, outermost first, and
    ``levels`` the levels of each stream so far, by its number.
    """

    def __init__(self, root: PipelineSpec) -> None:
        self.root = root
        self.stack: list[PipelineSpec] = []
        self.decls: list[NodeDecl] = []
        self.nodes: list[tuple[StageSpec, Mapping[str, object]]] = []
        self.levels: list[tuple[int, ...]] = [()] * len(root.inputs)

    @property
    def where(self) -> str:
        """Names of the pipelines being read, for messages."""
        return "pipeline " + " > ".join(repr(spec.name) for spec in self.stack)

    def stream(self, number: int, tp: object, label: str) -> Stream[Any]:
        """Make a stream of this reading."""
        return Stream(
            Symbol(tracer=self, pipeline=self.root.name, number=number, type=tp, shown=show(tp),
                   label=label, levels=self.levels[number])
        )  # fmt: skip

    def named(self, error: GraphError) -> GraphError:
        """Return *error* with the pipeline's name in front."""
        said = str(error)
        if said.startswith("pipeline "):
            return error
        return GraphError(f"pipeline {self.root.name!r}: {said}")

    def add(self, decl: NodeDecl, stage: StageSpec, bound: Mapping[str, object]) -> int:
        """Record a stage call, and return the number of its stream.

        Raises:
            GraphError: Its streams do not fit together.
        """
        try:
            call = call_levels(decl, self.levels, self.decls)
        except GraphError as error:
            raise self.named(error) from None
        self.levels.append((*call, len(self.decls)) if decl.generator else call)
        self.decls.append(decl)
        self.nodes.append((stage, bound))
        return len(self.levels) - 1

    def own(self, value: object, what: str, *, remedy: str = RESOURCE) -> Symbol:
        """Return the symbol of *value*, which must be a stream of this reading.

        Args:
            value: The argument.
            what: The parameter, for messages.
            remedy: Advice for the message where it is a plain value.

        Raises:
            GraphError: It is no such stream.
        """
        if not isinstance(value, Stream):
            msg = f"{what} must be a Stream, not {_described(value, remedy)}"
            raise GraphError(msg)
        symbol = symbol_of(value)
        if symbol.tracer is not self:
            msg = (
                f"{what} is {symbol.label} of pipeline {symbol.pipeline!r}, and a stream can be used "
                f"only while its own pipeline is being read; pass the stream as an input"
            )
            raise GraphError(msg)
        return symbol

    def enter(self, spec: PipelineSpec, streams: Sequence[Stream[Any]]) -> Symbol:
        """Call a pipeline's function and check what it returns."""
        self.stack.append(spec)
        try:
            return self._checked(spec, spec.fn(*streams))
        finally:
            self.stack.pop()

    def _checked(self, spec: PipelineSpec, result: object) -> Symbol:
        if result is None:
            msg = f"{self.where} returns nothing; `return` the stream that holds its results"
            raise GraphError(msg)
        if isinstance(result, tuple | list | dict):
            msg = (
                f"{self.where} returns a {type(result).__name__}, but a pipeline gives one stream; "
                f"for several outputs `return alto.outputs(a=..., b=...)`, or alto.merge them"
            )
            raise GraphError(msg)
        symbol = self.own(result, f"{self.where}: its result")
        if not fits(symbol.type, spec.output):
            msg = (
                f"{self.where} is annotated to return Stream[{show(spec.output)}], but returns "
                f"{symbol.label}, a Stream[{show(symbol.type)}]; correct one of them"
            )
            raise GraphError(msg)
        return symbol


_tracer: ContextVar[Tracer | None] = ContextVar("alto_tracer", default=None)
"""The reading in progress in this context, if any."""


def reading() -> Tracer | None:
    """Return the reading in progress in this context, if any."""
    return _tracer.get()


def trace(spec: PipelineSpec) -> Declaration:
    """Read a pipeline.

    Raises:
        GraphError: It is declared wrongly; the message names pipeline, stage or input, and remedy.
        Exception: Whatever its function raises.
    """
    tracer = Tracer(spec)
    # Streams are numbered: inputs first, then one per call.
    streams = [
        tracer.stream(number, one.type, f"input {one.name!r}")
        for number, one in enumerate(spec.inputs)
    ]
    token = _tracer.set(tracer)
    try:
        result = tracer.enter(spec, streams)
    finally:
        _tracer.reset(token)
    try:
        plan = make_plan(len(spec.inputs), tracer.decls, result.number, pipeline=spec.name)
    except GraphError as error:
        raise tracer.named(error) from None
    for one, takers in zip(spec.inputs, plan.inputs, strict=True):
        if not takers:
            msg = (
                f"pipeline {spec.name!r}: nothing takes input {one.name!r}; pass it to a stage, "
                f"return it, or leave the parameter out"
            )
            raise GraphError(msg)
    nodes = tuple(
        NodeSpec(name=node.name, stage=stage, bound=bound)
        for node, (stage, bound) in zip(plan.nodes, tracer.nodes, strict=True)
    )
    return Declaration(
        name=spec.name, inputs=spec.inputs, nodes=nodes, plan=plan, output=spec.output
    )


def call_stage(
    resolve: Callable[[], StageSpec],
    name: str,
    bound: Mapping[str, object],
    streams: Sequence[object],
    by: object,
    keywords: Mapping[str, object],
) -> Stream[Any]:
    """Record the call of a stage, and return the stream of its results.

    Args:
        resolve: Returns the stage's record; called only while a pipeline is being read.
        name: The stage's name.
        bound: Resources given with ``stage.bind``.
        streams: The positional arguments.
        by: The argument ``by=``.
        keywords: Other keyword arguments; each is an error.

    Raises:
        GraphError: The call is wrong; the message names stage, parameter and remedy.
    """
    tracer = _tracer.get()
    if tracer is None:
        msg = (
            f"stage {name!r} is called outside a pipeline; call it on streams in a function "
            f"decorated with @alto.pipeline, or its plain function as `{name}.fn(...)`"
        )
        raise GraphError(msg)
    stage = resolve()
    what = f"{tracer.where}: stage {stage.name!r}"
    _check_keywords(stage, keywords, what)
    _check_count(len(streams), [param.name for param in stage.params], what)
    sources: list[int] = []
    variables = TypeVariables()
    for param, value in zip(stage.params, streams, strict=True):
        where = f"{what}: parameter {param.name!r}"
        symbol = tracer.own(value, where)
        if not fits(symbol.type, param.type):
            raise GraphError(_misfit(where, param, symbol))
        _bind(variables, where, param.type, symbol, group=param.group)
        sources.append(symbol.number)
    ancestor = None if by is None else tracer.own(by, f"{what}: by=", remedy=ANCESTOR)
    number = tracer.add(
        NodeDecl(
            name=stage.name,
            params=tuple(ParamDecl(param.name, param.group) for param in stage.params),
            generator=stage.generator,
            sources=tuple(sources),
            by=None if ancestor is None else ancestor.number,
        ),
        stage,
        bound,
    )
    return tracer.stream(number, variables.fill(stage.output), f"stage {stage.name!r}")


def inline(
    resolve: Callable[[], PipelineSpec],
    name: str,
    bound: Mapping[str, object],
    streams: Sequence[object],
    keywords: Mapping[str, object],
) -> Stream[Any]:
    """Read a pipeline as a part of the one that is being read.

    Args:
        resolve: Returns the pipeline's record; called only while a pipeline is being read.
        name: The pipeline's name.
        bound: Resources given with ``pipeline.bind``.
        streams: The positional arguments.
        keywords: Keyword arguments; each is an error.

    Raises:
        GraphError: The call is wrong; the message names the pipelines and the remedy.
        ResourceError: No stage takes a resource that is bound.
    """
    tracer = _tracer.get()
    if tracer is None:
        msg = (
            f"pipeline {name!r} is called outside a pipeline; run it with "
            f"`async with {name}.open(...) as app`, or inside a stage with `{name}.stream(...)`"
        )
        raise GraphError(msg)
    spec = resolve()
    what = f"{tracer.where}: pipeline {spec.name!r}"
    if any(spec.fn is other.fn for other in tracer.stack):
        msg = (
            f"{what} calls itself while it is being read, which would never end; loops run inside "
            f"a stage: `async for y in {spec.name}.stream(x)`"
        )
        raise GraphError(msg)
    if keywords:
        keyword = next(iter(keywords))
        msg = (
            f"{what} takes streams only, by position; it has no keyword {keyword!r}; a resource is "
            f"given to open({keyword}=...), or fixed with {spec.name}.bind({keyword}=...)"
        )
        raise GraphError(msg)
    _check_count(len(streams), [one.name for one in spec.inputs], what)
    inner: list[Stream[Any]] = []
    variables = TypeVariables()
    for one, value in zip(spec.inputs, streams, strict=True):
        where = f"{what}: input {one.name!r}"
        symbol = tracer.own(value, where)
        if not fits(symbol.type, one.type):
            msg = (
                f"{where} takes {show(one.type)}, but {symbol.label} gives {show(symbol.type)}; "
                f"correct an annotation, or put a stage in between"
            )
            raise GraphError(msg)
        _bind(variables, where, one.type, symbol)
        # The same stream under the declared type, which holds inside whatever the caller passes.
        inner.append(tracer.stream(symbol.number, one.type, symbol.label))
    before = len(tracer.nodes)
    result = tracer.enter(spec, inner)
    if bound:  # For the calls that the inner pipeline has added.
        stages = tracer.nodes[before:]
        tracer.nodes[before:] = [
            (stage, fixed)
            for (stage, _), fixed in zip(stages, bind_stages(what, stages, bound), strict=True)
        ]
    return tracer.stream(result.number, variables.fill(spec.output), f"pipeline {spec.name!r}")


def _bind(
    variables: TypeVariables, where: str, wanted: object, symbol: Symbol, *, group: bool = False
) -> None:
    refused = variables.bind(symbol.type, wanted)
    if refused is not None:
        shown = f"Group[{show(wanted)}]" if group else show(wanted)
        msg = (
            f"{where} takes {shown}, but {symbol.label} gives {show(symbol.type)}, and {refused}; "
            f"correct an annotation, or put a stage in between"
        )
        raise GraphError(msg)


def _check_keywords(stage: StageSpec, keywords: Mapping[str, object], what: str) -> None:
    for keyword in keywords:
        if any(keyword == resource.name for resource in stage.resources):
            msg = (
                f"{what}: {keyword!r} is a resource; give it to open({keyword}=...), or fix it "
                f"with {stage.name}.bind({keyword}=...)"
            )
        elif any(keyword == param.name for param in stage.params):
            msg = f"{what}: parameter {keyword!r} is a stream; pass it by position"
        else:
            msg = f"{what} has no parameter {keyword!r}; a call takes its streams and by="
        raise GraphError(msg)


def _check_count(got: int, names: Sequence[str], what: str) -> None:
    if got != len(names):
        streams = "1 stream" if len(names) == 1 else f"{len(names)} streams"
        msg = (
            f"{what} takes {streams} ({', '.join(names)}), but is called with {got}; pass each one"
        )
        raise GraphError(msg)


def _misfit(where: str, param: ParamSpec, symbol: Symbol) -> str:
    given, wanted = symbol.type, plain(param.type)
    shown = f"Group[{show(wanted)}]" if param.group else show(wanted)
    remedy = "correct an annotation, or put a stage in between"
    gathers = class_of(wanted) in GATHERED and all(fits(given, one) for one in get_args(wanted))
    if gathers and not param.group:
        remedy = f"to gather the items, annotate it Group[{show(given)}]"
    elif class_of(plain(given)) is list and get_args(given) and fits(get_args(given)[0], wanted):
        remedy = f"{symbol.label} gives whole lists; let it yield their elements one by one"
    return f"{where} takes {shown}, but {symbol.label} gives {show(given)}; {remedy}"


def _described(value: object, remedy: str) -> str:
    if hasattr(value, "fn") and hasattr(value, "name"):
        return f"{value!r} itself; call it"
    if isinstance(value, list | tuple) and remedy == RESOURCE:
        return f"a {type(value).__name__}; pass one stream for each parameter"
    return f"{type(value).__name__} ({short(value)}); {remedy}"
