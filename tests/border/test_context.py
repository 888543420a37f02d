"""Context variables: each call has a copy of its request's, and no call sees another one's."""

from __future__ import annotations

import asyncio
import decimal
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from itertools import count as counting
from typing import Any

import anyio
import attrs
import pytest

import alto
from alto.model import Chunk, GenerateRequest
from alto.testing import RecordedEvents, Scripted

who: ContextVar[str] = ContextVar("who", default="nobody")


@contextmanager
def being(name: str) -> Iterator[None]:
    """What runs in here is done for *name*."""
    token = who.set(name)
    try:
        yield
    finally:
        who.reset(token)


def look() -> str:
    """Whose value is seen; whoever looks leaves garbage behind."""
    seen = who.get()
    who.set(f"garbage of {seen}")
    return seen


@alto.stage
async def parts(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1, each made in the same context."""
    assert not look().startswith("garbage")
    mine = who.get()
    for k in range(n):
        assert who.get() == mine
        yield k


def _one(waits: bool, **options: Any) -> Callable[[alto.Stream[int]], alto.Stream[str]]:
    @alto.stage(**options)
    async def one(k: int) -> str:
        seen = look()
        if waits:
            await asyncio.sleep(0.1)
            assert who.get() == f"garbage of {seen}"
        return seen

    return lambda n: one(parts(n))


def _many(**options: Any) -> Callable[[alto.Stream[int]], alto.Stream[str]]:
    @alto.stage(**options)
    async def many(k: int) -> AsyncIterator[str]:
        seen = look()
        for _ in range(2):
            yield seen
            assert who.get() == f"garbage of {seen}"
            await asyncio.sleep(0)
            assert who.get() == f"garbage of {seen}"

    return lambda n: many(parts(n))


def _gathers(**options: Any) -> Callable[[alto.Stream[int]], alto.Stream[str]]:
    @alto.stage(**options)
    async def gathers(k: int, below: alto.Group[int]) -> str:
        seen = look()
        async for _ in below:
            assert who.get() == f"garbage of {seen}"
        return seen

    def pipe(n: alto.Stream[int]) -> alto.Stream[str]:
        ks = parts(n)
        return gathers(ks, parts(ks))

    return pipe


def _joins() -> Callable[[alto.Stream[int]], alto.Stream[str]]:
    @alto.stage
    async def both(a: str, b: str) -> str:
        assert a == b
        return look()

    def pipe(n: alto.Stream[int]) -> alto.Stream[str]:
        ks = parts(n)

        @alto.stage
        async def left(k: int) -> str:
            return look()

        @alto.stage
        async def right(k: int) -> str:
            await asyncio.sleep(0.1)
            return look()

        return both(left(ks), right(ks))

    return pipe


def _threads() -> Callable[[alto.Stream[int]], alto.Stream[str]]:
    @alto.stage(runs_in="thread", concurrency=1)
    def in_thread(k: int) -> str:
        assert threading.current_thread() is not threading.main_thread()
        return look()

    return lambda n: in_thread(parts(n))


def _operators() -> Callable[[alto.Stream[int]], alto.Stream[str]]:
    def accepts(k: int) -> bool:
        assert not look().startswith("garbage")
        return True

    def case(k: int) -> bool:
        assert not look().startswith("garbage")
        return k < 2

    def add(before: str, k: int) -> str:
        # One call gathers: what it sets stays in that call.
        seen = who.get().removeprefix("in a reduce of ")
        who.set(f"in a reduce of {seen}")
        assert before in ("", seen)
        return seen

    def pipe(n: alto.Stream[int]) -> alto.Stream[str]:
        few, many = alto.switch(alto.where(parts(n), accepts), case, True, False)
        return alto.reduce(alto.merge(few, many), add, "", by=n)

    return pipe


KINDS = {
    "one at a time": _one(waits=False, concurrency=1),
    "waits": _one(waits=True, concurrency=1),
    "side by side": _one(waits=True, concurrency=8),
    "replicas": _one(waits=True, concurrency=1, replicas=3),
    "generator": _many(concurrency=1),
    "generators": _many(concurrency=3, replicas=2),
    "group": _gathers(concurrency=1),
    "groups of replicas": _gathers(replicas=3),
    "join": _joins(),
    "thread": _threads(),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_sees_its_request_and_nothing_that_another_call_set(kind: str) -> None:
    """Two requests at once, each with a value; every call leaves garbage, and none sees any."""

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[str]:
        return KINDS[kind](n)

    async def ask(name: str) -> list[str]:
        with being(name):
            return await app.run(5)

    with being("the opener"):
        app = await p.open()
    async with asyncio.TaskGroup() as tasks:
        asked = {name: tasks.create_task(ask(name)) for name in ("alice", "bob", "carol")}
    await app.aclose()
    for name, task in asked.items():
        assert set(task.result()) == {name}
        assert len(task.result()) >= 5
    assert who.get() == "nobody"


async def test_functions_of_operators_see_their_request() -> None:
    """So do the functions that ``where``, ``switch`` and ``reduce`` are given."""
    function = _operators()

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[str]:
        return function(n)

    async def ask(name: str) -> list[str]:
        with being(name):
            return await app.run(4)

    async with p.open() as app, asyncio.TaskGroup() as tasks:
        alice, bob = tasks.create_task(ask("alice")), tasks.create_task(ask("bob"))
    assert (alice.result(), bob.result()) == (["alice"], ["bob"])


async def test_what_a_call_sets_is_seen_by_what_it_starts() -> None:  # noqa: C901  # all ways
    """Tasks, threads, pipelines that it runs or streams, and the engine see it; the caller does not."""
    seen: dict[str, str] = {}

    class Listening(Scripted):
        async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
            seen[f"engine {request.prompt}"] = who.get()
            chunks = super().generate(request)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()

    @alto.stage
    async def asks(prompt: str, *, llm: alto.LLM) -> str:
        seen[f"inner {prompt}"] = who.get()
        with being(f"{who.get()} below"):
            return await llm.generate(prompt, max_tokens=9).text()

    @alto.pipeline
    def inner(prompt: alto.Stream[str]) -> alto.Stream[str]:
        return asks(prompt)

    @alto.stage
    async def outer(name: str, *, llm: alto.LLM) -> str:
        mine = f"call for {who.get()}"
        with being(mine):

            async def child(where: str) -> None:
                await asyncio.sleep(0.1)
                seen[where] = look()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child(f"{name} task"))
            async with anyio.create_task_group() as group:
                group.start_soon(child, f"{name} anyio")
            seen[f"{name} thread"] = await asyncio.to_thread(look)
            await llm.generate(f"{name} text", max_tokens=9).text()
            async for _ in llm.generate(f"{name} chunks", max_tokens=9):
                assert who.get() == mine
            await inner.run(f"{name} run")
            async for _ in inner.stream(f"{name} stream"):
                assert who.get() == mine
            assert who.get() == mine
        return who.get()

    @alto.pipeline
    def p(name: alto.Stream[str]) -> alto.Stream[str]:
        return outer(name)

    async def ask(name: str) -> list[str]:
        with being(name):
            return await app.run(name)

    async with p.open(llm=Listening(lambda _: "said so")) as app, asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(ask(name)) for name in ("alice", "bob")]
    assert [task.result() for task in answers] == [["alice"], ["bob"]]
    for name in ("alice", "bob"):
        call = f"call for {name}"
        assert seen.pop(f"{name} task") == seen.pop(f"{name} anyio") == call
        assert seen.pop(f"{name} thread") == call
        assert seen.pop(f"engine {name} text") == seen.pop(f"engine {name} chunks") == call
        assert seen.pop(f"inner {name} run") == seen.pop(f"inner {name} stream") == call
        for how in ("run", "stream"):
            assert seen.pop(f"engine {name} {how}") == f"{call} below"
    assert not seen


async def test_a_request_has_the_context_of_its_start() -> None:
    """What the caller sets afterwards is not seen: the context was copied by run, stream and map."""

    @alto.stage
    async def late(n: int) -> str:
        await asyncio.sleep(1)
        return who.get()

    @alto.stage
    async def later(before: str) -> str:
        return f"{before} {look()}"

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[str]:
        return later(late(n))

    async with p.open() as app:
        with being("started"):
            handle = app.stream(1)
            results = app.map([1, 2, 3], concurrency=1)
        with being("changed"):
            assert await handle.list() == ["started started"]
            assert [one.unwrap() async for one in results] == [["started started"]] * 3


async def test_map_over_an_async_iterable_has_the_context_of_whoever_called_it() -> None:
    """Also where a task of the app pulls the inputs."""

    async def inputs() -> AsyncIterator[int]:
        for k in range(3):
            await asyncio.sleep(0.1)
            yield k

    @alto.stage
    async def one(k: int) -> str:
        return look()

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[str]:
        return one(n)

    async with p.open() as app:
        with being("the mapper"):
            results = app.map(inputs(), concurrency=2)
        assert [result.unwrap() async for result in results] == [["the mapper"]] * 3


async def test_the_context_of_the_one_who_starts_is_not_changed() -> None:
    """A request gets copies: nothing that its calls set is in the caller's context afterwards."""

    @alto.stage
    async def one(k: int) -> int:
        look()
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return one(n)

    async with p.open() as app:
        with being("the caller"):
            before = dict(copy_context())
            assert await app.run(1) == [1]
            assert [x async for x in app.stream(2)] == [2]
            assert dict(copy_context()) == before


# ---- generators


@pytest.mark.parametrize("how", ["whole", "left", "cancelled", "fails", "dropped", "full"])
async def test_a_token_is_reset_where_it_was_set(how: str) -> None:  # noqa: C901  # all ways
    """All steps of a generator, its clean-up included, run in one context, however it is left."""
    reset: list[str] = []

    @alto.stage
    async def scoped(n: int) -> AsyncIterator[int]:
        token = who.set(f"in {who.get()}")
        try:
            for k in range(n):
                yield k
                if k % 2:
                    await asyncio.sleep(0.1)
        finally:
            await asyncio.sleep(0.1)
            who.reset(token)  # A ValueError in any other context.
            reset.append(who.get())

    @alto.stage
    async def some(ks: alto.Group[int]) -> int:
        async for k in ks:
            return k
        return -1

    @alto.stage
    async def each(k: int) -> int:
        if how == "fails" and k == 3:
            message = "three"
            raise OSError(message)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return some(scoped(n)) if how == "dropped" else each(scoped(n))

    async with p.open(capacity=1 if how == "full" else 32) as app:
        with being("alice"):
            if how in ("whole", "full"):
                assert await app.run(6) == list(range(6))
            elif how == "left":
                async with app.stream(100) as results:
                    async for k in results:
                        if k == 4:
                            break
            elif how == "cancelled":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.25):
                        await app.run(100)
            elif how == "dropped":
                assert await app.run(100) == [0]
            else:
                with pytest.raises(alto.StageError, match="three"):
                    await app.run(100)
    assert reset == ["alice"]


async def test_decimal_localcontext_lasts_over_yields_and_leaks_nowhere() -> None:
    """``decimal.localcontext`` around a yield: the precision is the call's own."""
    before = decimal.getcontext().prec

    @alto.stage(concurrency=2)
    async def thirds(prec: int) -> AsyncIterator[str]:
        with decimal.localcontext() as context:
            context.prec = prec
            for _ in range(3):
                yield str(decimal.Decimal(1) / 3)  # noqa: ASYNC119  # what this test is about
                await asyncio.sleep(0.1)

    @alto.stage(concurrency=1)
    async def own(text: str) -> tuple[str, int]:
        return text, decimal.getcontext().prec

    @alto.pipeline
    def p(prec: alto.Stream[int]) -> alto.Stream[tuple[str, int]]:
        return own(thirds(prec))

    async with p.open() as app, asyncio.TaskGroup() as tasks:
        two, four = tasks.create_task(app.run(2)), tasks.create_task(app.run(4))
    assert two.result() == [("0.33", before)] * 3
    assert four.result() == [("0.3333", before)] * 3
    assert decimal.getcontext().prec == before


# ---- a tracer


@attrs.frozen(kw_only=True, eq=False)
class Span:
    """What was done, and within what."""

    name: str
    parent: Span | None
    number: int

    @property
    def root(self) -> Span:
        """The outermost one."""
        return self if self.parent is None else self.parent.root


class Tracer:
    """As OpenTelemetry's: the current span is a context variable; a span is left by its token."""

    def __init__(self) -> None:
        self.current: ContextVar[Span | None] = ContextVar("span", default=None)
        self.spans: list[Span] = []
        self.open = 0
        self._numbers = counting()

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Open a span below the current one."""
        span = Span(name=name, parent=self.current.get(), number=next(self._numbers))
        self.spans.append(span)
        token = self.current.set(span)
        self.open += 1
        try:
            yield span
        finally:
            self.open -= 1
            self.current.reset(token)  # "was created in a different Context" elsewhere


class Traced:
    """A pipeline whose stages all open spans, in every way."""

    def __init__(self) -> None:  # noqa: C901  # seven stages
        tracer = self.tracer = Tracer()

        @alto.stage(concurrency=3)
        async def leaf(word: str) -> str:
            with tracer.span("leaf"):
                await asyncio.sleep(0.03)
                return word

        @alto.pipeline
        def inner(word: alto.Stream[str]) -> alto.Stream[str]:
            return leaf(word)

        @alto.stage
        async def cut(text: str) -> AsyncIterator[str]:
            with tracer.span("cut"):
                for word in text.split():
                    await asyncio.sleep(0.02)
                    yield word  # noqa: ASYNC119  # what this test is about

        @alto.stage(concurrency=2, replicas=2)
        async def ask(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
            with tracer.span("ask"):
                async for chunk in llm.generate(word, max_tokens=9):
                    with tracer.span("chunk"):
                        yield chunk.text  # noqa: ASYNC119  # what this test is about

        @alto.stage
        async def gather(pieces: alto.Group[str]) -> str:
            with tracer.span("gather"):
                return " ".join([piece async for piece in pieces])

        @alto.stage(runs_in="thread", concurrency=2)
        def shout(text: str) -> str:
            with tracer.span("shout"):
                return text.upper()

        @alto.stage
        async def deep(text: str) -> AsyncIterator[str]:
            with tracer.span("deep"):
                async for word in inner.stream(text):
                    yield word  # noqa: ASYNC119  # what this test is about
                for word in await inner.run(text):
                    yield word  # noqa: ASYNC119  # what this test is about

        @alto.pipeline
        def p(text: alto.Stream[str]) -> alto.Stream[str]:
            return deep(shout(gather(ask(cut(text)))))

        self.pipeline: Any = p
        self.engine = Scripted(lambda prompt: [prompt, "!", "?"], delay=0.01)

    def check(self) -> None:
        """Every span is left, and is within the request that its root stands for."""
        assert self.tracer.open == 0
        within = {
            "cut": "request", "ask": "request", "gather": "request", "shout": "request",
            "deep": "request", "leaf": "deep", "chunk": "ask",
        }  # fmt: skip
        for span in self.tracer.spans:
            if span.name == "request":
                assert span.parent is None
            else:
                assert span.parent is not None
                assert span.parent.name == within[span.name], span.name
                assert span.root.name == "request"


@pytest.mark.realtime
async def test_spans_of_stages_are_children_of_their_request_s() -> None:
    """As many spans below each request as it makes calls, none a root, with requests at once."""
    traced = Traced()

    async def ask(number: int) -> list[str]:
        with traced.tracer.span("request"):
            return await app.run(f"a{number} b")

    async with traced.pipeline.open(llm=traced.engine) as app:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(number)) for number in range(4)]
        for number, task in enumerate(asked):
            assert task.result() == [f"A{number} ! ?"] * 2 + ["B ! ?"] * 2
    traced.check()
    names = [span.name for span in traced.tracer.spans]
    each = {"request": 1, "cut": 1, "ask": 2, "gather": 2, "shout": 2, "deep": 2, "leaf": 4}
    assert {name: names.count(name) for name in each} == {k: 4 * v for k, v in each.items()}


@pytest.mark.slow
async def test_a_thousand_random_cancels_leave_every_span_in_its_context() -> None:
    """Requests are left at any time and in any way; no token is reset elsewhere, no span is open."""
    traced, luck = Traced(), random.Random(14)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    done = 0

    async def ask(seconds: float, way: int) -> None:
        nonlocal done
        with traced.tracer.span("request"):
            if way == 0:
                with anyio.move_on_after(seconds):
                    await app.run("a b c d")
                    done += 1
            elif way == 1:
                with anyio.move_on_after(seconds):
                    async for _ in app.stream("a b c d"):
                        pass
                    done += 1
            else:
                async with app.stream("a b c d") as results:
                    await asyncio.sleep(seconds)
                    results.cancel()

    async with traced.pipeline.open(llm=traced.engine) as app:
        fresh = app.statistics()
        async with asyncio.TaskGroup() as tasks:
            for number in range(1000):
                tasks.create_task(ask(luck.uniform(0, 0.5), number % 3))
                await asyncio.sleep(0.04)
        assert app.statistics() == fresh
    traced.check()
    assert reported == []
    assert 50 < done < 950


async def test_observers_are_notified_in_the_context_of_the_call() -> None:
    """A tracer that is an observer sees the request's span when a call starts and when it ends."""
    seen: list[tuple[str, str]] = []

    class Watching(RecordedEvents):
        def notify(self, event: Any, /) -> None:
            super().notify(event)
            seen.append((type(event).__name__, who.get()))

    @alto.stage
    async def one(k: int) -> int:
        await asyncio.sleep(0.1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return one(parts(n))

    async with p.open(observers=[Watching()]) as app:
        with being("alice"):
            assert await app.run(2) == [0, 1]
    calls = [name for kind, name in seen if kind.startswith("Call")]
    assert calls.count("alice") == 5
    assert set(calls) == {"alice", "garbage of alice"}  # The end of `parts`, which has set it.
    assert ("RequestStarted", "alice") in seen
