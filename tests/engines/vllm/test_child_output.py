from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from alto.engines._vllm.child_output import ChildOutput, find_cause

pytestmark = pytest.mark.realtime


def _child(program, **options):
    return subprocess.Popen([sys.executable, "-c", program], **options)


def _until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.005)


class TestHearing:
    """Who is heard, and what is passed on."""

    def test_what_children_write_is_kept_and_passed_on(self, capfd):
        """Both outputs of a child are kept, and go where they would have gone."""
        with ChildOutput() as output:
            _child("import sys; print('out'); print('err', file=sys.stderr)").wait()
        output.close()
        assert sorted(output.lines()) == ["err", "out"]
        assert capfd.readouterr() == ("out\n", "err\n")

    def test_afterwards_this_program_has_its_outputs_back(self, capfd):
        """What the program writes after the start is its own again."""
        with ChildOutput() as output:
            os.write(1, b"during\n")
        os.write(1, b"after\n")
        output.close()
        assert output.lines() == ("during",)
        assert sorted(capfd.readouterr().out) == sorted("during\nafter\n")

    def test_a_child_is_heard_as_long_as_it_lives(self, capfd):
        """A child that was started inside is heard long after, and is not blocked by it."""
        with ChildOutput() as output:
            child = _child("input(); print('x' * 200_000); print('late')", stdin=subprocess.PIPE)
        child.communicate(b"\n")
        output.close()
        assert output.lines()[-1] == "late"
        assert len(output.lines()[0]) == 4000
        assert capfd.readouterr().out.endswith("x\nlate\n")

    def test_starts_at_the_same_time_share_what_they_hear(self, capfd):
        """The first to end does not take the outputs from the second."""
        with ChildOutput() as first:
            with ChildOutput() as second:
                _child("print(1)").wait()
            _child("print(2)").wait()
        os.write(1, b"3\n")
        _until(lambda: len(first.lines()) == 2)
        first.close()
        second.close()
        assert first.lines() == second.lines() == ("1", "2")
        assert sorted(capfd.readouterr().out) == sorted("1\n2\n3\n")

    def test_a_listener_that_has_left_hears_nothing(self, capfd):
        """While another one goes on listening."""
        with ChildOutput() as other, ChildOutput() as output:
            os.write(1, b"1\n")
            _until(lambda: output.lines() == ("1",))
            output.close()
            os.write(1, b"2\n")
            other.settle(0.01)
            assert os.get_inheritable(1)
        other.close()
        assert (output.lines(), other.lines()) == (("1",), ("1", "2"))
        assert capfd.readouterr().out == "1\n2\n"

    def test_progress_bars_leave_their_last_state(self, capfd):
        """Of a line that is overwritten, what stands there at the end is kept; so is a last piece."""
        with ChildOutput() as output:
            os.write(1, b"1 %\r50 %\r99 %\r\nno newline \xff")
        output.close()
        assert output.lines() == ("99 %", "no newline \ufffd")
        capfd.readouterr()

    def test_no_thread_is_left(self):
        """The thread ends with the last writer."""
        with ChildOutput() as output:
            assert any(t.name == "alto-child-output" for t in threading.enumerate())
        output.settle(1.0)
        output.close()
        output.close()
        assert not any(t.name == "alto-child-output" for t in threading.enumerate())

    def test_a_program_without_outputs_is_no_obstacle(self, tmp_path):
        """Where an output is closed it stays closed, and nothing is heard."""
        program = f"""
import os
from alto.engines._vllm.child_output import ChildOutput
os.close(1)
with ChildOutput() as output:
    os.system("echo unheard >&2")
output.close()
with open({str(tmp_path / "heard")!r}, "w") as file:
    file.write(repr(output.lines()))
"""
        _in_a_program(program, stderr=subprocess.DEVNULL)
        assert (tmp_path / "heard").read_text() == "()"

    def test_children_are_not_blocked_where_nobody_reads(self):
        """An output that nobody reads any more costs its text, and nothing else."""
        program = """
import os
from alto.engines._vllm.child_output import ChildOutput
with ChildOutput() as output:
    os.system("seq 50000 >&2")
output.close()
assert output.lines()[-1] == "50000"
"""
        reader, writer = os.pipe()
        os.close(reader)
        _in_a_program(program, stderr=writer)
        os.close(writer)


def _in_a_program(program, **options):
    child = _child(program, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, **options)
    assert child.wait(20) in (0, 120)  # 120: Python could not flush an output that is closed


_TRACEBACK = """\
(Worker pid=7) INFO 11-22 16:31:56 [worker.py:1] all is well
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9] it failed
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9] Traceback (most recent call last):
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9]   File "loader.py", line 1, in load
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9]     open_it()
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9]     ^^^^^^^^^
Loading:   0%|          | 0/1 [00:00<?, ?it/s]
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9] \x1b[31mlibrary.OpenError: no such file\x1b[0m
(Worker pid=7) ERROR 11-22 16:31:56 [worker.py:9] check the path
(EngineCore pid=6) INFO 11-22 16:31:57 [core.py:2] shutting down
(EngineCore pid=6) ERROR 11-22 16:31:57 [core.py:9] EngineCore failed to start.
(EngineCore pid=6) ERROR 11-22 16:31:57 [core.py:9] Traceback (most recent call last):
(EngineCore pid=6) ERROR 11-22 16:31:57 [core.py:9]     raise e from None
(EngineCore pid=6) ERROR 11-22 16:31:57 [core.py:9] Exception: WorkerProc initialization failed
Process EngineCore:
Traceback (most recent call last):
  File "process.py", line 314, in _bootstrap
Exception: WorkerProc initialization failed due to an exception in a background process.
"""


class TestCause:
    """The one line that says why."""

    def test_the_true_error_is_found_below_its_wrappers(self):
        """The worker's error is the cause, its message the last lines, and the noise is gone."""
        cause, lines = find_cause(_TRACEBACK.splitlines())
        assert cause == "library.OpenError: no such file"
        assert lines == (
            "it failed",
            "Traceback (most recent call last):",
            '  File "loader.py", line 1, in load',
            "    open_it()",
            "library.OpenError: no such file",
            "check the path",
        )

    def test_only_the_last_lines_are_given(self):
        """However long the traceback, the cause is among the lines."""
        cause, lines = find_cause(_TRACEBACK.splitlines(), keep=2)
        assert (cause, lines) == (
            "library.OpenError: no such file",
            ("library.OpenError: no such file", "check the path"),
        )

    def test_a_plain_traceback_will_do(self):
        """A child that fails before it has logging prints a traceback as Python does."""
        cause, lines = find_cause(
            ["hello", "Traceback (most recent call last):", '  File "<string>"', "KeyError"]
        )
        assert (cause, lines[-1]) == ("KeyError", "KeyError")

    def test_without_an_error_the_last_lines_have_to_do(self):
        """A child that was killed names no cause."""
        assert find_cause(["a", "(Worker pid=7) INFO 11-22 16:31:56 [w.py:1] b", "c"]) == (
            None,
            ("a", "c"),
        )
        assert find_cause([]) == (None, ())
