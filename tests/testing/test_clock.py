"""Virtual time: exact, free, and outspoken about a program that can never go on."""

import asyncio
import math
import socket
import threading
import time

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto.testing import Deadlock, TaskLeak, VirtualClockLoop, run_virtual

pytest_plugins = ("pytester",)

YEAR = 365 * 24 * 3600.0


async def test_sleep_moves_the_clock_by_exactly_its_length():
    """After a sleep the clock shows the time it asked for, to the last bit."""
    await asyncio.sleep(0.1)
    assert asyncio.get_running_loop().time() == 0.1


async def test_async_tests_run_on_the_virtual_loop():
    """The conftest gives an unmarked async test a virtual loop."""
    assert isinstance(asyncio.get_running_loop(), VirtualClockLoop)


@pytest.mark.realtime
async def test_realtime_tests_run_on_the_ordinary_loop():
    """The conftest gives a test marked `realtime` the loop that asyncio would."""
    assert not isinstance(asyncio.get_running_loop(), VirtualClockLoop)


def test_years_cost_no_real_time():
    """A hundred sleeps of a year take less than a second, and fire in order."""

    async def main():
        woken = []

        async def sleeper(number):
            await anyio.sleep(number * YEAR / 4)
            woken.append(number)

        async with anyio.create_task_group() as group:
            for number in reversed(range(100)):
                group.start_soon(sleeper, number)
        return woken, asyncio.get_running_loop().time()

    assert run_virtual(main) == (list(range(100)), 99 * YEAR / 4)


@given(st.lists(st.floats(0, 1e8), min_size=1, max_size=6))
def test_timers_far_apart_never_make_the_loop_spin(delays):
    """Delays of every size end, one after another, within a microsecond of their sum."""

    async def main():
        for delay in delays:
            await asyncio.sleep(delay)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(sum(delays), abs=1e-6 * (len(delays) + 1))


async def test_timeouts_fire_on_the_virtual_clock():
    """A deadline cuts a longer sleep at its own time."""
    with anyio.move_on_after(5) as scope:
        await anyio.sleep(7)
    assert scope.cancelled_caught
    assert asyncio.get_running_loop().time() == 5


async def test_ready_work_goes_before_the_next_timer():
    """Time stands still as long as any callback is ready."""
    loop = asyncio.get_running_loop()
    fired = loop.create_future()
    loop.call_later(1, fired.set_result, None)
    for _ in range(1000):
        await asyncio.sleep(0)
        assert loop.time() == 0
    await fired
    assert loop.time() == 1


async def test_a_cancelled_timer_does_not_move_the_clock():
    """The clock jumps only to timers that are still armed."""
    loop = asyncio.get_running_loop()
    loop.call_later(1, pytest.fail).cancel()
    await asyncio.sleep(3)
    assert loop.time() == 3


async def _wait_for_ever():
    await asyncio.get_running_loop().create_future()


def test_a_loop_that_can_never_go_on_raises_deadlock():
    """With nothing ready and no timer, the loop names the task and where it waits."""
    with pytest.raises(Deadlock, match=r"t=0 s; 1 task") as caught:
        run_virtual(_wait_for_ever)
    (task,) = caught.value.tasks
    assert "_wait_for_ever (test_clock.py:" in task
    assert caught.value.time == 0


def test_deadlock_names_every_task_and_its_inner_calls():
    """Each waiting task is listed with the calls it is in, down to the innermost."""

    async def main():
        queue = asyncio.Queue()
        await asyncio.sleep(2)
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.get(), name="reader")
            group.create_task(_wait_for_ever(), name="sleeper")

    with pytest.raises(Deadlock) as caught:
        run_virtual(main)
    assert caught.value.time == 2
    main_task, reader, sleeper = sorted(caught.value.tasks)
    assert " > __aexit__ (taskgroups.py:" in main_task
    assert reader.startswith("reader: get (queues.py:")
    assert sleeper.startswith("sleeper: _wait_for_ever (test_clock.py:")


@pytest.mark.parametrize("delay", [math.inf, 1e9, 1e300])
def test_a_sleep_without_an_end_is_a_deadlock(delay):
    """A timer some thirty years away or at infinity counts as none."""
    with pytest.raises(Deadlock):
        run_virtual(asyncio.sleep, delay)


def test_a_deadlock_can_be_caught_and_the_loop_used_on():
    """`Deadlock` leaves the loop usable: what was stuck can be cancelled on it."""
    loop = VirtualClockLoop()
    stuck = loop.create_task(_wait_for_ever())
    with pytest.raises(Deadlock):
        loop.run_until_complete(stuck)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(stuck)
    loop.close()


def test_a_deadlock_inside_a_generator_still_names_its_task():
    """Where a wait cannot be followed further, the task and its outer call are named."""

    async def items():
        await asyncio.get_running_loop().create_future()
        yield 1

    async def main():
        async for _ in items():
            pass

    with pytest.raises(Deadlock, match=r"Task-\d+: main \(test_clock.py:\d+\)"):
        run_virtual(main)


def test_run_virtual_returns_the_result_and_passes_arguments():
    """`run_virtual` calls the function with its arguments and returns its result."""

    async def add(first, second):
        return first + second

    assert run_virtual(add, 1, 2) == 3


def test_run_virtual_raises_what_the_function_raised():
    """An error of the function comes out as it is."""

    async def main():
        raise KeyError("key")

    with pytest.raises(KeyError, match="key") as caught:
        run_virtual(main)
    assert not hasattr(caught.value, "__notes__")


def test_run_virtual_refuses_tasks_left_behind():
    """A task that outlives the call is cancelled and named in `TaskLeak`."""
    cancelled = []

    async def orphan():
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main():
        task = asyncio.create_task(orphan(), name="orphan")
        await asyncio.sleep(1)
        return task

    with pytest.raises(TaskLeak, match=r"1 task.*\n  orphan: orphan") as caught:
        run_virtual(main)
    assert len(caught.value.tasks) == 1
    assert cancelled == [True]


def test_run_virtual_notes_a_leak_beside_an_error():
    """Where the function raised as well, its error wins and the leak is a note on it."""

    async def main():
        main.task = asyncio.create_task(asyncio.sleep(10), name="orphan")
        raise KeyError("key")

    with pytest.raises(KeyError) as caught:
        run_virtual(main)
    assert "orphan: sleep" in caught.value.__notes__[0]


def test_run_virtual_is_the_same_every_time():
    """Two runs of one racing program produce the same trace."""

    async def main():
        trace = []

        async def worker(number):
            for step in range(5):
                await asyncio.sleep(0.1 * (number + 1))
                trace.append((asyncio.get_running_loop().time(), number, step))

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(worker(number))
        return trace

    assert run_virtual(main) == run_virtual(main)


async def test_threads_get_real_time_before_the_clock_jumps():
    """While `asyncio.to_thread` runs, a virtual timeout beside it does not fire."""
    async with asyncio.timeout(1):
        await asyncio.to_thread(time.sleep, 0.02)
    assert asyncio.get_running_loop().time() == 0


async def test_the_clock_jumps_when_patience_with_a_thread_is_over():
    """A thread that itself waits for a timer of the loop gets it."""
    loop = asyncio.get_running_loop()
    loop._patience = 0.01
    slept = threading.Event()
    loop.call_later(5, slept.set)
    assert await asyncio.to_thread(slept.wait, 10)
    assert loop.time() == 5


async def test_a_foreign_thread_can_wake_a_loop_without_timers():
    """`call_soon_threadsafe` reaches a loop that has nothing else to do."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    timer = threading.Timer(0.02, loop.call_soon_threadsafe, [woken.set_result, "hello"])
    timer.start()
    assert await woken == "hello"
    timer.join()
    assert loop.time() == 0


async def test_streams_on_the_loop_see_real_sockets():
    """Bytes through a real socket pair arrive on virtual time."""

    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()


async def test_one_file_can_have_a_reader_and_a_writer():
    """A file watched for both directions calls back for both."""
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    readable, writable = asyncio.Event(), asyncio.Event()
    loop.add_reader(here, readable.set)
    loop.add_writer(here, writable.set)
    there.send(b"hello")
    await readable.wait()
    await writable.wait()
    loop.remove_reader(here)
    loop.remove_writer(here)
    here.close()
    there.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start must be at least 0"),
        ({"start": math.inf}, "start must be at least 0"),
        ({"start": math.nan}, "start must be at least 0"),
        ({"patience": -1}, "patience must be finite"),
        ({"patience": math.inf}, "patience must be finite"),
    ],
)
def test_impossible_options_are_refused(options, message):
    """A clock before 0 or past its range, and an endless patience, are a `ValueError`."""
    with pytest.raises(ValueError, match=message):
        VirtualClockLoop(**options)


def test_the_clock_starts_where_it_is_told_to():
    """`start` is what the clock shows first; timers count from there."""
    loop = VirtualClockLoop(start=1e6)
    loop.run_until_complete(asyncio.sleep(0.25))
    assert loop.time() == 1_000_000.25
    loop.close()


class TestTheWatch:
    """The conftest's own rule, that an async test leaves no task behind."""

    def test_a_leaking_test_fails(self, pytester, request):
        """A test that leaves a task running fails, by the task's name."""
        pytester.makeconftest((request.config.rootpath / "tests" / "conftest.py").read_text())
        pytester.makepyfile(
            """
            import asyncio

            async def test_leaks():
                asyncio.get_running_loop().leak = asyncio.create_task(asyncio.sleep(9), name="lost")
            """
        )
        pytester.makeini(
            """
            [pytest]
            asyncio_mode = auto
            asyncio_default_fixture_loop_scope = function
            markers = realtime
                vllm
            """
        )
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(["*1 task(s) outlived the test: *lost*"])
