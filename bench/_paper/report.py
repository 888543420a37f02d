"""From the figures of points to curves, ratios and goals."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench._paper import published

KEPT = 0.8
"""Points count where at least this part of the offered load is achieved, as in the paper."""
LIMIT_S = 4.0
FIGURES = ("achieved", "median", "p99", "first_median", "first_p99")

Row = Mapping[str, float]
Curve = list[dict[str, float]]
"""By ascending load."""
Runs = dict[str, dict[str, dict[int, Curve]]]
"""By study, configuration and seed."""


def grouped(points: Mapping[str, Row]) -> Runs:
    """Points by study, configuration and seed, each by ascending load."""
    runs: Runs = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for key, row in points.items():
        study, config, _, seed, _ = key.split("/")
        runs[study][config][int(seed)].append(dict(row))
    for configs in runs.values():
        for seeds in configs.values():
            for rows in seeds.values():
                rows.sort(key=lambda row: row["load"])
    return runs


def mean_curve(seeds: Mapping[int, Curve]) -> Curve:
    """The mean over the seeds at each load, with the least and the most of them."""
    by_load: dict[float, list[Row]] = defaultdict(list)
    for rows in seeds.values():
        for row in rows:
            by_load[row["load"]].append(row)
    curve = []
    for load, rows in sorted(by_load.items()):
        mean: dict[str, float] = {"load": load, "seeds": len(rows)}
        for figure in (*FIGURES, "calls", "pieces", "cached", "aborted"):
            values = [row[figure] for row in rows]
            mean[figure] = statistics.mean(values)
            if figure in FIGURES:
                mean[f"{figure}_min"], mean[f"{figure}_max"] = min(values), max(values)
        mean["kept"] = mean["achieved"] >= KEPT * load
        curve.append(mean)
    return curve


def throughput(curve: Sequence[Row], limit: float = LIMIT_S) -> tuple[float, bool] | None:
    """Achieved load at which the median is *limit* seconds, and whether it was reached.

    Between two points the logarithm of the median is taken to be linear in the achieved load. Where
    no point is above the limit, the highest achieved load: at least that much. None: all are above.
    """
    before: Row | None = None
    for row in curve:
        if row["median"] > limit:
            if before is None:
                return None
            low, high = math.log(before["median"]), math.log(row["median"])
            part = (math.log(limit) - low) / (high - low)
            return before["achieved"] + part * (row["achieved"] - before["achieved"]), True
        before = row
    return None if before is None else (before["achieved"], False)


def at(curve: Iterable[tuple[float, float]], x: float) -> float | None:
    """The value of a curve at *x*, linear between its points; None: it does not go there."""
    before: tuple[float, float] | None = None
    for point in sorted(curve):
        if math.isclose(point[0], x, rel_tol=0.02):
            return point[1]
        if before is not None and before[0] <= x <= point[0]:
            part = (x - before[0]) / (point[0] - before[0])
            return before[1] + part * (point[1] - before[1])
        before = point
    return None


def geometric(values: Sequence[float]) -> float | None:
    """The geometric mean; None of nothing."""
    return math.exp(statistics.mean(map(math.log, values))) if values else None


def paired(ours: Mapping[int, Curve], other: Mapping[int, Curve]) -> dict[str, list[float]]:
    """Ratios of the two within each seed; above 1: ours is better."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in sorted(ours.keys() & other.keys()):
        mine, theirs = ours[seed], other[seed]
        rates = throughput(mine), throughput(theirs)
        if rates[0] is not None and rates[1] is not None and rates[1][1]:
            ratios["throughput_at_4s"].append(rates[0][0] / rates[1][0])
        if mine[0]["load"] != theirs[0]["load"]:
            continue
        for name, figure in (
            ("p99_low_load", "p99"),
            ("first_result_median", "first_median"),
            ("first_result_p99", "first_p99"),
        ):
            ratios[name].append(theirs[0][figure] / mine[0][figure])
        both = {row["load"]: row["achieved"] for row in theirs}
        shares = [row["achieved"] / both[row["load"]] for row in mine if row["load"] in both]
        ratios["least_achieved"].append(min(shares))
    return ratios


def equal_terms(runs: Runs, ours: str = "alto") -> dict[str, dict[str, dict[str, Any]]]:
    """*ours* over every other configuration of each study: mean ratio, and the span of the seeds."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for study, configs in runs.items():
        found[study] = {}
        for name, seeds in configs.items():
            if name == ours or ours not in configs:
                continue
            ratios = paired(configs[ours], seeds)
            row: dict[str, Any] = {k: geometric(v) for k, v in ratios.items()}
            row["span"] = {k: [min(v), max(v)] for k, v in ratios.items() if v}
            found[study][name] = row
    return found


def deviation(curve: Sequence[Row], figure: str) -> dict[str, float]:
    """By how much a curve is off the paper's streamed one, at each of that one's loads."""
    ours = [(row["achieved"], row[figure]) for row in curve if row["kept"]]
    off = {}
    for load, seconds in published.CURVES["streamed"][figure]:
        value = at(ours, load)
        if value is not None and load <= published.UP_TO:
            off[f"{load:g}"] = value / seconds - 1
    return off


def against_published(curves: Mapping[str, Mapping[str, Curve]]) -> dict[str, Any]:
    """What alto does without prefix cache, also over the paper's published baseline."""
    curve = curves.get("no_prefix_cache", {}).get("alto", [])
    rate = throughput(curve)
    low = curve[0]["p99"] if curve else None
    return {
        "throughput_at_4s_rps": None if rate is None else rate[0],
        "throughput_is_reached": rate is not None and rate[1],
        "p99_low_load_s": low,
        "throughput_over_published_baseline": rate and rate[0] / published.BASELINE_AT_4S,
        "p99_over_published_baseline": low and published.BASELINE_LOW_P99 / low,
    }


def goals(
    curves: Mapping[str, Mapping[str, Curve]], equal: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Each goal, what was measured, and whether it holds; None where it was not measured."""
    ours = against_published(curves)
    paper = curves.get("no_prefix_cache", {}).get("paper_alto", [])
    off = {figure: deviation(paper, figure) for figure in ("median", "p99")}
    rate, reached = ours["throughput_at_4s_rps"] or 0.0, ours["throughput_is_reached"]

    def ratio(study: str, config: str, name: str) -> float | None:
        value: float | None = equal.get(study, {}).get(config, {}).get(name)
        return value

    rows: list[tuple[str, float | None, float, bool]] = [
        *(
            (f"{figure} of (b) off the paper's, up to 18/s", _most(off[figure]), 0.10, False)
            for figure in off
        ),
        (
            "requests per second at 4 s median",
            rate if reached or rate >= 17.8 else None,
            17.8,
            True,
        ),
        ("P99 at low load, seconds", ours["p99_low_load_s"], 7.2, False),
    ]
    for study, least in (("no_prefix_cache", 1.2), ("prefix_cache", 1.1)):
        value = ratio(study, "static", "throughput_at_4s")
        rows.append((f"{study}: throughput over (a)", value, least, True))
    for study in ("no_prefix_cache", "prefix_cache"):
        for label, name, least in (
            ("least throughput over (c), all loads", "least_achieved", 0.97),
            ("median first result sooner than (c)", "first_result_median", 2.0),
            ("P99 first result sooner than (c)", "first_result_p99", 3.0),
            ("P99 lower than (c)", "p99_low_load", 1.25),
        ):
            rows.append((f"{study}: {label}", ratio(study, "pooled", name), least, True))
    rows.append(
        ("run_on: P99 lower than (c)", ratio("run_on", "pooled", "p99_low_load"), 1.6, True)
    )
    return [
        {
            "goal": label,
            "aim": f"{'>=' if up else '<='} {aim:g}",
            "measured": value,
            "holds": None if value is None else (value >= aim if up else value <= aim),
        }
        for label, value, aim, up in rows
    ]


def _most(off: Mapping[str, float]) -> float | None:
    return max(map(abs, off.values())) if off else None


def report(points: Mapping[str, Row]) -> dict[str, Any]:
    """Everything that is derived from points."""
    runs = grouped(points)
    curves = {
        study: {name: mean_curve(seeds) for name, seeds in configs.items()}
        for study, configs in runs.items()
    }
    equal = equal_terms(runs)
    rates = {
        study: {name: throughput(curve) for name, curve in configs.items()}
        for study, configs in curves.items()
    }
    paper = curves.get("no_prefix_cache", {}).get("paper_alto", [])
    return {
        "published": against_published(curves),
        "equal": equal,
        "goals": goals(curves, equal),
        "throughput_at_4s": rates,
        "off_the_paper": {f: deviation(paper, f) for f in ("median", "p99")},
        "curves": curves,
        "paper": published.CURVES,
    }
