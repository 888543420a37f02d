"""Checks of single arguments: whole numbers, numbers, durations, choices. They know no types of alto.

Each names the argument in its message as the caller writes it, such as ``open(capacity=...)``, and
says what is allowed and what was given.
"""

from __future__ import annotations

import math
from typing import TypeGuard

__all__ = (
    "check_count",
    "check_finite",
    "check_bool_or_function",
    "check_order",
    "check_priority",
    "check_size",
    "check_timeout",
    "is_number",
    "is_whole",
)


def is_whole(value: object, least: float = -math.inf, most: float = math.inf, /) -> TypeGuard[int]:
    """Return whether *value* is a whole number from *least* to *most*. A bool is not a number."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, /) -> TypeGuard[float]:
    """Return whether *value* is an int or a float. A bool is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_count(name: str, value: object, error: type[Exception] = ValueError) -> None:
    """Raise *error* unless *value* is a whole number >= 1."""
    if not is_whole(value, 1):
        msg = f"{name} must be a whole number >= 1, not {value!r}"
        raise error(msg)


def check_size(name: str, value: object) -> None:
    """Raise a TypeError unless *value* is a whole number, and a ValueError if it is below 1."""
    if not is_whole(value):
        msg = f"{name} must be a whole number, not {value!r}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be at least 1, not {value}"
        raise ValueError(msg)


def check_finite(name: str, value: object, *, zero: bool, unit: str = "") -> None:
    """Raise a TypeError unless *value* is a number, and a ValueError unless it is finite and positive.

    Args:
        name: The argument.
        value: Its value.
        zero: Whether 0 is allowed.
        unit: Unit to name in the message, such as ``" of seconds"``.
    """
    if not is_number(value):
        msg = f"{name} must be a number{unit}, not {value!r}"
        raise TypeError(msg)
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        least = "at least" if zero else "above"
        msg = f"{name} must be finite and {least} 0, not {value!r}"
        raise ValueError(msg)


def check_timeout(name: str, timeout: object) -> None:
    """Raise a ValueError unless *timeout* is None or a number of seconds above 0 and below 1e9."""
    if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout < 1e9):
        msg = (
            f"{name} must be a number of seconds > 0 and < 1e9, or None for no limit, "
            f"not {timeout!r}"
        )
        raise ValueError(msg)


def check_priority(priority: object) -> None:
    """Raise a TypeError unless *priority* is a whole number from -10**9 to 10**9."""
    if not is_whole(priority, -(10**9), 10**9):
        msg = (
            f"priority= must be a whole number from -10**9 to 10**9, lower runs earlier, "
            f"not {priority!r}"
        )
        raise TypeError(msg)


def check_order(order: object) -> None:
    """Raise a ValueError unless *order* is an order of results."""
    if order not in ("arrival", "ancestry"):
        msg = f"order= must be 'arrival' or 'ancestry', not {order!r}"
        raise ValueError(msg)


def check_bool_or_function(name: str, value: object) -> None:
    """Raise a TypeError unless *value* is a bool or a function."""
    if not isinstance(value, bool) and not callable(value):
        msg = f"{name} must be True, False or a function, not {value!r}"
        raise TypeError(msg)
