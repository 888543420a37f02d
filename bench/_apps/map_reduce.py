"""Map-reduce over a document: a note on each passage, a summary per section, one of the whole.

    document > sections > passages > notes > summaries of sections > a summary of all

All passages are known at the start. In LangGraph every section is one ``Send``; the node behind it has
all notes of its section written at once and then its summary, so a section waits for no other one.
There is nothing that tasks by hand could begin earlier.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, TypedDict

import attrs
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Send

import alto
from bench._apps.common import OPEN, Application, Desk, Run, compiled, opened, together, watched
from examples.verification.model import world

PROMPT = "Summarise in a few sentences.\n\n{}\n\nSummary:\n"
TOKEN = re.compile(r"\s?\w{1,6}|[^\w]")


@attrs.frozen
class Section:
    """A heading and the passages below it."""

    title: str
    passages: tuple[str, ...]


def inputs(luck: random.Random, count: int) -> list[str]:
    """Documents of three to five sections, each of one to five passages."""
    topics = list(world.split("train"))
    documents = []
    for _ in range(count):
        parts = []
        for section in range(luck.randint(3, 5)):
            parts.append(f"# Section {section + 1}")
            for _ in range(luck.randint(1, 5)):
                told = luck.sample(topics, 2)
                parts.append(" ".join(s for topic in told for s in world.passage(topic)))
        documents.append("\n\n".join(parts))
    return documents


def says(prompt: str) -> list[str]:
    """Summarises: gives a fifth to a third of the sentences."""
    text = prompt.split("\n\n")[1]
    sentences = re.split(r"(?<=\.) ", text.replace("\n", " "))
    share = random.Random(prompt).uniform(0.2, 0.35)
    kept = sentences[: max(1, round(share * len(sentences)))]
    return TOKEN.findall(" ".join(kept))


def cut(document: str) -> list[Section]:
    """The sections of a document."""
    _, *parts = re.split(r"^# (.+)\n\n", document, flags=re.MULTILINE)
    return [
        Section(title, tuple(text.strip().split("\n\n")))
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    ]


async def summary(desk: Desk, texts: Sequence[str]) -> str:
    """One text of several."""
    return (await desk.ask(PROMPT.format("\n".join(texts))).text()).strip()


async def united(desk: Desk, notes: Sequence[str]) -> str:
    """The same, where there are several."""
    return notes[0] if len(notes) == 1 else await summary(desk, notes)


# ------------------------------------------------------------------------------------------- alto


@alto.stage(concurrency=OPEN)
async def sections(document: str) -> AsyncIterator[Section]:
    """The sections of a document."""
    for section in cut(document):
        yield section


@alto.stage(concurrency=OPEN)
async def passages(section: Section) -> AsyncIterator[str]:
    """The passages of a section."""
    for passage in section.passages:
        yield passage


@alto.stage(concurrency=OPEN)
async def note(passage: str, *, desk: Desk) -> str:
    """A note on a passage."""
    return await summary(desk, [passage])


@alto.stage(concurrency=OPEN)
async def digest(notes: alto.Group[str], *, desk: Desk) -> str:
    """The summary of a section."""
    return await united(desk, await notes.list())


@alto.stage(concurrency=OPEN)
async def outline(digests: alto.Group[str], *, desk: Desk) -> list[str]:
    """The summaries of the sections, and that of all."""
    found = await digests.list()
    return [*found, await united(desk, found)]


@alto.pipeline
def summarise(document: alto.Stream[str]) -> alto.Stream[Any]:
    """Notes as they come, and the outline."""
    notes = note(passages(sections(document)))
    return watched(document, notes, outline(digest(notes)))


def in_alto(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The pipeline, open."""
    return opened(summarise, desk)


# -------------------------------------------------------------------------------------- LangGraph


class State(TypedDict):
    """What a request carries through the graph."""

    document: str
    digests: Annotated[list[str], operator.add]
    outline: list[str]


class Piece(TypedDict):
    """What one ``Send`` carries."""

    section: Section


async def each_section(state: State) -> list[Send]:
    """A call of ``digest`` per section."""
    return [Send("digest", {"section": section}) for section in cut(state["document"])]


async def digest_node(state: Piece, runtime: Runtime[Desk]) -> dict[str, list[str]]:
    """The notes on a section, and its summary."""
    desk = runtime.context

    async def told(passage: str) -> str:
        found = await summary(desk, [passage])
        runtime.stream_writer(found)
        return found

    notes = await together(told(passage) for passage in state["section"].passages)
    return {"digests": [await united(desk, notes)]}


async def outline_node(state: State, runtime: Runtime[Desk]) -> dict[str, list[str]]:
    """The summaries of the sections, and that of all."""
    digests = state["digests"]
    return {"outline": [*digests, await united(runtime.context, digests)]}


def in_langgraph(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The graph, compiled."""
    builder = StateGraph(State, context_schema=Desk)
    builder.add_node("digest", digest_node)
    builder.add_node("outline", outline_node)
    builder.add_conditional_edges(START, each_section, ["digest"])
    builder.add_edge("digest", "outline")
    builder.add_edge("outline", END)
    return compiled(builder.compile(), desk, "document", "outline")


APPLICATION = Application(
    name="map_reduce", first="note", inputs=inputs, says=says, pinned=True, alto=in_alto,
    langgraph=in_langgraph,
)  # fmt: skip
