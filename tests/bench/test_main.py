"""``python -m bench``: the goals of every benchmark in one table."""

from __future__ import annotations

import json
import sys

import pytest

from bench import __main__ as every


def test_goals_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held, missed and not measured; a benchmark that fails is named, and the others go on."""
    ratios = {
        "per_item_us": {"alto": {"to_asyncio_queue": 2.5, "langgraph_to_it": 19.0}},
        "per_item_us_concurrent": {"alto": {"to_asyncio_queue": 3.5, "langgraph_to_it": None}},
    }
    results = {
        "overhead": {"ratios": ratios, "per_chunk_us": {"alto": 1.9}},
        "streaming_gain": {
            "goals": [{"goal": "mean", "aim": "<= 1.02", "measured": 0.99, "holds": True}]
        },
        "scheduling": {
            "goals": {
                "p99_over_best_other<=1.03": {"worst_ratio": 1.1},
                "bursty_goodput_over_best_other>=1.10": {"cells": 0},
            }
        },
    }

    def run(name: str) -> dict[str, object]:
        if name not in results:
            raise RuntimeError("it ended with 1")
        return results[name]

    monkeypatch.setattr(every, "run", run)
    assert every.main([]) == 1
    out, err = capsys.readouterr()
    assert "bench.paper ... failed: it ended with 1" in err
    verdicts = [line.split("  ")[-1] for line in out.splitlines()[1:]]
    assert verdicts == [
        "held", "MISSED", "MISSED", "not measured here", "held",
        "MISSED", "not measured here", "held",
    ]  # fmt: skip
    assert every.main(["--only", "scheduling", "--json"]) == 0
    [first, second] = json.loads(capsys.readouterr().out)["scheduling"]
    assert (first["aim"], first["measured"], first["holds"]) == ("<= 1.03", 1.1, False)
    assert second["holds"] is None


def test_a_benchmark_that_fails_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark without JSON output raises an error with its command."""
    monkeypatch.setitem(every.SHORT, "paper", every.Short(("--no-such-option",), every._own))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"bench.paper --no-such-option --json` ended with 1"):
        every.run("paper")
