"""What requests are given, checked before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from alto._declare import check_input
from alto._spec import Declaration, GroupOrder

__all__ = ("check_count", "check_function", "check_inputs", "check_options", "check_priority")


def check_inputs(declaration: Declaration, inputs: Sequence[object]) -> None:
    """Refuse inputs that do not fit the declaration."""
    for spec, value in zip(declaration.inputs, inputs, strict=True):
        check_input(declaration, spec, value)


def check_function(what: str, value: object) -> None:
    """Refuse what is neither a switch nor a function."""
    if not isinstance(value, bool) and not callable(value):
        msg = f"{what} must be True, False or a function, not {value!r}"
        raise TypeError(msg)


def check_count(what: str, value: object) -> None:
    """Refuse what is no whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{what} must be a whole number >= 1, not {value!r}"
        raise ValueError(msg)


def check_options(order: GroupOrder | None, timeout: object) -> None:
    """Refuse an unknown order, and a timeout that is no number of seconds."""
    if order not in ("arrival", "ancestry", None):
        msg = f"order= must be 'arrival' or 'ancestry', not {order!r}"
        raise ValueError(msg)
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < 1e9):
        msg = f"timeout= must be a number of seconds > 0, or None, not {timeout!r}"
        raise ValueError(msg)


def check_priority(priority: object) -> None:
    """Refuse a priority that is no whole number."""
    whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not whole or not -(10**9) <= cast("int", priority) <= 10**9:
        msg = f"priority= must be a whole number, lower runs earlier, not {priority!r}"
        raise TypeError(msg)
