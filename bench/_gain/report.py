"""From the figures of runs to ratios, goals and a table."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench._gain.shapes import MODES

Row = Mapping[str, Any]

FIGURES = ("mean", "median", "p99", "throughput", "overlap", "calls")
PREDICTED = ("predicted_latency", "predicted_overlap", "predicted_calls", "predicted_generations")
LATENCIES = ("mean", "median", "p99")
MOST = 1.02
"""The goal: streaming is never more than 2 % slower than waiting."""
KEPT = 0.9
"""Part of what each piece by itself gains at the lowest load that coarsening is to keep."""


def cells(points: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """By cell: every mode's means over the seeds, and its ratios to waiting within each seed."""
    runs: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in points.values():
        runs[row["cell"]][row["mode"]][row["seed"]] = row
    found: dict[str, dict[str, Any]] = {}
    for cell, modes in runs.items():
        if "waiting" in modes:
            found[cell] = {
                mode: _summary(modes[mode], modes["waiting"]) for mode in MODES if mode in modes
            }
    return found


def _summary(seeds: Mapping[int, Row], waiting: Mapping[int, Row]) -> dict[str, Any]:
    rows = list(seeds.values())
    summary: dict[str, Any] = {"seeds": sorted(seeds)}
    for name in FIGURES:
        summary[name] = statistics.mean(row[name] for row in rows)
    for name in PREDICTED:
        values = [row[name] for row in rows]
        summary[name] = None if None in values else statistics.mean(values)
    both = sorted(seeds.keys() & waiting.keys())
    for name in (*LATENCIES, "throughput"):
        ratios = [seeds[k][name] / waiting[k][name] for k in both]
        summary[f"{name}_over_waiting"] = _geometric(ratios)
        summary[f"{name}_over_waiting_seeds"] = ratios
    predicted = [waiting[k]["predicted_latency"] for k in both]
    mine = [seeds[k]["predicted_latency"] for k in both]
    summary["predicted_over_waiting"] = (
        None if None in mine
        else _geometric([a / b for a, b in zip(mine, predicted, strict=True)])
    )  # fmt: skip
    return summary


def _geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def report(points: Mapping[str, Row]) -> dict[str, Any]:
    """Everything that is derived from the runs."""
    found = cells(points)
    result: dict[str, Any] = {}
    for mode, prefix in (("adaptive", ""), ("pieces", "pieces_")):
        for name in LATENCIES:
            key = f"{prefix}worst_{'' if name == 'mean' else name + '_'}slowdown"
            result[key], result[f"{key}_at"] = _worst(found, mode, f"{name}_over_waiting")
        ones = [r for c in found.values() if mode in c for r in c[mode]["mean_over_waiting_seeds"]]
        result[f"{prefix}worst_slowdown_of_a_seed"] = max(ones, default=None)
        result[f"{prefix}mean_ratio"] = _mean_ratio(found, mode)
        shares = [c[mode]["throughput_over_waiting"] for c in found.values() if mode in c]
        result[f"{prefix}least_throughput"] = min(shares, default=None)
    result["gain_kept_at_low_load"], result["low_load"] = _low_load(found)
    result["pieces_do_not_pay_at"] = [
        cell for cell, modes in found.items()
        if "pieces" in modes and modes["pieces"]["mean_over_waiting"] > 1
    ]  # fmt: skip
    result["model"] = _model(found)
    return {**result, "goals": _goals(result), "cells": found}


def _worst(found: Mapping[str, Row], mode: str, name: str) -> tuple[float | None, str | None]:
    there = {cell: modes[mode][name] for cell, modes in found.items() if mode in modes}
    if not there:
        return None, None
    cell = max(there, key=lambda key: there[key])
    return there[cell], cell


def _mean_ratio(found: Mapping[str, Row], mode: str) -> float | None:
    ratios = [modes[mode]["mean_over_waiting"] for modes in found.values() if mode in modes]
    return _geometric(ratios) if ratios else None


def _low_load(found: Mapping[str, Row]) -> tuple[float | None, dict[str, Any]]:
    """With one client: what each piece by itself gains, what coarsening does, and the least part."""
    gains = {}
    for cell, modes in found.items():
        if cell.endswith("/clients/1") and {"pieces", "adaptive"} <= modes.keys():
            each = 1 - modes["pieces"]["mean_over_waiting"]
            ours = 1 - modes["adaptive"]["mean_over_waiting"]
            kept = ours / each if each > 0 else None
            gains[cell] = {"pieces": each, "adaptive": ours, "kept": kept}
    parts = [gain["kept"] for gain in gains.values() if gain["kept"] is not None]
    return min(parts, default=None), gains


def _model(found: Mapping[str, Row]) -> dict[str, Any]:
    """How far the model is off."""
    rows = [row for modes in found.values() for mode, row in modes.items() if mode != "waiting"]
    each = [modes["pieces"] for modes in found.values() if "pieces" in modes]
    right = [
        (row["mean_over_waiting"] > 1)
        == (row["predicted_over_waiting"] is None or row["predicted_over_waiting"] > 1)
        for row in each
    ]
    off = [abs(row["overlap"] - row["predicted_overlap"]) for row in rows]
    apart = [
        abs(row["predicted_over_waiting"] / row["mean_over_waiting"] - 1)
        for row in rows
        if row["predicted_over_waiting"] is not None
    ]
    return {
        "overlap_off_mean": statistics.mean(off) if off else None,
        "overlap_off_most": max(off, default=None),
        "ratio_off_median": statistics.median(apart) if apart else None,
        "ratio_off_most": max(apart, default=None),
        "says_whether_pieces_pay": sum(right) / len(right) if right else None,
    }


def _goals(result: Row) -> list[dict[str, Any]]:
    """The goal is on the mean; what becomes of the tail and of the median is shown beside it."""
    kept = result["gain_kept_at_low_load"]
    rows: list[tuple[str, str, float | None, bool]] = []
    for name, figure in (("mean", ""), ("P99", "p99_"), ("median", "median_")):
        worst = result[f"worst_{figure}slowdown"]
        label = f"adaptive over waiting at the worst load, {name} latency"
        rows.append((label, f"<= {MOST}", worst, worst is not None and worst <= MOST))
    label = "part of the gain of single pieces that it keeps at one client"
    rows.append((label, f">= {KEPT}", kept, kept is not None and kept >= KEPT))
    return [
        {"goal": goal, "aim": aim, "measured": value, "holds": None if value is None else holds}
        for goal, aim, value, holds in rows
    ]


def table(result: Row) -> str:
    """The result in plain text."""
    return "\n".join(_lines(result))


def _lines(result: Row) -> Iterator[str]:
    yield "Latency is the mean over the seeds, in seconds; ratios are to waiting, within each seed."
    yield "In brackets is what the model predicts; - where it says that the pool cannot do it."
    for cell, modes in result["cells"].items():
        waiting = modes["waiting"]
        yield f"\n{cell}: waiting {_n(waiting['mean'])} s, P99 {_n(waiting['p99'])} s"
        for mode, row in modes.items():
            if mode != "waiting":
                yield (
                    f"  {mode:9} latency x {_n(row['mean_over_waiting'])} "
                    f"({_n(row['predicted_over_waiting'])})  median x {_n(row['median_over_waiting'])}"
                    f"  P99 x {_n(row['p99_over_waiting'])}  overlap {_n(row['overlap'], 2)} "
                    f"({_n(row['predicted_overlap'], 2)})  calls {_n(row['calls'], 1)} "
                    f"({_n(row['predicted_calls'], 1)})"
                )
    model = result["model"]
    yield (
        f"\nmodel: overlap off by {_n(model['overlap_off_mean'], 2)}, "
        f"latency ratio by {_n(model['ratio_off_median'], 2)} (median); whether single pieces pay "
        f"is right in {_n(model['says_whether_pieces_pay'], 2)} of the cells"
    )
    yield (
        f"worst slowdown of adaptive: mean {_n(result['worst_slowdown'])} "
        f"({result['worst_slowdown_at']}), median {_n(result['worst_median_slowdown'])}, "
        f"P99 {_n(result['worst_p99_slowdown'])}; on the average x {_n(result['mean_ratio'])}"
    )
    yield (
        f"worst slowdown of single pieces: mean {_n(result['pieces_worst_slowdown'])} "
        f"({result['pieces_worst_slowdown_at']}); on the average x {_n(result['pieces_mean_ratio'])}\n"
    )
    for row in result["goals"]:
        held = {None: "not measured", True: "held", False: "missed"}[row["holds"]]
        yield f"{row['goal']:64} {row['aim']:8} {_n(row['measured']):>7}  {held}"


def _n(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
