"""A task that pulls the inputs of a map."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, final

import anyio

__all__ = ("Feeder",)


@final
class Feeder:
    """A task of an app that can be cancelled once, natively.

    A cancel scope would cancel it again at each wait of what it does to clean up.
    """

    __slots__ = ("_asked", "_task")

    def __init__(self) -> None:
        self._asked = False  # To end.
        self._task: asyncio.Task[Any] | None = None

    @property
    def asked(self) -> bool:
        """Whether it was asked to end."""
        return self._asked

    async def run(self, function: Callable[..., Awaitable[Any]], *args: object) -> None:
        """Call *function*, unless it was cancelled before."""
        if self._asked:
            return
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            with anyio.CancelScope(shield=True):
                await function(*args)
        except asyncio.CancelledError:
            if not self.asked or task.uncancel():  # By the loop, which is going down.
                raise
        finally:
            self._task = None

    def cancel(self) -> None:
        """Cancel it, once."""
        if not self._asked:
            self._asked = True
            if self._task is not None:
                self._task.cancel()
