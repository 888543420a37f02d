"""Figure 3: seconds against achieved load, the paper's curves beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench._drawing import GRID, plotting, save
from bench._paper import published
from bench._paper.configs import CONFIGS, MAIN

PANELS = (("median", "median, s", 10.0), ("p99", "P99, s", 26.0),
          ("first_median", "first result, median, s", 10.0))  # fmt: skip
TITLES = {
    "no_prefix_cache": "without prefix cache",
    "prefix_cache": "with prefix cache",
    "run_on": "claims run on",
}
COLOURS = {
    "static": "#d55e00", "paper_alto": "#e69f00", "pooled": "#009e73", "barrier": "#56b4e9",
    "alto": "#0072b2", "static_4_slots": "#7f3b08",
}  # fmt: skip
MARKS = {"static": "s", "paper_alto": "D", "pooled": "o", "barrier": "v", "alto": "^",
         "static_4_slots": "x"}  # fmt: skip


def draw(result: Mapping[str, Any], stem: Path) -> tuple[Path, ...]:
    """Draw the curves of a result to *stem* ``.png`` and ``.svg``.

    Raises:
        ImportError: matplotlib is missing; the extra ``bench`` has it.
    """
    plt = plotting()
    studies = [study for study in TITLES if study in result["curves"]]
    figure, axes = plt.subplots(
        len(studies), len(PANELS), figsize=(12, 3.4 * len(studies)), squeeze=False,
    )  # fmt: skip
    for row, study in zip(axes, studies, strict=True):
        for axis, (name, label, top) in zip(row, PANELS, strict=True):
            _panel(axis, result["curves"][study], name, top)
            axis.set_ylabel(label)
            axis.set_title(TITLES[study], fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("achieved requests per second")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.02 + 0.28 / len(studies) / 1.6, 1, 1))
    return save(figure, stem)


def _panel(axis: Any, curves: Mapping[str, Any], name: str, top: float) -> None:  # noqa: ANN401
    for kind, label in (("not_streamed", "paper, not streamed"), ("streamed", "paper, streamed")):
        points = published.CURVES[kind].get(name)
        if points:
            axis.plot(
                *zip(*points, strict=True), label=f"{label} (published)", color="#888888",
                linestyle=":" if kind == "not_streamed" else "--", marker=".",
            )  # fmt: skip
    for config in (*(config.name for config in MAIN), "static_4_slots"):
        rows = [row for row in curves.get(config, ()) if row["kept"]]
        if not rows:
            continue
        x = [row["achieved"] for row in rows]
        axis.plot(
            x, [row[name] for row in rows], label=CONFIGS[config].about, color=COLOURS[config],
            marker=MARKS[config], markersize=4, linewidth=1.4,
        )  # fmt: skip
        axis.fill_between(
            x, [row[f"{name}_min"] for row in rows], [row[f"{name}_max"] for row in rows],
            color=COLOURS[config], alpha=0.15, linewidth=0,
        )  # fmt: skip
    axis.set_ylim(0, top)
    axis.set_xlim(left=0)
    axis.grid(visible=True, color=GRID, linewidth=0.6)
