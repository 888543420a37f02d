"""Permits of a replica, and the order in which they are granted.

Theory of operation. A replica of a stage has ``limit`` permits. A call holds one while it runs user
code, and gives it back while it waits inside alto: for a piece of its group, for room for its output,
for a pipeline that it called. So no call holds a permit while it waits for another call's permit, and
neither a slow reader nor a deep recursion can starve a stage. Two kinds wait for permits:

* *resuming* calls, which gave their permit back and want to continue: first come, first served;
* *queues* of calls that have not started. A :class:`Rotation` orders them: queues with a lower
  ``priority`` number first; of equal ones each *root* request in turn, and of one root each of its
  queues in turn. So no request shuts out another one, however many items it has and however many
  pipelines its stages call.

Resuming calls go first, because their items are older than those of calls that have not started.

Events: ``give_back`` (a permit), ``resume``/``cancel_resume`` (a resuming call),
``enqueue``/``dequeue`` (a queue that has something to start / that has nothing, or may not start it).
The answers are asked for with ``next_resume`` and ``next_queue``.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

__all__ = ("Permits", "Queued", "Rotation")


class Queued(Protocol):
    """A queue of calls of one request that wait at one place."""

    @property
    def priority(self) -> int:
        """The request's priority; lower goes first."""
        ...

    @property
    def root(self) -> Hashable:
        """The outermost request: the one that the program started."""
        ...


Q = TypeVar("Q", bound=Queued)
C = TypeVar("C")


class Rotation(Generic[Q]):
    """A queue of queues, served by priority, then root requests in turn, then queues in turn."""

    __slots__ = ("_behind", "_levels", "_priorities", "members")

    def __init__(self) -> None:
        self.members: set[Q] = set()
        """The queues that wait; read only."""
        self._priorities: list[int] = []
        self._levels: dict[int, dict[Hashable, Q]] = {}
        # By priority: the first queue of each root. The first root has the next turn.
        self._behind: dict[tuple[int, Hashable], deque[Q]] = {}
        # Other queues of a root, behind its first one. Usually a root has only one queue.

    def __bool__(self) -> bool:
        return bool(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, queue: Q) -> bool:
        return queue in self.members

    def add(self, queue: Q, /) -> None:
        """Append *queue* to its root's queues, unless it waits already."""
        if queue in self.members:
            return
        self.members.add(queue)
        priority, root = queue.priority, queue.root
        level = self._levels.get(priority)
        if level is None:
            level = self._level(priority)
        if root in level:
            self._behind.setdefault((priority, root), deque()).append(queue)
        else:
            level[root] = queue

    def discard(self, queue: Q, /) -> None:
        """Remove *queue*. No effect if it does not wait."""
        if queue not in self.members:
            return
        self.members.discard(queue)
        priority, root = queue.priority, queue.root
        level = self._levels[priority]
        if level[root] != queue:
            behind = self._behind[priority, root]
            behind.remove(queue)
            if not behind:
                del self._behind[priority, root]
            return
        following = self._following(priority, root)
        if following is None:
            del level[root]
            self._tidy(priority)
        else:
            level[root] = following  # In the same position: the root keeps its turn.

    def pop(self) -> Q:
        """Remove and return the queue whose turn it is.

        Raises:
            IndexError: No queue waits.
        """
        priority = self._priorities[0]
        level = self._levels[priority]
        root = next(iter(level))
        queue = level.pop(root)
        self.members.discard(queue)
        if self._behind and (following := self._following(priority, root)) is not None:
            level[root] = following  # The root goes to the end.
        elif not level:
            self._tidy(priority)
        return queue

    def move_to_end(self, queue: Q, /) -> None:
        """Move the root of *queue* to the end, if it waits: it has just been served.

        A queue with more to start waits again while its call runs. Roots that were added meanwhile
        go before it.
        """
        level = self._levels.get(queue.priority)
        if level is not None and len(level) > 1 and queue.root in level:
            level[queue.root] = level.pop(queue.root)

    def _following(self, priority: int, root: Hashable) -> Q | None:
        behind = self._behind.get((priority, root))
        if behind is None:
            return None
        queue = behind.popleft()
        if not behind:
            del self._behind[priority, root]
        return queue

    def _level(self, priority: int) -> dict[Hashable, Q]:
        for other in list(self._priorities):  # Remove a level that was kept though it was empty.
            if not self._levels[other]:
                self._drop(other)
        level = self._levels[priority] = {}
        insort(self._priorities, priority)
        return level

    def _tidy(self, priority: int) -> None:
        # The only level is kept when it is empty: usually all requests have one priority.
        if len(self._priorities) > 1 and not self._levels[priority]:
            self._drop(priority)

    def _drop(self, priority: int) -> None:
        del self._levels[priority]
        self._priorities.remove(priority)

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken."""
        assert self._priorities == sorted(self._levels)
        assert all(self._levels.values()) or len(self._levels) == 1
        assert all(self._behind.values())
        for priority, root in self._behind:
            assert root in self._levels[priority]
        first = [queue for level in self._levels.values() for queue in level.values()]
        found = [*first, *(queue for line in self._behind.values() for queue in line)]
        assert len(found) == len(self.members)
        assert set(found) == self.members


class Permits(Generic[Q, C]):
    """The permits of one replica, and the calls and queues that wait for them.

    Args:
        limit: Maximum number of calls that run concurrently, >= 1.
    """

    __slots__ = ("_queued", "_queues", "free", "limit", "resuming")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            msg = f"need at least one permit, got {limit}"
            raise ValueError(msg)
        self.limit = limit
        self.free = limit
        """Number of permits that no call holds; 0 <= free <= limit."""
        self.resuming: dict[C, None] = {}
        """Calls that wait to resume, in order; read only."""
        self._queues: Rotation[Q] = Rotation()
        self._queued = self._queues.members

    @property
    def has_next(self) -> bool:
        """True if a queue could be served now."""
        return self.free > 0 and bool(self._queued) and not self.resuming

    @property
    def spare(self) -> int:
        """Number of free permits that no call and no queue waits for."""
        return 0 if self._queued or self.resuming else self.free

    def enqueue(self, queue: Q, /) -> None:
        """Queue *queue*, which has something to start. Idempotent."""
        self._queues.add(queue)

    def dequeue(self, queue: Q, /) -> None:
        """Remove *queue*, which has nothing to start any more."""
        self._queues.discard(queue)

    def next_queue(self) -> Q | None:
        """Take a permit for the queue whose turn it is, and remove the queue.

        A queue that has more to start is enqueued again, behind the others.

        Returns:
            The queue, or None when there is no permit, no queue, or a call wants to resume.
        """
        if self.resuming or not self._queued or self.free <= 0:
            return None
        self.free -= 1
        return self._queues.pop()

    def enqueue_and_next(self, queue: Q, more: bool, /) -> Q | None:  # noqa: FBT001
        """Take a permit for the next queue after *queue*, which does not wait and may have *more*.

        Equal to ``enqueue`` and ``next_queue``, but faster if no other queue waits.
        """
        if more:
            if self.free > 0 and not self._queued and not self.resuming:
                self.free -= 1
                return queue
            self.enqueue(queue)
        return self.next_queue()

    def give_back_and_next(self, queue: Q, more: bool, /) -> Q | None:  # noqa: FBT001
        """Take back the permit of a call of *queue* that has ended, and take one for the next queue.

        Equal to ``give_back`` and ``enqueue_and_next``, but faster if no other queue waits.
        """
        if more and not self._queued and not self.resuming:
            return queue
        self.free += 1
        if more:
            self.enqueue(queue)
        return self.next_queue()

    def move_to_end(self, queue: Q, /) -> None:
        """Let other root requests go first: a call of *queue*, which may wait again, has ended."""
        self._queues.move_to_end(queue)

    def resume(self, call: C, /) -> bool:
        """Take a permit for *call*, which wants to resume, or queue it.

        Returns:
            True if it has a permit now; otherwise it waits until ``next_resume`` returns it.
        """
        if self.free > 0 and not self.resuming:
            self.free -= 1
            return True
        self.resuming[call] = None
        return False

    def cancel_resume(self, call: C, /) -> bool:
        """Remove *call*, which was cancelled while it waited to resume.

        Returns:
            True if it was still waiting; False if it has been granted a permit.
        """
        return self.resuming.pop(call, _ABSENT) is None

    def next_resume(self) -> C | None:
        """Take a permit for the call that has waited longest to resume, and return it, if there are both."""
        if not self.resuming or self.free <= 0:
            return None
        call = next(iter(self.resuming))
        del self.resuming[call]
        self.free -= 1
        return call

    def give_back(self) -> None:
        """Return a permit of a call that has ended."""
        self.free += 1

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken."""
        assert 0 <= self.free <= self.limit, (self.free, self.limit)
        self._queues.check()


_ABSENT = object()
