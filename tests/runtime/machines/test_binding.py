"""What `alto._runtime.machines.binding` promises: a group stays where it is, and everything is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from alto._runtime.machines.binding import Binding
from alto.errors import RoutingError
from alto.model import Path
from alto.protocols import ReplicaLoad, RoutedItem, Router
from alto.routing import LeastWork, PowerOfTwo, RendezvousHash, RoundRobinRouter

picks = st.integers(0, 999)  # Modulo the number of choices there are.
requests = st.integers(0, 2)
paths = st.lists(st.integers(0, 2), max_size=2).map(tuple)


class Recording:
    """Asks a router, and keeps what it was shown and what it said."""

    def __init__(self, router: Router) -> None:
        """Nothing was asked yet."""
        self.router = router
        self.asked: list[tuple[RoutedItem, list[int], int]] = []

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """As the router."""
        index = self.router.choose(item, replicas)
        self.asked.append((item, [load.number for load in replicas], index))
        return index


class BindingMachine(RuleBasedStateMachine):
    """Any events under any router, against plain dicts."""

    @initialize(
        kind=st.sampled_from([LeastWork, RoundRobinRouter, PowerOfTwo, RendezvousHash]),
        count=st.integers(1, 3),
    )
    def start(self, kind: type[Router], count: int) -> None:
        """A few replicas without anything to do."""
        self.router = Recording(kind())
        self.binding = Binding(self.router, "s")
        self.groups: dict[tuple[int, Path], int] = {}
        self.items: list[int] = []  # Of each unfinished item the replica.
        self.placed: Counter[int] = Counter()
        self.live: list[int] = []
        self.draining: set[int] = set()
        self.numbers = 0
        for _ in range(count):
            self.add(1)

    @rule(slots=st.integers(1, 3))
    def add(self, slots: int) -> None:
        """A replica comes, with a number that nobody had."""
        if len(self.live) == 5:
            return
        number = self.binding.reserve()
        assert number == self.numbers
        self.numbers += 1
        self.binding.add(number, slots)
        self.live.append(number)
        assert self.binding.loads[number].slots == slots

    @precondition(lambda self: len(self.live) > 1)
    @rule(pick=picks)
    def drain(self, pick: int) -> None:
        """A replica is to go: it gets nothing new, and keeps what it has."""
        number = self.live.pop(pick % len(self.live))
        self.binding.drain(number)
        self.binding.drain(number)  # Saying so twice changes nothing.
        self.draining.add(number)

    @precondition(lambda self: len(self.live) == 1)
    @rule()
    def the_last_one_stays(self) -> None:
        """The last replica that takes anything cannot be drained."""
        with pytest.raises(ValueError, match="last one"):
            self.binding.drain(self.live[0])

    @rule()
    def forget(self) -> None:
        """A drained replica that has nothing left is forgotten."""
        for number in sorted(self.draining):
            if self.binding.is_drained(number):
                self.binding.forget(number)
                self.draining.discard(number)

    @rule(request=requests, path=paths, free=st.integers(0, 3))
    def place(self, request: int, path: Path, free: int) -> None:
        """An item goes to the replica that the router says, and counts there."""
        for load in self.binding.live:
            load.free = free
        number = self.binding.place(request, path, "value")
        item, shown, index = self.router.asked[-1]
        assert shown == self.live
        assert number == self.live[index]
        assert (item.stage, item.request, item.path, item.group, item.value) == (
            "s", request, path, False, "value",
        )  # fmt: skip
        self.items.append(number)
        self.placed[number] += 1

    @precondition(lambda self: self.items)
    @rule(pick=picks, seconds=st.none() | st.floats(0, 10))
    def ended(self, pick: int, seconds: float | None) -> None:
        """An item ends."""
        number = self.items.pop(pick % len(self.items))
        before = self.binding.loads[number].seconds
        self.binding.ended(number, seconds)
        after = self.binding.loads[number].seconds
        if seconds is None:
            assert after == before
        elif before is None:
            assert after == seconds
        else:
            assert after == pytest.approx(before * 15 / 16 + seconds / 16)

    @precondition(lambda self: self.items)
    @rule(pick=picks)
    def withdrawn(self, pick: int) -> None:
        """An item will not begin, as if it had never been placed."""
        number = self.items.pop(pick % len(self.items))
        self.binding.withdrawn(number)
        self.placed[number] -= 1

    @rule(pick=picks, items=st.integers(0, 2))
    def count_existing(self, pick: int, items: int) -> None:
        """A replica has had something before anybody counted."""
        number = self.live[pick % len(self.live)]
        self.binding.count_existing(number, items)
        self.items += [number] * items
        self.placed[number] += items

    @rule(request=requests, path=paths)
    def bind(self, request: int, path: Path) -> None:
        """A group is bound once; asked again, it is where it was, whoever drains meanwhile."""
        asked = len(self.router.asked)
        number = self.binding.bind(request, path, None)
        if (request, path) in self.groups:
            assert number == self.groups[request, path]
            assert len(self.router.asked) == asked
        else:
            item, shown, index = self.router.asked[-1]
            assert item.group
            assert shown == self.live
            assert number == self.live[index]
            self.groups[request, path] = number
            self.placed[number] += 1

    @rule(request=requests, path=paths, pick=picks)
    def bind_to(self, request: int, path: Path, pick: int) -> None:
        """A group is bound to a given replica without asking."""
        if (request, path) in self.groups:
            return
        asked = len(self.router.asked)
        number = self.live[pick % len(self.live)]
        self.binding.bind_to(request, path, number)
        assert len(self.router.asked) == asked
        self.groups[request, path] = number
        self.placed[number] += 1

    @precondition(lambda self: self.groups)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        """A group closes, and its binding does not outlive it."""
        key = sorted(self.groups)[pick % len(self.groups)]
        assert self.binding.release(*key) == self.groups.pop(key)

    @rule(count=st.integers(0, 3))
    def least_loaded(self, count: int) -> None:
        """Those with the least to do go first, and of these the youngest."""
        loads = {n: self.load(n) for n in self.live}
        expected = sorted(self.live, key=lambda n: (loads[n], -n))[:count]
        assert self.binding.least_loaded(count) == expected

    def load(self, number: int) -> int:
        """Items and groups at a replica that have not ended."""
        return self.items.count(number) + list(self.groups.values()).count(number)

    @invariant()
    def agrees(self) -> None:
        """Every counter is what the events add up to; nothing is bound twice or forgotten."""
        self.binding.check()
        assert len(self.binding) == len(self.groups)
        assert [load.number for load in self.binding.live] == sorted(self.live)
        assert set(self.binding.loads) == set(self.live) | self.draining
        for number, load in self.binding.loads.items():
            assert load.number == number
            assert load.unfinished == self.load(number)
            assert load.bound == list(self.groups.values()).count(number)
            assert load.placed == self.placed[number]
            drained = number in self.draining and not self.load(number)
            assert self.binding.is_drained(number) == drained

    def teardown(self) -> None:
        """When everything has ended, all counters are back at zero."""
        for number in self.items:
            self.binding.ended(number)
        for key in self.groups:
            self.binding.release(*key)
        assert len(self.binding) == 0
        assert all(not (load.unfinished or load.bound) for load in self.binding.loads.values())


def test_any_events() -> None:
    """Under any router and any events the machine agrees with a naive model."""
    run_state_machine_as_test(
        BindingMachine, settings=settings(max_examples=200, stateful_step_count=40)
    )


class Says:
    """A router that says one thing."""

    def __init__(self, answer: object) -> None:
        """An exception is raised."""
        self.answer = answer

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """Say it."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize("answer", [2, -1, None, "0", 1.0, True, 99])
def test_an_answer_that_is_no_index_is_refused(answer: object) -> None:
    """The error names stage, router and answer; nothing is counted or bound."""
    binding = Binding(Says(answer), "rank")
    for _ in range(2):
        binding.add(binding.reserve(), 1)
    message = rf"stage 'rank' cannot route.*Says.choose\(\) returned {answer!r}.*0 to 1"
    with pytest.raises(RoutingError, match=message):
        binding.place(0, (), None)
    with pytest.raises(RoutingError, match=message):
        binding.bind(0, (), None)
    assert len(binding) == 0
    assert all(not load.unfinished for load in binding.loads.values())
    assert all(not load.placed for load in binding.loads.values())


def test_a_router_that_raises_is_named() -> None:
    """What it raised is the cause; nothing is counted."""
    binding = Binding(Says(KeyError("k")), "rank")
    binding.add(binding.reserve(), 1)
    with pytest.raises(RoutingError, match=r"Says.choose\(\) raised KeyError") as caught:
        binding.place(0, (), None)
    assert isinstance(caught.value.__cause__, KeyError)
    assert not binding.loads[0].unfinished


@given(st.lists(picks, min_size=1, max_size=20), st.integers(2, 5))
def test_one_router_sees_the_step_before(choices: list[int], count: int) -> None:
    """A choice is counted before the next one is asked for: least work deals items out evenly."""
    binding = Binding(LeastWork(), "s")
    for _ in range(count):
        binding.add(binding.reserve(), 8)
    for load in binding.live:
        load.free = 8
    for _ in choices:
        binding.place(0, (), None)
    unfinished = [load.unfinished for load in binding.live]
    assert max(unfinished) - min(unfinished) <= 1


def test_replicas_are_shown_in_order_of_their_numbers() -> None:
    """Whichever of two replicas that are being made is ready first."""
    binding = Binding(LeastWork(), "s")
    numbers = [binding.reserve() for _ in range(3)]
    for number in reversed(numbers):
        binding.add(number, 1)
    assert [load.number for load in binding.live] == numbers
