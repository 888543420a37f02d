"""Calls in threads that are cancelled: they end at once, and leave their threads behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alto
from alto._runtime.threads import Threads
from tests.limits import LIMITS, until


class Gated:
    """A blocking function that returns when it is told to, and counts its calls."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[int] = []
        self.ended: list[int] = []

    def __call__(self, k: int) -> int:
        """Block; a negative number is an error then."""
        self.begun.append(k)
        assert self.gate.wait(50)
        self.ended.append(k)
        if k < 0:
            msg = "too late"
            raise ValueError(msg)
        return k

    async def has_begun(self, times: int = 1) -> None:
        """Wait until it has been called so often."""
        await until(lambda: len(self.begun) >= times)


def gated_pipeline(gated: Gated, **options: Any) -> Any:
    """A pipeline whose one stage blocks in a thread; 100 and more do not block."""

    @alto.stage(runs_in="thread", **options)
    def blocks(k: int) -> int:
        return k if k >= 100 else gated(k)

    @alto.pipeline
    def one(n: alto.Stream[int]) -> alto.Stream[int]:
        return blocks(n)

    return one


async def becomes_fresh(app: Any, fresh: alto.app.AppStatistics) -> None:
    """Wait until nothing runs in an app."""
    await until(lambda: app.statistics() == fresh)


@pytest.mark.realtime
class TestAbandonedThreads:
    """A cancelled call returns at once, and leaves its thread behind."""

    @pytest.mark.slow
    @pytest.mark.parametrize("limit", LIMITS)
    @pytest.mark.parametrize("item", [1, -1])
    async def test_a_limit_holds(self, limit: Any, item: int) -> None:
        """However a call is cancelled, whoever waits goes on while the function still blocks."""
        gated = Gated()
        async with gated_pipeline(gated, concurrency=1).open() as app:
            fresh = app.statistics()
            await limit(app, item)
            assert gated.begun == [item]
            assert gated.ended == []
            (replica,) = app.statistics().stages["blocks"].replicas
            assert (replica.running, replica.abandoned) == (0, 1)
            assert app.statistics() != fresh
            assert await app.run(100) == [100]  # The permit is free, and so is a thread.
            gated.gate.set()
            await becomes_fresh(app, fresh)
            assert gated.ended == [item]

    async def test_a_stage_with_replicas_says_which(self) -> None:
        """Each replica counts the threads that it has abandoned."""
        gated = Gated()
        router = alto.routing.RoundRobinRouter()
        pipeline = gated_pipeline(gated, concurrency=1, replicas=2, router=router)
        async with pipeline.open() as app:
            fresh = app.statistics()
            async with app.stream(1):
                await gated.has_begun()
            counts = [one.abandoned for one in app.statistics().stages["blocks"].replicas]
            assert sorted(counts) == [0, 1]
            gated.gate.set()
            await becomes_fresh(app, fresh)

    async def test_there_is_a_bound(self) -> None:
        """Four times `concurrency` functions block at most; the next call waits, and can be left."""
        gated = Gated()
        async with gated_pipeline(gated, concurrency=2).open() as app:
            fresh = app.statistics()
            for k in range(8):
                async with app.stream(k):
                    await gated.has_begun(k + 1)
            assert app.statistics().stages["blocks"].replicas[0].abandoned == 8
            with pytest.raises(alto.DeadlineExceeded):
                await app.run(101, timeout=0.1)
            waits = app.stream(102)
            await asyncio.sleep(0.05)
            assert app.statistics().stages["blocks"].running == 1
            gated.gate.set()
            assert await waits.list() == [102]
            await becomes_fresh(app, fresh)
            assert sorted(gated.ended) == list(range(8))

    async def test_threads_are_used_again(self) -> None:
        """After the abandoned ones have returned, there are as many as `concurrency`."""
        gated = Gated()
        async with gated_pipeline(gated, concurrency=1).open() as app:
            fresh = app.statistics()
            for k in range(3):
                async with app.stream(k):
                    await gated.has_begun(k + 1)
            gated.gate.set()
            await becomes_fresh(app, fresh)
            await until(lambda: len(threads_of("blocks")) <= 1)
            assert await app.run(100) == [100]
        assert threads_of("blocks") == []

    async def test_a_call_that_has_not_begun_never_does(self) -> None:
        """A call that is cancelled in the same turn of the loop does not run, or is counted."""
        gated = Gated()
        gated.gate.set()
        async with gated_pipeline(gated, concurrency=1).open() as app:
            fresh = app.statistics()
            for _ in range(50):
                handle = app.stream(1)
                await asyncio.sleep(0)
                await handle.aclose()
            await becomes_fresh(app, fresh)
            assert await app.run(2) == [2]

    async def test_closing_waits_for_a_grace(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An app closes over a blocked thread, says so, and gives the resources back."""
        monkeypatch.setattr("alto._runtime.threads.GRACE_S", 0.05)
        gated, events = Gated(), []

        @contextmanager
        def own() -> Iterator[str]:
            yield "own"
            events.append("given back")

        @alto.stage(runs_in="thread", concurrency=1)
        def blocks(k: int, *, own: str) -> int:
            gated(k)
            events.append("returned")
            return k

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[int]:
            return blocks(n)

        async with one.open(own=alto.per_replica(own)) as app, app.stream(1):
            await gated.has_begun()
        assert events == ["given back"]
        assert "'blocks': 1 thread(s) of replica 0 still run" in caplog.text
        assert len(threads_of("blocks")) == 1
        gated.gate.set()
        await until(lambda: not threads_of("blocks"))
        assert events == ["given back", "returned"]

    async def test_closing_waits_for_what_returns_in_the_grace(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Resources are given back after a function that returns soon, and nothing is said."""
        begun, events = threading.Event(), []

        @contextmanager
        def own() -> Iterator[str]:
            yield "own"
            events.append("given back")

        @alto.stage(runs_in="thread", concurrency=1)
        def blocks(k: int, *, own: str) -> int:
            begun.set()
            time.sleep(0.05)
            events.append("returned")
            return k

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[int]:
            return blocks(n)

        async with one.open(own=alto.per_replica(own)) as app, app.stream(1):
            await until(begun.is_set)
        assert events == ["returned", "given back"]
        assert caplog.text == ""

    async def test_what_was_entered_while_opening_was_cancelled_is_left(self) -> None:
        """A context manager that blocks in a thread is left, when it was entered too late."""
        begun, gate, events = threading.Event(), threading.Event(), []

        @contextmanager
        def own() -> Iterator[str]:
            begun.set()
            assert gate.wait(50)
            events.append("in")
            yield "own"
            events.append("out")

        @alto.stage(runs_in="thread")
        def work(k: int, *, own: str) -> int:
            return k

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[int]:
            return work(n)

        async with anyio.create_task_group() as tasks:

            async def opens() -> None:
                async with one.open(own=alto.per_replica(own)):
                    pytest.fail("opened")

            tasks.start_soon(opens)
            await until(begun.is_set)
            tasks.cancel_scope.cancel()
            threading.Timer(0.05, gate.set).start()
        assert events == ["in", "out"]

    def test_a_loop_that_goes_down_waits_for_no_thread(self, tmp_path: Path) -> None:
        """A program that leaves its app open ends all the same, with its loop."""
        path = tmp_path / "program.py"
        main = BLOCKED[: BLOCKED.index("async def main")] + LEFT_OPEN
        path.write_text(main, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "ended\n"

    def test_a_program_ends_over_a_blocked_thread(self, tmp_path: Path) -> None:
        """The interpreter does not wait for a function that never returns."""
        path = tmp_path / "program.py"
        path.write_text(BLOCKED, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "DeadlineExceeded\nclosed\n"
        assert "still run functions" in done.stderr


def threads_of(stage: str) -> list[threading.Thread]:
    """The threads of a stage."""
    return [t for t in threading.enumerate() if t.name.startswith(f"alto {stage} ")]


BLOCKED = """
import asyncio, threading
import alto

@alto.stage(runs_in="thread")
def blocks(k: int) -> int:
    threading.Event().wait()
    return k

@alto.pipeline
def one(n: alto.Stream[int]) -> alto.Stream[int]:
    return blocks(n)

async def main():
    async with one.open() as app:
        try:
            await app.run(1, timeout=0.1)
        except alto.DeadlineExceeded as error:
            print(type(error).__name__)
    print("closed", flush=True)

asyncio.run(main())
"""


LEFT_OPEN = """
kept = []

async def main():
    app = one.open()
    await app.__aenter__()
    kept.extend([app, app.stream(1)])
    while not [t for t in threading.enumerate() if t.name.startswith("alto blocks")]:
        await asyncio.sleep(0.01)

asyncio.run(main())
print("ended")
"""


class Drawn:
    """The threads of one replica, calls in them that block, and what is to be true of both."""

    def __init__(self, concurrency: int) -> None:
        self.threads = Threads("drawn", 0, concurrency)
        self.concurrency = concurrency
        self.begun: list[int] = []
        self.gates: dict[int, threading.Event] = {}
        self.calls: dict[int, asyncio.Task[int]] = {}
        self.abandoned: list[int] = []

    def function(self, k: int) -> int:
        """Block until it is released."""
        self.begun.append(k)
        assert self.gates[k].wait(50)
        return k

    def start(self, k: int) -> None:
        """Start a call, where there is a permit."""
        if len(self.calls) < self.concurrency:
            self.gates[k] = threading.Event()
            self.calls[k] = asyncio.ensure_future(self.threads.run(self.function, k))

    async def cancel(self, choice: int) -> None:
        """Cancel a call, which ends at once."""
        if self.calls:
            k = list(self.calls)[choice % len(self.calls)]
            task = self.calls.pop(k)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if k in self.begun:
                self.abandoned.append(k)

    async def release(self, choice: int) -> None:
        """Let a function return, whether anybody waits for it or not."""
        blocked = [k for k in self.begun if k in self.calls or k in self.abandoned]
        if blocked:
            k = blocked[choice % len(blocked)]
            self.gates[k].set()
            if k in self.calls:
                assert await self.calls.pop(k) == k
            else:
                self.abandoned.remove(k)

    async def check(self) -> None:
        """All functions have begun that can, no more run than may, and the count is right."""
        room = 4 * self.concurrency - len(self.abandoned)
        begin = list(self.calls)[:room]
        await until(lambda: set(begin) <= set(self.begun))
        await until(lambda: self.threads.abandoned == len(self.abandoned))
        assert not set(list(self.calls)[room:]) & set(self.begun)
        await until(lambda: len(threads_of("drawn")) <= self.concurrency + len(self.abandoned))

    async def end(self) -> None:
        """Let everything return."""
        for gate in self.gates.values():
            gate.set()
        for k, task in self.calls.items():
            assert await task == k
        await self.threads.settle()
        assert self.threads.abandoned == 0
        self.threads.close()
        await until(lambda: not threads_of("drawn"))


@pytest.mark.slow
@given(
    concurrency=st.integers(1, 2),
    steps=st.lists(
        st.tuples(st.sampled_from(["start", "cancel", "release"]), st.integers(0, 30)), max_size=40
    ),
)
@settings(max_examples=60)
def test_threads_property(concurrency: int, steps: list[tuple[str, int]]) -> None:
    """Calls, cancellations and returns in any order: bounded threads, counted, none left."""

    async def main() -> None:
        drawn = Drawn(concurrency)
        for number, (step, choice) in enumerate(steps):
            if step == "start":
                drawn.start(number)
            elif step == "cancel":
                await drawn.cancel(choice)
            else:
                await drawn.release(choice)
            await drawn.check()
        await drawn.end()

    asyncio.run(main())
