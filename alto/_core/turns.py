"""Who goes next at a stage, and how many at once.

Theory of operation. A stage has ``limit`` permits. A call holds one while it runs user code, and
gives it back while it waits inside alto: for a piece of its group, for room on its output, for a
pipeline that it called. So no permit is ever held by somebody who waits for somebody else's
permit, and neither a slow reader nor a deep recursion can starve a stage. Two kinds wait:

* *resuming* calls, which gave their permit back and want to go on: first come, first served;
* *queues* of calls that have not started, one per request, taken in turns (round robin), so that
  a request with many pieces does not shut out the others.

Resuming calls go first: what they hold is older than anything that could be started instead.

Events: ``took``/``gave`` (a permit), ``wants``/``left`` (a resuming call), ``offered``/``withdrawn``
(a queue that has something to start / has nothing or may not). The answer to each is asked with
``next_resume`` and ``next_queue``.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ("Turns",)

Q = TypeVar("Q")
C = TypeVar("C")


class Turns(Generic[Q, C]):
    """Permits of one stage, and the order in which they are given.

    Args:
        limit: How many calls may run at once, >= 1.
    """

    __slots__ = ("_queued", "_queues", "_resuming", "free", "limit")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            msg = f"need at least one permit, got {limit}"
            raise ValueError(msg)
        self.limit = limit
        self.free = limit
        """Permits nobody holds; 0 <= free <= limit."""
        self._resuming: dict[C, None] = {}
        self._queues: deque[Q] = deque()
        self._queued: set[Q] = set()

    @property
    def resuming(self) -> int:
        """Calls that wait to go on."""
        return len(self._resuming)

    @property
    def has_next(self) -> bool:
        """Whether a queue could be served now."""
        return self.free > 0 and bool(self._queues) and not self._resuming

    @property
    def spare(self) -> int:
        """Permits that nobody waits for."""
        return 0 if self._queues or self._resuming else self.free

    def offered(self, queue: Q, /) -> None:
        """*queue* has something to start. Saying so twice changes nothing."""
        if queue not in self._queued:
            self._queued.add(queue)
            self._queues.append(queue)

    def withdrawn(self, queue: Q, /) -> None:
        """*queue* has nothing to start any more. Unknown ones are ignored."""
        if queue in self._queued:
            self._queued.discard(queue)
            self._queues.remove(queue)

    def next_queue(self) -> Q | None:
        """Take a permit for the queue whose turn it is, and take the queue out of the line.

        A queue that has more to start is offered again, and so gets to the end of the line.

        Returns:
            The queue, or None when there is no permit, no queue, or somebody wants to resume.
        """
        if self._resuming or not self._queues or self.free <= 0:
            return None
        queue = self._queues.popleft()
        self._queued.discard(queue)
        self.free -= 1
        return queue

    def next_after(self, queue: Q, more: bool, /) -> Q | None:  # noqa: FBT001
        """Whose turn it is after *queue*, which is not in line and has *more* to start or not.

        The same as offering it again and asking for the next, faster where nobody else waits.
        """
        if more:
            if self.free > 0 and not self._queues and not self._resuming:
                self.free -= 1
                return queue
            self.offered(queue)
        return self.next_queue()

    def resume(self, call: C, /) -> bool:
        """*call* wants to go on.

        Returns:
            Whether it has a permit now; else it waits, until ``next_resume`` names it.
        """
        if self.free > 0 and not self._resuming:
            self.free -= 1
            return True
        self._resuming[call] = None
        return False

    def left(self, call: C, /) -> bool:
        """*call* stops waiting to go on (it was cancelled).

        Returns:
            Whether it was still waiting; if not, it has been given a permit.
        """
        return self._resuming.pop(call, _ABSENT) is None

    def next_resume(self) -> C | None:
        """Take a permit for the call that has waited longest to go on, if there are both."""
        if not self._resuming or self.free <= 0:
            return None
        call = next(iter(self._resuming))
        del self._resuming[call]
        self.free -= 1
        return call

    def gave(self) -> None:
        """Somebody gave a permit back."""
        self.free += 1

    def check(self) -> None:
        """Assert the invariants."""
        assert 0 <= self.free <= self.limit, (self.free, self.limit)
        assert len(self._queues) == len(self._queued)
        assert set(self._queues) == self._queued


_ABSENT = object()
