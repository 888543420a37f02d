"""The results of a request, for a reader as they come or for a list."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from alto._graph.spec import GroupOrder
from alto._runtime.machines.completion import CompletionCounter
from alto._runtime.machines.reorder import ReorderBuffer
from alto._runtime.room import Room
from alto.errors import BufferExceeded, RequestError
from alto.model import Path

__all__ = ("Sink", "SinkRequest")


class SinkRequest(Protocol):
    """The request, as its results see it."""

    capacity: int
    max_held: int
    stopping: bool
    fresh: bool
    first_unread: bool

    def fail(self, error: RequestError) -> None:
        """Stop with *error*."""
        ...


class Sink:
    """The results of one request. Implements :class:`alto._runtime.ports.Target`.

    Args:
        request: The request.
        depth: Length of the results' paths.
        order: Order in which a reader gets them; None: no reader, they are kept for a list.
    """

    __slots__ = ("_completion", "_kept", "_order", "buffer", "changed", "complete", "request",
                 "room", "waiting")  # fmt: skip

    def __init__(self, request: SinkRequest, depth: int, order: GroupOrder | None) -> None:
        self.request = request
        self.buffer: deque[Any] = deque()
        """Results that can be read now."""
        self._kept: list[tuple[Path, Any]] | None = [] if order is None else None
        self._completion = CompletionCounter(0, depth) if depth else None
        self._order: ReorderBuffer[Any] | None = None
        if order == "ancestry" and depth:
            self._order = ReorderBuffer(depth, self.buffer)
        self.complete = False
        """True once all results have arrived."""
        self.waiting = False
        """True if a reader waits for ``changed``."""
        self.changed: asyncio.Event | None = None
        self.room = Room()

    @property
    def held(self) -> int:
        """Number of results that have not been taken."""
        return len(self.buffer) + (len(self._order) if self._order is not None else 0)

    def is_full(self, path: Path) -> bool:  # noqa: ARG002
        """Return whether the reader has enough to read. A list has no bound."""
        return len(self.buffer) >= self.request.capacity and not self.request.stopping

    def room_for(self, path: Path) -> Room:  # noqa: ARG002
        """Return the room to wait for while it is full."""
        return self.room

    def inlet(self, path: Path) -> tuple[Callable[[Path], bool], Callable[[Path, Any], None]]:  # noqa: ARG002
        """Return ``is_full`` and ``push`` for the outputs of one generator call."""
        return self.is_full, self.push

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """Accept a result."""
        if self.request.stopping:
            return
        if self._kept is not None:
            self._kept.append((path, value))
        elif self._order is not None:
            self._order.arrived(path, value)
            if len(self._order) > self.request.max_held:
                self.request.fail(BufferExceeded(None, self.request.max_held))
                return
        else:
            self.buffer.append(value)
        if self._completion is None or self._completion.arrived(path) is not None:
            self.complete = True
        if self.room.awaited and not self.is_full(path):
            self.room.wake()
        if self.waiting and self.buffer:
            if self.request.fresh:
                self.request.first_unread = True
            self.wake()

    def counted(self, parent: Path, children: int) -> None:
        """Accept the number of children of the node at *parent*."""
        if self.request.stopping:
            return
        assert self._completion is not None
        if self._order is not None:
            self._order.counted(parent, children)
        if self._completion.counted(parent, children) is not None:
            self.complete = True
        if self.waiting and self.buffer:
            self.wake()

    def take(self) -> Any:  # noqa: ANN401
        """Take the next result. There must be one."""
        self.request.fresh = self.request.first_unread = False
        result = self.buffer.popleft()
        if self.room.awaited:
            self.room.wake()
        return result

    def take_all(self) -> list[Any]:
        """Take the results that were kept for a list, in ancestry order."""
        kept, self._kept = self._kept, []
        assert kept is not None
        kept.sort(key=_path)
        return [value for _, value in kept]

    def next_change(self) -> asyncio.Event:
        """Return an event that is set when there is a result to read, or no more will come."""
        if self.changed is None:
            self.changed = asyncio.Event()
        self.changed.clear()
        self.waiting = True
        return self.changed

    def wake(self) -> None:
        """Wake the reader: there is a result to read, or no more will come."""
        self.waiting = False
        if self.changed is not None:
            self.changed.set()

    def stop(self) -> None:
        """Drop the list, which is returned whole or not at all. A reader keeps what is in the buffer."""
        if self._kept is not None:
            self._kept = []

    def detach(self) -> None:
        """Forget the request, which has ended. This breaks their reference cycle."""
        self.request = _ENDED_REQUEST

    def clear(self) -> None:
        """Drop all unread results."""
        self.buffer.clear()
        self._order = None
        self._kept = None if self._kept is None else []


class _EndedRequest:
    """Stand-in for a request that has ended."""

    capacity = 1
    max_held = 1
    stopping = True
    fresh = False
    first_unread = False

    def fail(self, error: RequestError) -> None:
        """Ignore the error: the request has ended."""


_ENDED_REQUEST = _EndedRequest()


def _path(result: tuple[Path, Any]) -> Path:
    return result[0]
