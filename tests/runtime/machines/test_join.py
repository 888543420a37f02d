"""What `alto._runtime.machines.join` promises: a call starts once, exactly when it has all it needs."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from alto._runtime.machines.join import Join, JoinedCall
from alto.model import Path

picks = st.integers(0, 999)  # Modulo the number of choices there are.


class Event(NamedTuple):
    """Something that a join is told."""

    kind: str
    """``arrived``, ``counted`` or ``begun``."""
    slot: int
    """Number of the input; -1 where it is ``begun``."""
    path: Path
    """Where it happens."""


class World(NamedTuple):
    """All that a join will be told of one request."""

    depth: int
    """Length of a call's path."""
    inputs: list[int | None]
    """As :class:`Join` takes them."""
    children: dict[Path, int]
    """Of every node above the calls."""
    calls: list[Path]
    """All calls there will be, in ancestry order."""
    events: list[Event]
    """Everything that happens, in some order."""


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to three inputs of any depths, and what comes in on them; nodes may be empty."""
    depth = draw(st.integers(0, 3), label="depth")
    says_when = draw(st.sampled_from([depth, None]), label="says when")
    lengths = st.one_of(st.none(), st.integers(0, depth))
    inputs = draw(st.lists(lengths, max_size=2), label="inputs")
    inputs.insert(draw(st.integers(0, len(inputs)), label="place"), says_when)
    children: dict[Path, int] = {}
    layer: list[Path] = [()]
    for _ in range(depth):
        some = st.lists(st.integers(0, 5 - depth), min_size=len(layer), max_size=len(layer))
        children.update(zip(layer, draw(some), strict=True))
        layer = [(*node, k) for node in layer for k in range(children[node])]
    nodes = [*children, *layer]
    events = [Event("begun", -1, call) for call in layer if None in inputs]
    for slot, length in enumerate(inputs):
        if length is not None:
            events += [Event("arrived", slot, node) for node in nodes if len(node) == length]
            events += [Event("counted", slot, node) for node in children if len(node) >= length]
    return World(depth, inputs, children, layer, events)


def value(slot: int, path: Path) -> str:
    """The item of input *slot* at *path*."""
    return f"{slot} at {path}"


def arguments(world: World, call: Path) -> list[str | None]:
    """What the call at *call* is started with."""
    return [None if d is None else value(slot, call[:d]) for slot, d in enumerate(world.inputs)]


def feed(join: Join, event: Event, children: dict[Path, int]) -> list[JoinedCall]:
    """Tell *join* of *event*."""
    if event.kind == "arrived":
        return join.arrived(event.slot, event.path, value(event.slot, event.path))
    if event.kind == "begun":
        return join.begun(event.path)
    join.counted(event.slot, event.path, children[event.path])
    return []


def kept(join: Join) -> int:
    """How many entries *join* holds in all its containers."""
    tables = (join._stored, join._waiting, join._pending, join._spent, *join._broadcasts.values())
    return sum(map(len, tables))


class JoinMachine(RuleBasedStateMachine):
    """Any interleaving of events, against starts and items in use worked out from scratch."""

    @initialize(world=worlds())
    def begin(self, world: World) -> None:
        """A request is to come; nothing of it is known yet."""
        self.world = world
        self.join = Join(world.depth, world.inputs)
        self.todo = list(world.events)
        self.done: set[Event] = set()
        self.started: set[Path] = set()
        self.dropped: list[Path] = []
        self.lost: set[tuple[int, Path]] = set()

    def is_dropped(self, path: Path) -> bool:
        """Whether *path* was dropped, or something above it."""
        return any(path[: len(d)] == d for d in self.dropped)

    def has_all(self, call: Path) -> bool:
        """Whether everything that *call* needs has come."""
        begun = None not in self.world.inputs or Event("begun", -1, call) in self.done
        return begun and all(
            Event("arrived", slot, call[:length]) in self.done
            for slot, length in enumerate(self.world.inputs)
            if length is not None
        )

    def is_served(self, slot: int, path: Path, *, excused: bool) -> bool:
        """Whether *slot* is known to be needed by no call at or below *path* any more.

        What was dropped before it was served is *excused*, or waited for in vain.
        """
        if (slot, path) in self.lost:
            return excused
        if len(path) == self.world.depth:
            return path in self.started
        return Event("counted", slot, path) in self.done and all(
            self.is_served(slot, (*path, k), excused=excused)
            for k in range(self.world.children[path])
        )

    def held(self, *, excused: bool) -> int:
        """How many items have come that a call may still need."""
        return sum(
            event.kind == "arrived"
            and not self.is_dropped(event.path)
            and not self.is_served(event.slot, event.path, excused=excused)
            for event in self.done
        )

    @precondition(lambda self: self.todo)
    @rule(pick=picks)
    def happens(self, pick: int) -> None:
        """Something happens: the calls that have all they need now start, in order, no other."""
        event = self.todo.pop(pick % len(self.todo))
        note(f"{event = }")
        starts = feed(self.join, event, self.world.children)
        self.done.add(event)
        expected = [
            (call, arguments(self.world, call))
            for call in self.world.calls
            if call not in self.started and not self.is_dropped(call) and self.has_all(call)
        ]
        assert starts == expected
        self.started |= {call for call, _ in starts}

    @precondition(lambda self: not self.todo)
    @rule(world=worlds())
    def starts_again(self, world: World) -> None:
        """All is told; another request comes, at another join."""
        self.begin(world)

    @precondition(lambda self: len(self.dropped) < 2)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        """Nobody needs the calls below an ancestor: those that something was here for are named.

        Inputs that reach below the ancestor are silent there from now on. The counts for others
        may still come.
        """
        nodes = [*self.world.children, *self.world.calls]
        ancestor = nodes[pick % len(nodes)]
        note(f"{ancestor = }")
        known = {e.path for e in self.done if e.kind != "counted"}
        expected = [
            call
            for call in self.world.calls
            if call[: len(ancestor)] == ancestor
            and not self.is_dropped(call)
            and call not in self.started
            and call in known
        ]
        assert sorted(self.join.drop(ancestor)) == expected
        self.lost |= {
            (slot, ancestor)
            for slot in range(len(self.world.inputs))
            if not self.is_served(slot, ancestor, excused=True)
        }
        self.dropped.append(ancestor)
        self.todo = [e for e in self.todo if not self.is_silent(e, ancestor)]

    def is_silent(self, event: Event, dropped: Path) -> bool:
        """Whether *event* does not happen, since *dropped* is not needed."""
        length = self.world.inputs[event.slot] if event.slot >= 0 else self.world.depth
        assert length is not None
        return length >= len(dropped) and event.path[: len(dropped)] == dropped

    @invariant()
    def keeps_what_is_in_use(self) -> None:
        """Items are kept while a call that needs them may still start, and no longer."""
        self.join.check()
        assert self.join.held == self.held(excused=True)

    @invariant()
    def keeps_nothing_when_all_is_told(self) -> None:
        """At the end, nothing is kept of what was not dropped."""
        if not self.todo and self.dropped in ([], [()]):
            assert kept(self.join) == 0


@pytest.mark.slow
def test_calls_start_exactly_when_they_have_all_under_any_interleaving() -> None:
    """A call starts with the very event that completes it, and items go when they are used up."""
    run_state_machine_as_test(JoinMachine, settings=settings(stateful_step_count=30))


@pytest.mark.slow
@given(world=worlds(), data=st.data())
def test_every_call_has_started_once_when_all_is_told(world: World, data: st.DataObject) -> None:
    """When every event has come, every call has started once, in full, and nothing is kept."""
    join = Join(world.depth, world.inputs)
    starts: list[JoinedCall] = []
    for event in data.draw(st.permutations(world.events)):
        starts += feed(join, event, world.children)
    assert sorted(starts) == [(call, arguments(world, call)) for call in world.calls]
    assert join.held == 0
    assert kept(join) == 0


def test_a_call_starts_when_the_last_of_its_items_is_here() -> None:
    """Two full inputs are matched by equal paths, and kept until then."""
    join = Join(1, [1, 1])
    assert join.arrived(0, (3,), "a") == []
    assert join.arrived(1, (4,), "y") == []
    assert join.held == 2
    assert join.arrived(1, (3,), "x") == [((3,), ["a", "x"])]
    assert join.held == 1


def test_calls_start_in_ancestry_order_when_a_shallow_item_comes_last() -> None:
    """One shallow item starts all calls that wait for it, in order, whatever came before."""
    join = Join(2, [1, 2])
    for call in [(0, 2), (0, 0), (1, 0), (0, 1)]:
        join.arrived(1, call, call[1])
    assert join.arrived(0, (0,), "a") == [((0, k), ["a", k]) for k in range(3)]
    assert join.held == 2


def test_a_shallow_item_serves_later_calls_when_it_came_first() -> None:
    """A shallow item is kept for calls that are still to come."""
    join = Join(1, [0, 1])
    assert join.arrived(0, (), "a") == []
    assert join.arrived(1, (0,), "x") == [((0,), ["a", "x"])]
    assert join.arrived(1, (1,), "y") == [((1,), ["a", "y"])]
    assert join.held == 1


def test_a_shallow_item_is_released_when_its_last_call_has_started() -> None:
    """An item goes with the last start below it, if it is known to be the last."""
    join = Join(1, [0, 1])
    join.arrived(0, (), "a")
    join.counted(0, (), 2)
    join.arrived(1, (1,), "y")
    assert join.held == 1
    join.arrived(1, (0,), "x")
    assert join.held == 0


def test_a_shallow_item_is_released_when_its_calls_are_counted_after_they_started() -> None:
    """An item goes with the count, if all calls below it have started."""
    join = Join(1, [0, 1])
    join.arrived(0, (), "a")
    join.arrived(1, (0,), "x")
    assert join.held == 1
    join.counted(0, (), 1)
    assert join.held == 0


@pytest.mark.parametrize("counted_first", [True, False])
def test_a_shallow_item_is_not_kept_when_there_are_no_calls(counted_first: bool) -> None:
    """An item above no calls at all is of no use, whether it or the count comes first."""
    join = Join(2, [1, 2])
    if counted_first:
        join.counted(0, (5,), 0)
    assert join.arrived(0, (5,), "a") == []
    if not counted_first:
        join.counted(0, (5,), 0)
    assert (join.held, kept(join)) == (0, 0)


def test_a_call_with_groups_starts_when_one_has_begun() -> None:
    """A stage with a group and an item needs both, and gets no value for the group."""
    join = Join(1, [1, None])
    assert join.begun((0,)) == []
    assert join.arrived(0, (0,), "a") == [((0,), ["a", None])]
    assert join.arrived(0, (1,), "b") == []
    assert join.begun((1,)) == [((1,), ["b", None])]


def test_a_call_with_groups_only_starts_when_one_has_begun() -> None:
    """Where there are groups only, the first to begin starts the call."""
    assert Join(1, [None, None]).begun((0,)) == [((0,), [None, None])]


def test_a_value_of_none_is_a_value() -> None:
    """Items may be None: they are matched, counted and dropped as any other."""
    join = Join(1, [1, 1])
    join.arrived(0, (0,), None)
    join.arrived(0, (1,), None)
    assert join.held == 2
    assert join.arrived(1, (0,), None) == [((0,), [None, None])]
    join.drop(())
    assert join.held == 0


def test_dropped_calls_are_forgotten_and_others_are_not() -> None:
    """Everything at and below the ancestor goes; what is beside it stays."""
    join = Join(2, [1, 2, 2])
    for parent in range(2):
        join.arrived(1, (parent, 0), "full")
        join.arrived(0, (parent,), "shallow")
    join.arrived(1, (1, 1), "full")
    assert join.held == 5
    assert sorted(join.drop((1,))) == [(1, 0), (1, 1)]
    assert join.held == 2
    assert join.arrived(2, (0, 0), "last") == [((0, 0), ["shallow", "full", "last"])]


def test_a_dropped_call_does_not_start_when_the_item_it_waited_for_comes() -> None:
    """Of the calls that wait for a shallow item, only those that are still needed start."""
    join = Join(1, [0, 1])
    join.arrived(1, (0,), "x")
    join.arrived(1, (1,), "y")
    assert join.drop((0,)) == [(0,)]
    assert join.arrived(0, (), "a") == [((1,), ["a", "y"])]


def test_an_item_above_no_calls_is_not_kept_when_something_else_was_dropped() -> None:
    """What is known to be of no use is forgotten below the ancestor, and only there."""
    join = Join(2, [1, 2])
    join.counted(0, (0,), 0)
    join.counted(0, (1,), 0)
    join.drop((1,))
    join.arrived(0, (0,), "shallow")
    assert (join.held, kept(join)) == (0, 0)


def test_a_shallow_item_is_released_when_its_last_call_is_dropped() -> None:
    """An item is not kept for calls that nobody needs any more."""
    join = Join(2, [1, 2])
    join.arrived(0, (0,), "shallow")
    join.arrived(1, (0, 0), "full")
    join.drop((0, 1))
    join.counted(0, (0,), 2)
    assert join.held == 0


@pytest.mark.parametrize("inputs", [[2], [0, 3], [-1, 1]])
def test_a_join_is_refused_when_an_input_does_not_fit(inputs: list[int | None]) -> None:
    """Items come at or above the calls, not below and not above the request."""
    with pytest.raises(ValueError, match="do not fit calls of depth 1"):
        Join(1, inputs)


@pytest.mark.parametrize("inputs", [[], [0], [0, 0]])
def test_a_join_is_refused_when_nothing_says_when_to_call(inputs: list[int | None]) -> None:
    """Shallow items alone do not say how many calls there are."""
    with pytest.raises(ValueError, match="says when to call at depth 1"):
        Join(1, inputs)
