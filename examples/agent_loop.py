"""An agent: ask a model, run the tools that it names, tell it what they found, and ask again.

    question -> the model's lines -> a tool for each line -> what it found -> ... -> answer

The loop is a ``while`` in a stage, with a budget. A turn is a pipeline: a tool runs as soon as its
line is complete, while the model writes the next one. The search tool is a pipeline as well.

    python examples/agent_loop.py "How many years lie between penicillin and the moon?" --steps 5

``--model NAME`` asks any instruction-tuned Hugging Face model; without it rules stand in for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from _rules_engine import command_line, engine, researches, run

import alto

TOOLS = "Write a call on each line: SEARCH words, SUBTRACT number number, or at last ANSWER text."
FACTS = (
    "Alexander Fleming discovered penicillin in 1928.",
    "James Watson and Francis Crick described the double helix of DNA in 1953.",
    "The first landing on the moon took place in 1969.",
)


class Event(NamedTuple):
    """A line that the model wrote, with its length, and what came of it."""

    line: str
    tokens: int = 0
    found: str = ""


@alto.stage
async def write(prompt: str, limit: int, *, llm: alto.LLM) -> AsyncIterator[Event]:
    """The model's lines, each as soon as it is complete; one that *limit* cuts off calls nothing."""
    tokens, cut = 0, False

    async def text() -> AsyncIterator[str]:
        nonlocal tokens, cut
        async for chunk in llm.generate(prompt, max_tokens=limit):
            tokens += len(chunk.token_ids)
            cut = chunk.finish_reason == "length" and not chunk.text.endswith("\n")
            yield chunk.text

    async for line in alto.text.lines(text()):
        event, tokens = Event(f"(cut off) {line}" if cut else line, tokens), 0
        yield event


@alto.stage
async def facts(query: str) -> AsyncIterator[str]:
    """Facts that share a word with the query."""
    for fact in FACTS:
        if any(word in fact.lower() for word in query.lower().split() if len(word) > 3):
            yield fact


@alto.pipeline
def lookup(query: alto.Stream[str]) -> alto.Stream[str]:
    """The search tool, in place of a retriever and a reranker."""
    return alto.first(facts(query))


@alto.stage
async def use(event: Event) -> Event:
    """What a line finds, if it calls a tool."""
    match event.line.split():
        case ["SEARCH", *words]:
            return event._replace(found="".join(await lookup.run(" ".join(words))) or "nothing")
        case ["SUBTRACT", a, b] if f"{a}{b}".isdecimal():
            return event._replace(found=f"{int(a) - int(b)}")
    return event


@alto.pipeline
def turn(prompt: alto.Stream[str], limit: alto.Stream[int]) -> alto.Stream[Event]:
    """One turn of the model, and all that its lines find."""
    return use(write(prompt, limit))


@alto.stage
async def work(question: str, *, steps: int, tokens: int) -> AsyncIterator[Event]:
    """Turns, until one of them answers, or there have been *steps* or *tokens* of them."""
    if not question.strip() or min(steps, tokens) < 1:
        raise ValueError(f"give a question, and steps and tokens from 1, not {steps} and {tokens}")
    prompt, left = f"{TOOLS}\nQuestion: {question}\n", tokens
    while steps > 0 and left > 0:
        async for event in turn.stream(prompt, left, order="ancestry"):
            yield event
            if event.line.startswith("ANSWER"):
                return
            left -= event.tokens
            prompt += f"{event.line}\n" + (f"= {event.found}\n" if event.found else "")
        steps -= 1
    yield Event(f"STOPPED without an answer: {steps} steps and {left} tokens were left")


@alto.pipeline
def agent(question: alto.Stream[str]) -> alto.Stream[Event]:
    """The whole application."""
    return work(question)


async def main(arguments: list[str] | None = None) -> None:
    """Answer one question, and show every line."""
    default = "How many years lie between penicillin and the double helix?"
    question, model, budget = command_line(__doc__, arguments, default, steps=6, tokens=200)
    async with agent.open(llm=engine(model, researches), **budget) as app:
        async for event in app.stream(question):
            print(event.line, event.found and f"\n    {event.found}", flush=True)


if __name__ == "__main__":
    run(main)
