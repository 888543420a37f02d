"""Joins by ancestry: matching the inputs of calls that need more than one.

Theory of operation. A stage is called once per path of length ``depth``. A call needs

* from every *full* input (its items have paths of that length) the item at exactly its path,
* from every *shallow* input (shorter paths) the item at the call's ancestor of that length; one
  item serves all calls below it,
* if the stage has groups: that one of them has begun (it has its first piece, or is complete).

The call starts when the last of these is there, exactly once, in whatever order they arrive. An item of a
shallow input is kept until every call that needs it has started or was dropped: ``counted`` says
how many children a node between the item and the calls has, and :class:`Broadcast` tracks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alto._runtime.machines.broadcast import Broadcast
from alto.model import Path

__all__ = ("Join", "JoinedCall")

JoinedCall = tuple[Path, list[Any]]
"""A call that can start: its path, and one value per input (None where the input is a group)."""


class _Pending:
    """A call with some of its inputs. Invariant: missing > 0."""

    __slots__ = ("missing", "values")

    def __init__(self, missing: int, values: list[Any]) -> None:
        self.missing = missing
        self.values = values


class Join:
    """Matcher of a stage's inputs by ancestry.

    Args:
        depth: Length of a call's path.
        inputs: Per input of the stage the length of its items' paths, or None for a group.

    Raises:
        ValueError: A length is greater than *depth*, or no input determines the calls.
    """

    __slots__ = (
        "_broadcasts",
        "_depth",
        "_full",
        "_group",
        "_inputs",
        "_pending",
        "_shallow",
        "_spent",
        "_stored",
        "_waiting",
        "held",
    )  # fmt: skip

    def __init__(self, depth: int, inputs: Sequence[int | None]) -> None:
        self._depth = depth
        self._inputs = tuple(inputs)
        self._full = sum(d == depth for d in inputs)
        self._group = None in inputs
        self._shallow = tuple((k, d) for k, d in enumerate(inputs) if d is not None and d < depth)
        if any(d is not None and not 0 <= d <= depth for d in inputs):
            msg = f"inputs of depths {self._inputs} do not fit calls of depth {depth}"
            raise ValueError(msg)
        if not (self._full or self._group):
            msg = f"no input of {self._inputs} says when to call at depth {depth}"
            raise ValueError(msg)
        self._stored: dict[tuple[int, Path], Any] = {}
        self._waiting: dict[tuple[int, Path], list[Path]] = {}
        self._pending: dict[Path, _Pending] = {}
        self._broadcasts = {k: Broadcast(d) for k, d in self._shallow}
        # Ancestors all of whose calls are done though their item has not arrived: it will be ignored.
        self._spent: set[tuple[int, Path]] = set()
        self.held = 0
        """Number of items kept: shallow ones in use and full ones whose call cannot start yet."""

    def arrived(self, slot: int, path: Path, value: Any, /) -> list[JoinedCall]:  # noqa: ANN401
        """Record the arrival of an item of input *slot*.

        Returns:
            The calls that can start now, in ancestry order.
        """
        if len(path) == self._depth:
            self.held += 1
            return self._met(path, slot, value)
        key = (slot, path)
        if key in self._spent:
            self._spent.discard(key)
            return []
        self._stored[key] = value
        self.held += 1
        starts: list[JoinedCall] = []
        for call in sorted(self._waiting.pop(key, ())):
            starts += self._filled(call, self._pending[call], slot, value)
        return starts

    def begun(self, path: Path, /) -> list[JoinedCall]:
        """Record, once per call, that a group of the call at *path* has its first piece or is complete.

        Returns:
            The calls that can start now.
        """
        return self._met(path, None, None)

    def counted(self, slot: int, parent: Path, children: int, /) -> None:
        """Record the children of the node at *parent*, at or below an item of shallow input *slot*."""
        self._release(slot, self._broadcasts[slot].counted(parent, children))

    def drop(self, ancestor: Path, /) -> list[Path]:
        """Forget every call at and below *ancestor*.

        Returns:
            The calls that had some of their inputs, in no order.
        """
        size = len(ancestor)
        gone = [p for p in self._pending if p[:size] == ancestor]
        for path in gone:
            pending = self._pending.pop(path)
            self.held -= self._items(pending)
        for key, calls in list(self._waiting.items()):
            calls[:] = [c for c in calls if c[:size] != ancestor]
            if not calls:
                del self._waiting[key]
        for key in [k for k in self._stored if k[1][:size] == ancestor]:
            del self._stored[key]
            self.held -= 1
        self._spent = {k for k in self._spent if k[1][:size] != ancestor}
        for slot, broadcast in self._broadcasts.items():
            if size <= broadcast.top:
                broadcast.drop(ancestor)
            else:
                self._release(slot, broadcast.done(ancestor))
        return gone

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken."""
        assert all(p.missing > 0 for p in self._pending.values())
        full = sum(self._items(p) for p in self._pending.values())
        assert self.held == len(self._stored) + full, (self.held, self._stored, full)
        assert self.held >= 0
        for broadcast in self._broadcasts.values():
            broadcast.check()

    def _items(self, pending: _Pending) -> int:
        return sum(
            depth == self._depth and pending.values[k] is not _ABSENT
            for k, depth in enumerate(self._inputs)
        )

    def _met(self, path: Path, slot: int | None, value: Any) -> list[JoinedCall]:  # noqa: ANN401
        pending = self._pending.get(path)
        if pending is None:
            values = [None if d is None else _ABSENT for d in self._inputs]
            pending = _Pending(self._full + self._group, values)
            for k, depth in self._shallow:
                key = (k, path[:depth])
                if key in self._stored:
                    values[k] = self._stored[key]
                else:
                    pending.missing += 1
                    self._waiting.setdefault(key, []).append(path)
            self._pending[path] = pending
        return self._filled(path, pending, slot, value)

    def _filled(
        self,
        path: Path,
        pending: _Pending,
        slot: int | None,
        value: Any,  # noqa: ANN401
    ) -> list[JoinedCall]:
        if slot is not None:
            pending.values[slot] = value
        pending.missing -= 1
        if pending.missing:
            return []
        del self._pending[path]
        self.held -= self._full
        for slot_, broadcast in self._broadcasts.items():
            self._release(slot_, broadcast.done(path))
        return [(path, pending.values)]

    def _release(self, slot: int, ancestor: Path | None) -> None:
        if ancestor is None:
            return
        if self._stored.pop((slot, ancestor), _ABSENT) is _ABSENT:
            self._spent.add((slot, ancestor))
        else:
            self.held -= 1


_ABSENT: Any = object()
