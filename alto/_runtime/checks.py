"""Checks of the arguments of requests, made before anything is started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from alto._graph import check_input
from alto._graph.spec import Declaration
from alto.errors import Closed

__all__ = (
    "check_inputs",
    "check_loop",
    "check_open",
)


def check_inputs(declaration: Declaration, inputs: Sequence[object]) -> None:
    """Raise InputError unless the inputs fit the declaration."""
    for spec, value in zip(declaration.inputs, inputs, strict=True):
        check_input(declaration, spec, value)


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
