"""Split a growing text into sentences.

Theory of operation. A *candidate* is a run of punctuation marks with the closing quotes and brackets after
it, or a line break. Everything before a candidate belongs to the sentence. A function of two things decides
whether the sentence ends there: the last 32 characters before the candidate, and the text from it
on, of which it uses at most a few hundred characters. If that text ends before the
decision is certain, the function says so; the text from the candidate on is then held back, and examined
again with more text.

The decision needs, by kind of candidate:

* after a mark of a script that has its own full stop (``。``, ``।``, ``؟``): the next character, since
  more marks or a closing quote may follow;
* after any other mark: the white space after it; without that no sentence ends (``3.5``, ``example.org``);
* after a full stop with an abbreviation or an initial before it, after an ellipsis, and after a closing
  quote or bracket: the first letter of the next word; if that is a capital after an
  abbreviation that may also end a sentence (``U.S. Army``, ``in the U.S. The``), the whole word.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple, final

from alto._text.splitter import PieceSplitter

__all__ = ("LAST", "MAYBE", "NEVER", "STARTERS", "SentenceSplitter")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEVER = _words("""
    brig capt cf cmdr cpl dr drs e.g eg i.e ie lt maj messrs mlle mme mr mrs ms msgr mx pp prof sgt
    supt viz vs
""")
"""Abbreviations that end no sentence: mostly a name or a number follows."""

LAST = _words("""
    apr aug bd dec etc feb fn fri ft hr hrs jan jul jun kg km lb lbs mi nov oct oz sep sept thu thur
    thurs tue tues wed yr yrs
""")
"""Abbreviations that end a sentence before a capital, since no name follows: units, months, days."""

MAYBE = _words("""
    abbr acad adm al approx apt asst assn assoc ave avg bldg blvd bros ca ch chap co col corp ct dept
    dist div ed edn eds eq eqs esp est et fig figs fl gen gov hon inc incl ing intl jr llc ltd mt mts
    natl nos nr orig ph.d phd pl pres pt rd ref rep repr resp rev sec sect sen sens ser sr st tr univ
    ver vol vols
""")
"""Abbreviations that may end a sentence: a name, a number, or the next sentence may follow."""

STARTERS = _words("""
    a about after again all also although an and another any as at because before both but by can
    could did do does during each even every finally first for from had has have he hence her here
    his how however i if in instead is it its just later let like many maybe meanwhile more moreover
    most my neither next no nobody none nor not note nothing now of on once one only or other others
    our perhaps please second see several she should similarly since so some sometimes soon still such
    that the their then there therefore these they third this those though thus to today two under
    until was we were what when where whether which while who whose why will with within without
    would yes yet you your
""")
"""Words that begin sentences but not names."""


_STRONG = "。！？｡؟۔।॥။።៕។։"  # noqa: RUF001  # marks of several scripts
_WEAK = ".!?…‽‼⁇⁈⁉"
_CLOSERS = "\"'”’“»«›‹)\\]}」』）】》〉*_`"  # noqa: RUF001  # marks of several scripts
_OPENERS = "\"'“‘«»„‚‹›(\\[{¿¡*_`#"  # noqa: RUF001  # marks of several scripts
_BRACKETS = _OPENERS.replace("\\", "")
_BULLETS = " \t*•-"
_GO_ON = ",;:.!?…)-–—"

_LOOK = re.compile(f"[{_WEAK}{_STRONG}\n\r]").search
_ENDS = re.compile(f"[{_STRONG}]").search
_RUN = re.compile(rf"([{_WEAK}{_STRONG}]{{1,16}})([{_CLOSERS}]{{0,8}})(\s{{0,256}})").match
_SPACE = re.compile(r"\s{1,256}").match
_ITEM = re.compile(r"(?:[-*•]|[0-9]{1,3}[.)])\s").match
_ITEM_BEGUN = re.compile(r"(?:[-*•]|[0-9]{1,3}[.)]?)\Z").match
_NEXT = re.compile(f"[{_OPENERS}]{{0,8}}").match
_LETTERS = re.compile(r"[^\W\d_]{1,16}").match

_NUMBERING = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})*|[^\W\d_]|[ivx]{1,5}").fullmatch
_DOTTED = re.compile(r"([^\W\d_]\.)+[^\W\d_]").fullmatch
_HYPHENS = re.compile(r"[-–—/(]").split

_BEFORE = 32
"""Characters before a mark that the decision uses."""
_GAP = 256
"""Characters of white space that end a sentence, whatever follows."""


class _Kind(Enum):
    """Kind of a candidate: the rule that decides."""

    PLAIN = auto()
    """Ends the sentence."""
    QUOTED = auto()
    """After a closing quote or bracket: ends the sentence unless a small letter follows."""
    ELLIPSIS = auto()
    """Ends the sentence unless a small letter follows."""
    NEVER = auto()
    """Does not end the sentence, unless a line break that ends it follows."""
    NUMBER = auto()
    """``No.``: ends the sentence unless a digit follows."""
    LAST = auto()
    """``etc.``: ends the sentence before a capital."""
    MAYBE = auto()
    """Ends the sentence before a capitalised word of `STARTERS`."""


class _Verdict(NamedTuple):
    """Decision about a candidate."""

    ends: bool
    at: int
    """End of the sentence, or else the place from which to search for the next candidate."""


@final
class SentenceSplitter(PieceSplitter):
    """Splitter into sentences, by the rules at the head of the module.

    Args:
        max_chars: Most characters of a piece; None: any number.

    Invariant: ``_held`` is empty or begins with an undecided candidate.
    """

    __slots__ = ("_held",)

    def __init__(self, max_chars: int | None = None) -> None:
        super().__init__(max_chars)
        self._held = ""

    def feed(self, text: str, /) -> list[str]:
        """Read more text.

        Returns:
            The sentences that are certain now.
        """
        if self._held:
            text = self._held + text
            self._held = ""
        elif _LOOK(text) is None:
            if self._max is None:  # the path of nearly every chunk
                self._parts.append(text)
                return []
            out: list[str] = []
            self._add(text, out)
            return out
        return self._scan(text, final=False)

    def flush(self) -> list[str]:
        """End the text.

        Returns:
            The rest. The splitter is as new then.
        """
        held, self._held = self._held, ""
        out = self._scan(held, final=True) if held else []
        self._end(out)
        return out

    def _scan(self, text: str, *, final: bool) -> list[str]:
        out: list[str] = []
        start = pos = 0  # text[:start] is in a piece, text[:pos] has been searched.
        while (found := _LOOK(text, pos)) is not None:
            at = found.start()
            verdict = self._decide(text, start, at, final=final)
            if verdict is None:
                self._held = text[at:]
                text = text[:at]
                break
            pos = verdict.at
            if verdict.ends:
                self._add(text[start:pos], out)
                self._end(out)
                start = pos
        if start < len(text):
            self._add(text[start:] if start else text, out)
        return out

    def _decide(self, text: str, start: int, at: int, *, final: bool) -> _Verdict | None:
        """Decide about the candidate at *at*; None: more text is needed.

        The sentence so far is what was added to the piece before, and ``text[start:at]``.
        """
        size = len(text)
        if text[at] in "\r\n":
            space = _SPACE(text, at)
            assert space is not None
            return _after(text, space.span(), None, final=final)
        run = _RUN(text, at)
        assert run is not None
        marks, closers, blank = run.groups()
        if not blank and run.end() == size:
            return _Verdict(ends=False, at=size) if final else None
        if _ENDS(marks) is not None:
            return _Verdict(ends=True, at=run.end(2))
        if not blank:
            return _Verdict(ends=False, at=run.end())
        kind = _Kind.PLAIN
        if marks[-1] in ".…":
            before = text[max(start, at - _BEFORE) : at]
            if len(before) < _BEFORE:
                before = self._before(_BEFORE - len(before)) + before
            kind = _kind_of(before, ellipsis=len(marks) > 1 or marks == "…")
        if kind is _Kind.PLAIN and not closers:
            return _Verdict(ends=True, at=run.end())
        if kind is _Kind.PLAIN or (kind is _Kind.NUMBER and closers):
            kind = _Kind.QUOTED
        return _after(text, run.span(3), kind, final=final)


def _kind_of(before: str, *, ellipsis: bool) -> _Kind:
    """Return the kind of a full stop or an ellipsis after the text *before*."""
    if not any(map(str.isalnum, before)):
        return _Kind.NEVER  # the sentence has no word yet
    words = before.split()
    if ellipsis or before[-1].isspace():
        return _Kind.ELLIPSIS
    word = words[-1]
    bare = word.lstrip(_BRACKETS)
    rest = before[: len(before) - len(word)]
    begins = not rest.strip() or rest.rstrip(_BULLETS)[-1:] in ("", "\r", "\n")
    if begins and _NUMBERING(bare.lower()) is not None:
        return _Kind.NEVER
    bare = _HYPHENS(bare)[-1]
    low = bare.lower()
    if low in NEVER:
        return _Kind.NEVER
    if low in ("no", "n°", "nº", "№"):
        return _Kind.NUMBER
    if low in LAST:
        return _Kind.LAST
    if (
        _is_initial(bare, words[-2] if len(words) > 1 else "")
        or low in MAYBE
        or _DOTTED(low) is not None
    ):
        return _Kind.MAYBE
    return _Kind.PLAIN


def _is_initial(word: str, last: str) -> bool:
    """Return whether *word* is an initial; an ``I`` is one only after another initial, *last*."""
    if len(word) != 1 or word.lower() == word.upper():
        return False
    return word != "I" or (len(last) == 2 and last[0].isupper() and last[1] == ".")


def _after(text: str, span: tuple[int, int], kind: _Kind | None, *, final: bool) -> _Verdict | None:
    """Decide by the white space *span* and the text after it; None: more text is needed.

    A kind of None stands for a line break without a mark.
    """
    begin, at = span
    space = text[begin:at]
    breaks = space.count("\n") + space.count("\r") - space.count("\r\n")
    if breaks > 1 or len(space) >= _GAP:
        return _Verdict(ends=True, at=at)
    if at == len(text):
        return _Verdict(ends=False, at=at) if final else None
    if breaks:
        if _ITEM(text, at) is not None:
            return _Verdict(ends=True, at=at)
        if not final and _ITEM_BEGUN(text, at) is not None:
            return None
    if kind is None or kind is _Kind.NEVER:
        return _Verdict(ends=False, at=at)
    ends = _next_begins(text, at, kind, final=final)
    return None if ends is None else _Verdict(ends=ends, at=at)


def _next_begins(text: str, at: int, kind: _Kind, *, final: bool) -> bool | None:
    """Return whether the word at *at* begins a sentence; None: more text is needed."""
    opened = _NEXT(text, at)
    assert opened is not None
    at = opened.end()
    if at == len(text):
        return False if final else None
    first = text[at]
    if kind is _Kind.QUOTED or kind is _Kind.ELLIPSIS:
        return not first.islower() and first not in _GO_ON
    if kind is _Kind.NUMBER:
        return not first.isdigit()
    if kind is _Kind.LAST:
        return first.isalpha() and not first.islower()
    assert kind is _Kind.MAYBE
    if not first.isupper():
        return False
    letters = _LETTERS(text, at)
    if letters is None:
        return False
    end = letters.end()
    if end == len(text) and not final:
        return None
    is_initial = len(letters[0]) == 1 and text[end : end + 1] == "."
    return letters[0].lower() in STARTERS and not is_initial
