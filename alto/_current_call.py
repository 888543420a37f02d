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
    """An object with an ``aclose`` method."""

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close the object, also in the middle of a step. Idempotent."""
        ...


class Cleanup:
    """The async generators that one running call has opened, to be closed in the call's own task.

    A generator whose loop is left early (``break``) is *abandoned*: it is closed at the call's next
    checkpoint. Generators still open when the call ends are closed then. Either may be in the middle of
    a step, because a cancelled read does not cancel its step; closing cancels the step.
    """

    __slots__ = ("_live", "abandoned")

    def __init__(self) -> None:
        self._live: dict[int, Closable] = {}
        self.abandoned: list[Closable] = []
        """Abandoned generators that wait to be closed; read only."""

    def add(self, agen: Closable, /) -> None:
        """Register *agen*, to be closed at the end of the call."""
        self._live[id(agen)] = agen

    def discard(self, agen: Closable, /) -> None:
        """Unregister *agen*, which has ended by itself."""
        self._live.pop(id(agen), None)

    def abandon(self, agen: Closable, /) -> None:
        """Close *agen* at the next checkpoint: its loop was left. Sync; may be called at any moment."""
        if self._live.pop(id(agen), None) is not None:
            self.abandoned.append(agen)

    async def close_abandoned(self) -> None:
        """Close abandoned generators. Cancellation: shielded."""
        with anyio.CancelScope(shield=True):
            while self.abandoned:
                await self.abandoned.pop().aclose()

    async def close_all(self) -> None:
        """Close all generators. Cancellation: shielded."""
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
    """The running stage call, as the handles used inside it see it."""

    @property
    def inner_runner(self) -> InnerRunner | None:
        """Runs the pipelines that this call calls; None: its app does."""
        ...

    @property
    def cleanup(self) -> Cleanup:
        """The call's open generations."""
        ...

    @property
    def cancelled(self) -> bool:
        """True if nothing needs the call any more, so that a cancelled read is not repeated."""
        ...

    @property
    def priority(self) -> int:
        """The request's priority; lower runs earlier."""
        ...

    @property
    def deadline(self) -> float | None:
        """Time on the loop's clock at which the request times out; None: never."""
        ...

    @property
    def origin(self) -> Origin | None:
        """The origin of generations, for engines that schedule; None: not known."""
        ...

    def generation_started(self, engine: str, /) -> int:
        """Record that *engine* was asked for a generation, a vector or a score.

        Returns:
            A number for :meth:`generation_ended`.
        """
        ...

    def generation_ended(
        self, number: int, engine: str, usage: Usage | None, error: BaseException | None, /
    ) -> None:
        """Record its end; called once for each that was started.

        Args:
            number: The number from :meth:`generation_started`.
            engine: The engine's name.
            usage: Its usage; None if the engine has not reported it.
            error: None if it is complete; a ``CancelledError`` if it was closed, cancelled or left
                before its end; otherwise the exception of the engine.
        """
        ...


current_call: ContextVar[CurrentCall | None] = ContextVar("alto_current_call", default=None)
"""The stage call that runs in this context, if any."""


@final
class Account:
    """Reports the begin and the end of one generation to the running stage call."""

    __slots__ = ("_call", "_engine", "_number", "usage")

    def __init__(self, engine: str, /) -> None:
        self._engine = engine
        self._call = current_call.get()
        self._number: int | None = None
        self.usage: Usage | None = None
        """Its usage, once the engine has reported it. Then it is complete, even if not read to its end."""

    def begin(self) -> None:
        """Report that the engine is asked now."""
        if self._call is not None:
            self._number = self._call.generation_started(self._engine)

    def end(self, error: BaseException | None, /) -> None:
        """Report the end; see ``CurrentCall.generation_ended``. No effect if it has not begun."""
        call, self._call = self._call, None
        if call is None or self._number is None:
            return
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            error = None if self.usage is not None else asyncio.CancelledError()
        call.generation_ended(self._number, self._engine, self.usage, error)
