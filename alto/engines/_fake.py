"""Lifespan of engines without a model: start, death, stop, and the generations that they end.

Base of :class:`alto.engines.Simulated` and :class:`alto.testing.Scripted`. Each of these decides what a
generation says and when; what happens to it when its engine is stopped or dies is here. A fake engine
runs on its loop's clock, which tests make virtual, and has no task of its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

import attrs

from alto.errors import Closed, EngineDied, EngineError
from alto.model import EngineStatistics

__all__ = ("FakeEngine", "FakeGeneration")


@attrs.define(eq=False, kw_only=True)
class FakeGeneration:
    """A generation with one reader, who waits for more of it or for its end."""

    asked: float
    """Time of the request, in seconds on the loop's clock."""
    error: Exception | None = None
    """Reason why the engine ended it; None: it goes on, or has ended by itself."""
    _news: asyncio.Event | None = attrs.field(default=None, init=False)

    def wake(self) -> None:
        """Wake the reader."""
        if self._news is not None:
            self._news.set()

    async def wait(self) -> None:
        """Wait until :meth:`wake`.

        Raises:
            Exception: The engine has ended the generation with this error.
        """
        if self.error is None:
            self._news = asyncio.Event()
            try:
                await self._news.wait()
            finally:
                self._news = None
        if self.error is not None:
            raise self.error


class FakeEngine(ABC):
    """An engine without a model.

    Args:
        name: For messages and statistics.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        # Invariant: _death is None unless _loop is set.
        self._death: str | None = None
        self._died: set[asyncio.Event] = set()

    def __repr__(self) -> str:
        """Return its state in a line."""
        if self._loop is None:
            state = "stopped"
        elif self._death is not None:
            state = f"dead: {self._death}"
        else:
            now = self.statistics()
            state = f"{now.running} running, {now.waiting} waiting"
        return f"<{type(self).__name__} {self._name!r}, {state}>"

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        return self._name

    async def start(self) -> None:
        """Make the engine ready, also after it died. Starting a running engine does nothing."""
        if self._loop is None or self._death is not None:
            self._loop = asyncio.get_running_loop()
            self._death = None
            self._reset()

    async def stop(self) -> None:
        """End all generations with ``Closed``. Stopping a stopped engine does nothing."""
        if self._loop is None:
            return
        self._end_all(lambda: Closed(f"engine {self._name!r} was stopped"))
        self._loop = None
        self._death = None

    def kill(self, reason: str = "killed by the test") -> None:
        """Let the engine die: all generations, also later ones until a restart, get ``EngineDied``."""
        if self._loop is None:
            return
        self._death = reason
        self._end_all(lambda: EngineDied(self._name, reason))
        for waiter in self._died:
            waiter.set()

    async def __aenter__(self) -> Self:
        """Start the engine."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Stop the engine."""
        await self.stop()

    def check_health(self) -> None:
        """Return if the engine can serve.

        Raises:
            Closed: It has not been started, or was stopped.
            EngineDied: It was killed.
        """
        if self._loop is None:
            raise Closed(f"engine {self._name!r} is not running; start it first")
        if self._death is not None:
            raise EngineDied(self._name, self._death)

    async def wait_died(self) -> None:
        """Wait until :meth:`kill`; for ever, if the engine is stopped instead.

        Cancellation: the engine is not affected.
        """
        if self._death is not None:
            return
        waiter = asyncio.Event()
        self._died.add(waiter)
        try:
            await waiter.wait()
        finally:
            self._died.discard(waiter)

    @abstractmethod
    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing now."""

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the engine's loop, which must be the one that runs; the engine must be able to serve."""
        self.check_health()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise EngineError(self._name, "it belongs to the event loop that started it")
        return loop

    @abstractmethod
    def _reset(self) -> None:
        """Begin a life of the engine: set its counters to 0 and its state to that of a new one."""

    @abstractmethod
    def _end_all(self, error: Callable[[], Exception]) -> None:
        """End all generations, each with an *error* of its own."""
