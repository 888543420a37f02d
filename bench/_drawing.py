"""What all pictures of figures have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GRID = "#e5e5e5"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#7f3b08")
"""Told apart by those who see few colours too (Okabe and Ito)."""


def plotting() -> Any:  # noqa: ANN401  # a module that is not there for type checkers
    """``matplotlib.pyplot``, without a window.

    Raises:
        ImportError: matplotlib is missing; the extra ``bench`` has it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "alto"  # the same figures give the same file
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, stem: Path) -> tuple[Path, ...]:  # noqa: ANN401  # of matplotlib
    """Write a picture to *stem* ``.png`` and ``.svg``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = tuple(stem.with_suffix(suffix) for suffix in (".png", ".svg"))
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else {"Software": None}
        figure.savefig(file, dpi=130, metadata=metadata)
    plotting().close(figure)
    return files
