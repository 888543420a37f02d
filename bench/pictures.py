"""The pictures of docs/explanation/benchmarks.md, from the figures in ``bench/results``.

``python -m bench.pictures`` draws those whose figures are there, as PNG and SVG, and runs nothing else.
The same figures give the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench._drawing import COLOURS, GRID, plotting, save
from bench._paper.figure import draw

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "explanation" / "figures"

Result = Mapping[str, Any]


def gain(result: Result, stem: Path) -> tuple[Path, ...]:
    """What streaming gives at a number of requests at a time, over waiting for the whole text."""
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    options, cells = result["options"], result["cells"]
    prefix = f"{options['profile']}/{options['engines']}"
    titles = {"uncached": "without prefix cache", "cached": "with prefix cache"}
    for axis, cache in zip(axes, options["caches"], strict=True):
        for colour, shape in zip(COLOURS, options["shapes"], strict=False):
            for mode, style in (("adaptive", "-"), ("pieces", ":")):
                rows = [cells[f"{prefix}/{shape}/{cache}/clients/{n}"] for n in options["clients"]]
                axis.plot(
                    options["clients"], [row[mode]["mean_over_waiting"] for row in rows],
                    style, color=colour, marker=".",
                    label=f"{result['shapes'][shape]['about']}, "
                    + ("coarsening" if mode == "adaptive" else "single pieces"),
                )  # fmt: skip
        axis.axhline(1, color="#444444", linewidth=0.8)
        axis.set(xscale="log", yscale="log", title=titles[cache], xlabel="requests at a time")
        axis.set_xticks(options["clients"], options["clients"])
        axis.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        axis.minorticks_off()
        axis.grid(visible=True, color=GRID, linewidth=0.6)
    axes[0].set_ylabel("mean latency over waiting")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    return save(figure, stem)


def apps(result: Result, stem: Path) -> tuple[Path, ...]:
    """LangGraph's times over alto's, by application and load, with what they could be at most."""
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    panels = (
        ("first_result_ratio", "first useful result", 2.0),
        ("median_ratio", "median latency", 1 / 0.7),
    )
    names = list(result["apps"])
    for axis, (ratio, title, aim) in zip(axes, panels, strict=True):
        for place, name in enumerate(names):
            cells = result["apps"][name]
            for number, (clients, cell) in enumerate(cells.items()):
                x = place + (number - (len(cells) - 1) / 2) * 0.25
                label = f"{clients} at a time" if not place else None
                axis.bar(x, cell[ratio], 0.22, color=COLOURS[number], label=label)
                most = cell["bound"][ratio]
                axis.plot(
                    [x - 0.11, x + 0.11], [most, most], color="black", linewidth=1.6,
                    label="at most" if not place and not number else None,
                )  # fmt: skip
        axis.axhline(1, color="#444444", linewidth=0.8)
        axis.axhline(aim, color="#888888", linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
        axis.set(title=f"{title}, LangGraph over alto (dashed: goal)", ylim=(0, 5))
        axis.grid(visible=True, axis="y", color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return save(figure, stem)


def scale(result: Result, stem: Path) -> tuple[Path, ...]:
    """What an item costs, by how many there are and how many requests are open."""
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    for colour, (shape, rows) in zip(COLOURS, result["shapes"].items(), strict=False):
        counts = [int(count) for count in rows]
        costs = [row["us_per_item"] for row in rows.values()]
        axes[0].plot(counts, costs, color=colour, marker="o", label=shape)
    axes[0].set(title="items in flight", ylabel="CPU us an item")
    axes[0].legend(frameon=False)
    for key, label, colour in (
        ("requests", "alto", COLOURS[0]),
        ("bare_requests", "bare asyncio tasks", COLOURS[1]),
    ):
        rows = result[key]
        axes[1].plot(
            [int(count) for count in rows], [row["us_per_item"] for row in rows.values()],
            color=colour, marker="o", label=label,
        )  # fmt: skip
    axes[1].set(title="open requests, ten items each, all waiting")
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.set(xscale="log", ylim=0)
        axis.grid(visible=True, color=GRID, linewidth=0.6)
    figure.tight_layout()
    return save(figure, stem)


PICTURES: dict[str, tuple[str, str, Callable[[Result, Path], tuple[Path, ...]]]] = {
    "figure_3": ("paper", "paper", draw),
    "streaming_gain": ("streaming_gain", "streaming_gain", gain),
    "apps_simulated": ("apps_simulated", "apps", apps),
    "apps_vllm": ("apps_vllm", "apps --engine vllm", apps),
    "scale": ("scale", "scale", scale),
}
"""By name: the result that a picture is of, the benchmark that gives it, and what draws it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", default=list(PICTURES), choices=list(PICTURES))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the pictures")
    options = parser.parse_args(arguments)
    for name in options.only:
        source, command, function = PICTURES[name]
        file = options.results / f"{source}.json"
        if not file.exists():
            print(
                f"{name}: there is no {file.name}; `python -m bench.{command} --out {file}` makes it"
            )
            continue
        for picture in function(json.loads(file.read_text()), options.out / name):
            print(picture.name)


if __name__ == "__main__":
    main()
