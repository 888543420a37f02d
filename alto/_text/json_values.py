r"""Decode the text of one JSON value, strictly or as models write it.

Strict is RFC 8259: what ``json.loads`` accepts, except ``NaN``, ``Infinity`` and numbers that are
too large for a float. Lenient also accepts four faults, each of which has only one meaning:

* control characters in a string, such as raw line breaks and tabs, which stand for themselves;
* a comma after the last item of a list or the last field of an object, which is dropped;
* a backslash before a character that JSON does not escape, as in ``App\Http``, which stands for
  itself; ``\'`` is an apostrophe, as in Python and JavaScript;
* comments, ``//`` to the end of the line and ``/* */``, wherever white space may be.

Both decode valid JSON once. Lenient rewrites the text of a value that is no JSON, in two
passes over it, and decodes it again.
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
    """Decode one value without surrounding white space.

    Raises:
        ValueError: The text is not one value, or has a number that Python cannot hold.
        RecursionError: It is nested too deep. :func:`fault_of` reads both.
    """
    value, end = _STRICT(text)
    if end != len(text):
        msg = "Extra data"
        raise json.JSONDecodeError(msg, text, end)
    return value


def decode_lenient(text: str, /) -> Any:  # noqa: ANN401  # JSON
    """Decode one value with the faults listed at the head of the module. Raises as :func:`decode`."""
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
    """Return the reason why a text could not be decoded, and the index of the character."""
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
        The JSON, and the places in it after which it is longer or shorter than *text*, each with the
        difference in characters.
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
