"""The calls that wait for one engine, in the order in which it gets them.

The order is one number in seconds, a time at which a call "should have begun"; smaller goes first:

* The age of its request comes first: the number starts as the time when the request arrived.
* The last open calls of a group hold up a whole join: every open sibling adds a little.
* Each step of user priority counts as a minute of age, so that nothing starves.
* A deadline pulls a call forward by up to a minute: ``deadline - service time - 60 s``, if that is
  earlier. Among calls for which it is, the order is that of their latest start.

Among equals the deeper stage goes first, then the call that was submitted first. The number is fixed
when a call is submitted, except for the siblings: calls that are submitted together are all placed by
the size of their group, and when few of them are left, the keys of those that wait are computed again.

The queue is a heap with lazy deletion: an entry is void when its ticket's version has moved on.
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
    "OrderKey",
    "WaitQueue",
    "order_key",
)

OrderKey: TypeAlias = tuple[float, int, int]

PRIORITY_SECONDS = 60.0
"""Age that one step of priority is worth, and the most that a deadline is worth."""
STRAGGLER_SECONDS = 0.05
"""Age that a call loses per open sibling."""
MOST_SIBLINGS = 10
"""Most siblings that are counted."""


def order_key(ticket: Ticket, siblings: int, arrived: float, service: float) -> OrderKey:
    """Return the place of a call in a queue; smaller goes first.

    Args:
        ticket: The call.
        siblings: Open calls of its group, itself included.
        arrived: When its request began, in seconds.
        service: Seconds that it will probably take.
    """
    info = ticket.info
    due = arrived + PRIORITY_SECONDS * info.priority
    due += STRAGGLER_SECONDS * min(siblings, MOST_SIBLINGS)
    if info.deadline is not None:
        due = min(due, info.deadline - service - PRIORITY_SECONDS * (1 - info.priority))
    return (due, -info.depth, ticket.number)


class WaitQueue:
    """Calls that wait for one engine, smallest key first, with the sums that policies look at."""

    __slots__ = ("_heap", "count", "earliest", "latest", "outputs", "prefill")

    def __init__(self) -> None:
        self._heap: list[tuple[OrderKey, int, Ticket]] = []
        self.count: int = 0
        """Generations in the queue."""
        self.prefill: int = 0
        """Prompt tokens that they were charged for."""
        self.outputs: float = 0.0
        """Tokens that they will probably generate."""
        self.earliest: float = inf
        """The earliest key, in seconds; it may be that of a call that has left."""
        self.latest: float = -inf
        """The latest key since the queue was empty, in seconds."""

    @classmethod
    def snapshot(  # every field that a record has
        cls,
        count: int,
        prefill: int,
        outputs: float,
        /,
        *,
        first: Ticket,
        earliest: float,
        latest: float,
    ) -> Self:
        """Make a queue from its recorded sums, for a replay. It is for reading only."""
        queue = cls()
        queue._heap.append((first.key, first.version, first))
        queue.count, queue.prefill, queue.outputs = count, prefill, outputs
        queue.earliest, queue.latest = earliest, latest
        return queue

    def push(self, ticket: Ticket, /) -> None:
        """Add *ticket*, which is in no queue."""
        self.count += ticket.info.n
        self.prefill += ticket.uncached
        self.outputs += ticket.expected_output
        self._enter(ticket)

    def reorder(self, ticket: Ticket, /) -> None:
        """Move *ticket*, which is in this queue, to the place of its new key."""
        ticket.version += 1
        self._enter(ticket)
        self._sweep()

    def remove(self, ticket: Ticket, /) -> None:
        """Remove *ticket*, which is in this queue."""
        self._leave(ticket)
        self._sweep()

    def first(self) -> Ticket | None:
        """Return the call that goes next; None if the queue is empty."""
        heap = self._heap
        while heap:
            _, version, ticket = heap[0]
            if version == ticket.version:
                return ticket
            heappop(heap)
        return None

    def pop(self) -> Ticket:
        """Remove and return the call that goes next. The queue must not be empty."""
        ticket = self.first()
        assert ticket is not None
        heappop(self._heap)
        self._leave(ticket)
        if self.count:
            # The head of the heap may be void; then `earliest` is too early, as it may be.
            self.earliest = self._heap[0][0][0]
        return ticket

    def tickets(self) -> list[Ticket]:
        """Return the calls, in order."""
        return [t for _, version, t in sorted(self._heap, key=_key) if version == t.version]

    def _sweep(self) -> None:
        # Void entries are dropped when they are three quarters of the heap: amortised constant cost.
        if len(self._heap) > 32 and len(self._heap) > 4 * (self.count + 8):
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].version]
            heapify(self._heap)

    def _enter(self, ticket: Ticket) -> None:
        due = ticket.key[0]
        heappush(self._heap, (ticket.key, ticket.version, ticket))
        self.latest = max(self.latest, due)
        self.earliest = min(self.earliest, due)

    def _leave(self, ticket: Ticket) -> None:
        ticket.version += 1  # makes its entry in the heap void
        self.count -= ticket.info.n
        self.prefill -= ticket.uncached
        self.outputs -= ticket.expected_output
        if self.count == 0:
            self._heap.clear()
            self.outputs = 0.0  # no rounding error is carried over
            self.earliest, self.latest = inf, -inf


def _key(entry: tuple[OrderKey, int, Ticket]) -> tuple[OrderKey, int]:
    return entry[:2]
