"""Calls that wait for one engine, in the order in which they are to be given to it.

The order is one number in seconds, a time at which a call "should have begun", smaller first:

* the age of its request comes first: the number starts as the time when the request arrived;
* the last open pieces of a group hold up a whole join: every open sibling adds a little;
* each step of user priority counts as a minute of age, so that nothing starves;
* a deadline pulls a call forward by up to a minute: ``deadline - service time - 60 s``, if that is
  earlier. Where it is, calls are in order of their latest start.

Of equals the deeper stage goes first, then whoever came first. The number is fixed when a call is
submitted, but for the siblings: calls that come together get the place of all of them, and when few are
left, the keys of those that still wait are made anew.

A heap with lazy deletion: an entry is void when its ticket's version has moved on.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from alto._sched.state import Ticket

__all__ = (
    "MOST_SIBLINGS",
    "PRIORITY_SECONDS",
    "STRAGGLER_SECONDS",
    "Line",
    "OrderKey",
    "order_key",
)

OrderKey: TypeAlias = tuple[float, int, int]

PRIORITY_SECONDS = 60.0
"""Age that one step of priority is worth, and the most that a deadline is."""
STRAGGLER_SECONDS = 0.05
"""Age that a call loses per open sibling."""
MOST_SIBLINGS = 10
"""Siblings that count."""


def order_key(ticket: Ticket, siblings: int, arrived: float, service: float) -> OrderKey:
    """The place of a call in a line.

    Args:
        ticket: The call.
        siblings: Open calls of its group, itself included.
        arrived: When its request began, in seconds.
        service: Seconds that it will probably take.
    """
    work = ticket.work
    due = arrived + PRIORITY_SECONDS * work.priority
    due += STRAGGLER_SECONDS * min(siblings, MOST_SIBLINGS)
    if work.deadline is not None:
        due = min(due, work.deadline - service - PRIORITY_SECONDS * (1 - work.priority))
    return (due, -work.depth, ticket.number)


class Line:
    """Calls that wait, the first first."""

    __slots__ = ("_heap", "begin", "count", "last", "outputs", "prefill")

    def __init__(self) -> None:
        self._heap: list[tuple[OrderKey, int, Ticket]] = []
        self.count: int = 0
        """Generations in it."""
        self.prefill: int = 0
        """Prompt tokens that they were charged for."""
        self.outputs: float = 0.0
        """Tokens that they will probably generate."""
        self.begin: float = inf
        """The earliest key, in seconds; it may be that of a call that has left."""
        self.last: float = -inf
        """The latest key since the line was empty, in seconds."""

    @classmethod
    def of(  # all that is known of a line
        cls,
        count: int,
        prefill: int,
        outputs: float,
        /,
        *,
        first: Ticket,
        begin: float,
        last: float,
    ) -> Self:
        """A line of which only this much is known, for a replay. It is for looking at only."""
        line = cls()
        line._heap.append((first.key, first.version, first))
        line.count, line.prefill, line.outputs = count, prefill, outputs
        line.begin, line.last = begin, last
        return line

    def push(self, ticket: Ticket, /) -> None:
        """*ticket* waits here from now on. It is in no line."""
        self.count += ticket.work.n
        self.prefill += ticket.uncached
        self.outputs += ticket.expected_output
        self._enter(ticket)

    def moved(self, ticket: Ticket, /) -> None:
        """*ticket*, which waits here, has a new key."""
        ticket.version += 1
        self._enter(ticket)
        self._sweep()

    def discard(self, ticket: Ticket, /) -> None:
        """*ticket*, which waits here, waits no more."""
        self._leave(ticket)
        self._sweep()

    def first(self) -> Ticket | None:
        """Who goes next; None: nobody waits."""
        heap = self._heap
        while heap:
            _, version, ticket = heap[0]
            if version == ticket.version:
                return ticket
            heappop(heap)
        return None

    def pop(self) -> Ticket:
        """Take out who goes next. Somebody waits."""
        ticket = self.first()
        assert ticket is not None
        heappop(self._heap)
        self._leave(ticket)
        if self.count:
            self.begin = self._heap[0][0][0]
        return ticket

    def tickets(self) -> list[Ticket]:
        """Everybody who waits, in order."""
        return [t for _, version, t in sorted(self._heap, key=_key) if version == t.version]

    def ahead(self, key: OrderKey, /) -> float:
        """Which part of the line would come before a call with this key, 0 to 1; a guess.

        Keys are taken to be spread evenly between the first and the last.
        """
        if not self.count:
            return 0.0
        due = key[0]
        if due >= self.last:
            return 1.0
        return 0.0 if due <= self.begin else (due - self.begin) / (self.last - self.begin)

    def _sweep(self) -> None:
        if len(self._heap) > 32 and len(self._heap) > 4 * (self.count + 8):
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].version]
            heapify(self._heap)

    def _enter(self, ticket: Ticket) -> None:
        due = ticket.key[0]
        heappush(self._heap, (ticket.key, ticket.version, ticket))
        self.last = max(self.last, due)
        self.begin = min(self.begin, due)

    def _leave(self, ticket: Ticket) -> None:
        ticket.version += 1
        self.count -= ticket.work.n
        self.prefill -= ticket.uncached
        self.outputs -= ticket.expected_output
        if self.count == 0:
            self._heap.clear()
            self.outputs = 0.0
            self.begin, self.last = inf, -inf


def _key(entry: tuple[OrderKey, int, Ticket]) -> tuple[OrderKey, int]:
    return entry[:2]
