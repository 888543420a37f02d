"""One generation of a `Scripted` engine, and the prompt that it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import final

import attrs

from alto.model import Chunk

__all__ = ("Spoken",)


@final
@attrs.define(eq=False, kw_only=True)
class Spoken:
    """One generation, from its first iteration to its end.

    Invariant: *timer* is armed exactly while the generation holds a slot.
    """

    chunks: Sequence[Chunk]
    """What it says."""
    steps: Sequence[int]
    """In which step it says each."""
    last_step: int
    """The step that ends it, with a chunk or a failure."""
    asked: float
    """When somebody asked for it."""
    failure: Exception | None
    """What ends it in place of another chunk."""
    first_delay: float
    """Seconds from its admission to its first chunk."""
    delay: float
    """Seconds from one chunk to the next."""
    start: float | None = None
    """When it was admitted; None: it waits for a slot."""
    timer: asyncio.TimerHandle | None = None
    """Gives the slot back when the engine is done."""
    reader: asyncio.Event | None = None
    """What its reader waits for: admission, or the next chunk."""
    error: Exception | None = None
    """Why it was ended from outside."""

    @property
    def seconds(self) -> float:
        """How long the engine works on it."""
        return self.first_delay + self.last_step * self.delay

    def due(self, step: int) -> float:
        """When what it says in *step* is there; it has been admitted."""
        assert self.start is not None
        return self.start + self.first_delay + step * self.delay

    def timed(self, chunk: Chunk) -> Chunk:
        """The last chunk, with the times of the generation in its usage."""
        if chunk.usage is None or self.start is None:
            return chunk
        usage = attrs.evolve(
            chunk.usage,
            queue_time=self.start - self.asked,
            first_token_time=self.due(0) - self.asked,
        )
        return attrs.evolve(chunk, usage=usage)

    def wake(self) -> None:
        """Let the reader look again."""
        if self.reader is not None:
            self.reader.set()
