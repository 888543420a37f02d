"""Results for people: curves, ratios, goals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench._paper.configs import CONFIGS

HEADER = "offered  achieved    median       P99  first, median  first, P99  pieces"


def tables(result: Mapping[str, Any]) -> str:
    """All of a result, as text."""
    lines: list[str] = []
    for study, curves in result["curves"].items():
        for name, curve in curves.items():
            lines += ["", f"{study}: {CONFIGS[name].about}", HEADER]
            for row in curve:
                lines.append(
                    f"{row['load']:7.4g}  {row['achieved']:8.2f}  {row['median']:6.2f} s  "
                    f"{row['p99']:6.2f} s  {row['first_median']:11.2f} s  "
                    f"{row['first_p99']:8.2f} s  {row['pieces']:6.2f}"
                    f"{'' if row['kept'] else '  (below 80 %)'}"
                )
        lines += ["", f"{study}: requests per second at a median of 4 s"]
        for name, rate in result["throughput_at_4s"][study].items():
            lines.append(f"  {name:16} {_rate(rate)}")
        lines += ["", f"{study}: alto over the others, above 1 alto is better"]
        for name, row in result["equal"].get(study, {}).items():
            figures = "  ".join(f"{k} {_two(v)}" for k, v in row.items() if k != "span")
            lines.append(f"  {name:16} {figures}")
    ours = result["published"]
    lines += ["", "alto, without prefix cache, over the paper's PUBLISHED baseline"]
    lines.append(f"  throughput at 4 s {_two(ours['throughput_over_published_baseline'])}")
    lines.append(f"  P99 at low load   {_two(ours['p99_over_published_baseline'])}")
    lines += ["", "goals"]
    for goal in result["goals"]:
        verdict = {True: "holds", False: "MISSED", None: "not measured"}[goal["holds"]]
        lines.append(
            f"  {goal['goal']:58} {goal['aim']:>8}  {_two(goal['measured']):>7}  {verdict}"
        )
    return "\n".join(lines).lstrip("\n")


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rate(rate: tuple[float, bool] | None) -> str:
    if rate is None:
        return "none: the median is above 4 s everywhere"
    return f"{rate[0]:.2f}" if rate[1] else f"at least {rate[0]:.2f}"
