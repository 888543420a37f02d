"""What `alto._runtime.machines.completion` promises: a group closes exactly once, exactly when it is complete."""

from __future__ import annotations

from collections import Counter

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

from alto._runtime.machines.completion import CompletionCounter
from alto.model import Path

picks = st.integers(0, 999)  # Modulo the number of choices there are.
Event = tuple[Path, int | None]
"""A node with the number of its children, or an item with None."""
Forest = tuple[int, int, list[Path], dict[Path, int], list[Path]]
"""``top``, ``depth``, the ancestors, the children of every inner node, the items."""


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Up to three groups of one to three levels; inner nodes may be empty."""
    top = draw(st.integers(0, 2), label="top")
    levels = draw(st.integers(1, 3), label="levels")
    ancestor = st.tuples(*[st.integers(0, 1)] * top)
    ancestors = draw(st.lists(ancestor, min_size=1, max_size=3, unique=True), label="ancestors")
    widest = 4 - levels if len(ancestors) > 1 else 5 - levels
    children: dict[Path, int] = {}
    layer = ancestors
    for _ in range(levels):
        some = st.lists(st.integers(0, widest), min_size=len(layer), max_size=len(layer))
        children.update(zip(layer, draw(some), strict=True))
        layer = [(*node, k) for node in layer for k in range(children[node])]
    return top, top + levels, ancestors, children, layer


def feed(closure: CompletionCounter, event: Event) -> Path | None:
    """Tell *closure* of *event*."""
    path, children = event
    return closure.arrived(path) if children is None else closure.counted(path, children)


class ClosureMachine(RuleBasedStateMachine):
    """Any interleaving of arrivals and counts, against completeness worked out from scratch."""

    @initialize(forest=forests())
    def plant(self, forest: Forest) -> None:
        """Some groups are to come; nothing of them is known yet."""
        self.top, self.depth, self.ancestors, self.children, self.items = forest
        self.closure = CompletionCounter(self.top, self.depth)
        self.todo: list[Event] = [*self.children.items(), *((item, None) for item in self.items)]
        nodes = [*self.children, *self.items]
        self.paths = sorted({node[:n] for node in nodes for n in range(len(node) + 1)})
        self.here: set[Path] = set()
        self.counts: dict[Path, int] = {}
        self.closed: list[Path] = []
        self.dropped: list[Path] = []

    def is_complete(self, path: Path) -> bool:
        """Whether everything at and below *path* is here, by the definition."""
        if len(path) == self.depth:
            return path in self.here
        return path in self.counts and self.done(path) == self.counts[path]

    def done(self, parent: Path) -> int:
        """How many children of *parent* are complete."""
        return sum(self.is_complete((*parent, k)) for k in range(self.children[parent]))

    def is_dropped(self, path: Path) -> bool:
        """Whether *path* was dropped, or something above it."""
        return any(path[: len(d)] == d for d in self.dropped)

    def is_open(self, node: Path) -> bool:
        """Whether something is known of *node* and something is missing."""
        known = node in self.counts or self.done(node) > 0
        return known and not self.is_complete(node) and not self.is_dropped(node)

    @precondition(lambda self: self.todo)
    @rule(pick=picks)
    def happens(self, pick: int) -> None:
        """An item arrives, or a node is counted; that closes its group or nothing."""
        event = self.todo.pop(pick % len(self.todo))
        note(f"{event = }")
        path, children = event
        ancestor = path[: self.top]
        answer = feed(self.closure, event)
        if children is None:
            self.here.add(path)
        else:
            self.counts[path] = children
        assert answer == (ancestor if self.is_complete(ancestor) else None)
        if answer is not None:
            self.closed.append(answer)

    @precondition(lambda self: not self.todo)
    @rule(forest=forests())
    def starts_again(self, forest: Forest) -> None:
        """All is told; other groups come, at another closure."""
        self.plant(forest)

    @precondition(lambda self: len(self.dropped) < 2)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        """Somebody gives up on an ancestor: at, above or below the groups."""
        ancestor = self.paths[pick % len(self.paths)]
        note(f"{ancestor = }")
        self.closure.drop(ancestor)
        self.dropped.append(ancestor)
        self.todo = [event for event in self.todo if not self.is_dropped(event[0])]

    @precondition(lambda self: any(map(self.is_open, self.children)))
    @rule(pick=picks)
    def miscounts(self, pick: int) -> None:
        """A second count, or one below what has arrived, is refused and changes nothing."""
        wrong = [
            (node, self.children[node] if node in self.counts else self.done(node) - 1)
            for node in filter(self.is_open, self.children)
        ]
        node, children = wrong[pick % len(wrong)]
        note(f"{node = }, {children = }")
        with pytest.raises(ValueError, match="is counted as"):
            self.closure.counted(node, children)

    @invariant()
    def closes_what_is_complete(self) -> None:
        """The groups that have closed are those that are complete, each closed once."""
        assert sorted(self.closed) == sorted(filter(self.is_complete, self.ancestors))

    @invariant()
    def knows_open_nodes_only(self) -> None:
        """State is held for open nodes, and for nothing else."""
        self.closure.check()
        assert len(self.closure) == sum(map(self.is_open, self.children))


@pytest.mark.slow
def test_groups_close_exactly_when_complete_under_any_interleaving() -> None:
    """Each group closes with the very event that completes it, whatever came before."""
    run_state_machine_as_test(ClosureMachine, settings=settings(stateful_step_count=30))


@pytest.mark.slow
@given(forest=forests(), data=st.data())
def test_all_groups_have_closed_once_when_all_is_told(forest: Forest, data: st.DataObject) -> None:
    """When every event has come, every group has closed once and nothing is kept."""
    top, depth, ancestors, children, items = forest
    events: list[Event] = [*children.items(), *((item, None) for item in items)]
    closure = CompletionCounter(top, depth)
    answers = [feed(closure, event) for event in data.draw(st.permutations(events))]
    assert Counter(a for a in answers if a is not None) == Counter(ancestors)
    assert len(closure) == 0


def test_a_group_closes_with_its_last_item_when_counted_before() -> None:
    """A count that is known closes nothing until the last of the children is here."""
    closure = CompletionCounter(0, 1)
    assert closure.counted((), 2) is None
    assert closure.arrived((1,)) is None
    assert closure.arrived((0,)) == ()


def test_a_group_closes_with_its_count_when_all_items_are_here() -> None:
    """Items alone close nothing, however many there are; the count does."""
    closure = CompletionCounter(1, 2)
    assert [closure.arrived((5, k)) for k in range(3)] == [None] * 3
    assert closure.counted((5,), 3) == (5,)


def test_a_group_closes_at_once_when_it_is_empty() -> None:
    """A node with no children is complete the moment it is counted."""
    assert CompletionCounter(1, 2).counted((7,), 0) == (7,)


def test_a_group_closes_when_all_its_inner_nodes_are_empty() -> None:
    """Nodes with no children complete their parent, at any level."""
    closure = CompletionCounter(0, 3)
    assert closure.counted((), 2) is None
    assert closure.counted((0,), 1) is None
    assert closure.counted((0, 0), 0) is None
    assert closure.counted((1,), 0) == ()


def test_groups_close_apart_when_interleaved() -> None:
    """What arrives below one ancestor says nothing about another."""
    closure = CompletionCounter(1, 2)
    assert closure.arrived((0, 0)) is None
    assert closure.counted((1,), 1) is None
    assert closure.arrived((1, 0)) == (1,)
    assert closure.counted((0,), 1) == (0,)


def test_nothing_closes_when_the_group_was_dropped() -> None:
    """A dropped ancestor is forgotten; its neighbour is not."""
    closure = CompletionCounter(1, 2)
    closure.counted((0,), 1)
    closure.counted((1,), 1)
    closure.drop((0,))
    assert len(closure) == 1
    assert closure.arrived((1, 0)) == (1,)


def test_counted_refuses_a_second_count() -> None:
    """A node that is open is counted once; the message says what was known of it."""
    closure = CompletionCounter(0, 1)
    closure.counted((), 2)
    with pytest.raises(ValueError, match=r"^\(\) has 0 of 2 children and is counted as 2$"):
        closure.counted((), 2)


def test_counted_refuses_fewer_children_than_are_complete() -> None:
    """A node cannot have fewer children than have arrived."""
    closure = CompletionCounter(0, 1)
    closure.arrived((0,))
    closure.arrived((1,))
    with pytest.raises(ValueError, match="has 2 of -1 children and is counted as 1"):
        closure.counted((), 1)


@pytest.mark.parametrize(("top", "depth"), [(-1, 1), (0, 0), (1, 1), (2, 1)])
def test_a_closure_is_refused_when_items_are_not_below_ancestors(top: int, depth: int) -> None:
    """Items must have longer paths than the ancestors they are grouped by."""
    with pytest.raises(ValueError, match=f"need 0 <= top < depth, got top={top}, depth={depth}"):
        CompletionCounter(top, depth)


def test_a_closure_says_what_it_watches() -> None:
    """The lengths it was made with can be read."""
    closure = CompletionCounter(1, 3)
    assert (closure.top, closure.depth, len(closure)) == (1, 3, 0)
