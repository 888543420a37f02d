"""Exceptions and values of others as text, whatever their own methods do."""

from __future__ import annotations

import contextlib
from typing import cast

__all__ = ("members", "message", "noted", "short", "shown", "told", "unwrapped")

_MOST_NAMED = 3
_MOST_TEXT = 200


def message(error: BaseException, /) -> str:
    """Return its message, or what is wrong with it where it has none that can be read."""
    try:
        return str(error)
    except Exception as fault:  # noqa: BLE001  # a message must not hide what it is about
        return f"(its __str__ raises {type(fault).__name__})"


def told(error: BaseException, /) -> str:
    """Return its type and its message; of a group, those of what it holds.

    A group of one is named as what it holds. Of a larger one, nested or not, three exceptions are
    named, and the others counted.
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
    """Return its ``repr``, or its type where that cannot be had."""
    try:
        return repr(value)
    except Exception as fault:  # noqa: BLE001  # as above
        return f"<{type(value).__name__} whose __repr__ raises {type(fault).__name__}>"


def short(value: object, /) -> str:
    """Return its ``repr``, cut to 60 characters, or its type where that cannot be had."""
    text = shown(value)
    return text if len(text) <= 60 else text[:57] + "..."


def noted(error: BaseException, note: str, /) -> None:
    """Add *note* to *error*, unless its class lets nobody set a field, as a frozen dataclass does."""
    with contextlib.suppress(Exception):
        error.add_note(note)


def unwrapped(error: BaseException, /) -> BaseException:
    """Return what a group of one holds, through groups of one in it; anything else as it is."""
    while isinstance(error, BaseExceptionGroup) and len(held := members(error)) == 1:
        (error,) = held
    return error


def members(group: BaseExceptionGroup[BaseException], /) -> tuple[BaseException, ...]:
    """Return the exceptions of a group, past what a subclass may have put in their place."""
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
