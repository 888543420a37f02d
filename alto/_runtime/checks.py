"""Checks of the arguments of requests, made before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from alto._graph import check_input
from alto._graph.spec import Declaration
from alto.errors import Closed

__all__ = (
    "check_count",
    "check_function",
    "check_inputs",
    "check_loop",
    "check_open",
    "check_order",
    "check_priority",
    "check_timeout",
)


def check_inputs(declaration: Declaration, inputs: Sequence[object]) -> None:
    """Raise InputError unless the inputs fit the declaration."""
    for spec, value in zip(declaration.inputs, inputs, strict=True):
        check_input(declaration, spec, value)


def check_function(what: str, value: object) -> None:
    """Raise TypeError unless *value* is a bool or a callable."""
    if not isinstance(value, bool) and not callable(value):
        msg = f"{what} must be True, False or a function, not {value!r}"
        raise TypeError(msg)


def check_count(what: str, value: object) -> None:
    """Raise ValueError unless *value* is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{what} must be a whole number >= 1, not {value!r}"
        raise ValueError(msg)


def check_order(order: object) -> None:
    """Raise ValueError unless *order* is one of the two orders of results."""
    if order not in ("arrival", "ancestry"):
        msg = f"order= must be 'arrival' or 'ancestry', not {order!r}"
        raise ValueError(msg)


def check_timeout(what: str, timeout: object) -> None:
    """Raise ValueError unless *timeout* is None or a positive number of seconds."""
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < 1e9):
        msg = (
            f"{what} must be a number of seconds > 0 and < 1e9, or None for no limit, "
            f"not {timeout!r}"
        )
        raise ValueError(msg)


def check_priority(priority: object) -> None:
    """Raise TypeError unless *priority* is a whole number within the limits."""
    whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not whole or not -(10**9) <= cast("int", priority) <= 10**9:
        msg = (
            f"priority= must be a whole number from -10**9 to 10**9, lower runs earlier, "
            f"not {priority!r}"
        )
        raise TypeError(msg)


def check_open(name: str, state: str) -> None:
    """Raise Closed unless the app of pipeline *name* is open."""
    if state != "open":
        if state == "draining":
            msg = f"this app of {name!r} is being drained, and accepts no new requests"
            raise Closed(msg)
        if state == "loop closed":
            msg = (
                f"this app of {name!r} was closed when its event loop ended; open it, use it and "
                f"close it in one loop, as one `asyncio.run(main())` does"
            )
            raise Closed(msg)
        how = "is closed" if state == "closed" else "is not open yet"
        msg = f"this app of {name!r} {how}; use it inside `async with {name}.open(...) as app:`"
        raise Closed(msg)


def check_loop(name: str, loop: asyncio.AbstractEventLoop | None) -> None:
    """Raise RuntimeError unless the running event loop is the one that opened the app."""
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if not here:
        msg = (
            f"this app of {name!r} belongs to the event loop that opened it, and was called from "
            f"outside; from another thread use asyncio.run_coroutine_threadsafe(app.run(...), loop)"
        )
        raise RuntimeError(msg)
