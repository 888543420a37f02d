"""The examples run, as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.vllm
@pytest.mark.realtime
@pytest.mark.slow
def test_verify_answer_checks_claims_before_the_answer_is_complete() -> None:
    """The main job runs on a real engine, and streams: claims are handed on while the model writes."""
    done = subprocess.run(  # our own example
        [sys.executable, str(EXAMPLES / "verify_answer.py"), "Where does the Danube end?"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    _, question, shown = done.stdout.partition("Where does the Danube end?")
    assert question, done.stdout
    events = re.findall(r"^ *([\d.]+) s +(\w+) +(.*)$", shown, re.MULTILINE)
    times = [float(seconds) for seconds, _, _ in events]
    assert times == sorted(times)
    kinds = [kind for _, kind, _ in events]
    # On a busy machine the first verdict may come after the answer.
    assert kinds.index("claim") < kinds.index("answer")
    assert kinds.count("verdict") == kinds.count("claim") >= 3
    claims = [what for _, kind, what in events if kind == "claim"]
    verdicts = [what.split(": ", 1) for _, kind, what in events if kind == "verdict"]
    assert sorted(claim for _, claim in verdicts) == sorted(claims)
    assert {label for label, _ in verdicts} <= {"SUPPORTED", "REFUTED", "NOT FOUND"}


@pytest.mark.slow
def test_own_policy_shortens_what_it_is_for() -> None:
    """A policy written in an example runs in a pool, and does for short prompts what it says."""
    done = subprocess.run(  # our own example, on virtual time
        [sys.executable, str(EXAMPLES / "own_policy.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shown = re.findall(r"^(\w+) +short ([\d.]+) s, long ([\d.]+) s$", done.stdout, re.MULTILINE)
    (default, short, _), (own, own_short, _) = shown
    assert (default, own) == ("PromptAware", "KeepOneFree")
    assert float(own_short) < float(short)


@pytest.mark.slow
def test_own_router_is_quicker_than_the_default() -> None:
    """A router written in an example routes, and its replicas find more in their caches."""
    done = subprocess.run(  # our own example, on virtual time
        [sys.executable, str(EXAMPLES / "own_router.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (default, took), (own, own_took) = re.findall(r"^(\w+) +([\d.]+) s$", done.stdout, re.MULTILINE)
    assert (default, own) == ("LeastWork", "ByDocument")
    assert float(own_took) < float(took)
