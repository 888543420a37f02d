"""Exceptions and values of others as text, whatever their own methods do."""

from __future__ import annotations

__all__ = ("message", "shown", "told")


def message(error: BaseException, /) -> str:
    """Its message; what is wrong with it where it has none that can be read."""
    try:
        return str(error)
    except Exception as fault:  # noqa: BLE001  # a message must not hide what it is about
        return f"(its __str__ raises {type(fault).__name__})"


def told(error: BaseException, /) -> str:
    """Its type and its message."""
    return f"{type(error).__name__}: {message(error)}"


def shown(value: object, /) -> str:
    """Its ``repr``, or its type where that cannot be had."""
    try:
        return repr(value)
    except Exception as fault:  # noqa: BLE001  # as above
        return f"<{type(value).__name__} whose __repr__ raises {type(fault).__name__}>"
