"""What flows between the stages."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

__all__ = (
    "Appraisal",
    "Candidate",
    "Candidates",
    "Claim",
    "Event",
    "Evidence",
    "Passage",
    "QueryVectors",
    "Ranking",
    "Sentence",
    "Vectors",
    "Verdict",
    "Written",
)

Verdict: TypeAlias = Literal["SUPPORTED", "REFUTED", "NOT FOUND", "UNCLEAR"]
"""NOT FOUND: the evidence says nothing of it. UNCLEAR: the model's judgement cannot be read."""

Vectors: TypeAlias = tuple[tuple[float, ...], ...]
"""A vector for each token of a text."""


@attrs.frozen
class Passage:
    """A sentence of the corpus."""

    source: str
    """The file, relative to the corpus folder."""
    title: str
    """What the text is about, since a sentence may only say "it"."""
    text: str


@attrs.frozen
class Written:
    """Some more text of the answer."""

    text: str
    complete: bool = False
    """Whether the answer ends here."""


@attrs.frozen
class Sentence:
    """A sentence of the answer."""

    text: str


@attrs.frozen
class Claim:
    """One fact that a sentence of the answer states."""

    text: str
    sentence: str


@attrs.frozen
class Candidate:
    """A passage that shares words with a query."""

    passage: int
    """Its number in the index."""
    bm25: float


@attrs.frozen
class Candidates:
    """The passages that share most with a query, best first."""

    query: str
    found: tuple[Candidate, ...]


@attrs.frozen
class QueryVectors:
    """A query as the encoder reads it."""

    query: str
    vectors: Vectors | None
    """None: there is no encoder."""


@attrs.frozen
class Evidence:
    """A passage, and why it was taken."""

    passage: Passage
    bm25: float
    """The best score that it has for a query of the claim."""
    similarity: float | None
    """The same for late interaction, -1 to 1; None: there is no encoder."""
    score: float
    """Sum of its reciprocal ranks; what evidence is ordered by."""


@attrs.frozen
class Ranking:
    """The candidates of one query, reordered. Their scores are those of this query alone."""

    query: str
    found: tuple[Evidence, ...]


@attrs.frozen
class Appraisal:
    """What the evidence says about a claim."""

    claim: Claim
    verdict: Verdict
    found: str | None
    """What the evidence says in the claim's place; None: nothing."""
    evidence: tuple[Evidence, ...]
    """What was shown to the model, best first."""


Event: TypeAlias = Written | Sentence | Claim | Appraisal
"""What a reader is told while a question is worked on."""
