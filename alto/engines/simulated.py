"""`Simulated`: an engine that takes the time of a real one, and gives answers that it was given.

Theory of operation. :class:`~alto.engines._simulated.batching.Batching` decides everything, on given time;
this is a thin shell around it on the running loop's clock, which tests make virtual. One timer is set
to the machine's next event. Events go to their generations, and these wake their readers. A generation
gives up its place when the machine says so, read or not; a reader that lags gets what it missed in one
chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import final

import attrs

from alto._sched.prefix import chain, salt_of
from alto.engines._fake import FakeEngine
from alto.engines._prompt_text import whole_prompt
from alto.engines._simulated.answers import Says, SimulatedAnswers, split_words
from alto.engines._simulated.batching import Batching
from alto.engines._simulated.generation import SimulatedGeneration
from alto.engines.profiles import EngineProfile
from alto.model import (
    Chunk,
    EngineCapacity,
    EngineStatistics,
    GenerateRequest,
    Prompt,
    StreamedPrompt,
)
from alto.protocols import CacheListener

__all__ = ("Simulated",)


class _Names(tuple[int, ...]):  # noqa: SLOT001  # a tuple with a field in a slot cannot be
    """Names of a prompt's full blocks, with the tokens in these blocks and their salt."""

    token_ids: Sequence[int]
    salt: int


@final
class Simulated(FakeEngine):
    """An engine without a model, which takes the time of the engine that *profile* describes.

    It models continuous batching with chunked prefill, a prefix cache, preemption where memory runs
    short, and waiting; it does not model text. ``choice`` is honoured; with ``regex`` and
    ``json_schema`` the answer is given unchanged, fitting or not. All samples of a request are equal.
    Log-probabilities are 0. A streamed prompt is read to its end first.

    Args:
        profile: Constants and limits of the engine; ``alto.engines.profiles`` has some.
        says: The answer: a text, a number of filler tokens, or a list of the texts of its tokens;
            or a mapping from prompts to answers; or a function from a request to an answer.
        name: For messages and statistics.
        split: Splits a text, a prompt or an answer, into the texts of its tokens. By default every
            word is a token.
        stream_interval: Number of tokens per chunk; a larger one is cheaper.

    Raises:
        ValueError: A number is below 1.
        TypeError: *says* is not an answer.
    """

    def __init__(
        self,
        profile: EngineProfile,
        /,
        says: Says = 64,
        *,
        name: str = "simulated",
        split: Callable[[str], Sequence[str]] = split_words,
        stream_interval: int = 1,
    ) -> None:
        if stream_interval < 1:
            msg = f"stream_interval must be at least 1 token, not {stream_interval}"
            raise ValueError(msg)
        self._profile = profile
        self._answers = SimulatedAnswers(says, split, profile.max_model_len)
        super().__init__(name)
        self._interval = stream_interval
        self._machine = self._new_machine()
        self._open: dict[SimulatedGeneration, None] = {}
        self._timer: asyncio.Handle | None = None
        self._listeners: list[CacheListener] = []
        self._counts = EngineStatistics()

    @property
    def profile(self) -> EngineProfile:
        """Profile that it was given."""
        return self._profile

    @property
    def capacity(self) -> EngineCapacity:
        """Limits of the engine; also known while it is stopped."""
        return self._profile.capacity

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing now. Each sample that runs or waits counts."""
        machine = self._machine
        return attrs.evolve(
            self._counts,
            running=machine.running,
            waiting=machine.waiting,
            kv_usage=machine.kv_used / (self._profile.kv_blocks * self._profile.block_size),
            preempted=machine.preempted,
        )

    def listen(self, listener: CacheListener, /) -> bool:
        """Report the blocks of prompts to *listener*; no other call could use those of outputs.

        A block is reported when the step that computes it begins.
        """
        self._listeners.append(listener)
        return True

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the token ids of a prompt: one for each word, or those that it consists of."""
        self.check_health()
        return self._answers.encode(prompt)

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Give the answer to *request*, in the time of the engine.

        Raises:
            InvalidRequest: There is no answer to its prompt.
            PromptTooLong: The prompt fills the context.
        """
        asked = self._running_loop().time()
        prompt = request.prompt
        if isinstance(prompt, StreamedPrompt):
            prompt = await whole_prompt(prompt)
            self.check_health()
        generation = self._submit(request, prompt, asked)
        try:
            while not generation.is_read:
                chunk = generation.take() if generation.error is None else None
                if chunk is not None:
                    yield chunk
                    continue
                await generation.wait()
        finally:
            self._leave(generation)

    def _reset(self) -> None:
        self._counts = EngineStatistics()
        self._machine = self._new_machine()

    def _new_machine(self) -> Batching:
        return Batching(self._profile, stored=self._on_stored, removed=self._on_removed)

    def _submit(
        self, request: GenerateRequest, prompt: Prompt, asked: float
    ) -> SimulatedGeneration:
        ids = self._answers.encode(prompt)
        answer = self._answers.find(request, prompt, len(ids))
        salt = salt_of(request.lora)
        names = _Names(chain(ids, self._profile.block_size, salt=salt))
        names.token_ids, names.salt = ids, salt
        tokens = len(answer.texts)
        generation = SimulatedGeneration(
            answer=answer,
            token_ids=answer.token_ids,
            samples=request.n,
            prompt_tokens=len(ids),
            asked=asked,
            logprobs=request.logprobs is not None,
            said=[0] * request.n,
            given=[0] * request.n,
            open=request.n,
        )
        self._open[generation] = None
        for sample in range(request.n):
            self._machine.add(
                (generation, sample),
                len(ids),
                names,
                now=self._time(),
                output_tokens=tokens,
                priority=request.priority,
                watch=range(self._interval, tokens, self._interval),
            )
        self._rearm()
        return generation

    def _leave(self, generation: SimulatedGeneration) -> None:
        """Abort the generation, if its reader leaves before its end."""
        if generation not in self._open:  # the engine is done with it
            return
        del self._open[generation]
        self._counts = attrs.evolve(self._counts, aborted=self._counts.aborted + 1)
        for sample in range(generation.samples):
            self._machine.abort((generation, sample), now=self._time())
        self._rearm()

    def _time(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _rearm(self) -> None:
        """Set the timer anew, once all callbacks of this turn of the loop have run."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None
        self._timer = self._loop.call_soon(self._arm)

    def _arm(self) -> None:
        assert self._loop is not None
        due = self._machine.next_event()
        self._timer = None if due is None else self._loop.call_at(due, self._run, due)

    def _run(self, due: float) -> None:
        """Advance the machine to *due*; the loop's clock may be slightly behind it."""
        woken: dict[SimulatedGeneration, None] = {}
        for event in self._machine.advance(max(due, self._time())):
            key: tuple[SimulatedGeneration, int] = event.key  # type: ignore[assignment]  # as they are added
            generation, sample = key
            generation.hear(sample, event)
            woken[generation] = None
            if not generation.open:
                self._finish(generation)
        for generation in woken:
            generation.wake()
        self._arm()

    def _finish(self, generation: SimulatedGeneration) -> None:
        """Count the generation as finished, read or not."""
        del self._open[generation]
        counts = self._counts
        self._counts = attrs.evolve(
            counts,
            finished=counts.finished + 1,
            prompt_tokens=counts.prompt_tokens + generation.prompt_tokens,
            cached_tokens=counts.cached_tokens + generation.cached_tokens,
            output_tokens=counts.output_tokens + sum(generation.said),
        )

    def _end_all(self, error: Callable[[], Exception]) -> None:
        """End all generations, each with an *error* of its own, and empty the cache."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        aborted = self._counts.aborted + len(self._open)
        self._counts = attrs.evolve(self._counts, aborted=aborted)
        for generation in self._open:
            generation.error = error()
            generation.wake()
        self._open.clear()
        self._machine = self._new_machine()
        for listener in self._listeners:
            listener.cleared()

    def _on_stored(self, names: Sequence[int], start: int, stop: int) -> None:
        assert isinstance(names, _Names)
        size = self._profile.block_size
        parent = names[start - 1] if start else None
        tokens = names.token_ids[start * size : stop * size]
        for listener in self._listeners:
            listener.stored(parent, tokens, names[start:stop], names.salt)

    def _on_removed(self, names: list[int]) -> None:
        for listener in self._listeners:
            listener.removed(names)
