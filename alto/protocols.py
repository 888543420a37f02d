"""The seams: what alto asks of the parts a user may bring."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from alto.model import Chunk, EngineStatistics, GenerateRequest

__all__ = ("Engine",)


@runtime_checkable
class Engine(Protocol):
    """Something that turns prompts into streams of chunks.

    ``alto.testing.check_engine`` runs the whole contract against an implementation.
    An engine belongs to the event loop that started it.
    """

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        ...

    async def start(self) -> None:
        """Make the engine ready. Starting a running engine does nothing.

        Raises:
            EngineStartError: It could not be started; nothing is left behind.

        Cancellation: nothing is left behind; the engine can be started again.
        """
        ...

    def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation.

        The last chunk, and only the last, has a ``finish_reason`` and a ``usage``. Closing the
        generator (``aclose``) aborts the generation in the engine; so does cancelling the task
        that iterates it. The engine may run ahead of the reader; its slot is free again when
        *it* is done, read or not.

        Raises:
            InvalidRequest: At the first iteration; the engine cannot serve this request.
            Closed: The engine is not running.
            EngineDied: The engine died; every generation on it gets this.
            GenerationFailed: The engine gave up on this generation only.
        """
        ...

    def statistics(self) -> EngineStatistics:
        """What the engine is doing now. After all generations ended: all zeros."""
        ...

    def check_health(self) -> None:
        """Return if the engine can serve.

        Raises:
            Closed: It has not been started, or was stopped.
            EngineDied: It was started and is dead.
        """
        ...

    async def stop(self) -> None:
        """Abort what runs and free everything. Stopping a stopped engine does nothing.

        Generations that still run end with ``Closed``. A stopped engine can be started again.

        Cancellation: shielded; the engine is stopped when this returns or raises.
        """
        ...
