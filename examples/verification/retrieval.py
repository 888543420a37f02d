"""BM25 over the passages of a corpus, word by word while the query is being written.

The score of a passage is a sum over the words of the query, so it can be kept up to date with every
word. When the query ends, its candidates are there. The index itself is bm25s's, which computes what
each word adds to each passage when it is built; its own search would compile with numba, and takes whole
queries only, so the sums are made here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, final

import bm25s  # type: ignore[import-untyped]
import numpy as np
from bm25s.stopwords import STOPWORDS_EN  # type: ignore[import-untyped]
from numpy.typing import NDArray

from examples.verification.records import Candidate, Candidates, Passage

__all__ = ("Index", "RunningSearch", "read_query", "terms")

TITLE_WEIGHT: Final = 3
"""A word of the title counts as often: a passage is about its title, whether it says so or not."""

_TERM = re.compile(r"\w+")
_STOP = frozenset(STOPWORDS_EN)


def terms(text: str) -> list[str]:
    """What a text is indexed by: its words, whatever their case, but for English "the", "of" ..."""
    words = (word.casefold() for word in _TERM.findall(text))
    return [word for word in words if word not in _STOP]


def read_query(line: str) -> str:
    """The query in a line that may begin with a dash; empty where the line has none."""
    return line.strip().removeprefix("-").strip()


@final
class Index:
    """BM25 over passages; read only once it is built.

    Args:
        passages: At least one. Title and text are searched together.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = tuple(passages)
        tokens = [terms(p.title) * TITLE_WEIGHT + terms(p.text) for p in passages]
        if not any(tokens):
            raise ValueError("no passage has a word that could be searched for")
        self._bm25: Any = bm25s.BM25()
        self._bm25.index(tokens, show_progress=False)

    def no_scores(self) -> NDArray[np.float32]:
        """A score of 0 for every passage: those of a query without words."""
        return np.zeros(len(self.passages), dtype=np.float32)

    def add(self, scores: NDArray[np.float32], term: str) -> None:
        """Add to *scores* what one more *term* of the query is worth."""
        scores += self._bm25.get_scores_from_ids(self._bm25.get_tokens_ids([term]))

    def whole(self, query: str) -> NDArray[np.float32]:
        """The scores of a whole query at once."""
        found: NDArray[np.float32] = self._bm25.get_scores_from_ids(
            self._bm25.get_tokens_ids(terms(query))
        )
        return found

    def best(self, query: str, scores: NDArray[np.float32], k: int) -> Candidates:
        """The *k* passages with the best scores above 0; of equal ones the first of the corpus."""
        hits = np.flatnonzero(scores > 0)
        order = hits[np.argsort(-scores[hits], kind="stable")][:k]
        return Candidates(query, tuple(Candidate(int(n), float(scores[n])) for n in order))


@final
class RunningSearch:
    """The search for queries that are being written, one a line.

    Args:
        index: What is searched.
        k: Candidates per query, at most.
    """

    def __init__(self, index: Index, k: int) -> None:
        self._index = index
        self._k = k
        self._begin()

    def _begin(self) -> None:
        self._query = ""
        self._word = ""
        self._scores = self._index.no_scores()

    def feed(self, text: str) -> list[Candidates]:
        """Take some more text, of any length; give the candidates of the queries that it ended."""
        ended = []
        for char in text:
            if _TERM.match(char):
                self._word += char
            else:
                self._end_word()
            if char in "\n\r":
                ended += self.end()
            else:
                self._query += char
        return ended

    def end(self) -> list[Candidates]:
        """End the query that is being written; an empty one is none."""
        self._end_word()
        query = read_query(self._query)
        found = [self._index.best(query, self._scores, self._k)] if query else []
        self._begin()
        return found

    def _end_word(self) -> None:
        for term in terms(self._word):
            self._index.add(self._scores, term)
        self._word = ""
