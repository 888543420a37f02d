from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from alto.engines._vllm.sockets import Sockets

NAME = "VLLM_RPC_BASE_PATH"

pytestmark = pytest.mark.realtime


@pytest.fixture
def folder(monkeypatch):
    """The folder for temporary files, with a short path, while the program has chosen nothing."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv(NAME, "x")  # so that it is gone at the end, whatever a test has set
        monkeypatch.delenv(NAME)
        yield Path(name)


def _use(sockets):
    """What an engine does: make a socket's file where it is told to."""
    with sockets.put_together():
        path = Path(os.environ[NAME])
        (path / "socket").touch()
    return path


def test_an_engines_sockets_go_with_it(folder):
    """They are in a folder that is ours alone, named only while the engine starts."""
    sockets = Sockets()
    path = _use(sockets)
    assert NAME not in os.environ
    assert path.parent == folder
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (path / "socket").exists()
    sockets.release()
    assert not any(folder.iterdir())


def test_a_start_that_fails_leaves_nothing(folder):
    """The variable is taken back at once, and the folder when the share is released."""
    sockets = Sockets()
    with pytest.raises(RuntimeError), sockets.put_together():
        raise RuntimeError
    assert NAME not in os.environ
    sockets.release()
    assert not any(folder.iterdir())


def test_the_folder_stays_for_the_last_engine(folder):
    """Engines that live at the same time share it, and a share is given back only once."""
    first, second = Sockets(), Sockets()
    with first.put_together():
        path = _use(second)
        assert os.environ[NAME] == str(path)
    for _ in range(2):
        first.release()
        assert path.is_dir()
    third = Sockets()
    assert _use(third) == path
    second.release()
    assert path.is_dir()
    third.release()
    assert not any(folder.iterdir())
    again = Sockets()
    assert _use(again) != path
    again.release()
    assert not any(folder.iterdir())


def test_engines_in_many_threads(folder):
    """Whatever the order in which they start and end, each has the folder as long as it needs it."""
    wrong = []
    barrier = threading.Barrier(8)

    def live():
        barrier.wait(10)
        for _ in range(50):
            sockets = Sockets()
            path = _use(sockets)
            if not path.is_dir():
                wrong.append(path)
            sockets.release()

    threads = [threading.Thread(target=live) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert NAME not in os.environ
    assert not any(folder.iterdir())


def test_a_folder_that_was_chosen_is_kept(folder, monkeypatch):
    """Who has set the variable has it for every engine, and nothing of ours is made."""
    monkeypatch.setenv(NAME, "/chosen")
    sockets = Sockets()
    with sockets.put_together():
        assert os.environ[NAME] == "/chosen"
    assert os.environ[NAME] == "/chosen"
    sockets.release()
    assert not any(folder.iterdir())


def test_a_choice_made_during_a_start_is_kept(folder, monkeypatch):
    """The end of that start does not take it back."""
    first, second = Sockets(), Sockets()
    with first.put_together():
        monkeypatch.setenv(NAME, "/chosen")
        with second.put_together():
            assert os.environ[NAME] == "/chosen"
    assert os.environ[NAME] == "/chosen"
    second.release()
    first.release()
    assert not any(folder.iterdir())


@pytest.mark.parametrize("where", ["x" * 80, "missing"])
def test_where_there_can_be_no_folder_nothing_changes(folder, monkeypatch, where):
    """A socket's path must not be too long, and folders cannot be made everywhere."""
    if where != "missing":
        (folder / where).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / where))
    sockets = Sockets()
    with sockets.put_together():
        assert NAME not in os.environ
    sockets.release()
    assert not any(folder.glob("**/alto-*"))


def test_a_folder_that_somebody_removed_is_replaced(folder):
    """An engine that starts later has a folder all the same."""
    first, second = Sockets(), Sockets()
    path = _use(first)
    (path / "socket").unlink()
    path.rmdir()
    assert _use(second) != path
    first.release()
    second.release()
    assert not any(folder.iterdir())


@pytest.mark.slow
def test_the_folder_goes_with_the_program(folder):
    """Also where no engine was ended, but not with a fork of the program."""
    program = (
        "import os, sys\n"
        "from multiprocessing import util\n"
        "from alto.engines._vllm.sockets import Sockets\n"
        "with Sockets().put_together():\n"
        f"    path = os.environ['{NAME}']\n"
        "if os.fork() == 0:\n"
        "    util._exit_function()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(os.path.isdir(path))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert run.stdout == b"True\n"
    assert not any(folder.iterdir())
