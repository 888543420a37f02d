"""Late interaction: how well each token of a query is met by the best token of a passage.

A sentence encoder gives one vector for every token. The similarity of a query and a passage is the
mean, over the query's tokens, of the largest cosine with a token of the passage (MaxSim, as in
ColBERT). Vectors of passages are computed when they are first needed, and kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, final

import attrs
import numpy as np
from numpy.typing import NDArray

import alto
from examples.verification.records import Candidates, Evidence, Ranking, Vectors
from examples.verification.retrieval import Index

__all__ = ("READ", "PassageVectors", "closest", "fuse", "max_sim", "rank")

_NEAR: Final = 0.13
"""Difference of similarities up to which a passage is nearly as close as another."""
_ALIKE: Final = 0.7
"""Ratio of BM25 scores from which it is, where there are no similarities."""

Matrix = NDArray[np.float32]

READ: Final = 240
"""Characters of a text that the encoder reads: fewer than it has room for tokens, in any script."""

_SMOOTHING: Final = 60
"""Of reciprocal ranks: the larger, the less the first few ranks stand out."""


def _unit_rows(vectors: Vectors) -> Matrix:
    matrix = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    rows: Matrix = matrix / np.where(lengths > 0, lengths, 1)
    return rows


def max_sim(query: Matrix, passage: Matrix) -> float:
    """Similarity of two texts, given as rows of unit vectors: -1 to 1, to three places.

    Further places depend on what else the encoder had in its batch, and are no reason to prefer one
    passage over another.
    """
    return round(float((query @ passage.T).max(axis=1).mean()), 3)


@final
class PassageVectors:
    """The vectors of the passages that were needed so far.

    Args:
        index: Where the passages are.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._known: dict[int, Matrix] = {}

    async def of(self, numbers: Iterable[int], encoder: alto.LLM) -> Mapping[int, Matrix]:
        """The vectors of these passages, by number, encoded now where they are not known."""
        wanted = list(numbers)
        new = [number for number in wanted if number not in self._known]
        if new:
            passages = [self._index.passages[number] for number in new]
            texts = [f"{passage.title}: {passage.text}"[:READ] for passage in passages]
            for number, vectors in zip(new, await encoder.embed_tokens(texts), strict=True):
                self._known[number] = _unit_rows(vectors)
        return {number: self._known[number] for number in wanted}


def rank(
    index: Index, candidates: Candidates, query: Vectors | None, passages: Mapping[int, Matrix]
) -> Ranking:
    """The candidates of a query by similarity, or where there are no vectors as BM25 has them."""
    rows = None if query is None else _unit_rows(query)
    found = [
        Evidence(
            passage=index.passages[candidate.passage],
            bm25=round(candidate.bm25, 3),
            similarity=None if rows is None else max_sim(rows, passages[candidate.passage]),
            score=0.0,
        )
        for candidate in candidates.found
    ]
    found.sort(key=lambda evidence: evidence.similarity or 0.0, reverse=True)  # stable
    return Ranking(
        candidates.query,
        tuple(
            attrs.evolve(evidence, score=1 / (_SMOOTHING + place))
            for place, evidence in enumerate(found, 1)
        ),
    )


def fuse(rankings: Sequence[Ranking]) -> tuple[Evidence, ...]:
    """The passages that several queries found, by the sum of their reciprocal ranks."""
    fused: dict[tuple[str, str], Evidence] = {}
    for evidence in (evidence for ranking in rankings for evidence in ranking.found):
        key = (evidence.passage.source, evidence.passage.text)
        known = fused.get(key)
        if known is None:
            fused[key] = evidence
            continue
        similarity = evidence.similarity
        if similarity is not None and known.similarity is not None:
            similarity = max(similarity, known.similarity)
        fused[key] = Evidence(
            passage=known.passage,
            bm25=max(evidence.bm25, known.bm25),
            similarity=similarity,
            score=known.score + evidence.score,
        )
    rounded = [
        attrs.evolve(evidence, score=round(evidence.score, 5)) for evidence in fused.values()
    ]
    return tuple(sorted(rounded, key=lambda evidence: evidence.score, reverse=True))


def closest(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """What is nearly as close as the best, of the one text that the queries agree on most.

    For a small model, which is led astray by sentences about something else.
    """
    texts: dict[str, float] = defaultdict(float)
    for piece in evidence:
        texts[piece.passage.source] += piece.score
    if not texts:
        return ()
    text = max(texts, key=lambda source: texts[source])
    own = [piece for piece in evidence if piece.passage.source == text]
    near = max(piece.similarity or 0.0 for piece in own) - _NEAR
    alike = max(piece.bm25 for piece in own) * _ALIKE
    return tuple(
        piece
        for piece in own
        if (piece.bm25 >= alike if piece.similarity is None else piece.similarity >= near)
    )
