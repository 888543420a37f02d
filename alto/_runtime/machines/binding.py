"""Which replica of a stage gets what, and for how long.

Theory of operation. A stage has replicas, numbered in the order in which they came; a number is
never used again. Two kinds of things are routed:

* *items* of a stage that does not gather: each is *placed* on its own, and counts until it has
  *ended*, or until it is *withdrawn* before it began;
* *groups* of a stage that gathers: a group is *bound* when its first piece comes (or when it turns
  out to be empty) and stays where it is until it is *released*. All inputs of the stage ask the
  same table, so they land together.

Which replica is chosen is the business of a router, which sees the replicas that take anything new.
Whatever it answers, a group that is bound is not asked about again, and counters change in the
step that chooses. A replica that is *drained* gets nothing new; it is *empty* when its last item has
ended and its last group was released.

How long a replica needs for an item is learnt from what it has ended, as a moving average over
about the last 16.
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
        router: Who picks.
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
        """Groups that are bound."""
        return len(self._bound)

    @property
    def live(self) -> Sequence[ReplicaLoad]:
        """Replicas that take something new, in order of their numbers; never changed in place."""
        return self._live

    @property
    def loads(self) -> Mapping[int, ReplicaLoad]:
        """All replicas by their number, those that drain included."""
        return self._loads

    # ---- replicas come and go

    def reserve(self) -> int:
        """A number for a replica that is being made."""
        self._next += 1
        return self._next - 1

    def add(self, number: int, slots: int) -> None:
        """Replica *number*, which can run *slots* calls at once, takes items from now on."""
        load = ReplicaLoad(number=number, slots=slots)
        self._loads[number] = load
        self._live = tuple(sorted((*self._live, load), key=lambda one: one.number))

    def drain(self, number: int) -> None:
        """A replica gets nothing new. Its groups stay. Idempotent.

        Raises:
            ValueError: It is the last one that takes anything.
        """
        load = self._loads[number]
        if load not in self._live:
            return
        if len(self._live) == 1:
            msg = f"replica {number} of stage {self._stage!r} is the last one"
            raise ValueError(msg)
        self._live = tuple(one for one in self._live if one is not load)

    def least_loaded(self, count: int) -> list[int]:
        """Which *count* replicas would go first: those with the least to do, then the youngest."""
        order = sorted(self._live, key=lambda load: (load.unfinished, -load.number))
        return [load.number for load in order[:count]]

    def is_drained(self, number: int) -> bool:
        """Return whether a replica takes nothing new, and has nothing left."""
        load = self._loads[number]
        return not load.unfinished and load not in self._live

    def forget(self, number: int) -> None:
        """A drained replica is gone."""
        assert self.is_drained(number), number
        del self._loads[number]

    # ---- what they are given

    def place(self, request: int, path: Path, value: object) -> int:
        """Give an item to a replica.

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
        """A replica has had *items* from before anybody counted."""
        load = self._loads[number]
        load.unfinished += items
        load.placed += items

    def ended(self, number: int, seconds: float | None = None) -> None:
        """An item has ended. What it took is learnt where it is said."""
        load = self._loads[number]
        load.unfinished -= 1
        if seconds is not None:
            self.record_time(number, seconds)

    def withdrawn(self, number: int) -> None:
        """An item that was placed will not begin there."""
        load = self._loads[number]
        load.unfinished -= 1
        load.placed -= 1

    def bind(self, request: int, path: Path, value: object) -> int:
        """The replica of a group, chosen when it is asked for the first time.

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
        """Bind a group that has no replica yet to a given one, without asking."""
        assert (request, path) not in self._bound
        load = self._loads[number]
        self._bound[request, path] = number
        load.unfinished += 1
        load.placed += 1
        load.bound += 1

    def release(self, request: int, path: Path) -> int:
        """A group is closed: nothing of it is left.

        Returns:
            The number of the replica that it was bound to.
        """
        number = self._bound.pop((request, path))
        load = self._loads[number]
        load.unfinished -= 1
        load.bound -= 1
        return number

    def record_time(self, number: int, seconds: float) -> None:
        """A call has ended at a replica, after it had been run for *seconds*."""
        load = self._loads[number]
        known = load.seconds
        load.seconds = seconds if known is None else known + (seconds - known) * _NEWEST

    def check(self) -> None:
        """Assert the invariants."""
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
    # -1 of what is no index; NumPy's whole numbers are.
    if isinstance(answer, bool):
        return -1
    try:
        return operator.index(answer)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return -1
