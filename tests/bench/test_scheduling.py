"""The benchmark of placement policies runs, and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.realtime
def test_it_prints_its_figures_as_json() -> None:
    """A tiny run gives every figure of every policy, the goals, and the cost of a decision."""
    done = subprocess.run(  # our own script
        [
            sys.executable, "-m", "bench.scheduling", "--json", "--engines", "2", "--seeds", "1",
            "--loads", "0.85", "--settings", "tight", "--workloads", "documents", "pipeline",
            "bursty", "--requests", "20", "--seconds", "1", "--jobs", "1", "--decisions", "200",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert set(result["workloads"]) == {
        "documents/2/0.85/tight", "pipeline/2/0.85/tight", "bursty/2/0.85/tight",
    }  # fmt: skip
    for row in result["workloads"].values():
        assert set(row) == {
            "PromptAware", "LMetric", "PrefixThreshold", "BoundedLoadHash", "LeastLoaded",
            "RoundRobin", "StaticPartition",
        }  # fmt: skip
        for figures in row.values():
            assert set(figures) == {"median_s", "p99_s", "goodput_rps", "hit_rate", "imbalance"}
            assert 0 < figures["median_s"] <= figures["p99_s"]
            assert 0 <= figures["hit_rate"] < 1
            assert figures["imbalance"] >= 1
    hits = {p: f["hit_rate"] for p, f in result["workloads"]["documents/2/0.85/tight"].items()}
    assert hits["PromptAware"] > hits["RoundRobin"]
    assert result["goals"]["p99_over_best_other<=1.03"]["cells"] == 3
    assert result["decision_us"]["engines=8,waiting=1000"] > 0
    assert result["seed"] == [0]
    assert {"machine", "versions", "profiles", "options"} <= set(result)
