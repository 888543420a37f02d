"""The benchmark of the paper's figure runs, and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    """Run the benchmark, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.paper", "--jobs", "1", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.realtime
def test_it_prints_curves_ratios_and_goals_as_json(tmp_path: Path) -> None:
    """A tiny run gives every figure of every configuration, paired ratios, and goals; and is kept."""
    out = tmp_path / "paper.json"
    names = ("static", "paper_alto", "pooled", "barrier", "alto")
    short = (
        "--json", "--out", str(out), "--minutes", "0.08", "--seeds", "1", "--loads", "2", "4",
        "--studies", "no_prefix_cache", "run_on", "--configs", *names,
    )  # fmt: skip
    result = json.loads(run(*short))
    assert set(result["curves"]) == {"no_prefix_cache", "run_on"}
    for curves in result["curves"].values():
        assert set(curves) == set(names)
        for curve in curves.values():
            assert [row["load"] for row in curve] == [2, 4]
            for row in curve:
                assert 0 < row["first_median"] <= row["median"] <= row["p99"]
                assert 0 < row["achieved"] < 2 * row["load"]
                assert row["calls"] > 2
    plain, run_on = result["curves"]["no_prefix_cache"], result["curves"]["run_on"]
    assert plain["alto"][0]["first_median"] < plain["pooled"][0]["first_median"]
    assert plain["pooled"][0]["pieces"] == 1 < plain["alto"][0]["pieces"]
    assert run_on["alto"][1]["aborted"] > 0 == run_on["pooled"][1]["aborted"]
    ratios = result["equal"]["no_prefix_cache"]["pooled"]
    first = plain["pooled"][0]["first_median"] / plain["alto"][0]["first_median"]
    assert ratios["first_result_median"] == pytest.approx(first)
    assert len(result["goals"]) == 15
    assert result["published"]["p99_low_load_s"] == plain["alto"][0]["p99"]
    assert {"machine", "versions", "options", "profile"} <= set(result)
    assert result["seed"] == [0]
    again = json.loads(run(*short, "--resume"))
    assert again["points"] == result["points"]


@pytest.mark.slow
@pytest.mark.realtime
def test_it_prints_tables() -> None:
    """Without ``--json`` there is a table for each configuration, and the goals below."""
    text = run(
        "--minutes", "0.1", "--seeds", "1", "--loads", "2", "--studies", "prefix_cache",
        "--configs", "pooled", "alto",
    )  # fmt: skip
    assert "prefix_cache: (e) alto" in text
    assert "not measured" in text.split("goals\n")[1]
