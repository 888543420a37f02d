"""Multi-query retrieval with rerank: queries for a claim, a reranked list for each, one verdict.

    claim > queries > search and rerank > fuse > verdict

In LangGraph the queries go on when their node returns; each is one ``Send``, and the node behind it
searches and reranks. By hand, one node is everything, and searches for each query from its line on. The
stages of alto are those of ``verification.py``.
"""

from __future__ import annotations

import operator
import random
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

import alto
from bench._apps.common import (
    Application,
    Desk,
    Judged,
    Run,
    compiled,
    listed,
    opened,
    streamed,
    watched,
)
from bench._apps.verification import find, judge, write_queries
from examples.verification.records import Ranking
from examples.verification.scripted import says, truth


def inputs(luck: random.Random, count: int) -> list[str]:
    """Claims, true and mistaken."""
    claims = sorted(truth())
    luck.shuffle(claims)
    return [claims[k % len(claims)] for k in range(count)]


# ------------------------------------------------------------------------------------------- alto


@alto.pipeline
def retrieve(claim: alto.Stream[str]) -> alto.Stream[Any]:
    """Reranked lists as they come, and the verdict."""
    rankings = find(write_queries(claim))
    return watched(claim, rankings, judge(claim, rankings))


def in_alto(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The pipeline, open."""
    return opened(retrieve, desk)


# -------------------------------------------------------------------------------------- LangGraph


class State(TypedDict):
    """What a request carries through the graph."""

    claim: str
    queries: list[str]
    rankings: Annotated[list[Ranking], operator.add]
    verdict: Judged


class Piece(TypedDict):
    """What one ``Send`` carries."""

    query: str


async def write_node(state: State, runtime: Runtime[Desk]) -> dict[str, list[str]]:
    """All queries for the claim."""
    return {"queries": await listed(runtime.context.queries(state["claim"]))}


async def each_query(state: State) -> list[Send]:
    """A call of ``find`` per query."""
    return [Send("find", {"query": query}) for query in state["queries"]]


async def find_node(state: Piece, runtime: Runtime[Desk]) -> dict[str, list[Ranking]]:
    """The passages for a query."""
    ranking = await runtime.context.find(state["query"])
    runtime.stream_writer(ranking)
    return {"rankings": [ranking]}


async def judge_node(state: State, runtime: Runtime[Desk]) -> dict[str, Judged]:
    """The verdict on the claim."""
    return {"verdict": await runtime.context.judge(state["claim"], state["rankings"])}


def in_langgraph(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The graph, compiled."""
    builder = StateGraph(State, context_schema=Desk)
    builder.add_node("write", write_node)
    builder.add_node("find", find_node)
    builder.add_node("judge", judge_node)
    builder.add_edge(START, "write")
    builder.add_conditional_edges("write", each_query, ["find"])
    builder.add_edge("find", "judge")
    builder.add_edge("judge", END)
    return compiled(builder.compile(), desk, "claim", "verdict")


async def retrieve_node(state: State, runtime: Runtime[Desk]) -> dict[str, Judged]:
    """Everything, each query from its own line on."""
    desk, claim = runtime.context, state["claim"]

    async def found(query: str) -> Ranking:
        ranking = await desk.find(query)
        runtime.stream_writer(ranking)
        return ranking

    return {"verdict": await desk.judge(claim, await streamed(desk.queries(claim), found))}


def by_hand(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The graph of one node, compiled."""
    builder = StateGraph(State, context_schema=Desk)
    builder.add_node("retrieve", retrieve_node)
    builder.add_edge(START, "retrieve")
    builder.add_edge("retrieve", END)
    return compiled(builder.compile(), desk, "claim", "verdict")


APPLICATION = Application(
    name="retrieval", first="reranked list", inputs=inputs, says=says, alto=in_alto,
    langgraph=in_langgraph, by_hand=by_hand,
)  # fmt: skip
