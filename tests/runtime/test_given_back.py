"""What is given back, and counted no more, when a call, a replica or an app does not come to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

import alto
from tests.stepping import Oldest, each, settle


class Made:
    """Makes something for each replica, and remembers what there is."""

    def __init__(self, *, fails: int | None = None, waits: int | None = None) -> None:
        """Which replica gets none, and for which it takes for ever. `given` is for `open()`."""
        self.fails = fails
        self.waits = waits
        self.there: list[int] = []
        self.given = alto.per_replica(self.make)

    @asynccontextmanager
    async def make(self, number: int) -> AsyncIterator[int]:
        """Quick to make, and slow to give back."""
        if number == self.fails:
            await anyio.sleep(1)
            raise LookupError
        if number == self.waits:
            await anyio.sleep_forever()
        self.there.append(number)
        yield number
        await anyio.sleep(5)
        self.there.remove(number)


@alto.stage
async def add(k: int, *, own: int) -> int:
    """Uses what its replica has of its own."""
    return k + own


@alto.stage(replicas=2)
async def add_twofold(k: int, *, own: int) -> int:
    """The same, with two from the beginning."""
    return k + own


@alto.stage
async def three(k: int) -> AsyncIterator[int]:
    """The same three times."""
    for _ in range(3):
        yield k


@alto.pipeline
def adding(k: alto.Stream[int]) -> alto.Stream[int]:
    """One replica, and more when it is scaled."""
    return add(k)


@alto.pipeline
def adding_twofold(k: alto.Stream[int]) -> alto.Stream[int]:
    """Two."""
    return add_twofold(k)


class TestReplicas:
    """What replicas have of their own, when one of them does not come to be."""

    async def test_scaling_that_fails_ends_when_what_was_made_is_given_back(self) -> None:
        """The error of one replica is raised when nothing is left of the others."""
        made = Made(fails=2)
        async with adding.open(own=made.given) as app:
            with pytest.raises(alto.ResourceError, match="replica 2 could not be made"):
                await app.scale("add", 4)
            assert made.there == [0]
            assert await app.run(1) == [1]

    async def test_scaling_in_an_app_that_closes_ends_when_what_was_made_is_given_back(
        self,
    ) -> None:
        """Whoever scales hears that the app is closed when nothing is left of the new replicas."""
        made = Made(waits=2)
        left: list[list[int]] = []

        async def scale(app: alto.App[int, int]) -> None:
            with pytest.raises(alto.Closed):
                await app.scale("add", 3)
            left.append([number for number in made.there if number])

        async with (
            anyio.create_task_group() as tasks,
            adding.open(own=made.given) as app,
        ):
            tasks.start_soon(scale, app)
            await settle()
            assert made.there == [0, 1]
        assert left == [[]]

    async def test_an_app_that_cannot_open_says_so_though_time_is_over_meanwhile(self) -> None:
        """A time limit that strikes while things are given back does not replace the error."""
        made = Made(fails=1)
        said: list[alto.ResourceError] = []
        with anyio.move_on_after(2) as limit:
            try:
                async with adding_twofold.open(own=made.given):
                    pytest.fail("it opened")
            except alto.ResourceError as error:
                said.append(error)
        assert limit.cancel_called
        assert len(said) == 1
        assert made.there == []

    async def test_a_stage_may_open_and_close_another_app(self) -> None:
        """Only the app that a stage works for is not its to close."""

        @alto.stage
        async def inner(k: int) -> int:
            async with adding.open(own=1) as other:
                (found,) = await other.run(k)
            return found

        @alto.pipeline
        def p(k: alto.Stream[int]) -> alto.Stream[int]:
            return inner(k)

        async with p.open() as app:
            assert await app.run(1) == [2]


class TestCounts:
    """What is counted of calls and items that nobody needs any more."""

    async def test_pieces_that_a_left_group_has_not_given_are_held_no_more(self) -> None:
        """A call that ends before it has read its group takes off what it leaves, once."""
        ends = [asyncio.Event(), asyncio.Event()]

        @alto.stage
        async def first(group: alto.Group[int]) -> int:
            pieces = aiter(group)
            k = await anext(pieces)
            await ends[k].wait()
            return k

        @alto.pipeline
        def p(jobs: alto.Stream[tuple[int, ...]]) -> alto.Stream[int]:
            return first(three(each(jobs)))

        async with p.open() as app:
            asked = asyncio.ensure_future(app.run((0, 1)))
            await settle()
            assert app.statistics().buffered_items == 4
            ends[0].set()
            await settle()
            assert app.statistics().buffered_items == 2
            ends[1].set()
            assert await asked == [0, 1]

    async def test_items_of_a_join_that_is_left_are_held_no_more(self) -> None:
        """What waits for a partner that nobody needs any more is taken off, once."""
        ends = [asyncio.Event(), asyncio.Event()]

        @alto.stage
        async def never(k: int) -> int:
            await anyio.sleep_forever()
            return k

        @alto.stage
        async def total(one: int, other: int) -> int:
            return one + other

        @alto.stage
        async def skim(ones: alto.Group[int], totals: alto.Group[int]) -> int:
            k, *_ = await ones.list()
            await ends[k].wait()
            return k

        @alto.pipeline
        def p(jobs: alto.Stream[tuple[int, ...]]) -> alto.Stream[int]:
            ks = each(jobs)
            return skim(three(ks), total(three(ks), never(ks)))

        async with p.open() as app:
            asked = asyncio.ensure_future(app.run((0, 1)))
            await settle()
            assert app.statistics().buffered_items == 6
            ends[0].set()
            await settle()
            assert app.statistics().buffered_items == 3
            ends[1].set()
            assert await asked == [0, 1]

    async def test_groups_that_wait_for_a_replica_count_once_when_their_request_ends(self) -> None:
        """A router sees no less work at a replica than there is, after a request was left."""

        @alto.stage
        async def one(name: str) -> AsyncIterator[str]:
            yield name

        @alto.stage(replicas=2, concurrency=1, router=Oldest())
        async def gather(group: alto.Group[str]) -> list[str]:
            await anyio.sleep(10)
            return await group.list()

        @alto.pipeline
        def p(names: alto.Stream[tuple[str, ...]]) -> alto.Stream[list[str]]:
            return gather(one(each(names)))

        async with p.open() as app, app.stream(("first",)) as first:
            await settle()
            _, node = app._host.named_nodes()[-1]
            async with app.stream(("a", "b")):
                await settle()
                assert [load.unfinished for load in node.binding.live] == [3, 0]
            assert [load.unfinished for load in node.binding.live] == [1, 0]
            node.binding.check()
            assert await first.list() == [["first"]]
