"""Who waits for room, for a permit, or for the end of something: in which order, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import alto
from tests.stepping import Oldest, each, settle


class TestRoom:
    """Room at an edge, and the line of those who wait for it."""

    async def test_who_was_told_of_room_that_is_taken_keeps_the_place_in_the_line(self) -> None:
        """An item that finds its room taken by a quicker one goes before those that came after it."""
        gates = {name: asyncio.Event() for name in ("first", "a", "b", "quick")}

        @alto.stage(concurrency=8)
        async def gated(name: str) -> str:
            await gates[name].wait()
            return name

        @alto.pipeline
        def p(names: alto.Stream[tuple[str, ...]]) -> alto.Stream[str]:
            return gated(each(names))

        async with p.open(capacity=1) as app, app.stream(tuple(gates)) as got:
            await settle()  # All have begun, for there is room.
            for name in ("first", "a", "b"):
                gates[name].set()
                await settle()
            gates["quick"].set()  # It goes on before "a", which hears of room next.
            seen = [await anext(got)]
            await settle()
            assert seen + await got.list() == ["first", "quick", "a", "b"]

    async def test_room_is_passed_on_by_who_is_now_kept_elsewhere(self) -> None:
        """An item that has room at one stage, but none any more at the other, holds up nobody."""
        begin, slowly, full, passed = (asyncio.Event() for _ in range(4))

        @alto.stage
        async def pieces(head: str) -> AsyncIterator[str]:
            if head == "one":
                await begin.wait()
            for _ in range(1 if head == "one" else 3):
                yield head

        @alto.stage
        async def later(head: str) -> str:
            if head == "three":
                await full.wait()
            return head

        @alto.stage(concurrency=1)
        async def single(head: str) -> int:
            if head == "one":
                passed.set()
            await slowly.wait()
            return 1

        @alto.stage
        async def whole(group: alto.Group[str], head: str) -> int:
            if head == "three":
                await passed.wait()
            return len(await group.list())

        @alto.stage
        async def both(ones: alto.Group[int], n: int) -> tuple[int, int]:
            return sum(await ones.list()), n

        @alto.pipeline
        def p(names: alto.Stream[tuple[str, ...]]) -> alto.Stream[tuple[int, int]]:
            heads = each(names)
            made = pieces(heads)
            return both(single(made), whole(made, later(heads)))

        async with p.open(capacity=1) as app:
            asked = asyncio.ensure_future(app.run(("one", "three")))
            await settle()  # The last piece of "three" has no room at `single`.
            begin.set()
            await settle()  # Nor has that of "one", behind it.
            full.set()
            await settle()  # There are two of "three" now that `whole` has begun and does not read.
            slowly.set()
            assert await asked == [(1, 1), (3, 3)]

    @pytest.mark.parametrize(
        ("replicas", "concurrency", "router"),
        [(1, 8, None), (2, 4, None), (2, 8, Oldest())],
        ids=["one replica", "waits for a replica", "waits at a replica"],
    )
    async def test_a_stage_goes_on_when_what_had_no_room_is_not_needed_any_more(
        self, replicas: int, concurrency: int, router: Oldest | None
    ) -> None:
        """Behind a call that nobody needs now, one whose results have room starts at once."""
        heads = ("ap", "z", "y", "Y", "gh", *"123456")
        given = {name: asyncio.Event() for head in heads for name in head}
        done = {name: asyncio.Event() for name in given}
        leave, started, end = (asyncio.Event() for _ in range(3))

        @alto.stage(concurrency=len(heads))
        async def pieces(head: str) -> AsyncIterator[str]:
            for name in head:
                await given[name].wait()
                yield name
            await end.wait()

        @alto.stage(replicas=replicas, concurrency=concurrency, router=router)
        async def work(name: str) -> str:
            if name == "p":
                started.set()
            await done[name].wait()
            return name

        @alto.stage(concurrency=2)
        async def some(group: alto.Group[str]) -> str:
            names = aiter(group)
            first = await anext(names)
            if first == "z":
                await leave.wait()
            if first == "g":
                await names.aclose()  # type: ignore[attr-defined]  # nobody needs "h" any more
            if first in "ag":
                await started.wait()
            return first

        @alto.pipeline
        def p(names: alto.Stream[tuple[str, ...]]) -> alto.Stream[str]:
            return some(work(pieces(each(names))))

        async def let(events: dict[str, asyncio.Event], names: str) -> None:
            for name in names:
                events[name].set()
                await settle()

        async with p.open(capacity=2) as app:
            asked = asyncio.ensure_future(app.run(heads))
            await let(done, "azy")
            await let(given, "azyYg123456hp")
            await let(done, "Y")  # The edge is full, so neither "h" nor "p" starts,
            await let(done, "g123456")  # and these wait there before them.
            leave.set()
            await settle()
            assert started.is_set()
            end.set()
            await let(done, "hp")
            assert await asked == ["a", "z", "y", "Y", "g", *"123456"]

    async def test_what_another_consumer_needs_does_not_wait_where_its_group_was_left(
        self,
    ) -> None:
        """What is written for another consumer does not wait for calls of one that has left its group."""
        loop = asyncio.get_running_loop()

        @alto.stage
        async def documents(n: int) -> AsyncIterator[int]:
            for k in range(n):
                yield k

        @alto.stage(concurrency=3)
        async def words(document: int) -> AsyncIterator[str]:
            await asyncio.sleep(document)
            yield f"{document} first"
            if not document:
                await asyncio.sleep(10)
                yield "0 last"

        @alto.stage(concurrency=1)
        async def head(text: alto.Group[str]) -> AsyncIterator[str]:
            word = await anext(aiter(text))
            if not word.startswith("0"):
                await asyncio.sleep(100)
            yield word

        @alto.stage(concurrency=8)
        async def told(word: str) -> str:
            return f"{word} at {loop.time() - began:g}"

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[str]:
            word = words(documents(n))
            return alto.merge(head(word), told(word))

        async with p.open(capacity=1) as app:
            began = loop.time()
            assert "0 last at 10" in await app.run(3)


class TestPermits:
    """Who waits for a permit, and who does not want it any more."""

    async def test_a_permit_that_a_left_task_does_not_need_goes_to_who_waits(self) -> None:
        """What a task waited for whose call has ended starts the next call in line at once."""
        more = asyncio.Event()
        ends = {name: asyncio.Event() for name in ("leaves", "holds", "waits")}
        left: list[asyncio.Task[list[str]]] = []
        begun: list[str] = []

        @alto.stage
        async def two(name: str) -> AsyncIterator[str]:
            yield name
            if name == "leaves":
                await more.wait()
                yield name

        @alto.stage(concurrency=1)
        async def gather(group: alto.Group[str], name: str) -> str:
            begun.append(name)
            if name == "leaves":
                left.append(asyncio.create_task(group.list()))
            await ends[name].wait()
            return name

        @alto.pipeline
        def p(name: alto.Stream[str]) -> alto.Stream[str]:
            return gather(two(name), name)

        async with p.open() as app:
            asked = []
            for name in ends:
                asked.append(asyncio.ensure_future(app.run(name)))
                await settle()
            assert begun == ["leaves", "holds"]  # The first has none, since its task reads.
            more.set()
            await settle()  # The task has a piece, and waits for the permit.
            ends["leaves"].set()
            await settle()
            ends["holds"].set()
            await settle()
            assert begun == ["leaves", "holds", "waits"]
            ends["waits"].set()
            assert await asyncio.gather(*asked) == [["leaves"], ["holds"], ["waits"]]
            (found,) = await asyncio.gather(*left, return_exceptions=True)
            assert isinstance(found, alto.Closed)
