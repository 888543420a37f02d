"""Which calls belong together, and whose place in a line their number decides.

A group is the calls that one join waits for. Its calls come one by one or together, and end one by one.
When several have come, those that wait get the place that the size of the group is worth: else the
first of a large group would go before a small one and its last behind it, and groups of all sizes would
end late. When few are left, these go ahead.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import final

from alto._sched.queue import MOST_SIBLINGS
from alto._sched.state import Ticket

__all__ = ("Siblings",)

FEW = 3
"""Open siblings from which on those that wait go ahead."""


@final
class Siblings:
    """The open calls of every group. It says who is to be placed anew, and does not do it."""

    __slots__ = ("_groups", "_grown")

    def __init__(self) -> None:
        self._groups: dict[Hashable, dict[Ticket, None]] = {}
        self._grown: dict[Hashable, int] = {}  # by how many calls, since somebody asked

    def __len__(self) -> int:
        """Groups with open calls."""
        return len(self._groups)

    def of(self, ticket: Ticket, /) -> int:
        """How many open calls its group has, itself included; 1 where it has no group."""
        group = ticket.work.group
        return 1 if group is None else len(self._groups[group])

    def join(self, ticket: Ticket, /) -> None:
        """A call has come."""
        group = ticket.work.group
        if group is None:
            return
        members = self._groups.setdefault(group, {})
        members[ticket] = None
        if 1 < len(members) <= MOST_SIBLINGS:
            self._grown[group] = self._grown.get(group, 0) + 1

    def leave(self, ticket: Ticket, /) -> list[Ticket]:
        """A call has ended; once more is ignored.

        Returns:
            Those of its siblings that are left, if they are few now.
        """
        group = ticket.work.group
        members = self._groups.get(group) if group is not None else None
        if members is None or ticket not in members:
            return []
        del members[ticket]
        if not members:
            del self._groups[group]
            self._grown.pop(group, None)
        return list(members) if len(members) <= FEW else []

    def grown(self) -> Iterator[Ticket]:
        """The calls of groups that have grown since the last time.

        Where they come one by one, that is once no more come, or every call would be placed anew with
        every other.
        """
        if not self._grown:
            return
        grown, self._grown = self._grown, {}
        for group, by in grown.items():
            if by == 1:  # see next time whether it was the last
                self._grown[group] = 0
            else:
                yield from self._groups[group]
