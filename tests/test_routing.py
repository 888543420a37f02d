"""Routers: what each of them looks at, and what moves when replicas come and go."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto import routing
from alto.model import Path
from alto.routing import (
    LeastWork,
    PowerOfTwo,
    RendezvousHash,
    ReplicaLoad,
    RoundRobinRouter,
    RoutedItem,
    Router,
    expected_work,
)


def item(request: int = 0, path: Path = ()) -> RoutedItem:
    """Something to be routed."""
    return RoutedItem(stage="s", request=request, path=path, group=False, value=None)


def loads(*numbers: int, slots: int = 1, free: int = 1) -> list[ReplicaLoad]:
    """Replicas of these numbers, with nothing to do."""
    return [ReplicaLoad(number=number, slots=slots, free=free) for number in numbers]


EVERY = [LeastWork(), RoundRobinRouter(), PowerOfTwo(), RendezvousHash()]


@pytest.mark.parametrize("router", EVERY, ids=repr)
def test_it_is_a_router_that_says_what_it_is(router: Router) -> None:
    """Each is a Router, chooses among one, and its repr makes it anew."""
    assert isinstance(router, Router)
    assert router.choose(item(), loads(7)) == 0
    assert type(router).__name__ + "(" in repr(router)


class TestLeastWork:
    """The replica that would be done first."""

    def test_the_least_unfinished_is_taken(self) -> None:
        """Of replicas that are alike, the one with the fewest unfinished calls per slot."""
        few, many = loads(0, 1, slots=4, free=2)
        many.unfinished = 2
        few.unfinished = 1
        assert LeastWork().choose(item(), [many, few]) == 1
        many.slots = 16
        assert LeastWork().choose(item(), [many, few]) == 0

    def test_a_slow_one_gets_less(self) -> None:
        """A replica that needs three times as long is taken when others have three times as much."""
        slow, fast = loads(0, 1)
        slow.seconds, fast.seconds = 3.0, 1.0
        fast.unfinished = 1
        assert LeastWork().choose(item(), [slow, fast]) == 1
        fast.unfinished = 3
        assert LeastWork().choose(item(), [slow, fast]) == 0

    def test_one_that_can_start_goes_first(self) -> None:
        """A replica with something free is taken before a quicker one that has none."""
        busy, idle = loads(0, 1)
        busy.free = 0
        idle.seconds, busy.seconds = 9.0, 1.0
        assert LeastWork().choose(item(), [busy, idle]) == 1

    def test_a_new_one_counts_as_average(self) -> None:
        """A replica that has ended nothing is taken to be as fast as the others on average."""
        new, known = loads(0, 1)
        known.seconds = 5.0
        known.placed = 1
        assert LeastWork().choose(item(), [known, new]) == 1
        new.unfinished = 1
        assert LeastWork().choose(item(), [known, new]) == 0

    def test_ties_go_to_the_one_that_had_least(self) -> None:
        """Equal replicas are taken in turns, also when nothing is ever unfinished."""
        replicas = loads(0, 1, 2)
        taken = []
        for _ in range(6):
            index = LeastWork().choose(item(), replicas)
            replicas[index].placed += 1
            taken.append(index)
        assert taken == [0, 1, 2, 0, 1, 2]

    def test_expected_work(self) -> None:
        """Calls it has and one more, times their length, over what it runs at once."""
        (load,) = loads(0, slots=4)
        load.unfinished = 7
        assert expected_work(load) == 2.0
        assert expected_work(load, seconds=3.0) == 6.0
        load.seconds = 0.5
        assert expected_work(load, seconds=3.0) == 1.0


class TestRoundRobin:
    """One after the other."""

    def test_it_goes_round(self) -> None:
        """Each replica is taken once before one is taken again."""
        router, replicas = RoundRobinRouter(), loads(0, 1, 2)
        assert [router.choose(item(), replicas) for _ in range(5)] == [0, 1, 2, 0, 1]

    def test_it_goes_on_where_it_was(self) -> None:
        """When replicas go or come, the next by number is taken."""
        router = RoundRobinRouter()
        assert router.choose(item(), loads(0, 1, 2)) == 0
        assert router.choose(item(), loads(0, 2, 5)) == 1
        assert router.choose(item(), loads(0, 5, 6)) == 1
        assert router.choose(item(), loads(0, 5)) == 0


class TestPowerOfTwo:
    """The better of two by lot."""

    def test_the_worst_is_never_taken(self) -> None:
        """Two different ones are compared, so the one with the most to do is never chosen."""
        router, replicas = PowerOfTwo(seed=1), loads(0, 1, 2, 3)
        replicas[2].unfinished = 9
        taken = Counter(router.choose(item(), replicas) for _ in range(400))
        assert set(taken) == {0, 1, 3}
        assert min(taken.values()) > 80

    def test_a_new_one_counts_as_average(self) -> None:
        """A replica that has ended nothing is compared as if it were as fast as the others."""
        new, known = loads(0, 1)
        known.seconds, known.unfinished = 0.01, 1
        assert {PowerOfTwo(seed=k).choose(item(), [known, new]) for k in range(9)} == {1}

    def test_the_seed_is_the_luck(self) -> None:
        """The same seed makes the same choices, another one others."""
        one, same, other = PowerOfTwo(seed=3), PowerOfTwo(seed=3), PowerOfTwo(seed=4)
        runs = [
            [r.choose(item(), loads(0, 1, 2, 3)) for _ in range(50)] for r in (one, same, other)
        ]
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]


keys = st.lists(
    st.tuples(st.integers(0, 50), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
    min_size=1, max_size=60, unique=True,
)  # fmt: skip
some_numbers = st.lists(st.integers(0, 30), min_size=2, max_size=8, unique=True).map(sorted)


class TestRendezvousHash:
    """The heaviest weight wins."""

    @given(keys, some_numbers, st.integers(0, 99))
    def test_only_what_must_moves(
        self, keys: list[tuple[int, Path]], numbers: list[int], pick: int
    ) -> None:
        """When a replica goes, only its own keys move; read backwards, when one comes, only to it."""
        gone = numbers[pick % len(numbers)]
        left = [number for number in numbers if number != gone]
        router = RendezvousHash()
        for request, path in keys:
            before = numbers[router.choose(item(request, path), loads(*numbers))]
            after = left[router.choose(item(request, path), loads(*left))]
            assert before in (after, gone)

    def test_it_is_even(self) -> None:
        """Of 4,000 calls each of 8 replicas gets 500, give or take a fifth."""
        router, replicas = RendezvousHash(), loads(*range(8))
        taken = Counter(
            router.choose(item(request, (k,)), replicas)
            for request in range(40)
            for k in range(100)
        )
        assert len(taken) == 8
        assert all(400 < count < 600 for count in taken.values())

    def test_levels_keep_relatives_together(self) -> None:
        """levels=1: all below one outermost item go together, and different ones spread."""
        router, replicas = RendezvousHash(levels=1), loads(*range(8))
        homes = {
            k: {router.choose(item(5, (k, j)), replicas) for j in range(20)} for k in range(20)
        }
        assert all(len(home) == 1 for home in homes.values())
        assert len(set.union(*homes.values())) > 3
        whole = RendezvousHash(levels=0)
        assert len({whole.choose(item(5, (k,)), replicas) for k in range(20)}) == 1

    @pytest.mark.parametrize("levels", [-1, True, 1.5, "a"])
    def test_levels_are_checked(self, levels: int) -> None:
        """What is no number of levels is refused."""
        with pytest.raises(ValueError, match="levels"):
            RendezvousHash(levels=levels)


def test_an_old_name_says_where_it_went() -> None:
    """RequestHash is a baseline of the benchmarks; RoundRobin has a name of its own."""
    with pytest.raises(ImportError, match=r"RendezvousHash\(levels=0\)"):
        from alto.routing import RequestHash  # type: ignore[attr-defined]  # noqa: F401, PLC0415
    with pytest.raises(ImportError, match="RoundRobinRouter"):
        _ = routing.RoundRobin
    assert not hasattr(routing, "no_such_name")
