"""Resources that one request has for itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from alto._graph import check_resource
from alto._graph.models import engines_in, with_handles
from alto._graph.resources import refuse_unknown
from alto._graph.spec import Declaration, PerReplica
from alto._runtime.resources import runs
from alto.errors import ResourceError
from alto.protocols import Engine

__all__ = ("check_inner", "check_names", "values_of_request")


def check_names(
    declaration: Declaration, others: Sequence[Declaration], names: Iterable[str]
) -> None:
    """Refuse a name that no stage takes, of a pipeline or of *others* that its stages call.

    Raises:
        ResourceError: It says which names there are, or that ``bind`` has fixed it.
    """
    pipelines = (declaration, *others)
    taken = {name for one in pipelines for name in _taken(one)}
    asked = {spec.name for one in pipelines for node in one.nodes for spec in node.stage.resources}
    for name in names:
        if name in taken:
            continue
        if name in asked:
            msg = (
                f"using({name}=...): bind({name}=...) has fixed it in every stage of pipeline "
                f"{declaration.name!r} that takes it; leave it out, or bind only where it must stay"
            )
            raise ResourceError(msg)
        refuse_unknown(name, taken, f"pipeline {declaration.name!r}")


def check_inner(
    declaration: Declaration, others: Sequence[Declaration], given: Mapping[str, object]
) -> None:
    """Refuse a value that only pipelines which stages call take, and that fits none of them.

    Which of them will be called is not known: one that a value does not fit refuses it then.

    Raises:
        ResourceError: As :func:`values_of_request`.
    """
    for name in given.keys() - _taken(declaration):
        refusals: list[ResourceError] = []
        takers = [other for other in others if name in _taken(other)]
        for taker in takers:
            try:
                values_of_request(taker, {name: given[name]})
            except ResourceError as error:
                refusals.append(error)
        if len(refusals) == len(takers):
            raise refusals[0]


def _taken(declaration: Declaration) -> set[str]:
    return {spec.name for node in declaration.nodes for spec in node.stage.resources
            if spec.name not in node.bound}  # fmt: skip


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
