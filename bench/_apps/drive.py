"""Running requests through every version of an application, and what they took."""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import attrs

import alto
from alto.engines.profiles import A100_7B, EngineProfile
from alto.testing import run_virtual
from bench._apps.common import Application, Desk, Run, Search
from bench._apps.engines import FIND_S, Idle, Look, Real, Recorded, Says, Simulation, look, running

WARM_UP: Final = 8
"""Clients of a warm-up: kernels and caches of the engines, and of this program."""
ALONE: Final = 4
"""Requests that are made one at a time to see how fast an idle engine is."""
LOOK_S: Final = 0.0203
"""Between two looks at what the engines do."""


@attrs.frozen(kw_only=True)
class Taken:
    """What a number of requests took, in seconds."""

    first: list[float]
    """Until the first useful result was with the caller, by request."""
    latency: list[float]
    """Until the result was."""
    span: float
    """From the first request to the last result."""
    busy: float
    """Part of the engines that had something to do, the mean over the time."""
    batch: float
    """Generations at a time of an engine that runs any, the mean over the time."""
    results: list[Any]
    cores: float | None = None
    """Part of this machine's cores that was at work, whoever's; None: not known, or nobody's."""

    def figures(self) -> dict[str, float]:
        """What is reported."""
        cores = {} if self.cores is None else {"cores": self.cores}
        return {
            "median_s": statistics.median(self.latency),
            "p99_s": quantile(self.latency, 0.99),
            "first_median_s": statistics.median(self.first),
            "first_p99_s": quantile(self.first, 0.99),
            "throughput": len(self.latency) / self.span,
            "utilisation": self.busy,
            "batch": self.batch,
            **cores,
        }


Round = dict[str, Taken]
"""What each side took, one after the other."""


@attrs.frozen(kw_only=True)
class Cell:
    """An application at a load."""

    application: Application
    clients: int
    rounds: list[Round]
    bound: Taken
    """What its requests take at least."""

    @property
    def sides(self) -> list[str]:
        """Who took part."""
        return list(self.rounds[0])

    def taken(self, name: str) -> Taken:
        """What one side took in all rounds."""
        each = [turn[name] for turn in self.rounds]
        return Taken(
            first=[value for taken in each for value in taken.first],
            latency=[value for taken in each for value in taken.latency],
            span=sum(taken.span for taken in each),
            busy=statistics.fmean(taken.busy for taken in each),
            batch=statistics.fmean(taken.batch for taken in each),
            cores=mean(taken.cores for taken in each),
            results=[value for taken in each for value in taken.results],
        )

    def different(self) -> int:
        """Requests whose results are not the same on all sides."""
        each = zip(*(self.taken(name).results for name in self.sides), strict=True)
        return sum(any(other != mine for other in others) for mine, *others in each)

    def unsteady(self) -> int:
        """Requests for which a side had not the same result in every round."""
        count = 0
        for name in self.sides:
            each = zip(*(turn[name].results for turn in self.rounds), strict=True)
            count += sum(any(other != results[0] for other in results) for results in each)
        return count


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def worked() -> tuple[float, float] | None:
    """What the machine's cores have worked, and what they have been there for; None: not Linux.

    Work of low priority (``nice``) is left out: it takes what nobody else wants.
    """
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, idle, waiting, *interrupts = map(float, line.split()[1:8])
    done = user + system + sum(interrupts)
    return done, done + nice + idle + waiting


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least *part* of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


async def drive(
    run: Run,
    inputs: Sequence[Any],
    clients: int,
    engines: Callable[[], Sequence[int]],
    *,
    real: bool = False,
) -> Taken:
    """Have so many clients make the requests, each one after the other.

    With *real* time what the cores do is noted.
    """
    clock = asyncio.get_running_loop().time
    first = [math.nan] * len(inputs)
    latency = [math.nan] * len(inputs)
    results: list[Any] = [None] * len(inputs)
    turns = iter(range(len(inputs)))
    seen: list[Look] = []

    async def serve(turn: int) -> None:
        began = clock()

        def useful() -> None:
            if math.isnan(first[turn]):
                first[turn] = clock() - began

        results[turn] = await run(inputs[turn], useful)
        latency[turn] = clock() - began
        useful()  # where nothing came before it, the result is the first

    async def client() -> None:
        for turn in turns:
            await serve(turn)

    before = worked() if real else None
    began = clock()
    async with asyncio.TaskGroup() as watching:
        watch = watching.create_task(look(engines, LOOK_S, seen))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(client())
        span = clock() - began
        watch.cancel()
    after = worked() if real else None
    cores = None
    if before is not None and after is not None and after[1] > before[1]:
        cores = (after[0] - before[0]) / (after[1] - before[1])
    return Taken(
        first=first, latency=latency, span=span, busy=statistics.fmean(one.busy for one in seen),
        batch=mean(one.batch for one in seen) or 0.0, results=results,
        cores=cores,
    )  # fmt: skip


def sides(application: Application, *, by_hand: bool) -> dict[str, Callable[[Desk], Any]]:
    """Its versions by name; where it has one, also that *by hand*."""
    found: dict[str, Callable[[Desk], Any]] = {
        "alto": application.alto, "langgraph": application.langgraph
    }  # fmt: skip
    if by_hand and application.by_hand is not None:
        found["by_hand"] = application.by_hand
    return found


def bound(
    application: Application,
    inputs: Sequence[Any],
    profile: EngineProfile,
    says: Says,
    find: Search,
) -> Taken:
    """What the requests take where nothing but their longest chain of calls takes time."""

    async def main() -> Taken:
        desk = Desk(llm=alto.LLM(Idle(profile, says)), find=find)
        async with application.alto(desk) as run:
            return await drive(run, inputs, 1, lambda: [1])

    return run_virtual(main)


# ------------------------------------------------------------------------------ simulated engines


def simulated(
    application: Application,
    inputs: Sequence[Any],
    clients: int,
    made: Callable[[], Simulation],
    *,
    by_hand: bool = True,
) -> list[Round]:
    """Run all sides, on virtual time, each on engines that *made* gives."""

    async def main(version: Callable[[Desk], Any]) -> Taken:
        pool = made()
        await pool.start()
        try:
            desk = Desk(llm=alto.LLM(pool), find=Search(seconds=FIND_S))
            async with version(desk) as run:
                return await drive(run, inputs, clients, lambda: running(pool))
        finally:
            await pool.stop()

    versions = sides(application, by_hand=by_hand)
    return [{name: run_virtual(main, version) for name, version in versions.items()}]


# ------------------------------------------------------------------------------------ vLLM's engines


@attrs.frozen
class Heard:
    """What a real engine said and took, when it had one request at a time."""

    says: Says
    profile: EngineProfile
    """Of an engine whose every token takes what the fastest took."""
    find: Search

    @classmethod
    def of(cls, engine: Recorded, find: Search) -> Heard:
        """From what was recorded."""
        token = min(engine.token_s)
        profile = attrs.evolve(
            A100_7B, name="recorded", source="the fastest call of this run", base_s=token,
            per_sequence_s=0.0, per_context_token_s=0.0,
            latency_s=max(0.0, min(engine.first_s) - token),
        )  # fmt: skip
        took = min(find.took, default=0.0)
        return cls(engine.said.__getitem__, profile, Search(seconds=took, found={**find.found}))


async def interleaved(
    real: Real,
    application: Application,
    cells: Sequence[tuple[int, Sequence[Any]]],
    rounds: int,
    *,
    by_hand: bool = False,
) -> dict[int, list[Round]]:
    """Run all sides in turns on the same engines; each round begins with the other end.

    Alto has been warmed up by `hear`.
    """
    done: dict[int, list[Round]] = {}
    desk = real.desk(application)
    async with AsyncExitStack() as stack:
        runs = {
            name: await stack.enter_async_context(version(desk))
            for name, version in sides(application, by_hand=by_hand).items()
        }
        longest = max((inputs for _, inputs in cells), key=len)
        for name in list(runs)[1:]:
            await drive(runs[name], longest, WARM_UP, real.running)
        for clients, inputs in cells:
            done[clients] = []
            for number in range(rounds):
                turn: Round = {}
                for name in runs if number % 2 == 0 else reversed(runs):
                    gc.collect()
                    turn[name] = await drive(runs[name], inputs, clients, real.running, real=True)
                done[clients].append(turn)
            print(f"{application.name}, {clients} at once", file=sys.stderr, flush=True)
    return done


async def hear(real: Real, application: Application, inputs: Sequence[Any]) -> Heard:
    """Note what the engines say to the requests, and how fast they are with one at a time."""
    engine = Recorded(real.llm)
    async with application.alto(real.desk(application, engine)) as run:
        await drive(run, inputs, WARM_UP, real.running)
        engine.first_s.clear()
        engine.token_s.clear()
        real.find.took.clear()
        await drive(run, inputs[:ALONE], 1, real.running)
    return Heard.of(engine, real.find)
