"""Tree of thoughts (Yao et al., 2023): steps towards 24, a value for each, the best five of a round.

    numbers left > proposals > a value for each > the best five    (three rounds)

In LangGraph every thought of the beam is one ``Send``; the node behind it has the list of proposals
written and then all of them valued at once. By hand it begins to value each when its line has ended. Either
way the best five are chosen when all are valued.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from fractions import Fraction
from typing import Annotated, Any, TypedDict

import attrs
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Overwrite, Send

import alto
from bench._apps.common import (
    OPEN,
    Application,
    Desk,
    Run,
    Whole,
    compiled,
    opened,
    streamed,
    together,
)
from bench._apps.common import listed as all_of
from examples._game_of_24 import Left, glance, numbers, steps

WORTH = {"sure": 20.0, "likely": 1.0, "impossible": 0.0}
PROPOSE = "Numbers: {}\nList steps that combine two of them, one a line, such as 4 + 9 = 13:\n"
VALUE = "Numbers: {}\nCan they make 24? Try a few ways, then say sure, likely or impossible:\n"
BEAM = 5
PROPOSALS = 8
"""Steps that the model lists, at most."""
TOKEN = re.compile(r"\s?(?:[a-z]+|\S)")
"""A word, a digit or a sign, with the space before it."""


@attrs.frozen
class Thought:
    """The numbers that are left, and how good they look."""

    left: Left
    worth: float = 0.0

    def __str__(self) -> str:
        return " ".join(str(number) for number, _ in self.left)


def inputs(luck: random.Random, count: int) -> list[str]:
    """Four numbers each."""
    return [" ".join(str(luck.randint(1, 13)) for _ in range(4)) for _ in range(count)]


def says(prompt: str) -> list[str]:
    """Plays the game: lists some steps, or tries some ways and gives its opinion."""
    first, rest = prompt.split("\n", 1)
    left: Left = tuple((Fraction(n), n) for n in first.removeprefix("Numbers: ").split())
    luck = random.Random(prompt)
    lines = list(steps(left))
    if rest.startswith("List"):
        found = luck.sample(lines, min(PROPOSALS, len(lines)))
    else:
        found = luck.sample(lines, min(luck.randint(1, 3), len(lines)))
        found.append(glance(left, luck))
    return [token for line in found for token in (*TOKEN.findall(line), "\n")]


async def proposals(desk: Desk, thought: Thought) -> AsyncIterator[Thought]:
    """Where the steps on the model's list lead to, each when its line has ended."""
    legal, seen = steps(thought.left), set[str]()
    text = (chunk.text async for chunk in desk.ask(PROPOSE.format(thought)))
    async for line in alto.text.lines(text):
        left = legal.get(line)  # None for a step that the model made up
        if left is not None and str(after := Thought(left)) not in seen:
            seen.add(str(after))
            yield after


async def valued(desk: Desk, thought: Thought) -> Thought:
    """The same thought with its worth."""
    opinion = await desk.ask(VALUE.format(thought)).text()
    return attrs.evolve(thought, worth=WORTH.get(opinion.strip().rpartition("\n")[2], 0.0))


def best(thoughts: Iterable[Thought]) -> list[Thought]:
    """The beam of the next round. No two calls of it depend on the order of what they get."""
    given = sorted(thoughts, key=lambda t: (-t.worth, str(t), [way for _, way in t.left]))
    different: dict[str, Thought] = {}
    for thought in given:
        if thought.worth:
            different.setdefault(str(thought), thought)
    return list(different.values())[:BEAM]


def goes_on(beam: Sequence[Thought]) -> bool:
    """Whether there is anything to combine."""
    return bool(beam) and len(beam[0].left) > 1


def result(beams: Sequence[Sequence[Thought]]) -> list[list[str]]:
    """What was kept in each round, and the ways to make 24."""
    ways = [way for thought in beams[-1] for number, way in thought.left if number == 24]
    return [*([str(thought) for thought in beam] for beam in beams), ways]


# ------------------------------------------------------------------------------------------- alto


@alto.stage(concurrency=OPEN)
async def each(beam: list[Thought]) -> AsyncIterator[Thought]:
    """The thoughts of a round, one by one."""
    for thought in beam:
        yield thought


@alto.stage(concurrency=OPEN)
async def propose(thought: Thought, *, desk: Desk) -> AsyncIterator[Thought]:
    """The proposals, each when its line has ended."""
    async for after in proposals(desk, thought):
        yield after


@alto.stage(concurrency=OPEN)
async def value(thought: Thought, *, desk: Desk) -> Thought:
    """The value of a proposal."""
    return await valued(desk, thought)


@alto.pipeline
def advance(beam: alto.Stream[list[Thought]]) -> alto.Stream[Thought]:
    """A round."""
    return value(propose(each(beam)))


@alto.stage(concurrency=OPEN)
async def search(puzzle: str) -> AsyncIterator[Any]:
    """Valued proposals as they come, round by round, and the result."""
    beams = [[Thought(numbers(puzzle))]]
    while goes_on(beams[-1]):
        found = []
        async for thought in advance.stream(beams[-1]):
            yield thought
            found.append(thought)
        beams.append(best(found))
    yield Whole(result(beams))


@alto.pipeline
def solve(puzzle: alto.Stream[str]) -> alto.Stream[Any]:
    """The whole application."""
    return search(puzzle)


def in_alto(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The pipeline, open."""
    return opened(solve, desk)


# -------------------------------------------------------------------------------------- LangGraph


class State(TypedDict):
    """What a request carries through the graph."""

    puzzle: str
    beams: list[list[Thought]]
    valued: Annotated[list[Thought], operator.add]
    found: list[list[str]]


class Piece(TypedDict):
    """What one ``Send`` carries."""

    thought: Thought


async def begin_node(state: State) -> dict[str, list[list[Thought]]]:
    """The first beam."""
    return {"beams": [[Thought(numbers(state["puzzle"]))]]}


async def told(after: Thought, runtime: Runtime[Desk]) -> Thought:
    """The value of a proposal, which the caller is told."""
    found = await valued(runtime.context, after)
    runtime.stream_writer(found)
    return found


async def explore_node(state: Piece, runtime: Runtime[Desk]) -> dict[str, list[Thought]]:
    """The proposals from a thought, each valued."""
    afters = await all_of(proposals(runtime.context, state["thought"]))
    return {"valued": await together(told(after, runtime) for after in afters)}


async def explore_by_hand(state: Piece, runtime: Runtime[Desk]) -> dict[str, list[Thought]]:
    """The same, each proposal valued from its own line on."""
    afters = proposals(runtime.context, state["thought"])
    return {"valued": await streamed(afters, lambda after: told(after, runtime))}


async def select_node(state: State) -> dict[str, Any]:
    """The next beam; what was valued is put away."""
    beams = [*state["beams"], best(state["valued"])]
    return {"beams": beams, "valued": Overwrite([]), "found": result(beams)}


async def next_round(state: State) -> list[Send] | str:
    """A call of ``explore`` per thought of the beam, or the end."""
    beam = state["beams"][-1]
    return [Send("explore", {"thought": thought}) for thought in beam] if goes_on(beam) else END


def in_langgraph(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The graph, compiled."""
    return exploring(desk, explore_node)


def by_hand(desk: Desk) -> AbstractAsyncContextManager[Run]:
    """The same with the other node."""
    return exploring(desk, explore_by_hand)


def exploring(
    desk: Desk, explore: Callable[[Piece, Runtime[Desk]], Awaitable[dict[str, list[Thought]]]]
) -> AbstractAsyncContextManager[Run]:
    """The graph around one of the two nodes."""
    builder = StateGraph(State, context_schema=Desk)
    builder.add_node("begin", begin_node)
    builder.add_node("explore", explore)
    builder.add_node("select", select_node)
    builder.add_edge(START, "begin")
    builder.add_conditional_edges("begin", next_round, ["explore", END])
    builder.add_edge("explore", "select")
    builder.add_conditional_edges("select", next_round, ["explore", END])
    return compiled(builder.compile(), desk, "puzzle", "found")


APPLICATION = Application(
    name="tree_of_thoughts", first="valued proposal", inputs=inputs, says=says, pinned=True,
    alto=in_alto, langgraph=in_langgraph, by_hand=by_hand,
)  # fmt: skip
