"""From what was measured to ratios, goals and a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from bench._apps.drive import Cell, Round

SOONER: Final = 2.0
"""Times that the first useful result is to be sooner."""
LOWER: Final = 1 / (1 - 0.3)
"""LangGraph's latency over alto's, where alto's is 30 % lower."""

RATIOS: Final = {
    "median_ratio": "median_s",
    "p99_ratio": "p99_s",
    "first_result_ratio": "first_median_s",
    "first_result_p99_ratio": "first_p99_s",
}
"""Each ratio, of a figure of LangGraph's over that of alto."""


def measured(cell: Cell) -> dict[str, Any]:
    """The figures of a cell. Ratios are LangGraph's time over alto's: above 1 alto is faster."""
    figures = {name: cell.taken(name).figures() for name in cell.sides}
    mine, theirs, least = figures["alto"], figures["langgraph"], cell.bound.figures()
    each = over_alto(cell.rounds, "langgraph")
    if "by_hand" in figures:
        hand = over_alto(cell.rounds, "by_hand")
        figures["by_hand"] |= {ratio: statistics.median(found) for ratio, found in hand.items()}
    bound = {ratio: theirs[key] / least[key] for ratio, key in RATIOS.items()}
    return {
        **{ratio: statistics.median(found) for ratio, found in each.items()},
        **{ratio: theirs[key] / mine[key] for ratio, key in RATIOS.items() if "p99" in ratio},
        "equal": cell.different() == 0,
        "different": cell.different(),
        "unsteady": cell.unsteady(),
        "requests": len(cell.taken("alto").latency),
        "bound": bound,
        "rounds": each,
        **figures,
        "least": {key: least[key] for key in RATIOS.values()},
    }


def over_alto(rounds: Sequence[Round], name: str) -> dict[str, list[float]]:
    """Times of one of the others over alto's, round by round; of throughput alto's over its."""
    each = [{side: turn[side].figures() for side in ("alto", name)} for turn in rounds]
    found = {
        ratio: [turn[name][key] / turn["alto"][key] for turn in each]
        for ratio, key in RATIOS.items()
    }
    found["throughput_ratio"] = [
        turn["alto"]["throughput"] / turn[name]["throughput"] for turn in each
    ]
    return found


def goals(apps: dict[str, dict[str, Any]], firsts: dict[str, str]) -> list[dict[str, Any]]:
    """What was aimed at, and what came out at the load where it is worst, as is the bound."""
    rows = []
    for name, cells in apps.items():
        for what, ratio, aim in (
            (f"first {firsts[name]}", "first_result_ratio", SOONER),
            ("median latency", "median_ratio", LOWER),
        ):
            by_load = {clients: cell[ratio] for clients, cell in cells.items()}
            least = min(cell["bound"][ratio] for cell in cells.values())
            worst = min(by_load.values())
            rows.append({
                "goal": f"{name}: {what}, LangGraph / alto",
                "aim": f">= {aim:.3g}",
                "measured": worst,
                "holds": worst >= aim,
                "by_load": by_load,
                "bound": least,
                "reachable": least >= aim,
                "note": "" if worst >= aim else f"at most {least:.2f}",
            })  # fmt: skip
    return rows


def _row(cells: Sequence[str]) -> str:
    return f"{cells[0]:<26}" + "".join(f"{cell:>12}" for cell in cells[1:])


def table(result: dict[str, Any]) -> str:
    """The figures as text, the goals below."""
    lines: list[str] = []
    for name, cells in result["apps"].items():
        heads = ["median s", "P99 s", "first s", "first P99", "per s", "engines", "batch"]
        if any("cores" in cell["alto"] for cell in cells.values()):
            heads.append("cores")
        lines.append(_row([f"{name}, at once", *heads]))
        for clients, cell in cells.items():
            for side in ("alto", "langgraph", "by_hand"):
                if side in cell:
                    figures = [f"{v:.3f}" for k, v in cell[side].items() if "ratio" not in k]
                    lines.append(_row([f"  {clients:>2}  {side}", *figures]))
            ratios = [f"{cell[ratio]:.2f}x" for ratio in (*RATIOS, "throughput_ratio")]
            lines.append(_row(["      LangGraph / alto", *ratios, _equal(cell)]))
            if "by_hand" in cell:
                ratios = [f"{cell['by_hand'][r]:.2f}x" for r in (*RATIOS, "throughput_ratio")]
                lines.append(_row(["      by hand / alto", *ratios]))
            bounds = [f"{value:.2f}x" for value in cell["bound"].values()]
            lines.append(_row(["      at most", *bounds]))
        lines.append("")
    lines.append(f"{'goal, at the worst load':<68}{'aim':>9}{'measured':>10}{'at most':>9}")
    for row in result["goals"]:
        word = "held" if row["holds"] else "MISSED"
        if not row["reachable"]:
            word += ": the longest chain of calls forbids it"
        came = f"{row['aim']:>9}{row['measured']:>10.2f}{row['bound']:>9.2f}"
        lines.append(f"{row['goal']:<68}{came}  {word}")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"{result['engine']}, seed {result['seed']}; {versions}"])


def _equal(cell: dict[str, Any]) -> str:
    return "equal" if cell["equal"] else f"{cell['different']} differ"
