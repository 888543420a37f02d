r"""Cut a text that grows at the matches of a pattern, as ``re.split`` would cut the whole.

Theory of operation. A match in the text so far is certain if no more text could change it. Neither its
end nor what follows it tells: ``a`` at the end of ``bba`` is a match of ``[^>]+>|a``, and with ``>``
behind it there is another one, which begins earlier. What tells is whether the search ever came to the end
of the text. So a second pattern is built from the first: it matches, up to the end of the text,
whatever is the beginning of something longer that the first may match. Let *v* be the first place
where it matches. No match that begins before *v* can reach beyond the text so far, since the rest of the text
from there on would be its beginning. Therefore:

* a match that begins before *v* is certain, and so is its end, since all its rivals are there too;
* where no match begins before *v*, the text before *v* is certain to be in no separator.

The second pattern may match too much, which costs a wait for a character that was not needed, but
never too little. What looks to the right without taking text (``(?=…)``, ``\b``, ``$`` in a line)
counts as nothing there, but for how far it looks; what looks to the left needs only text that is
there. Back references are refused, and so is what asks for the end of the text, which a stream does
not have until it ends.

Only what is after *v* is looked at again. A separator that goes on and on is looked at once it has
grown by a quarter, from 256 characters on, so its end may be seen late.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any, final

from alto._core.split import Pieces

__all__ = ("RegexSplitter", "Separator")

_parser: Any = importlib.import_module("re._parser")  # private, and the only parser there is
_LONG = 256
_FLAGS = re.ASCII | re.IGNORECASE | re.MULTILINE | re.DOTALL
_LETTERS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "u": re.UNICODE}
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
_FAIL = "(?!)"
_Node = tuple[Any, Any]


@final
class Separator:
    """A pattern whose matches separate pieces.

    Args:
        pattern: The pattern, as text or compiled.

    Raises:
        ValueError: It is no pattern, may match nothing at all, or looks at what a stream has not.
        TypeError: It is neither, or for bytes.
    """

    __slots__ = ("begun", "behind", "search", "width")

    def __init__(self, pattern: Any, /) -> None:  # noqa: ANN401  # checked here
        if not isinstance(pattern, str | re.Pattern):
            msg = f"pattern must be a regular expression as a str or a re.Pattern, not {pattern!r}"
            raise TypeError(msg)
        try:
            compiled: re.Pattern[Any] = re.compile(pattern)
        except re.error as error:
            msg = f"pattern={pattern!r} is no regular expression: {error}"
            raise ValueError(msg) from error
        if isinstance(compiled.pattern, bytes):
            msg = f"pattern must be for text, not bytes: {compiled.pattern!r}"
            raise TypeError(msg)
        flags = compiled.flags & _FLAGS
        tree = _parser.parse(compiled.pattern, compiled.flags & ~re.DEBUG)
        least, most = tree.getwidth()
        if not least:
            msg = (
                f"pattern={compiled.pattern!r} may match nothing at all, between any two "
                f"characters; let it match at least one, for example `+` in place of `*`"
            )
            raise ValueError(msg)
        reader = _Reader(compiled.pattern)
        begun = reader.begun(list(tree), flags)
        self.search = compiled.search
        self.begun = re.compile(rf"(?:{begun})\Z", flags).search
        """Finds the first place from which the text is the beginning of what may match."""
        self.behind = reader.behind + 1
        """Characters before a place that a match there may look at."""
        self.width = int(most) + reader.ahead
        """Characters from a place on that a match there may look at; a huge number: any number."""


class _Reader:
    """Turns the parse tree of a pattern into patterns; see the module."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.behind = 0  # Width of all that looks to the left.
        self.ahead = 1  # Width of all that looks to the right.

    def begun(self, nodes: Sequence[_Node], flags: int) -> str:
        """A pattern for all that what *nodes* match may begin with, and be longer.

        So not for the whole, unless that looks to the right of its end.
        """
        pattern = _FAIL
        for node in reversed(nodes):
            begun, whole = self._begun(node, flags), self._whole(node, flags)
            goes_on = pattern if pattern == _FAIL else f"{whole}{pattern}"
            pattern = "|".join(part for part in (begun, goes_on) if part != _FAIL)
            pattern = f"(?:{pattern})" if pattern or begun != _FAIL else _FAIL
        return pattern

    def _begun(self, node: _Node, flags: int) -> str:
        """The same for one node."""
        kind, value = str(node[0]), node[1]
        if kind == "BRANCH":
            return "(?:" + "|".join(self.begun(list(part), flags) for part in value[1]) + ")"
        if kind == "SUBPATTERN":
            inner = _changed(flags, value)
            return _flagged(self.begun(list(value[3]), inner), value)
        if kind == "ATOMIC_GROUP":
            return self.begun(list(value), flags)
        if kind in _REPEATS:
            body, most = list(value[2]), value[1]
            if not most:
                return _FAIL
            times = _times(0, most if most == _parser.MAXREPEAT else most - 1)
            return f"(?:{self._all(body, flags)}){times}{self.begun(body, flags)}"
        if kind in ("ASSERT", "ASSERT_NOT"):
            direction, inside = value
            width = int(inside.getwidth()[1])
            if direction < 0:
                self.behind += width
                return self._behind(list(inside), flags)
            self.ahead += width + 1
            return self.begun(list(inside), flags)
        return ""

    def _behind(self, nodes: Sequence[_Node], flags: int) -> str:
        """The same for what looks to the left, which needs nothing to the right but for anchors."""
        ahead = self.ahead
        self.begun(nodes, flags)  # refuses what cannot be there
        if self.ahead != ahead:
            raise self._refusal("a look ahead inside a look behind")
        return "" if "AT_" in repr(nodes) else _FAIL

    def _whole(self, node: _Node, flags: int) -> str:
        """A pattern for all that one node matches, or more."""
        kind, value = str(node[0]), node[1]
        match kind:
            case "LITERAL":
                return _char(value)
            case "NOT_LITERAL":
                return f"[^{_char(value)}]"
            case "ANY":
                return "."
            case "IN":
                return "[" + "".join(_member(member) for member in value) + "]"
            case "BRANCH":
                return "(?:" + "|".join(self._all(list(part), flags) for part in value[1]) + ")"
            case "SUBPATTERN":
                inner = _changed(flags, value)
                return _flagged(self._all(list(value[3]), inner), value)
            case "ATOMIC_GROUP":
                return f"(?:{self._all(list(value), flags)})"
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                return f"(?:{self._all(list(value[2]), flags)}){_times(value[0], value[1])}"
            case "ASSERT" | "ASSERT_NOT":
                return ""
            case "AT" if self._is_local(str(value), flags):
                return ""
        raise self._refusal(kind if kind != "AT" else str(value))

    def _all(self, nodes: Sequence[_Node], flags: int) -> str:
        return "".join(self._whole(node, flags) for node in nodes)

    @staticmethod
    def _is_local(at: str, flags: int) -> bool:
        """Whether an anchor can be told by the characters beside it."""
        if at in ("AT_BEGINNING", "AT_END"):
            return bool(flags & re.MULTILINE)
        return at in ("AT_BOUNDARY", "AT_NON_BOUNDARY")

    def _refusal(self, what: str) -> ValueError:
        if what.startswith("AT_"):
            why = (
                "asks where the text begins or ends, which a stream does not know; "
                "for lines, write (?m) before it"
            )
        elif what.startswith("GROUPREF"):
            why = "refers back to a group; write what the group may be once more"
        else:
            why = f"has a part that cannot be followed in a stream: {what}"
        return ValueError(f"pattern={self._pattern!r} {why}")


def _char(code: int) -> str:
    return f"\\U{code:08x}"


def _member(member: _Node) -> str:
    kind, value = str(member[0]), member[1]
    match kind:
        case "NEGATE":
            return "^"
        case "LITERAL":
            return _char(value)
        case "RANGE":
            return f"{_char(value[0])}-{_char(value[1])}"
        case _:
            return _CATEGORIES[str(value)]


def _times(least: Any, most: Any) -> str:  # noqa: ANN401  # numbers of the parser's own
    return f"{{{int(least)},{'' if most == _parser.MAXREPEAT else int(most)}}}"


def _changed(flags: int, group: Sequence[Any]) -> int:
    return int((flags | group[1]) & ~group[2])


def _flagged(pattern: str, group: Sequence[Any]) -> str:
    on = "".join(letter for letter, flag in _LETTERS.items() if group[1] & flag)
    off = "".join(letter for letter, flag in _LETTERS.items() if group[2] & flag)
    return f"(?{on}{'-' + off if off else ''}:{pattern})"


@final
class RegexSplitter(Pieces):
    """Pieces are what is between the matches of a pattern.

    Args:
        separator: The pattern.
        max_chars: Characters that a piece has at most; None: any number.

    Invariant: no match begins before ``_text[_pos]``, whatever comes.
    """

    __slots__ = ("_due", "_pos", "_separator", "_text", "_waiting")

    def __init__(self, separator: Separator, max_chars: int | None = None) -> None:
        super().__init__(max_chars)
        self._separator = separator
        self._text = ""  # What has been taken and may be looked back at, then what is undecided.
        self._pos = 0
        self._waiting: list[str] = []  # What has come and need not be looked at yet.
        self._due = 0  # Characters that may still wait.

    def feed(self, text: str, /) -> list[str]:
        """More text.

        Returns:
            The pieces that are certain now.
        """
        if len(text) <= self._due:
            self._due -= len(text)
            self._waiting.append(text)
            return []
        return self._scan("".join((self._text, *self._waiting, text)), final=False)

    def flush(self) -> list[str]:
        """The text has ended.

        Returns:
            What is left. The splitter is as new then.
        """
        out = self._scan("".join((self._text, *self._waiting)), final=True)
        self._end(out)
        self._text = ""
        self._pos = 0
        return out

    def _scan(self, text: str, *, final: bool) -> list[str]:
        out: list[str] = []
        pos, size = self._pos, len(text)
        open_from = size if final else self._open_from(text, pos)
        while (found := self._separator.search(text, pos)) is not None:
            if found.start() >= open_from and not final:
                break
            self._add(text[pos : found.start()], out)
            self._end(out)
            pos = found.end()
            if open_from < pos:
                open_from = self._open_from(text, pos)
        if pos < open_from:
            self._add(text[pos:open_from], out)
            pos = open_from
        kept = max(0, pos - self._separator.behind)
        self._text = text[kept:]
        self._pos = pos - kept
        self._waiting.clear()
        undecided = size - pos
        self._due = undecided // 4 if undecided >= _LONG else 0
        return out

    def _open_from(self, text: str, pos: int) -> int:
        """The first place from which the text may be the beginning of a match."""
        found = self._separator.begun(text, max(pos, len(text) - self._separator.width))
        assert found is not None
        return found.start()
