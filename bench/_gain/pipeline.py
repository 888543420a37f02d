"""The pipeline, once for all modes: only what says when to hand over differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import alto
from alto.engines import Pool
from alto.pipeline import Pipeline
from bench._gain.shapes import QUESTION_TOKENS, Mode, Plan, Shape

MANY = 1_000_000
"""Concurrency of stages: the engines are the limit."""
LIMIT = 4096
"""Most tokens of a generation."""
HEADS = (10_000_000, 20_000_000)
BODIES, KEYS = 100_000_000, 1_000_000
"""First of the token ids of the stages' heads, of pieces, and of those that are used once."""


@dataclass(frozen=True, slots=True)
class Part:
    """Pieces of a text that go together, a line each."""

    request: int
    text: str


@dataclass
class Lab:
    """What the stages of a run share."""

    shape: Shape
    mode: Mode
    cached: bool
    plans: Sequence[Plan]
    pool: Pool | None = None
    size: alto.text.Coarsening | None = None
    ends: dict[int, float] = field(default_factory=dict)
    """When the text of a request had been written."""
    calls: list[tuple[int, float, float]] = field(default_factory=list)
    """Of the consumer: request, begin, end."""
    _said: dict[int, Sequence[str] | int] = field(default_factory=dict)
    _keys: Any = field(default_factory=lambda: count(KEYS))

    def say(self, request: alto.model.GenerateRequest) -> Sequence[str] | int:
        """What an engine says; the last token of a prompt names it."""
        return self._said.pop(request.prompt[-1])  # type: ignore[index, arg-type]  # token ids

    def ask(
        self, llm: alto.LLM, head: Sequence[int], body: Sequence[int], says: Sequence[str] | int
    ) -> alto.Generation:
        """Ask for a generation that will say *says*, with a prompt of a head and a body."""
        key = next(self._keys)
        self._said[key] = says
        if self.cached:
            return llm.generate([*head, *body, key], max_tokens=LIMIT, prefix=head)
        return llm.generate([key, *head[1:], *body, key], max_tokens=LIMIT)

    def ready(self) -> Callable[[int, int], bool]:
        """What says when to hand over."""
        if self.mode == "adaptive":
            assert self.size is not None
            return self.size.ready
        return lambda *_: self.mode == "pieces"


async def produce(request: int, *, lab: Lab, llm: alto.LLM) -> AsyncIterator[Part]:
    """Write a text; yield its pieces, alone or together."""
    plan = lab.plans[request]
    said = [
        token
        for number, tokens in enumerate(plan.tokens)
        for token in (str(number), *[" word"] * (tokens - 2), "\n")
    ]
    head = range(HEADS[0], HEADS[0] + lab.shape.head)
    generation = lab.ask(llm, head, [request] * QUESTION_TOKENS, said)

    async def chunks() -> AsyncIterator[str]:
        async for chunk in generation:
            yield chunk.text
        lab.ends[request] = asyncio.get_running_loop().time()

    pieces = alto.text.lines(chunks())
    async for text in alto.text.joined(pieces, lab.ready(), separator="\n"):
        yield Part(request, text)


async def consume(part: Part, *, lab: Lab, llm: alto.LLM) -> int:
    """Ask about pieces; how many there were."""
    clock = asyncio.get_running_loop().time
    plan, begin = lab.plans[part.request], clock()
    pieces = [int(line.split()[0]) for line in part.text.splitlines()]
    head = range(HEADS[1], HEADS[1] + lab.shape.consumer_head)
    body = [
        BODIES + 100 * part.request + number  # no other call has them
        for number in pieces
        for _ in range(plan.tokens[number])
    ]
    output = sum(plan.outputs[number] for number in pieces)
    done = await lab.ask(llm, head, body, output).collect()
    lab.calls.append((part.request, begin, clock()))
    if lab.size is not None:
        lab.size.learn(done.usage, len(part.text))
    return len(pieces)


def build() -> Pipeline[int, int]:
    """The pipeline; it needs ``lab`` and ``llm``."""
    producing = alto.stage(concurrency=MANY)(produce)
    consuming = alto.stage(concurrency=MANY)(consume)

    @alto.pipeline
    def pipeline(request: alto.Stream[int]) -> alto.Stream[int]:
        return consuming(producing(request))

    return pipeline
