"""Inner requests: pipelines that stages call."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

from alto._current_call import InnerRunner, current_call
from alto._graph.spec import Declaration, GroupOrder
from alto._runtime.call import active_call, enclosing_calls
from alto._runtime.handles import StreamHandle
from alto._runtime.request import Options, Request
from alto._runtime.resources import values_of_request
from alto._validate import check_order, check_timeout
from alto.errors import Closed

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("nested_run", "nested_stream")


def nested_stream(
    declaration: Declaration,
    inputs: Sequence[object],
    *,
    timeout: float | None = None,
    order: GroupOrder = "arrival",
) -> StreamHandle[Any]:
    """Start a request of *declaration* inside the running stage call, and return its handle.

    Raises:
        Closed: No stage call runs in this context, or it has ended or is cleaning up.
    """
    if (runner := _runner()) is not None:
        handle: StreamHandle[Any] = runner.stream(declaration, inputs)
        return handle
    return StreamHandle(_nested(declaration, inputs, order=order, timeout=timeout))


async def nested_run(
    declaration: Declaration, inputs: Sequence[object], *, timeout: float | None = None
) -> list[Any]:
    """Run a request of *declaration* inside the running stage call, and return all its results.

    Raises:
        Closed: No stage call runs in this context, or it has ended or is cleaning up.
    """
    if (runner := _runner()) is not None:
        return await runner.run(declaration, inputs)
    return await _nested(declaration, inputs, order=None, timeout=timeout).results()


def _runner() -> InnerRunner | None:
    call = current_call.get()
    return None if call is None else call.inner_runner


def _nested(
    declaration: Declaration,
    inputs: Sequence[object],
    *,
    order: GroupOrder | None,
    timeout: float | None,
) -> Request:
    call = active_call()
    if call is None:
        name = declaration.name
        if next(enclosing_calls(), None) is None:
            msg = (
                f"pipeline {name!r} is not open, and no stage runs here that could call it; "
                f"use `async with {name}.open(...) as app:` and app.stream(...) or app.run(...)"
            )
        else:
            msg = (
                f"pipeline {name!r} cannot be called while its stage call cleans up, or after that "
                f"has ended; call it before the stage's last output"
            )
        raise Closed(msg)
    if order is not None:
        check_order(order)
    check_timeout("timeout=", timeout)
    outer = cast("Request", call.run.request)
    given: Mapping[str, object] = outer.given
    options = Options(
        context=copy_context(),
        order=order,
        timeout=timeout,
        priority=outer.priority,
        given=given,
        values=values_of_request(declaration, given) if given else None,
    )
    return outer.app.inner(declaration, inputs, call, options)
