"""A placement policy of one's own, in twenty lines: keep one engine free for short prompts.

    python examples/own_policy.py

A policy has one method, ``choose``, which gets a call and the engines that live, and returns one of
them. The scheduler does the rest: it lets the call wait where that engine is full, keeps the order,
and places the call itself should the policy fail. Here an engine is reserved for short prompts, so
that they never wait behind long ones; the example prints how long both kinds took, with this policy
and with the default. Engines are simulated, and seconds are virtual: it takes a moment.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence

import attrs

import alto
from alto.engines import Pool, Simulated
from alto.engines.profiles import SCHEDULING_STUDY
from alto.sched import EngineLoad, Policy, PromptAware, Ticket
from alto.testing import run_virtual


@attrs.define
class KeepOneFree:
    """Short prompts have the first engine to themselves, and may use the others too."""

    short: int
    """Prompts below this many uncached tokens are short."""
    rest: Policy = attrs.Factory(PromptAware)
    """Chooses among the engines that a call may use."""
    order: str = "request"
    """Who goes first: calls of older requests."""

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """Any engine for a short prompt, any but the first for a long one."""
        others = engines[1:]
        uncached = call.prompt_tokens - max(map(call.hit_on, engines))
        allowed = engines if uncached < self.short or not others else others
        return self.rest.choose(call, allowed)


async def measure(policy: Policy) -> tuple[float, float]:
    """Median seconds of short and of long calls, with a new one of either kind every 70 ms."""
    engines = [Simulated(SCHEDULING_STUDY, 32, name=f"gpu{k}") for k in range(3)]
    times: dict[str, list[float]] = {"short": [], "long": []}

    async def call(kind: str, number: int) -> None:
        words = 20 if kind == "short" else 3000
        begun = asyncio.get_running_loop().time()
        await llm.text(" ".join(f"{kind}{number}.{k}" for k in range(words)), max_tokens=32)
        times[kind].append(asyncio.get_running_loop().time() - begun)

    async with Pool(engines, policy=policy) as pool, asyncio.TaskGroup() as group:
        llm = alto.LLM(pool)
        for number in range(200):
            for kind in times:
                group.create_task(call(kind, number))
            await asyncio.sleep(0.07)
    return statistics.median(times["short"]), statistics.median(times["long"])


async def main() -> None:
    """Compare."""
    for policy in (PromptAware(), KeepOneFree(short=500)):
        short, long = await measure(policy)
        print(f"{type(policy).__name__:12} short {short:.2f} s, long {long:.2f} s")


if __name__ == "__main__":
    run_virtual(main)
