"""What a stage may be told beside its signature."""

from __future__ import annotations

import inspect
from typing import Final, get_args

import attrs

from alto._core.binding import Router
from alto._declare.shape import check_name
from alto._spec import GroupOrder, RunsIn
from alto.errors import GraphError

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
    runs_in: RunsIn


def stage_options(
    *,
    concurrency: int | None,
    order: GroupOrder,
    name: str | None,
    replicas: int,
    router: object,
    runs_in: RunsIn,
) -> StageOptions:
    """Look at the options of a stage.

    Raises:
        GraphError: One cannot be; the message names it and what it may be.
    """
    check_name("stage", name)
    if order not in get_args(GroupOrder):
        msg = f"@stage(order=...) must be 'ancestry' or 'arrival', not {order!r}"
        raise GraphError(msg)
    if runs_in not in get_args(RunsIn):
        msg = f"@stage(runs_in=...) must be 'loop', 'thread' or 'process', not {runs_in!r}"
        raise GraphError(msg)
    if concurrency is None:
        concurrency = 1 if runs_in == "process" else DEFAULT_CONCURRENCY
    at_once, instances = _count("concurrency", concurrency), _count("replicas", replicas)
    if runs_in == "process" and at_once > 1:
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
