"""Find brackets inside the fenced code blocks of a text that grows.

A fence is three backticks or more with nothing but white space before them on their line. Outside of a
block it begins one, and the word behind it, if there is one, names a language. In a block it ends
it, unless a word stands right behind it: then it begins another. A block of another language than
JSON is skipped. In a block of JSON backticks need not stand at the beginning of a line, since
models write the list and its fences in one line too.
"""

from __future__ import annotations

import re
from typing import final

__all__ = ("Fences",)

_MARK = re.compile(r"[\n`\[{]").search
_BLANK = re.compile(r"[^\S\n]*").match
_WORD = re.compile(r"[^\s`\[{]*").match
_LONGEST_WORD = 20
"""Characters of a language's name that are looked at."""


@final
class Fences:
    """Where the text outside of JSON values is: in which block, and in what part of a line."""

    __slots__ = ("_beginning", "_in_block", "_in_json", "_ticks", "_word")

    def __init__(self) -> None:
        self._in_block = False
        self._in_json = False
        self._beginning = True  # Whether the line has only white space so far.
        self._ticks = 0  # Backticks that were just read.
        self._word: str | None = None  # That behind a fence, while it is read.

    def find(self, text: str, pos: int, /) -> int:
        """Read on, outside of any value.

        Returns:
            Where the next ``[`` or ``{`` in a block of JSON is; or the length of *text*, if none is.
        """
        size = len(text)
        while pos < size:
            if self._word is not None:
                pos = self._read_word(text, pos, self._word)
                continue
            if self._beginning:
                blank = _BLANK(text, pos)
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
        """Return the next place in the line that may matter."""
        if self._in_json:
            found = _MARK(text, pos)
            return len(text) if found is None else found.start()
        at = text.find("\n", pos)
        return len(text) if at < 0 else at

    def _read_word(self, text: str, pos: int, word: str) -> int:
        """Read on behind a fence, and begin or end a block where its word is over."""
        if not word:
            if text[pos] == "`":  # a longer fence
                return pos + 1
            blank = None if self._in_block else _BLANK(text, pos)
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
