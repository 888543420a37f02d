"""The running stage call, as the handles that are used inside it see it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, final

import anyio

from alto.model import Origin, Usage

__all__ = ("Account", "Cleanup", "Closable", "CurrentCall", "InnerRunner", "current_call")


class Closable(Protocol):
    """What can be closed."""

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close it, whatever it is doing. Once it is closed, this does nothing."""
        ...


class Cleanup:
    """Async generators that one running call has opened, to be closed in that call's own task.

    A generator that is left early (``break``) is *abandoned*: it is closed at the call's next
    checkpoint, a generator still live when the call ends is closed then. Either may be in the middle of
    a step, which is cancelled then: a read that was cut leaves its step as it is.
    """

    __slots__ = ("_live", "abandoned")

    def __init__(self) -> None:
        self._live: dict[int, Closable] = {}
        self.abandoned: list[Closable] = []
        """Those that were abandoned and wait to be closed; to be read only."""

    def add(self, agen: Closable, /) -> None:
        """Take responsibility for *agen*."""
        self._live[id(agen)] = agen

    def discard(self, agen: Closable, /) -> None:
        """*agen* ended by itself."""
        self._live.pop(id(agen), None)

    def abandon(self, agen: Closable, /) -> None:
        """Nobody iterates *agen* any more; close it at the next checkpoint. Sync, any time."""
        if self._live.pop(id(agen), None) is not None:
            self.abandoned.append(agen)

    async def close_abandoned(self) -> None:
        """Close what was abandoned. Cancellation: shielded."""
        with anyio.CancelScope(shield=True):
            while self.abandoned:
                await self.abandoned.pop().aclose()

    async def close_all(self) -> None:
        """Close everything. Cancellation: shielded."""
        for agen in list(self._live.values()):
            self.abandon(agen)
        await self.close_abandoned()


class InnerRunner(Protocol):
    """Runs the pipelines that a stage call calls, in place of the app.

    A declaration is an ``alto._graph.spec.Declaration``, a module above this one.
    """

    def stream(self, declaration: Any, inputs: Sequence[object], /) -> Any:  # noqa: ANN401
        """Return a handle to read the results of a request from."""
        ...

    async def run(self, declaration: Any, inputs: Sequence[object], /) -> list[Any]:  # noqa: ANN401
        """Run a request to its end and return its results, in ancestry order."""
        ...


class CurrentCall(Protocol):
    """What a running stage call shows to the handles used inside it."""

    @property
    def inner_runner(self) -> InnerRunner | None:
        """Runs the pipelines that this call calls; None: its app does."""
        ...

    @property
    def cleanup(self) -> Cleanup:
        """Where the call's open generations are kept."""
        ...

    @property
    def cancelled(self) -> bool:
        """Return whether nobody needs the call any more, so that a read that was cut is not made again."""
        ...

    @property
    def priority(self) -> int:
        """The request's priority; lower runs earlier."""
        ...

    @property
    def deadline(self) -> float | None:
        """When the request's time is over, on the loop's clock; None: never."""
        ...

    @property
    def origin(self) -> Origin | None:
        """Who asks, for engines that schedule; None where nobody knows."""
        ...

    def generation_started(self, engine: str, /) -> int:
        """Note that *engine* was asked for a generation, a vector or a score.

        Returns:
            A number for :meth:`generation_ended`.
        """
        ...

    def generation_ended(
        self, number: int, engine: str, usage: Usage | None, error: BaseException | None, /
    ) -> None:
        """Note that it has ended; called once for each that was started.

        Args:
            number: What :meth:`generation_started` gave.
            engine: The engine's name.
            usage: What it has cost; None where the engine has not said so.
            error: None: it is complete. A ``CancelledError``: it was closed, cancelled or left before
                its end. Else what the engine raised.
        """
        ...


current_call: ContextVar[CurrentCall | None] = ContextVar("alto_current_call", default=None)
"""The stage call that runs in this context, if any."""


@final
class Account:
    """Tells the stage call that runs when one generation begins and when it ends."""

    __slots__ = ("_call", "_engine", "_number", "usage")

    def __init__(self, engine: str, /) -> None:
        self._engine = engine
        self._call = current_call.get()
        self._number: int | None = None
        self.usage: Usage | None = None
        """What it has cost, once the engine has said so. It is complete then, read on or not."""

    def begin(self) -> None:
        """The engine is asked now."""
        if self._call is not None:
            self._number = self._call.generation_started(self._engine)

    def end(self, error: BaseException | None, /) -> None:
        """The engine is done with it; see ``CurrentCall.generation_ended``. Not begun: no effect."""
        call, self._call = self._call, None
        if call is None or self._number is None:
            return
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            error = None if self.usage is not None else asyncio.CancelledError()
        call.generation_ended(self._number, self._engine, self.usage, error)
