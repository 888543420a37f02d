"""Resources that one request has for itself."""

from __future__ import annotations

from collections.abc import Mapping

from alto._declare import check_resource
from alto._declare.models import engines_in, with_handles
from alto._run.resources import runs
from alto._spec import Declaration, PerReplica
from alto.errors import ResourceError
from alto.protocols import Engine

__all__ = ("values_of_request",)


def values_of_request(
    declaration: Declaration, given: Mapping[str, object]
) -> tuple[Mapping[str, object] | None, ...]:
    """Give, per stage of *declaration*, the resources among *given* that it takes; None: none.

    A resource that ``bind`` has fixed for a stage stays.

    Raises:
        ResourceError: A value is of a wrong type, is an engine that does not run, or is to be made
            per replica.
    """
    for name, value in given.items():
        if isinstance(value, PerReplica):
            msg = (
                f"using({name}=...): per_replica(...) makes a resource for each replica, and a "
                f"request has none of its own; give it to open()"
            )
            raise ResourceError(msg)
    values: list[Mapping[str, object] | None] = []
    for node in declaration.nodes:
        own = {}
        for spec in node.stage.resources:
            if spec.name in given and spec.name not in node.bound:
                check_resource(node.stage.name, spec, given[spec.name])
                for engine in engines_in(given[spec.name], spec.type):
                    _check_running(spec.name, engine)
                own[spec.name] = given[spec.name]
        values.append(with_handles(node, own) if own else None)
    return tuple(values)


def _check_running(name: str, engine: Engine) -> None:
    if not runs(engine):
        msg = (
            f"using({name}=...): engine {engine.name!r} is not running, and a request does not "
            f"start engines; start it first, with `async with engine:` or engine.start()"
        )
        raise ResourceError(msg)
