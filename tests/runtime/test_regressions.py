"""Other frameworks' bugs, as tests: where joins misfire, errors leak and cancellation is late.

Each was found in the field, in somebody else's issue tracker.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import alto
from alto.testing import reference_run


@alto.stage
async def count_to(n: int) -> AsyncIterator[int]:
    """0 to n - 1."""
    for number in range(n):
        yield number


@alto.stage
async def total(xs: alto.Group[int]) -> int:
    """Their sum."""
    return sum([x async for x in xs])


@alto.stage
async def listed(xs: alto.Group[int]) -> list[int]:
    """All of them."""
    return await xs.list()


@alto.stage
async def pair(a: int, b: int) -> tuple[int, int]:
    """Both."""
    return a, b


@asynccontextmanager
async def opened(pipeline: Any, capacity: int = 1) -> AsyncGenerator[Any]:
    """An app whose statistics are those of a fresh one when it is left."""
    async with pipeline.open(capacity=capacity) as app:
        fresh = app.statistics()
        yield app
        assert app.statistics() == fresh


async def run_both(pipeline: Any, *inputs: Any, capacity: int = 1) -> list[Any]:
    """What the pipeline gives, which is what the sequential interpreter gives."""
    async with opened(pipeline, capacity) as app:
        results = await app.run(*inputs)
        assert await app.stream(*inputs, order="ancestry").list() == results
    assert results == await reference_run(pipeline, *inputs)
    return list(results)


async def test_an_empty_group_still_fires() -> None:
    """A producer without any output closes its group, once, and the join sees an empty list."""

    @alto.pipeline
    def empty(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        return listed(count_to(n))

    assert await run_both(empty, 0) == [[]]


async def test_an_empty_inner_group_inside_a_full_outer_one() -> None:
    """Of three inner groups the empty one fires in its own place."""

    @alto.pipeline
    def sizes(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        return listed(total(count_to(count_to(n))))

    @alto.pipeline
    def inner(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        return listed(count_to(count_to(n)))

    assert await run_both(sizes, 4) == [[0, 0, 1, 3]]
    assert await run_both(inner, 3) == [[], [0], [0, 1]]


async def test_a_producer_that_raises_after_some_items() -> None:
    """What was yielded before is handed out, then the error; the join does not fire."""
    fired = []

    @alto.stage
    async def breaks(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number
        msg = "broken"
        raise ValueError(msg)

    @alto.stage
    async def gather(xs: alto.Group[int]) -> int:
        pieces = await xs.list()
        fired.append(pieces)
        return len(pieces)

    @alto.pipeline
    def joined(n: alto.Stream[int]) -> alto.Stream[int]:
        return gather(breaks(n))

    @alto.pipeline
    def bare(n: alto.Stream[int]) -> alto.Stream[int]:
        return breaks(n)

    async with opened(joined) as app:
        with pytest.raises(alto.StageError, match=r"'breaks' raised at path .*broken"):
            await app.run(3)
    assert fired == []
    async with opened(bare) as app:
        got = []
        with pytest.raises(alto.StageError):
            async for number in app.stream(3):
                got.append(number)  # so that they are there when it raises
        assert got == [0, 1, 2]


async def test_a_join_of_producers_of_unequal_depth() -> None:
    """One stream goes through two more stages than the other; the join matches by ancestry."""

    @alto.stage
    async def slow(x: int) -> int:
        await anyio.sleep(0.1 * (5 - x))
        return x

    @alto.pipeline
    def unequal(n: alto.Stream[int]) -> alto.Stream[tuple[int, int]]:
        numbers = count_to(n)
        return pair(numbers, slow(total(count_to(slow(numbers)))))

    assert await run_both(unequal, 4) == [(0, 0), (1, 0), (2, 1), (3, 3)]


async def test_a_join_that_feeds_a_join() -> None:
    """Both joins fire once per parent, the outer one after the inner one."""

    @alto.stage
    async def both(x: int, xs: alto.Group[int], ys: alto.Group[tuple[int, int]]) -> int:
        return x + sum(await xs.list()) + len(await ys.list())

    @alto.pipeline
    def nested(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        numbers = count_to(n)
        deeper = count_to(numbers)
        return listed(both(numbers, deeper, pair(numbers, deeper)))

    assert await run_both(nested, 4) == [[0, 2, 5, 9]]


async def test_the_last_piece_fails() -> None:
    """A group that would be complete with the piece that fails never is; nothing hangs."""
    fired = []

    @alto.stage
    async def work(x: int) -> int:
        await anyio.sleep(x)
        if x == 3:
            raise ValueError(x)
        return x

    @alto.stage
    async def gather(xs: alto.Group[int]) -> int:
        fired.append(await xs.list())
        return 0

    @alto.pipeline
    def fails(n: alto.Stream[int]) -> alto.Stream[int]:
        return gather(work(count_to(n)))

    async with opened(fails, capacity=8) as app:
        with pytest.raises(alto.StageError) as caught:
            await app.run(4)
        assert (caught.value.stage, caught.value.path) == ("work", (3,))
        assert fired == []
        assert await app.run(3) == [0]
    with pytest.raises(alto.StageError) as caught:
        await reference_run(fails, 4)
    assert (caught.value.stage, caught.value.path) == ("work", (3,))


async def test_a_consumer_that_leaves_while_the_producer_is_parked_in_yield() -> None:
    """A producer that waits for room is closed when nobody reads any more."""
    log = []

    @alto.stage
    async def endless(n: int) -> AsyncIterator[int]:
        try:
            while True:
                log.append(n)
                yield n
        finally:
            log.append(-1)

    @alto.stage
    async def first(xs: alto.Group[int]) -> int:
        async for x in xs:
            return x
        return -1

    @alto.pipeline
    def gathered(n: alto.Stream[int]) -> alto.Stream[int]:
        return first(endless(n))

    @alto.pipeline
    def bare(n: alto.Stream[int]) -> alto.Stream[int]:
        return endless(n)

    async with opened(gathered) as app:
        assert await app.run(7) == [7]
        assert log[-1] == -1
    log.clear()
    async with opened(bare) as app:
        async with app.stream(7) as results:
            assert await anext(results) == 7
            await anyio.sleep(1)  # Until it waits for room.
            ahead = len(log)
        assert log[ahead:] == [-1]


@pytest.mark.parametrize("checkpoints", range(12))
async def test_cancel_between_selection_and_start(checkpoints: int) -> None:
    """A request that is cancelled before, while or after its call is chosen leaves nothing."""
    ended = []

    @alto.stage(concurrency=1)
    async def work(x: int) -> int:
        try:
            await anyio.sleep(1)
        finally:
            ended.append(x)
        return x

    @alto.pipeline
    def working(n: alto.Stream[int]) -> alto.Stream[int]:
        return total(work(count_to(n)))

    async with opened(working) as app:
        async with anyio.create_task_group() as tasks:
            results: list[list[int]] = []

            async def other() -> None:
                results.append(await app.run(3))

            tasks.start_soon(other)
            handle = app.stream(3)
            for _ in range(checkpoints):
                await anyio.lowlevel.checkpoint()
            await handle.aclose()
        assert results == [[3]]


async def test_two_joins_of_one_producer() -> None:
    """Each of two joins gets every piece, though one is slow."""

    @alto.stage
    async def slow_total(xs: alto.Group[int]) -> int:
        result = 0
        async for x in xs:
            await anyio.sleep(1)
            result += x
        return result

    @alto.pipeline
    def twice(n: alto.Stream[int]) -> alto.Stream[tuple[int, int]]:
        numbers = count_to(n)
        return pair(total(numbers), slow_total(numbers))

    assert await run_both(twice, 5) == [(10, 10)]


async def test_the_same_object_yielded_twice() -> None:
    """Items are told apart by where they come from, not by what they are."""
    one = object()

    @alto.stage
    async def same(n: int) -> AsyncIterator[object]:
        for _ in range(n):
            yield one

    @alto.stage
    async def gather(xs: alto.Group[object]) -> list[object]:
        return await xs.list()

    @alto.pipeline
    def pieces(n: alto.Stream[int]) -> alto.Stream[list[object]]:
        return gather(same(n))

    assert await run_both(pieces, 3) == [[one, one, one]]


async def test_a_fast_inner_group_comes_out_before_a_slow_one() -> None:
    """A group is handed on when it is complete, not when everything is quiet."""

    @alto.stage
    async def work(x: int) -> int:
        await anyio.sleep(10 if x == 0 else 1)
        return x

    @alto.stage
    async def two_of(n: int) -> AsyncIterator[int]:
        yield n
        yield n

    @alto.pipeline
    def groups(n: alto.Stream[int]) -> alto.Stream[int]:
        return total(work(two_of(count_to(n))))

    async with opened(groups, capacity=8) as app:
        start = anyio.current_time()
        seen = [(total, anyio.current_time() - start) async for total in app.stream(3)]
        assert seen == [(2, 1.0), (4, 1.0), (0, 10.0)]


@pytest.mark.parametrize("stage", ["count", "work", "gather", "last"])
@pytest.mark.parametrize("at", [0, 1, 5])
async def test_counters_balance_after_every_error(stage: str, at: int) -> None:
    """Whichever stage raises at whichever call, nothing is left and others go on."""
    armed = {"stage": stage, "calls": 0}

    async def visit(name: str) -> None:
        await anyio.sleep(0.01)
        if name == armed["stage"]:
            armed["calls"] += 1  # type: ignore[operator]
            if armed["calls"] == at + 1:
                raise ValueError(name)

    @alto.stage(concurrency=2)
    async def count(n: int) -> AsyncIterator[int]:
        for number in range(n):
            await visit("count")
            yield number

    @alto.stage(concurrency=2)
    async def work(n: int) -> int:
        await visit("work")
        return n

    @alto.stage(concurrency=2)
    async def gather(n: int, xs: alto.Group[int]) -> int:
        result = n
        async for x in xs:
            await visit("gather")
            result += x
        return result

    @alto.stage
    async def last(xs: alto.Group[int]) -> int:
        await visit("last")
        return sum(await xs.list())

    @alto.pipeline
    def chain(n: alto.Stream[int]) -> alto.Stream[int]:
        numbers = count(n)
        return last(gather(numbers, work(count(work(numbers)))))

    async with opened(chain) as app:
        outcomes = [result async for result in app.map([4] * 6, concurrency=2)]
        failed = [result.error for result in outcomes if result.error is not None]
        assert [error.stage for error in failed] == [stage]
        armed["stage"] = ""
        assert [r.values for r in outcomes if r.error is None] == [await app.run(4)] * 5


async def test_two_thousand_pieces_with_a_cap_of_eight() -> None:
    """At most eight calls run at once, at least eight do, and the join is in order and exact."""
    running = most = 0

    @alto.stage(concurrency=8)
    async def work(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01 * (x % 7))
        running -= 1
        return x

    @alto.pipeline
    def many(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        return listed(work(count_to(n)))

    async with opened(many, capacity=32) as app:
        assert await app.run(2000) == [list(range(2000))]
    assert most == 8


async def test_room_that_a_piece_did_not_take_is_passed_on() -> None:
    """A piece that waits for room and then goes to its group leaves the room to who is next."""

    @alto.stage(concurrency=3)
    async def late(x: int) -> AsyncIterator[int]:
        await anyio.sleep(x // 2)
        yield x

    @alto.stage(concurrency=1)
    async def one_by_one(x: int) -> int:
        await anyio.sleep(0.1 * (x + 1))
        return x

    @alto.stage(concurrency=1)
    async def slow(xs: alto.Group[int], x: int) -> list[int]:
        await anyio.sleep(2)
        return [x, *await xs.list()]

    @alto.pipeline
    def both(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        numbers = count_to(n)
        return slow(late(numbers), one_by_one(numbers))

    assert await run_both(both, 3) == [[0, 0], [1, 1], [2, 2]]


async def test_a_pipeline_that_calls_itself_with_one_permit() -> None:
    """A recursion never waits for the permit that its own caller holds."""

    @alto.stage(concurrency=1)
    async def tree(depth: int) -> AsyncIterator[int]:
        yield depth
        if depth:
            for _ in range(2):
                async for inner in grow.stream(depth - 1, order="ancestry"):
                    await anyio.sleep(0.01)
                    yield inner

    @alto.pipeline
    def grow(depth: alto.Stream[int]) -> alto.Stream[int]:
        return tree(depth)

    expected = [3, 2, 1, 0, 0, 1, 0, 0, 2, 1, 0, 0, 1, 0, 0]
    assert await run_both(grow, 3) == expected
    async with opened(grow) as app:
        outcomes = [r.unwrap() async for r in app.map([3, 3, 3])]
        assert outcomes == [expected] * 3


async def test_what_is_left_below_an_output_is_not_looked_for_among_the_inputs() -> None:
    """A generator over a group opens a level of its own, whose indices say nothing of its input."""

    @alto.stage
    async def three(start: int) -> AsyncIterator[int]:
        for k in range(3):
            yield k

    @alto.stage
    async def slow(number: int) -> int:
        await anyio.sleep(2 - number)
        return number

    @alto.stage(order="arrival")
    async def passed(numbers: alto.Group[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield number

    @alto.stage
    async def twice(number: int) -> AsyncIterator[int]:
        yield number
        await anyio.sleep(5)
        yield number

    @alto.stage
    async def one(numbers: alto.Group[int]) -> int:
        async for number in numbers:
            return number
        raise AssertionError

    @alto.pipeline
    def made(start: alto.Stream[int]) -> alto.Stream[int]:
        return one(twice(passed(slow(three(start)))))

    async with made.open() as app:
        assert sorted(await app.run(0)) == await reference_run(made, 0) == [0, 1, 2]


async def test_a_permit_that_a_second_call_gives_back_is_used() -> None:
    """Also where the worker that runs it is no leader, since its call before had waited."""
    third_is_read = anyio.Event()

    @alto.stage
    async def keys(n: int) -> AsyncIterator[int]:
        for k in range(n):
            yield k
            await anyio.sleep(0.1)  # The first call has begun, and has all it needs.

    @alto.stage
    async def pieces(key: int) -> AsyncIterator[int]:
        yield key
        if key == 1:
            await third_is_read.wait()
        yield key

    @alto.stage(concurrency=1)
    async def gather(xs: alto.Group[int]) -> int:
        read = [x async for x in xs]
        if read[0] == 0:
            await anyio.sleep(1)
        if read[0] == 2:
            third_is_read.set()
        return sum(read)

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return gather(pieces(keys(n)))

    async with p.open() as app:
        assert await app.run(3) == [0, 2, 4]
