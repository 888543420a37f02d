"""Signatures: look up the annotations of a declared function, and make its record.

A decorated function may be annotated with names that its module defines further down. A name that
cannot be looked up at the decoration is tried again at the first use, and reported there.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Final, Generic, TypeVar, final, get_args, get_origin, get_type_hints

import attrs

from alto._graph.declaration import Parameter, Shape, StageOptions, pipeline_shape, stage_shape
from alto._graph.resources import refused
from alto._graph.spec import InputSpec, ParamSpec, ResourceSpec, StageSpec
from alto._graph.types import class_of, is_union, plain, show
from alto.errors import GraphError
from alto.stream import Group, Stream

__all__ = (
    "LazySpec",
    "Names",
    "PipelineSpec",
    "Unresolved",
    "local_names",
    "lazy_pipeline_spec",
    "pipeline_spec",
    "lazy_stage_spec",
    "stage_spec",
)

NO_TYPES = (bool, bytes, complex, dict, float, int, list, set, tuple)
"""Classes whose values are not types; ``[str]`` is a common mistake for ``list[str]``."""


class Unresolved(GraphError):
    """A name in an annotation is not defined yet; the lookup can be tried again later."""


class Names:
    """The scope of a function's annotations: its globals, what it closes over, its caller's locals.

    The caller is the frame that decorates the function. Its locals are a snapshot, so a type that
    is defined in the same function after the decoration is not found.
    """

    def __init__(self, fn: Callable[..., object], caller: Mapping[str, object], /) -> None:
        inner = inspect.unwrap(fn)
        self._globals: dict[str, object] = getattr(inner, "__globals__", {})
        self._locals = dict(caller)
        code = getattr(inner, "__code__", None)
        for name, cell in zip(
            getattr(code, "co_freevars", ()),
            getattr(inner, "__closure__", None) or (),
            strict=False,
        ):
            try:
                self._locals[name] = cell.cell_contents
            except ValueError:  # Not assigned yet.
                continue

    def resolve(self, annotation: object, /, *, where: str) -> object:
        """Return the type that *annotation* stands for, with the strings in it resolved.

        Args:
            annotation: As written; a string where the module postpones annotations.
            where: The annotated parameter or result, for the message: ``stage 'search': parameter 'query'``.

        Raises:
            Unresolved: A name is not defined (yet).
            GraphError: The annotation is no type at all.
        """
        holder = SimpleNamespace(__annotations__={"it": annotation})
        try:
            found = get_type_hints(holder, self._globals, self._locals, include_extras=True)["it"]
        except (NameError, AttributeError) as error:
            msg = (
                f"{where}: the annotation {show(annotation)!r} cannot be resolved ({error}); "
                f"define or import the name before the first use, outside `if TYPE_CHECKING`, "
                f"at the top of the module or where the function can see it"
            )
            raise Unresolved(msg) from error
        except Exception as error:
            msg = (
                f"{where}: the annotation {show(annotation)!r} is not a type "
                f"({type(error).__name__}: {error}); correct it"
            )
            raise GraphError(msg) from error
        if isinstance(found, NO_TYPES):
            msg = f"{where}: the annotation {found!r} is not a type; correct it"
            raise GraphError(msg)
        return found


ITERATORS: Final = (abc.AsyncIterator, abc.AsyncGenerator, abc.AsyncIterable)
"""Classes that an async generator function may be annotated to return."""


@attrs.frozen(kw_only=True, eq=False)
class PipelineSpec:
    """A pipeline, read from its signature; its function has not been called."""

    name: str
    fn: Callable[..., object]
    """The plain function."""
    inputs: tuple[InputSpec, ...]
    output: object
    """Type inside the brackets of its ``-> Stream[...]``."""


def stage_spec(shape: Shape, names: Names, *, options: StageOptions) -> StageSpec:
    """Look up the annotations of a stage.

    Raises:
        Unresolved: A name in an annotation is not defined (yet).
        GraphError: An annotation does not fit; the message names stage, parameter and remedy.
    """
    what = f"stage {shape.name!r}"
    params = tuple(
        _stream_param(p.name, _resolved(names, p.annotation, what, p.name), what)
        for p in shape.streams
    )
    resources = tuple(
        _resource(p, _resolved(names, p.annotation, what, p.name), what) for p in shape.resources
    )
    returns = names.resolve(shape.returns, where=f"{what}: its result")
    for param in params:
        if param.group and shape.plain:
            msg = (
                f"{what}: parameter {param.name!r} is a Group, whose pieces come while the call "
                f"runs, but a plain function cannot wait for them; gather them first (alto.collect) "
                f"and take a list"
            )
            raise GraphError(msg)
    return StageSpec(
        name=shape.name,
        fn=shape.fn,
        generator=shape.generator,
        params=params,
        resources=resources,
        output=_output(plain(returns), what, generator=shape.generator),
        concurrency=options.concurrency,
        order=options.order,
        replicas=options.replicas,
        router=options.router,
        runs_in=options.runs_in,
        plain=shape.plain,
    )


def pipeline_spec(shape: Shape, names: Names) -> PipelineSpec:
    """Look up the annotations of a pipeline.

    Raises:
        Unresolved: A name in an annotation is not defined (yet).
        GraphError: An annotation is no ``Stream[...]``.
    """
    what = f"pipeline {shape.name!r}"
    inputs = tuple(
        InputSpec(name=p.name, type=_inside(_resolved(names, p.annotation, what, p.name),
                                            f"{what}: parameter {p.name!r}"))
        for p in shape.streams
    )  # fmt: skip
    returns = names.resolve(shape.returns, where=f"{what}: its result")
    return PipelineSpec(
        name=shape.name,
        fn=shape.fn,
        inputs=inputs,
        output=_result(returns, f"{what}: its result"),
    )


def _resolved(names: Names, annotation: object, what: str, parameter: str) -> object:
    return names.resolve(annotation, where=f"{what}: parameter {parameter!r}")


def _result(tp: object, where: str) -> object:
    # The T of the one stream that a pipeline gives.
    args = () if is_union(plain(tp)) else get_args(plain(tp))
    several = [one for one in args if class_of(plain(one)) is Stream]
    if several:
        items = " | ".join(dict.fromkeys(show(arg) for one in several for arg in get_args(one)))
        msg = (
            f"{where} is annotated {show(tp)}, but a pipeline gives one stream; for several "
            f"outputs `return alto.outputs(a=..., b=...)`, annotated "
            f"`-> Stream[alto.Output[{items or 'T'}]]`, or alto.merge them"
        )
        raise GraphError(msg)
    return _inside(tp, where)


def _inside(tp: object, where: str) -> object:
    # The T of a pipeline's Stream[T].
    tp = plain(tp)
    if class_of(tp) is not Stream:
        msg = (
            f"{where} is annotated {show(tp)}, but a pipeline handles streams; "
            f"write Stream[{show(tp)}]"
        )
        raise GraphError(msg)
    if not get_args(tp):
        msg = f"{where} is annotated Stream without an item type; write Stream[T]"
        raise GraphError(msg)
    return get_args(tp)[0]


def _stream_param(name: str, tp: object, what: str) -> ParamSpec:
    what = f"{what}: parameter {name!r}"
    bare = plain(tp)
    if class_of(bare) is not Group:
        _refuse_nested(tp, what)
        return ParamSpec(name, group=False, type=tp)
    if not get_args(bare):
        msg = f"{what} is annotated Group without an item type; write Group[T]"
        raise GraphError(msg)
    (inner,) = get_args(bare)
    _refuse_nested(inner, what)
    return ParamSpec(name, group=True, type=inner)


def _resource(parameter: Parameter, tp: object, what: str) -> ResourceSpec:
    name = parameter.name
    if class_of(plain(tp)) in (Group, Stream):
        msg = (
            f"{what}: parameter {name!r} is keyword-only, so it takes a resource, but is annotated "
            f"{show(tp)}; move it before the `*` (as an item `T` or a `Group[T]`)"
        )
        raise GraphError(msg)
    spec = ResourceSpec(name, tp, required=not parameter.has_default, default=parameter.default)
    if parameter.has_default:
        reason = refused(spec, parameter.default)
        if reason is not None:
            optional = f", or annotate it {show(tp)} | None" if parameter.default is None else ""
            msg = f"{what}: the default of resource {name!r}{reason}; correct one of them{optional}"
            raise GraphError(msg)
    return spec


def _refuse_nested(tp: object, what: str) -> None:
    # A stage never gets a Stream, or a Group below the outermost level.
    cls = class_of(plain(tp))
    if cls is Stream:
        msg = (
            f"{what} is annotated {show(tp)}, but a stage gets items, not streams; "
            f"write T for one item at a time, Group[T] for all of one parent"
        )
        raise GraphError(msg)
    if cls is Group:
        msg = (
            f"{what} has a Group inside {show(tp)}; write Group[T] itself: it holds everything "
            f"below one parent, over several levels with by="
        )
        raise GraphError(msg)
    for arg in get_args(tp):
        _refuse_nested(arg, what)


def _output(tp: object, what: str, *, generator: bool) -> object:
    iterates = class_of(tp) in ITERATORS
    if generator and not iterates:
        msg = (
            f"{what} is an async generator (it has a `yield`), but its result is annotated "
            f"{show(tp)}; write `-> AsyncIterator[{show(tp)}]`, or return instead of yielding"
        )
        raise GraphError(msg)
    if iterates and not generator:
        inner = ", ".join(map(show, get_args(tp)[:1])) or "..."
        msg = (
            f"{what} is annotated to give {show(tp)}, but it is a coroutine: there is no `yield` "
            f"in it; yield its results, or write `-> {inner}` and return one"
        )
        raise GraphError(msg)
    if generator and not get_args(tp):
        msg = f"{what} is annotated to give an {show(tp)} without an item type; write `-> AsyncIterator[T]`"
        raise GraphError(msg)
    output = get_args(tp)[0] if generator else tp
    if class_of(plain(output)) in (Group, Stream) or get_origin(output) in (Group, Stream):
        msg = f"{what} gives a {show(output)}, but a stage gives items; write the type of one item"
        raise GraphError(msg)
    return output


S = TypeVar("S")


def local_names(frame: FrameType) -> Mapping[str, object]:
    """Return the local names of *frame*; none for the frame of a module."""
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)


@final
class LazySpec(Generic[S]):
    """A function's shape, and its record as soon as its annotations can be looked up."""

    def __init__(
        self, shape: Shape, caller: Mapping[str, object], read: Callable[[Shape, Names], S], /
    ) -> None:
        self.shape = shape
        self._caller = caller
        self._read = read
        self._spec: S | None = None
        try:
            self.resolve()
        except Unresolved:
            return  # Tried again at the first use.

    def resolve(self) -> S:
        """Return the record.

        Raises:
            Unresolved: A name in an annotation is not defined (yet).
            GraphError: An annotation is wrong.
        """
        if self._spec is None:
            self._spec = self._read(self.shape, Names(self.shape.fn, self._caller))
            self._caller = {}  # Its values are no longer needed, and may be large.
        return self._spec


def lazy_stage_spec(
    fn: object,
    caller: Mapping[str, object],
    options: StageOptions,
) -> LazySpec[StageSpec]:
    """Read a stage's function, with its options.

    Raises:
        GraphError: No stage can be made of it.
    """
    read = partial(stage_spec, options=options)
    return LazySpec(stage_shape(fn, options.name, options.where), caller, read)


def lazy_pipeline_spec(
    fn: object, caller: Mapping[str, object], *, name: str | None
) -> LazySpec[PipelineSpec]:
    """Read a pipeline's function.

    Raises:
        GraphError: No pipeline can be made of it.
    """
    return LazySpec(pipeline_shape(fn, name), caller, pipeline_spec)
