"""Executors: alto's own used by hand, and those of a user's own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import alto
from alto.testing import Scripted, reference_run


class Table:
    """A resource."""

    def __init__(self, name: str) -> None:
        self.name = name


class Wrapping:
    """An executor that runs calls in the loop, and notes what happens."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @asynccontextmanager
    async def replica(
        self, stage: alto.model.StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AsyncIterator[Callable[..., Any]]:
        """Make what is to be made with the help of alto's own executor."""
        self.events.append(f"in {stage.name} {number} {stage.concurrency} {sorted(resources)}")
        async with alto.executors.Loop().replica(stage, number, resources) as inner:
            yield self.call(stage, inner)
        self.events.append(f"out {stage.name} {number}")

    def call(self, stage: alto.model.StageInfo, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A call that is awaited, or iterated."""
        if stage.generator or inspect.iscoroutinefunction(stage.function):
            return inner

        async def plain(*args: Any, **values: Any) -> Any:
            await anyio.sleep(1)
            return inner(*args, **values)

        return plain


class TestOwnExecutors:
    """``runs_in=`` an executor of a user's own."""

    async def test_functions_of_any_kind(self) -> None:
        """Generators, coroutine functions with groups, plain functions; resources of each replica."""
        executor = Wrapping()

        @alto.stage(runs_in=executor)
        async def parts(n: int, *, base: int) -> AsyncIterator[int]:
            for k in range(n):
                yield base + k

        @alto.stage(runs_in=executor, replicas=2, concurrency=3)
        def double(k: int, *, factor: int = 2) -> int:
            return factor * k

        @alto.stage(runs_in=executor)
        async def add(ks: alto.Group[int]) -> int:
            return sum([k async for k in ks])

        @alto.pipeline
        def whole(n: alto.Stream[int]) -> alto.Stream[int]:
            return add(double(parts(n)))

        base = alto.per_replica(lambda: 10)
        async with whole.open(base=base) as app:
            fresh = app.statistics()
            assert sorted(executor.events) == [
                "in add 0 32 []",
                "in double 0 3 []",
                "in double 1 3 []",
                "in parts 0 32 ['base']",
            ]
            assert await app.run(3) == [66]
            assert app.statistics() == fresh
            await app.scale("double", 3)
            assert executor.events[-1] == "in double 2 3 []"
            await app.scale("double", 2)
            await anyio.sleep(1)
            assert executor.events[-1].startswith("out double")
        assert len(executor.events) == 10
        assert await reference_run(whole, 3, base=base) == [66]

    async def test_a_call_is_cancelled_as_a_coroutine_is(self) -> None:
        """A limit reaches the executor where it waits."""
        executor = Wrapping()

        @alto.stage(runs_in=executor)
        def double(k: int) -> int:
            return 2 * k

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[int]:
            return double(n)

        async with one.open() as app:
            begin = asyncio.get_running_loop().time()
            with pytest.raises(alto.DeadlineExceeded):
                await app.run(1, timeout=0.5)
            assert asyncio.get_running_loop().time() - begin == 0.5
            assert await app.run(2) == [4]

    @pytest.mark.parametrize("executor", [alto.executors.Loop(), alto.executors.Thread()])
    async def test_values_of_one_call(self, executor: Any) -> None:
        """Resources given with a call replace the replica's for it."""

        async def coroutine(k: int, *, table: Table) -> tuple[int, str]:
            return k, table.name

        def plain(k: int, *, table: Table) -> tuple[int, str]:
            return k, table.name

        loop = isinstance(executor, alto.executors.Loop)
        info = alto.model.StageInfo(
            name="work",
            function=coroutine if loop else plain,
            generator=False,
            concurrency=1,
            resources={"table": Table},
        )
        table = alto.per_replica(lambda number: Table(f"own {number}"))
        async with executor.replica(info, 7, {"table": table}) as call:
            assert await call(1) == (1, "own 7")
            assert await call(2, table=Table("other")) == (2, "other")
            assert await call(3) == (3, "own 7")

    async def test_an_engine_is_wrapped(self) -> None:
        """A stage that asks for an LLM and is given an engine gets an LLM."""

        @alto.stage(runs_in=Wrapping())
        async def say(k: int, *, llm: alto.LLM) -> str:
            return await llm.text(str(k))

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[str]:
            return say(n)

        async with one.open(llm=Scripted(lambda prompt: ["yes"])) as app:
            assert await app.run(1) == ["yes"]

    @pytest.mark.parametrize("closes", [True, False])
    async def test_what_is_iterated_is_closed(self, closes: bool) -> None:
        """An async iterator that is no generator is closed where it can be, when nobody reads on."""
        iterators = []

        class Numbers:
            def __init__(self) -> None:
                self.number, self.closed = 0, False
                iterators.append(self)

            def __aiter__(self) -> Numbers:
                return self

            async def __anext__(self) -> int:
                await anyio.sleep(1)
                self.number += 1
                return self.number

        class Closing(Numbers):
            async def aclose(self) -> None:
                self.closed = True

        pipeline = iterating(lambda _: Closing() if closes else Numbers())
        async with pipeline.open() as app:
            fresh = app.statistics()
            async with app.stream(1) as results:
                assert await anext(results) == 1
            assert [one.closed for one in iterators] == [closes]
            assert app.statistics() == fresh

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (lambda _: 3, "Making: its call must return an async iterator, .* not int"),
            (lambda _: anyio.sleep(1), "must return an async iterator, .* not coroutine"),
            (lambda _: 1 / 0, "ZeroDivisionError"),
        ],
    )
    async def test_what_cannot_be_iterated_fails_its_request(self, given: Any, said: str) -> None:
        """An executor whose call gives something else is named; the app goes on."""
        async with iterating(given).open() as app:
            fresh = app.statistics()
            for _ in range(2):
                with pytest.raises(alto.StageError, match=rf"stage 'numbers' raised.*{said}"):
                    await app.run(1)
            assert app.statistics() == fresh

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (lambda _: 3, "stage 'numbers': its executor Making: .* awaitable, not int"),
            (lambda _: 1 / 0, "ZeroDivisionError"),
        ],
    )
    async def test_what_cannot_be_awaited_fails_its_request(self, given: Any, said: str) -> None:
        """An executor whose call gives something else is named; the app goes on."""
        async with awaiting(given).open() as app:
            for _ in range(2):
                with pytest.raises(alto.StageError, match=said):
                    await app.run(1)

    @pytest.mark.parametrize(
        ("manager", "said"),
        [
            (None, "must return an async context manager, not NoneType; decorate it"),
            (anyio.sleep(1), "must return an async context manager, not coroutine"),
            (contextlib.nullcontext(3), "must give .* a callable, not int"),
            (contextlib.AsyncExitStack, "must return an async context manager, not "),
        ],
    )
    async def test_what_is_no_replica_is_refused(self, manager: Any, said: str) -> None:
        """An executor that makes something else is named when the app opens."""
        with pytest.raises(alto.ResourceError, match=f"'numbers': its executor Making: .*{said}"):
            async with awaiting(None, manager).open():
                pytest.fail("opened")

    @pytest.mark.parametrize("entering", [True, False])
    async def test_an_executor_that_raises_is_named(self, entering: bool) -> None:
        """An error while a replica is made is the cause of a ResourceError."""

        class Broken:
            @asynccontextmanager
            async def entered(self) -> AsyncIterator[Any]:
                raise OSError("no cluster")
                yield

            def replica(self, stage: Any, number: int, resources: Any, /) -> Any:
                if entering:
                    return self.entered()
                raise OSError("no cluster")

        @alto.stage(runs_in=Broken())
        async def work(k: int) -> int:
            return k

        @alto.pipeline
        def one(n: alto.Stream[int]) -> alto.Stream[int]:
            return work(n)

        said = "stage 'work': its executor Broken could not make replica 0: OSError: no cluster"
        with pytest.raises(alto.ResourceError, match=said) as caught:
            async with one.open():
                pytest.fail("opened")
        assert isinstance(caught.value.__cause__, OSError)

    def test_declarations(self) -> None:
        """What is no executor is refused where the stage is declared."""

        class NoReplica:
            pass

        class Coroutine:
            async def replica(self, stage: Any, number: int, resources: Any, /) -> Any: ...

        class Undecorated:
            async def replica(self, stage: Any, number: int, resources: Any, /) -> Any:
                yield

        class OneShort:
            def replica(self, stage: Any, number: int, /) -> Any: ...

        options: Any = alto.stage
        for executor, said in [
            (NoReplica(), "or an executor, any object with a method replica"),
            (3, "or an executor, any object with a method replica"),
            (None, "or an executor, any object with a method replica"),
            (Wrapping, r"or an executor, made: Wrapping\(\),"),
            (Coroutine(), r"Coroutine.replica\(\) must return an async context manager; decorate"),
            (Undecorated(), r"Undecorated.replica\(\) must return an async context manager"),
            (OneShort(), r"must take a stage, a number and the resources, but it is declared"),
        ]:
            with pytest.raises(alto.GraphError, match=said):
                options(runs_in=executor)
        with pytest.raises(alto.GraphError, match=r"'ks' is a Group.*a plain function cannot wait"):

            @alto.stage(runs_in=Wrapping())
            def gathers(ks: alto.Group[int]) -> int:
                return 0


class Making:
    """An executor whose replicas, or whose calls, are what a test says."""

    def __init__(self, call: Any, manager: Any = ...) -> None:
        self.manager = contextlib.nullcontext(call) if manager is ... else manager

    def replica(self, stage: Any, number: int, resources: Any, /) -> Any:
        """What the test says."""
        return self.manager


def iterating(call: Any) -> Any:
    """A pipeline of a stage that is a generator, whose call gives what a test says."""

    @alto.stage(runs_in=Making(call))
    async def numbers(n: int) -> AsyncIterator[int]:
        yield n

    @alto.pipeline
    def one(n: alto.Stream[int]) -> alto.Stream[int]:
        return numbers(n)

    return one


def awaiting(call: Any, manager: Any = ...) -> Any:
    """A pipeline of a stage that is a coroutine function, likewise."""

    @alto.stage(runs_in=Making(call, manager))
    async def numbers(n: int) -> int:
        return n

    @alto.pipeline
    def one(n: alto.Stream[int]) -> alto.Stream[int]:
        return numbers(n)

    return one
