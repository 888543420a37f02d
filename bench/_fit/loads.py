"""Loads in the open: calls come when they come, whatever the engine does; and what became of them.

The same function plays a load on a real engine and, on virtual time, on a simulated one.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import attrs
import numpy as np

from alto.model import GenerateRequest
from alto.protocols import Engine

__all__ = (
    "Call",
    "Figures",
    "Load",
    "Sketch",
    "figures",
    "flow",
    "play",
    "random_prompt",
    "sketches",
)

DOCUMENTS = 8
FIRST_ID, LAST_ID = 3, 250
"""Token ids to draw from: every vocabulary has them, and those before are often special."""


@attrs.frozen(kw_only=True)
class Call:
    """One call of a load."""

    at: float
    """When it comes, in seconds from the start."""
    prompt: tuple[int, ...]
    """Token ids."""
    output_tokens: int
    """What it asks for, and gets."""


@attrs.frozen(kw_only=True)
class Load:
    """Calls in the order in which they come."""

    name: str
    calls: tuple[Call, ...]


@attrs.frozen(kw_only=True)
class Figures:
    """What became of a load."""

    median: float
    """Seconds from a call to its last token."""
    p99: float
    """The same, of the slowest hundredth."""
    throughput: float
    """Output tokens per second, from the first call to the last token."""


def random_prompt(luck: random.Random, tokens: int) -> tuple[int, ...]:
    """Token ids that no other prompt begins with."""
    return tuple(luck.randint(FIRST_ID, LAST_ID) for _ in range(tokens))


@attrs.frozen(kw_only=True)
class Sketch:
    """What the calls of a load are like."""

    name: str
    share: float
    """Part of what the engine can get through."""
    room: int
    """Longest sequence."""
    documents: tuple[tuple[int, ...], ...] = ()
    """What prompts begin with, the most popular first."""

    def drawn(self, luck: random.Random, calls: int) -> list[tuple[tuple[int, ...], int]]:
        """Prompts and output lengths, both spread evenly on a scale of logarithms."""
        popularity = [1 / (rank + 1) for rank in range(len(self.documents))]
        longest = self.room / (16 if self.documents else 4)
        drawn = []
        for _ in range(calls):
            own = round(math.exp(luck.uniform(math.log(16), math.log(longest))))
            head = luck.choices(self.documents, popularity)[0] if self.documents else ()
            output = round(math.exp(luck.uniform(math.log(16), math.log(self.room / 16))))
            drawn.append((head + random_prompt(luck, own), output))
        return drawn

    def load(self, rate: float, *, seconds: float, luck: random.Random) -> Load:
        """Calls that come by chance, so many per second when the engine's all is *rate*."""
        time, calls = 0.0, []
        count = max(20, round(self.share * rate * seconds))
        for prompt, output in self.drawn(luck, count):
            time += luck.expovariate(self.share * rate)
            calls.append(Call(at=time, prompt=prompt, output_tokens=output))
        return Load(name=self.name, calls=tuple(calls))


def sketches(max_model_len: int, luck: random.Random) -> tuple[Sketch, ...]:
    """Three loads that nothing was fitted on: low, near the knee, and with shared beginnings."""
    room = max(512, min(2048, max_model_len))
    documents = tuple(random_prompt(luck, room // 4) for _ in range(DOCUMENTS))
    return (
        Sketch(name="low", share=0.2, room=room),
        Sketch(name="knee", share=0.75, room=room),
        Sketch(name="prefixes", share=0.6, room=room, documents=documents),
    )


async def play(engine: Engine, calls: Sequence[Call], /) -> list[tuple[float, float, float]]:
    """When each call was asked for, had its first token and its last: seconds from the start."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(call: Call) -> tuple[float, float, float]:
        await asyncio.sleep(max(0.0, start + call.at - loop.time()))
        first = await _ask(engine, call)
        return call.at, first - start, loop.time() - start

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(call)) for call in calls]
    return [task.result() for task in tasks]


async def flow(engine: Engine, lanes: Sequence[Sequence[Call]], /) -> float:
    """Seconds until all lanes have all; in each a call is asked for when the last one has ended."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(lane: Sequence[Call]) -> None:
        for call in lane:
            await _ask(engine, call)

    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(one(lane))
    return loop.time() - start


async def _ask(engine: Engine, call: Call) -> float:
    """When its first token came."""
    request = GenerateRequest(prompt=call.prompt, max_tokens=call.output_tokens, ignore_eos=True)
    first, tokens = None, 0
    async for chunk in engine.generate(request):
        tokens += len(chunk.token_ids)
        if first is None and chunk.token_ids:
            first = asyncio.get_running_loop().time()
    if first is None or tokens != call.output_tokens:
        msg = f"a call for {call.output_tokens} tokens got {tokens}"
        raise RuntimeError(msg)
    return first


def figures(calls: Sequence[Call], times: Sequence[tuple[float, float, float]]) -> Figures:
    """Median, P99 and throughput."""
    latencies = [end - at for at, _, end in times]
    span = max(end for _, _, end in times) - min(at for at, _, _ in times)
    return Figures(
        median=float(np.median(latencies)),
        p99=float(np.quantile(latencies, 0.99)),
        throughput=sum(call.output_tokens for call in calls) / span,
    )
