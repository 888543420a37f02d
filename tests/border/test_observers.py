"""Observers: what they see is true, whatever is cancelled, fails or moves, and nothing is for free."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextvars import ContextVar, Token
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alto
from alto import events
from alto._runtime import call as call_module
from alto._runtime import node_run as node_run_module
from alto._runtime import request as request_module
from alto._runtime import resources as resources_module
from alto.errors import RequestError
from alto.events import (
    CallEnded,
    CallStarted,
    EngineStarted,
    EngineStopped,
    Event,
    GenerationEnded,
    GenerationStarted,
    GroupCompleted,
    ItemProduced,
    RequestEnded,
    RequestStarted,
)
from alto.testing import (
    DrawnPipeline,
    RecordedEvents,
    Scripted,
    pipelines,
    reference_run,
    run_virtual,
)

drawn = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

ALL = tuple(getattr(events, name) for name in events.__all__ if name not in ("Event", "Outcome"))


def calls_agree(case: DrawnPipeline, recorded: RecordedEvents, app: Any) -> None:
    """The calls that events tell of are those that the stages have reported."""
    threads = {
        f"{installed.name}.{node.plan.name}"
        for installed in app._host._installed.values()
        for node in installed.nodes
        if node.spec.stage.runs_in == "thread"
    }
    seen: Counter[Any] = Counter()
    spared: Counter[Any] = Counter()  # A call that is cut before its thread has begun runs nothing.
    for event in recorded.of(CallEnded):
        name = event.stage.rpartition(".")[2].partition("#")[0]
        threaded = event.stage in threads
        seen[name, () if threaded else event.path] += 1
        spared[name, ()] += threaded and event.outcome == "cancelled"
    for call in seen.keys() | case.probe.calls.keys():
        made = case.probe.calls[call]
        assert seen[call] - spared[call] <= made <= seen[call], call


async def asked(app: Any, inputs: tuple[str, ...], how: str, cut: float | None) -> None:
    """Run a request, perhaps not to its end."""
    limit = float("inf") if cut is None else cut
    with anyio.move_on_after(limit):
        try:
            if how == "run":
                await app.run(*inputs)
            elif how == "timeout":
                await app.run(*inputs, timeout=cut or 0.01)
            elif how == "map":
                await app.map([inputs[0] if len(inputs) == 1 else inputs]).list()
            else:
                async with app.stream(*inputs) as results:
                    async for _ in results:
                        if how == "left":
                            break
        except RequestError:
            pass


@drawn
@given(
    pipelines(failing=True),
    st.lists(
        st.tuples(
            st.sampled_from(["run", "timeout", "map", "stream", "left"]),
            st.sampled_from([None, None, 0.0, 0.02, 0.1, 0.5]),
        ),
        min_size=3, max_size=3,
    ),
    st.booleans(),
)  # fmt: skip
def test_events_tell_of_exactly_what_happens(
    case: DrawnPipeline, ways: list[tuple[str, float | None]], fails: bool
) -> None:
    """Every start has one end within its parent, and calls are those that the stages report."""
    # With requests at once that are cut, time out, fail or are left, stages in threads, and replicas
    # that come and go.
    recorded = RecordedEvents(ALL)

    async def main() -> None:
        if fails:
            assert case.failing is not None
            await reference_run(case.pipeline, *case.inputs[case.failing.request])
            case.arm(list(case.probe.heard))
        case.probe.reset()
        opened = case.pipeline.open(capacity=case.capacity, observers=[recorded])
        async with opened as app, anyio.create_task_group() as tasks:
            tasks.start_soon(case.scale, app)
            for inputs, (how, cut) in zip(case.inputs, ways, strict=False):
                tasks.start_soon(asked, app, inputs, how, cut)
        # A map that was cut ends its requests some turns later: look when all have ended.
        calls_agree(case, recorded, app)

    run_virtual(main)
    recorded.check()
    roots = [event for event in recorded.of(RequestStarted) if event.parent is None]
    assert len(roots) == len(case.inputs)
    agree(recorded)
    case.probe.fuse = None


def agree(recorded: RecordedEvents) -> None:
    """Numbers of outputs and outcomes fit together."""
    made = Counter((event.request, event.stage, event.path) for event in recorded.of(ItemProduced))
    assert set(made.values()) <= {1}  # An item has one place.
    ends = recorded.of(CallEnded)
    produced: Counter[Any] = Counter()
    calls = {(event.request, event.stage, event.path) for event in ends}
    for request, stage, path in made:
        # Of a coroutine the item has the path of the call, of a generator one index more.
        at = path if (request, stage, path) in calls else path[:-1]
        produced[request, stage, at] += 1
    for event in ends:
        assert event.outputs == produced[event.request, event.stage, event.path], event
    outcome = {event.request: event.outcome for event in recorded.of(RequestEnded)}
    for event in ends:
        if event.outcome == "failed":
            assert outcome[event.request] in ("failed", "cancelled")
    groups = Counter(
        (event.request, event.stage, event.path, event.parameter)
        for event in recorded.of(GroupCompleted)
    )
    assert set(groups.values()) <= {1}


# ---- one at a time


@alto.stage
async def parts(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1."""
    for k in range(n):
        await asyncio.sleep(1)
        yield k


@alto.stage
async def odd(k: int) -> int:
    """Only odd numbers."""
    if k == 4:
        message = "even"
        raise ValueError(message)
    await asyncio.sleep(0.5)
    return k


@alto.stage
async def total(ks: alto.Group[int]) -> int:
    """Their sum."""
    return sum([k async for k in ks])


@alto.pipeline
def p(n: alto.Stream[int]) -> alto.Stream[int]:
    """The sum of some numbers."""
    return total(odd(parts(n)))


async def test_what_is_told_of_a_small_request() -> None:
    """Every event, with its fields."""
    recorded = RecordedEvents(ALL)
    async with p.open(observers=[recorded]) as app:
        handle = app.stream(2, priority=3, timeout=60)
        assert await handle.list() == [1]
    rid = handle.id
    call = {"request": rid, "replica": 0}
    ended = {"outcome": "done", "error": None}
    expected: list[Event] = [
        RequestStarted(request=rid, pipeline="p", time=0, root=rid, priority=3, deadline=60),
        CallStarted(stage="p.parts", path=(), time=0, **call),
        ItemProduced(request=rid, stage="p.parts", path=(0,), time=1, value=0),
        CallStarted(stage="p.odd", path=(0,), time=1, **call),
        ItemProduced(request=rid, stage="p.odd", path=(0,), time=1.5, value=0),
        CallEnded(stage="p.odd", path=(0,), time=1.5, seconds=0.5, outputs=1, **call, **ended),
        CallStarted(stage="p.total", path=(), time=1.5, **call),
        ItemProduced(request=rid, stage="p.parts", path=(1,), time=2, value=1),
        CallEnded(stage="p.parts", path=(), time=2, seconds=2, outputs=2, **call, **ended),
        CallStarted(stage="p.odd", path=(1,), time=2, **call),
        GroupCompleted(request=rid, stage="p.total", path=(), parameter="ks", time=2.5),
        ItemProduced(request=rid, stage="p.odd", path=(1,), time=2.5, value=1),
        CallEnded(stage="p.odd", path=(1,), time=2.5, seconds=0.5, outputs=1, **call, **ended),
        ItemProduced(request=rid, stage="p.total", path=(), time=2.5, value=1),
        CallEnded(stage="p.total", path=(), time=2.5, seconds=1, outputs=1, **call, **ended),
        RequestEnded(request=rid, pipeline="p", time=2.5, outcome="done"),
    ]
    assert recorded.events == expected


async def test_what_is_told_of_a_failure() -> None:
    """The call that raised failed with its error, the request with a StageError, others are cut."""
    recorded = RecordedEvents()
    async with p.open(observers=[recorded]) as app:
        with pytest.raises(alto.StageError) as caught:
            await app.run(9)
    recorded.check()
    outcomes = {
        (event.stage, event.path): (event.outcome, event.outputs)
        for event in recorded.of(CallEnded)
    }
    assert outcomes == {
        ("p.parts", ()): ("cancelled", 5),
        **{("p.odd", (k,)): ("done", 1) for k in range(4)},
        ("p.odd", (4,)): ("failed", 0),
        ("p.total", ()): ("cancelled", 0),
    }
    errors = [event.error for event in recorded.of(CallEnded) if event.error is not None]
    assert errors == [caught.value.cause]
    [ended] = recorded.of(RequestEnded)
    assert (ended.outcome, ended.error, ended.time) == ("failed", caught.value, 5)


@pytest.mark.parametrize("how", ["left", "cut", "late", "closed"])
async def test_what_is_told_of_a_request_that_is_stopped(how: str) -> None:
    """Cancelled, and so are its calls; where its time was over it has failed."""
    recorded = RecordedEvents()
    app = await p.open(observers=[recorded])
    if how == "cut":
        with anyio.move_on_after(2.25):
            await app.run(9)
    elif how == "late":
        with pytest.raises(alto.DeadlineExceeded):
            await app.run(9, timeout=2.25)
    else:
        async with app.stream(9) as results:
            await asyncio.sleep(2.25)
            if how == "closed":
                await app.aclose()
            results.cancel()
    await app.aclose()
    recorded.check()
    [ended] = recorded.of(RequestEnded)
    assert ended.outcome == ("failed" if how == "late" else "cancelled")
    assert ended.time == 2.25
    assert isinstance(ended.error, alto.DeadlineExceeded) == (how == "late")
    cut = [event.stage for event in recorded.of(CallEnded) if event.outcome == "cancelled"]
    assert sorted(cut) == ["p.odd", "p.parts", "p.total"]


async def test_an_item_that_is_handed_over_as_its_generator_is_struck_is_told() -> None:
    """A time limit of the stage strikes at its `yield`: the item is not lost, and not untold."""
    recorded = RecordedEvents(ALL)

    @alto.stage
    async def limited(n: int) -> AsyncIterator[int]:
        with anyio.move_on_after(5):
            for k in range(n):
                yield k  # noqa: ASYNC119  # what this test is about

    @alto.stage(concurrency=1)
    async def slow(k: int) -> int:
        await asyncio.sleep(2)
        return k

    @alto.pipeline
    def q(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(limited(n))

    async with q.open(capacity=1, observers=[recorded]) as app:
        results = await app.run(100)
    made = [event.value for event in recorded.of(ItemProduced) if event.stage == "q.limited"]
    assert made == results == list(range(len(results)))
    agree(recorded)
    recorded.check()


@pytest.mark.parametrize("kinds", [(), (RequestEnded,), (CallStarted, ItemProduced), ALL, None])
async def test_an_observer_gets_what_it_wants_and_nothing_else(kinds: Any) -> None:
    """``wants`` names the kinds; without it all but ``ItemProduced`` come."""
    recorded, everything = RecordedEvents(kinds), RecordedEvents(ALL)
    async with p.open(observers=[recorded, everything]) as app:
        assert await app.run(2) == [1]
    wanted = set(ALL) - {ItemProduced} if kinds is None else set(kinds)
    assert recorded.events == [one for one in everything.events if type(one) in wanted]
    assert everything.of(ItemProduced)


async def test_an_observer_without_wants_is_an_object_with_one_method() -> None:
    """No base class is needed."""

    class Mine:
        def __init__(self) -> None:
            self.seen: list[Event] = []

        def notify(self, event: Event) -> None:
            self.seen.append(event)

    mine, recorded = Mine(), RecordedEvents()
    async with p.open(observers=[mine, recorded]) as app:
        assert await app.run(2) == [1]
    assert mine.seen == recorded.events
    recorded.check()


async def test_an_observer_that_raises_is_reported_once_and_the_request_goes_on() -> None:
    """The loop's handler gets its first error; later events still come, others see everything."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    class Broken:
        def __init__(self, after: int) -> None:
            self.seen = 0
            self.after = after

        def __repr__(self) -> str:
            return f"Broken({self.after})"

        def notify(self, event: Event) -> None:
            self.seen += 1
            if self.seen > self.after:
                message = f"cannot take {type(event).__name__}"
                raise OSError(message)

    first, second, recorded = Broken(0), Broken(3), RecordedEvents()
    async with p.open(observers=[first, recorded, second]) as app:
        assert await app.run(3) == [3]
        with pytest.raises(alto.StageError):
            await app.run(9)
    recorded.check()
    assert first.seen == second.seen == len(recorded.events)
    assert [str(context["exception"]) for context in reported] == [
        "cannot take RequestStarted",
        f"cannot take {type(recorded.events[3]).__name__}",
    ]
    assert "observer Broken(0) raised OSError" in reported[0]["message"]
    assert "the request continues" in reported[0]["message"]


@pytest.mark.parametrize("wants", [None, (), (EngineStarted, EngineStopped)])
async def test_where_nobody_listens_no_event_is_built(
    wants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an observer, or with one that wants other kinds, no class of an event is called."""

    def built(**fields: Any) -> None:
        message = f"an event was built: {fields}"
        raise AssertionError(message)

    patched, unpaired = set(), {EngineStarted, EngineStopped}
    for module in (call_module, node_run_module, request_module, resources_module):
        for kind in ALL:
            if hasattr(module, kind.__name__) and kind not in unpaired:
                monkeypatch.setattr(module, kind.__name__, built)
                patched.add(kind)
    assert patched == set(ALL) - unpaired

    @alto.stage
    async def says(k: int, *, llm: alto.LLM) -> str:
        return await llm.generate(str(k), max_tokens=9).text()

    @alto.pipeline
    def inner(k: alto.Stream[int]) -> alto.Stream[str]:
        return says(k)

    @alto.stage
    async def all_of(ks: alto.Group[int]) -> list[str]:
        return [(await inner.run(k))[0] async for k in ks]

    @alto.pipeline
    def whole(n: alto.Stream[int]) -> alto.Stream[list[str]]:
        return all_of(parts(n))

    observers = [] if wants is None else [RecordedEvents(wants)]
    async with whole.open(llm=Scripted(lambda said: said), observers=observers) as app:
        assert await app.run(2) == [["0", "1"]]
        async with app.stream(2) as results:
            await asyncio.sleep(1.5)
            results.cancel()
    if wants:
        assert len(observers[0].events) == 2


async def test_engines_are_told_of_when_apps_start_and_stop_them() -> None:
    """One that the program has started itself is not told of."""
    recorded = RecordedEvents([EngineStarted, EngineStopped])

    @alto.stage
    async def both(k: int, *, a: alto.LLM, b: alto.LLM) -> int:
        return k

    @alto.pipeline
    def q(k: alto.Stream[int]) -> alto.Stream[int]:
        return both(k)

    mine = Scripted({}, name="mine")
    async with mine, q.open(a=Scripted({}, name="new"), b=mine, observers=[recorded]):
        await asyncio.sleep(5)
    assert recorded.events == [
        EngineStarted(engine="new", time=0), EngineStopped(engine="new", time=5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        (RecordedEvents(), r"open\(observers=...\) takes a list of observers"),
        ([3], r"3 is no observer; it needs a method notify\(event\)"),
        ([RecordedEvents], r"is no observer"),
        ([RecordedEvents([int])], r"RecordedEvents.wants names <class 'int'>, which is no event"),
        (5, r"takes a list of observers, not 5"),
    ],
)
def test_what_is_no_observer_is_refused(observers: Any, message: str) -> None:
    """At open, with what it needs."""
    with pytest.raises(TypeError, match=message):
        p.open(observers=observers)


async def test_a_call_left_running_by_a_task_of_the_stage_is_not_told_of_later() -> None:
    """A generation that a stage's own task starts after the call's end is outside of every call."""
    recorded = RecordedEvents()
    tasks: list[asyncio.Task[Any]] = []

    @alto.stage
    async def leaves(k: int, *, llm: alto.LLM) -> int:
        async def late() -> str:
            await asyncio.sleep(1)
            return await llm.generate("late", max_tokens=9).text()

        tasks.append(asyncio.ensure_future(late()))
        return k

    @alto.pipeline
    def q(k: alto.Stream[int]) -> alto.Stream[int]:
        return leaves(k)

    async with q.open(llm=Scripted(lambda said: said), observers=[recorded]) as app:
        assert await app.run(1) == [1]
        assert await tasks[0] == "late"
    recorded.check()
    assert recorded.of(GenerationStarted) == []


async def test_a_generation_that_outlives_its_call_is_told_as_left() -> None:
    """A task that a stage leaves behind may read on; for observers the call has left the generation."""
    recorded = RecordedEvents()
    tasks: list[asyncio.Task[Any]] = []

    @alto.stage
    async def leaves(k: int, *, llm: alto.LLM) -> int:
        async def slow() -> str:
            return await llm.generate("slow", max_tokens=9).text()

        tasks.append(asyncio.ensure_future(slow()))
        await asyncio.sleep(0.5)
        return k

    @alto.pipeline
    def q(k: alto.Stream[int]) -> alto.Stream[int]:
        return leaves(k)

    engine = Scripted(lambda said: said, delay=1.0)
    async with q.open(llm=engine, observers=[recorded]) as app:
        assert await app.run(1) == [1]
        assert await tasks[0] == "slow"
    recorded.check()
    [ended] = recorded.of(GenerationEnded)
    assert (ended.outcome, ended.time, ended.usage) == ("cancelled", 0.5, None)


span: ContextVar[str] = ContextVar("span", default="none")


@alto.stage
async def seen(word: str) -> str:
    """The span that is open where it runs."""
    return span.get()


@alto.stage
async def around(word: str) -> str:
    """The same of a stage of a pipeline that it calls, and then its own."""
    [inside] = await seeing.run(word)
    return f"{inside} {span.get()}"


@alto.pipeline
def seeing(word: alto.Stream[str]) -> alto.Stream[str]:
    """One stage."""
    return seen(word)


@alto.pipeline
def nesting(word: alto.Stream[str]) -> alto.Stream[str]:
    """One stage that calls the other pipeline."""
    return around(word)


class Attaching:
    """A tracer that attaches a span to each request or call, and detaches it at the end."""

    def __init__(self, start: type, end: type) -> None:
        """Which events begin and end a span."""
        self.wants = (start, end)
        self.tokens: list[tuple[object, Token[str]]] = []

    def notify(self, event: Event) -> None:
        """Set, or reset."""
        key = (event.request, getattr(event, "path", None))
        if isinstance(event, self.wants[0]):
            self.tokens.append((key, span.set(type(event).__name__)))
        else:
            [token] = [token for other, token in self.tokens if other == key]
            span.reset(token)  # A ValueError in another context.


@pytest.mark.parametrize(
    ("start", "end"), [(RequestStarted, RequestEnded), (CallStarted, CallEnded)]
)
async def test_a_tracer_may_set_a_context_variable(start: type, end: type) -> None:
    """The stages of the request see it, the caller and other requests do not; it can be reset."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    name = start.__name__
    async with nesting.open(observers=[Attaching(start, end)]) as app:
        assert await app.run("x") == [f"{name} {name}"]
        assert span.get() == "none"
        records = await app.map(["x", "y"]).list()
        assert [record.unwrap() for record in records] == [[f"{name} {name}"]] * 2
        assert [one async for one in app.stream("x")] == [f"{name} {name}"]
        assert span.get() == "none"
    assert not complaints


async def test_events_name_the_outermost_request() -> None:
    """`root` is the id of the request that the program started, also in an inner one."""
    recorded = RecordedEvents()
    async with nesting.open(observers=[recorded]) as app:
        handle = app.stream("x")
        await handle.list()
    outer, inner = recorded.of(RequestStarted)
    assert outer.request == outer.root == inner.root == inner.parent == handle.id
    assert inner.request != inner.root
