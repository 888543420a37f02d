"""One run: a mode of a pipeline at a load, on virtual time."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anyio

from alto.engines import Pool, Simulated
from alto.engines.profiles import PROFILES
from alto.testing import run_virtual
from alto.text import Coarsening
from bench._gain.model import Setting, call_tokens, capacity, predict
from bench._gain.pipeline import Lab, build
from bench._gain.shapes import GRAIN, Mode, Plan, plans, shape

WARM_UP = 0.2
"""Part of the requests that is left out of the figures, at the beginning."""
ROUNDS = 5
"""Requests for each that is there at a time, at least."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What to run."""

    profile: str
    engines: int
    shape: str
    cached: bool
    kind: str
    """``clients``: so many, each with one request at a time; ``arrivals``: requests that come by chance."""
    load: float
    """Clients of the pool; or requests per second over those that it could do (`capacity`)."""
    mode: Mode
    requests: int
    """At least."""
    seed: int

    @property
    def cell(self) -> str:
        """All but mode and seed, as a key."""
        cache = "cached" if self.cached else "uncached"
        return f"{self.profile}/{self.engines}/{self.shape}/{cache}/{self.kind}/{self.load:g}"

    @property
    def key(self) -> str:
        """As a key of the output."""
        return f"{self.cell}/{self.mode}/{self.requests}/{self.seed}"


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a part *q* of the sorted *values* lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def measure(point: Point) -> tuple[str, dict[str, Any]]:
    """Run a point; its key, and its figures in seconds and per second."""
    setting = Setting(
        shape=shape(point.shape), profile=PROFILES[point.profile], engines=point.engines,
        cached=point.cached,
    )  # fmt: skip
    clients = int(point.load) if point.kind == "clients" else None
    work = plans(setting.shape, point.requests, point.seed)
    rate = 0.0 if clients else point.load * capacity(setting, work)
    waiting = predict(setting, work, "waiting", clients=clients, rate=rate).latency
    assert waiting is not None, "a load is below 1"
    many = max(point.requests, ROUNDS * (clients or math.ceil(rate * waiting)))
    work = plans(setting.shape, many, point.seed)
    predicted = predict(setting, work, point.mode, clients=clients, rate=rate)
    began = time.process_time()
    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(200_000, 20, 100)
    try:
        figures = run_virtual(_run, setting, point.mode, work, clients, rate, point.seed)
    finally:
        gc.set_threshold(*threshold)
    return point.key, {
        **asdict(point),
        "cell": point.cell,
        **figures,
        **{f"predicted_{name}": value for name, value in asdict(predicted).items()},
        "rate": rate,
        "cpu_s": time.process_time() - began,
    }


async def _run(
    setting: Setting, mode: Mode, work: Sequence[Plan], clients: int | None, rate: float, seed: int
) -> dict[str, float]:
    lab = Lab(setting.shape, mode, setting.cached, work)
    pool = lab.pool = Pool([
        Simulated(setting.profile, lab.say, name=f"lm-{k}", stream_interval=GRAIN)
        for k in range(setting.engines)
    ])  # fmt: skip
    if mode == "adaptive":
        lab.size = Coarsening(pool, call_tokens=call_tokens(setting.profile))
    clock = asyncio.get_running_loop().time
    begins, ends = [0.0] * len(work), [0.0] * len(work)
    async with build().open(lab=lab, llm=pool) as app:

        async def serve(request: int) -> None:
            begins[request] = clock()
            found = await app.run(request)
            ends[request] = clock()
            assert sum(found) == len(work[request].tokens), "no piece is lost"

        async def client(requests: Any) -> None:  # noqa: ANN401  # an iterator that all share
            for request in requests:
                await serve(request)

        async with anyio.create_task_group() as tasks:
            shared = iter(range(len(work)))
            for _ in range(clients or 0):
                tasks.start_soon(client, shared)
            if not clients:
                luck, due = random.Random(f"{seed}/arrivals"), clock()
                for request in shared:
                    due += luck.expovariate(1.0) / rate
                    await asyncio.sleep(max(0.0, due - clock()))
                    tasks.start_soon(serve, request)
    return _figures(lab, begins, ends, clients or 0)


def _figures(
    lab: Lab, begins: Sequence[float], ends: Sequence[float], clients: int
) -> dict[str, float]:
    """What is reported. With clients the last requests are left out too, which few others are beside."""
    count = len(begins)
    counted = range(max(clients, int(WARM_UP * count)), count - clients)
    latencies = [ends[k] - begins[k] for k in counted]
    busy = early = calls = 0.0
    for request, begin, end in lab.calls:
        if request in counted:
            calls += 1
            busy += end - begin
            early += max(0.0, min(end, lab.ends[request]) - begin)
    span = max(ends[k] for k in counted) - min(begins[k] for k in counted)
    return {
        "counted": len(counted),
        "mean": statistics.mean(latencies),
        "median": statistics.median(latencies),
        "p99": quantile(latencies, 0.99),
        "throughput": len(counted) / span,
        "overlap": early / busy,
        "calls": calls / len(counted),
    }
