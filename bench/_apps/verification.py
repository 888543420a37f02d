"""Verification: an answer, its claims, queries and passages for each, a verdict on each.

    question > answer > sentences > claims > queries > search and rerank > verdict

In LangGraph the sentences of the answer go on when its node returns. Each is one ``Send``; the node
behind it extracts the claims and works on all of them at once, so no claim waits for another one's
search. A superstep for every step would be slower. By hand, one node is everything: it calls a
``@task`` for each sentence while the answer is written, and begins on claims and queries the same way.
"""

from __future__ import annotations

import operator
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, TypedDict

from langgraph.config import get_stream_writer
from langgraph.func import task
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

import alto
from bench._apps.common import (
    OPEN,
    Application,
    Desk,
    Judged,
    Run,
    compiled,
    listed,
    once,
    opened,
    streamed,
    together,
    watched,
)
from examples.verification.model import world
from examples.verification.records import Ranking
from examples.verification.scripted import says


def inputs(luck: random.Random, count: int) -> list[str]:
    """Questions about known topics."""
    topics = [entity.name for entity in world.split("train")]
    luck.shuffle(topics)
    return [f"Tell me about {topics[k % len(topics)]}." for k in range(count)]


# ------------------------------------------------------------------------------------------- alto


@alto.stage(concurrency=OPEN)
async def answer(question: str, *, desk: Desk) -> AsyncIterator[str]:
    """Sentences of the answer, each when it has ended."""
    async for sentence in alto.text.sentences(desk.model.answer(desk.llm, question)):
        yield sentence


@alto.stage(concurrency=OPEN)
async def extract(question: str, sentence: str, *, desk: Desk) -> AsyncIterator[str]:
    """Claims of a sentence, each when its line has ended."""
    async for claim in desk.model.claims(desk.llm, question, sentence):
        yield claim


@alto.stage(concurrency=OPEN)
async def write_queries(claim: str, *, desk: Desk) -> AsyncIterator[str]:
    """Queries for a claim, each when its line has ended."""
    async for query in desk.queries(claim):
        yield query


@alto.stage(concurrency=OPEN)
async def find(query: str, *, desk: Desk) -> Ranking:
    """The passages for a query."""
    return await desk.find(query)


@alto.stage(concurrency=OPEN)
async def judge(claim: str, rankings: alto.Group[Ranking], *, desk: Desk) -> Judged:
    """The verdict on a claim."""
    return await desk.judge(claim, await rankings.list())


@alto.pipeline
def verify(question: alto.Stream[str]) -> alto.Stream[Any]:
    """Verdicts as they come, and all of them in the order of the claims."""
    claims = extract(question, answer(question))
    verdicts = judge(claims, find(write_queries(claims)))
    return watched(question, verdicts, alto.collect(verdicts, by=question))


def in_alto(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The pipeline, open."""
    return opened(verify, desk)


# -------------------------------------------------------------------------------------- LangGraph


class State(TypedDict):
    """What a request carries through the graph."""

    question: str
    sentences: list[str]
    verdicts: Annotated[list[Judged], operator.add]


class Piece(TypedDict):
    """What one ``Send`` carries."""

    question: str
    sentence: str


async def answer_node(state: State, runtime: Runtime[Desk]) -> dict[str, Any]:
    """The whole answer, in sentences."""
    desk = runtime.context
    text = "".join(await listed(desk.model.answer(desk.llm, state["question"])))
    return {"sentences": await listed(alto.text.sentences(once(text)))}


async def each_sentence(state: State) -> list[Send]:
    """A call of ``check`` per sentence."""
    return [
        Send("check", {"question": state["question"], "sentence": sentence})
        for sentence in state["sentences"]
    ]


async def check_node(state: Piece, runtime: Runtime[Desk]) -> dict[str, Sequence[Judged]]:
    """The claims of a sentence, and the whole chain for each of them."""
    desk = runtime.context

    async def checked(claim: str) -> Judged:
        rankings = await together(desk.find(query) for query in await listed(desk.queries(claim)))
        verdict = await desk.judge(claim, rankings)
        runtime.stream_writer(verdict)
        return verdict

    claims = await listed(desk.model.claims(desk.llm, state["question"], state["sentence"]))
    return {"verdicts": await together(checked(claim) for claim in claims)}


def in_langgraph(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The graph, compiled."""
    builder = StateGraph(State, context_schema=Desk)
    builder.add_node("answer", answer_node)
    builder.add_node("check", check_node)
    builder.add_edge(START, "answer")
    builder.add_conditional_edges("answer", each_sentence, ["check"])
    builder.add_edge("check", END)
    return compiled(builder.compile(), desk, "question", "verdicts")


@task
async def check_task(desk: Desk, question: str, sentence: str) -> list[Judged]:
    """The claims of a sentence, each with its whole chain from its own line on."""
    tell = get_stream_writer()

    async def checked(claim: str) -> Judged:
        verdict = await desk.judge(claim, await streamed(desk.queries(claim), desk.find))
        tell(verdict)
        return verdict

    return await streamed(desk.model.claims(desk.llm, question, sentence), checked)


async def verify_node(state: State, runtime: Runtime[Desk]) -> dict[str, list[Judged]]:
    """Everything, each sentence from its own end on."""
    desk, question = runtime.context, state["question"]
    sentences = alto.text.sentences(desk.model.answer(desk.llm, question))
    checks = [check_task(desk, question, sentence) async for sentence in sentences]
    return {"verdicts": [verdict for check in checks for verdict in await check]}


def by_hand(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The graph of one node, compiled."""
    builder = StateGraph(State, context_schema=Desk)
    builder.add_node("verify", verify_node)
    builder.add_edge(START, "verify")
    builder.add_edge("verify", END)
    return compiled(builder.compile(), desk, "question", "verdicts")


APPLICATION = Application(
    name="verification", first="verdict", inputs=inputs, says=says, alto=in_alto,
    langgraph=in_langgraph, by_hand=by_hand,
)  # fmt: skip
