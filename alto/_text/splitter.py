"""Split a growing text into pieces, each as soon as it is certain: lines, words, literal separators.

Theory of operation. A splitter is fed text in chunks of any size. Its pieces depend on the text
alone, never on the boundaries of the chunks: every decision uses only text whose meaning
later text cannot change, and waits until that is there. ``flush`` ends the text and returns the rest.
The splitters for sentences and JSON are in the modules beside this one.

Pieces have no surrounding white space, and empty ones are left out. With ``max_chars``
the natural pieces are the same, and those that are longer are cut: the pieces are
``[part for piece in pieces for part in cut(piece)]``. The place of a cut depends only on the first
``max_chars + 1`` characters of the piece, so a cut need not wait for the end of the piece.

No splitter looks at a character more than a fixed number of times: the text of a piece is kept as the
parts it came in, and is joined once, when the piece is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol, final
from unicodedata import category

__all__ = (
    "LineSplitter",
    "PieceSplitter",
    "SeparatorSplitter",
    "Splitter",
    "WordSplitter",
    "cut_at",
)


class Splitter(Protocol):
    """Interface of all splitters."""

    @property
    def error(self) -> Exception | None:
        """Fault of the text after which nothing is read any more; None: there is none."""
        ...

    def feed(self, text: str, /) -> list[Any]:
        """Read more text. Returns the pieces that are certain now."""
        ...

    def flush(self) -> list[Any]:
        """End the text. Returns the rest; the splitter is as new then."""
        ...


class PieceSplitter:
    """Base of the splitters of text: holds the current piece, and cuts it at *max_chars*.

    Args:
        max_chars: Most characters of a piece; None: any number.

    Invariant, where there is a limit: the parts begin with a visible character, and have
    ``_length <= max_chars`` characters up to the last visible one, then ``_blank`` of white space.
    """

    __slots__ = ("_blank", "_gone", "_length", "_max", "_parts")

    error = None
    """None: any text can be split."""

    def __init__(self, max_chars: int | None = None) -> None:
        self._max = max_chars
        self._parts: list[str] = []
        self._length = 0
        self._blank = 0
        self._gone = ""  # The end of the parts of the piece that have been cut off and given.

    def _add(self, text: str, out: list[str]) -> None:
        """Add *text* to the piece. White space at its end is dropped if the piece ends with it."""
        if self._max is None:
            self._parts.append(text)
            return
        if not self._length:
            text = text.lstrip()
        visible = len(text.rstrip())
        if text:
            self._parts.append(text)
        if visible:
            self._length += self._blank + visible
            self._blank = 0
        self._blank += len(text) - visible
        if self._length > self._max:
            self._cut(self._max, out)

    def _cut(self, limit: int, out: list[str]) -> None:
        text = "".join(self._parts)
        start = 0
        while self._length - start > limit:
            end = cut_at(text, start, limit)
            out.append(text[start:end].rstrip())
            start = end
            while text[start].isspace():
                start += 1
        self._gone = (self._gone + text[max(0, start - _CONTEXT) : start])[-_CONTEXT:]
        self._parts = [text[start:]]
        self._length -= start

    def _end(self, out: list[str], *, keep_empty: bool = False) -> None:
        """End the piece, and give it to *out*."""
        parts = self._parts
        text = ("".join(parts) if len(parts) != 1 else parts[0]).strip()
        parts.clear()
        self._length = self._blank = 0
        self._gone = ""
        if text or keep_empty:
            out.append(text)

    def _before(self, size: int) -> str:
        """Return the last *size* characters of the piece, also if they have been cut off."""
        assert size <= _CONTEXT
        found: list[str] = []
        for part in reversed(self._parts):
            if size <= 0:
                break
            found.append(part[-size:])
            size -= len(part)
        if size > 0 and self._gone:
            found.append(self._gone[-size:])
        return "".join(reversed(found))


_CONTEXT = 32
"""Characters before a place that a decision about the place may look at."""


def cut_at(text: str, start: int, limit: int) -> int:
    """Return the place to cut a piece that begins at *start* and is longer than *limit*.

    That is the last white space with at most *limit* characters before it. If there is none, it is the
    last place within the limit that does not tear apart what people see as one character. If the first
    such character is longer than *limit*, it is cut inside: the limit always holds, and a cut needs
    no text after it.
    """
    end = start + limit
    if text[end].isspace() or text[end - 1].isspace():
        return end
    words = text[start:end].rsplit(None, 1)
    if len(words) == 2:
        return end - len(words[1])
    at = end
    while at > start and _is_torn(text, start, at):
        at -= 1
    return at if at > start else end


def _is_torn(text: str, start: int, at: int) -> bool:
    """Return whether a cut before ``text[at]`` tears apart what people see as one character."""
    last, this = text[at - 1], text[at]
    if this < "\u0300":  # nothing below joins: the fast path of most scripts
        return False
    if (
        category(this)[0] == "M"
        or "\u200d" in (last, this)
        or (last in _LINKERS and category(this)[0] == "L")
        or "\U0001f3fb" <= this <= "\U0001f3ff"  # a skin tone
        or "\U000e0020" <= this <= "\U000e007f"  # part of a flag
        or ("\udc00" <= this <= "\udfff" and "\ud800" <= last <= "\udbff")
    ):
        return True
    if not _is_regional(this):
        return False
    # Two regional indicators make one flag, so an odd number before this one tears a flag.
    flags = takewhile(_is_regional, (text[i] for i in range(at - 1, start - 1, -1)))
    return sum(1 for _ in flags) % 2 == 1


_LINKERS = frozenset("\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d")
"""The signs that join two consonants of an Indian script into one: Unicode's ``InCB=Linker``."""


def _is_regional(char: str) -> bool:
    """Return whether *char* is a regional indicator, half a flag."""
    return "\U0001f1e6" <= char <= "\U0001f1ff"


_BREAK = re.compile(r"\r\n?|\n")


@final
class LineSplitter(PieceSplitter):
    r"""Splitter into lines. One is certain at its ``\n`` or ``\r``; a ``\n`` after a ``\r`` is part of it.

    Args:
        max_chars: Most characters of a piece; None: any number.
        keep_empty: Give empty lines too.
    """

    __slots__ = ("_begun", "_keep_empty", "_returned")

    def __init__(self, max_chars: int | None = None, *, keep_empty: bool = False) -> None:
        super().__init__(max_chars)
        self._keep_empty = keep_empty
        self._begun = False  # The line has some text, if only white space.
        self._returned = False  # The last character was a `\r`.

    def feed(self, text: str, /) -> list[str]:
        """Read more text.

        Returns:
            The lines that are certain now.
        """
        out: list[str] = []
        if not text:
            return out
        start = 1 if self._returned and text[0] == "\n" else 0
        self._returned = text[-1] == "\r"
        if "\n" in text or "\r" in text:
            for found in _BREAK.finditer(text, start):
                self._add(text[start : found.start()], out)
                self._end(out, keep_empty=self._keep_empty)
                self._begun = False
                start = found.end()
        if start < len(text):
            self._add(text[start:] if start else text, out)
            self._begun = True
        return out

    def flush(self) -> list[str]:
        r"""End the text, or give what is there when the text pauses.

        Returns:
            The rest. The splitter is as new then, except that a ``\n`` after a ``\r`` before the flush
            still belongs to that line break.
        """
        out: list[str] = []
        if self._begun:
            self._end(out, keep_empty=self._keep_empty)
            self._begun = False
        return out


_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CLASSES = {
    "hiragana": "\u3041-\u309f",
    "katakana": "\u3099-\u309c\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "unspaced": "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff",  # Thai, Lao, Burmese, Khmer
}
_VARIANTS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_RUNS = {
    "han": rf"[{_VARIANTS}]*",
    **{name: rf"[{chars}{_VARIANTS}]*" for name, chars in _CLASSES.items()},
    "spaced": rf"[^\s{_HAN}{''.join(_CLASSES.values())}]*",
}
_REST = {name: re.compile(run).match for name, run in _RUNS.items()}
_WORD = re.compile(
    rf"(?P<han>[{_HAN}]{_RUNS['han']})|"
    + "|".join(f"(?P<{name}>[{chars}]{_RUNS[name]})" for name, chars in _CLASSES.items())
    + rf"|(?P<spaced>[^\s]{_RUNS['spaced']})"
)


@final
class WordSplitter(PieceSplitter):
    """Splitter into groups of words, with the white space between them.

    A word is a single Han character, or a run without white space of characters of one kind: hiragana,
    katakana, scripts without spaces (Thai, Lao, Burmese, Khmer), or all others. So words of scripts
    with spaces keep the punctuation at their ends. A word is certain with the character after it.

    Args:
        size: Words in a piece.
        max_chars: Most characters of a piece; None: any number.
    """

    __slots__ = ("_count", "_kind", "_size")

    def __init__(self, size: int = 1, max_chars: int | None = None) -> None:
        super().__init__(max_chars)
        self._size = size
        self._count = 0  # Complete words of the piece.
        self._kind: str | None = (
            None  # Of the word at the end, which may grow; None: it is complete.
        )

    def feed(self, text: str, /) -> list[str]:
        """Read more text.

        Returns:
            The pieces that are certain now.
        """
        out: list[str] = []
        start = pos = 0
        if self._kind is not None:
            rest = _REST[self._kind](text)
            pos = rest.end() if rest is not None else 0
            if pos < len(text):
                start = self._end_word(text, start, pos, out)
        while pos < len(text):
            found = _WORD.search(text, pos)
            if found is None:
                break
            pos = found.end()
            self._kind = found.lastgroup
            if pos < len(text):
                start = self._end_word(text, start, pos, out)
        self._add(text[start:] if start else text, out)
        return out

    def _end_word(self, text: str, start: int, end: int, out: list[str]) -> int:
        """Count the word that ends at *end*. Returns where the text begins that is in no piece yet."""
        self._kind = None
        self._count += 1
        if self._count < self._size:
            return start
        self._add(text[start:end], out)
        self._end(out)
        self._count = 0
        return end

    def flush(self) -> list[str]:
        """End the text.

        Returns:
            The rest. The splitter is as new then.
        """
        out: list[str] = []
        self._end(out)
        self._count = 0
        self._kind = None
        return out


@final
class SeparatorSplitter(PieceSplitter):
    """Splitter at literal separators: at the leftmost, and at the longest if several start there.

    Let *open* be the first place from which the rest of the text is a proper beginning of a separator.
    If a separator starts before *open*, later text changes neither it nor any rival at the same place,
    so it is certain. If one starts at *open*, the end of the piece before it is certain, although a
    longer separator may still take its place. Only the text from *open* on is held back,
    which is shorter than the longest separator.

    Args:
        separators: At least one, none of them empty.
        max_chars: Most characters of a piece; None: any number.
    """

    __slots__ = ("_held", "_longest", "_search", "_separators", "_start")

    def __init__(self, separators: Sequence[str], max_chars: int | None = None) -> None:
        super().__init__(max_chars)
        longest_first = sorted(separators, key=len, reverse=True)
        any_separator = re.compile("|".join(map(re.escape, longest_first)))
        self._search = any_separator.search
        # Those of one character are never held back.
        self._separators = [separator for separator in longest_first if len(separator) > 1]
        self._longest = len(longest_first[0])
        firsts = {re.escape(separator[0]) for separator in self._separators}
        self._start = re.compile(f"[{''.join(firsts)}]").search if firsts else None
        self._held = ""

    def feed(self, text: str, /) -> list[str]:
        """Read more text.

        Returns:
            The pieces that are certain now.
        """
        return self._scan(self._held + text if self._held else text, final=False)

    def flush(self) -> list[str]:
        """End the text.

        Returns:
            The rest. The splitter is as new then.
        """
        out = self._scan(self._held, final=True)
        self._end(out)
        return out

    def _scan(self, text: str, *, final: bool) -> list[str]:
        out: list[str] = []
        pos, size = 0, len(text)
        open_from = size if final else self._open_from(text, 0)
        while (found := self._search(text, pos)) is not None and found.start() < open_from:
            self._add(text[pos : found.start()], out)
            self._end(out)
            pos = found.end()
            if pos > open_from:  # the beginning found there is inside this separator
                open_from = self._open_from(text, pos)
        if pos < open_from:
            self._add(text[pos:open_from], out)
        if found is not None and found.start() == open_from:
            self._end(out)  # the scan that completes the separator finds an empty piece before it
        self._held = text[open_from:]
        return out

    def _open_from(self, text: str, pos: int) -> int:
        """Return the first place from *pos* on where an incomplete separator begins, or the end."""
        size = len(text)
        if self._start is None:
            return size
        at = max(pos, size - self._longest + 1)
        while (found := self._start(text, at)) is not None:
            at = found.start()
            rest = text[at:]
            if any(len(s) > len(rest) and s.startswith(rest) for s in self._separators):
                return at
            at += 1
        return size
