"""Split a growing text into the values of its JSON.

A fence is three backticks or more with only white space before them on their line. Outside a
block it begins one, and the word after it, if any, names a language. In a block it ends
the block, unless a word follows directly: then it begins another. A block of another language than
JSON is skipped. In a block of JSON, backticks need not be at the beginning of a line, since
models also write the list and its fences in one line.

Theory of operation. Text outside JSON is skipped up to the first ``[`` or ``{``, since models often
write an introduction. After a ``[`` the values are the items of that list. After a ``{`` they
are that object and each later object, with anything between them, so JSON lines are read too.
With ``field`` the text is one object, and the values are the items of the list in that field.

A ``[1]`` that cites a source looks like a list of one number, so nothing is guessed: any
other ``[`` or ``{`` after a list is an error, and so is a ``[`` after objects. Values that have been given
cannot be taken back, but a caller that reads to the end knows that they were all there was. The caller
chooses where to look: after a literal text, in code blocks, or at the first list or object.

Brackets and quotes alone show that a value is complete; then its text is parsed, once. So
a string, an object or a list is given with the character that closes it, a number or a word
with the next character, and a fault inside a value is found when the value is complete. Each character
is read once here and once by the parser, whatever the chunks.

No method raises: after a fault :attr:`JsonSplitter.error` is set, and later text is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, final

from alto._text.json_values import decode, decode_lenient, fault_of, is_lenient
from alto.errors import OutputError

__all__ = ("Fences", "JsonSplitter")

_FENCE_MARK = re.compile(r"[\n`\[{]").search
_INDENT = re.compile(r"[^\S\n]*").match
_WORD = re.compile(r"[^\s`\[{]*").match
_LONGEST_WORD = 20
"""Characters of a language's name that are kept."""


@final
class Fences:
    """Finder of JSON in fenced code blocks: tracks blocks and lines outside JSON values."""

    __slots__ = ("_beginning", "_in_block", "_in_json", "_ticks", "_word")

    def __init__(self) -> None:
        self._in_block = False
        self._in_json = False
        self._beginning = True  # The line has only white space so far.
        self._ticks = 0  # Backticks directly before this place.
        self._word: str | None = None  # The word after a fence, while it is read.

    def find(self, text: str, pos: int, /) -> int:
        """Read *text* from *pos* on, outside any value.

        Returns:
            The place of the next ``[`` or ``{`` in a block of JSON; without one, the length of *text*.
        """
        size = len(text)
        while pos < size:
            if self._word is not None:
                pos = self._read_word(text, pos, self._word)
                continue
            if self._beginning:
                blank = _INDENT(text, pos)
                assert blank is not None
                if blank.end() > pos:
                    self._beginning = not self._ticks
                    self._ticks = 0
                    pos = blank.end()
                    continue
            this = text[pos]
            if this == "`" and (self._beginning or self._in_json):
                self._ticks += 1
                if self._ticks == 3:
                    self._word = ""
                pos += 1
                continue
            self._ticks = 0
            self._beginning = this == "\n"
            if this in "[{" and self._in_json:
                return pos
            pos += 1
            if not self._beginning:
                pos = self._rest(text, pos)
        return size

    def _rest(self, text: str, pos: int) -> int:
        """Return the next place in the line that may change the state."""
        if self._in_json:
            found = _FENCE_MARK(text, pos)
            return len(text) if found is None else found.start()
        at = text.find("\n", pos)
        return len(text) if at < 0 else at

    def _read_word(self, text: str, pos: int, word: str) -> int:
        """Read the word after a fence, and begin or end a block at the end of the word."""
        if not word:
            if text[pos] == "`":  # a fence of more than three
                return pos + 1
            blank = None if self._in_block else _INDENT(text, pos)
            if blank is not None and blank.end() > pos:
                return blank.end()
        found = _WORD(text, pos)
        assert found is not None
        self._word = (word + found[0])[:_LONGEST_WORD]
        if found.end() < len(text):
            self._in_block = bool(self._word) or not self._in_block
            self._in_json = self._in_block and (not self._word or "json" in self._word.lower())
            self._word = None
            self._ticks = 0
            self._beginning = False
        return found.end()


_OPENING = re.compile(r"[\[{]").search
_BLANK = re.compile(r"[ \t\n\r]*").match
_MARK = re.compile(r"[\"{}\[\]]").search
_MARK_OR_COMMENT = re.compile(r"[\"{}\[\]/]").search
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL).match
_SCALAR_END = re.compile(r"[ \t\n\r,\]\[{}\":]").search
_SCALAR_OR_COMMENT = re.compile(r"[ \t\n\r,\]\[{}\":/]").search
_LINE_END = re.compile(r"[\n\r]").search

_NEAR = 30
"""Characters of context in a message."""
_USE_LENIENT = "; lenient=True accepts it"
_SHOWN = 10
"""Names of fields in a message, at most."""
_KINDS = {'"': "a string", "{": "an object", "[": "a list"}
"""Kinds of values by their first character, for messages."""


class _State(Enum):
    """State of the splitter: what the next character may be."""

    OUTSIDE = auto()
    """Outside JSON: before, between or after it."""
    FIRST = auto()
    """The first item of the list, or its end."""
    ITEM = auto()
    """An item."""
    AFTER_ITEM = auto()
    """A comma, or the end of the list."""
    FIRST_NAME = auto()
    """The first field of an object on the way to the list, or the end of the object."""
    NAME = auto()
    """A field."""
    COLON = auto()
    """The colon after the name of a field."""
    FIELD = auto()
    """The value of a field."""
    AFTER_FIELD = auto()
    """A comma, or the end of the object."""
    NESTED = auto()
    """The rest of a string, an object or a list that is a value."""
    SCALAR = auto()
    """The rest of a number or a word."""
    OVER = auto()
    """Anything, since nothing more is read: the JSON or the text has ended, or has a fault."""


class _Role(Enum):
    """Role of the value that is being read."""

    ITEM = auto()
    NAME = auto()
    OTHER = auto()
    """The value of a field that is dropped."""


_EXPECTED = {
    _State.FIRST: "a value",
    _State.ITEM: "a value",
    _State.FIELD: "a value",
    _State.AFTER_ITEM: "',' or ']'",
    _State.FIRST_NAME: "the name of a field",
    _State.NAME: "the name of a field",
    _State.COLON: "':'",
    _State.AFTER_FIELD: "',' or '}'",
}
"""The states between values, and what may follow, for messages."""


@final
class JsonSplitter:
    """Splitter into parsed values of JSON, by the rules at the head of the module.

    Args:
        max_chars: Most characters of the text of a value; None: any number.
        after: Skip the text up to the end of the first occurrence of this; None: begin at once.
        fenced: Look only inside fenced code blocks of JSON.
        field: The names that lead to the list, if it is in an object.
        first: Ignore the text after the first list or object.
        lenient: Accept the faults that `alto._text.json_values` lists.
    """

    __slots__ = ("_after", "_comment", "_decode", "_depth", "_escaped", "_fences", "_field", "_first", "_found",
                 "_in_list", "_in_string", "_kind", "_last", "_length", "_lenient", "_mark", "_max", "_name",
                 "_names", "_number", "_parts", "_role", "_scalar_end", "_seen", "_sought", "_start", "_state",
                 "_tail", "_worded", "error")  # fmt: skip

    def __init__(
        self,
        max_chars: int | None = None,
        *,
        after: str | None = None,
        fenced: bool = False,
        field: Sequence[str] = (),
        first: bool = False,
        lenient: bool = False,
    ) -> None:
        self._max = max_chars
        self._after = after
        self._sought = after is not None  # The text of *after* has not been found yet.
        self._tail = ""  # The end of the text so far, in which it may have begun.
        self._fences = Fences() if fenced else None
        self._field = field
        self._first = first
        self._lenient = lenient
        self._decode = decode_lenient if lenient else decode
        self._mark = _MARK_OR_COMMENT if lenient else _MARK
        self._scalar_end = _SCALAR_OR_COMMENT if lenient else _SCALAR_END
        self._seen = 0  # Characters before the chunk that is being read.
        self._worded = False  # There was visible text before the JSON.
        self._kind = ""  # The bracket that the JSON began with; "": it has not begun.
        self._in_list = False  # The values are the items of a list.
        self._state = _State.OUTSIDE
        self._role = _Role.ITEM
        self._number = 0  # Index of the current or next item.
        self._name = ""  # Name of the field that was read last.
        self._names: list[dict[str, None]] = []  # For each open object its first few names.
        self._found: list[bool] = []  # For each open object: its field on the way was there.
        self._start = 0  # Place in the whole text at which the current value begins.
        self._depth = 0
        self._in_string = False
        self._escaped = False  # A chunk ended with a backslash: the next character ends no string.
        self._comment = ""  # Beginning of the open comment, plus a "*" that may end it; "": none.
        self._parts: list[str] = []
        self._length = 0
        self._last = ""  # The last text of the list or object, for messages.
        self.error: OutputError | None = None
        """The fault of the text; None: there is none."""

    def feed(self, text: str, /) -> list[Any]:
        """Read more text.

        Returns:
            The values that are complete now.
        """
        out: list[Any] = []
        pos, size = 0, len(text)
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
        """End the text: an incomplete value is a fault.

        Returns:
            An empty list, since complete values have been given.
        """
        state, end = self._state, self._seen
        if self._sought:
            self._fail(f"there is no {self._after!r} in the text, as after= says", end)
        elif state in (_State.NESTED, _State.SCALAR):
            raw = "".join(self._parts)
            self._fail(f"the text ended inside {self._what()}{self._if_cut(raw)}", self._start, raw)
        elif state is _State.OUTSIDE:
            opening = "'{'" if self._field else "'[' and no '{'"
            if self._kind:
                pass
            elif self._fences is not None:
                self._fail(f"there is no {opening} in a fenced block of JSON in the text", end)
            elif self._worded or self._field or self._after is not None:
                behind = "" if self._after is None else f" behind {self._after!r}"
                self._fail(f"there is no {opening} in the text{behind}", end)
        elif state in (_State.FIRST, _State.ITEM, _State.AFTER_ITEM):
            self._fail(f"the text ended before its list was closed, at item {self._number}", end)
        elif state is not _State.OVER:
            self._fail("the text ended before its object was closed", end)
        return []

    # Outside of JSON.

    def _before(self, text: str) -> int:
        after, tail = self._after, self._tail
        assert after is not None
        whole = tail + text
        at = whole.find(after)
        if at < 0:
            self._tail = whole[1 - len(after) :] if len(after) > 1 else ""
            return len(text)
        self._sought = False
        return at + len(after) - len(tail)

    def _outside(self, text: str, pos: int) -> int:
        if self._sought:
            return self._before(text)
        if self._fences is not None:
            at = self._fences.find(text, pos)
        else:
            found = _OPENING(text, pos)
            at = len(text) if found is None else found.start()
        if not self._worded and not self._kind:
            self._worded = bool(text[pos:at].strip())
        if at == len(text):
            return at
        this = text[at]
        if self._kind and (self._field or self._kind == "[" or this == "["):
            self._fail(self._second(this), self._seen + at)
            return at
        self._kind = this
        if self._field:
            if this == "{":
                return self._enter(at)
            named = ".".join(self._field)
            why = f"expected an object with the field {named!r} and found a list"
            self._fail(f"{why}{self._if_words()}", self._seen + at)
        elif this == "[":
            return self._enter_list(at)
        else:
            self._begin(this, at, _Role.ITEM)
        return at

    def _second(self, this: str) -> str:
        whole = "list" if self._kind == "[" else "object"
        skip = (
            f"skip what precedes the right one with {ways}, or " if (ways := self._ways()) else ""
        )
        return (
            f"{this!r} follows the end of the {whole}, which may not be the one that was meant; "
            f"{skip}ignore what follows with first=True"
        )

    def _ways(self) -> str:
        """Return the options that skip text before the JSON, for messages."""
        ways = ["after='</think>'"] if self._after is None else []
        return " or ".join([*ways, "fenced=True"] if self._fences is None else ways)

    def _if_words(self) -> str:
        """Return the remedy, for messages, if the bracket may be part of text before the JSON."""
        ways = self._ways() if self._worded and not self._number else ""
        return f"; if this bracket belongs to the words before the JSON, use {ways}" if ways else ""

    # In the list, or in an object on the way to it.

    def _enter(self, pos: int) -> int:
        self._names.append({})
        self._found.append(False)
        self._state = _State.FIRST_NAME
        self._last = "{"
        return pos + 1

    def _enter_list(self, pos: int) -> int:
        self._in_list = True
        self._state = _State.FIRST
        self._last = "["
        return pos + 1

    def _between(self, text: str, pos: int) -> int:
        if self._comment:
            return self._in_comment(text, pos)
        this, state = text[pos], self._state
        if this in " \t\n\r":
            blank = _BLANK(text, pos)
            assert blank is not None
            return blank.end()
        if this == "/" and self._lenient:
            self._comment = this
            return pos + 1
        if state is _State.AFTER_ITEM and this == ",":
            self._state = _State.ITEM
            self._last = this
            return pos + 1
        if (state is _State.ITEM or state is _State.FIRST) and this not in ",:]}":
            self._begin(this, pos, _Role.ITEM)
            return pos
        return self._structure(this, pos)

    def _structure(self, this: str, pos: int) -> int:
        """Read a structural character that neither begins an item nor is the comma after one."""
        state, may_end = self._state, self._lenient
        if state is _State.FIRST or state is _State.ITEM or state is _State.AFTER_ITEM:
            if this == "]" and (may_end or state is not _State.ITEM):
                self._close(this, pos)
                return pos + 1
        elif state is _State.AFTER_FIELD:
            if this == ",":
                self._state = _State.NAME
                self._last = this
                return pos + 1
            if this == "}":
                self._close(this, pos)
                return pos + 1
        elif state is _State.FIELD:
            if this not in ",:]}":
                return self._field_value(this, pos)
        elif state is _State.COLON:
            if this == ":":
                self._state = _State.FIELD
                self._last = ":"
                return pos + 1
        elif this == '"':
            self._begin(this, pos, _Role.NAME)
            return pos
        elif this == "}" and (may_end or state is _State.FIRST_NAME):
            self._close(this, pos)
            return pos + 1
        self._unexpected(pos, this)
        return pos

    def _field_value(self, this: str, pos: int) -> int:
        """Begin the value of a field: the list, an object on the way to it, or another."""
        path = self._field[: len(self._found)]
        if self._name != path[-1]:
            self._begin(this, pos, _Role.OTHER)
            return pos
        last = len(path) == len(self._field)
        named = f"the field {'.'.join(path)!r}"
        if self._found[-1]:
            self._fail(f"{named} is there twice", self._seen + pos)
            return pos
        self._found[-1] = True
        if this != ("[" if last else "{"):
            wanted, kind = "a list" if last else "an object", _KINDS.get(this, "a number or a word")
            self._fail(f"expected {wanted} in {named} and found {kind}", self._seen + pos)
            return pos
        return self._enter_list(pos) if last else self._enter(pos)

    def _close(self, this: str, pos: int) -> None:
        """Close the list, or an object on the way to it."""
        self._last = this
        if this == "}":
            found, names = self._found.pop(), self._names.pop()
            if not found:
                path = self._field[: len(self._found) + 1]
                shown = ", ".join(map(repr, list(names)[:_SHOWN])) or "none"
                shown += ", …" if len(names) > _SHOWN else ""
                named = ".".join(path)
                self._fail(f"there is no field {named!r}; its object has {shown}", self._seen + pos)
                return
        if self._found:
            self._state = _State.AFTER_FIELD
        else:
            self._end()

    def _end(self) -> None:
        self._state = _State.OVER if self._first else _State.OUTSIDE

    def _in_comment(self, text: str, pos: int) -> int:
        before = self._comment
        pos = self._commented(text, pos)
        if before == "/" and not self._comment:  # a slash that began no comment
            self._unexpected(pos - 1, "/")
        return pos

    def _commented(self, text: str, pos: int) -> int:
        """Read a comment, or what follows a slash. Returns its end, or that of the text."""
        if self._comment == "/":
            self._comment = {"/": "//", "*": "/*"}.get(text[pos], "")
            return pos + 1 if self._comment else pos
        if self._comment == "//":
            found = _LINE_END(text, pos)
            if found is None:
                return len(text)
            end = found.start()
        elif self._comment == "/**" and text[pos] == "/":
            end = pos + 1
        else:
            end = text.find("*/", pos) + 2
            if end == 1:
                self._comment = "/**" if text[-1] == "*" else "/*"
                return len(text)
        self._comment = ""
        return end

    # In a value.

    def _begin(self, this: str, pos: int, role: _Role) -> None:
        self._state = _State.NESTED if this in '"[{' else _State.SCALAR
        self._role = role
        self._start = self._seen + pos
        self._depth = self._length = 0

    def _nested(self, text: str, pos: int, out: list[Any]) -> int:
        start, size = pos, len(text)
        while pos < size:
            if self._in_string:
                pos = self._string(text, pos)
                if self._in_string:
                    break
            elif self._comment:
                pos = self._commented(text, pos)
                continue
            else:
                found = self._mark(text, pos)
                if found is None:
                    break
                pos = found.end()
                this = found[0]
                if this == '"':
                    self._in_string = True
                    continue
                if this == "/":
                    self._comment = this
                    continue
                self._depth += 1 if this in "[{" else -1
            if not self._depth:
                if self._take(text[start:pos]):
                    self._finish(out)
                return pos
        self._take(text[start:])
        return size

    def _string(self, text: str, pos: int) -> int:
        """Read a string. Returns its end, or that of the text."""
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
        found = self._scalar_end(text, pos)
        end = len(text) if found is None else found.start()
        if self._take(text[pos:end]) and found is not None:
            self._finish(out)
        return end

    def _take(self, part: str) -> bool:
        """Add *part* to the value. Returns whether the value is within the limit."""
        self._parts.append(part)
        self._length += len(part)
        if self._max is None or self._length <= self._max or self._role is not _Role.ITEM:
            return True
        why = f"item {self._number} is longer than max_chars={self._max}"
        text = "".join(self._parts)[: self._max + 1]  # the same for all chunks
        self._fail(f"{why}; raise it, or ask for smaller items", self._start, text)
        return False

    def _finish(self, out: list[Any]) -> None:
        raw = "".join(self._parts)
        self._parts.clear()
        try:
            value = self._decode(raw)
        except (ValueError, RecursionError) as error:
            self._undecodable(error, raw)
            return
        self._last = raw[-_NEAR:]
        if self._role is _Role.ITEM:
            out.append(value)
            self._number += 1
            if self._in_list:
                self._state = _State.AFTER_ITEM
            else:
                self._end()
        elif self._role is _Role.NAME:
            self._name = value
            if len(self._names[-1]) <= _SHOWN:
                self._names[-1][value] = None
            self._state = _State.COLON
        else:
            self._state = _State.AFTER_FIELD

    # Faults.

    def _what(self) -> str:
        if self._role is _Role.ITEM:
            return f"item {self._number}"
        return "the name of a field" if self._role is _Role.NAME else f"the field {self._name!r}"

    def _undecodable(self, error: ValueError | RecursionError, raw: str) -> None:
        reason, at = fault_of(error)
        near = raw[max(0, at - _NEAR) : at + _NEAR]
        why = f"{self._what()} is no JSON ({reason}), near {near!r}"
        if not self._lenient and (raw.startswith(("//", "/*"), at) or is_lenient(raw)):
            why += _USE_LENIENT
        else:
            why += self._if_words()
        self._fail(why, self._start + at, raw, error)

    def _unexpected(self, pos: int, this: str) -> None:
        state = self._state
        why = f"expected {_EXPECTED[state]} and found {this!r} after {self._last!r}"
        if state in (_State.FIRST, _State.ITEM, _State.AFTER_ITEM):
            why += f", at item {self._number}"
        trailing = (this == "]" and state is _State.ITEM) or (this == "}" and state is _State.NAME)
        if not self._lenient and (trailing or this == "/"):
            why += _USE_LENIENT
        else:
            why += self._if_words()
        self._fail(why, self._seen + pos)

    def _if_cut(self, raw: str) -> str:
        """Return the remedy, for messages, if the value is complete with lenient=True.

        Brackets in its comments may have kept it open.
        """
        if self._lenient or self._state is not _State.NESTED:
            return ""
        lenient = JsonSplitter(lenient=True)
        return _USE_LENIENT if lenient.feed(f"[{raw}") else ""

    def _fail(self, why: str, at: int, text: str = "", cause: Exception | None = None) -> None:
        self._state = _State.OVER
        self._parts.clear()
        self.error = OutputError(f"{why}; character {at} of the text", text=text)
        self.error.__cause__ = cause
