"""State that is kept while a group is gathered: a count, a sum, the largest items, or any value."""

from __future__ import annotations

import copy
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from inspect import isawaitable
from typing import Any, Generic, Protocol, TypeVar, final

import attrs

from alto._safe_text import short, told
from alto.stream import Group

__all__ = ("Counting", "Fold", "Largest", "Pane", "Reducing", "Totalling", "fold", "fold_in_panes",
           "outcome")  # fmt: skip

T_co = TypeVar("T_co", covariant=True)


@attrs.frozen(kw_only=True)
class Pane(Generic[T_co]):
    """One state of a result that is still being made; what ``emit="partial"`` gives.

    A group of *n* items has *n* + 1 panes: one after each item, and one that is final when the
    group is complete.
    """

    value: T_co
    """The result so far. It does not change later."""
    revision: int
    """Number of panes of the group that came before: 0, 1, 2 …"""
    final: bool
    """True for the last pane, when the group is complete; exactly once per group."""


class Fold(Protocol):
    """State of one group. Items and values are Any: they have the types of the user's stages."""

    async def add(self, item: Any, /) -> None:  # noqa: ANN401
        """Add one item."""
        ...

    def value(self) -> Any:  # noqa: ANN401
        """Return the result; called once, after the last item."""
        ...

    def snapshot(self) -> Any:  # noqa: ANN401
        """Return the result so far, as a value that does not change when more is added."""
        ...


def fold(make: Callable[[], Fold]) -> Callable[[Group[Any]], Awaitable[Any]]:
    """Make the body of a stage that returns the result of its group."""

    async def body(items: Group[Any]) -> Any:  # noqa: ANN401
        state = make()
        async for item in items:
            await state.add(item)
        return state.value()

    return body


def fold_in_panes(make: Callable[[], Fold]) -> Callable[[Group[Any]], AsyncIterator[Pane[Any]]]:
    """Make the body of a stage that yields a pane after each item of its group, and one at the end."""

    async def body(items: Group[Any]) -> AsyncIterator[Pane[Any]]:
        state = make()
        revision = 0
        async for item in items:
            await state.add(item)
            yield Pane(value=state.snapshot(), revision=revision, final=False)
            revision += 1
        yield Pane(value=state.value(), revision=revision, final=True)

    return body


async def outcome(result: Any) -> Any:  # noqa: ANN401  # of any function
    """Return the result of a sync or async function, awaited if need be."""
    return await result if isawaitable(result) else result


@final
class Counting:
    """Number of items."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = 0

    async def add(self, _item: object, /) -> None:
        """Count the item."""
        self._number += 1

    def value(self) -> int:
        """Return the number of items."""
        return self._number

    snapshot = value


@final
class Totalling:
    """Sum of the items, or of the results of *key* for them."""

    __slots__ = ("_key", "_number", "_sum")

    def __init__(self, key: Callable[[Any], Any] | None, start: object) -> None:
        self._key = key
        self._number = 0
        self._sum: Any = copy.deepcopy(start)  # Groups without items would share it otherwise.

    async def add(self, item: Any, /) -> None:  # noqa: ANN401
        """Add the item, or the result of *key* for it.

        Raises:
            TypeError: It cannot be added to the sum so far.
        """
        key = self._key
        addend = item if key is None else await outcome(key(item))
        try:
            self._sum = self._sum + addend  # Not in place: earlier panes hold earlier sums.
        except TypeError as error:
            made = "" if key is None else f", key({short(item)})"
            remedy = "give key=, a function from an item to a number"
            if key is not None:
                remedy = "let key= return a number"
            msg = (
                f"item {self._number} of the group{made} is {short(addend)} "
                f"({type(addend).__name__}), which cannot be added to {short(self._sum)}; {remedy}"
            )
            raise TypeError(msg) from error
        self._number += 1

    def value(self) -> Any:  # noqa: ANN401
        """Return the sum."""
        return self._sum

    snapshot = value


@final
class Ranked:
    """An item among the largest so far; the smallest of them is dropped first."""

    __slots__ = ("item", "number", "rank")

    def __init__(self, rank: Any, number: int, item: object) -> None:  # noqa: ANN401
        self.rank = rank
        self.number = number
        self.item = item

    def __lt__(self, other: Ranked) -> bool:
        try:
            if self.rank < other.rank:
                return True
            return self.number > other.number and not other.rank < self.rank
        except TypeError as error:
            one, two = sorted((self, other), key=lambda ranked: ranked.number)
            msg = (
                f"{short(one.item)} ({type(one.item).__name__}) and {short(two.item)} "
                f"({type(two.item).__name__}) cannot be compared; give key=, a function from an "
                f"item to what it is ranked by"
            )
            if one.rank is not one.item:
                msg = (
                    f"key({short(one.item)}) is {short(one.rank)} ({type(one.rank).__name__}) and "
                    f"key({short(two.item)}) is {short(two.rank)} ({type(two.rank).__name__}), "
                    f"which cannot be compared; let key= return values of one kind"
                )
            raise TypeError(msg) from error


@final
class Largest:
    """The *k* largest items, in a heap."""

    __slots__ = ("_heap", "_k", "_key", "_number")

    def __init__(self, k: int, key: Callable[[Any], Any] | None) -> None:
        self._k = k
        self._key = key
        self._number = 0
        self._heap: list[Ranked] = []  # Invariant: the smallest, by Ranked, is the first.

    async def add(self, item: Any, /) -> None:  # noqa: ANN401
        """Keep the item, if it is large enough.

        Raises:
            TypeError: It cannot be compared with another one.
            ValueError: It is ranked by NaN, which has no place in any order.
        """
        key = self._key
        rank = item if key is None else await outcome(key(item))
        if _is_nan(rank):
            msg = (
                f"item {self._number} of the group, {short(item)}, is ranked by NaN, which is "
                f"neither larger nor smaller than anything; leave such items out with `where`"
            )
            raise ValueError(msg)
        ranked = Ranked(rank, self._number, item)
        self._number += 1
        if len(self._heap) < self._k:
            heapq.heappush(self._heap, ranked)
        elif self._heap[0] < ranked:
            heapq.heapreplace(self._heap, ranked)

    def value(self) -> list[Any]:
        """Return the items, the largest first; of equals the one that came first."""
        return [ranked.item for ranked in sorted(self._heap, reverse=True)]

    snapshot = value


def _is_nan(rank: object) -> bool:
    if isinstance(rank, tuple):
        return any(map(_is_nan, rank))
    return rank.is_nan() if isinstance(rank, Decimal) else isinstance(rank, float) and rank != rank  # noqa: PLR0124


@final
class Reducing:
    """State that a function makes of the state so far and one more item."""

    __slots__ = ("_fn", "_state")

    def __init__(self, fn: Callable[[Any, Any], Any], start: Callable[[], Any]) -> None:
        self._fn = fn
        self._state = start()

    async def add(self, item: Any, /) -> None:  # noqa: ANN401
        """Call the function with the state and the item."""
        self._state = await outcome(self._fn(self._state, item))

    def value(self) -> Any:  # noqa: ANN401
        """Return the state itself."""
        return self._state

    def snapshot(self) -> Any:  # noqa: ANN401
        """Return a deep copy, since the function may change the state in place.

        Raises:
            TypeError: It cannot be copied.
        """
        try:
            return copy.deepcopy(self._state)
        except Exception as error:
            msg = (
                f"the running value {short(self._state)} ({type(self._state).__name__}) cannot be "
                f"copied ({told(error)}), and a pane must not change later; let fn keep what can be "
                f"copied, or use emit='final'"
            )
            raise TypeError(msg) from error
