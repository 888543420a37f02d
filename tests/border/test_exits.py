"""The end of the program, from within a stage and by Ctrl-C: the right code, and little to read."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from collections.abc import AsyncIterator
import alto

kind, how = sys.argv[1:]

def leave():
    if how == "exit":
        sys.exit(3)
    raise KeyboardInterrupt

@alto.stage
async def coroutine(n: int) -> int:
    await asyncio.sleep(0.01)
    leave()
    return n

@alto.stage
async def at_once(n: int) -> int:
    leave()
    return n

@alto.stage
async def generator(n: int) -> AsyncIterator[int]:
    yield n
    await asyncio.sleep(0.01)
    leave()

@alto.stage(runs_in="thread")
def thread(n: int) -> int:
    leave()
    return n

@alto.stage
async def group(n: int) -> int:
    async with asyncio.TaskGroup() as tasks:
        async def one():
            await asyncio.sleep(0.01)
            leave()
        tasks.create_task(one())
        await asyncio.sleep(10)
    return n

@alto.stage
async def nested(n: int) -> int:
    await inner.run(n)
    return n

@alto.stage
async def waiting(n: int) -> int:
    try:
        print("waits", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleans up", flush=True)
        await asyncio.sleep(0.1)
        if how == "twice":
            print("hangs", flush=True)
            await asyncio.sleep(60)
        print("is clean", flush=True)
    return n

@alto.pipeline
def inner(n: alto.Stream[int]) -> alto.Stream[int]:
    return coroutine(n)

stage = globals()[kind]

@alto.pipeline
def p(n: alto.Stream[int]) -> alto.Stream[int]:
    return stage(n)

async def main():
    async with p.open() as app:
        await app.map([1, 2]).list()

asyncio.run(main())
"""

NOISE = (
    "unhandled exception",
    "never retrieved",
    "Exception ignored",
    "ExceptionGroup",
    "StageError",
    "ResourceWarning",
)


def check_quiet(said: str, tracebacks: int) -> None:
    """Nothing of alto's own is reported."""
    assert [noise for noise in NOISE if noise in said] == []
    assert said.count("Traceback (most recent call last)") <= tracebacks, said


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the program where the tests are."""
    return subprocess.Popen(  # this Python
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.realtime
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("coroutine", "exit"),
        ("at_once", "exit"),
        ("generator", "exit"),
        ("thread", "exit"),
        ("group", "exit"),
        ("nested", "exit"),
        ("coroutine", "interrupt"),
        ("generator", "interrupt"),
        ("thread", "interrupt"),
        ("nested", "interrupt"),
    ],
)
def test_a_stage_that_ends_the_program(kind: str, how: str) -> None:
    """`sys.exit(3)` exits with 3 and says nothing; an interrupt has its one traceback."""
    with start(kind, how) as process:
        _, said = process.communicate()
    if how == "exit":
        assert process.returncode == 3, said
        # The other call's thread may be about to end when the loop goes down: then that is logged.
        about_threads = [line for line in said.splitlines() if "thread(s) of replica" in line]
        assert said.splitlines() == (about_threads if kind == "thread" else []), said
    else:
        assert process.returncode == -signal.SIGINT
        assert said.splitlines()[-1] == "KeyboardInterrupt"
        check_quiet(said, tracebacks=1)


@pytest.mark.realtime
@pytest.mark.slow
@pytest.mark.parametrize("how", ["once", "twice"])
def test_control_c(how: str) -> None:
    """The first lets everything clean up; the second does not wait for what hangs meanwhile."""
    with start("waiting", how) as process:
        assert process.stdout is not None
        for _ in range(2):  # Requests.
            assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        for _ in range(2):
            assert process.stdout.readline() == "cleans up\n"
        if how == "twice":
            for _ in range(2):
                assert process.stdout.readline() == "hangs\n"
            process.send_signal(signal.SIGINT)
        rest, said = process.communicate()
    assert process.returncode == -signal.SIGINT, said
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert rest.count("is clean") == (2 if how == "once" else 0)
    if how == "once":
        check_quiet(said, tracebacks=2)
