"""The restart benchmark runs, in a process of its own: tests do not import ``bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.vllm
def test_a_round_leaves_nothing() -> None:
    """One round starts an engine, serves, and counts leftovers: no process and no file."""
    command = [sys.executable, "-m", "bench.restarts", "--times", "1", "--requests", "4", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (only,) = report["rounds"]
    assert (only["served"], only["failed"], only["processes"], only["files"]) == (4, 0, 0, 0)
    assert report["leaked_processes"] == 0
    assert only["start_s"] > 0
    assert set(report["growth"].values()) == {0}
