"""Groups of sibling calls, whose size decides the place of each in its queue.

A group is the calls that one join waits for. They are submitted one by one or together, and end one by
one. When several were submitted, those that wait are placed by the size of the group: otherwise the
first call of a large group would go before a small group and its last behind it, and groups of all
sizes would end late. When few are left, they are moved forward.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import final

from alto._sched.queue import MOST_SIBLINGS
from alto._sched.state import Ticket

__all__ = ("Siblings",)

FEW = 3
"""Number of open siblings at and below which those that wait are moved forward."""


@final
class Siblings:
    """The open calls of every group. It returns the calls whose keys must change, and changes none."""

    __slots__ = ("_groups", "_grown")

    def __init__(self) -> None:
        self._groups: dict[Hashable, dict[Ticket, None]] = {}
        self._grown: dict[Hashable, int] = {}  # by how many calls since the last `grown()`

    def __len__(self) -> int:
        """Return the number of groups with open calls."""
        return len(self._groups)

    def of(self, ticket: Ticket, /) -> int:
        """Return how many open calls its group has, itself included; 1 if it has no group."""
        group = ticket.info.group
        return 1 if group is None else len(self._groups[group])

    def join(self, ticket: Ticket, /) -> None:
        """Add a call to its group."""
        group = ticket.info.group
        if group is None:
            return
        members = self._groups.setdefault(group, {})
        members[ticket] = None
        if 1 < len(members) <= MOST_SIBLINGS:
            self._grown[group] = self._grown.get(group, 0) + 1

    def leave(self, ticket: Ticket, /) -> list[Ticket]:
        """Remove a call that has ended from its group. Ignored if it was removed before.

        Returns:
            The siblings that are left, if they are few now.
        """
        group = ticket.info.group
        members = self._groups.get(group) if group is not None else None
        if members is None or ticket not in members:
            return []
        del members[ticket]
        if not members:
            del self._groups[group]
            self._grown.pop(group, None)
        return list(members) if len(members) <= FEW else []

    def grown(self) -> Iterator[Ticket]:
        """Yield the calls of groups that have grown since the last time.

        A group whose calls are submitted one by one is yielded once no more are submitted; otherwise
        every call would be placed again with every other.
        """
        if not self._grown:
            return
        grown, self._grown = self._grown, {}
        for group, by in grown.items():
            if by == 1:  # the next call of this method shows whether it was the last
                self._grown[group] = 0
            else:
                yield from self._groups[group]
