"""What `alto._runtime.machines.reorder` promises: all that is certain is out at once, and nothing before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

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

from alto._runtime.machines.reorder import ReorderBuffer
from alto.model import Path

ancestors = st.sampled_from([(), (7,), (0, 1)])
picks = st.integers(0, 999)  # Modulo the number of choices there are.
Tree = tuple[int, dict[Path, int], list[Path]]
"""Levels, the children of every inner node, the suffixes of the pieces in order."""


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A group of one to four levels; inner nodes may be empty."""
    levels = draw(st.integers(1, 4), label="levels")
    widest = (8, 4, 3, 2)[levels - 1]
    children: dict[Path, int] = {}
    layer: list[Path] = [()]
    for _ in range(levels):
        some = st.lists(st.integers(0, widest), min_size=len(layer), max_size=len(layer))
        children.update(zip(layer, draw(some), strict=True))
        layer = [(*node, k) for node in layer for k in range(children[node])]
    return levels, children, layer


def piece(suffix: Path) -> str:
    """What is at *suffix*."""
    return f"piece {suffix}"


class OrderMachine(RuleBasedStateMachine):
    """Any interleaving of pieces, counts and reads, against the certain pieces from scratch."""

    @initialize(tree=trees(), ancestor=ancestors)
    def plant(self, tree: Tree, ancestor: Path) -> None:
        """The group of *ancestor* is to come; nothing of it is known yet."""
        self.levels, self.children, self.suffixes = tree
        self.ancestor = ancestor
        self.out: deque[str] = deque()
        self.order = ReorderBuffer(self.levels, self.out, skip=len(ancestor))
        self.todo: list[tuple[Path, int | None]] = [
            *self.children.items(),
            *((suffix, None) for suffix in self.suffixes),
        ]
        self.here: set[Path] = set()
        self.counts: dict[Path, int] = {}
        self.read: list[str] = []

    def certain(self) -> list[str]:
        """The pieces in order up to the first gap in what is known."""
        return [piece(suffix) for suffix in self.known(()) if suffix is not None]

    def is_complete(self) -> bool:
        """Whether there is no gap."""
        return None not in self.known(())

    def known(self, node: Path) -> Iterator[Path | None]:
        """Suffixes at and below *node* in order, then one None if something is unknown there."""
        if len(node) == self.levels:
            yield node if node in self.here else None
            return
        k = 0
        while node not in self.counts or k < self.counts[node]:
            for suffix in self.known((*node, k)):
                yield suffix
                if suffix is None:
                    return
            k += 1

    @precondition(lambda self: self.todo)
    @rule(pick=picks)
    def happens(self, pick: int) -> None:
        """A piece arrives, or a node is counted; that completes the group or not."""
        event = self.todo.pop(pick % len(self.todo))
        note(f"{event = }")
        path, children = event
        if children is None:
            self.here.add(path)
            answer = self.order.arrived(self.ancestor + path, piece(path))
        else:
            self.counts[path] = children
            answer = self.order.counted(self.ancestor + path, children)
        assert answer is self.is_complete()

    @precondition(lambda self: not self.todo)
    @rule(tree=trees(), ancestor=ancestors)
    def starts_again(self, tree: Tree, ancestor: Path) -> None:
        """All is told; another group comes, at another order."""
        self.plant(tree, ancestor)

    @precondition(lambda self: self.out)
    @rule()
    def reads(self) -> None:
        """Somebody takes the first piece; what is out belongs to the reader."""
        self.read.append(self.out.popleft())

    @invariant()
    def gives_what_is_certain(self) -> None:
        """Everything that is certain is out, in order, and nothing else."""
        self.order.check()
        certain = self.certain()
        assert self.read + list(self.out) == certain
        assert len(self.order) == len(self.here) - len(certain)


@pytest.mark.slow
def test_pieces_leave_exactly_when_certain_under_any_interleaving() -> None:
    """A piece leaves with the very event that makes it certain, whatever came before."""
    run_state_machine_as_test(OrderMachine, settings=settings(stateful_step_count=30))


@pytest.mark.slow
@given(tree=trees(), data=st.data())
def test_all_pieces_are_out_in_order_when_all_is_told(tree: Tree, data: st.DataObject) -> None:
    """The last event, and no other, completes the group; all is out in order, nothing is kept."""
    levels, children, suffixes = tree
    out: deque[Path] = deque()
    order = ReorderBuffer(levels, out)
    events = data.draw(
        st.permutations([*children.items(), *((suffix, None) for suffix in suffixes)])
    )
    completes = [
        order.arrived(path, path) if count is None else order.counted(path, count)
        for path, count in events
    ]
    assert completes == [False] * (len(events) - 1) + [True]
    assert list(out) == sorted(suffixes)
    assert (len(order), order._counts) == (0, {})


def test_pieces_leave_at_once_when_they_come_in_order() -> None:
    """With one level no count is needed to release what comes in order."""
    out: deque[str] = deque()
    order = ReorderBuffer(1, out)
    for k in range(3):
        assert order.arrived((k,), f"{k}") is False
        assert out.pop() == f"{k}"


def test_pieces_wait_when_one_before_them_is_missing() -> None:
    """A gap holds back what comes after it, and only until it is filled."""
    out: deque[str] = deque()
    order = ReorderBuffer(1, out)
    order.arrived((2,), "c")
    order.arrived((1,), "b")
    assert (list(out), len(order)) == ([], 2)
    order.arrived((0,), "a")
    assert (list(out), len(order)) == (["a", "b", "c"], 0)


def test_pieces_of_a_group_below_an_ancestor_are_ordered_by_what_follows_it() -> None:
    """What all paths of the group begin with is skipped."""
    out: deque[str] = deque()
    order = ReorderBuffer(2, out, skip=1)
    order.arrived((8, 0, 1), "b")
    order.arrived((8, 0, 0), "a")
    assert list(out) == ["a", "b"]
    assert order.counted((8, 0), 2) is False
    assert order.counted((8,), 1) is True


@pytest.mark.parametrize("levels", [1, 2])
def test_an_empty_group_is_complete_when_it_is_counted(levels: int) -> None:
    """A group without children is complete at once."""
    assert ReorderBuffer(levels, deque()).counted((), 0) is True


def test_a_count_releases_nothing_when_there_is_one_level() -> None:
    """A group of one level needs its count only to end, not to release."""
    out: deque[str] = deque()
    order = ReorderBuffer(1, out)
    order.arrived((1,), "b")
    assert order.counted((), 2) is False
    assert (list(out), len(order)) == ([], 1)
    assert order.arrived((0,), "a") is True


def test_pieces_below_the_next_node_wait_when_the_one_before_is_not_counted() -> None:
    """Nobody knows that a node has no more children before it is counted."""
    out: deque[str] = deque()
    order = ReorderBuffer(2, out)
    order.arrived((0, 0), "a")
    order.arrived((1, 0), "b")
    assert list(out) == ["a"]
    order.counted((0,), 1)
    assert list(out) == ["a", "b"]


def test_empty_nodes_are_stepped_over_when_counted() -> None:
    """Nodes without children are passed at every level, and keep nothing back."""
    out: deque[str] = deque()
    order = ReorderBuffer(3, out)
    order.arrived((1, 1, 0), "a")
    order.counted((1, 0), 0)
    assert not out
    order.counted((0,), 0)
    assert list(out) == ["a"]


def test_pieces_go_where_they_were_told_to() -> None:
    """Released pieces are appended to the queue that was given, after what is in it."""
    out = deque(["before"])
    order = ReorderBuffer(1, out)
    order.arrived((0,), "a")
    assert order.out is out
    assert list(out) == ["before", "a"]


def test_an_order_is_refused_when_there_are_no_levels() -> None:
    """A group has at least one level."""
    with pytest.raises(ValueError, match="need levels >= 1, got 0"):
        ReorderBuffer(0, deque())
