r"""Cut a text that grows at the matches of a pattern, as ``re.split`` would cut the whole.

Theory of operation. A match in the text so far is certain if no more text could change it. Neither its
end nor what follows it tells: ``a`` at the end of ``bba`` is a match of ``[^>]+>|a``, and with ``>``
behind it there is another one, which begins earlier. What tells is whether the search ever came to the end
of the text. So an automaton is built from the pattern (:mod:`alto._text.automaton`): it takes
whatever is the beginning of something longer that the pattern may match. Let *v* be the first place from
which it takes all of the text that is left. No match that begins before *v* can reach beyond the text so
far, since the rest of the text from there on would be its beginning. Therefore:

* a match that begins before *v* is certain, and so is its end, since all its rivals are there too;
* where no match begins before *v*, the text before *v* is certain to be in no separator.

The automaton may take too much, which costs a wait for a character that was not needed, but never too
little. Back references are refused, and so is what asks for the end of the text, which a stream does not
have until it ends.

Only what is after *v* is looked at again. A separator that goes on and on is looked at once it has
grown by a quarter, from 256 characters on, so its end may be seen late.

The pattern itself is tried where it does not come to the end of the text, which costs what it costs on
the whole text; elsewhere it might try every way to match a beginning of what the whole text has at
once. So before *v* it is tried only at characters that a match may begin with, unless so little is
after *v* that it does not matter.
"""

from __future__ import annotations

import re
from typing import Any, final

from alto._text.automaton import Beginnings, parsed
from alto._text.splitter import Pieces

__all__ = ("RegexSplitter", "Separator")

_LONG = 256
_SHORT = 4
"""Characters at the end of a text on which any pattern may be tried: the ways to match them are few."""
_FLAGS = re.ASCII | re.IGNORECASE | re.MULTILINE | re.DOTALL


@final
class Separator:
    """A pattern whose matches separate pieces.

    Args:
        pattern: The pattern, as text or compiled.

    Raises:
        ValueError: It is no pattern, may match nothing at all, or looks at what a stream has not.
        TypeError: It is neither, or for bytes.
    """

    __slots__ = ("_first", "_match", "_search", "behind", "starts", "width")

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
        tree = parsed(compiled)
        least, most = tree.getwidth()
        if not least:
            msg = (
                f"pattern={compiled.pattern!r} may match nothing at all, between any two "
                f"characters; let it match at least one, for example `+` in place of `*`"
            )
            raise ValueError(msg)
        beginnings = Beginnings(compiled.pattern, list(tree), flags)
        self._search, self._match = compiled.search, compiled.match
        self._first = re.compile(beginnings.first_characters()).search
        self.starts = beginnings.starts
        """Finds the places from which the text is the beginning of what may match, last first."""
        self.behind = beginnings.behind + 1
        """Characters before a place that a match there may look at."""
        self.width = int(most) + beginnings.ahead
        """Characters from a place on that a match there may look at; a huge number: any number."""

    def search(self, text: str, pos: int, end: int) -> re.Match[str] | None:
        """The first match that begins at *pos* or later and before *end*; it may reach beyond."""
        if len(text) - end <= _SHORT:
            found = self._search(text, pos)
            return found if found is not None and found.start() < end else None
        while (first := self._first(text, pos, end)) is not None:
            pos = first.start()
            if (found := self._match(text, pos)) is not None:
                return found
            pos += 1
        return None


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
        starts = [size] if final else self._starts(text, pos)
        open_from = starts.pop()
        while pos < open_from and (found := self._separator.search(text, pos, open_from)):
            self._add(text[pos : found.start()], out)
            self._end(out)
            pos = found.end()
            while open_from < pos:
                open_from = starts.pop()
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

    def _starts(self, text: str, pos: int) -> list[int]:
        """The places from which the text may be the beginning of a match, last first."""
        return self._separator.starts(text, max(pos, len(text) - self._separator.width))
