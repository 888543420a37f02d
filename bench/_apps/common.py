"""What all versions of an application are given, and how their results come out.

A `Desk` is the same for both: the handle on the same engines, the same prompts, the same search. The
functions of an application that ask the model are async generators where there are pieces. A stage
of alto passes each piece on. A node of LangGraph hands over what it has when it returns; ``by_hand``
it begins work on each piece itself, with LangGraph's ``@task`` or asyncio's, and is then the whole
of what was several nodes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar, final

import attrs
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import StreamMode

import alto
from examples.verification.model import prompts as forms
from examples.verification.model import world
from examples.verification.prompts import Trained
from examples.verification.records import Evidence, Passage, Ranking
from examples.verification.rerank import READ, PassageVectors, fuse, rank
from examples.verification.retrieval import Index

T = TypeVar("T")
R = TypeVar("R")

OPEN: Final = 512
"""Concurrency of a stage: as LangGraph has none per node, none is felt here."""
CANDIDATES: Final = 10
"""Passages that BM25 finds for a query."""

Run: TypeAlias = Callable[[Any, Callable[[], None]], Awaitable[Any]]
"""Serves one request: gets the input and whom to tell of a useful result, and gives the result."""


@cache
def corpus() -> Index:
    """The sentences of the verification example's texts."""
    return Index([
        Passage(title, title, sentence)
        for entity in world.entities()
        for title in [forms.title_of(entity.name)]
        for sentence in world.passage(entity)
    ])  # fmt: skip


@attrs.frozen
class Judged:
    """A claim, what was found of it, and the passages that were shown to the model."""

    claim: str
    verdict: str
    found: str | None
    shown: tuple[str, ...]


@final
class Search:
    """Finds passages for a query, by BM25, and reranks them.

    Args:
        encoder: Gives vectors for late interaction; None: there is none, and a query takes *seconds*.
        seconds: What BM25, an encoder and a reranker take.
        found: What was found by another search, which is then given again.
    """

    def __init__(
        self,
        *,
        encoder: alto.LLM | None = None,
        seconds: float = 0.0,
        found: Mapping[str, Ranking] | None = None,
    ) -> None:
        self._encoder = encoder
        self._seconds = seconds
        self._known = PassageVectors(corpus())
        self._given = found
        self.found: dict[str, Ranking] = {}
        """By query."""
        self.took: list[float] = []
        """Seconds of every query."""

    async def __call__(self, query: str) -> Ranking:
        """The passages for a query, best first."""
        clock = asyncio.get_running_loop().time
        began = clock()
        if self._given is None:
            self.found[query] = await self._search(query)
        else:
            self.found[query] = self._given[query]
            await asyncio.sleep(self._seconds)
        self.took.append(clock() - began)
        return self.found[query]

    async def _search(self, query: str) -> Ranking:
        index = corpus()
        found = index.best(query, index.whole(query), CANDIDATES)
        if self._encoder is None:
            await asyncio.sleep(self._seconds)
            return rank(index, found, None, {})
        vectors = await self._encoder.embed_tokens(query[:READ])
        numbers = [candidate.passage for candidate in found.found]
        return rank(index, found, vectors, await self._known.of(numbers, self._encoder))


@dataclass(frozen=True, kw_only=True)
class Desk:  # a dataclass, as LangGraph wants for its context
    """All that an application works with; the same object for both."""

    llm: alto.LLM
    find: Search
    """The passages for a query, best first."""
    pinned: Callable[[str], Sequence[str]] | None = None
    """Gives the only text that a real model is allowed to answer to a prompt; None: its own."""
    model: Trained = field(default_factory=Trained)

    def ask(self, prompt: str) -> alto.Generation:
        """Ask the model; greedy."""
        if self.pinned is None:
            return self.llm.generate(prompt)
        return self.llm.generate(prompt, choice=["".join(self.pinned(prompt))])

    async def queries(self, claim: str) -> AsyncIterator[str]:
        """Search queries for a claim, each when its line has ended."""
        seen: set[str] = set()
        async for line in alto.text.lines(self.model.queries(self.llm, claim)):
            for query in forms.read_list(line):
                if query not in seen:
                    seen.add(query)
                    yield query

    async def judge(self, claim: str, rankings: Sequence[Ranking]) -> Judged:
        """The verdict on a claim by what its queries found."""
        shown: Sequence[Evidence] = self.model.reads(fuse(rankings))
        judged = await self.model.judge(self.llm, claim, [piece.passage for piece in shown])
        texts = tuple(piece.passage.text for piece in shown)
        return Judged(claim, judged.verdict, judged.found, texts)


@attrs.frozen(kw_only=True)
class Application:
    """An application, twice."""

    name: str
    first: str
    """What its first useful result is."""
    inputs: Callable[[random.Random, int], list[Any]]
    """So many requests."""
    says: Callable[[str], Sequence[str]]
    """What a simulated model says to a prompt, in tokens."""
    pinned: bool = False
    """Whether a real model is held to that, word for word, for it was not trained for this."""
    alto: Callable[[Desk], AbstractAsyncContextManager[Run]]
    langgraph: Callable[[Desk], AbstractAsyncContextManager[Run]]
    """As a graph of nodes."""
    by_hand: Callable[[Desk], AbstractAsyncContextManager[Run]] | None = None
    """In LangGraph, with tasks of its own inside a node; None: there is nothing to gain by that."""


# ------------------------------------------------------------------------------------------- alto


@attrs.frozen
class Whole:
    """The result of a request, among the useful results that came before it."""

    result: Any


@alto.stage(order="arrival", concurrency=OPEN)
async def early(pieces: alto.Group[Any]) -> AsyncIterator[Any]:
    """Every piece as soon as it is there."""
    async for piece in pieces:
        yield piece


@alto.stage(concurrency=OPEN)
async def last(result: Any) -> AsyncIterator[Any]:  # noqa: ANN401  # of any application
    """The result."""
    yield Whole(result)


def watched(
    request: alto.Stream[Any], useful: alto.Stream[Any], result: alto.Stream[Any]
) -> alto.Stream[Any]:
    """Useful results as they come, and the result."""
    return alto.merge(early(useful, by=request), last(result), by=request, order="arrival")


@asynccontextmanager
async def opened(pipeline: alto.Pipeline[Any, Any], desk: Desk) -> AsyncIterator[Run]:
    """A pipeline, open for requests."""
    async with pipeline.open(desk=desk) as app:

        async def run(request: Any, useful: Callable[[], None]) -> Any:  # noqa: ANN401
            result = None
            async with app.stream(request) as items:
                async for item in items:
                    if isinstance(item, Whole):
                        result = item.result
                    else:
                        useful()
            return result

        yield run


# -------------------------------------------------------------------------------------- LangGraph


@asynccontextmanager
async def compiled(
    graph: CompiledStateGraph[Any, Desk, Any, Any], desk: Desk, given: str, key: str
) -> AsyncIterator[Run]:
    """A graph, ready for requests: *given* is the key of the input, *key* that of the result."""

    async def run(request: Any, useful: Callable[[], None]) -> Any:  # noqa: ANN401
        state: Any = None
        modes: list[StreamMode] = ["custom", "values"]
        async for mode, part in graph.astream({given: request}, context=desk, stream_mode=modes):
            if mode == "custom":
                useful()
            else:
                state = part
        return state[key]

    yield run


async def together(work: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """All of it at once inside one node; results in order, as of ``asyncio.gather``."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one) for one in work]
    return [task.result() for task in running]


async def streamed(
    pieces: AsyncIterator[T], work: Callable[[T], Coroutine[Any, Any, R]]
) -> list[R]:
    """The same, each begun when its piece is there."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work(piece)) async for piece in pieces]
    return [task.result() for task in running]


async def listed(pieces: AsyncIterator[T]) -> list[T]:
    """All pieces."""
    return [piece async for piece in pieces]


async def once(text: str) -> AsyncIterator[str]:
    """A whole text, for a splitter."""
    yield text
