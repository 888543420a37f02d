"""Figure 3 of the ALTO paper, run through alto: what streaming gives, and what of it reproduces.

``python -m bench.paper`` runs the pipeline of ALTO v1, section 4.1 (``bench/_paper/pipeline.py``): an
answer, its claims, their queries, BM25 word by word beside a query encoder, a reranker. Fan-outs,
lengths and service times are those of its Table 1 (``bench/_paper/workload.py`` says what is assumed
beyond it), on 7 engines of the profile ``a100-7b``, simulated, and on the virtual clock. Requests come
by chance (Poisson) for ``--minutes``; a point is kept where at least 80 % of the offered load is
achieved; every configuration gets the same requests, for ``--seeds`` seeds.

The configurations (``bench/_paper/configs.py``): the paper's baseline and its ALTO, both on partitioned
engines with ``hash(request) % n``; the strongest set-up without streaming; one with a barrier after
every stage; alto as it ships; and alto with one thing taken away at a time. They run without and with
prefix cache, the same for all, and with claims that *run on*: the model repeats the claims of a long
answer up to its limit; a consumer that streams sees it and closes the generation.

Ratios are of alto over the others within each seed, above 1 alto is better; the mean over the seeds
is geometric. Figures of the paper are labelled *published*. Processes (``--jobs``) run points side by
side; with ``--resume`` those that ``--out`` holds already are not run again, so stop and go on as you
like. ``--draw`` draws a file that ``--out`` wrote, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs

from alto.engines.profiles import A100_7B
from bench._paper.configs import ABLATIONS, CONFIGS, MAIN, SLOTS, STUDIES
from bench._paper.figure import draw
from bench._paper.report import report
from bench._paper.simulate import Point, measure
from bench._paper.tables import tables
from bench._result import origin, write

MINUTES = 12.0
SEEDS = 5
LOADS: dict[str, tuple[float, ...]] = {
    "no_prefix_cache": (1.5, 3, 4.5, 6, 9, 12, 15, 16.5, 18, 19.5, 21),
    "prefix_cache": (1.5, 6, 12, 24),
    "run_on": (1.5, 3, 6, 12),
}
"""Requests per second that are offered; the lowest is the *low load* of the ratios. With a prefix cache
the encoder carries no more than 40; what comes close to that is asked for with ``--loads``."""
SLOTS_LOADS = (1.5, 3, 4.5, 6, 7.5)
ABLATION_LOADS = {"no_prefix_cache": (1.5, 18), "prefix_cache": (1.5,)}


def points(options: argparse.Namespace) -> Iterator[Point]:
    """What is to be run, the cheapest first."""
    found = []
    for study in options.studies:
        for name in options.configs or [config.name for config in MAIN]:
            loads = options.loads or LOADS[study]
            found += [(study, name, load) for load in loads]
        if options.configs or options.loads:
            continue
        if study == "run_on":
            found += [(study, SLOTS.name, load) for load in SLOTS_LOADS]
        for config in ABLATIONS:
            found += [(study, config.name, load) for load in ABLATION_LOADS.get(study, ())]
    for seed in range(options.seeds):
        for study, name, load in sorted(found, key=lambda point: point[2]):
            yield Point(
                study=study, config=name, load=load, seed=seed + options.first_seed,
                minutes=options.minutes,
            )  # fmt: skip


def measured(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of all points; written to ``--out`` as they come."""
    done = kept(options)
    todo = [point for point in points(options) if point.key not in done]
    # Not a ProcessPoolExecutor: with max_tasks_per_child CPython's stands still when workers are due
    # to be replaced (gh-115634).
    with get_context("spawn").Pool(options.jobs, maxtasksperchild=20) as pool:
        for key, figures in pool.imap_unordered(measure, todo):
            done[key] = figures
            if not options.json:
                print(f"{key:40} {_short(figures)}", file=sys.stderr, flush=True)
            keep(options, done)
    return done


def kept(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Points of an earlier run, with ``--resume``; those of other lengths are left out."""
    if not (options.resume and options.out and Path(options.out).exists()):
        return {}
    earlier: dict[str, dict[str, float]] = json.loads(Path(options.out).read_text())["points"]
    return {key: row for key, row in earlier.items() if row["minutes"] == options.minutes}


def _short(figures: dict[str, float]) -> str:
    names = ("achieved", "median", "p99", "first_median", "first_p99", "pieces", "cpu_s")
    return "  ".join(f"{name} {figures[name]:.2f}" for name in names)


def whole(options: argparse.Namespace, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The result: what was derived, and where and how it was measured."""
    return report(found) | {
        "points": found,
        "profile": attrs.asdict(A100_7B),
        "options": {
            name: value
            for name, value in vars(options).items()
            if name not in ("json", "out", "jobs", "draw", "image", "resume")
        },
        **origin(),
        "seed": sorted({int(figures["seed"]) for figures in found.values()}),
    }


def keep(options: argparse.Namespace, found: dict[str, dict[str, float]]) -> None:
    """Put what there is into ``--out``, so that nothing is lost."""
    if options.out:
        write(options.out, whole(options, found))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object instead of tables")
    add("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    add("--configs", nargs="+", choices=list(CONFIGS), help="only these, at --loads")
    add("--loads", nargs="+", type=float, help="requests per second; leaves out the ablation")
    add("--minutes", type=float, default=MINUTES, help="length of a run, virtual")
    add("--seeds", type=int, default=SEEDS, help="how many")
    add("--first-seed", type=int, default=0)
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    add("--out", help="also write the JSON to this file, as points come")
    add("--resume", action="store_true", help="keep the points that --out holds")
    add("--draw", metavar="FILE", help="draw this result, and run nothing")
    add("--image", default="figure_3", help="what --draw writes, as .png and .svg")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.seeds < 1 or min(options.loads or [1]) <= 0:
        parser.error("--minutes and --loads must be above 0, --seeds at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and print it."""
    options = parsed(arguments)
    if options.draw:
        for file in draw(json.loads(Path(options.draw).read_text()), Path(options.image)):
            print(file)
        return
    found = measured(options)
    result = whole(options, found)
    keep(options, found)
    print(json.dumps(result) if options.json else tables(result))


if __name__ == "__main__":
    main()
