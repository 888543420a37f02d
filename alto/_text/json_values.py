r"""Decode the text of one JSON value, strictly or as models write it.

Strict is RFC 8259: what ``json.loads`` accepts, but for ``NaN``, ``Infinity`` and numbers that are
too large for a float. Lenient accepts four faults besides, each of which has one reading only:

* control characters in a string, such as raw line breaks and tabs, which stand for themselves;
* a comma behind the last item of a list or the last field of an object, which is dropped;
* a backslash before a character that JSON does not escape, as in ``App\Http``, which stands for
  itself; ``\'`` is an apostrophe, as in Python and JavaScript;
* comments, ``//`` to the end of the line and ``/* */``, where white space may stand.

Valid JSON is decoded once, in both. The text of a lenient value that is no JSON is rewritten, in two
passes over it, and decoded again.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

__all__ = ("decode", "decode_lenient", "fault_of", "is_lenient")


def _refuse(word: str) -> NoReturn:
    msg = f"{word} is no JSON"
    raise ValueError(msg)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        msg = f"{digits[:30]} is too large for a float"
        raise ValueError(msg)
    return value


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_float).raw_decode
_LENIENT = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, strict=False).raw_decode

_OUTSIDE = re.compile(r'"|//[^\n\r]*|/\*.*?(?:\*/|\Z)', re.DOTALL).search
_INSIDE = re.compile(r'"|\\(?:u[0-9a-fA-F]{4}|.|\Z)', re.DOTALL).search
_COMMA = re.compile(
    r"""("[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{][ \t\n\r]*+,)|,(?=[ \t\n\r]*+[\]}])""", re.DOTALL
).sub


def decode(text: str, /) -> Any:  # noqa: ANN401  # JSON
    """Decode one value that has no white space around it.

    Raises:
        ValueError, RecursionError: The text is not one value, or Python cannot hold it; see
            :func:`fault_of`.
    """
    value, end = _STRICT(text)
    if end != len(text):
        msg = "Extra data"
        raise json.JSONDecodeError(msg, text, end)
    return value


def decode_lenient(text: str, /) -> Any:  # noqa: ANN401  # JSON
    """Decode one value, accepting the faults that the module's page lists. Raises the same."""
    try:
        value, end = _LENIENT(text)
    except json.JSONDecodeError:
        pass
    else:
        if end == len(text):
            return value
    repaired, shifts = _repair(text)
    try:
        value, end = _LENIENT(repaired)
    except json.JSONDecodeError as error:
        why, end = error.msg, error.pos
    else:
        if end == len(repaired):
            return value
        why = "Extra data"
    raise json.JSONDecodeError(why, text, end - sum(by for at, by in shifts if at < end))


def fault_of(error: ValueError | RecursionError, /) -> tuple[str, int]:
    """Return why a text could not be decoded, and at which of its characters."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg, error.pos
    return ("it is nested too deep" if isinstance(error, RecursionError) else str(error)), 0


def is_lenient(text: str, /) -> bool:
    """Return whether lenient decoding accepts this value."""
    try:
        decode_lenient(text)
    except (ValueError, RecursionError):
        return False
    return True


def _repair(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Rewrite a lenient value as JSON.

    Returns:
        The JSON, and for each place of it behind which it is longer or shorter than *text* the place
        and by how much.
    """
    parts: list[str] = []
    shifts: list[tuple[int, int]] = []
    done = shift = 0
    in_string = False
    while True:
        found = (_INSIDE if in_string else _OUTSIDE)(text, done)
        if found is None:
            break
        mark, new = found[0], found[0]
        if mark == '"':
            in_string = not in_string
        elif in_string:
            new = _escape(mark)
        else:
            new = " " * len(mark)  # a comment
        parts += text[done : found.start()], new
        done = found.end()
        if len(new) != len(mark):
            shifts.append((found.start() + shift, len(new) - len(mark)))
            shift += len(new) - len(mark)
    parts.append(text[done:])
    return _COMMA(lambda found: found[1] or " ", "".join(parts)), shifts


def _escape(mark: str) -> str:
    """Rewrite an escape that JSON does not know."""
    if mark == "\\'":
        return "'"
    return mark if len(mark) > 2 or mark[1:] in '"\\/bfnrt' else f"\\{mark}"
