"""Stages with several replicas: who gets what, when replicas come and go, what each has of its own."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

import alto
from alto.routing import (
    LeastWork,
    RendezvousHash,
    ReplicaLoad,
    RoundRobinRouter,
    RoutedItem,
)
from alto.testing.scripted import Scripted


class Instance:
    """A replica's own resource: says which one works on what, and when."""

    def __init__(self, number: int, seconds: float = 1.0) -> None:
        """Which replica it belongs to, and how long it takes for an item."""
        self.number = number
        self.seconds = seconds
        self.open = True
        self.now = 0
        self.most = 0

    async def work(self) -> None:
        """Take a while."""
        assert self.open
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(self.seconds)
        self.now -= 1


class Instances:
    """A factory of instances that remembers them."""

    def __init__(self, *seconds: float) -> None:
        """How long each takes for an item; 1 s where it is not said."""
        self.seconds = seconds
        self.made: list[Instance] = []

    @asynccontextmanager
    async def __call__(self, number: int) -> AsyncIterator[Instance]:
        """One of them."""
        seconds = self.seconds[number] if number < len(self.seconds) else 1.0
        instance = Instance(number, seconds)
        self.made.append(instance)
        yield instance
        instance.open = False


@alto.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1, at once."""
    for k in range(n):
        yield k


def pipeline_of(stage: Any) -> Any:
    """``stage(numbers(n))``."""

    def many(n: alto.Stream[int]) -> alto.Stream[Any]:
        return stage(numbers(n))

    return alto.pipeline(many)


def declare(**options: Any) -> Any:
    """A pipeline whose stage ``work`` gives the number of its replica for each item."""

    @alto.stage(**options)
    async def work(k: int, *, own: Instance) -> int:
        await own.work()
        return own.number

    return pipeline_of(work)


def idle(now: alto.app.AppStatistics) -> bool:
    """Whether nothing goes on, whatever was done."""
    return not (now.open_requests or now.open_groups or now.buffered_items) and not any(
        one.running or one.waiting or one.bound or one.draining
        for row in now.stages.values()
        for one in (row, *row.replicas)
        if isinstance(one, alto.app.ReplicaStatistics)
    )


class TestItems:
    """A stage that gathers nothing: items spread, also within a request."""

    async def test_items_of_one_request_spread(self) -> None:
        """Twelve items on 4 replicas of one slot take the time of three."""
        made = Instances()
        async with declare(replicas=4, concurrency=1).open(own=alto.per_replica(made)) as app:
            begin = asyncio.get_running_loop().time()
            assert Counter(await app.run(12)) == dict.fromkeys(range(4), 3)
            assert asyncio.get_running_loop().time() - begin == 3.0
            assert idle(app.statistics())
        assert [instance.most for instance in made.made] == [1, 1, 1, 1]

    async def test_concurrency_is_per_replica(self) -> None:
        """Each of 2 replicas runs up to 3 at once, and never less while something waits."""
        made = Instances()
        async with declare(replicas=2, concurrency=3).open(own=alto.per_replica(made)) as app:
            begin = asyncio.get_running_loop().time()
            await app.run(12)
            assert asyncio.get_running_loop().time() - begin == 2.0
        assert [instance.most for instance in made.made] == [3, 3]

    async def test_a_slow_replica_gets_less(self) -> None:
        """Work goes to whoever has room, so a replica that is four times as slow does a fifth."""
        made = Instances(0.4, 0.1)
        async with declare(replicas=2, concurrency=1).open(own=alto.per_replica(made)) as app:
            assert Counter(await app.run(20)) == {0: 4, 1: 16}

    async def test_requests_take_turns(self) -> None:
        """A small request that comes behind a large one does not wait for all of it."""
        made = Instances()
        async with declare(replicas=2, concurrency=1).open(own=alto.per_replica(made)) as app:
            large = app.stream(30)
            async with large:
                await anext(large)
                begin = asyncio.get_running_loop().time()
                await app.run(2)
                assert asyncio.get_running_loop().time() - begin <= 3.0
            assert idle(app.statistics())

    async def test_a_full_edge_holds_the_producer(self) -> None:
        """What waits for replicas counts against the capacity, as with one replica."""
        made, given = Instances(), 0

        @alto.stage
        async def endless(n: int) -> AsyncIterator[int]:
            nonlocal given
            for k in range(n):
                given += 1
                yield k

        @alto.stage(replicas=2, concurrency=1, router=RendezvousHash(levels=0))
        async def work(k: int, *, own: Instance) -> int:
            await own.work()
            return k

        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            return work(endless(n))

        async with alto.pipeline(many).open(own=alto.per_replica(made), capacity=4) as app:
            async with app.stream(100) as results:
                await anext(results)
                await anyio.sleep(0.5)
                # One done, one that runs, four that wait, one in the producer's hand.
                assert given == 7
            assert idle(app.statistics())

    async def test_a_hash_of_the_request_keeps_it_together(self) -> None:
        """Under RendezvousHash(levels=0) one replica does all of a request, and another does nothing."""
        made = Instances()
        pipeline = declare(replicas=2, concurrency=1, router=RendezvousHash(levels=0))
        async with pipeline.open(own=alto.per_replica(made)) as app:
            homes = [set(await app.run(5)) for _ in range(40)]
        assert all(len(home) == 1 for home in homes)
        assert len(set.union(*homes)) == 2

    async def test_a_generator_is_routed_too(self) -> None:
        """A stage that yields has replicas like any other."""
        made = Instances()

        @alto.stage(replicas=3, concurrency=1)
        async def work(k: int, *, own: Instance) -> AsyncIterator[int]:
            await own.work()
            yield own.number
            yield own.number

        async with pipeline_of(work).open(own=alto.per_replica(made)) as app:
            assert Counter(await app.run(6)) == {0: 4, 1: 4, 2: 4}

    async def test_each_app_has_a_router_of_its_own(self) -> None:
        """A router with a memory is copied for each open pipeline, so they do not disturb another."""
        pipeline = declare(replicas=2, concurrency=8, router=RoundRobinRouter())
        for _ in range(2):
            async with pipeline.open(own=alto.per_replica(Instances())) as app:
                assert await app.run(3) == [0, 1, 0]


class TestGroups:
    """A stage that gathers: each group is bound to one replica from its first piece on."""

    async def test_a_group_is_bound_at_its_first_piece(self) -> None:
        """The replica is chosen before the call can start, and the binding ends with the call."""
        seen = []

        @alto.stage
        async def slowly(n: int) -> AsyncIterator[int]:
            yield 0
            await anyio.sleep(5)
            yield 1

        @alto.stage
        async def late(n: int) -> int:
            await anyio.sleep(3)
            return n

        @alto.stage(replicas=2)
        async def gather(n: int, pieces: alto.Group[int], *, own: Instance) -> tuple[int, int]:
            seen.append(asyncio.get_running_loop().time())
            return own.number, len(await pieces.list())

        def both(n: alto.Stream[int]) -> alto.Stream[tuple[int, int]]:
            return gather(late(n), slowly(n))

        async with alto.pipeline(both).open(own=alto.per_replica(Instances())) as app:
            begin = asyncio.get_running_loop().time()
            async with app.stream(1) as results:
                await anyio.sleep(1)
                bound = [one.bound for one in app.statistics().stages["gather"].replicas]
                assert sorted(bound) == [0, 1]
                assert await results.list() == [(bound.index(1), 2)]
            assert seen == [begin + 3]
            assert idle(app.statistics())

    async def test_groups_of_one_request_spread(self) -> None:
        """Groups are bound one by one, so those of one request are at different replicas."""

        @alto.stage
        async def pieces(k: int) -> AsyncIterator[int]:
            yield k
            yield k

        @alto.stage(replicas=4, concurrency=1)
        async def gather(group: alto.Group[int], *, own: Instance) -> int:
            await group.list()
            await own.work()
            return own.number

        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            return gather(pieces(numbers(n)))

        async with alto.pipeline(many).open(own=alto.per_replica(Instances())) as app:
            begin = asyncio.get_running_loop().time()
            assert Counter(await app.run(8)) == {0: 2, 1: 2, 2: 2, 3: 2}
            assert asyncio.get_running_loop().time() - begin == 2.0

    async def test_an_empty_group_is_bound_and_fires(self) -> None:
        """A group without pieces has its call at some replica."""

        @alto.stage(replicas=3)
        async def gather(group: alto.Group[int], *, own: Instance) -> int:
            assert await group.list() == []
            return own.number

        async with pipeline_of(gather).open(own=alto.per_replica(Instances())) as app:
            assert await app.run(0) == [0]
            assert idle(app.statistics())

    async def test_bound_and_unbound_stages_are_told_apart(self) -> None:
        """Under keys that hash ancestry a bound stage keeps groups whole; items of it never split."""
        where: dict[tuple[int, int], set[int]] = {}

        @alto.stage
        async def pieces(k: int) -> AsyncIterator[int]:
            for _ in range(5):
                await anyio.sleep(0.1)
                yield k

        @alto.stage(replicas=3, router=RendezvousHash())
        async def gather(k: int, group: alto.Group[int], *, own: Instance) -> int:
            async for piece in group:
                where.setdefault((k, piece), set()).add(own.number)
            return own.number

        def many(n: alto.Stream[int]) -> alto.Stream[int]:
            ks = numbers(n)
            return gather(ks, pieces(ks))

        async with alto.pipeline(many).open(own=alto.per_replica(Instances())) as app:
            homes = await app.run(12)
            assert all(len(home) == 1 for home in where.values())
            assert len(set(homes)) == 3
            assert idle(app.statistics())

    async def test_leaving_a_request_releases_its_bindings(self) -> None:
        """Groups of a request that is left are bound to nobody any more."""

        @alto.stage
        async def forever(n: int) -> AsyncIterator[int]:
            for k in range(n):
                yield k
            await anyio.sleep_forever()

        @alto.stage
        async def never(n: int) -> int:
            await anyio.sleep_forever()
            return n

        @alto.stage(replicas=2)
        async def gather(n: int, pieces: alto.Group[int], *, own: Instance) -> int:
            return len(await pieces.list())

        def both(n: alto.Stream[int]) -> alto.Stream[int]:
            return gather(never(n), forever(n))

        async with alto.pipeline(both).open(own=alto.per_replica(Instances())) as app:
            async with app.stream(3):
                await anyio.sleep(1)
                assert app.statistics().open_groups == 1
                assert sum(o.bound for o in app.statistics().stages["gather"].replicas) == 1
            assert idle(app.statistics())


class TestRouters:
    """Routers of one's own."""

    async def test_it_is_told_what_it_needs(self) -> None:
        """A router sees stage, request, path, value, and the loads of the replicas."""
        seen: list[RoutedItem] = []

        class Mine:
            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                seen.append(item)
                assert [load.number for load in replicas] == [0, 1]
                assert all(load.slots == 2 for load in replicas)
                assert any(load.free for load in replicas)
                return item.path[0] % len(replicas)

        seen_by = Mine()
        seen_by.__class__.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
        pipeline = declare(replicas=2, concurrency=2, router=seen_by)
        async with pipeline.open(own=alto.per_replica(Instances())) as app:
            assert await app.run(4) == [0, 1, 0, 1]
        assert [(one.stage, one.path, one.value, one.group) for one in seen] == [
            ("work", (k,), k, False) for k in range(4)
        ]

    async def test_a_broken_router_fails_the_request_alone(self) -> None:
        """A request whose item cannot be routed fails with the reason; others go on."""

        class Picky:
            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                return 7 if item.value == 13 else 0

        pipeline = declare(replicas=2, router=Picky())
        async with pipeline.open(own=alto.per_replica(Instances())) as app:
            good = app.stream(5)
            with pytest.raises(
                alto.errors.RoutingError, match=r"'work'.*Picky.choose\(\) returned 7"
            ):
                await app.run(20)
            async with good:
                assert await good.list() == [0] * 5
            assert idle(app.statistics())

    async def test_a_router_that_fails_for_a_group_fails_its_request(self) -> None:
        """A group that cannot be bound fails its request; the others go on."""

        class Raises:
            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                if item.request in bad:
                    raise LookupError("no idea")
                return 0

        bad: set[int] = set()

        @alto.stage(replicas=2, router=Raises())
        async def gather(group: alto.Group[int], *, own: Instance) -> int:
            return len(await group.list())

        async with pipeline_of(gather).open(own=alto.per_replica(Instances())) as app:
            assert await app.run(3) == [3]
            handle = app.stream(3)
            bad.add(handle._request.number)
            good = app.run(4)
            with pytest.raises(
                alto.errors.RoutingError, match=r"Raises.choose\(\) raised LookupError"
            ):
                async with handle:
                    await handle.list()
            assert await good == [4]
            assert idle(app.statistics())

    async def test_a_failing_replica_draws_nothing(self) -> None:
        """Calls that fail at once do not make their replica look quick."""

        @alto.stage(replicas=2, concurrency=1)
        async def work(k: int, *, own: Instance) -> int:
            if own.number == 0:
                raise OSError
            await own.work()
            return k

        def whole(n: alto.Stream[int]) -> alto.Stream[int]:
            return work(n)

        async with alto.pipeline(whole).open(own=alto.per_replica(Instances(0.1, 0.1))) as app:
            results = [r async for r in app.map(range(40), concurrency=1)]
        assert sum(r.error is not None for r in results) == 20

    async def test_a_router_that_cannot_be_copied_is_refused(self) -> None:
        """The message names stage and router, and says what to do."""

        class Locked:
            def __init__(self) -> None:
                self.lock = threading.Lock()

            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                return 0

        with pytest.raises(alto.ResourceError, match=r"'work': its router Locked.*__deepcopy__"):
            async with declare(replicas=2, router=Locked()).open(own=Instance(0)):
                pytest.fail("opened")

    async def test_a_whole_number_of_any_kind_is_an_index(self) -> None:
        """What can be used as an index is one, such as NumPy's numbers."""

        class Number:
            def __index__(self) -> int:
                return 1

        class Numbered:
            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                return Number()  # type: ignore[return-value]

        pipeline = declare(replicas=2, router=Numbered())
        async with pipeline.open(own=alto.per_replica(Instances())) as app:
            assert await app.run(3) == [1, 1, 1]

    def test_what_is_no_router_is_refused(self) -> None:
        """A class, or an object without choose(), is refused where it is given."""
        with pytest.raises(alto.GraphError, match=r"made: RoundRobinRouter\(\)"):
            alto.stage(router=RoundRobinRouter)
        with pytest.raises(alto.GraphError, match="must be a router"):
            alto.stage(router=object())
        with pytest.raises(alto.GraphError, match=r"replicas=\.\.\.\) must be a whole number >= 1"):
            alto.stage(replicas=0)


class TestEnds:
    """What a request leaves, and when it has ended."""

    @pytest.mark.parametrize("capacity", [1, 2])
    async def test_a_group_that_is_left_while_a_routed_stage_waits_for_room(
        self, capacity: int
    ) -> None:
        """Dropping what one group needs goes on with the next, and does not go round for ever."""

        @alto.stage
        async def pieces(k: int) -> AsyncIterator[int]:
            for _ in range(6):
                yield k

        @alto.stage(replicas=2)
        async def passed(k: int) -> int:
            return k

        @alto.stage(concurrency=1)
        async def slow(k: int) -> int:
            await anyio.sleep(1)
            return k

        @alto.stage
        async def early(group: alto.Group[int]) -> int:
            async for piece in group:
                if piece == 0:
                    await anyio.sleep(1.5)
                return piece
            raise AssertionError

        def whole(n: alto.Stream[int]) -> alto.Stream[int]:
            return early(slow(passed(pieces(numbers(n)))))

        async with alto.pipeline(whole).open(capacity=capacity) as app:
            assert await app.run(2) == [0, 1]
            assert idle(app.statistics())

    async def test_a_request_ends_after_all_its_calls(self) -> None:
        """Also those that wait for one replica while nobody needs what they give."""
        ran = []

        class Eldest:
            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                return 0

        @alto.stage
        async def none(n: int) -> AsyncIterator[int]:
            if n < 0:
                yield n
            await anyio.sleep(1)

        @alto.stage(replicas=2, concurrency=1, router=Eldest())
        async def side(n: int) -> int:
            await anyio.sleep(5)
            ran.append(n)
            return n

        @alto.stage
        async def join(a: int, b: int) -> int:
            return a + b

        def whole(n: alto.Stream[int]) -> alto.Stream[int]:
            return join(side(n), none(n))

        async with alto.pipeline(whole).open() as app:
            begin = asyncio.get_running_loop().time()
            one, two = app.stream(1), app.stream(2)
            async with one, two:
                assert await two.list() == []
                assert asyncio.get_running_loop().time() - begin == 10.0
                assert ran == [1, 2]
                assert await one.list() == []
            assert idle(app.statistics())


class TestScaling:
    """Replicas come and go while requests run."""

    async def test_new_replicas_take_what_waits(self) -> None:
        """A stage that is scaled up finishes what waits in the time of its new width."""
        made = Instances()
        async with declare(replicas=2, concurrency=1).open(own=alto.per_replica(made)) as app:
            begin = asyncio.get_running_loop().time()
            async with app.stream(16) as results:
                await anyio.sleep(1.5)
                await app.scale("work", 6)
                homes = await results.list()
            # 2 until 1 s, 2 more until 2 s, 4 from 1.5 s on, then six at a time.
            assert asyncio.get_running_loop().time() - begin == 4.0
            assert set(homes) == set(range(6))

    async def test_one_replica_becomes_several(self) -> None:
        """A stage declared with one replica can be scaled in the middle of a request."""
        made = Instances()
        async with declare(concurrency=1).open(own=alto.per_replica(made)) as app:
            async with app.stream(9) as results:
                await anyio.sleep(0.5)
                await app.scale("work", 3)
                homes = await results.list()
            assert set(homes) == {0, 1, 2}
            assert idle(app.statistics())
            assert Counter(await app.run(6)) == {0: 2, 1: 2, 2: 2}
        assert [instance.open for instance in made.made] == [False] * 3

    async def test_removed_ones_end_what_they_have(self) -> None:
        """A replica that goes gets nothing new, ends its calls, and then gives its resource back."""
        made = Instances(5.0, 5.0, 5.0)
        async with declare(replicas=3, concurrency=1).open(own=alto.per_replica(made)) as app:
            begin = asyncio.get_running_loop().time()
            async with app.stream(6) as results:
                await anyio.sleep(1)
                await app.scale("work", 1)
                now = app.statistics().stages["work"].replicas
                assert [(one.number, one.draining) for one in now] == [
                    (0, False), (1, True), (2, True),
                ]  # fmt: skip
                assert [instance.open for instance in made.made] == [True] * 3
                homes = await results.list()
            assert Counter(homes) == {0: 4, 1: 1, 2: 1}
            assert asyncio.get_running_loop().time() - begin == 20.0
            assert [instance.open for instance in made.made] == [True, False, False]
            assert len(app.statistics().stages["work"].replicas) == 1
            assert app.statistics().stages["work"].done == 6

    async def test_what_waits_for_a_removed_one_goes_elsewhere(self) -> None:
        """Items that a router had given to a replica which goes are routed anew."""

        class Eldest:
            def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
                return 0

        made = Instances()
        pipeline = declare(replicas=2, concurrency=1, router=Eldest())
        async with pipeline.open(own=alto.per_replica(made)) as app:
            ((_, node),) = [one for one in app._host.named_nodes() if one[0] == "work"]
            async with app.stream(6) as results:
                await anyio.sleep(0.5)
                node.drain(0, app._host.runs_at(node))
                assert Counter(await results.list()) == {0: 1, 1: 5}
            assert idle(app.statistics())

    async def test_bound_groups_stay_where_they_are(self) -> None:
        """A group at a replica that goes is gathered there to its end."""

        @alto.stage
        async def slowly(k: int) -> AsyncIterator[int]:
            for n in range(4):
                await anyio.sleep(1)
                yield n

        @alto.stage(replicas=2)
        async def gather(group: alto.Group[int], *, own: Instance) -> tuple[int, int]:
            count = 0
            async for _ in group:
                assert own.open
                count += 1
            return own.number, count

        def many(n: alto.Stream[int]) -> alto.Stream[tuple[int, int]]:
            return gather(slowly(numbers(n)))

        made = Instances()
        async with alto.pipeline(many).open(own=alto.per_replica(made)) as app:
            async with app.stream(4, order="ancestry") as results:
                await anyio.sleep(1.5)
                await app.scale("gather", 1)
                assert Counter(await results.list()) == {(0, 4): 2, (1, 4): 2}
            assert await app.run(2) == [(0, 4), (0, 4)]
            assert [instance.open for instance in made.made] == [True, False]

    async def test_numbers_are_never_used_again(self) -> None:
        """A replica that comes after others went has a number of its own."""
        made = Instances()
        async with declare(replicas=3).open(own=alto.per_replica(made)) as app:
            await app.scale("work", 1)
            await app.scale("work", 2)
            numbers = [one.number for one in app.statistics().stages["work"].replicas]
            assert numbers == [0, 3]

    async def test_a_failing_factory_changes_nothing(self) -> None:
        """Scaling up that fails leaves the replicas there were, and gives back what was made."""
        made = Instances()

        def factory(number: int) -> Any:
            if number == 3:
                raise OSError("no such index")
            return made(number)

        async with declare(replicas=2).open(own=alto.per_replica(factory)) as app:
            before = app.statistics()
            with pytest.raises(
                alto.ResourceError, match=r"'work'.*'own' of replica 3.*OSError: no such index"
            ):
                await app.scale("work", 4)
            assert app.statistics() == before
            assert [instance.open for instance in made.made] == [True, True, False]
            assert set(await app.run(6)) == {0, 1}

    @pytest.mark.parametrize("replicas", [0, -1, 1.5, True, "3"])
    async def test_a_wrong_number_is_refused(self, replicas: Any) -> None:
        """Fewer than one replica, or what is no number, is refused, and nothing changes."""
        async with declare(replicas=2).open(own=alto.per_replica(Instances())) as app:
            with pytest.raises(ValueError, match="replicas"):
                await app.scale("work", replicas)
            assert len(app.statistics().stages["work"].replicas) == 2

    async def test_an_unknown_stage_is_refused(self) -> None:
        """The message names what there is, or what was probably meant."""
        async with declare(replicas=2).open(own=alto.per_replica(Instances())) as app:
            with pytest.raises(ValueError, match=r"no stage 'wrok'; did you mean 'work'\?"):
                await app.scale("wrok", 2)
            with pytest.raises(ValueError, match=r"no stage 'zzz'; it has 'numbers', 'work'"):
                await app.scale("zzz", 2)

    async def test_a_closed_app_is_not_scaled(self) -> None:
        """Scaling needs an open app."""
        app = declare().open(own=alto.per_replica(Instances()))
        with pytest.raises(alto.Closed):
            await app.scale("work", 2)
        async with app:
            pass
        with pytest.raises(alto.Closed):
            await app.scale("work", 2)

    async def test_closing_interrupts_scaling(self) -> None:
        """An app that closes while a new replica is being made gives up on that one."""
        entered = []

        @asynccontextmanager
        async def slow(number: int) -> AsyncIterator[Instance]:
            entered.append(number)
            try:
                if number:
                    await anyio.sleep_forever()
                yield Instance(number)
            finally:
                entered.remove(number)

        async with anyio.create_task_group() as tasks:
            async with declare().open(own=alto.per_replica(slow)) as app:

                async def scale() -> None:
                    with pytest.raises(alto.Closed):
                        await app.scale("work", 2)

                tasks.start_soon(scale)
                await anyio.sleep(1)
                assert entered == [0, 1]
            assert entered == []

    async def test_cancelled_scaling_changes_nothing(self) -> None:
        """Scaling that is cancelled gives back what it had begun."""
        entered = []

        @asynccontextmanager
        async def slow(number: int) -> AsyncIterator[Instance]:
            entered.append(number)
            try:
                if number == 2:
                    await anyio.sleep_forever()
                yield Instance(number)
            finally:
                entered.remove(number)

        async with declare().open(own=alto.per_replica(slow)) as app:
            with anyio.move_on_after(1):
                await app.scale("work", 3)
            assert entered == [0]
            assert len(app.statistics().stages["work"].replicas) == 1


class TestResources:
    """What each replica has of its own."""

    async def test_every_kind_of_factory(self) -> None:
        """Async and plain context managers, awaitables and plain values, with or without number."""
        left = []

        @asynccontextmanager
        async def a() -> AsyncIterator[str]:
            yield "a"
            left.append("a")

        @contextmanager
        def b(number: int) -> Iterator[str]:
            yield f"b{number}"
            left.append(f"b{number}")

        async def c(number: int) -> str:
            await anyio.sleep(1)
            return f"c{number}"

        def d() -> str:
            return "d"

        @alto.stage(replicas=2, router=RoundRobinRouter())
        async def work(k: int, *, a: str, b: str, c: str, d: str, e: str) -> str:
            return a + b + c + d + e

        made = {name: alto.per_replica(f) for name, f in [("a", a), ("b", b), ("c", c), ("d", d)]}
        async with pipeline_of(work).open(**made, e="e") as app:
            assert await app.run(2) == ["ab0c0de", "ab1c1de"]
            assert left == []
        assert sorted(left) == ["a", "a", "b0", "b1"]

    async def test_replicas_make_their_resources_side_by_side(self) -> None:
        """Opening takes as long as the slowest replica, not as all together."""

        async def slow(number: int) -> Instance:
            await anyio.sleep(5)
            return Instance(number)

        begin = asyncio.get_running_loop().time()
        async with declare(replicas=4).open(own=alto.per_replica(slow)):
            assert asyncio.get_running_loop().time() - begin == 5.0

    async def test_a_failing_factory_names_replica_and_reason(self) -> None:
        """What the others had made is given back, what they still make is given up; nothing is open."""
        events = []

        @asynccontextmanager
        async def factory(number: int) -> AsyncIterator[Instance]:
            events.append(f"in {number}")
            try:
                await anyio.sleep(number)
                if number == 1:
                    msg = "disk full"
                    raise OSError(msg)
                yield Instance(number)
            finally:
                events.append(f"out {number}")

        app = declare(replicas=3).open(own=alto.per_replica(factory))
        begin = asyncio.get_running_loop().time()
        with pytest.raises(
            alto.ResourceError, match=r"'work': resource 'own' of replica 1.*OSError: disk full"
        ) as caught:
            async with app:
                pytest.fail("opened")
        assert isinstance(caught.value.__cause__, OSError)
        assert asyncio.get_running_loop().time() - begin == 1.0
        assert sorted(events) == ["in 0", "in 1", "in 2", "out 0", "out 1", "out 2"]
        with pytest.raises(alto.Closed):
            await app.run(1)

    async def test_what_is_made_is_checked(self) -> None:
        """A factory that makes something else than the stage asks for is refused."""
        with pytest.raises(
            alto.ResourceError, match=r"resource 'own' of replica 0 must be Instance, not int"
        ):
            async with declare().open(own=alto.per_replica(lambda: 3)):
                pytest.fail("opened")

    async def test_what_leaving_raises_is_heard(self) -> None:
        """An error while a resource is given back leaves the app; the other is given back."""
        left = []

        @asynccontextmanager
        async def factory(number: int) -> AsyncIterator[Instance]:
            yield Instance(number)
            left.append(number)
            if number == 0:
                msg = "cannot flush"
                raise OSError(msg)

        with pytest.raises(OSError, match="cannot flush"):
            async with declare(replicas=2).open(own=alto.per_replica(factory)) as app:
                await app.run(1)
        assert sorted(left) == [0, 1]
        with pytest.raises(KeyError) as caught:
            async with declare(replicas=2).open(own=alto.per_replica(factory)):
                raise KeyError("mine")
        assert "cannot flush" in caught.value.__notes__[0]

    async def test_giving_up_does_not_cut_what_was_made(self) -> None:
        """What a replica had made is given back undisturbed, also where that has to wait."""
        events = []

        @asynccontextmanager
        async def factory(number: int) -> AsyncIterator[str]:
            events.append(f"in {number}")
            try:
                yield ""
            finally:
                await anyio.sleep(1)
                events.append(f"out {number}")

        async def slow(number: int) -> str:
            await anyio.sleep(1 + number)
            if not number:
                msg = "no"
                raise OSError(msg)
            return ""

        @alto.stage(replicas=2)
        async def work(k: int, *, a: str, b: str) -> str:
            return a + b

        with pytest.raises(alto.ResourceError, match="OSError: no"):
            async with pipeline_of(work).open(
                a=alto.per_replica(factory), b=alto.per_replica(slow)
            ):
                pytest.fail("opened")
        assert sorted(events) == ["in 0", "in 1", "out 0", "out 1"]

    async def test_a_factory_that_was_cancelled_inside_is_an_error_like_any(self) -> None:
        """A CancelledError of a resource's own is no cancellation of the app."""

        async def factory(number: int) -> Instance:
            if number == broken:
                raise asyncio.CancelledError
            return Instance(number)

        broken = 0
        with pytest.raises(alto.ResourceError, match="replica 0 could not be made: CancelledError"):
            async with declare().open(own=alto.per_replica(factory)):
                pytest.fail("opened")
        broken = 1
        async with declare().open(own=alto.per_replica(factory)) as app:
            with pytest.raises(alto.ResourceError, match="replica 1"):
                await app.scale("work", 2)
            assert await app.run(2) == [0, 0]

    async def test_a_resource_that_was_cancelled_while_it_left_is_heard(self) -> None:
        """A CancelledError from a resource's end leaves the app as an error."""

        @asynccontextmanager
        async def factory(number: int) -> AsyncIterator[Instance]:
            yield Instance(number)
            raise asyncio.CancelledError

        with pytest.raises(RuntimeError, match=r"'work': a resource of replica 0 raised Cancelled"):
            async with declare().open(own=alto.per_replica(factory)) as app:
                await app.run(1)

    async def test_replicas_that_have_gone_leave_nothing_in_memory(self) -> None:
        """Their resources are forgotten while the app goes on."""
        alive: weakref.WeakSet[Instance] = weakref.WeakSet()

        def factory(number: int) -> Instance:
            instance = Instance(number)
            alive.add(instance)
            return instance

        async with declare().open(own=alto.per_replica(factory)) as app:
            for _ in range(5):
                await app.scale("work", 3)
                await app.run(6)
                await app.scale("work", 1)
                await anyio.sleep(1)
            gc.collect()
            assert len(alive) == 1

    async def test_an_engine_of_its_own(self) -> None:
        """An engine that a factory gives is started with its replica, and stopped with it."""
        engines = []

        def factory() -> alto.LLM:
            engines.append(Scripted(lambda prompt: ["yes"]))
            return alto.LLM(engines[-1])

        @alto.stage(replicas=2, concurrency=1)
        async def ask(k: int, *, llm: alto.LLM) -> str:
            return await llm.text(str(k))

        async with pipeline_of(ask).open(llm=alto.per_replica(factory)) as app:
            assert await app.run(4) == ["yes"] * 4
        for engine in engines:
            with pytest.raises(alto.Closed):
                engine.check_health()
        assert len(engines) == 2

    async def test_bound_with_the_stage(self) -> None:
        """Stage.bind takes a factory as open() does."""
        made = Instances()

        @alto.stage(replicas=2, concurrency=1)
        async def work(k: int, *, own: Instance) -> int:
            await own.work()
            return own.number

        async with pipeline_of(work.bind(own=alto.per_replica(made))).open() as app:
            assert set(await app.run(4)) == {0, 1}
        assert [instance.open for instance in made.made] == [False, False]

    async def test_an_inner_pipeline_has_its_own(self) -> None:
        """Replicas of a pipeline that a stage calls make their resources when the app opens."""
        made = Instances()
        inner = declare(replicas=2, concurrency=1)

        @alto.stage
        async def outer(n: int) -> list[int]:
            return await inner.run(n)

        def whole(n: alto.Stream[int]) -> alto.Stream[list[int]]:
            return outer(n)

        async with alto.pipeline(whole).open(own=alto.per_replica(made)) as app:
            assert len(made.made) == 2
            assert [sorted(one) for one in await app.run(4)] == [[0, 0, 1, 1]]
            await app.scale("many.work", 3)
            assert [set(one) for one in await app.run(6)] == [{0, 1, 2}]
        assert [instance.open for instance in made.made] == [False] * 3

    async def test_an_inner_pipeline_is_scaled_before_its_first_call(self) -> None:
        """The stages of a pipeline that a stage mentions can be scaled at once."""

        @alto.stage
        async def inside(k: int) -> int:
            return k

        inner = pipeline_of(inside)

        @alto.stage
        async def outer(n: int) -> list[int]:
            return await inner.run(n)

        def whole(n: alto.Stream[int]) -> alto.Stream[list[int]]:
            return outer(n)

        async with alto.pipeline(whole).open() as app:
            await app.scale("many.inside", 2)
            assert await app.run(3) == [[0, 1, 2]]

    async def test_an_inner_pipeline_that_nobody_saw_is_refused(self) -> None:
        """Where open() could not see that a pipeline is called, the error says what to do."""
        hidden = [declare(replicas=2).declaration]
        pipelines = {"p": declare(replicas=2)}
        assert hidden

        @alto.stage
        async def outer(n: int, *, own: Instance) -> list[int]:
            return await pipelines["p"].run(n)

        def whole(n: alto.Stream[int]) -> alto.Stream[list[int]]:
            return outer(n)

        async with alto.pipeline(whole).open(own=alto.per_replica(Instances())) as app:
            with pytest.raises(alto.StageError, match="open\\(\\) did not see"):
                await app.run(2)

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            (3, "takes a function"),
            (lambda a, b: a, "asks for a, b"),
            (lambda *, key: key, "asks for key"),
        ],
    )
    def test_what_cannot_make_is_refused(self, factory: Any, message: str) -> None:
        """A factory that cannot be called with a number or nothing is refused at once."""
        with pytest.raises(alto.ResourceError, match=message):
            alto.per_replica(factory)

    def test_its_repr_names_the_factory(self) -> None:
        """For messages."""
        assert repr(alto.per_replica(declare)) == "per_replica(declare)"
        assert repr(LeastWork()) == "LeastWork()"
