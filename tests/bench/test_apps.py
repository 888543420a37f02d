"""The four applications give the same in alto and in LangGraph, on simulated engines."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from alto.engines.profiles import A100_7B
from alto.sched import PromptAware
from alto.testing import run_virtual
from bench import apps

ROOT = Path(__file__).parents[2]
NAMES = {"verification", "tree_of_thoughts", "map_reduce", "retrieval"}
RATIOS = {"median_ratio", "p99_ratio", "first_result_ratio", "throughput_ratio"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.realtime,
    pytest.mark.xdist_group("langgraph"),  # takes seconds to import
    pytest.mark.skipif(importlib.util.find_spec("langgraph") is None, reason="no langgraph"),
]


def test_both_sides_give_the_same_and_no_run_is_shorter_than_its_bound(tmp_path: Path) -> None:
    """Every application and load has equal results, ratios, and a bound that nothing passes."""
    out = tmp_path / "apps.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "bench.apps", "--short", "--json", "--requests", "4",
            "--clients", "1", "3", "--out", str(out),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert json.loads(out.read_text()) == result
    assert set(result["apps"]) == NAMES
    for name, cells in result["apps"].items():
        assert set(cells) == {"1", "3"}
        for cell in cells.values():
            assert cell["equal"] is True
            assert cell["different"] == cell["unsteady"] == 0
            assert cell["requests"] == 4
            assert set(cell) >= RATIOS
            assert ("by_hand" in cell) == (name != "map_reduce")
            for side in {"alto", "langgraph", "by_hand"} & set(cell):
                assert 0 < cell[side]["first_median_s"] <= cell[side]["median_s"]
                assert 0 < cell[side]["utilisation"] <= 1
                for figure, least in cell["least"].items():
                    assert cell[side][figure] >= least * (1 - 1e-9)
            for ratio in ("median_ratio", "first_result_ratio"):
                assert cell[ratio] <= cell["bound"][ratio] * (1 + 1e-9)
    assert len(result["goals"]) == 2 * len(NAMES)
    for row in result["goals"]:
        assert row["holds"] == (row["measured"] >= float(row["aim"].removeprefix(">= ")))
    assert {"machine", "versions", "options", "seed"} <= set(result)


def test_rounds_on_one_pool_take_turns_and_are_told_apart() -> None:
    """The steps of a run on vLLM, with other engines: recorded, interleaved, compared, bounded."""
    from bench._apps import drive, engines, report, retrieval  # noqa: PLC0415  # need langgraph
    from bench._apps.common import Search  # noqa: PLC0415  # the same

    app = retrieval.APPLICATION
    inputs = app.inputs(random.Random(1), 6)

    async def main() -> tuple[Any, list[Any]]:
        pool = engines.Simulation(A100_7B, app.says, PromptAware())
        await pool.start()
        real = engines.Real(pool, Search(seconds=0.01))
        heard = await drive.hear(real, app, inputs)
        rounds = await drive.interleaved(real, app, [(1, inputs[:2]), (3, inputs)], 2)
        await pool.stop()
        assert [len(rounds[n]) for n in (1, 3)] == [2, 2]
        return heard, rounds[3]

    heard, rounds = run_virtual(main)
    assert heard.profile.base_s > 0
    least = drive.bound(app, inputs, A100_7B, heard.says, heard.find)
    cell = drive.Cell(application=app, clients=3, rounds=rounds, bound=least)
    assert cell.different() == cell.unsteady() == 0
    row = report.measured(cell)
    assert row["requests"] == 12
    assert len(row["rounds"]["median_ratio"]) == 2
    one = cell.rounds[0]["alto"]
    changed = attrs.evolve(one, results=[*one.results[:-1], None], cores=0.5)
    other = attrs.evolve(cell.rounds[0]["langgraph"], cores=0.8)
    odd = attrs.evolve(cell, rounds=[{"alto": changed, "langgraph": other}, *cell.rounds[1:]])
    assert odd.different() == odd.unsteady() == 1
    row = report.measured(odd)
    assert (row["equal"], row["different"]) == (False, 1)
    assert 0 < row["alto"]["cores"] <= 1
    assert "cores" in report.table({"apps": {"retrieval": {"3": row}}, "goals": [], "versions": {},
                                    "engine": "test", "seed": 1})  # fmt: skip


def test_the_table_ends_with_the_goals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without ``--json`` there is a table, and the goals with their bounds below it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # it sets variables for LangGraph
    short = ["--short", "--requests", "2", "--clients", "2", "--apps", "retrieval"]
    assert apps.main([*short, "--policy", "least_loaded"]) == 0
    text = capsys.readouterr().out
    assert "langgraph" in text
    assert "equal" in text
    goals = text.split("goal, at the worst load")[1]
    assert goals.count("retrieval: ") == 2
