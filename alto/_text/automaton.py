r"""Which texts are the beginning of something longer that a regular expression may match.

Theory of operation. A pattern is read as a Glushkov automaton: each place in it that takes a character is a
*position*, and for each position it is known which ones may stand before it. A text is such a beginning
if a path of positions takes it, and the last of them is *open*: more may follow it, or a look to the
right does. All positions are looked at together, as the bits of a number, and from the end of the text
to the left, so one pass over the undecided end finds the first place from which all that is left is a
beginning, in time that does not depend on how ambiguous the pattern is. (A second regular expression for the
same, which was here before, tried all ways to divide a run among nested repeats.) What a set of positions
becomes with a character is computed once, and kept.

More is taken for a beginning than can be matched: what looks to the right without taking text (``(?=…)``,
``\b``, ``$`` in a line) counts as nothing but for how far it looks, what looks to the left as nothing at
all, atomic and possessive parts as ordinary ones, and more than 256 repeats, fewer where they are nested, as any number.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, final

__all__ = ("Beginnings", "parsed")

_parser: Any = importlib.import_module("re._parser")  # private, and the only parser there is
_CATEGORIES: Final = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_LETTERS: Final = {re.ASCII: "a", re.IGNORECASE: "i", re.DOTALL: "s"}
_COPIES: Final = (256, 16, 1)
"""A counted repeat has as many copies of its body at most: the most that `_POSITIONS` allows."""
_POSITIONS: Final = 4000
_KEPT: Final = 20_000
"""Steps that are remembered."""
_Node = tuple[Any, Any]


def parsed(pattern: re.Pattern[str], /) -> Any:  # noqa: ANN401  # of a private module
    """Its parse tree."""
    return _parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG)


class _TooLargeError(Exception):
    """There are more than `_POSITIONS`."""


class _Part(NamedTuple):
    """A part of a pattern. Sets of positions are the bits of a number."""

    empty: bool
    """It may take no text."""
    first: int
    """Where what it takes may begin."""
    last: int
    """Where it may end."""
    opens: bool
    """More text may follow what is before it: it takes some, or looks at it."""


_NOTHING = _Part(empty=True, first=0, last=0, opens=False)
_LOOK = _Part(empty=True, first=0, last=0, opens=True)
_NEVER = _Part(empty=False, first=0, last=0, opens=False)


@final
class Beginnings:
    """The automaton of a pattern.

    Args:
        pattern: The pattern as text, for messages.
        nodes: Its parse tree.
        flags: Flags that it is read with.

    Raises:
        ValueError: It refers back, or looks at what a stream has not.
    """

    __slots__ = (
        "_before",
        "_chars",
        "_copies",
        "_open",
        "_pattern",
        "_start",
        "_steps",
        "_takes",
        "ahead",
        "behind",
    )

    def __init__(self, pattern: str, nodes: Sequence[_Node], flags: int) -> None:
        self._pattern = pattern
        for copies in _COPIES:
            self._copies = copies
            with contextlib.suppress(_TooLargeError):
                self._build(nodes, flags)
                break
        self._steps: dict[tuple[int, str], tuple[int, bool]] = {}

    def _build(self, nodes: Sequence[_Node], flags: int) -> None:
        self.behind = 0
        """Width of all that looks to the left."""
        self.ahead = 1
        """Width of all that looks to the right."""
        self._chars: list[tuple[str, int]] = []  # What a position takes, as a pattern with flags.
        self._takes: list[Any] = []  # Whether a position takes a character.
        self._before: list[int] = []  # The positions that may stand before one.
        self._open = 0
        self._start = self._sequence(nodes, flags).first

    def starts(self, text: str, low: int, /) -> list[int]:
        """The places from *low* on from which *text* is such a beginning, last first; the end is one."""
        steps, state = self._steps, self._open
        at = len(text)
        found = [at]
        while state and at > low:
            at -= 1
            step = steps.get((state, text[at]))
            if step is None:
                step = self._step(state, text[at])
            state, begins = step
            if begins:
                found.append(at)
        return found

    def first_characters(self) -> str:
        """A pattern for the characters that a match may begin with."""
        by_flags: dict[int, set[str]] = {}
        for position in _bits(self._start):
            char, flags = self._chars[position]
            by_flags.setdefault(flags, set()).add(char)
        return "|".join(_flagged("|".join(sorted(by_flags[flags])), flags) for flags in by_flags)

    def _step(self, state: int, char: str) -> tuple[int, bool]:
        """Of the positions in *state* those that take *char*: what may be before, and whether one starts."""
        before, begins = 0, False
        for position in _bits(state):
            if self._takes[position](char) is not None:
                before |= self._before[position]
                begins = begins or bool(self._start >> position & 1)
        if len(self._steps) >= _KEPT:
            self._steps.clear()
        self._steps[state, char] = step = (before, begins)
        return step

    # ---- reading the tree

    def _sequence(self, nodes: Iterable[_Node], flags: int) -> _Part:
        whole = _NOTHING
        for node in nodes:
            whole = self._then(whole, self._part(node, flags))
        return whole

    def _part(self, node: _Node, flags: int) -> _Part:
        kind, value = str(node[0]), node[1]
        match kind:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._position(_character(kind, value), flags)
            case "BRANCH":
                return _either([self._sequence(part, flags) for part in value[1]])
            case "SUBPATTERN":
                return self._sequence(value[3], _changed(flags, value[1], value[2]))
            case "ATOMIC_GROUP":
                return self._sequence(value, flags)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                return self._repeat(value[0], value[1], value[2], flags)
            case "ASSERT" | "ASSERT_NOT" if value[0] < 0:
                return self._behind(value[1], flags)
            case "ASSERT" | "ASSERT_NOT":
                self.ahead += int(value[1].getwidth()[1]) + 1
                inside = self._sequence(value[1], flags)
                return inside._replace(empty=True, last=0)  # nothing follows what it looks at
            case "AT" if _is_local(str(value), flags):
                return _LOOK
        raise self._refusal(kind if kind != "AT" else str(value))

    def _position(self, pattern: str, flags: int) -> _Part:
        if len(self._takes) >= _POSITIONS and self._copies > 1:
            raise _TooLargeError
        bit = 1 << len(self._takes)
        self._chars.append((pattern, flags & ~re.MULTILINE))
        self._takes.append(re.compile(pattern, flags).match)
        self._before.append(0)
        return _Part(empty=False, first=bit, last=bit, opens=True)

    def _then(self, one: _Part, two: _Part) -> _Part:
        self._link(one.last, two)
        return _Part(
            empty=one.empty and two.empty,
            first=one.first | (two.first if one.empty else 0),
            last=two.last | (one.last if two.empty else 0),
            opens=one.opens or (one.empty and two.opens),
        )

    def _link(self, last: int, following: _Part) -> None:
        for position in _bits(following.first):
            self._before[position] |= last
        if following.opens:
            self._open |= last

    def _repeat(self, least: Any, most: Any, body: Any, flags: int) -> _Part:  # noqa: ANN401  # numbers of the parser's own
        if not most:
            self._sequence(body, flags)  # refuses what cannot be there
            return _NOTHING
        endless = most == _parser.MAXREPEAT or most > self._copies
        needed = min(int(least), self._copies)
        whole = _NOTHING
        size = len(self._takes)
        for number in range(max(needed, 1) if endless else int(most)):
            part = self._sequence(body, flags)
            if len(self._takes) == size:  # takes no text, so one copy is as good as many
                return part._replace(empty=True)
            if number >= needed:
                part = part._replace(empty=True)
            whole = self._then(whole, part)
            if endless and number == max(needed, 1) - 1:
                self._link(part.last, part)
        return whole

    def _behind(self, inside: Any, flags: int) -> _Part:  # noqa: ANN401  # as above
        self.behind += int(inside.getwidth()[1])
        ahead = self.ahead
        self._sequence(inside, flags)  # refuses what cannot be there; its positions lead nowhere
        if self.ahead != ahead:
            raise self._refusal("a look ahead inside a look behind")
        return _LOOK if "AT_" in repr(inside) else _NOTHING

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


def _changed(flags: int, on: int, off: int) -> int:
    """The flags inside a group that sets some."""
    if on & re.UNICODE:
        flags &= ~re.ASCII
    return int((flags | on) & ~off & ~re.UNICODE)


def _flagged(pattern: str, flags: int) -> str:
    on = "".join(letter for flag, letter in _LETTERS.items() if flags & flag)
    return f"(?{on}:{pattern})" if on else pattern


def _either(parts: Sequence[_Part]) -> _Part:
    whole = _NEVER
    for part in parts:
        whole = _Part(
            empty=whole.empty or part.empty,
            first=whole.first | part.first,
            last=whole.last | part.last,
            opens=whole.opens or part.opens,
        )
    return whole


def _is_local(at: str, flags: int) -> bool:
    """Whether an anchor can be told by the characters beside it."""
    if at in ("AT_BEGINNING", "AT_END"):
        return bool(flags & re.MULTILINE)
    return at in ("AT_BOUNDARY", "AT_NON_BOUNDARY")


def _character(kind: str, value: Any) -> str:  # noqa: ANN401  # as the parser has it
    match kind:
        case "LITERAL":
            return _char(value)
        case "NOT_LITERAL":
            return f"[^{_char(value)}]"
        case "ANY":
            return "."
        case _:
            return "[" + "".join(_member(member) for member in value) + "]"


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


def _bits(positions: int) -> Iterable[int]:
    while positions:
        bit = positions & -positions
        yield bit.bit_length() - 1
        positions ^= bit
