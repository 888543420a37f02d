"""What a stage may be told beside its signature."""

from __future__ import annotations

import inspect
from typing import Final, get_args

import attrs

from alto._graph.declaration import check_name
from alto._graph.spec import GroupOrder, OwnExecutor, RunsIn
from alto.errors import GraphError
from alto.protocols import Executor, Router

__all__ = ("DEFAULT_CONCURRENCY", "StageOptions", "stage_options")

DEFAULT_CONCURRENCY: Final = 32
"""Calls of a replica that run at once, where it does not say."""


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
        """The short name of where it runs; None: in an executor that is not alto's."""
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
    """Look at the options of a stage.

    Raises:
        GraphError: One cannot be; the message names it and what it may be.
    """
    check_name("stage", name)
    if order not in get_args(GroupOrder):
        msg = f"@stage(order=...) must be 'ancestry' or 'arrival', not {order!r}"
        raise GraphError(msg)
    _check_runs_in(runs_in)
    in_process = _short_name(runs_in) == "process"
    if concurrency is None:
        concurrency = 1 if in_process else DEFAULT_CONCURRENCY
    at_once, instances = _count("concurrency", concurrency), _count("replicas", replicas)
    if in_process and at_once > 1:
        msg = (
            "@stage(runs_in='process') runs one call at a time in each process; for more at once "
            "write replicas=..., and leave concurrency out"
        )
        raise GraphError(msg)
    if router is not None and (isinstance(router, type) or not isinstance(router, Router)):
        made = f", made: {router.__name__}()" if isinstance(router, type) else ""
        msg = (
            f"@stage(router=...) must be a router{made}, such as alto.routing.RoundRobin(), or any "
            f"object with a method choose(item, replicas), not {router!r}"
        )
        raise GraphError(msg)
    if router is not None:
        _check_choose(router)
    return StageOptions(
        concurrency=at_once, order=order, name=name, replicas=instances,
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
    except ValueError:  # Written in C, and does not say.
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
    except ValueError:  # Written in C, and does not say.
        return


def _count(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"@stage({option}=...) must be a whole number >= 1, not {value!r}"
        raise GraphError(msg)
    return value
