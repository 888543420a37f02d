from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from alto.engines._vllm.session import run_shielded


class TestToTheEnd:
    """Work that a cancellation must not cut short."""

    async def test_the_result_is_the_works(self):
        """Without a cancellation nothing is special, errors included."""
        assert await run_shielded(asyncio.sleep(1, "done")) == "done"
        with pytest.raises(ZeroDivisionError):
            await run_shielded(_fail())

    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_cancellation_is_delivered_afterwards(self, times):
        """The work ends first, however often the task is cancelled."""
        done = []
        task = asyncio.ensure_future(run_shielded(_work(done)))
        for _ in range(times):
            await asyncio.sleep(0.25)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == [1.0]

    async def test_a_cancelled_scope_waits_too(self):
        """The same under anyio, which would cancel again and again."""
        done = []
        with anyio.move_on_after(0.5) as scope:
            await run_shielded(_work(done))
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert done == [1.0]

    async def test_a_failure_of_cancelled_work_is_not_lost_noisily(self):
        """The cancellation wins, and nothing complains that the failure was never seen."""
        task = asyncio.ensure_future(run_shielded(_fail()))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_work_that_is_cancelled_itself_is_cancelled(self):
        """Somebody who cancels everything ends it."""
        task = asyncio.ensure_future(run_shielded(asyncio.sleep(5)))
        await asyncio.sleep(0.5)
        (inner,) = asyncio.all_tasks() - {task, asyncio.current_task()}
        inner.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def _fail():
    await asyncio.sleep(1)
    raise ZeroDivisionError


async def _work(done):
    await asyncio.sleep(1)
    done.append(asyncio.get_running_loop().time())
