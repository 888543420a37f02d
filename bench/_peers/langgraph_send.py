"""LangGraph's map-reduce: ``Send`` from a conditional edge, a reducer on a state key, ``ainvoke``.

A node cannot hand over before it returns, so the producer is a list. LangGraph applies the writes
of a step in the order of its tasks, so the reduced list is in input order without sorting. The
graph ends after the map (no gather node), which saves it a step. Tracing is off.
"""

import operator
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send


class State(TypedDict):
    """What a request carries through the graph."""

    n: int
    items: list[int]
    results: Annotated[list[int], operator.add]


class Piece(TypedDict):
    """What one ``Send`` carries."""

    item: int


async def expand(state: State) -> dict[str, list[int]]:
    """Make the items."""
    return {"items": list(range(state["n"]))}


def fan_out(state: State) -> list[Send]:
    """One call of ``work`` per item."""
    return [Send("work", {"item": item}) for item in state["items"]]


async def work(state: Piece) -> dict[str, list[int]]:
    """One async call that does not wait."""
    return {"results": [state["item"] + 1]}


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Compile the graph."""
    os.environ.update(LANGSMITH_TRACING="false", LANGCHAIN_TRACING_V2="false")
    builder = StateGraph(State)
    builder.add_node("expand", expand)
    builder.add_node("work", work)
    builder.add_edge(START, "expand")
    builder.add_conditional_edges("expand", fan_out, ["work"])
    builder.add_edge("work", END)
    graph = builder.compile()

    async def fan(n: int) -> list[int]:
        return (await graph.ainvoke({"n": n}))["results"]

    yield fan
