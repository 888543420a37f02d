"""The overhead benchmark runs, in a process of its own: tests do not import ``bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEYS = ("asyncio_queue", "anyio", "alto")


def run(*arguments: str) -> str:
    """Run the benchmark with few items, and return its output."""
    command = [sys.executable, "-m", "bench.overhead", "--rounds", "1", "--items", "20", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_overhead_json_has_a_figure_for_each_contender() -> None:
    """Every contender that alto itself needs is measured, one by one and concurrently."""
    report = json.loads(run("--json", "--only", ",".join(KEYS)))
    for section in ("per_item_us", "per_item_us_concurrent"):
        assert tuple(report[section]) == KEYS
        assert all(figure > 0 for figure in report[section].values())
        assert report["spread"][section]["alto"]["min"] > 0
    assert report["per_chunk_us"]["engine_alone"] > 0
    assert report["per_chunk_us"]["alto"] > 0
    assert report["versions"]["anyio"] is not None
    assert report["machine"]["cpus"] >= 1


@pytest.mark.slow
def test_overhead_table_gives_ratios() -> None:
    """Without ``--json`` the queue is one times itself, and nothing else is measured."""
    table = run("--only", "asyncio_queue")
    assert "1.00x" in table
    assert "alto, on top" not in table
