"""What `json_items` should give for a whole text, written with the standard library and no chunks."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

BLANK = " \t\n\r"


def _constant(word: str) -> NoReturn:
    raise ValueError(word)


def _finite(digits: str) -> float:
    if math.isinf(float(digits)):
        raise ValueError(digits)
    return float(digits)


STRICT = json.JSONDecoder(parse_constant=_constant, parse_float=_finite)


class Lenient:
    """A reader of one lenient value, character by character; raises ValueError or IndexError."""

    def __init__(self, text: str) -> None:
        self.text = text

    def blank(self, pos: int) -> int:
        """Return the place of the next token."""
        text = self.text
        while pos < len(text):
            if text[pos] in BLANK:
                pos += 1
            elif text.startswith("//", pos):
                while pos < len(text) and text[pos] not in "\n\r":
                    pos += 1
            elif text.startswith("/*", pos):
                pos = text.index("*/", pos + 2) + 2
            else:
                break
        return pos

    def value(self, pos: int) -> tuple[Any, int]:
        """The value there, and where it ends."""
        this = self.text[pos]
        if this == '"':
            return self.string(pos)
        if this not in "[{":
            found = re.compile(r'[^ \t\n\r,\]\[{}":/]*').match(self.text, pos)
            assert found is not None
            return STRICT.decode(found[0]), found.end()
        out: list[Any] = []
        close, pos = "]" if this == "[" else "}", self.blank(pos + 1)
        while self.text[pos] != close:
            if this == "{":
                if self.text[pos] != '"':
                    raise ValueError(pos)
                name, pos = self.string(pos)
                pos = self.blank(pos)
                if self.text[pos] != ":":
                    raise ValueError(pos)
                value, pos = self.value(self.blank(pos + 1))
                out.append((name, value))
            else:
                value, pos = self.value(pos)
                out.append(value)
            pos = self.blank(pos)
            if self.text[pos] == ",":
                pos = self.blank(pos + 1)
            elif self.text[pos] != close:
                raise ValueError(pos)
        return (out if this == "[" else dict(out)), pos + 1

    def string(self, pos: int) -> tuple[str, int]:
        """The string there, and where it ends."""
        text, plain, pos = self.text, '"', pos + 1
        while text[pos] != '"':
            if text[pos] != "\\":
                plain += text[pos]
                pos += 1
            elif text[pos + 1] == "'":
                plain += "'"
                pos += 2
            elif text[pos + 1] in '"\\/bfnrt':
                plain += text[pos : pos + 2]
                pos += 2
            elif re.fullmatch("u[0-9a-fA-F]{4}", text[pos + 1 : pos + 6]):
                plain += text[pos : pos + 6]
                pos += 6
            else:
                plain += "\\\\" + text[pos + 1]
                pos += 2
        return json.loads(plain + '"', strict=False), pos + 1


def items(text: str, pos: int, *, lenient: bool) -> tuple[list[Any], int | None]:
    """The items of the list that begins there, and where it ends; None: that it does not."""
    reader, out = Lenient(text), []
    ends = f'{BLANK},]{{}}[":' + ("/" if lenient else "")

    def blank(pos: int) -> int:
        if lenient:
            return reader.blank(pos)
        return next((at for at in range(pos, len(text)) if text[at] not in BLANK), len(text))

    try:
        pos = blank(pos + 1)
        while text[pos] != "]" or (out and not lenient):
            if text[pos] in ",:}":
                return out, None
            value, end = reader.value(pos) if lenient else STRICT.raw_decode(text, pos)
            if text[pos] not in '"[{' and text[end] not in ends:
                return out, None
            out.append(value)
            pos = blank(end)
            if text[pos] == ",":
                pos = blank(pos + 1)
            elif text[pos] == "]":
                break
            else:
                return out, None
    except (ValueError, IndexError):
        return out, None
    return out, pos + 1


def values(
    text: str, *, lenient: bool = False, after: str | None = None, first: bool = False
) -> tuple[list[Any], bool]:
    """The values of *text*, and whether it has no fault."""
    if after is not None:
        _, found, text = text.partition(after)
        if not found:
            return [], False
    opening = re.compile(r"[\[{]").search
    at = opening(text)
    if at is None:
        return [], not text.strip() and after is None
    if at[0] == "[":
        found_items, end = items(text, at.start(), lenient=lenient)
        return found_items, end is not None and (first or opening(text, end) is None)
    out: list[Any] = []
    while at is not None:
        if at[0] == "[":
            return out, False
        try:
            decode = Lenient(text).value if lenient else lambda pos: STRICT.raw_decode(text, pos)
            value, end = decode(at.start())
        except (ValueError, IndexError):
            return out, False
        out.append(value)
        at = None if first else opening(text, end)
    return out, True
