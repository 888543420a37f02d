"""`Scripted`: an engine whose output a test gives, chunk by chunk.

There are two ways to give it. An ordered list of `Line`s is a *script*: each is used once, an unexpected
prompt is an error, and so is a line that was never used. A mapping or a function from prompts to
chunks *answers* any number of prompts.

Vectors and scores are answered from mappings or functions of their own.

The engine runs on the loop's clock and has no task of its own. When a generation is admitted, all
its due times are known: its slot is free again at the last of them, read or not, and a reader
sleeps until the chunk it asks for is due.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import final

from alto.engines._fake import FakeEngine
from alto.engines._prompt_text import prompt_text, whole_prompt
from alto.errors import GenerationFailed, PromptTooLong
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    EngineStatistics,
    GenerateRequest,
    Prompt,
    StreamedPrompt,
)
from alto.testing._generation import ScriptedGeneration
from alto.testing._script import (
    Line,
    Lines,
    Script,
    ScriptedAnswers,
    ScriptError,
    ScriptSource,
    count_tokens,
    perform,
)
from alto.testing._vectors import Embeds, Scores, Vectors

__all__ = ("Line", "ScriptError", "Scripted")


@final
class Scripted(FakeEngine):
    """An engine whose every chunk and every delay is given.

    Args:
        lines: A list of lines, used once each; or answers to any number of prompts: a mapping from
            whole prompts, or a function of the prompt. Chunks are given as a `Line`, as a list of
            texts, or as one text.
        slots: Largest number of generations at once; others wait, in order. None: no limit.
        name: For messages and statistics.
        delay: Seconds from one chunk to the next, where the line does not say. With 0 a
            generation lets other tasks run once, before its first chunk, and not between chunks.
        first_delay: Seconds to the first chunk; None: the same as *delay*.
        max_model_len: Refuse longer prompts; None: any length will do.
        embeds: Vectors of prompts, for `alto.LLM.embed`: a mapping or a function. One takes
            *first_delay* and a slot. Asked for a vector per token, each word gets this one.
        scores: Scores of pairs of texts, for `alto.LLM.score`, in the same ways.
    """

    def __init__(  # noqa: PLR0913  # independent settings, each with a default
        self,
        lines: Lines,
        /,
        *,
        slots: int | None = None,
        name: str = "scripted",
        delay: float = 0.0,
        first_delay: float | None = None,
        max_model_len: int | None = None,
        embeds: Embeds | None = None,
        scores: Scores | None = None,
    ) -> None:
        if slots is not None and slots < 1:
            msg = f"slots must be at least 1, not {slots}"
            raise ValueError(msg)
        if delay < 0 or (first_delay or 0) < 0:
            msg = "a delay must be >= 0 seconds"
            raise ValueError(msg)
        self._source: ScriptSource
        if callable(lines) or isinstance(lines, Mapping):
            self._source = ScriptedAnswers(lines)
        else:
            self._source = Script(lines)
        super().__init__(name)
        self._slots = slots
        self._delay = delay
        self._first_delay = delay if first_delay is None else first_delay
        self._max_model_len = max_model_len
        self._vectors = Vectors(name, embeds, scores)
        self._requests: list[GenerateRequest] = []
        self._embed_requests: list[EmbedRequest] = []
        self._running: set[ScriptedGeneration] = set()
        self._waiting: deque[ScriptedGeneration] = deque()
        self._finished = 0
        self._aborted = 0

    @property
    def requests(self) -> tuple[GenerateRequest, ...]:
        """Requests that it got, in order."""
        return tuple(self._requests)

    @property
    def embed_requests(self) -> tuple[EmbedRequest, ...]:
        """Requests for vectors and scores that it got, in order."""
        return tuple(self._embed_requests)

    @property
    def scores_pairs(self) -> bool:
        """True if it was given scores; then it acts as a cross-encoder."""
        return self._vectors.scores_pairs

    async def stop(self) -> None:
        """End all generations with ``Closed``. What is left of a script is kept for the next start.

        Raises:
            ScriptError: Lines are left over, and no other error is being raised.
        """
        was_running = self._loop is not None
        await super().stop()
        # An error that is on its way says more than the lines that it left over.
        if was_running and sys.exc_info()[0] is None:
            self.check_leftovers()

    def check_leftovers(self) -> None:
        """Return if every line of the script has been used.

        Raises:
            ScriptError: It names the lines that have not.
        """
        left = self._source.leftovers()
        if left:
            listed = "".join(f"\n  {line}" for line in left)
            msg = f"engine {self._name!r} was never asked for {len(left)} of its lines:{listed}"
            raise ScriptError(msg)

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing now."""
        return EngineStatistics(
            running=len(self._running),
            waiting=len(self._waiting),
            finished=self._finished,
            aborted=self._aborted,
        )

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Give the chunks of the line that fits *request*. A streamed prompt is read to its end first.

        Raises:
            ScriptError: No line fits; the message names the prompt.
        """
        loop = self._running_loop()
        asked = loop.time()
        self._requests.append(request)
        if isinstance(request.prompt, StreamedPrompt):
            prompt: Prompt = await whole_prompt(request.prompt)
            self.check_health()
        else:
            prompt = request.prompt
        generation = self._prepare(request, prompt, asked)
        self._waiting.append(generation)
        self._admit()
        last = len(generation.chunks) - 1
        try:
            await self._admitted(generation)
            if (
                generation.seconds == 0
            ):  # the engine was done at its admission, so nothing ends it early
                for chunk in generation.chunks:
                    yield generation.timed(chunk)
            else:
                for index, chunk in enumerate(generation.chunks):
                    due = generation.due(generation.steps[index])
                    if generation.error is not None or due > loop.time():
                        await self._sleep(generation, due)
                    if index == last and generation.failure is None:
                        self._complete(generation)
                    yield generation.timed(chunk)
                if generation.failure is not None:
                    await self._sleep(generation, generation.due(generation.last_step))
            if generation.failure is not None:
                self._complete(generation)
                raise generation.failure
        finally:
            self._leave(generation)

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Return the vector, or for a pair the score, that the test gave for *request*.

        Raises:
            InvalidRequest: No vectors, or no scores, were given.
            ScriptError: None was given for this prompt; the message names it.
        """
        asked = self._running_loop().time()
        self._embed_requests.append(request)
        embedding = self._vectors.embedding(request)
        generation = ScriptedGeneration(
            chunks=(), steps=(), last_step=0, asked=asked, failure=None,
            first_delay=self._first_delay, delay=0.0,
        )  # fmt: skip
        self._waiting.append(generation)
        self._admit()
        try:
            await self._admitted(generation)
            if generation.seconds > 0:
                await self._sleep(generation, generation.due(0))
                self._complete(generation)
        finally:
            self._leave(generation)
        return embedding

    async def _admitted(self, generation: ScriptedGeneration) -> None:
        """Wait until *generation* has begun, for at least one turn of the loop."""
        if generation.start is None:
            await self._sleep(generation, None)
        else:
            await asyncio.sleep(0)

    def _prepare(
        self, request: GenerateRequest, prompt: Prompt, asked: float
    ) -> ScriptedGeneration:
        tokens = count_tokens(prompt)
        if self._max_model_len is not None and tokens >= self._max_model_len:
            raise PromptTooLong(tokens, self._max_model_len)
        line = self._source.line_for(prompt_text(prompt))
        performance = perform(line, request, tokens)
        failure = None
        if performance.fails_at is not None:
            failure = line.error or GenerationFailed(self._name, "a scripted failure")
        delay, first = self._delay, self._first_delay
        if line.delay is not None:
            delay = first = line.delay
        if line.first_delay is not None:
            first = line.first_delay
        return ScriptedGeneration(
            chunks=performance.chunks,
            steps=performance.steps,
            last_step=performance.last_step,
            asked=asked,
            failure=failure,
            first_delay=first,
            delay=delay,
        )

    def _reset(self) -> None:
        self._finished = self._aborted = 0

    def _admit(self) -> None:
        """Give free slots to those that wait, in order."""
        assert self._loop is not None
        while self._waiting and (self._slots is None or len(self._running) < self._slots):
            generation = self._waiting.popleft()
            generation.start = self._loop.time()
            if generation.seconds > 0:
                end = generation.start + generation.seconds
                generation.timer = self._loop.call_at(end, self._complete, generation)
                self._running.add(generation)
            else:
                self._finished += 1
            generation.wake()

    def _complete(self, generation: ScriptedGeneration) -> None:
        """Finish the generation in the engine, read or not, and free its slot."""
        if generation.timer is not None:
            self._finished += 1
            self._free_slot(generation, generation.timer)

    def _leave(self, generation: ScriptedGeneration) -> None:
        """Abort the generation, if its reader leaves before its end."""
        if generation.timer is not None:
            self._aborted += 1
            self._free_slot(generation, generation.timer)
        elif generation.start is None and generation.error is None:
            self._aborted += 1
            self._waiting.remove(generation)

    def _free_slot(self, generation: ScriptedGeneration, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        generation.timer = None
        self._running.remove(generation)
        self._admit()

    def _end_all(self, error: Callable[[], Exception]) -> None:
        """End what runs and what waits with *error*."""
        for generation in (*self._running, *self._waiting):
            generation.error = error()
            if generation.timer is not None:
                generation.timer.cancel()
                generation.timer = None
            self._aborted += 1
            generation.wake()
        self._running.clear()
        self._waiting.clear()

    async def _sleep(self, generation: ScriptedGeneration, until: float | None) -> None:
        """Wait for *until*, in seconds on the loop's clock, or for the admission where it is None.

        Raises:
            Exception: The engine has ended the generation with this error.
        """
        loop = asyncio.get_running_loop()  # the engine may have been stopped, and has none then
        timer = None if until is None else loop.call_at(until, generation.wake)
        try:
            await generation.wait()
        finally:
            if timer is not None:
                timer.cancel()
