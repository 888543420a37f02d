"""One point of the figure: a configuration at a load, for some minutes of virtual time."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass

import anyio
import attrs

from alto.engines import Pool, Simulated
from alto.engines.profiles import A100_7B
from alto.pipeline import Pipeline
from alto.testing import run_virtual
from bench._paper.configs import CONFIGS, ENGINES, STUDIES, Config, Study
from bench._paper.pipeline import Lab, build
from bench._paper.workload import RequestPlan, requests

UNREAD_INTERVAL = 100
"""Tokens per chunk where nobody looks at a chunk: cheaper, and far from the five seconds of silence
after which a scheduler takes an engine for stalled and gives it nothing."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What to run."""

    study: str
    config: str
    load: float
    """Mean arrivals per second."""
    seed: int
    minutes: float

    @property
    def key(self) -> str:
        """As a key of the output."""
        return f"{self.study}/{self.config}/{self.load:g}/{self.seed}/{self.minutes:g}"


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a part *q* of the sorted *values* lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def measure(point: Point) -> tuple[str, dict[str, float]]:
    """Run a point; its key, and its figures in seconds and per second."""
    config, study = CONFIGS[point.config], STUDIES[point.study]
    plans = requests(
        rate=point.load, seconds=60 * point.minutes, seed=point.seed, run_on=study.run_on
    )
    began = time.process_time()
    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(200_000, 20, 100)
    try:
        outcome = run_virtual(_run, config, study, plans)
    finally:
        gc.set_threshold(*threshold)
    whole, first = outcome.completed, outcome.first
    sent = len(plans)
    return point.key, {
        **{k: v for k, v in asdict(point).items() if k in ("load", "seed", "minutes")},
        "requests": sent,
        "achieved": sent / outcome.end,
        "median": statistics.median(whole),
        "p99": quantile(whole, 0.99),
        "first_median": statistics.median(first),
        "first_p99": quantile(first, 0.99),
        "calls": outcome.calls / sent,
        "pieces": outcome.pieces / sent,
        "cached": outcome.cached,
        "aborted": outcome.aborted / sent,
        "cpu_s": time.process_time() - began,
    }


@dataclass(kw_only=True)
class Outcome:
    """What happened."""

    completed: list[float]
    """Seconds from arrival to the last result, per request."""
    first: list[float]
    """Seconds from arrival to the first result, per request."""
    end: float
    """When the last request was done."""
    calls: int
    pieces: int
    cached: float
    """Part of the prompt tokens that was in a cache."""
    aborted: int


async def _run(config: Config, study: Study, plans: Sequence[RequestPlan]) -> Outcome:
    lab = Lab(config, study.cached)
    profile = A100_7B
    if config.slots is not None:
        profile = attrs.evolve(profile, max_num_seqs=config.slots)
    looked_at = config.streaming or config.pieces != "answer"
    interval = 1 if looked_at else UNREAD_INTERVAL
    engines = [
        Simulated(profile, lab.say, name=f"lm-{k}", stream_interval=interval)
        for k in range(ENGINES)
    ]
    pool = Pool(engines, policy=config.policy())
    lab.pool = pool
    served = _Served(plans)
    pipeline: Pipeline[RequestPlan, int] = build(config)
    async with pipeline.open(lab=lab, llm=pool) as app:
        async with anyio.create_task_group() as tasks:
            async for plan in _arrivals(plans):
                tasks.start_soon(served.serve, app, plan)
        counts = pool.statistics()
    return Outcome(
        completed=served.completed, first=served.first,
        end=max(p.arrives + s for p, s in zip(plans, served.completed, strict=True)),
        calls=lab.calls, pieces=lab.pieces,
        cached=counts.cached_tokens / max(1, counts.prompt_tokens), aborted=counts.aborted,
    )  # fmt: skip


async def _arrivals(plans: Sequence[RequestPlan]) -> AsyncIterator[RequestPlan]:
    clock = asyncio.get_running_loop().time
    start = clock()
    for plan in plans:
        await asyncio.sleep(max(0.0, start + plan.arrives - clock()))
        yield plan


class _Served:
    """Sends requests, and notes when their results come."""

    def __init__(self, plans: Sequence[RequestPlan]) -> None:
        self.completed = [0.0] * len(plans)
        self.first = [0.0] * len(plans)

    async def serve(self, app: object, plan: RequestPlan) -> None:
        """One request, from its arrival to its last result."""
        clock = asyncio.get_running_loop().time
        begun, first = clock(), None
        async with app.stream(plan) as results:  # type: ignore[attr-defined]  # any app
            async for _ in results:
                first = clock() if first is None else first
        assert first is not None, "every answer has a claim, and every claim a query"
        self.first[plan.number] = first - begun
        self.completed[plan.number] = clock() - begun
