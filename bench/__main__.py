"""The short forms of the benchmarks, and what became of each goal: ``python -m bench``.

Each runs in a process of its own, one after the other, in a few minutes in all. Short forms say whether
something is badly wrong; figures to quote come from the full ones (docs/explanation/benchmarks.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ("Goal", "main")


class Goal(NamedTuple):
    """What was aimed at, and what came out."""

    goal: str
    aim: str
    """As text: ``<= 3``."""
    measured: float | None
    holds: bool | None
    """None: not measured."""
    note: str = ""


class Short(NamedTuple):
    """The short form of a benchmark."""

    arguments: tuple[str, ...]
    goals: Callable[[dict[str, Any]], list[Goal]]
    """From its JSON."""


def _own(result: dict[str, Any]) -> list[Goal]:
    """The goals that a benchmark marks by itself."""
    return [
        Goal(row["goal"], row["aim"], row["measured"], row["holds"], row.get("note", ""))
        for row in result["goals"]
    ]


def _goal(label: str, measured: float | None, least: float | None, most: float | None) -> Goal:
    aim = f">= {least:g}" if least is not None else f"<= {most:g}"
    if measured is None:
        return Goal(label, aim, None, None)
    held = measured >= least if least is not None else most is None or measured <= most
    return Goal(label, aim, measured, held)


def _overhead(result: dict[str, Any]) -> list[Goal]:
    rows = []
    for section, how in (("per_item_us", "one by one"), ("per_item_us_concurrent", "20 at once")):
        ratios = result["ratios"][section]["alto"]
        rows += [
            _goal(f"an item over a bare queue, {how}", ratios["to_asyncio_queue"], None, 3.0),
            _goal(f"LangGraph over alto, an item, {how}", ratios["langgraph_to_it"], 20.0, None),
        ]
    chunk = result["per_chunk_us"]["alto"]
    return [*rows, _goal("a text chunk on top of the engine, us", chunk, None, 2.0)]


def _scheduling(result: dict[str, Any]) -> list[Goal]:
    rows = []
    for label, row in result["goals"].items():
        name, sign, bound = label.replace("_", " ").partition("<=" if "<=" in label else ">=")
        limits = (None, float(bound)) if sign == "<=" else (float(bound), None)
        rows.append(_goal(f"{name}, worst cell", row.get("worst_ratio"), *limits))
    return rows


SHORT: dict[str, Short] = {
    "overhead": Short(
        ("--cpu", "--rounds", "5", "--only", "asyncio_queue,langgraph,alto"), _overhead
    ),
    "scheduling": Short(
        ("--engines", "4", "--loads", "0.85", "--settings", "tight", "--seeds", "1", "--requests",
         "60", "--decisions", "0", "--workloads", "pipeline", "documents", "bursty"),
        _scheduling,
    ),
    "streaming_gain": Short(("--short",), _own),
    "paper": Short(
        ("--minutes", "6", "--seeds", "2", "--loads", "1.5", "--configs", "static", "paper_alto",
         "pooled", "barrier", "alto"),
        _own,
    ),
    "scale": Short(("--short",), _own),
    "apps": Short(("--short",), _own),
}  # fmt: skip
"""In the order in which they run."""


def run(name: str) -> dict[str, Any]:
    """The JSON of a short form.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", f"bench.{name}", *SHORT[name].arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  # ours
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        msg = f"`{' '.join(command)}` ended with {done.returncode} and without a result"
        raise RuntimeError(msg) from None
    return found


def table(found: dict[str, list[Goal]]) -> str:
    """Goal, figure, held or not."""
    lines = [f"{'benchmark':<16}{'goal':<62}{'aim':>9}{'measured':>11}"]
    words = {True: "held", False: "MISSED", None: "not measured here"}
    for name, goals in found.items():
        for goal in goals:
            figure = "-" if goal.measured is None else f"{goal.measured:.3g}"
            word = words[goal.holds] + (f", {goal.note}" if goal.note else "")
            lines.append(f"{name:<16}{goal.goal:<62}{goal.aim:>9}{figure:>11}  {word}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; returns the exit code: 1 where one failed. A missed goal is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--only", nargs="+", default=list(SHORT), choices=list(SHORT))
    options = parser.parse_args(arguments)
    found: dict[str, list[Goal]] = {}
    failed = False
    for name in options.only:
        print(f"bench.{name} ...", end=" ", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            found[name] = SHORT[name].goals(run(name))
        except RuntimeError as error:
            failed = True
            print(f"failed: {error}", file=sys.stderr)
        else:
            print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps({name: [goal._asdict() for goal in rows] for name, rows in found.items()}))
    else:
        print(table(found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
