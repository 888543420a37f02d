"""Safe text for exceptions and values, even where their own ``__str__`` or ``__repr__`` raises."""

from __future__ import annotations

import contextlib
from typing import cast

__all__ = ("members", "message", "noted", "short", "shown", "told", "unwrapped")

_MOST_NAMED = 3
_MOST_TEXT = 200


def message(error: BaseException, /) -> str:
    """Return the message of *error*, or a note about its ``__str__`` if that raises."""
    try:
        return str(error)
    except Exception as fault:  # noqa: BLE001  # reporting an error must not raise another one
        return f"(its __str__ raises {type(fault).__name__})"


def told(error: BaseException, /) -> str:
    """Return the type and message of *error*; of a group, those of its exceptions.

    A group of one is described as the exception in it. Of a larger group, nested or not, the first
    three exceptions are named and the others counted.
    """
    error = unwrapped(error)
    if not isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}: {message(error)}"
    leaves = _leaves(error)
    named = "; ".join(_cut(f"{type(one).__name__}: {message(one)}") for one in leaves[:_MOST_NAMED])
    more = f"; and {len(leaves) - _MOST_NAMED} more" if len(leaves) > _MOST_NAMED else ""
    title = _cut(cast("str", vars(BaseExceptionGroup)["message"].__get__(error)))
    return f"{type(error).__name__}: {title} ({len(leaves)} exceptions: {named}{more})"


def shown(value: object, /) -> str:
    """Return the ``repr`` of *value*, or its type if that raises."""
    try:
        return repr(value)
    except Exception as fault:  # noqa: BLE001  # reporting a value must not raise either
        return f"<{type(value).__name__} whose __repr__ raises {type(fault).__name__}>"


def short(value: object, /) -> str:
    """Return the ``repr`` of *value*, cut to 60 characters, or its type if ``repr`` raises."""
    text = shown(value)
    return text if len(text) <= 60 else text[:57] + "..."


def noted(error: BaseException, note: str, /) -> None:
    """Add *note* to *error*, unless its class forbids setting fields, as a frozen dataclass does."""
    with contextlib.suppress(Exception):
        error.add_note(note)


def unwrapped(error: BaseException, /) -> BaseException:
    """Return the one exception in nested groups of one; any other exception as it is."""
    while isinstance(error, BaseExceptionGroup) and len(held := members(error)) == 1:
        (error,) = held
    return error


def members(group: BaseExceptionGroup[BaseException], /) -> tuple[BaseException, ...]:
    """Return the exceptions of a group, even if a subclass overrides the attribute."""
    return cast("tuple[BaseException, ...]", vars(BaseExceptionGroup)["exceptions"].__get__(group))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    left: list[BaseException] = [group]
    while left:  # A loop, since groups may be nested deeper than Python recurses.
        error = left.pop()
        if isinstance(error, BaseExceptionGroup):
            left.extend(reversed(members(error)))
        else:
            found.append(error)
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
