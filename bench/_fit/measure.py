"""Measuring a real engine: how long trials take, and what becomes of loads."""

from __future__ import annotations

import random
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import attrs

from alto.engines._vllm.engine import VLLMEngine
from alto.engines.profiles import PROFILES, EngineProfile
from alto.engines.simulated import Simulated
from alto.engines.tiny import build_tiny_llama
from alto.protocols import Engine, Member
from alto.testing.clock import run_virtual
from bench._fit.loads import Call, Figures, Load, Sketch, figures, flow, play, random_prompt
from bench._fit.trials import Trial

__all__ = (
    "NAMES",
    "Bench",
    "capacity",
    "compare",
    "opened",
    "played_real",
    "played_simulated",
    "start_profile",
)

BOUND = 0.15
TINY = {
    "block_size": 32,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "max_model_len": 2048,
}
"""Arguments for the engine that is measured where nobody names another."""
LANE = 10
"""Calls of a lane when it is measured what an engine gets through."""
SHORT_SECONDS = 0.15
SHORT_TIMES = 5
NAMES = ("median", "p99", "throughput")


@asynccontextmanager
async def opened(
    model: str | None, engine_args: Mapping[str, Any], *, on: str | None = None
) -> AsyncIterator[Member]:
    """A running engine: of *model*, of a tiny random Llama, or the simulated one of a profile."""
    if on is not None:
        async with simulated(PROFILES[on]) as engine:
            yield engine
        return
    with TemporaryDirectory() as folder:
        chosen = model or str(build_tiny_llama(Path(folder) / "tiny", context=2048))
        settings = {**({} if model else TINY), **engine_args}
        async with VLLMEngine(chosen, kv_events=False, **settings) as engine:
            yield engine


def simulated(profile: EngineProfile) -> Simulated:
    """An engine that says as much as it is asked for."""
    return Simulated(profile, profile.max_model_len)


def start_profile(engine: Member, *, name: str, source: str) -> EngineProfile:
    """The limits of a running engine, with constants to begin a fit from."""
    capacity = engine.capacity
    longest = capacity.max_model_len or 4096
    return EngineProfile(
        name=name,
        source=source,
        base_s=5e-3,
        per_sequence_s=1e-4,
        per_prefill_token_s=1e-5,
        max_num_seqs=capacity.max_num_seqs,
        max_num_batched_tokens=capacity.max_num_batched_tokens,
        kv_tokens=capacity.kv_tokens or longest * capacity.max_num_seqs,
        block_size=capacity.block_size,
        max_model_len=longest,
    )


@final
class Bench:
    """Takes the times of trials on one engine.

    The trials of a round take turns, and rounds can be spread over all that is measured, so that a
    machine that is slow for a while is slow to all.
    """

    def __init__(self, engine: Engine, trials: Sequence[Trial], *, seed: int) -> None:
        self._engine = engine
        self._luck = random.Random(seed)
        self._taken: dict[Trial, list[tuple[float, float]]] = {trial: [] for trial in trials}

    async def warm_up(self, longest: int) -> None:
        """Prompts of every length up to *longest*, and each trial once; not counted.

        A CPU engine prepares kernels for each number of tokens that a step may have, when it first
        meets it: 5 ms with a tiny model, as much as the step itself.
        """
        for length in range(1, longest + 1):
            prompt = random_prompt(self._luck, length)
            await play(self._engine, [Call(at=0.0, prompt=prompt, output_tokens=1)])
        for trial in self._taken:
            await self._one(trial)

    async def round(self) -> None:
        """Each trial, the short ones up to five times; counted as the median of these."""
        for trial in self._luck.sample([*self._taken], len(self._taken)):
            times = [await self._one(trial)]
            while len(times) < SHORT_TIMES and sum(map(sum, times)) < SHORT_SECONDS:
                times.append(await self._one(trial))
            self._taken[trial].append(_middle(times))

    async def _one(self, trial: Trial) -> tuple[float, float]:
        lanes = [
            [
                Call(
                    at=0.0,
                    prompt=random_prompt(self._luck, length),
                    output_tokens=output,
                )
                for length, output in zip(trial.prompts(lane), trial.outputs(lane), strict=True)
            ]
            for lane in range(trial.calls)
        ]
        if trial.rounds > 1:
            return await flow(self._engine, lanes), 0.0
        times = await play(self._engine, [lane[0] for lane in lanes])
        first = max(time for _, time, _ in times)
        return first, max(time for _, _, time in times) - first

    def times(self) -> dict[Trial, tuple[float, float]]:
        """Seconds to the last first token, and from there to the end (a flow: all, and 0): medians."""
        return {trial: _middle(times) for trial, times in self._taken.items()}


def _middle(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return (
        statistics.median(first for first, _ in times),
        statistics.median(after for _, after in times),
    )


async def capacity(engine: Engine, sketch: Sketch, *, lanes: int, seed: int) -> float:
    """Calls per second that an engine gets through when *lanes* calls are always there."""
    luck = random.Random(seed)
    drawn = [
        [
            Call(at=0.0, prompt=prompt, output_tokens=output)
            for prompt, output in sketch.drawn(luck, LANE)
        ]
        for _ in range(lanes)
    ]
    return lanes * LANE / await flow(engine, drawn)


def played_simulated(profile: EngineProfile, calls: Sequence[Call]) -> Figures:
    """What becomes of a load on a simulated engine."""

    async def main() -> Figures:
        async with simulated(profile) as engine:
            return figures(calls, await play(engine, calls))

    return run_virtual(main)


async def played_real(engine: Engine, load: Load, *, luck: random.Random) -> Figures:
    """What becomes of a load; no run finds what another left in the cache."""
    calls = _renamed(load.calls, luck)
    return figures(calls, await play(engine, calls))


def _renamed(calls: Sequence[Call], luck: random.Random) -> list[Call]:
    """The same with other tokens: equal where they were equal."""
    ids = list(range(3, 251))
    other = dict(zip(ids, luck.sample(ids, len(ids)), strict=True))
    return [attrs.evolve(call, prompt=tuple(other[t] for t in call.prompt)) for call in calls]


def compare(name: str, ours: Figures, runs: Sequence[Figures]) -> dict[str, Any]:
    """Errors of a simulation against the median of real runs, with the spread of these."""
    report: dict[str, Any] = {"load": name}
    spread: dict[str, float] = {}
    real: dict[str, float] = {}
    for figure in NAMES:
        values = [getattr(run, figure) for run in runs]
        real[figure] = statistics.median(values)
        spread[figure] = (max(values) - min(values)) / real[figure]
        report[f"{figure}_error"] = getattr(ours, figure) / real[figure] - 1
    report["spread"] = spread
    report["within"] = all(
        abs(report[f"{figure}_error"]) <= max(BOUND, spread[figure]) for figure in NAMES
    )
    report["within_15_percent"] = all(abs(report[f"{figure}_error"]) <= BOUND for figure in NAMES)
    report["real"] = real
    report["simulated"] = attrs.asdict(ours)
    report["runs"] = [attrs.asdict(run) for run in runs]
    return report
