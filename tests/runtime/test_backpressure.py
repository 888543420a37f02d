"""Bounds: never more than the number says, and never idle below it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

import pytest

import alto


class Gauge:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        """Nobody is."""
        self.now = self.most = 0

    async def stay(self, seconds: float) -> None:
        """Be inside for a while."""
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.now -= 1


@alto.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """0, 1, 2 and so on."""
    for k in range(n):
        yield k


@alto.stage
async def total(xs: alto.Group[int]) -> int:
    """The sum."""
    return sum([x async for x in xs])


@pytest.mark.parametrize("limit", [1, 3, 8])
async def test_concurrency_is_a_bound_and_is_used(limit: int) -> None:
    """A stage never runs more calls than its concurrency, and that many while there is work."""
    gauge = Gauge()

    @alto.stage(concurrency=limit)
    async def work(k: int) -> int:
        await gauge.stay(1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return total(work(numbers(n)))

    loop = asyncio.get_running_loop()
    async with p.open() as app:
        start = loop.time()
        assert await app.run(24) == [276]
        assert loop.time() - start == pytest.approx(24 / limit)
    assert gauge.most == limit


async def test_two_thousand_pieces_with_a_cap_of_eight() -> None:
    """Many pieces go through a narrow stage without more than its cap running."""
    gauge = Gauge()

    @alto.stage(concurrency=8)
    async def work(k: int) -> int:
        await gauge.stay(1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return total(work(numbers(n)))

    async with p.open() as app:
        assert await app.run(2000) == [1999000]
    assert gauge.most == 8


@pytest.mark.parametrize("capacity", [1, 4, 32])
async def test_a_generator_runs_ahead_by_the_capacity_and_no_further(capacity: int) -> None:
    """With nobody reading, a generator makes as many items as the edge holds, plus one in hand."""
    made = []

    @alto.stage
    async def endless(n: int) -> AsyncIterator[int]:
        while True:
            made.append(n)
            yield n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return endless(n)

    async with p.open(capacity=capacity) as app:
        fresh = app.statistics()
        async with app.stream(1) as handle:
            await asyncio.sleep(1)
            assert len(made) == capacity + 1
            for _ in range(3):
                await anext(handle)
            await asyncio.sleep(1)
            assert len(made) == capacity + 4
        assert app.statistics() == fresh


async def test_no_new_call_starts_while_its_results_have_no_room() -> None:
    """A full edge stops the producer's new calls too, so nothing is generated for nobody."""
    started = []

    @alto.stage(concurrency=2)
    async def work(k: int) -> int:
        started.append(k)
        await asyncio.sleep(1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return work(numbers(n))

    async with p.open(capacity=3) as app, app.stream(100) as handle:
        await asyncio.sleep(50)
        assert len(started) <= 3 + 2
        assert [await anext(handle) for _ in range(10)]
        await asyncio.sleep(50)
        assert 10 + 3 <= len(started) <= 10 + 3 + 2


async def test_calls_that_end_together_do_not_overfill_an_edge() -> None:
    """Of calls that began while there was room, those that find none left wait with their result."""

    @alto.stage(concurrency=6)
    async def work(k: int) -> int:
        await asyncio.sleep(1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return work(numbers(n))

    async with p.open(capacity=2) as app, app.stream(20) as handle:
        await asyncio.sleep(10)
        assert app.statistics().buffered_items == 2
        assert app.statistics().stages["work"].running == 5  # One began with the first end.
        assert sorted(await handle.list()) == list(range(20))


@pytest.mark.parametrize(("capacity", "replicas"), [(1, 1), (3, 1), (1, 2), (3, 2)])
async def test_groups_that_wait_for_their_call_are_bounded(capacity: int, replicas: int) -> None:
    """No more groups begin behind busy calls than the edge holds."""

    @alto.stage(concurrency=1)
    async def alone(k: int) -> AsyncIterator[int]:
        yield k

    @alto.stage(concurrency=1, replicas=replicas)
    async def slow(ks: alto.Group[int]) -> int:
        await asyncio.sleep(10)
        return sum([k async for k in ks])

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(alone(numbers(n)))

    async with p.open(capacity=capacity) as app, app.stream(20):
        await asyncio.sleep(5)
        now = app.statistics().stages["slow"]
        assert (now.running, now.waiting) == (replicas, capacity)


async def test_a_slow_group_reader_holds_its_producer_back() -> None:
    """A stage that reads its group slowly slows the generator above it, back to its source."""
    made = []

    @alto.stage
    async def source(n: int) -> AsyncIterator[int]:
        for k in range(n):
            made.append(k)
            yield k

    @alto.stage
    async def slow(xs: alto.Group[int]) -> int:
        seen = 0
        async for _ in xs:
            seen += 1
            assert len(made) <= seen + 4 + 1
            await asyncio.sleep(1)
        return seen

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return slow(source(n))

    async with p.open(capacity=4) as app:
        assert await app.run(50) == [50]


async def test_a_consumer_that_never_reads_does_not_stop_others() -> None:
    """A request whose results nobody takes holds no permit that others need."""

    @alto.stage(concurrency=1)
    async def narrow(xs: alto.Group[int]) -> AsyncIterator[int]:
        async for x in xs:
            yield x

    @alto.stage(concurrency=1)
    async def narrower(k: int) -> int:
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return narrower(narrow(numbers(n)))

    async with p.open(capacity=1) as app:
        fresh = app.statistics()
        stuck = [app.stream(100) for _ in range(3)]
        await asyncio.sleep(1)
        assert await app.run(10) == list(range(10))
        for handle in stuck:
            await handle.aclose()
        assert app.statistics() == fresh


async def test_a_group_that_waits_for_another_does_not_hold_its_producer_back() -> None:
    """Reading one group to its end and then the other cannot deadlock, at capacity 1."""

    @alto.stage
    async def both(xs: alto.Group[int], ys: alto.Group[int]) -> list[int]:
        return [*[x async for x in xs], *[y async for y in ys]]

    @alto.stage
    async def same(x: int) -> int:
        return x

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[list[int]]:
        xs = numbers(n)
        return both(same(xs), xs)

    async with p.open(capacity=1) as app:
        assert await app.run(40) == [[*range(40), *range(40)]]


async def test_items_that_wait_for_a_late_join_are_held() -> None:
    """A join whose other side comes when all is done cannot deadlock, at capacity 1."""

    @alto.stage(concurrency=1)
    async def add(x: int, whole: int) -> int:
        return x + whole

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        xs = numbers(n)
        return add(xs, total(xs))

    async with p.open(capacity=1) as app:
        fresh = app.statistics()
        assert await app.run(10) == [45 + k for k in range(10)]
        assert app.statistics() == fresh


async def test_held_items_are_capped_with_a_clear_error() -> None:
    """What has nowhere else to go is capped per request; the error names the remedy."""

    @alto.stage
    async def add(x: int, whole: int) -> int:
        return x + whole

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        xs = numbers(n)
        return add(xs, total(xs))

    async with p.open(max_held_items=20) as app:
        fresh = app.statistics()
        with pytest.raises(alto.errors.BufferExceeded, match="max_held_items") as caught:
            await app.run(100)
        assert caught.value.limit == 20
        assert await app.run(5) == [10 + k for k in range(5)]
        assert app.statistics() == fresh


async def test_what_has_served_all_its_calls_is_held_no_more() -> None:
    """A shallow item is let go with the last of the deeper ones that it goes with."""

    @alto.stage(concurrency=1)
    async def later(k: int) -> int:
        await asyncio.sleep(1)
        return k

    @alto.stage
    async def add(one: int, other: int) -> int:
        return one + other

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        ks = later(numbers(n))
        return add(ks, numbers(ks))

    async with p.open(max_held_items=3) as app:
        assert len(await app.run(20)) == 190


async def test_requests_take_turns() -> None:
    """A small request is not shut out by a large one at the same narrow stage."""

    @alto.stage(concurrency=1)
    async def work(k: int) -> int:
        await asyncio.sleep(1)
        return k

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return total(work(numbers(n)))

    loop = asyncio.get_running_loop()
    async with p.open() as app:
        large = app.stream(1000)
        await asyncio.sleep(10.5)
        start = loop.time()
        assert await app.run(3) == [3]
        assert loop.time() - start < 10
        await large.aclose()


async def test_room_that_is_not_taken_is_passed_on() -> None:
    """Whoever was told of room at a stage, and finds its own group has some, passes it on."""

    def is_odd(word: str, salt: int) -> bool:
        return zlib.crc32(f"{word}{salt}".encode()) % 2 == 1

    @alto.stage(concurrency=1)
    async def two(word: str) -> AsyncIterator[str]:
        for k in range(2):
            yield f"{word}{k}"

    @alto.stage(concurrency=1)
    async def one_or_three(word: str) -> AsyncIterator[str]:
        for k in range(3 if is_odd(word, 0) else 1):
            await asyncio.sleep(0)
            yield f"{word}{k}"

    @alto.stage(concurrency=1)
    async def two_or_five(word: str) -> AsyncIterator[str]:
        for k in range(5 if is_odd(word, 7) else 2):
            yield f"{word}{k}"

    @alto.stage(concurrency=8)
    async def threefold(one: str, two: str, three: str) -> str:
        await asyncio.sleep(0.01)
        return one

    @alto.stage(concurrency=1)
    async def joined(words: alto.Group[str]) -> str:
        return "+".join([word async for word in words])

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        pieces = two_or_five(one_or_three(two(word)))
        return joined(threefold(pieces, pieces, pieces))

    async with p.open(capacity=1) as app:
        fresh = app.statistics()
        results = await asyncio.gather(*(app.run(f"r{k}") for k in range(2)))
        assert all(results)
        assert app.statistics() == fresh


@pytest.mark.parametrize("seconds", [0.0, 0.5])
async def test_room_that_a_left_group_gives_goes_to_others(seconds: float) -> None:
    """With what waited for a left group gone from an edge, whoever waits for room there goes on."""

    @alto.stage
    async def six(k: int) -> AsyncIterator[int]:
        for _ in range(6):
            yield k

    @alto.stage(concurrency=1)
    async def slow(k: int) -> int:
        await asyncio.sleep(1)
        return k

    @alto.stage
    async def some(ks: alto.Group[int]) -> int:
        pieces = aiter(ks)
        if await anext(pieces) == 0:
            return 1 + len([k async for k in pieces])
        await asyncio.sleep(seconds)
        return 1

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return some(slow(six(numbers(n))))

    async with p.open(capacity=1) as app:
        assert await app.run(2) == [6, 1]
