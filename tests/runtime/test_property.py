"""Any pipeline, any schedule: what runs concurrently gives what a sequential interpreter gives.

Every example is a whole pipeline with one to three requests at once, on a virtual clock, which
raises `Deadlock` where nothing can go on. Together the tests draw several hundred pipelines; the
profile ``long`` draws ten thousand in each.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alto.app import AppStatistics
from alto.errors import RequestError, StageError
from alto.model import Path
from alto.testing import DrawnPipeline, RecordedEvents, pipelines, reference_run, run_virtual
from alto.testing._built import Broken

Calls = Counter[tuple[str, Path]]

drawn = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


async def references(case: DrawnPipeline) -> tuple[list[list[str]], Calls, bool]:
    """What each request must give, the calls that all of them make, and whether all are needed."""
    case.probe.reset()
    results = [await reference_run(case.pipeline, *inputs) for inputs in case.inputs]
    calls = Counter(case.probe.calls)
    needed = not (case.early or case.probe.barren)
    case.probe.reset()
    return results, calls, needed


@asynccontextmanager
async def scaled(case: DrawnPipeline, app: Any) -> AsyncIterator[None]:
    """Meanwhile replicas come and go."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(case.scale, app)
        yield


async def at_once(functions: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """What they return, or the error of their request, run at the same time."""
    results: list[Any] = [None] * len(functions)

    async def one(index: int) -> None:
        try:
            results[index] = await functions[index]()
        except RequestError as error:
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index in range(len(functions)):
            tasks.start_soon(one, index)
    return results


def idle(now: AppStatistics) -> AppStatistics:
    """The same, of replicas only what they do: their number may have changed."""
    stages = {
        name: attrs.evolve(
            row, replicas=tuple({attrs.evolve(one, number=0) for one in row.replicas})
        )
        for name, row in now.stages.items()
    }
    return attrs.evolve(now, stages=stages)


@asynccontextmanager
async def opened(case: DrawnPipeline) -> AsyncIterator[Any]:
    """The pipeline, open, whose events are whole at the end: each start has one end, in its parent."""
    recorded = RecordedEvents()
    async with case.pipeline.open(capacity=case.capacity, observers=[recorded]) as app:
        yield app
    recorded.check()


def at_rest(app: Any) -> AppStatistics:
    """The same of an app, when functions in threads that cancelled calls have left have returned."""
    while any(one.abandoned for row in app.statistics().stages.values() for one in row.replicas):
        time.sleep(0.001)
    return idle(app.statistics())


def balanced(app: Any) -> None:
    """No replica counts anything that has ended, and no router is asked about anything."""
    for _, node in app._host.named_nodes():
        node.binding.check()
        assert not node.waiting_runs
        assert {load.unfinished for load in node.binding.loads.values()} == {0}
        for replica in node.replicas.values():
            assert replica.permits.free == replica.permits.limit


def watched(main: Callable[[], Awaitable[None]]) -> None:
    """Run *main* on a virtual loop to which nobody may report an error behind its back."""
    reported: list[dict[str, Any]] = []

    async def inside() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context))
        await main()

    run_virtual(inside)
    for context in reported:
        raise AssertionError(context["message"]) from context.get("exception")


def runs(case: DrawnPipeline, app: Any) -> list[Callable[[], Awaitable[Any]]]:
    """``app.run`` of every request."""
    return [partial(app.run, *inputs) for inputs in case.inputs]


@drawn
@given(pipelines())
def test_run_equals_the_sequential_interpreter(case: DrawnPipeline) -> None:
    """run() gives the reference's list, calls everything exactly once, and leaves nothing."""

    async def main() -> None:
        expected, calls, needed = await references(case)
        async with opened(case) as app:
            fresh = app.statistics()
            async with scaled(case, app):
                results = await at_once(runs(case, app))
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            assert results == expected
            assert at_rest(app) == idle(fresh)
            balanced(app)
        if needed:
            assert case.probe.calls == calls
        else:  # What nobody waits for may not be called, but nothing is called twice.
            assert case.probe.calls <= calls

    watched(main)


@drawn
@given(pipelines(), st.sampled_from([0.0, 0.02, 0.5]))
def test_streams_give_the_same_results(case: DrawnPipeline, pause: float) -> None:
    """stream() gives the reference's list in ancestry order, its multiset in order of arrival."""

    async def main() -> None:
        expected, _, _ = await references(case)

        def reading(inputs: tuple[str, ...], order: str) -> Callable[[], Awaitable[list[str]]]:
            async def read() -> list[str]:
                results = []
                async for result in app.stream(*inputs, order=order):
                    results.append(result)
                    if pause:
                        await anyio.sleep(pause)
                return results

            return read

        async with opened(case) as app:
            fresh = app.statistics()
            in_order = [reading(inputs, "ancestry") for inputs in case.inputs]
            arriving = [reading(inputs, "arrival") for inputs in case.inputs]
            async with scaled(case, app):
                results = await at_once([*in_order, *arriving])
            assert at_rest(app) == idle(fresh)
            balanced(app)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        assert results[: len(in_order)] == expected
        assert list(map(sorted, results[len(in_order) :])) == list(map(sorted, expected))

    watched(main)


@drawn
@given(pipelines(failing=True))
def test_a_failing_call_fails_its_request_alone(case: DrawnPipeline) -> None:
    """A stage that raises gives a StageError that names it; other requests never notice."""

    async def main() -> None:
        results, _, needed = await references(case)
        expected: list[Any] = list(results)
        assert case.failing is not None
        victim = case.failing.request
        await reference_run(case.pipeline, *case.inputs[victim])
        heard = list(case.probe.heard)
        if not case.arm(heard):
            return
        try:
            await reference_run(case.pipeline, *case.inputs[victim])
        except StageError as error:
            expected[victim] = error
        async with opened(case) as app:
            fresh = app.statistics()
            async with scaled(case, app):
                results = await at_once(runs(case, app))
            assert at_rest(app) == idle(fresh)
            balanced(app)
        failed: BaseException | list[str] = results.pop(victim)
        reference: Any = expected.pop(victim)
        assert results == expected
        if not needed and not isinstance(failed, BaseException):
            return  # The call that fails was cancelled in time, since nobody needed it.
        assert isinstance(failed, StageError)
        assert case.probe.fuse is not None
        if heard.count(case.probe.fuse) == 1:  # Else one of several calls was the first.
            assert str(failed) == str(reference)
            assert (failed.stage, failed.path) == (reference.stage, reference.path)
        cause: BaseException | None = failed
        while isinstance(cause, StageError):  # One for each pipeline that a stage has called.
            assert cause.__cause__ is cause.cause
            cause = cause.cause
        assert isinstance(cause, Broken)

    watched(main)


@drawn
@given(pipelines(), st.integers(0, 40), st.booleans())
def test_a_cancelled_request_leaves_the_others_alone(
    case: DrawnPipeline, hundredths: int, streams: bool
) -> None:
    """A request that is cancelled at any time ends at once, leaves nothing, and stops nobody."""

    async def main() -> None:
        expected, _, _ = await references(case)
        async with opened(case) as app:
            fresh = app.statistics()

            async def cancelled() -> None:
                with anyio.move_on_after(hundredths / 100):
                    if not streams:
                        assert await app.run(*case.inputs[0]) == expected[0]
                        return
                    async with app.stream(*case.inputs[0], order="ancestry") as results:
                        assert await results.list() == expected[0]

            async with scaled(case, app):
                first, *others = await at_once([cancelled, *runs(case, app)[1:]])
            assert first is None
            assert others == expected[1:]
            assert at_rest(app) == idle(fresh)
            balanced(app)

    watched(main)
