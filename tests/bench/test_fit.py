"""The fit finds what it should, in a process of its own: tests do not import ``bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alto.engines.profiles import PROFILES

pytest.importorskip("numpy", reason="the fit needs numpy, which comes with vllm")

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a short run prints."""
    command = [sys.executable, "-m", "bench.fit", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_constants_of_a_simulated_engine_are_found_again() -> None:
    """Fitted to a simulated engine, the profile is that engine's, and predicts it to the digit."""
    done = run(
        *("--on", "scheduling-study", "--rounds", "1", "--runs", "1"),
        *("--seconds", "4", "--validate", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    true = PROFILES["scheduling-study"]
    for name in ("base_s", "per_sequence_s", "per_context_token_s", "per_prefill_token_s"):
        assert report["profile"][name] == pytest.approx(getattr(true, name), rel=1e-3)
    for name in ("per_prefill_step_s", "per_prefill_s", "per_prefill_pair_s", "latency_s"):
        assert report["profile"][name] == pytest.approx(0, abs=1e-5)
    assert report["trials_median_error"] < 1e-3
    assert [row["load"] for row in report["validation"]] == ["low", "knee", "prefixes"]
    for row in report["validation"]:
        for figure in ("median", "p99", "throughput"):
            assert abs(row[f"{figure}_error"]) < 0.01
            assert row["spread"][figure] == 0
        assert row["within"] is True
    assert report["seed"] == 1
    assert report["machine"]["cpus"] >= 1
    assert report["versions"]["alto-llm"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--engine-args", "{max_num_seqs: 4}"), "--engine-args is no JSON"),
        (("--engine-args", "[]"), "must be a JSON object"),
        (("--rounds", "0"), "--rounds must be above 0"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_starts(
    arguments: tuple[str, ...], complaint: str
) -> None:
    """The complaint says which and why."""
    done = run(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
