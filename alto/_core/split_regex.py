r"""Cut a text that grows at the matches of a pattern, as ``re.split`` would cut the whole.

Theory of operation. A match in the text so far is certain if no more text could change it. Neither its
end nor what follows it tells: ``a`` at the end of ``bba`` is a match of ``[^>]+>|a``, and with ``>``
behind it there is another one, which begins earlier. What tells is whether the search ever came to the end
of the text. So an automaton is built from the pattern (:mod:`alto._core.split_automaton`): it takes
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
"""

from __future__ import annotations

import re
from typing import Any, final

from alto._core.split import Pieces
from alto._core.split_automaton import Beginnings, parsed

__all__ = ("RegexSplitter", "Separator")

_LONG = 256
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

    __slots__ = ("behind", "first", "search", "width")

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
        self.search = compiled.search
        self.first = beginnings.first
        """Finds the first place from which the text is the beginning of what may match."""
        self.behind = beginnings.behind + 1
        """Characters before a place that a match there may look at."""
        self.width = int(most) + beginnings.ahead
        """Characters from a place on that a match there may look at; a huge number: any number."""


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
        return self._separator.first(text, max(pos, len(text) - self._separator.width))
