"""Pipelines that stages call, and the resources that those need.

Which pipelines a stage will call is known only when it runs. But ``open()`` must tell a resource
for one of them from a name that is spelt wrongly. So it looks at which pipelines the code of the
stages mentions by name. This decides nothing but whether a name is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import CodeType, ModuleType

from alto._spec import Declaration

__all__ = ("own_resources",)


def own_resources(
    declaration: Declaration, resources: Mapping[str, object]
) -> Mapping[str, object]:
    """*resources* without those that only pipelines which its stages mention ask for."""
    asked = _asked(declaration)
    if asked.issuperset(resources):
        return resources
    nested = {
        name for other in _mentioned(declaration, {id(declaration)}) for name in _asked(other)
    }
    return {name: v for name, v in resources.items() if name in asked or name not in nested}


def _asked(declaration: Declaration) -> set[str]:
    return {spec.name for node in declaration.nodes for spec in node.stage.resources}


def _mentioned(declaration: Declaration, seen: set[int]) -> Iterator[Declaration]:
    for node in declaration.nodes:
        for value in _values(node.stage.fn):
            kind = type(value)
            if (kind.__module__, kind.__name__) != ("alto.pipeline", "Pipeline"):
                continue
            other = value.declaration  # type: ignore[attr-defined]  # a floor above this one
            if isinstance(other, Declaration) and id(other) not in seen:
                seen.add(id(other))
                yield other
                yield from _mentioned(other, seen)


def _values(fn: Callable[..., object]) -> Iterator[object]:
    code = getattr(fn, "__code__", None)
    if not isinstance(code, CodeType):
        return
    for cell in getattr(fn, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # Not filled yet.
            continue
    names, known = set(_names(code)), getattr(fn, "__globals__", {})
    for name in names & set(known):
        value = known[name]
        yield value
        if isinstance(value, ModuleType):
            yield from (vars(value)[other] for other in names & set(vars(value)))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
