"""Pipelines that stages call, and the resources that those need.

The pipelines that a stage calls are known only when it runs. But ``open()`` must distinguish a
resource for one of them from a misspelt name, and start the engines that are bound in them. So it
collects the pipelines that are given as resources, and those that the code of the stages mentions
by name, directly or in plain functions that it mentions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import cast

import attrs

from alto._graph.resources import bind_stages
from alto._graph.spec import Declaration, HasDeclaration
from alto.errors import ResourceError

__all__ = ("bound_pipeline", "inner_resources", "mentioned", "own_resources")


def bound_pipeline(declaration: Declaration, resources: Mapping[str, object]) -> Declaration:
    """Return *declaration* with resources fixed in all its stages that ask for them.

    Raises:
        ResourceError: No stage asks for one, all that do have it bound, or it is provably of a
            wrong type.
    """
    who = f"pipeline {declaration.name!r}"
    own = {spec.name for node in declaration.nodes for spec in node.stage.resources}
    for name in resources:
        if name not in own:
            for other in mentioned(declaration, ()):
                if name in _asked(other):
                    msg = (
                        f"{who} has no stage of its own that takes a resource {name!r}, but pipeline "
                        f"{other.name!r}, which a stage of it calls, does; bind it there, or give "
                        f"it to open({name}=...)"
                    )
                    raise ResourceError(msg)
    stages = [(node.stage, node.bound) for node in declaration.nodes]
    nodes = zip(declaration.nodes, bind_stages(who, stages, resources), strict=True)
    return attrs.evolve(
        declaration, nodes=tuple(attrs.evolve(node, bound=bound) for node, bound in nodes)
    )


def inner_resources(
    declaration: Declaration, resources: Mapping[str, object]
) -> Mapping[str, object]:
    """Return those of an app's *resources* that a pipeline called by a stage takes."""
    asked = _asked(declaration)
    return {name: value for name, value in resources.items() if name in asked}


def own_resources(
    declaration: Declaration, resources: Mapping[str, object]
) -> Mapping[str, object]:
    """Return *resources* without those that only pipelines mentioned by its stages ask for."""
    asked = _asked(declaration)
    if asked.issuperset(resources):
        return resources
    others = mentioned(declaration, resources.values())
    nested = {name for other in others for name in _asked(other)}
    return {name: v for name, v in resources.items() if name in asked or name not in nested}


def mentioned(declaration: Declaration, resources: Iterable[object]) -> list[Declaration]:
    """Return the pipelines that its stages mention or get, directly or indirectly, but not itself."""
    found: dict[int, Declaration] = {id(declaration): declaration}
    pending = [declaration]
    given = list(resources)
    while pending:
        nodes = pending.pop().nodes
        values = [v for node in nodes for v in (node.stage.fn, *node.bound.values())]
        for other in _pipelines([*values, *given]):
            if id(other) not in found:
                found[id(other)] = other
                pending.append(other)
    return list(found.values())[1:]


def _asked(declaration: Declaration) -> set[str]:
    # Names of the resources that are not bound.
    return {spec.name for node in declaration.nodes for spec in node.stage.resources
            if spec.name not in node.bound}  # fmt: skip


def _pipelines(values: list[object]) -> Iterator[Declaration]:
    seen: set[int] = set()
    while values:
        value = values.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            values.extend(_named_in(value))
        elif issubclass(type(value), HasDeclaration):  # A proxy's __class__ may raise.
            yield cast("HasDeclaration", value).declaration


def _named_in(fn: FunctionType) -> Iterator[object]:
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # Not filled yet.
            continue
    names, known = set(_names(fn.__code__)), fn.__globals__
    for name in names & set(known):
        value = known[name]
        if isinstance(value, FunctionType) and value.__module__ != fn.__module__:
            continue  # Another module's function is not searched; it may be a library's.
        yield value
        if isinstance(value, ModuleType):
            members = vars(value)
            yield from (m for other in names & set(members)
                        if not isinstance(m := members[other], FunctionType))  # fmt: skip


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
