"""Plain functions as stages, in worker threads and worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import alto
from alto.testing import reference_run
from tests.limits import LIMITS, run_timeout, until

who: ContextVar[str] = ContextVar("who", default="nobody")


@alto.stage
async def count(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1."""
    for k in range(n):
        yield k


# ---- threads


@alto.stage(runs_in="thread", concurrency=2)
def in_thread(k: int) -> tuple[int, str]:
    """The item, and the thread it was in."""
    return k, threading.current_thread().name


@alto.pipeline
def threaded(n: alto.Stream[int]) -> alto.Stream[tuple[int, str]]:
    """Items through threads."""
    return in_thread(count(n))


class TestThreads:
    """``runs_in="thread"``."""

    async def test_it_runs_outside_the_loop_s_thread(self) -> None:
        """A plain function runs in a thread of its replica, named after the stage."""
        async with threaded.open() as app:
            results = await app.run(5)
            assert [k for k, _ in results] == list(range(5))
            assert all(name.startswith("alto in_thread 0_") for _, name in results)
            assert 1 <= len({name for _, name in results}) <= 2
            assert app.statistics().open_requests == 0
        assert not [t for t in threading.enumerate() if t.name.startswith("alto in_thread")]

    @pytest.mark.realtime
    async def test_no_more_run_at_once_than_may(self) -> None:
        """Exactly ``concurrency`` functions run at once, and the loop goes on meanwhile."""
        running, most, gate = 0, 0, threading.Event()
        lock = threading.Lock()

        @alto.stage(runs_in="thread", concurrency=3)
        def blocks(k: int) -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 3:
                    gate.set()
            assert gate.wait(30)
            with lock:
                running -= 1
            return k

        @alto.pipeline
        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            return blocks(count(n))

        async with many.open() as app:
            assert await app.run(9) == list(range(9))
        assert most == 3

    async def test_replicas_have_threads_and_resources_of_their_own(self) -> None:
        """What a plain factory makes is made, used and left in threads of its replica."""
        places: list[tuple[str, str]] = []

        @contextmanager
        def own(number: int) -> Iterator[str]:
            places.append((f"in {number}", threading.current_thread().name))
            yield str(number)
            places.append((f"out {number}", threading.current_thread().name))

        @alto.stage(
            runs_in="thread", concurrency=1, replicas=2, router=alto.routing.RoundRobinRouter()
        )
        def work(k: int, *, own: str) -> str:
            assert threading.current_thread().name == f"alto work {own}_0"
            return own

        @alto.pipeline
        def many(n: alto.Stream[int]) -> alto.Stream[str]:
            return work(count(n))

        async with many.open(own=alto.per_replica(own)) as app:
            assert await app.run(4) == ["0", "1", "0", "1"]
        assert dict(places) == {
            f"{way} {k}": f"alto work {k}_0" for way in ("in", "out") for k in range(2)
        }

    async def test_it_sees_the_context_of_the_opener(self) -> None:
        """Context variables are those that an async stage would see."""

        @alto.stage(runs_in="thread")
        def ask(k: int) -> str:
            return who.get()

        @alto.pipeline
        def many(n: alto.Stream[int]) -> alto.Stream[str]:
            return ask(n)

        token = who.set("me")
        try:
            async with many.open() as app:
                assert await app.run(1) == ["me"]
        finally:
            who.reset(token)

    @pytest.mark.parametrize("error", [KeyError("k"), StopIteration(3)])
    async def test_what_it_raises_fails_its_request(self, error: BaseException) -> None:
        """An error in a thread is the cause of a StageError; other requests go on."""

        @alto.stage(runs_in="thread")
        def breaks(k: int) -> int:
            if k == 3:
                raise error
            return k

        @alto.pipeline
        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            return breaks(count(n))

        async with many.open() as app:
            with pytest.raises(alto.StageError) as caught:
                await app.run(5)
            assert caught.value.path == (3,)
            assert type(error).__name__ in f"{caught.value.cause!r}"
            assert await app.run(3) == [0, 1, 2]

    @pytest.mark.realtime
    @pytest.mark.parametrize("where", ["stage", "to_thread"])
    async def test_a_pipeline_of_its_own_in_a_thread(self, where: str) -> None:
        """run_sync in a thread has a loop of its own, and leaves the outer call alone."""

        @alto.stage
        async def double(k: int) -> int:
            await anyio.sleep(0.001)
            return 2 * k

        @alto.pipeline
        def inner(k: alto.Stream[int]) -> alto.Stream[int]:
            return double(k)

        @alto.stage(runs_in="thread", concurrency=2)
        def in_stage(k: int) -> int:
            return inner.run_sync(k)[0]

        @alto.stage(concurrency=2)
        async def to_thread(k: int) -> int:
            return (await asyncio.to_thread(inner.run_sync, k))[0]

        @alto.pipeline
        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            return (in_stage if where == "stage" else to_thread)(count(n))

        async with many.open() as app:
            fresh = app.statistics()
            assert await app.run(5) == [0, 2, 4, 6, 8]
            assert app.statistics() == fresh

    @pytest.mark.realtime
    async def test_a_call_of_another_loop_is_not_this_one_s(self) -> None:
        """A pipeline called from a loop in another thread is told that it is not open there."""

        @alto.stage
        async def outer(k: int) -> str:
            def run() -> None:
                asyncio.run(threaded.run(k))

            try:
                await asyncio.to_thread(run)
            except alto.Closed as error:
                return str(error)
            return "ran"

        @alto.pipeline
        def whole(k: alto.Stream[int]) -> alto.Stream[str]:
            return outer(k)

        async with whole.open() as app:
            (said,) = await app.run(1)
            assert "'threaded' is not open" in said

    async def test_it_equals_the_sequential_run(self) -> None:
        """The reference interpreter calls plain functions too."""

        @alto.stage(runs_in="thread", replicas=2)
        def double(k: int, *, factor: int) -> int:
            return k * factor

        @alto.pipeline
        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            return double(count(n))

        factor = alto.per_replica(lambda: 2)
        async with many.open(factor=factor) as app:
            results = await app.run(7)
        assert results == await reference_run(many, 7, factor=factor) == [0, 2, 4, 6, 8, 10, 12]


# ---- processes


class Table:
    """A resource that says in which process it was made."""

    def __init__(self, name: str = "table") -> None:
        self.name = name
        self.made_in = os.getpid()


@contextmanager
def make_table(number: int) -> Iterator[Table]:
    """A table of a replica; leaves a file when it is given back."""
    yield Table(f"table {number}")
    if (folder := os.environ.get("ALTO_TEST_FOLDER")) is not None:
        (Path(folder) / f"left {number}").touch()


@contextmanager
def unleavable_table() -> Iterator[Table]:
    """A table that cannot be given back."""
    yield Table()
    msg = "cannot flush"
    raise OSError(msg)


def broken_table() -> Table:
    """A factory that fails."""
    msg = "no table here"
    raise OSError(msg)


async def async_table() -> Table:
    """A factory that a process has no loop for."""
    return Table()


class Odd(Exception):
    """An exception that does not survive pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


@alto.stage(runs_in="process", replicas=2)
def work(order: str, *, table: Table) -> Any:
    """Do as the item says."""
    what, _, arg = order.partition(" ")
    if what == "where":
        return os.getpid(), table.made_in, table.name
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die-once":
        try:
            Path(arg).touch(exist_ok=False)
        except FileExistsError:
            return "survived"
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        msg = "mine"
        raise LookupError(msg)
    if what == "odd":
        raise Odd(1, 2)
    if what == "exit":
        sys.exit(3)
    if what == "lambda":
        return lambda: 0
    if what == "sleep":
        Path(arg).touch()
        time.sleep(100)
    if what == "factor":
        return order, table.name
    return order.upper()


session: ContextVar[Any] = ContextVar("session", default="none")


@alto.stage(runs_in=alto.executors.Process(context=(who, session)))
def ask(order: str) -> tuple[str, Any]:
    """What a call sees of context variables, before it sets them itself."""
    seen = who.get(), session.get()
    who.set("set in a call")
    return seen


@alto.stage(runs_in="process")
def ask_without(order: str) -> tuple[str, Any]:
    """The same, where none travel."""
    seen = who.get(), session.get()
    who.set("set in a call")
    return seen


@contextmanager
def slow_table(number: int) -> Iterator[Table]:
    """A table that is made again only when a file is there."""
    folder = Path(os.environ["ALTO_TEST_FOLDER"])
    if (folder / "first").exists():
        (folder / "again").touch()
        while not (folder / "gate").exists():
            time.sleep(0.005)
    (folder / "first").touch()
    yield Table()


@alto.stage
async def split(orders: str) -> AsyncIterator[str]:
    """One item per line."""
    for order in orders.split("\n"):
        yield order


@alto.pipeline
def processed(orders: alto.Stream[str]) -> alto.Stream[Any]:
    """Lines through processes."""
    return work(split(orders))


@alto.stage(runs_in="process")
def work_alone(order: str, *, table: Table) -> Any:
    """The same, in one process."""
    return work.fn(order, table=table)


@alto.pipeline
def alone(order: alto.Stream[str]) -> alto.Stream[Any]:
    """An item through a process."""
    return work_alone(order)


def children() -> list[psutil.Process]:
    """Worker processes of this one that live, without multiprocessing's own tracker."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # It has just ended.
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
    return found


def info_of(stage: alto.Stage[Any, Any]) -> alto.model.StageInfo:
    """What an executor knows of a stage that takes a table."""
    return alto.model.StageInfo(
        name=stage.name,
        function=stage.fn,
        generator=False,
        concurrency=1,
        resources={"table": Table},
    )


@pytest.mark.realtime
@pytest.mark.slow
class TestProcesses:
    """``runs_in="process"``. Real processes, some of which are killed."""

    async def test_each_replica_has_a_process(self, tmp_path: Path, monkeypatch: Any) -> None:
        """Two processes, each with the resource it made itself; none is left, all is given back."""
        monkeypatch.setenv("ALTO_TEST_FOLDER", str(tmp_path))
        async with processed.open(table=alto.per_replica(make_table)) as app:
            found = await app.run("\n".join(["where"] * 20))
            assert {name for _, _, name in found} == {"table 0", "table 1"}
            assert len({pid for pid, _, _ in found}) == 2
            assert all(pid == made_in != os.getpid() for pid, made_in, _ in found)
            assert len(children()) == 2
            assert await app.run("a\nb") == ["A", "B"]
        assert children() == []
        left = {f"left {k}" for k in range(2) if (tmp_path / f"left {k}").exists()}
        assert left == {"left 0", "left 1"}

    async def test_a_resource_is_sent(self) -> None:
        """A resource that is no factory is pickled to every process."""
        async with processed.open(table=Table("mine")) as app:
            (found,) = await app.run("where")
            assert found[1:] == (os.getpid(), "mine")

    async def test_a_process_that_dies_is_replaced(self, tmp_path: Path) -> None:
        """The call that it ran is run once more, with the resources made anew; no item is lost."""
        async with processed.open(table=alto.per_replica(make_table)) as app:
            before = {pid for pid, _, _ in await app.run("\n".join(["where"] * 20))}
            orders = ["a", f"die-once {tmp_path / 'x'}", "b", "c"]
            assert await app.run("\n".join(orders)) == ["A", "survived", "B", "C"]
            after = {pid for pid, _, _ in await app.run("\n".join(["where"] * 20))}
            assert len(before & after) == 1
            assert len(after) == 2
            assert app.statistics().open_requests == 0

    async def test_a_second_death_fails_the_request(self) -> None:
        """A call that kills two processes fails with the cause; other requests go on."""
        async with processed.open(table=alto.per_replica(make_table)) as app:
            good = app.stream("a\nb\nc")
            with pytest.raises(alto.StageError, match="died twice") as caught:
                await app.run("x\ndie\ny")
            assert isinstance(caught.value.cause, alto.errors.WorkerDied)
            assert caught.value.cause.stage == "work"
            assert caught.value.cause.exit_code == -signal.SIGKILL
            async with good:
                assert sorted(await good.list()) == ["A", "B", "C"]
            assert await app.run("d") == ["D"]
        assert children() == []

    async def test_an_idle_process_that_is_killed_is_replaced(self) -> None:
        """A process that dies between calls costs nothing but a new one."""
        async with processed.open(table=alto.per_replica(make_table)) as app:
            for child in children():
                child.kill()
            while children():  # noqa: ASYNC110  # nobody else says
                await anyio.sleep(0.01)
            assert await app.run("a\nb\nc") == ["A", "B", "C"]

    async def test_an_idle_death_is_no_fault_of_the_next_call(self, tmp_path: Path) -> None:
        """A call gets its two lives, whatever its process had died of before."""
        async with processed.open(table=alto.per_replica(make_table)) as app:
            await app.scale("work", 1)
            for child in children():
                child.kill()
            # A killed process can be waited for when the last of its threads is gone.
            while multiprocessing.active_children():  # noqa: ASYNC110  # nobody else says
                await anyio.sleep(0.01)
            assert await app.run(f"die-once {tmp_path / 'x'}") == ["survived"]

    async def test_what_leaving_raises_is_heard(self) -> None:
        """An error while a process gives its resource back leaves the app."""
        with pytest.raises(OSError, match="cannot flush"):
            async with processed.open(table=alto.per_replica(unleavable_table)) as app:
                assert await app.run("a") == ["A"]
        assert children() == []

    async def test_what_it_raises_fails_its_request(self) -> None:
        """Also an error or a result that does not survive the way; the process goes on."""
        raised = {
            "raise": "LookupError: mine",
            "odd": "Odd: odd 1 2",
            "exit": "SystemExit: 3",
            "lambda": "its result cannot be sent back from the worker process",
        }
        async with processed.open(table=Table()) as app:
            before = {pid for pid, _, _ in await app.run("\n".join(["where"] * 20))}
            for order, said in raised.items():
                with pytest.raises(alto.StageError, match=said):
                    await app.run(order)
            assert before == {pid for pid, _, _ in await app.run("\n".join(["where"] * 20))}

    async def test_an_item_that_cannot_be_sent_fails_its_request(self) -> None:
        """An item that cannot be pickled is named as the cause, and the process goes on."""

        @alto.pipeline
        def whole(order: alto.Stream[Any]) -> alto.Stream[Any]:
            return work(order)

        async with whole.open(table=Table()) as app:
            with pytest.raises(alto.StageError, match="an item cannot be sent to the worker"):
                await app.run(lambda: 0)
            assert await app.run("a") == ["A"]

    async def test_values_of_one_call(self) -> None:
        """Resources given with a call are sent with it, and replace the replica's there."""
        executor = alto.executors.Process()
        async with executor.replica(info_of(work), 0, {"table": Table("mine")}) as call:
            assert await call("factor") == ("factor", "mine")
            assert await call("factor", table=Table("other")) == ("factor", "other")
            assert await call("factor") == ("factor", "mine")
            with pytest.raises(TypeError, match="resource 'table' cannot be sent"):
                await call("factor", table=threading.Lock())
        assert children() == []

    async def test_closing_kills_what_runs(self, tmp_path: Path) -> None:
        """An app that closes does not wait for a function that nobody needs."""
        async with anyio.create_task_group() as tasks, processed.open(table=Table()) as app:

            async def sleeps() -> None:
                with pytest.raises(alto.Closed):
                    await app.run(f"sleep {tmp_path / 'began'}")

            tasks.start_soon(sleeps)
            while not (tmp_path / "began").exists():  # noqa: ASYNC110  # another process's
                await anyio.sleep(0.01)
        assert children() == []

    @pytest.mark.parametrize("limit", LIMITS)
    async def test_a_limit_holds(self, limit: Any, tmp_path: Path) -> None:
        """However a call is cancelled, its process is killed, and another one takes its place."""
        async with alone.open(table=alto.per_replica(make_table)) as app:
            fresh = app.statistics()
            (before,) = children()
            await limit(app, f"sleep {tmp_path / 'began'}")
            assert (tmp_path / "began").exists()
            assert app.statistics() == fresh
            # Without a call that would need it.
            await until(lambda: not before.is_running() and len(children()) == 1)
            (new,) = children()
            assert await app.run("where") == [(new.pid, new.pid, "table 0")]
        assert children() == []

    async def test_nobody_waits_for_the_process_that_takes_its_place(
        self, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """A cancelled call returns while the new process starts; so does one that waits for it."""
        monkeypatch.setenv("ALTO_TEST_FOLDER", str(tmp_path))
        async with alone.open(table=alto.per_replica(slow_table)) as app:
            fresh = app.statistics()
            await run_timeout(app, f"sleep {tmp_path / 'began'}")
            assert app.statistics() == fresh
            await until((tmp_path / "again").exists)
            await run_timeout(app, "a")
            assert app.statistics() == fresh
            (tmp_path / "gate").touch()
            assert await app.run("b") == ["B"]
        assert children() == []

    async def test_closing_gives_up_what_takes_its_place(
        self, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """An app that closes does not wait until a process has started that nobody needs."""
        monkeypatch.setenv("ALTO_TEST_FOLDER", str(tmp_path))
        async with alone.open(table=alto.per_replica(slow_table)) as app:
            await run_timeout(app, f"sleep {tmp_path / 'began'}")
            await until((tmp_path / "again").exists)
        assert children() == []
        assert not (tmp_path / "gate").exists()

    async def test_context_variables_travel_if_named(self) -> None:
        """Those of `Process(context=...)` have the caller's values; what a call sets stays in it."""

        @alto.pipeline
        def one(order: alto.Stream[str]) -> alto.Stream[tuple[str, Any]]:
            return ask(order)

        @alto.pipeline
        def two(order: alto.Stream[str]) -> alto.Stream[tuple[str, Any]]:
            return ask_without(order)

        token = who.set("me")
        try:
            async with one.open() as app:
                assert await app.run("x") == [("me", "none")]
                assert await app.run("x") == [("me", "none")]
            async with two.open() as app:
                assert await app.run("x") == [("nobody", "none")]
                assert await app.run("x") == [("nobody", "none")]
        finally:
            who.reset(token)

    async def test_a_value_that_cannot_be_sent_fails_its_request(self) -> None:
        """A context variable whose value cannot be pickled is named."""

        @alto.pipeline
        def one(order: alto.Stream[str]) -> alto.Stream[tuple[str, Any]]:
            return ask(order)

        token = session.set(threading.Lock())
        try:
            async with one.open() as app:
                with pytest.raises(alto.StageError, match="context variable 'session' cannot be"):
                    await app.run("x")
        finally:
            session.reset(token)

    async def test_scaling_starts_and_ends_processes(self) -> None:
        """Each new replica has a process, and one that goes ends its own."""
        async with processed.open(table=Table()) as app:
            await app.scale("work", 3)
            assert len(children()) == 3
            await app.scale("work", 1)
            while len(children()) > 1:  # noqa: ASYNC110  # ends by itself
                await anyio.sleep(0.01)
            assert await app.run("a\nb") == ["A", "B"]

    @pytest.mark.parametrize(
        ("factory", "said"),
        [
            (broken_table, "resource 'table' of replica [01].*OSError: no table here"),
            (async_table, "no event loop"),
        ],
    )
    async def test_a_factory_that_fails_is_named(self, factory: Any, said: str) -> None:
        """The app does not open, the message says which replica and why, and no process is left."""
        with pytest.raises(alto.ResourceError, match=said):
            async with processed.open(table=alto.per_replica(factory)):
                pytest.fail("opened")
        assert children() == []

    async def test_cancelled_opening_leaves_no_process(self) -> None:
        """A program that gives up while processes start has none of them afterwards."""
        with anyio.move_on_after(0.05):
            async with processed.open(table=Table()):
                await anyio.sleep_forever()
        assert children() == []

    async def test_it_equals_the_sequential_run(self) -> None:
        """The reference interpreter calls the function in its own process."""
        async with processed.open(table=Table()) as app:
            assert await app.run("a\nb\nc") == await reference_run(
                processed, "a\nb\nc", table=Table()
            )


class TestRefusals:
    """What cannot be sent to a process is said when the app opens, before anything is started."""

    async def test_a_function_inside_a_function(self) -> None:
        """A function that another process could not import."""

        @alto.stage(runs_in="process")
        def local(k: int) -> int:
            return k

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[int]:
            return local(n)

        with pytest.raises(alto.ResourceError, match=r"'local' runs in worker processes.*inside a"):
            async with one.open():
                pytest.fail("opened")

    async def test_a_resource_that_cannot_be_pickled(self) -> None:
        """The message names the resource, and says to make it in the process."""
        table: Any = Table()
        table.lock = threading.Lock()
        with pytest.raises(alto.ResourceError, match=r"'table' cannot be sent.*per_replica"):
            async with processed.open(table=table):
                pytest.fail("opened")

    async def test_a_factory_that_cannot_be_pickled(self) -> None:
        """A lambda is told to move to the top level of a module."""
        with pytest.raises(alto.ResourceError, match=r"factory at the top level"):
            async with processed.open(table=alto.per_replica(lambda: Table("here"))):
                pytest.fail("opened")

    async def test_a_context_variable_that_is_in_no_module(self) -> None:
        """The message says where to define it."""
        hidden: ContextVar[int] = ContextVar("hidden")
        executor = alto.executors.Process(context=[hidden])
        with pytest.raises(alto.ResourceError, match=r"'hidden' cannot be found.*top level"):
            async with executor.replica(info_of(work), 0, {"table": Table()}):
                pytest.fail("entered")
        with pytest.raises(TypeError, match=r"takes context variables, each a .*, not 'who'"):
            alto.executors.Process(context=("who",))  # type: ignore[arg-type]

    def test_declarations(self) -> None:
        """Async functions, groups and concurrency do not go with a process."""
        with pytest.raises(alto.GraphError, match="is async, and runs in the event loop"):

            @alto.stage(runs_in="process")  # type: ignore[arg-type]
            async def f(k: int) -> int:
                return k

        with pytest.raises(alto.GraphError, match=r"'ks' is a Group.*alto.collect"):

            @alto.stage(runs_in="thread")
            def g(ks: alto.Group[int]) -> int:
                return 0

        with pytest.raises(alto.GraphError, match="one call at a time"):
            alto.stage(runs_in="process", concurrency=2)
        with pytest.raises(alto.GraphError, match="one call at a time"):
            alto.stage(runs_in=alto.executors.Process(), concurrency=2)
        with pytest.raises(alto.GraphError, match="is async, and runs in the event loop"):

            @alto.stage(runs_in=alto.executors.Thread())  # type: ignore[arg-type]
            async def h(k: int) -> int:
                return k

        with pytest.raises(alto.GraphError, match="is a plain function; write `async def`"):

            @alto.stage(runs_in=alto.executors.Loop())  # type: ignore[arg-type]
            def i(k: int) -> int:
                return k

        with pytest.raises(alto.GraphError, match="'loop', 'thread' or 'process'"):
            alto.stage(runs_in="gpu")  # type: ignore[call-overload]


SCRIPT = """
import asyncio, os, sys
import alto

@alto.stage(runs_in="process")
def where(k: int) -> int:
    return os.getpid()

@alto.pipeline
def one(n: alto.Stream[int]) -> alto.Stream[int]:
    return where(n)

async def main():
    async with one.open() as app:
        print(*await app.run(1), flush=True)
        if "wait" in sys.argv:
            await asyncio.sleep(60)

GUARD
"""


LEFT_OPEN = """
import asyncio, pathlib, sys, time
import alto

@alto.stage(runs_in="process")
def sleeps(path: str) -> int:
    pathlib.Path(path).touch()
    time.sleep(100)
    return 0

@alto.pipeline
def one(path: alto.Stream[str]) -> alto.Stream[int]:
    return sleeps(path)

kept = []

async def main():
    app = one.open()
    await app.__aenter__()
    kept.extend([app, app.stream(sys.argv[1])])
    while not pathlib.Path(sys.argv[1]).exists():
        await asyncio.sleep(0.01)

if __name__ == "__main__":
    asyncio.run(main())
    print("ended")
"""


@pytest.mark.realtime
@pytest.mark.slow
class TestPrograms:
    """Whole programs whose stages run in processes."""

    def script(self, folder: Path, guard: str) -> str:
        """A program of a few lines."""
        path = folder / "program.py"
        path.write_text(SCRIPT.replace("GUARD", guard), encoding="utf-8")
        return str(path)

    def test_a_stage_of_the_main_module(self, tmp_path: Path) -> None:
        """A function of the program itself runs in a process, given the usual guard."""
        path = self.script(tmp_path, 'if __name__ == "__main__":\n    asyncio.run(main())')
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
        assert done.stdout.strip().isdigit()
        assert done.stderr == ""

    def test_a_program_without_the_guard_is_told(self, tmp_path: Path) -> None:
        """Without the guard the program ends with an error that says what to write."""
        path = self.script(tmp_path, "asyncio.run(main())")
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "if __name__ ==" in done.stderr

    def test_a_loop_that_goes_down_ends_its_processes(self, tmp_path: Path) -> None:
        """A program that leaves its app open while a function runs ends with its loop."""
        path = tmp_path / "program.py"
        path.write_text(LEFT_OPEN, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(path), str(tmp_path / "began")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == "ended\n"
        assert done.stderr == ""

    def test_no_process_outlives_a_killed_program(self, tmp_path: Path) -> None:
        """A program that is killed leaves no worker behind."""
        path = self.script(tmp_path, 'if __name__ == "__main__":\n    asyncio.run(main())')
        with subprocess.Popen([sys.executable, path, "wait"], stdout=subprocess.PIPE) as program:
            assert program.stdout is not None
            worker = psutil.Process(int(program.stdout.readline()))
            assert worker.is_running()
            program.kill()
            program.wait()
            worker.wait(timeout=120)
