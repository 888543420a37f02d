"""The pipeline, once, for all configurations.

::

    question -> answer -> extract -> queries -+-> words ---> bm25 ---+-> rerank
               (pieces)   (claims)            +-> written -> encode -+

Stages that ask a model are the same functions everywhere; where a configuration does not stream they
wait for the whole generation and then yield what they have read in it. Everything else gets
what comes, as it comes. All service times are sleeps on the virtual clock; engines are simulated.

The paper sends tokens of a query to BM25 while the query is being written, several queries to one
generation. So ``queries`` yields a `Query` at its first word and goes on writing into it, and
``words`` reads it; the words of a query are a group, which is bound to one replica of BM25. The
encoder needs a whole query, so ``written`` waits for that without one of its places.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

import alto
from alto.engines import Pool
from alto.model import Usage
from alto.pipeline import Pipeline
from bench._paper.configs import ENGINES, Config
from bench._paper.workload import (
    LIMIT,
    NOTHING,
    QUESTION_TOKENS,
    ClaimPlan,
    RequestPlan,
)

HEADS = {"answer": 60, "extract": 500, "queries": 320}
"""Tokens that the prompts of a stage begin with; guessed, the paper does not print its prompts."""
BM25_WORD_S, BM25_QUERY_S = 0.004, 0.008
ENCODE_S, RERANK_S = 0.003, 0.015
MANY = 1_000_000
"""Concurrency of stages that only wait."""
WORTH_TOKENS = 900
"""See `Lab.worth`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Sentences of an answer from which claims are extracted together."""

    plan: RequestPlan
    begin: int
    end: int


Words: TypeAlias = tuple[str, ...]
"""Words of a query that follow one another; one, where they come while they are decoded."""


class Query:
    """A query that is being written, word by word; one reads the words, one waits for the end."""

    __slots__ = ("_end", "_more", "_words", "_written")

    def __init__(self) -> None:
        self._words: list[str] = []
        self._written = False
        self._more: asyncio.Future[None] | None = None
        self._end: asyncio.Future[None] | None = None

    def write(self, word: str) -> None:
        """One more word."""
        self._words.append(word)
        _wake(self._more)

    def end(self) -> None:
        """That was the last word."""
        self._written = True
        _wake(self._more)
        _wake(self._end)

    async def read(self) -> AsyncIterator[Words]:
        """The words, as many at a time as are there."""
        place = 0
        while not self._written or place < len(self._words):
            if place < len(self._words):
                more = tuple(self._words[place:])
                place += len(more)
                yield more
                continue
            self._more = asyncio.get_running_loop().create_future()
            await self._more

    async def size(self) -> int:
        """How many words it has, when it has all of them."""
        if not self._written:
            self._end = asyncio.get_running_loop().create_future()
            await self._end
        return len(self._words)


def _wake(reader: asyncio.Future[None] | None) -> None:
    if reader is not None and not reader.done():
        reader.set_result(None)


@dataclass
class Lab:
    """What the stages of a run share: how they are to work, and what the models will say.

    Args:
        config: How.
        cached: Whether engines have a prefix cache. Where not, every prompt begins with a token of
            its own, and no prefix is declared, since none is held.
    """

    config: Config
    cached: bool
    pool: Pool | None = None
    calls: int = 0
    """Generations asked for."""
    pieces: int = 0
    """Pieces of answers from which claims were extracted."""
    _said: dict[int, Sequence[str]] = field(default_factory=dict)
    _keys: Any = field(default_factory=lambda: count(1_000_000))
    _uncached: float = HEADS["extract"]

    def say(self, request: alto.model.GenerateRequest) -> Sequence[str]:
        """What an engine says; the last token of a prompt names it."""
        return self._said.pop(request.prompt[-1])  # type: ignore[index, arg-type]  # token ids

    def ask(
        self, llm: alto.LLM, stage: str, body: Sequence[int], says: Sequence[str]
    ) -> alto.Generation:
        """Ask for a generation that will say *says*."""
        self.calls += 1
        key = next(self._keys)
        self._said[key] = says
        head = _HEADS[stage]
        prefix = head if self.cached else None
        prompt = [*(head if self.cached else [key, *head[1:]]), *body, key]
        return llm.generate(prompt, max_tokens=LIMIT, prefix=prefix)

    def new_key(self) -> int:
        """A token that nothing else has."""
        return next(self._keys)

    def learn(self, usage: Usage | None) -> None:
        """What an extraction has cost."""
        if usage is not None:
            computed = usage.prompt_tokens - usage.cached_tokens
            self._uncached += (computed - self._uncached) / 16

    def worth(self, sentences: int) -> bool:
        """Whether to extract claims from these sentences now, rather than wait for more of them.

        An extraction more computes the prompt's head once more, unless that is cached, and holds up
        whatever its engine decodes. So it is worth it where prompt tokens computed, times
        generations per engine, are at most `WORTH_TOKENS` for each sentence: single sentences
        at low load, and larger pieces where engines are busy.
        """
        if self.config.pieces != "adaptive":
            return self.config.pieces == "sentence"
        assert self.pool is not None
        generations = sum(engine.load for engine in self.pool.scheduler.engines)
        return self._uncached * generations <= WORTH_TOKENS * ENGINES * sentences


_HEADS = {
    stage: [1000 * number + place for place in range(tokens)]
    for number, (stage, tokens) in enumerate(HEADS.items(), 1)
}


async def answer(question: RequestPlan, *, lab: Lab, llm: alto.LLM) -> AsyncIterator[Piece]:
    """Answer a question; yield the pieces that claims are extracted from."""
    plan, last = question, len(question.sentences)
    generation = lab.ask(llm, "answer", [lab.new_key()] * QUESTION_TOKENS, plan.answer)
    done = read = 0
    if lab.config.pieces == "answer":
        await generation.text()
    else:
        async for _ in alto.text.sentences(chunk.text async for chunk in generation):
            read += 1
            if read < last and lab.worth(read - done):
                yield Piece(plan, done, read)
                done = read
    yield Piece(plan, done, last)


async def extract(piece: Piece, *, lab: Lab, llm: alto.LLM) -> AsyncIterator[ClaimPlan]:
    """The claims of a piece, each when its line is complete; what is repeated is left out."""
    lab.pieces += 1
    plan = piece.plan
    claims = plan.stated(piece.begin, piece.end)
    body = [plan.number + 100_000] * plan.sentences[piece.end - 1]
    generation = lab.ask(llm, "extract", body, plan.extraction(claims))
    if not lab.config.streaming:
        lines = (await generation.text()).splitlines()
        lab.learn(generation.usage)
        different = dict.fromkeys(map(_unmarked, lines))
        for claim, _ in zip(claims, different, strict=False):
            yield claim
        return
    seen: set[str] = set()
    async for line in alto.text.lines(_text(generation, lab)):
        statement = _unmarked(line)
        if line == NOTHING[0] or statement in seen:
            return  # it has all claims, and lets the engine go
        seen.add(statement)
        yield claims[len(seen) - 1]


def _unmarked(line: str) -> str:
    return line.partition(" ")[2]


async def _text(generation: alto.Generation, lab: Lab) -> AsyncIterator[str]:
    async for chunk in generation:
        if chunk.usage is not None:
            lab.learn(chunk.usage)
        yield chunk.text


async def queries(claim: ClaimPlan, *, lab: Lab, llm: alto.LLM) -> AsyncIterator[Query]:
    """The queries to a claim, each from its first word on."""
    body = [lab.new_key()] * len(claim.tokens)
    generation = lab.ask(llm, "queries", body, claim.queries)
    if not lab.config.streaming:
        for line in (await generation.text()).splitlines():
            whole = Query()
            for word in _unmarked(line).split():
                whole.write(word)
            whole.end()
            yield whole
        return
    query, word = None, ""
    async for chunk in generation:
        for part in _parts(chunk.text):
            if part[0] not in " \n":
                word += part  # the dash, or it goes on
                continue
            if word and word != "-":
                if query is None:
                    query = Query()
                    query.write(word)
                    yield query
                else:
                    query.write(word)
            word = part.strip()
            if part == "\n" and query is not None:
                query.end()
                query = None


def _parts(text: str) -> list[str]:
    """*text* before each space, and before and behind each line break."""
    return [part for part in re.split(r"(?= )|(?=\n)|(?<=\n)", text) if part]


async def words(query: Query) -> AsyncIterator[Words]:
    """The words of a query, as many at a time as are there."""
    async for some in query.read():
        yield some


async def bm25(query: alto.Group[Words]) -> int:
    """Candidates of a query: scores are added up word by word, and then the best are taken."""
    found = 0
    async for some in query:
        await asyncio.sleep(BM25_WORD_S * len(some))
        found += len(some)
    await asyncio.sleep(BM25_QUERY_S)
    return found


async def written(query: Query) -> int:
    """The number of words of a query, when it has all of them."""
    return await query.size()


async def encode(size: int) -> int:
    """The vector of a query."""
    await asyncio.sleep(ENCODE_S)
    return size


async def rerank(found: int, vector: int) -> int:
    """Candidates in the order that the vector gives them."""
    assert found == vector
    await asyncio.sleep(RERANK_S)
    return found


async def spread(items: list[Any]) -> AsyncIterator[Any]:
    """The items of a list one by one, behind a barrier."""
    for item in items:
        yield item


async def pair(found: list[Any], vectors: list[Any]) -> AsyncIterator[tuple[int, int]]:
    """Candidates and vectors of all queries, behind a barrier."""
    for both in zip(found, vectors, strict=True):
        yield both


async def rerank_pair(both: tuple[int, int]) -> int:
    """As `rerank`, of what a barrier has brought together."""
    return await rerank(*both)


def build(config: Config) -> Pipeline[RequestPlan, int]:
    """The pipeline as *config* has it; it needs ``lab`` and ``llm``."""
    lm, waiting = alto.stage(concurrency=MANY), alto.stage(concurrency=MANY)
    answers, claims, asked = lm(answer), lm(extract), lm(queries)
    read, whole = waiting(words), waiting(written)
    four = {"replicas": 4, "concurrency": 4}
    search = alto.stage(**four, router=config.router())(bm25)  # type: ignore[call-overload]
    vector = alto.stage(concurrency=1)(encode)
    ranked = alto.stage(**four, router=config.router())(rerank)  # type: ignore[call-overload]
    ranked_pair = alto.stage(**four, router=config.router())(rerank_pair)  # type: ignore[call-overload]
    spreading, pairing = waiting(spread), waiting(pair)

    @alto.pipeline
    def streamed(question: alto.Stream[RequestPlan]) -> alto.Stream[int]:
        query = asked(claims(answers(question)))
        return ranked(search(read(query)), vector(whole(query)))

    @alto.pipeline
    def barred(question: alto.Stream[RequestPlan]) -> alto.Stream[int]:
        def all_of(stream: alto.Stream[Any]) -> alto.Stream[Any]:
            return spreading(alto.collect(stream, by=question))

        query = all_of(asked(all_of(claims(answers(question)))))
        found = alto.collect(search(read(query)), by=question)
        vectors = alto.collect(vector(whole(query)), by=question)
        return ranked_pair(pairing(found, vectors))

    return barred if config.barrier else streamed
