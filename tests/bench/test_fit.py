"""The fit finds the constants of an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alto.engines.profiles import PROFILES

pytest.importorskip("numpy", reason="the fit needs numpy, which comes with vllm")
from bench.fit import parsed  # needs numpy

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_constants_of_a_simulated_engine_are_found_again() -> None:
    """Fitted to a simulated engine, the profile is that engine's, and predicts it to the digit."""
    done = subprocess.run(
        [
            sys.executable, "-m", "bench.fit", "--on", "scheduling-study", "--rounds", "1",
            "--runs", "1", "--seconds", "4", "--validate", "--json",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--engine-args", "{max_num_seqs: 4}"), "--engine-args is no JSON"),
        (("--engine-args", "[]"), "must be a JSON object"),
        (("--rounds", "0"), "--rounds must be above 0"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_starts(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the argument and the reason."""
    with pytest.raises(SystemExit) as caught:
        parsed(list(arguments))
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
