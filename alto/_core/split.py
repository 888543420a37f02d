"""Cut a text that grows into pieces, each as soon as it is certain.

Theory of operation. A splitter is fed text in chunks of any size and keeps the tail that is not a
piece yet. What it gives depends on the text alone, never on how the text was cut into chunks:
every decision looks only at text whose meaning later text cannot change. ``flush`` gives the tail.

Pieces are stripped of white space around them, and empty ones are left out.
"""

from __future__ import annotations

import re

__all__ = ("LineSplitter", "SentenceSplitter")


class LineSplitter:
    r"""Pieces are lines; a line is certain at its ``\n``."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = ""

    def feed(self, text: str, /) -> list[str]:
        """More text.

        Returns:
            The lines that are certain now.
        """
        if "\n" not in text:
            self._tail += text
            return []
        *lines, self._tail = (self._tail + text).split("\n")
        return [line for raw in lines if (line := raw.strip())]

    def flush(self) -> list[str]:
        """The text has ended: give what is left."""
        tail, self._tail = self._tail.strip(), ""
        return [tail] if tail else []


# A candidate: a run of marks, closing quotes or brackets, then white space. It is looked at once
# the white space is there, so neither the marks nor the closers can grow any more.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s|[。！？]+[」』”’]*|\n[ \t]*\n")
_WORD = re.compile(r"(\S+)$")
_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "sr",
        "jr",
        "st",
        "mt",
        "vs",
        "etc",
        "fig",
        "eq",
        "vol",
        "pp",
        "ed",
        "al",
        "approx",
        "dept",
        "inc",
        "ltd",
        "co",
        "corp",
        "jan",
        "feb",
        "mar",
        "apr",
        "jun",
        "jul",
        "aug",
        "sep",
        "sept",
        "oct",
        "nov",
        "dec",
        "e.g",
        "i.e",
        "cf",
        "viz",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
    ]
)
_FINAL = re.compile(r"[。！？]")


class SentenceSplitter:
    """Pieces are sentences: up to a mark (``. ! ? …``) before white space, or an empty line.

    A full stop after a common abbreviation or a single initial does not end a sentence, nor does
    one inside a number or a name (``3.5``, ``example.org``), since no white space follows. Full-width
    marks end a sentence where they stand.
    """

    __slots__ = ("_from", "_tail")

    def __init__(self) -> None:
        self._tail = ""
        self._from = 0  # Up to here the tail is known to hold no end.

    def feed(self, text: str, /) -> list[str]:
        """More text.

        Returns:
            The sentences that are certain now.
        """
        tail = self._tail + text
        pieces = []
        start, look = 0, self._from
        while (found := _END.search(tail, look)) is not None:
            end = found.end()
            full_width = _FINAL.match(found[0]) is not None
            if full_width and end == len(tail):
                break  # More marks or a closing quote may follow.
            look = end
            if not full_width and _continues(tail[start : found.start() + 1], found[0]):
                continue
            if piece := tail[start:end].strip():
                pieces.append(piece)
            start = end
        self._tail = tail[start:]
        # A candidate may have begun in what was searched last: look there again.
        self._from = max(0, look - start, _safe(self._tail))
        return pieces

    def flush(self) -> list[str]:
        """The text has ended: give what is left."""
        tail, self._tail, self._from = self._tail.strip(), "", 0
        return [tail] if tail else []


def _continues(sentence: str, mark: str) -> bool:
    if mark[0] != "." or mark[:2] == "..":
        return False
    word = _WORD.search(sentence[:-1])
    if word is None:
        return False
    bare = word[1].lstrip("\"'“‘([").lower()
    return bare in _ABBREVIATIONS or (len(bare) == 1 and bare.isalpha() and bare != "i")


def _safe(tail: str) -> int:
    # A candidate that more text could complete lies in the run of such characters at the end.
    return len(tail.rstrip(".!?…。！？\"'”’)]」』 \t\n\r\f\v"))
