"""Any pipeline: nothing that a call sets in a context variable reaches another call or request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alto.errors import RequestError
from alto.testing import DrawnPipeline, pipelines, reference_run, run_virtual
from alto.testing._built import Broken

drawn = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

request_of: ContextVar[str] = ContextVar("request_of", default="nobody")
scratch: ContextVar[str] = ContextVar("scratch", default="clean")


class Watch:
    """Makes the drawn stages check what they see, and set garbage: they all report to their probe.

    A call says first of all that it was called (there it must see a clean context), and later, once
    or more often, what it was given (there it must see what itself has set).
    """

    def __init__(self, case: DrawnPipeline) -> None:
        self.probe = case.probe
        self.faults: list[str] = []
        self.looked = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """As long as this lasts."""
        probe: Any = self.probe
        called, check = probe.called, probe.check

        def watched_called(name: str, path: Any = None) -> None:
            called(name, path)
            self.begins(name)

        def watched_check(name: str, words: Any, output: Any) -> None:
            self.goes_on(name, words)
            check(name, words, output)

        probe.called, probe.check = watched_called, watched_check
        try:
            yield
        finally:
            probe.called, probe.check = called, check

    def begins(self, name: str) -> None:
        """A call begins: what it sees was set by its request, or by the call that called it."""
        self.looked += 1
        before, seen = scratch.get(), request_of.get()
        # The pipeline that a stage calls sees what that call has set, of the same request.
        if not seen.startswith("r") or before not in ("clean", f"set in {seen}"):
            self.faults.append(f"{name} began with {seen}, {before}")
        scratch.set(f"set in {seen}")

    def goes_on(self, name: str, words: Any) -> None:
        """A call goes on: it sees what it has set, and the request that its items are of."""
        seen = request_of.get()
        if scratch.get() != f"set in {seen}":
            self.faults.append(f"{name} went on with {scratch.get()} in {seen}")
        of = {word.partition(":")[0] for word in words} - {"-"}
        if of - {seen}:
            self.faults.append(f"{name}, with items of {of}, saw {seen}")


@contextmanager
def being(request: str) -> Iterator[None]:
    """What runs in here is done for *request*."""
    token = request_of.set(request)
    try:
        yield
    finally:
        request_of.reset(token)


async def ask(app: Any, number: int, inputs: tuple[str, ...], how: str, cut: float) -> Any:
    """Run one request in a context of its own, perhaps not to its end."""
    with being(f"r{number}"), anyio.move_on_after(cut):
        try:
            if how == "run":
                return await app.run(*inputs)
            if how == "map":
                single = inputs[0] if len(inputs) == 1 else inputs
                [result] = [one async for one in app.map([single])]
                return result.unwrap()
            return [one async for one in app.stream(*inputs, order="ancestry")]
        except RequestError as error:
            return error
    return None


@drawn
@given(
    pipelines(failing=True),
    st.lists(st.sampled_from(["run", "stream", "map"]), min_size=3, max_size=3),
    st.lists(st.sampled_from([None, None, 0.0, 0.03, 0.2]), min_size=3, max_size=3),
    st.booleans(),
)
def test_nothing_leaks_from_call_to_call_or_from_request_to_request(
    case: DrawnPipeline, hows: list[str], cuts: list[float | None], fails: bool
) -> None:
    """Every call sees its request's value and sets garbage: none sees another one's; results are equal."""
    watch = Watch(case)

    async def main() -> None:
        expected = [await reference_run(case.pipeline, *inputs) for inputs in case.inputs]
        if fails:
            assert case.failing is not None
            case.probe.reset()
            await reference_run(case.pipeline, *case.inputs[case.failing.request])
            case.arm(list(case.probe.heard))
        results: dict[int, Any] = {}

        async def one(number: int) -> None:
            cut = cuts[number]
            limit = float("inf") if cut is None else cut
            results[number] = await ask(app, number, case.inputs[number], hows[number], limit)

        with watch.on():
            opened = case.pipeline.open(capacity=case.capacity)
            async with opened as app, anyio.create_task_group() as tasks:
                tasks.start_soon(case.scale, app)
                for number in range(len(case.inputs)):
                    tasks.start_soon(one, number)
        for number, result in results.items():
            if isinstance(result, RequestError):
                assert isinstance(result.root_cause, Broken)
            elif result is None:
                assert cuts[number] is not None
            else:
                assert result == expected[number]
        assert scratch.get() == "clean"
        assert request_of.get() == "nobody"

    run_virtual(main)
    assert watch.faults == []
    case.probe.fuse = None


async def test_the_watch_sees_a_leak() -> None:
    """The property's own eyes: a call that begins in the context of another one is a fault."""

    class Case:
        class probe:  # noqa: N801
            """Nothing is reported."""

    watch = Watch(Case())  # type: ignore[arg-type]
    with being("r0"):
        watch.begins("first")
        watch.goes_on("first", ("r0:x",))
        assert watch.faults == []
        watch.goes_on("first", ("r1:x",))
        assert len(watch.faults) == 1
    with being("r1"):
        watch.begins("second")
    assert len(watch.faults) == 2
