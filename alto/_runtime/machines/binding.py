"""Binding of items and groups to the replicas of a stage.

Theory of operation. The replicas of a stage are numbered in the order in which they are made; a number
is never reused. Two kinds of things are routed:

* *items* of a stage that does not gather: each is *placed* by itself, and counts as unfinished until
  it has *ended*, or until it is *withdrawn* before it began;
* *groups* of a stage that gathers: a group is *bound* when its first piece arrives (or when it turns
  out to be empty), and stays at its replica until it is *released*. All inputs of the stage use the
  same table, so their groups go to one replica.

A router chooses the replica among those that are not draining. It is asked once per group, and the
counters change in the same step. A replica that is *draining* receives nothing new; it is *drained*
when its last item has ended and its last group was released.

The time that a replica needs for an item is a moving average over about its last 16 items.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Final

from alto._safe_text import shown
from alto.errors import RoutingError
from alto.model import Path
from alto.protocols import ReplicaLoad, RoutedItem, Router

__all__ = ("Binding",)

_NEWEST: Final = 1 / 16
"""Weight of the newest item in a replica's mean time."""


class Binding:
    """The replicas of one stage, their loads, and the groups that are bound to them.

    Args:
        router: Chooses a replica for each item and group.
        stage: Name of the stage, for messages.
    """

    __slots__ = ("_bound", "_live", "_loads", "_next", "_router", "_stage")

    def __init__(self, router: Router, stage: str) -> None:
        self._router = router
        self._stage = stage
        self._next = 0
        self._loads: dict[int, ReplicaLoad] = {}
        self._live: tuple[ReplicaLoad, ...] = ()
        self._bound: dict[tuple[int, Path], int] = {}

    def __len__(self) -> int:
        """Return the number of bound groups."""
        return len(self._bound)

    @property
    def live(self) -> Sequence[ReplicaLoad]:
        """Replicas that are not draining, in the order of their numbers; never changed in place."""
        return self._live

    @property
    def loads(self) -> Mapping[int, ReplicaLoad]:
        """All replicas by number, including those that drain."""
        return self._loads

    # ---- replicas come and go

    def reserve(self) -> int:
        """Return a number for a new replica."""
        self._next += 1
        return self._next - 1

    def add(self, number: int, slots: int) -> None:
        """Add replica *number*, which can run *slots* calls concurrently."""
        load = ReplicaLoad(number=number, slots=slots)
        self._loads[number] = load
        self._live = tuple(sorted((*self._live, load), key=lambda one: one.number))

    def drain(self, number: int) -> None:
        """Route nothing new to a replica. Its groups stay. Idempotent.

        Raises:
            ValueError: It is the last one that is not draining.
        """
        load = self._loads[number]
        if load not in self._live:
            return
        if len(self._live) == 1:
            msg = f"replica {number} of stage {self._stage!r} is the last one"
            raise ValueError(msg)
        self._live = tuple(one for one in self._live if one is not load)

    def least_loaded(self, count: int) -> list[int]:
        """Return the *count* replicas with the least to do; of equal ones the youngest."""
        order = sorted(self._live, key=lambda load: (load.unfinished, -load.number))
        return [load.number for load in order[:count]]

    def is_drained(self, number: int) -> bool:
        """Return whether a replica receives nothing new and has nothing left."""
        load = self._loads[number]
        return not load.unfinished and load not in self._live

    def forget(self, number: int) -> None:
        """Remove a drained replica."""
        assert self.is_drained(number), number
        del self._loads[number]

    # ---- routing

    def place(self, request: int, path: Path, value: object) -> int:
        """Place an item at a replica.

        Returns:
            The number of the replica.

        Raises:
            RoutingError: The router failed; nothing was counted.
        """
        load = self._choose(request, path, value, group=False)
        load.unfinished += 1
        load.placed += 1
        return load.number

    def count_existing(self, number: int, items: int) -> None:
        """Count *items* that a replica received before the stage was routed."""
        load = self._loads[number]
        load.unfinished += items
        load.placed += items

    def ended(self, number: int, seconds: float | None = None) -> None:
        """Record the end of an item, and the *seconds* that it took, if they are known."""
        load = self._loads[number]
        load.unfinished -= 1
        if seconds is not None:
            self.record_time(number, seconds)

    def withdrawn(self, number: int) -> None:
        """Withdraw an item that was placed and has not begun."""
        load = self._loads[number]
        load.unfinished -= 1
        load.placed -= 1

    def bind(self, request: int, path: Path, value: object) -> int:
        """Return the replica of a group, which is chosen at the first call.

        Raises:
            RoutingError: The router failed; nothing was bound.
        """
        number = self._bound.get((request, path))
        if number is None:
            load = self._choose(request, path, value, group=True)
            number = load.number
            self.bind_to(request, path, number)
        return number

    def bind_to(self, request: int, path: Path, number: int) -> None:
        """Bind an unbound group to replica *number*, without asking the router."""
        assert (request, path) not in self._bound
        load = self._loads[number]
        self._bound[request, path] = number
        load.unfinished += 1
        load.placed += 1
        load.bound += 1

    def release(self, request: int, path: Path) -> int:
        """Release a closed group.

        Returns:
            The number of the replica that it was bound to.
        """
        number = self._bound.pop((request, path))
        load = self._loads[number]
        load.unfinished -= 1
        load.bound -= 1
        return number

    def record_time(self, number: int, seconds: float) -> None:
        """Record that a call has run for *seconds* at a replica."""
        load = self._loads[number]
        known = load.seconds
        load.seconds = seconds if known is None else known + (seconds - known) * _NEWEST

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken."""
        assert self._live or not self._loads
        assert [load.number for load in self._live] == sorted(load.number for load in self._live)
        assert set(self._bound.values()) <= set(self._loads)
        for number, load in self._loads.items():
            assert load.number == number
            assert load.bound == sum(one == number for one in self._bound.values())
            assert 0 <= load.bound <= load.unfinished <= load.placed

    def _choose(self, request: int, path: Path, value: object, *, group: bool) -> ReplicaLoad:
        item = RoutedItem(stage=self._stage, request=request, path=path, group=group, value=value)
        live = self._live
        name = type(self._router).__name__
        try:
            index = self._router.choose(item, live)
        except Exception as error:
            raise RoutingError(self._stage, f"{name}.choose() raised {shown(error)}") from error
        if not 0 <= _index(index) < len(live):
            which = f"0 to {len(live) - 1}" if len(live) > 1 else "0"
            raise RoutingError(
                self._stage, f"{name}.choose() returned {shown(index)}, which is no index: {which}"
            )
        return live[index]


def _index(answer: object) -> int:
    # The answer as an index, -1 if it is none. NumPy's integers are accepted.
    if isinstance(answer, bool):
        return -1
    try:
        return operator.index(answer)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return -1
