"""The benchmark of what streaming gains runs, and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alto.engines.profiles import A100_7B
from bench._gain.model import Setting, predict
from bench._gain.report import report
from bench._gain.shapes import MODES, SHAPES, Plan, plans
from bench.streaming_gain import parsed, points

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    """Run the benchmark, and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.streaming_gain", "--jobs", "1", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.realtime
def test_it_prints_every_mode_of_every_cell_as_json(tmp_path: Path) -> None:
    """A tiny run gives latencies, overlap and calls, measured and predicted, and is kept."""
    out = tmp_path / "gain.json"
    short = (
        "--json", "--out", str(out), "--shapes", "long_head", "--caches", "uncached",
        "--clients", "1", "24", "--arrivals", "0.3", "--requests", "20", "--seeds", "1",
    )  # fmt: skip
    result = json.loads(run(*short))
    assert [cell.rpartition("uncached/")[2] for cell in result["cells"]] == [
        "clients/1", "clients/24", "arrivals/0.3",
    ]  # fmt: skip
    for modes in result["cells"].values():
        assert tuple(modes) == MODES
        for mode, row in modes.items():
            assert 0 < row["median"] <= row["p99"]
            assert 0 < row["mean"] < row["p99"]
            assert row["throughput"] > 0
            assert (row["overlap"] == row["predicted_overlap"] == 0) == (mode == "waiting")
            assert row["predicted_overlap"] == pytest.approx(row["overlap"], abs=0.3)
            assert row["calls"] >= 1
            assert (row["calls"] == 1) == (mode == "waiting")
    idle, busy, _ = result["cells"].values()
    assert idle["pieces"]["mean"] < idle["waiting"]["mean"] < busy["pieces"]["mean"]
    assert busy["waiting"]["mean"] < busy["pieces"]["mean"]
    assert busy["adaptive"]["calls"] < idle["adaptive"]["calls"] <= idle["pieces"]["calls"]
    assert result["worst_slowdown"] == max(
        modes["adaptive"]["mean_over_waiting"] for modes in result["cells"].values()
    )
    assert result["pieces_worst_slowdown"] > 1.5 > result["worst_slowdown"]
    assert result["pieces_do_not_pay_at"]
    assert len(result["goals"]) == 4
    assert {"machine", "versions", "options", "profile", "shapes", "model"} <= set(result)
    assert result["seed"] == [0]
    again = json.loads(run(*short, "--resume"))
    assert again["points"] == result["points"]


@pytest.mark.slow
@pytest.mark.realtime
def test_it_prints_a_table_with_goals() -> None:
    """Without ``--json`` there is a line for each mode, and the goals at the end."""
    text = run(
        "--shapes", "60-8-24-100-2", "--caches", "cached", "--clients", "1", "--arrivals",
        "--requests", "20", "--seeds", "1",
    )  # fmt: skip
    assert "60-8-24-100-2/cached/clients/1: waiting" in text
    assert "\n  pieces " in text
    assert "\n  adaptive " in text
    assert "<= 1.02" in text
    assert text.rstrip().endswith(("held", "missed"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clients", "0"), "must be at least 1"),
        (("--arrivals", "1"), "--arrivals must be between 0 and 1"),
        (("--requests", "5"), "--requests must be at least 20"),
        (("--clients", "--arrivals"), "give --clients or --arrivals"),
        (("--shapes", "none"), "--shapes: "),
        (("--shapes", "1-2-3"), "five numbers from 1 up, not '1-2-3'"),
    ],
)
def test_options_are_checked(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that makes no sense is refused before anything runs."""
    with pytest.raises(SystemExit):
        parsed(arguments)
    assert message in capsys.readouterr().err


def test_all_modes_of_a_cell_get_the_same_requests() -> None:
    """Modes of a cell differ in nothing else, and requests depend on seed and number only."""
    todo = list(points(parsed(["--short"])))
    assert {point.mode for point in todo} == set(MODES)
    assert len({point.key for point in todo}) == len(todo) == 3 * len({p.cell for p in todo})
    shape = SHAPES["cheap"]
    assert plans(shape, 5, 1) == plans(shape, 9, 1)[:5] != plans(shape, 5, 2)


def test_the_model_counts_steps_by_hand() -> None:
    """Overlap and calls of one text are those that one can count."""
    setting = Setting(shape=SHAPES["slow"], profile=A100_7B, engines=1, cached=True)
    text = [Plan(tokens=(8, 16, 8), outputs=(4, 10, 6))]
    waiting, pieces = (predict(setting, text, mode, clients=1) for mode in MODES[:2])
    assert (waiting.overlap, waiting.calls) == (0, 1)
    assert (pieces.overlap, pieces.calls) == ((4 + 8) / 20, 3)
    assert waiting.latency is not None
    assert pieces.latency is not None
    saved = (32 + 20 - (32 + 6)) * A100_7B.base_s
    assert waiting.latency - pieces.latency == pytest.approx(saved, rel=0.05)
    assert predict(setting, text, "pieces", rate=1e3).latency is None


def test_the_report_pairs_seeds() -> None:
    """Ratios are within a seed, and their mean is geometric."""
    rows = {
        f"{mode}/{seed}": {
            "cell": "c/clients/1", "mode": mode, "seed": seed, "mean": mean, "median": mean,
            "p99": mean, "throughput": 1 / mean, "overlap": 0.5, "calls": 1,
            "predicted_latency": None if mode == "pieces" else mean, "predicted_overlap": 0.4,
            "predicted_calls": 1, "predicted_generations": 1,
        }
        for mode, means in (("waiting", (1, 4)), ("pieces", (2, 4)), ("adaptive", (0.5, 2)))
        for seed, mean in enumerate(means)
    }  # fmt: skip
    result = report(rows)
    assert result["worst_slowdown"] == pytest.approx(0.5)
    assert result["pieces_worst_slowdown"] == pytest.approx(2**0.5)
    assert result["pieces_do_not_pay_at"] == ["c/clients/1"]
    assert result["cells"]["c/clients/1"]["pieces"]["predicted_over_waiting"] is None
    assert result["model"]["says_whether_pieces_pay"] == 1
    assert result["goals"][0]["holds"] is True
    assert result["goals"][-1]["holds"] is None
