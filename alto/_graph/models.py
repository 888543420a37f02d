"""Models among the resources: found along the annotation, in containers too.

A stage may ask for one model (``llm: LLM``), for one or none (``LLM | None``), or for several
(``list[LLM]``, ``dict[str, LLM]``, a TypedDict, any nesting of them). What its annotation does not
call a model is the stage's own business, engine or not.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, abc, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, get_args, get_type_hints, is_typeddict

from alto._graph import fit
from alto._graph.accept import accepts
from alto._graph.fit import ONE_ARGUMENT, class_of, is_union, plain, protocol_methods
from alto._graph.spec import Declaration, NodeSpec, PerReplica
from alto.llm import LLM
from alto.protocols import Engine

__all__ = ("engine_of", "engines_in", "engines_of", "find_misfit", "is_read_once",
           "with_handles", "wrapped")  # fmt: skip

_ENGINE_METHODS: Final = tuple(protocol_methods(Engine))

SEQUENCES: Final = (*ONE_ARGUMENT, deque, frozenset, list, set, tuple)
MAPPINGS: Final = (*fit.MAPPINGS, OrderedDict, defaultdict)

Part: TypeAlias = tuple[object, object, object]
"""A key, what is there, and how that is annotated."""


def engine_of(value: object) -> Engine | None:
    """The engine that a resource is or wraps, if any."""
    if isinstance(value, LLM):
        return value.engine
    return value if isinstance(value, Engine) and not isinstance(value, type) else None


def engines_in(value: object, wanted: object) -> Iterator[Engine]:
    """The engines of one resource, which is annotated *wanted*."""
    engine = engine_of(value)
    if engine is not None:
        yield engine
    elif not isinstance(value, PerReplica):
        for _, part, tp in _parts(value, wanted):
            yield from engines_in(part, tp)


def engines_of(declaration: Declaration, values: Mapping[str, object]) -> Iterator[Engine]:
    """The engines that a pipeline gets: given by name, bound, or as defaults."""
    for node in declaration.nodes:
        for spec in node.stage.resources:
            for source in (node.bound, values):
                if spec.name in source:
                    yield from engines_in(source[spec.name], spec.type)
                    break
            else:
                yield from engines_in(spec.default, spec.type)


def with_handles(spec: NodeSpec, kwargs: Mapping[str, object]) -> Mapping[str, object]:
    """The keyword arguments of a stage, with an LLM around each engine where it asks for one."""
    return wrapped({r.name: r.type for r in spec.stage.resources}, kwargs)


def wrapped(asked: Mapping[str, Any], kwargs: Mapping[str, object]) -> Mapping[str, object]:
    """The keyword arguments of a stage that has these annotations, with an LLM around engines."""
    return {name: _handed(value, asked[name]) for name, value in kwargs.items()}


def find_misfit(value: object, wanted: object) -> tuple[str, object, object] | None:
    """Find a part of a resource that cannot be the model that the annotation says.

    Returns:
        Where it is, as ``[2]`` or ``['small']``; what is there, and its annotation. None: there is
        no such part.
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
    """Whether models are to be in an iterator, which would be used up by looking for them."""
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
    # A container of the kind that `value` is, as far as its annotation can tell.
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
