"""`Simulated`: an engine that takes the time of a real one, and says what it is told to.

Theory of operation. :class:`~alto.engines._simulated.batching.Batching` decides everything, on given time;
this is a thin shell around it on the running loop's clock, which tests make virtual. One timer
stands at the machine's next event. What the machine tells goes to the generations that it is about,
and these wake their readers. A generation gives up its place when the machine says so, read or not;
a reader that lags gets what it has missed in one chunk.
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
    """The names of a prompt's full blocks, with what they stand for."""

    token_ids: Sequence[int]
    salt: int


@final
class Simulated(FakeEngine):
    """An engine that takes the time of the one that *profile* describes. See the module.

    It models continuous batching with chunked prefill, a prefix cache, memory that runs short, and
    waiting; it does not model words. ``choice`` is honoured; with ``regex`` and ``json_schema`` what
    it says is what it was given, fitting or not. All samples of a request say the same.
    Log-probabilities are 0: it is certain. A streamed prompt is read to its end first.

    Args:
        profile: Constants and limits of the engine; ``alto.engines.profiles`` has some.
        says: What it says: a text, a number of filler tokens, or a list of the texts of its tokens;
            or a mapping from prompts to these; or a function from a request to one of these.
        name: For messages and statistics.
        split: Cuts a text, a prompt or an answer, into the texts of its tokens. By default
            every word is a token.
        stream_interval: Hand out a chunk every so many tokens; more is cheaper.

    Raises:
        ValueError: A number is below 1.
        TypeError: *says* is no answer.
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
        """What it simulates."""
        return self._profile

    @property
    def capacity(self) -> EngineCapacity:
        """What it can do at once; known whether it runs or not."""
        return self._profile.capacity

    def statistics(self) -> EngineStatistics:
        """What it is doing now. Samples count one by one where they run or wait."""
        machine = self._machine
        return attrs.evolve(
            self._counts,
            running=machine.running,
            waiting=machine.waiting,
            kv_usage=machine.kv_used / (self._profile.kv_blocks * self._profile.block_size),
            preempted=machine.preempted,
        )

    def listen(self, listener: CacheListener, /) -> bool:
        """Tell *listener* of prompt blocks; those of outputs nobody else could use.

        They are told of when the step that computes them begins.
        """
        self._listeners.append(listener)
        return True

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """The token ids of a prompt: of each of its words, or as it gives them itself."""
        self.check_health()
        return self._answers.encode(prompt)

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Say what is given to be said to *request*.

        Raises:
            InvalidRequest: Nothing is; or its prompt is too long.
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
        """Its reader is gone."""
        if generation not in self._open:  # the engine was done with it
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
        """Look at the machine again when all that runs at this moment has done so."""
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None
        self._timer = self._loop.call_soon(self._arm)

    def _arm(self) -> None:
        assert self._loop is not None
        due = self._machine.next_event()
        self._timer = None if due is None else self._loop.call_at(due, self._run, due)

    def _run(self, due: float) -> None:
        """Something is due; the loop's clock may be a little behind."""
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
        """The engine is done with it, whoever reads it or not."""
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
        """End everything with *error*, and lose the cache."""
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
