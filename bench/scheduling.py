"""Which policy should place calls: simulated pools under seeded loads, policy against policy.

``python -m bench.scheduling`` runs every workload of ``bench/_scheduling/loads.py`` on pools of
``--engines``, at ``--loads`` of saturation, with roomy and with tight slots and KV memory, over
``--seeds`` paired seeds: all policies get the same requests. Engine and scheduler are the machines
that alto ships, on virtual time. An engine is that of the profile ``scheduling-study``; *tight* has
24 places and 40,000 KV tokens instead of 128 and 120,000.

Saturation is the throughput when half as many requests again come as are done, the better of
`PromptAware` and `LMetric`, measured once per workload, size and setting. A run has ``--requests`` requests per engine,
or as many as come in ``--seconds``; the first tenth of them are left out of the figures. Goodput counts requests that are done within four times
the workload's unloaded median. Figures are means over the seeds; P99 is that of all seeds together.

The baselines serve first come, first served, as the gateways do that their rules come from; `PromptAware`
orders by the age of requests. ``--order request`` gives that order to all, so that only placement
differs.

``decision_us``: CPU time of the scheduler per call, the least of three runs, everything from ``submit`` to ``ended``, at 8
engines and a thousand waiting calls, and beside it at other sizes; naming the blocks of the prompt,
which is linear in its length, is given apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from time import process_time

import attrs

from alto._sched.prefix import chain
from alto.engines.profiles import SCHEDULING_STUDY, EngineProfile
from alto.model import EngineCapacity
from alto.sched import (
    CallInfo,
    LeastLoaded,
    Policy,
    PrefixThreshold,
    PromptAware,
    RoundRobin,
    Scheduler,
)
from bench._result import origin, write
from bench._scheduling.baselines import BoundedLoadHash, LMetric, StaticPartition
from bench._scheduling.loads import LOADS, Request, requests
from bench._scheduling.pool import Outcome, Pool

POLICIES: dict[str, Callable[..., Policy]] = {
    kind.__name__: kind
    for kind in (
        PromptAware, LMetric, PrefixThreshold, BoundedLoadHash, LeastLoaded, RoundRobin,
        StaticPartition,
    )
}  # fmt: skip
SETTINGS: dict[str, EngineProfile] = {
    "roomy": SCHEDULING_STUDY,
    "tight": attrs.evolve(
        SCHEDULING_STUDY, name="tight", max_num_seqs=24, kv_tokens=40_000, max_model_len=8_000
    ),
}
SHARED = ("templates", "documents", "freshdocs", "conflict", "bursty")
"""Workloads where calls share prefixes beyond a short head."""
GOODPUT_FACTOR = 4.0
WARM_UP = 0.1
MINIMUM_SECONDS = 30.0
OVERLOAD_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of everything but the policy and the seed."""

    workload: str
    engines: int
    setting: str
    load: float
    requests: int
    seconds: float
    seeds: int
    order: str
    policies: tuple[str, ...]

    @property
    def name(self) -> str:
        """As a key of the output."""
        return f"{self.workload}/{self.engines}/{self.load:g}/{self.setting}"


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a part *q* of the sorted *values* lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def make(policy: str, order: str) -> Policy:
    """A fresh policy, in its own order or in one for all."""
    return POLICIES[policy]() if order == "own" else POLICIES[policy](order=order)


def todo(cell: Cell, rate: float, seed: int, count: int | None = None) -> list[Request]:
    """The requests of a run."""
    count = count or max(cell.requests, int(rate * cell.seconds))
    return requests(
        LOADS[cell.workload], rate=rate, count=count, seed=seed,
        block_size=SETTINGS[cell.setting].block_size,
    )  # fmt: skip


def saturation(cell: Cell) -> float:
    """Requests a second that the pool does when more come.

    Half as many again as a backlog is worked off at come for `OVERLOAD_SECONDS`, evenly; what ends
    in the second half of that time is counted.
    """
    profile, best = SETTINGS[cell.setting], 0.0
    for policy in ("PromptAware", "LMetric"):
        backlog = todo(cell, 1e6, seed=999, count=50 * cell.engines)
        rough = len(backlog) / max(
            Pool(make(policy, "own"), profile, cell.engines, backlog).run().ends
        )
        even = replace(LOADS[cell.workload], bursty=False)
        work = requests(
            even, rate=1.5 * rough, count=int(1.5 * rough * OVERLOAD_SECONDS), seed=996,
            block_size=profile.block_size,
        )  # fmt: skip
        ends = Pool(make(policy, "own"), profile, cell.engines, work).run().ends
        counted = sum(OVERLOAD_SECONDS / 2 < end <= OVERLOAD_SECONDS for end in ends)
        best = max(best, counted / (OVERLOAD_SECONDS / 2))
    return best


def unloaded(cell: Cell, rate: float) -> float:
    """Median seconds of a request at a twentieth of saturation."""
    outcome = Pool(
        make("PromptAware", "own"), SETTINGS[cell.setting], cell.engines,
        todo(cell, rate / 20, seed=998, count=150),
    ).run()  # fmt: skip
    return statistics.median(outcome.latencies)


def measure(cell: Cell) -> tuple[str, dict[str, dict[str, float]], dict[str, float]]:
    """All policies on one cell."""
    top = saturation(cell)
    limit = GOODPUT_FACTOR * unloaded(cell, top)
    rows: dict[str, list[Outcome]] = {name: [] for name in cell.policies}
    spans = []
    for seed in range(cell.seeds):
        work = todo(cell, cell.load * top, seed)
        skip = int(WARM_UP * len(work))
        spans.append(work[-1].arrived - work[skip].arrived)
        for name in cell.policies:
            pool = Pool(make(name, cell.order), SETTINGS[cell.setting], cell.engines, work)
            outcome = pool.run()
            outcome.latencies = outcome.latencies[skip:]
            rows[name].append(outcome)
    figures = {}
    for name, outcomes in rows.items():
        latencies = [x for outcome in outcomes for x in outcome.latencies]
        good = [
            sum(x <= limit for x in outcome.latencies) / span
            for outcome, span in zip(outcomes, spans, strict=True)
        ]
        figures[name] = {
            "median_s": statistics.mean(statistics.median(o.latencies) for o in outcomes),
            "p99_s": quantile(latencies, 0.99),
            "goodput_rps": statistics.mean(good),
            "hit_rate": statistics.mean(o.hit_rate for o in outcomes),
            "imbalance": statistics.mean(o.imbalance for o in outcomes),
        }
    return cell.name, figures, {"saturation_rps": top, "slo_s": limit}


def decision_cost(engines: int, waiting: int, *, calls: int = 3000, length: int = 1000) -> float:
    """CPU microseconds of `PromptAware` per call, with *waiting* calls in line throughout."""
    luck = random.Random(1)
    scheduler = Scheduler(PromptAware())
    capacity = EngineCapacity(
        max_num_seqs=64, max_num_batched_tokens=2048, kv_tokens=200_000, block_size=16
    )
    for k in range(engines):
        scheduler.add_engine(f"e{k}", capacity, now=0.0)
    heads = [[luck.getrandbits(15) for _ in range(length - 40)] for _ in range(50)]
    work = [
        CallInfo(
            template=("t", k % 3), prompt_tokens=length, max_tokens=200, arrived=k / 8 * 0.01,
            group=k // 8, parent=k // 8,
            token_ids=[*heads[k // 8 % 50], *(luck.getrandbits(15) for _ in range(40))],
        )
        for k in range(waiting + 64 * engines + calls)
    ]  # fmt: skip
    now, running, index = 0.0, [], 0
    while scheduler.waiting < waiting:
        scheduler.submit(work[index], now=now)
        running += scheduler.dispatch(now=now)
        index += 1
    names = -process_time()
    for item in work[:500]:
        assert item.token_ids is not None
        chain(item.token_ids, 16)
    names = (names + process_time()) / 500
    begin, done = process_time(), 0
    while done < calls and index < len(work):
        now += 0.004
        ticket = running[done]
        scheduler.first_token(ticket, now=now, cached_tokens=None)
        scheduler.ended(ticket, now=now, output_tokens=80, completed=True)
        scheduler.submit(work[index], now=now)
        running += scheduler.dispatch(now=now)
        done, index = done + 1, index + 1
    return ((process_time() - begin) / done - names) * 1e6


def decisions(calls: int) -> dict[str, float]:
    """The cost of scheduling a call, at several sizes."""
    sizes = [(8, 1000), (1, 1000), (4, 1000), (16, 1000), (32, 1000), (8, 100), (8, 10_000)]
    return {
        f"engines={e},waiting={w}": min(decision_cost(e, w, calls=calls) for _ in range(3))
        for e, w in sizes
    }


def verdicts(workloads: dict[str, dict[str, dict[str, float]]]) -> dict[str, object]:
    """Each goal: how many cells hold it, and the worst."""
    ours = "PromptAware"
    tail, blind, burst = {}, {}, {}
    for name, row in workloads.items():
        others = {policy: figures for policy, figures in row.items() if policy != ours}
        if ours not in row or not others:
            continue
        kind, _, load, _ = name.split("/")
        p99 = row[ours]["p99_s"]
        tail[name] = p99 / min(figures["p99_s"] for figures in others.values())
        simple = [others[p]["p99_s"] for p in ("RoundRobin", "LeastLoaded") if p in others]
        if kind in SHARED and simple:
            blind[name] = p99 / min(simple)
        if kind == "bursty" and float(load) >= 0.85:
            best = max(figures["goodput_rps"] for figures in others.values())
            burst[name] = row[ours]["goodput_rps"] / best if best else float("inf")
    return {
        "p99_over_best_other<=1.03": _held(tail, lambda x: x <= 1.03, highest=True),
        "p99_over_prefix_blind<=0.80": _held(blind, lambda x: x <= 0.8, highest=True),
        "bursty_goodput_over_best_other>=1.10": _held(burst, lambda x: x >= 1.1, highest=False),
    }


def _held(
    ratios: dict[str, float], holds: Callable[[float], bool], *, highest: bool
) -> dict[str, object]:
    if not ratios:
        return {"cells": 0}
    worst = (max if highest else min)(ratios, key=lambda name: ratios[name])
    return {
        "cells": len(ratios),
        "held": sum(map(holds, ratios.values())),
        "median": statistics.median(ratios.values()),
        "worst": worst,
        "worst_ratio": ratios[worst],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--workloads", nargs="+", default=list(LOADS), choices=list(LOADS))
    add("--engines", nargs="+", type=int, default=[4, 8, 32])
    add("--loads", nargs="+", type=float, default=[0.6, 0.85, 0.95])
    add("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    add("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    add("--requests", type=int, default=150, help="fewest per engine and run")
    add("--seconds", type=float, default=MINIMUM_SECONDS, help="shortest run, in virtual seconds")
    add("--seeds", type=int, default=4)
    add("--order", choices=("own", "request", "arrival"), default="own")
    add("--jobs", type=int, default=os.cpu_count() or 1)
    add("--decisions", type=int, default=3000, help="calls for the cost of one; 0: leave it out")
    add("--out", help="also write the JSON to this file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and print it."""
    options = parse(arguments)
    cells = [
        Cell(
            workload=workload, engines=engines, setting=setting, load=load,
            requests=options.requests * engines,
            seconds=options.seconds, seeds=options.seeds, order=options.order, policies=tuple(options.policies),
        )
        for engines, workload, load, setting in product(
            options.engines, options.workloads, options.loads, options.settings
        )
    ]  # fmt: skip
    cost = decisions(options.decisions) if options.decisions else {}
    workloads, about = {}, {}
    with ProcessPoolExecutor(options.jobs) as executor:
        for name, figures, facts in executor.map(measure, cells):
            workloads[name], about[name] = figures, facts
            if not options.json:
                _show(name, figures)
                sys.stdout.flush()
    result = {
        "workloads": workloads,
        "decision_us": cost,
        "goals": verdicts(workloads),
        "about": about,
        "profiles": {name: attrs.asdict(profile) for name, profile in SETTINGS.items()},
        "options": {k: v for k, v in vars(options).items() if k not in ("json", "out", "jobs")},
        **origin(),
        "seed": list(range(options.seeds)),
    }
    if options.out:
        write(options.out, result)
    if options.json:
        print(json.dumps(result))
    else:
        print(json.dumps({"goals": result["goals"], "decision_us": cost}, indent=1))


def asdict_of(profile: EngineProfile) -> dict[str, object]:
    """A profile as JSON has it."""
    return attrs.asdict(profile)


def _show(name: str, figures: dict[str, dict[str, float]]) -> None:
    print(name)
    for policy, row in figures.items():
        print(
            f"  {policy:16} median {row['median_s']:7.3f}  p99 {row['p99_s']:7.3f}  "
            f"goodput {row['goodput_rps']:6.2f}  hits {row['hit_rate']:.3f}  "
            f"imbalance {row['imbalance']:.2f}"
        )


if __name__ == "__main__":
    main()
