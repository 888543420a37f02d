"""``bench.scale`` runs, and its figures are there."""

from __future__ import annotations

import json
import math
import os
from multiprocessing import get_context

import pytest

from bench import scale


@pytest.mark.realtime
@pytest.mark.slow
def test_every_figure_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few items, engines and requests: all that the JSON promises, and a row for each goal."""
    few = ["--rounds", "1", "--items", "400", "800", "--engines", "2", "--requests", "10", "20"]
    with get_context("spawn").Pool(1) as pool:  # one process for all figures, not one for each
        monkeypatch.setattr(scale, "alone", lambda function, *args: pool.apply(function, args))
        scale.main([*few, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert list(result["items"]) == ["400", "800"]
    for shape in ("waiting", "ordered", "groups"):
        for row in result["shapes"][shape].values():
            assert row["us_per_item"] > 0
            assert row["bytes_per_item"] > 0
            assert all(math.isfinite(value) and value >= 0 for value in row.values())
    assert result["engines"]["2"]["us_per_call"] > 0
    assert result["requests"]["20"]["us_per_item"] > 0
    assert result["bare_requests"].keys() == result["requests"].keys()
    assert 0 < result["chunks_per_s"] < result["chunks_without_engine_per_s"]
    assert len(result["goals"]) == 8
    assert result["goals"][-1]["goal"] in scale.table(result)


@pytest.mark.slow
def test_each_figure_has_a_process_of_its_own() -> None:
    """A function is called in a fresh process, and its result returned."""
    assert scale.alone(os.getpid) not in (os.getpid(), scale.alone(os.getpid))


def test_goals_are_told_apart() -> None:
    """Costs may rise by a fifth, and chunks must be fast enough."""
    row = {"us_per_item": 1.0, "bytes_per_item": 1024.0}
    found = {
        "shapes": {"waiting": {"1": row, "2": {**row, "us_per_item": 1.3}}},
        "requests": {"1": {"us_per_item": 9.0}, "10": {"us_per_item": 1.0}},
        "chunks_per_s": 99_999,
    }
    assert [goal["holds"] for goal in scale.goals(found)] == [False, True, True, False]
    with pytest.raises(SystemExit):
        scale.main(["--items", "6"])
