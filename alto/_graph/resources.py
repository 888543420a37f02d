"""Resources: compare what ``open()`` and a request are given with what the signatures ask for.

A stage may ask for one model (``llm: LLM``), for one or none (``LLM | None``), or for several
(``list[LLM]``, ``dict[str, LLM]``, a TypedDict, any nesting of them). What its annotation does not
call a model is passed to the stage as it is, engine or not.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, abc, defaultdict, deque
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, get_args, get_type_hints, is_typeddict

from alto._graph import types as fit
from alto._graph.spec import Declaration, InputSpec, NodeSpec, PerReplica, ResourceSpec, StageSpec
from alto._graph.types import (
    ONE_ARGUMENT,
    accepts,
    class_of,
    is_union,
    plain,
    protocol_methods,
    show,
)
from alto.errors import InputError, ResourceError
from alto.llm import LLM
from alto.protocols import Engine

__all__ = (
    "bind_resources",
    "bind_stages",
    "check_input",
    "check_input_count",
    "check_resource",
    "engine_of",
    "engines_in",
    "engines_of",
    "find_misfit",
    "is_read_once",
    "refuse_unknown",
    "refused",
    "with_handles",
    "wrapped",
)

_ENGINE_METHODS: Final = tuple(protocol_methods(Engine))

SEQUENCES: Final = (*ONE_ARGUMENT, deque, frozenset, list, set, tuple)
MAPPINGS: Final = (*fit.MAPPINGS, OrderedDict, defaultdict)

Part: TypeAlias = tuple[object, object, object]
"""A key, the value there, and its annotation."""


def engine_of(value: object) -> Engine | None:
    """Return the engine that a resource is or wraps, if any."""
    if isinstance(value, LLM):
        return value.engine
    return value if isinstance(value, Engine) and not isinstance(value, type) else None


def engines_in(value: object, wanted: object) -> Iterator[Engine]:
    """Yield the engines of one resource, which is annotated *wanted*."""
    engine = engine_of(value)
    if engine is not None:
        yield engine
    elif not isinstance(value, PerReplica):
        for _, part, tp in _parts(value, wanted):
            yield from engines_in(part, tp)


def engines_of(declaration: Declaration, values: Mapping[str, object]) -> Iterator[Engine]:
    """Yield the engines that a pipeline gets: given by name, bound, or as defaults."""
    for node in declaration.nodes:
        for spec in node.stage.resources:
            for source in (node.bound, values):
                if spec.name in source:
                    yield from engines_in(source[spec.name], spec.type)
                    break
            else:
                yield from engines_in(spec.default, spec.type)


def with_handles(spec: NodeSpec, kwargs: Mapping[str, object]) -> Mapping[str, object]:
    """Return the keyword arguments of a stage, with an LLM around each engine given for one."""
    return wrapped({r.name: r.type for r in spec.stage.resources}, kwargs)


def wrapped(asked: Mapping[str, Any], kwargs: Mapping[str, object]) -> Mapping[str, object]:
    """Return the keyword arguments of a stage with these annotations, engines wrapped in LLMs."""
    return {name: _handed(value, asked[name]) for name, value in kwargs.items()}


def find_misfit(value: object, wanted: object) -> tuple[str, object, object] | None:
    """Find a part of a resource that cannot be the model that the annotation says.

    Returns:
        Its place, as ``[2]`` or ``['small']``; its value, and its annotation. None: there is no
        such part.
    """
    if engine_of(value) is not None or isinstance(value, PerReplica):
        return None
    for key, part, tp in _parts(value, wanted):
        if _holds_models(tp) and not accepts(part, tp):
            return f"[{key!r}]", part, tp
        deeper = find_misfit(part, tp)
        if deeper is not None:
            return f"[{key!r}]{deeper[0]}", *deeper[1:]
    return None


def is_read_once(value: object, wanted: object) -> bool:
    """Return whether models are in an iterator, which a search for them would exhaust."""
    return isinstance(value, abc.Iterator) and _holds_models(wanted)


def _handed(value: object, wanted: object) -> object:
    if isinstance(value, Engine):
        return LLM(value) if _asks_for_llm(wanted) else value
    parts = list(_parts(value, wanted))
    handed = {k: _handed(part, tp) for k, (_, part, tp) in enumerate(parts)}
    if all(handed[k] is part for k, (_, part, _) in enumerate(parts)):
        return value
    if isinstance(value, Mapping):
        made = copy.copy(value) if isinstance(value, abc.MutableMapping) else dict(value)
        made.update((key, handed[k]) for k, (key, _, _) in enumerate(parts))
        return made
    return _like(value, list(handed.values()))


def _like(value: object, parts: list[object]) -> object:
    # A container of the same kind as `value`, with *parts* in it.
    if isinstance(value, tuple):
        made = getattr(value, "_make", tuple)  # Of a named tuple.
        return made(parts)
    if isinstance(value, abc.MutableSequence):
        copied = copy.copy(value)
        for k, part in enumerate(parts):
            copied[k] = part
        return copied
    if isinstance(value, abc.Set):
        return set(parts) if isinstance(value, abc.MutableSet) else frozenset(parts)
    return parts


def _asks_for_llm(wanted: object) -> bool:
    wanted = plain(wanted)
    return LLM in (wanted, *map(plain, get_args(wanted) if is_union(wanted) else ()))


def _holds_models(wanted: object, seen: frozenset[int] = frozenset()) -> bool:
    # Whether the annotation says "model" anywhere that can be looked into.
    wanted = plain(wanted)
    if id(wanted) in seen:  # A type that contains itself.
        return False
    seen |= {id(wanted)}
    cls = class_of(wanted)
    if is_union(wanted) or cls in (*SEQUENCES, *MAPPINGS):
        return any(_holds_models(one, seen) for one in _elements(wanted))
    if cls is not None and is_typeddict(cls):
        return any(_holds_models(one, seen) for one in _fields(cls).values())
    return cls is LLM or (cls is not None and all(hasattr(cls, m) for m in _ENGINE_METHODS))


def _elements(wanted: object) -> tuple[object, ...]:
    # The types of the elements of a container, or of a union's values.
    args = get_args(wanted)
    return args[1:] if class_of(wanted) in MAPPINGS else args


def _fields(cls: type) -> Mapping[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # Nothing is known of what it holds.
        return {}


def _parts(value: object, wanted: object) -> Iterator[Part]:
    # What is in a container whose annotation says that models are in it.
    wanted = plain(wanted)
    if not _holds_models(wanted):
        return
    cls = class_of(wanted)
    if is_union(wanted):
        for one in get_args(wanted):
            if accepts(value, one):
                yield from _parts(value, one)
                return
    elif cls is not None and is_typeddict(cls):
        if isinstance(value, Mapping):
            fields = _fields(cls)
            yield from ((key, part, fields.get(key, Any)) for key, part in value.items())
    elif cls in MAPPINGS:
        if isinstance(value, Mapping):
            yield from ((key, part, get_args(wanted)[-1]) for key, part in value.items())
    elif isinstance(value, abc.Iterable) and not isinstance(value, str | bytes | abc.Iterator):
        types = [one for one in get_args(wanted) if one is not Ellipsis]
        for k, part in enumerate(value):
            yield k, part, types[min(k, len(types) - 1)]


def bind_resources(
    declaration: Declaration, resources: Mapping[str, object]
) -> tuple[Mapping[str, object], ...]:
    """Return the keyword arguments of every node, in the order of ``declaration.nodes``.

    A resource goes to every stage that has a keyword-only parameter of its name and that
    ``bind`` has not given one. A default stays with the function.

    Raises:
        ResourceError: One is missing, unknown, bound twice, or provably of a wrong type.
    """
    pipeline = f"pipeline {declaration.name!r}"
    for name in resources:
        takers = [node for node in declaration.nodes if _asks(node, name)]
        if not takers:
            known = {spec.name for node in declaration.nodes for spec in node.stage.resources}
            refuse_unknown(name, known, pipeline)
        if all(name in node.bound for node in takers):
            msg = (
                f"{pipeline}: resource {name!r} is bound twice: open({name}=...) is given, but "
                f"bind({name}=...) has fixed it for {_named(takers)}; leave one out"
            )
            raise ResourceError(msg)
    missing: dict[str, list[NodeSpec]] = {}
    for node in declaration.nodes:
        for spec in node.stage.resources:
            if spec.required and spec.name not in node.bound and spec.name not in resources:
                missing.setdefault(spec.name, []).append(node)
    if missing:
        lines = "; ".join(
            f"{name!r} ({show(_spec(nodes[0], name).type)}), for {_named(nodes)}"
            for name, nodes in missing.items()
        )
        call = ", ".join(f"{name}=..." for name in missing)
        msg = f"{pipeline}: resources are missing: {lines}; give open({call})"
        raise ResourceError(msg)
    return tuple(_bound(node, resources) for node in declaration.nodes)


def bind_stages(
    who: str,
    stages: Sequence[tuple[StageSpec, Mapping[str, object]]],
    resources: Mapping[str, object],
) -> list[Mapping[str, object]]:
    """Fix resources of a pipeline's stages, as ``Pipeline.bind`` does.

    Args:
        who: The pipeline, for messages.
        stages: Each with the resources bound in it already, which stay.
        resources: By name, for every other stage that asks for one.

    Returns:
        The resources bound in each stage.

    Raises:
        ResourceError: No stage asks for one, all that do have it bound, or it is provably of a
            wrong type.
    """
    asking = [{spec.name: spec for spec in stage.resources} for stage, _ in stages]
    for name in resources:
        takers = [pair for pair, asked in zip(stages, asking, strict=True) if name in asked]
        if not takers:
            refuse_unknown(name, {name for asked in asking for name in asked}, who)
        if all(name in bound for _, bound in takers):
            named = _listed(stage.name for stage, _ in takers)
            msg = f"{who}: resource {name!r} is bound already, for {named}; leave one out"
            raise ResourceError(msg)
    made: list[Mapping[str, object]] = []
    for (stage, bound), asked in zip(stages, asking, strict=True):
        new = {n: value for n, value in resources.items() if n in asked and n not in bound}
        for name, value in new.items():
            check_resource(stage.name, asked[name], value)
        made.append({**bound, **new})
    return made


def check_resource(
    stage: str, spec: ResourceSpec, value: object, number: int | None = None
) -> None:
    """Refuse a value that cannot be what the stage asks for.

    Args:
        stage: Name of the stage.
        spec: The resource parameter.
        value: The value.
        number: Number of the replica that it was made for, if any.

    Raises:
        ResourceError: It is provably of a wrong type; stage, resource, expected and got are named.
    """
    reason = refused(spec, value)
    if reason is None:
        return
    whose, remedy = "", "give one, or correct the annotation"
    if number is not None:
        whose, remedy = f" of replica {number}", "correct its factory, or the annotation"
        if isinstance(value, (Generator, AsyncGenerator)):
            kind = "async" if isinstance(value, AsyncGenerator) else ""
            remedy = f"decorate its factory with @contextlib.{kind}contextmanager"
    msg = f"stage {stage!r}: resource {spec.name!r}{whose}{reason}; {remedy}"
    raise ResourceError(msg)


def refused(spec: ResourceSpec, value: object) -> str | None:
    """Return why a value cannot be what a stage asks for; None: it may be.

    Returns:
        The text that follows the resource's name in a message: `` must be LLM, not str``.
    """
    if isinstance(value, PerReplica):
        return None
    if not accepts(value, spec.type):
        return f" must be {show(spec.type)}, not {_kind(value)}"
    if is_read_once(value, spec.type):
        return (
            f" must be {show(spec.type)} that can be looked at more than once, such as a list, not "
            f"{_kind(value)}"
        )
    misfit = find_misfit(value, spec.type)
    if misfit is None:
        return None
    where, part, wanted = misfit
    return (
        f" must be {show(spec.type)}, but {where} in it is no {show(wanted)}: it is {_kind(part)}"
    )


def _kind(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else type(value).__name__


def check_input(declaration: Declaration, spec: InputSpec, value: object) -> None:
    """Refuse an input that cannot be what the pipeline declares; only its class is looked at.

    Raises:
        InputError: It is provably of a wrong type; pipeline, input, expected and got are named.
    """
    if not accepts(value, spec.type):
        msg = (
            f"pipeline {declaration.name!r}: input {spec.name!r} must be {show(spec.type)}, not "
            f"{type(value).__name__}; convert it, or correct the annotation"
        )
        raise InputError(msg)


def check_input_count(declaration: Declaration, inputs: object) -> Sequence[object]:
    """Return the inputs of one request, checked to be as many as the pipeline declares.

    Raises:
        InputError: They are no tuple, or their number is wrong.
    """
    wanted = len(declaration.inputs)
    if isinstance(inputs, tuple) and len(inputs) == wanted:
        return inputs
    got = str(len(inputs)) if isinstance(inputs, tuple) else f"{type(inputs).__name__}"
    names = ", ".join(spec.name for spec in declaration.inputs)
    count = "1 input" if wanted == 1 else f"{wanted} inputs"
    shape = f"a tuple of {count}" if not isinstance(inputs, tuple) else count
    msg = f"pipeline {declaration.name!r} takes {shape} ({names}), but is given {got}"
    raise InputError(msg)


def refuse_unknown(name: str, known: Iterable[str], who: str) -> None:
    """Refuse a resource that no stage asks for.

    Raises:
        ResourceError: Always; the message lists the names that there are.
    """
    from difflib import get_close_matches  # noqa: PLC0415  # for mistakes only

    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near:
        remedy = f"did you mean {near[0]!r}?"
    elif names:
        remedy = f"it takes {', '.join(map(repr, names))}"
    else:
        remedy = "it takes no resources: they are the keyword-only parameters of its stages"
    msg = f"{who} has no resource {name!r}; {remedy}"
    raise ResourceError(msg)


def _bound(node: NodeSpec, resources: Mapping[str, object]) -> Mapping[str, object]:
    given: dict[str, object] = {}
    for spec in node.stage.resources:
        for source in (node.bound, resources):
            if spec.name in source:
                check_resource(node.stage.name, spec, source[spec.name])
                given[spec.name] = source[spec.name]
                break
        else:
            # A default stays with the function, unless it is one that the app takes care of.
            held = isinstance(spec.default, PerReplica)
            if held or any(engines_in(spec.default, spec.type)):
                given[spec.name] = spec.default
    return given


def _asks(node: NodeSpec, name: str) -> bool:
    return any(spec.name == name for spec in node.stage.resources)


def _spec(node: NodeSpec, name: str) -> ResourceSpec:
    return next(spec for spec in node.stage.resources if spec.name == name)


def _named(nodes: Sequence[NodeSpec]) -> str:
    return _listed(node.stage.name for node in nodes)


def _listed(stages: Iterable[str]) -> str:
    names = dict.fromkeys(stages)
    return ("stage " if len(names) == 1 else "stages ") + ", ".join(map(repr, names))
