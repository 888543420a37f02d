"""What `alto._runtime.machines.liveness` promises: dead is what every consumer has released."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from alto._runtime.machines.liveness import Liveness
from alto.model import Path

PATHS: list[Path] = [path for n in range(4) for path in product((0, 1), repeat=n)]
"""All paths of a small tree."""


class DemandMachine(RuleBasedStateMachine):
    """Any releases, against the list of all that was ever released."""

    @initialize(consumers=st.integers(1, 3))
    def start(self, consumers: int) -> None:
        """Everything is needed."""
        self.consumers = consumers
        self.demand = Liveness(consumers)
        self.said: set[tuple[int, Path]] = set()

    def is_released(self, consumer: int, path: Path) -> bool:
        """Whether *consumer* ever released *path* or something above it."""
        return any((consumer, path[:n]) in self.said for n in range(len(path) + 1))

    def dead(self) -> set[Path]:
        """Everything that all have released."""
        return {
            path
            for path in PATHS
            if all(self.is_released(consumer, path) for consumer in range(self.consumers))
        }

    @rule(pick=st.integers(0, 5), path=st.sampled_from(PATHS))
    def release(self, pick: int, path: Path) -> None:
        """A consumer needs less: what is dead now and was not before is named, once."""
        consumer = pick % self.consumers
        before = self.dead()
        answer = self.demand.release(consumer, path)
        self.said.add((consumer, path))
        now = self.dead()
        assert sorted(answer) == sorted(outermost(now - before))

    @invariant()
    def agrees(self) -> None:
        """Every path is released or dead exactly where the model says so."""
        self.demand.check()
        dead = self.dead()
        assert self.demand.dead == outermost(dead)
        for path in PATHS:
            assert is_dead(self.demand, path) == (path in dead)
            for consumer in range(self.consumers):
                expected = self.is_released(consumer, path)
                assert self.demand.released(consumer, path) == expected


def is_dead(demand: Liveness, path: Path) -> bool:
    """Return whether *path* or something above it is dead."""
    return any(path[:n] in demand.dead for n in range(len(path) + 1))


def outermost(paths: set[Path]) -> set[Path]:
    """Those that are not below another."""
    return {path for path in paths if not any(path[:n] in paths for n in range(len(path)))}


@pytest.mark.slow
def test_paths_are_dead_exactly_when_all_consumers_released_them() -> None:
    """Whatever is released in whatever order, dead is what everybody has let go."""
    run_state_machine_as_test(DemandMachine, settings=settings(stateful_step_count=15))


def test_an_ancestor_dies_at_once_when_there_is_one_consumer() -> None:
    """The only consumer's word is enough."""
    assert Liveness(1).release(0, (1,)) == [(1,)]


def test_an_ancestor_dies_with_the_last_of_its_consumers() -> None:
    """As long as one consumer needs it, an ancestor lives."""
    demand = Liveness(2)
    assert demand.release(1, (1,)) == []
    assert not is_dead(demand, (1,))
    assert demand.release(0, (1,)) == [(1,)]
    assert is_dead(demand, (1,))


def test_only_the_common_part_dies_when_consumers_release_at_different_heights() -> None:
    """Where one has released an ancestor and another some descendants, those descendants die."""
    demand = Liveness(2)
    demand.release(0, (0, 1))
    demand.release(0, (0, 2))
    assert sorted(demand.release(1, (0,))) == [(0, 1), (0, 2)]
    assert not is_dead(demand, (0,))


def test_a_descendant_dies_when_the_other_consumer_released_above_it() -> None:
    """A release below what the others have let go kills just that."""
    demand = Liveness(2)
    demand.release(0, ())
    assert demand.release(1, (3, 4)) == [(3, 4)]


def test_dead_descendants_are_not_named_again_when_their_ancestor_dies() -> None:
    """What was dead is swallowed by the ancestor that dies, and stays dead."""
    demand = Liveness(1)
    demand.release(0, (0, 1))
    assert demand.release(0, (0,)) == [(0,)]
    assert demand.dead == {(0,)}
    assert is_dead(demand, (0, 1))


@pytest.mark.parametrize("again", [(0,), (0, 5)])
def test_nothing_dies_when_it_was_released_before(again: Path) -> None:
    """Releasing the same again, or something below it, changes nothing."""
    demand = Liveness(1)
    demand.release(0, (0,))
    assert demand.release(0, again) == []
    assert demand.dead == {(0,)}


@pytest.mark.parametrize("consumers", [0, -1])
def test_a_demand_is_refused_when_there_is_nobody(consumers: int) -> None:
    """A stream has at least one consumer."""
    with pytest.raises(ValueError, match=f"need at least one consumer, got {consumers}"):
        Liveness(consumers)
