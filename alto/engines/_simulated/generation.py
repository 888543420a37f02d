"""One generation of a simulated engine, between the batching machine and its reader."""

from __future__ import annotations

from typing import final

import attrs

from alto.engines._fake import FakeGeneration
from alto.engines._simulated.answers import Answer
from alto.engines._simulated.batching import Event
from alto.model import Chunk, TokenLogprob, Usage

__all__ = ("SimulatedGeneration",)


@final
@attrs.define(eq=False, kw_only=True)
class SimulatedGeneration(FakeGeneration):
    """One generation, from when the engine has its prompt to its end."""

    answer: Answer
    token_ids: tuple[int, ...]
    """Tokens of the answer."""
    samples: int
    prompt_tokens: int
    logprobs: bool
    said: list[int]
    """Number of tokens that each sample has generated."""
    given: list[int]
    """Number of them that the reader has got."""
    open: int
    """Number of samples that the engine is not done with."""
    cached_tokens: int = 0
    queue_time: float = 0.0
    first_token_time: float = -1.0

    def hear(self, sample: int, event: Event) -> None:
        """Take note of an event of one sample."""
        if self.first_token_time < 0:
            self.first_token_time = event.time - self.asked
            self.queue_time = max(0.0, event.began - self.asked)
            self.cached_tokens = event.cached_tokens
        self.said[sample] = event.output_tokens
        if event.kind == "finished":
            self.open -= 1

    def take(self) -> Chunk | None:
        """Return the unread output of one sample as a chunk; None: there is none."""
        for sample in range(self.samples):
            start, stop = self.given[sample], self.said[sample]
            if stop > start:
                self.given[sample] = stop
                return self._chunk(sample, start, stop)
        return None

    def _chunk(self, sample: int, start: int, stop: int) -> Chunk:
        ids = self.token_ids[start:stop]
        chunk = Chunk(text="".join(self.answer.texts[start:stop]), token_ids=ids, index=sample)
        if self.logprobs:
            chunk.logprobs = tuple(TokenLogprob(one, 0.0, ((one, 0.0),)) for one in ids)
        if stop == len(self.token_ids):
            chunk.finish_reason = self.answer.reason
            if self.is_read:
                chunk.usage = Usage(
                    prompt_tokens=self.prompt_tokens,
                    cached_tokens=self.cached_tokens,
                    output_tokens=sum(self.given),
                    queue_time=self.queue_time,
                    first_token_time=self.first_token_time,
                )
        return chunk

    @property
    def is_read(self) -> bool:
        """Return whether the reader has received all output."""
        return all(given == len(self.token_ids) for given in self.given)
