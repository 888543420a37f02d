"""Cut a text that grows into the values of its JSON.

Theory of operation. The text before the first ``[`` or ``{`` is skipped, since models like to say a word
before they answer. After a ``[`` the values are the items of that list, and what follows its end is
ignored. After a ``{`` they are that object and each object or list behind it, with anything between
them, so JSON lines are read too.

A value is known to be whole by its brackets and quotes alone; then the text of it is parsed, once. So
a string, an object or a list comes with the character that closes it, a number or a word
with the character after it, and a fault inside a value shows when the value is whole. Each character
is looked at once here and once by the parser.

Nothing here raises: after a fault :attr:`JsonSplitter.error` is set, and what comes then is not read.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import Any, NoReturn, final

from alto.errors import OutputError

__all__ = ("JsonSplitter",)

_OPENING = re.compile(r"[\[{]").search
_BLANK = re.compile(r"[ \t\n\r]*").match
_BRACKET = re.compile(r"[\"{}\[\]]").search
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL).match
_SCALAR_END = re.compile(r"[ \t\n\r,\]\[{}\":]").search

_NEAR = 30
"""Characters of context in a message."""


class _State(Enum):
    """Where the text is."""

    OUTSIDE = auto()
    """Before, between or behind values that are in no list."""
    FIRST = auto()
    """Where the first item of the list may begin."""
    ITEM = auto()
    """Where an item must begin."""
    BEHIND = auto()
    """Behind an item."""
    NESTED = auto()
    """In a string, an object or a list that is a value."""
    SCALAR = auto()
    """In a number or a word."""
    OVER = auto()
    """Behind the list, or a fault."""


def _refuse(word: str) -> NoReturn:
    msg = f"{word} is no JSON"
    raise ValueError(msg)


_DECODE = json.JSONDecoder(parse_constant=_refuse).decode


@final
class JsonSplitter:
    """Pieces are parsed values. See the module.

    Args:
        max_chars: Characters that the text of a value has at most; None: any number.
    """

    __slots__ = ("_depth", "_empty", "_escaped", "_in_list", "_in_string", "_last", "_length", "_max",
                 "_number", "_parts", "_seen", "_start", "_state", "error")  # fmt: skip

    def __init__(self, max_chars: int | None = None) -> None:
        self._max = max_chars
        self._seen = 0  # Characters before those that are being read.
        self._empty = True  # Whether nothing visible was there.
        self._in_list = False
        self._state = _State.OUTSIDE
        self._number = 0  # Of the value that comes or grows.
        self._start = 0  # Where in the whole text it begins.
        self._depth = 0
        self._in_string = False
        self._escaped = False  # Whether the next character of the string stands for itself.
        self._parts: list[str] = []
        self._length = 0
        self._last = ""  # The end of what was read of the list.
        self.error: OutputError | None = None
        """Why the text is not what it should be."""

    def feed(self, text: str, /) -> list[Any]:
        """More text.

        Returns:
            The values that are whole now.
        """
        out: list[Any] = []
        pos, size = 0, len(text)
        if self._empty and not text.isspace():
            self._empty = not text
        while pos < size:
            match self._state:
                case _State.NESTED:
                    pos = self._nested(text, pos, out)
                case _State.SCALAR:
                    pos = self._scalar(text, pos, out)
                case _State.OUTSIDE:
                    pos = self._outside(text, pos)
                case _State.OVER:
                    break
                case _:
                    pos = self._between(text, pos)
        self._seen += size
        return out

    def flush(self) -> list[Any]:
        """The text has ended: whatever is not whole is a fault.

        Returns:
            Nothing, since what is whole has been given.
        """
        state, what = self._state, f"item {self._number}"
        if state in (_State.NESTED, _State.SCALAR):
            self._fail(f"the text ended inside {what}", self._start, "".join(self._parts))
        elif state is _State.OUTSIDE and not self._number and not self._empty:
            self._fail("there is no '[' and no '{' in the text", self._seen, "")
        elif state in (_State.FIRST, _State.ITEM, _State.BEHIND):
            self._fail(f"the text ended before its list was closed, at {what}", self._seen, "")
        return []

    def _outside(self, text: str, pos: int) -> int:
        found = _OPENING(text, pos)
        if found is None:
            return len(text)
        pos = found.start()
        if text[pos] == "[" and not self._number:
            self._in_list = True
            self._state = _State.FIRST
            self._last = "["
            return pos + 1
        self._begin(pos)
        return pos

    def _begin(self, pos: int) -> None:
        self._state = _State.NESTED
        self._start = self._seen + pos
        self._depth = self._length = 0

    def _between(self, text: str, pos: int) -> int:
        blank = _BLANK(text, pos)
        assert blank is not None
        pos = blank.end()
        if pos == len(text):
            return pos
        this, state = text[pos], self._state
        if this == "]" and state is not _State.ITEM:
            self._state = _State.OVER
        elif state is _State.BEHIND:
            if this != ",":
                self._unexpected("',' or ']'", pos, this)
            self._state = _State.ITEM if this == "," else _State.OVER
            self._last = ","
        elif this in ",:]}":
            self._unexpected("a value", pos, this)
        else:
            self._begin(pos)
            if this not in '"[{':
                self._state = _State.SCALAR
            return pos
        return pos + 1

    def _nested(self, text: str, pos: int, out: list[Any]) -> int:
        start, size = pos, len(text)
        while pos < size:
            if self._in_string:
                pos = self._string(text, pos)
                if self._in_string:
                    break
            else:
                found = _BRACKET(text, pos)
                if found is None:
                    break
                pos = found.end()
                this = found[0]
                if this == '"':
                    self._in_string = True
                    continue
                self._depth += 1 if this in "[{" else -1
            if not self._depth:
                if self._take(text[start:pos]):
                    self._finish(out)
                return pos
        self._take(text[start:])
        return size

    def _string(self, text: str, pos: int) -> int:
        """Read on in a string. Returns where it ends, or where the text does."""
        if self._escaped:
            self._escaped = False
            pos += 1
        rest = _IN_STRING(text, pos)
        assert rest is not None
        pos = rest.end()
        if pos < len(text):
            self._in_string = text[pos] != '"'
            self._escaped = self._in_string
            pos += 1
        return pos

    def _scalar(self, text: str, pos: int, out: list[Any]) -> int:
        found = _SCALAR_END(text, pos)
        end = len(text) if found is None else found.start()
        if self._take(text[pos:end]) and found is not None:
            self._finish(out)
        return end

    def _take(self, part: str) -> bool:
        """*part* belongs to the value. Whether that is not too long by now."""
        self._parts.append(part)
        self._length += len(part)
        if self._max is None or self._length <= self._max:
            return True
        why = f"item {self._number} is longer than max_chars={self._max}"
        text = "".join(self._parts)[: self._max + 1]  # the same, however the text came
        self._fail(f"{why}; raise it, or ask for smaller items", self._start, text)
        return False

    def _finish(self, out: list[Any]) -> None:
        raw = "".join(self._parts)
        self._parts.clear()
        fault: Exception
        try:
            out.append(_DECODE(raw))
        except json.JSONDecodeError as error:
            fault, why, at = error, error.msg, error.pos
        except (ValueError, RecursionError) as error:  # a number or nesting that Python refuses
            fault, at = error, 0
            why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        else:
            self._number += 1
            self._last = raw[-_NEAR:]
            self._state = _State.BEHIND if self._in_list else _State.OUTSIDE
            return
        near = raw[max(0, at - _NEAR) : at + _NEAR]
        self._fail(
            f"item {self._number} is no JSON ({why}), near {near!r}", self._start + at, raw, fault
        )

    def _unexpected(self, expected: str, pos: int, this: str) -> None:
        why = f"expected {expected} and found {this!r} after {self._last!r}"
        self._fail(f"{why}, at item {self._number}", self._seen + pos, "")

    def _fail(self, why: str, at: int, text: str, cause: Exception | None = None) -> None:
        self._state = _State.OVER
        self._parts.clear()
        self.error = OutputError(f"{why}; character {at} of the text", text=text)
        self.error.__cause__ = cause
