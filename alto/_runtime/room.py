"""Room for items at one place, and the line of those who wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

__all__ = ("Blocked", "Room")


class Blocked(Protocol):
    """A queue whose next call may not start, since its outputs would have no room."""

    def unblock(self) -> None:
        """Look again: there may be room."""
        ...


class Room:
    """Who waits for room at one place: calls with an item in hand, and queues of calls.

    Room is given to one call at a time: a call that takes it passes on what is left, a call that
    cannot take it passes it on whole. Queues are woken all at once, and look for themselves.
    """

    __slots__ = ("_calls", "_queues", "awaited")

    def __init__(self) -> None:
        self._calls: deque[asyncio.Event] = deque()
        self._queues: list[Blocked] = []
        self.awaited = False
        """True if a call or a queue waits."""

    def add(self, granted: asyncio.Event, *, first: bool) -> None:
        """Put a call in line: at its end, or (a call that was in line before) at its head."""
        if first:
            self._calls.appendleft(granted)
        else:
            self._calls.append(granted)
        self.awaited = True

    def remove(self, granted: asyncio.Event) -> None:
        """Take a call out of the line."""
        if granted in self._calls:
            self._calls.remove(granted)
        self.awaited = bool(self._calls or self._queues)

    def block(self, queue: Blocked) -> None:
        """Let a queue wait, behind all calls."""
        self._queues.append(queue)
        self.awaited = True

    def wake(self) -> None:
        """Wake the first in line, since there may be room. Calls go before queues."""
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
        """Wake all that wait, once each: there is no bound any more. They may find that there is."""
        calls, queues = self._calls, self._queues
        self._calls, self._queues, self.awaited = deque(), [], False
        for granted in calls:
            granted.set()
        for queue in queues:
            queue.unblock()
