"""Where a request's results go: to a reader, as they come, or into a list."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from alto._core.closure import Closure
from alto._core.order import Order
from alto._run.group import Waiters
from alto.errors import BufferExceeded

if TYPE_CHECKING:
    from alto._run.request import Request
    from alto._spec import GroupOrder
    from alto.model import Path

__all__ = ("Sink",)


class Sink:
    """The results of one request. Speaks the language of a port.

    Args:
        request: Whose results these are.
        depth: Length of their paths.
        order: How they are handed out; None: not at all, they are kept for a list.
    """

    __slots__ = ("_closure", "_order", "buffer", "complete", "kept", "reader", "request",
                 "waiters")  # fmt: skip

    def __init__(self, request: Request, depth: int, order: GroupOrder | None) -> None:
        self.request = request
        self.buffer: deque[Any] = deque()
        """Results that can be read now."""
        self.kept: list[tuple[Path, Any]] | None = [] if order is None else None
        """All results, where they are asked for as a list."""
        self._closure = Closure(0, depth) if depth else None
        self._order: Order[Any] | None = None
        if order == "ancestry" and depth:
            self._order = Order(depth, self.buffer)
        self.complete = False
        """All results there will ever be are here."""
        self.reader: asyncio.Future[None] | None = None
        self.waiters = Waiters()

    @property
    def held(self) -> int:
        """Results that nobody has taken yet."""
        return len(self.buffer) + (len(self._order) if self._order is not None else 0)

    def is_full(self, path: Path) -> bool:  # noqa: ARG002
        """Whether the reader has enough to read. A list has no bound of its own."""
        return len(self.buffer) >= self.request.capacity and not self.request.stopping

    def waiters_for(self, path: Path) -> Waiters:  # noqa: ARG002
        """Where to wait while it is full."""
        return self.waiters

    def inlet(self, path: Path) -> tuple[Any, Any]:  # noqa: ARG002
        """``is_full`` and ``push`` for what one generator call gives."""
        return self.is_full, self.push

    def push(self, path: Path, value: Any) -> None:  # noqa: ANN401
        """A result is here."""
        if self.request.stopping:
            return
        if self.kept is not None:
            self.kept.append((path, value))
        elif self._order is not None:
            self._order.arrived(path, value)
            if len(self._order) > self.request.max_held:
                self.request.fail(
                    BufferExceeded("the request's own results", self.request.max_held)
                )
                return
        else:
            self.buffer.append(value)
        if self._closure is None or self._closure.arrived(path) is not None:
            self.complete = True
        if self.waiters.some and not self.is_full(path):
            self.waiters.wake()
        if self.reader is not None and self.buffer:
            self.wake()

    def counted(self, parent: Path, children: int) -> None:
        """The node at *parent* has that many children."""
        if self.request.stopping:
            return
        assert self._closure is not None
        if self._order is not None:
            self._order.counted(parent, children)
        if self._closure.counted(parent, children) is not None:
            self.complete = True
        if self.reader is not None and self.buffer:
            self.wake()

    def wake(self) -> None:
        """There is something for the reader, or nothing will come any more."""
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    def clear(self) -> None:
        """Nobody reads what is left."""
        self.buffer.clear()
        self._order = None
        self.kept = None if self.kept is None else []
