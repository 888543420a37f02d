"""One generation of a `Scripted` engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import final

import attrs

from alto.engines._fake import FakeGeneration
from alto.model import Chunk

__all__ = ("ScriptedGeneration",)


@final
@attrs.define(eq=False, kw_only=True)
class ScriptedGeneration(FakeGeneration):
    """One generation, from its first iteration to its end.

    Invariant: *timer* is armed exactly while the generation holds a slot.
    """

    chunks: Sequence[Chunk]
    """Chunks that it gives, in order."""
    steps: Sequence[int]
    """Number of the step in which it gives each of them."""
    last_step: int
    """Number of the step that ends it, with a chunk or a failure."""
    failure: Exception | None
    """Error that ends it in place of another chunk."""
    first_delay: float
    """Seconds from its admission to its first chunk."""
    delay: float
    """Seconds from one chunk to the next."""
    start: float | None = None
    """Time of its admission; None: it waits for a slot."""
    timer: asyncio.TimerHandle | None = None
    """Gives the slot back when the engine is done."""

    @property
    def seconds(self) -> float:
        """Seconds for which the engine works on it."""
        return self.first_delay + self.last_step * self.delay

    def due(self, step: int) -> float:
        """Return when the chunks of *step* are there; the generation has been admitted."""
        assert self.start is not None
        return self.start + self.first_delay + step * self.delay

    def timed(self, chunk: Chunk) -> Chunk:
        """Return *chunk*, with the times of the generation in its usage where it has one."""
        if chunk.usage is None or self.start is None:
            return chunk
        usage = attrs.evolve(
            chunk.usage,
            queue_time=self.start - self.asked,
            first_token_time=self.due(0) - self.asked,
        )
        return attrs.evolve(chunk, usage=usage)
