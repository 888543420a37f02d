"""Tree of thoughts (Yao et al., 2023): make 24 of four numbers, with one pipeline in a loop.

    numbers left -> proposals -> a value per proposal -> the best few      (three times)

A round is a pipeline: each line of a list of proposals is valued as soon as it is complete, while the
model still writes the next; ``top_k`` waits for all of them. The loop is a ``while`` in a stage.

    python examples/tree_of_thoughts.py "4 9 10 13"

``--model NAME`` asks any instruction-tuned Hugging Face model; without it rules stand in for one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import attrs
from _game_of_24 import Left, numbers, plays_24, steps
from _rules_engine import command_line, engine, run

import alto

Log: TypeAlias = Callable[[str, str], None]
WORTH = {"sure": 20.0, "likely": 1.0, "impossible": 0.0}
PROPOSE = "Numbers: {}\nList steps that combine two of them, one a line, such as 4 + 9 = 13:\n"
VALUE = "Numbers: {}\nCan they make 24 with + - * /? Say sure, likely or impossible: "


@attrs.frozen
class Thought:
    """The numbers that are left, and how good they look."""

    left: Left
    worth: float = 0.0

    def __str__(self) -> str:
        return " ".join(str(number) for number, _ in self.left)


@alto.stage
async def each(beam: list[Thought]) -> AsyncIterator[Thought]:
    """The thoughts of a round, one by one."""
    for thought in beam:
        yield thought


@alto.stage
async def propose(thought: Thought, *, llm: alto.LLM, log: Log) -> AsyncIterator[Thought]:
    """Where the steps on the model's list lead to, each as soon as its line has ended."""
    legal, seen = steps(thought.left), set[str]()
    listed = llm.generate(PROPOSE.format(thought), max_tokens=600)
    async for line in alto.text.lines(chunk.text async for chunk in listed):
        left = legal.get(line.removeprefix("- "))  # None for a step that the model made up.
        if left is not None and str(after := Thought(left)) not in seen:
            seen.add(str(after))
            yield after
    log("listed", str(thought))


@alto.stage
async def value(thought: Thought, *, llm: alto.LLM, log: Log) -> Thought:
    """The same thought with its worth, from several samples of one prompt."""
    opinions = llm.generate(VALUE.format(thought), n=3, temperature=0.7, choice=list(WORTH))
    worth = sum(WORTH[opinion.text] for opinion in await opinions.samples())
    log("valued", str(thought))
    return attrs.evolve(thought, worth=worth)


@alto.pipeline
def advance(beam: alto.Stream[list[Thought]]) -> alto.Stream[list[Thought]]:
    """A round: one step further from every thought, and the best of all that this gives."""
    return alto.top_k(value(propose(each(beam))), 5, key=lambda t: t.worth, by=beam)


@alto.stage
async def search(puzzle: str, *, log: Log) -> AsyncIterator[str]:
    """Expressions that make 24, if the search finds any."""
    beam = [Thought(numbers(puzzle))]
    while beam and len(beam[0].left) > 1:
        [best] = await advance.run(beam)
        beam = [*dict.fromkeys(thought for thought in best if thought.worth)]
        log("kept", " | ".join(map(str, beam)))
    for [(number, expression)] in (thought.left for thought in beam):
        if number == 24:
            yield expression[1:-1]


@alto.pipeline
def solve(puzzle: alto.Stream[str]) -> alto.Stream[str]:
    """The whole application."""
    return search(puzzle)


async def main(arguments: list[str] | None = None) -> list[str]:
    """Solve one puzzle, and tell of each round."""
    puzzle, model, _ = command_line(__doc__, arguments, "4 9 10 13")
    numbers(puzzle)  # Raises, before an engine has been started, if it is no puzzle.
    counts: Counter[str] = Counter()

    def log(kind: str, what: str) -> None:
        counts[kind] += 1
        if kind == "listed":
            counts["early"] = counts["valued"]
        elif kind == "kept":
            early = f"{counts['early']} of them before all had been listed"
            print(f"{counts['valued']} thoughts were valued, {early}.\n  Kept: {what or 'none'}")
            counts.clear()

    async with solve.open(llm=engine(model, plays_24), log=log) as app:
        found = await app.run(puzzle)
    print("\n".join(f"{way} = 24" for way in found) or "No way to make 24 was found.")
    return found


if __name__ == "__main__":
    run(main)
