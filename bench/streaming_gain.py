"""What handing over pieces gains, when it does not pay, and whether coarsening avoids that.

``python -m bench.streaming_gain`` runs pipelines of two stages (``bench/_gain/shapes.py``) on a pool of
simulated engines, on virtual time. A producer writes a text of pieces, and a consumer asks a model about
them in three modes: *waiting*, one call with the whole text; *pieces*, a call for each piece as it comes;
*adaptive*, as many pieces per call as ``alto.text.Coarsening`` says. All modes get the same requests.

A cell is a pipeline, with or without prefix cache, at a load: ``--clients`` with one request at a time each,
or ``--arrivals`` by chance (Poisson), as a part of the rate at which the work of waiting fills the
engines. Latencies are from a request to its last result; ratios to *waiting* are paired within a seed,
their mean over the seeds is geometric. *Overlap* is the part of the time of the consumer's calls that is
over when the producer ends. ``bench/_gain/model.py`` predicts it, and the latency, without simulating.

``worst_slowdown`` is the largest ratio of the mean latencies of *adaptive* and *waiting* over all cells.
With ``--resume`` runs that ``--out`` holds already are not run again. ``--short`` takes less than a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs

from alto.engines.profiles import PROFILES
from bench._gain.report import report, table
from bench._gain.shapes import MODES, SHAPES, shape
from bench._gain.simulate import Point, measure
from bench._result import origin, write

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
ARRIVALS = (0.2, 0.5, 0.8)
CACHES = {"uncached": False, "cached": True}
SHORT: dict[str, Any] = {
    "clients": (1, 16), "arrivals": (0.3,), "requests": 60, "seeds": 1,
}  # fmt: skip


def points(options: argparse.Namespace) -> Iterator[Point]:
    """What is to be run, all modes of a cell one after the other."""
    loads = [("clients", float(n)) for n in options.clients]
    loads += [("arrivals", rho) for rho in options.arrivals]
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, cache in product(options.shapes, options.caches):
            for (kind, load), mode in product(loads, MODES):
                yield Point(
                    profile=options.profile, engines=options.engines, shape=name,
                    cached=CACHES[cache], kind=kind, load=load, mode=mode,
                    requests=options.requests, seed=seed,
                )  # fmt: skip


def measured(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The figures of all runs; written to ``--out`` as they come."""
    done = kept(options)
    todo = [point for point in points(options) if point.key not in done]
    with get_context("spawn").Pool(options.jobs) as pool:
        for number, (key, figures) in enumerate(pool.imap(measure, todo), 1):
            done[key] = figures
            if not options.json:
                print(f"{number}/{len(todo)} {key}", file=sys.stderr, flush=True)
            if number % 20 == 0:
                keep(options, done)
    return done


def kept(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Runs of an earlier time, with ``--resume``."""
    if not (options.resume and options.out and Path(options.out).exists()):
        return {}
    earlier: dict[str, dict[str, Any]] = json.loads(Path(options.out).read_text())["points"]
    return earlier


def whole(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The result: what was derived, and where and how it was measured."""
    aside = ("json", "out", "jobs", "resume", "short")
    return report(found) | {
        "points": found,
        "shapes": {name: asdict(shape(name)) for name in options.shapes},
        "profile": attrs.asdict(PROFILES[options.profile]),
        "options": {name: value for name, value in vars(options).items() if name not in aside},
        **origin(),
        "seed": sorted({int(row["seed"]) for row in found.values()}),
    }


def keep(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Put what there is into ``--out``, so that nothing is lost."""
    if options.out:
        write(options.out, whole(options, found))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.streaming_gain", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--short", action="store_true", help="few loads, one seed; for a look")
    add("--shapes", nargs="+", default=list(SHAPES), help=(
        f"of {', '.join(SHAPES)}; or five means: tokens of the producer's head, pieces, tokens of "
        "each, tokens of the consumer's head, tokens that it writes for a piece: 60-10-16-600-8"
    ))  # fmt: skip
    add("--caches", nargs="+", default=list(CACHES), choices=list(CACHES))
    add("--clients", nargs="*", type=int, help=f"of the pool; default {CLIENTS}")
    add("--arrivals", nargs="*", type=float, help=f"parts of capacity; default {ARRIVALS}")
    add("--requests", type=int, help="of a run, at least; default 160")
    add("--seeds", type=int, help="how many; default 2")
    add("--first-seed", type=int, default=0)
    add("--engines", type=int, default=2)
    add("--profile", default="a100-7b", choices=list(PROFILES))
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    add("--out", help="also write the JSON to this file, as runs end")
    add("--resume", action="store_true", help="keep the runs that --out holds")
    options = parser.parse_args(arguments)
    full = {"clients": CLIENTS, "arrivals": ARRIVALS, "requests": 160, "seeds": 2}
    for name, value in (SHORT if options.short else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not options.clients and not options.arrivals:
        parser.error("give --clients or --arrivals")
    if min([*options.clients, options.engines, options.seeds, options.jobs]) < 1:
        parser.error("--clients, --engines, --seeds and --jobs must be at least 1")
    if not all(0 < part < 1 for part in options.arrivals):
        parser.error("--arrivals must be between 0 and 1")
    try:
        for name in options.shapes:
            shape(name)
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    if options.requests < 20:
        parser.error("--requests must be at least 20")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for, and print it."""
    options = parsed(arguments)
    found = measured(options)
    result = whole(options, found)
    keep(options, found)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
