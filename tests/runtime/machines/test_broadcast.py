"""`alto._runtime.machines.broadcast`: an item is of use until the last call below it is done."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alto._runtime.machines.broadcast import Broadcast
from alto.model import Path


class UsesMachine(RuleBasedStateMachine):
    """Draw a tree of calls below two items, and tell what happens in any order."""

    TOP: ClassVar = 1

    @initialize(widths=st.lists(st.integers(0, 3), min_size=8, max_size=8))
    def begin(self, widths: list[int]) -> None:
        """Two items; inner nodes at depth 1 and 2, calls at depth 3."""
        self.uses = Broadcast(self.TOP)
        self.children: dict[Path, int] = {}
        for item in range(2):
            self.children[(item,)] = widths[item]
            for k in range(widths[item]):
                self.children[(item, k)] = widths[2 + item * 3 + k]
        calls = [(*p, k) for p, n in self.children.items() if len(p) == 2 for k in range(n)]
        self.todo: list[tuple[str, Path]] = [
            *(("done", call) for call in calls),
            *(("counted", p) for p in self.children),
        ]
        self.counted: set[Path] = set()
        self.done: set[Path] = set()
        self.ended: set[Path] = set()

    def is_done(self, path: Path) -> bool:
        """From scratch: whether nothing at or below *path* is still to come."""
        if path in self.done:
            return True
        if len(path) == 3 or path not in self.counted:
            return False
        return all(self.is_done((*path, k)) for k in range(self.children[path]))

    def expect(self, said: Path | None, item: Path) -> None:
        """The machine names an item exactly when it ends."""
        if self.is_done(item) and item not in self.ended:
            assert said == item
            self.ended.add(item)
        else:
            assert said is None

    @precondition(lambda self: self.todo)
    @rule(pick=st.integers(0, 100), twice=st.booleans())
    def happens(self, pick: int, *, twice: bool) -> None:
        """A call starts, maybe told twice, or a node is counted."""
        kind, path = self.todo.pop(pick % len(self.todo))
        item = path[: self.TOP]
        if item in self.ended:
            return
        if kind == "counted":
            self.counted.add(path)
            self.expect(self.uses.counted(path, self.children[path]), item)
            return
        self.done.add(path)
        self.expect(self.uses.done(path), item)
        if twice and item not in self.ended:
            assert self.uses.done(path) is None

    @precondition(lambda self: self.children)
    @rule(pick=st.integers(0, 100))
    def given_up(self, pick: int) -> None:
        """An inner node is dropped, whatever had started below it."""
        inner = [p for p in self.children if len(p) == 2 and p[:1] not in self.ended]
        if inner:
            path = inner[pick % len(inner)]
            self.done.add(path)
            self.todo = [e for e in self.todo if e[1][:2] != path]
            self.expect(self.uses.done(path), path[:1])

    @invariant()
    def holds(self) -> None:
        """Nothing is kept of items that are of no more use."""
        if hasattr(self, "uses"):
            self.uses.check()
            assert len(self.uses) <= 2 - len(self.ended)


TestUses = UsesMachine.TestCase


def test_an_item_without_calls_is_of_no_use() -> None:
    """A count of zero ends the item at once."""
    assert Broadcast(0).counted((), 0) == ()


def test_dropping_an_item_forgets_it() -> None:
    """Items at and below a dropped ancestor are forgotten, others are not."""
    uses = Broadcast(1)
    uses.counted((0,), 2)
    uses.counted((1,), 1)
    uses.drop((0,))
    assert len(uses) == 1
    assert uses.done((1, 0)) == (1,)
    uses.counted((2,), 1)
    uses.drop(())
    assert len(uses) == 0
