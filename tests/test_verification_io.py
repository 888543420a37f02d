"""The commands of the examples at their edges: closed, full and narrow outputs, odd files and names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.verification.report import _shown

ROOT = Path(__file__).parents[1]
DRIVER = """
import sys
from alto.testing import Scripted
from examples.verification import __main__ as command
from examples.verification.engines import Engines
from examples.verification.prompts import Trained
from examples.verification.scripted import says
command.choose = lambda *_, pace=None, **__: Engines(Scripted(says, delay=0.001), None, Trained(pace))
sys.exit(command.main(sys.argv[1:]))
"""
"""The verification example with scripted engines in place of vLLM's."""

pytestmark = [pytest.mark.realtime, pytest.mark.slow]


def shell(line: str, *, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which ``$verify`` is the command."""
    verify = f"{sys.executable} -c '{DRIVER}'"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('$verify', verify)}"],
        capture_output=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """What it says of a problem: a line for each, and no traceback."""
    text = done.stderr.decode()
    assert "Traceback" not in text
    return text


def test_nobody_waits_for_the_pace_of_a_question_that_nobody_sees() -> None:
    """The warm-up takes no time at one character a second, and less than one is refused."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "--pace", "1", "Tell me about gold."],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    with process:
        while not lines or not lines[-1].startswith("Ready after"):
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        assert time.monotonic() - began < 90  # a hundred characters would take longer
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    done = shell("$verify --pace 0.5")
    assert done.returncode == 2
    assert "'0.5' is no number of characters a second, from 1" in said(done)


@pytest.mark.parametrize("form", ["text", "jsonl", "live"])
def test_an_output_that_nobody_reads_any_more(form: str) -> None:
    """Each format ends as ``head`` would have it, and says nothing."""
    done = shell(f"$verify --pace 0 --format {form} gold silver copper iron | head -c 1")
    assert done.returncode == 141
    assert "BrokenPipe" not in said(done)


def test_an_output_that_takes_nothing() -> None:
    """A full disk and a closed output are said in a line."""
    done = shell("$verify --pace 0 gold > /dev/full")
    assert (done.returncode, "cannot be written: No space left" in said(done)) == (1, True)
    done = shell("$verify --pace 0 gold >&-")
    assert (done.returncode, "the standard output is closed" in said(done)) == (2, True)


@pytest.mark.parametrize("form", ["text", "jsonl", "live"])
def test_an_output_of_a_narrow_encoding(form: str) -> None:
    """What a terminal cannot show is escaped, and JSON stays JSON."""
    done = shell(f"$verify --pace 0 --format {form} 'Tell me about gold.'", encoding="ascii")
    assert done.returncode == 0, said(done)
    text = done.stdout.decode("ascii")
    if form == "jsonl":
        assert [json.loads(line)["event"] for line in text.splitlines()][-1] == "done"
    else:
        assert "Au" in text


def test_a_corpus_that_cannot_be(tmp_path: Path) -> None:
    """Names that are empty, too long or in no encoding are refused in a line."""
    (tmp_path / os.fsdecode(b"dan\xe9.txt")).write_text("The Danube is long.\n")
    for corpus, problem in (
        ("''", "name a folder"),
        ("x" * 300, "cannot be read: File name too long"),
        (f"'{tmp_path}'", "is not UTF-8; rename it"),
    ):
        done = shell(f"$verify --corpus {corpus}")
        assert (done.returncode, done.stdout) == (2, b"")
        assert problem in said(done)


def test_joined_letters_are_shown_joined() -> None:
    """Persian, emoji and Devanagari keep their joiners; what turns the direction of text goes."""
    for text in ("می‌خواهم", "👩‍👩‍👧", "क्‍ष"):
        assert _shown(text) == text
    assert _shown("a\u202eb\x1b[2J\nc") == "a b [2J c"


def test_the_dynamic_examples_end_as_commands_do(tmp_path: Path) -> None:
    """A model that is not there, a reader that leaves, a file that is no text: one line each, or none."""
    python = sys.executable
    done = shell(f"{python} examples/agent_loop.py --model ./not-there")
    assert done.returncode == 1
    assert said(done).startswith("error: ")
    done = shell(f"{python} examples/map_reduce.py | head -c 1")
    assert (done.returncode, said(done)) == (141, "")
    (tmp_path / "picture.md").write_bytes(b"\xff\xd8\xff")
    done = shell(f"{python} examples/map_reduce.py '{tmp_path}/picture.md'")
    assert "picture.md' is not UTF-8 text (byte 0)" in said(done)
