"""Room for items at one place, and the queue of calls that wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

__all__ = ("Blocked", "Room")


class Blocked(Protocol):
    """A queue whose next call may not start, because its outputs would have no room."""

    def unblock(self) -> None:
        """Check again: there may be room."""
        ...


class Room:
    """The waiters for room at one place: calls that hold an item, and queues of calls.

    Room is granted to one call at a time. A call that uses it wakes the next one if room is left; a
    call that cannot use it wakes the next one too. Blocked queues are woken together, and each checks
    for itself.
    """

    __slots__ = ("_calls", "_queues", "awaited")

    def __init__(self) -> None:
        self._calls: deque[asyncio.Event] = deque()
        self._queues: list[Blocked] = []
        self.awaited = False
        """True if a call or a queue waits."""

    def add(self, granted: asyncio.Event, *, first: bool) -> None:
        """Queue a call: at the end, or at the head if it was queued before."""
        if first:
            self._calls.appendleft(granted)
        else:
            self._calls.append(granted)
        self.awaited = True

    def remove(self, granted: asyncio.Event) -> None:
        """Remove a call from the queue."""
        if granted in self._calls:
            self._calls.remove(granted)
        self.awaited = bool(self._calls or self._queues)

    def block(self, queue: Blocked) -> None:
        """Queue a blocked queue, behind all calls."""
        self._queues.append(queue)
        self.awaited = True

    def wake(self) -> None:
        """Wake the first waiter, since there may be room. Calls go before queues."""
        calls = self._calls
        while calls:
            granted = calls.popleft()
            if not granted.is_set():
                granted.set()
                self.awaited = bool(calls or self._queues)
                return
        self.awaited = False
        queues, self._queues = self._queues, []
        for queue in queues:
            queue.unblock()

    def wake_all(self) -> None:
        """Wake all waiters, because the bound is lifted. Each checks again, and may queue again."""
        calls, queues = self._calls, self._queues
        self._calls, self._queues, self.awaited = deque(), [], False
        for granted in calls:
            granted.set()
        for queue in queues:
            queue.unblock()
