"""The application: ten stages, and how they are connected.

    question > answer > split > extract > write_queries ┬> search ─────────────────┬> rerank > gather ┐
                 text  sentences  claims        tokens  └> whole_queries > encode ─┘                  │
                                    └──────────────────────────────────────────────────────> appraise ┘

A stage is a function of a few lines, and nothing in it says how the others run. Text leaves the model
as it is decoded: a sentence is taken apart while the next one is written, and a query is searched for
while it is being written. Evidence is gathered per claim because `gather` takes a ``Group``; which
replica of `search` gets a claim's tokens, and when they are all there, is alto's affair.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, Protocol, TypeVar

import attrs

import alto
from examples.verification.prompts import Model
from examples.verification.records import (
    Appraisal,
    Candidates,
    Claim,
    Event,
    Evidence,
    QueryVectors,
    Ranking,
    Sentence,
    Written,
)
from examples.verification.rerank import READ, PassageVectors, fuse, rank
from examples.verification.retrieval import Index, RunningSearch, read_query

__all__ = ("verify", "verify_in_steps", "watch", "watch_in_steps")

T = TypeVar("T")

CANDIDATES: Final = 10
"""Passages that BM25 finds for a query."""


@alto.stage(concurrency=64)
async def answer(question: str, *, llm: alto.LLM, model: Model) -> AsyncIterator[str]:
    """Text of the answer, as it is decoded."""
    async for text in model.answer(llm, question):
        yield text


@alto.stage
async def split(text: alto.Group[str]) -> AsyncIterator[Sentence]:
    """Sentences of the answer, each as soon as it has ended."""
    async for sentence in alto.text.sentences(text):
        yield Sentence(sentence)


@alto.stage(concurrency=64)
async def extract(
    question: str, sentence: Sentence, *, llm: alto.LLM, model: Model
) -> AsyncIterator[Claim]:
    """The facts that a sentence states."""
    async for claim in model.claims(llm, question, sentence.text):
        yield Claim(claim, sentence.text)


@alto.stage(concurrency=64)
async def write_queries(claim: Claim, *, llm: alto.LLM, model: Model) -> AsyncIterator[str]:
    """Search queries for a claim, one a line: their text, token by token."""
    async for token in model.queries(llm, claim.text):
        yield token


@alto.stage(replicas=4)
async def search(tokens: alto.Group[str], *, index: Index) -> AsyncIterator[Candidates]:
    """Score every passage with each word of a query; candidates are there when the query ends.

    The scores of the query that is being written are state of this call, so all tokens of a claim
    must come here, in order. Being a stage over a ``Group`` says that.
    """
    running = RunningSearch(index, CANDIDATES)
    async for token in tokens:
        for candidates in running.feed(token):
            yield candidates
    for candidates in running.end():
        yield candidates


@alto.stage
async def whole_queries(tokens: alto.Group[str]) -> AsyncIterator[str]:
    """The same queries, each when its line has ended."""
    async for line in alto.text.lines(tokens):
        if query := read_query(line):
            yield query


@alto.stage(concurrency=64)
async def encode(query: str, *, encoder: alto.LLM | None) -> QueryVectors:
    """A vector for each token of a query."""
    vectors = None if encoder is None else await encoder.embed_tokens(query[:READ])
    return QueryVectors(query, vectors)


@alto.stage(replicas=4)
async def rerank(
    found: alto.Group[Candidates],
    encoded: alto.Group[QueryVectors],
    *,
    index: Index,
    encoder: alto.LLM | None,
    known: PassageVectors,
) -> AsyncIterator[Ranking]:
    """The candidates of each query of a claim, in the order of late interaction."""
    queries = aiter(encoded)
    async for candidates in found:
        query = await anext(queries)
        assert query.query == candidates.query
        numbers = [candidate.passage for candidate in candidates.found]
        passages = {} if encoder is None else await known.of(numbers, encoder)
        yield rank(index, candidates, query.vectors, passages)


@alto.stage
async def gather(rankings: alto.Group[Ranking]) -> list[Evidence]:
    """The evidence on a claim: what its queries agree on."""
    return list(fuse(await rankings.list()))


@alto.stage(concurrency=64)
async def appraise(
    claim: Claim, evidence: list[Evidence], *, llm: alto.LLM, model: Model
) -> Appraisal:
    """The verdict on a claim."""
    shown = model.reads(evidence)
    judged = await model.judge(llm, claim.text, [piece.passage for piece in shown])
    return Appraisal(claim, judged.verdict, judged.found, tuple(shown))


@attrs.frozen
class Streams:
    """What a question gives, on its way."""

    text: alto.Stream[str]
    sentences: alto.Stream[Sentence]
    claims: alto.Stream[Claim]
    appraisals: alto.Stream[Appraisal]


class HandOver(Protocol):
    """Something to put on every edge; see `in_steps`."""

    def __call__(self, stream: alto.Stream[T], /) -> alto.Stream[T]:
        """The same items."""


def at_once(stream: alto.Stream[T], /) -> alto.Stream[T]:
    """Every item as it comes: nothing is put there."""
    return stream


def connect(question: alto.Stream[str], hand_over: HandOver = at_once) -> Streams:
    """The stages, connected."""
    text = hand_over(answer(question))
    sentences = hand_over(split(text))
    claims = hand_over(extract(question, sentences))
    tokens = hand_over(write_queries(claims))
    candidates = hand_over(search(tokens))
    encoded = hand_over(encode(hand_over(whole_queries(tokens))))
    rankings = hand_over(rerank(candidates, encoded, by=claims))
    evidence = hand_over(gather(rankings))
    return Streams(text, sentences, claims, hand_over(appraise(claims, evidence)))


@alto.stage
async def written(text: alto.Group[str]) -> AsyncIterator[Written]:
    """The text of the answer as it comes, and that it is complete."""
    async for piece in text:
        yield Written(piece)
    yield Written("", complete=True)


def events(question: alto.Stream[str], streams: Streams) -> alto.Stream[Event]:
    """All streams as one, in the order of arrival."""
    found = alto.merge(streams.claims, streams.appraisals, by=question, order="arrival")
    return alto.merge(written(streams.text), streams.sentences, found, order="arrival")


@alto.pipeline
def verify(question: alto.Stream[str]) -> alto.Stream[Appraisal]:
    """An appraisal for every claim of the answer."""
    return connect(question).appraisals


@alto.pipeline
def watch(question: alto.Stream[str]) -> alto.Stream[Event]:
    """The same, with everything that a reader may want to see on the way, as it happens."""
    return events(question, connect(question))


# What an application without streaming does, for comparison: a stage begins when the one above it
# has ended.


@alto.stage
async def held(item: Any, count: int) -> Any:  # noqa: ANN401, ARG001  # of any stream
    """An item, once the number of items on its stream is known."""
    return item


def in_steps(question: alto.Stream[str]) -> HandOver:
    """Hands nothing over until everything is there that the question gives on that edge."""

    def hand_over(stream: alto.Stream[T], /) -> alto.Stream[T]:
        return held(stream, alto.count(stream, by=question))

    return hand_over


@alto.pipeline
def verify_in_steps(question: alto.Stream[str]) -> alto.Stream[Appraisal]:
    """As `verify`, one stage after the other."""
    return connect(question, in_steps(question)).appraisals


@alto.pipeline
def watch_in_steps(question: alto.Stream[str]) -> alto.Stream[Event]:
    """As `watch`, one stage after the other."""
    return events(question, connect(question, in_steps(question)))
