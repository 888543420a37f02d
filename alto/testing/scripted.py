"""`Scripted`: an engine that says what the test tells it to say, chunk by chunk.

Two ways to tell it. An ordered list of `Line`s is a *script*: each is said once, an unexpected
prompt is an error, and so is a line that nobody asked for. A mapping or a function from prompts to
chunks *answers* any number of prompts.

The engine runs on the loop's clock and has no task of its own. When a generation is admitted, all
its due times are known: its slot is free again at the last of them, read or not, and a reader
sleeps until the chunk it asks for is due.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, final

import attrs

from alto.errors import Closed, EngineDied, EngineError, GenerationFailed, PromptTooLong
from alto.model import Chunk, EngineStatistics, GenerateRequest
from alto.testing._script import (
    Answers,
    Line,
    Lines,
    Script,
    ScriptError,
    Source,
    count_tokens,
    perform,
    prompt_text,
)

__all__ = ("Line", "ScriptError", "Scripted")


@attrs.define(eq=False, kw_only=True)
class _Generation:
    """One generation, from its first iteration to its end.

    Invariant: *timer* is armed exactly while the generation holds a slot.
    """

    chunks: Sequence[Chunk]
    """What it says."""
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
    reader: asyncio.Future[None] | None = None
    """What its reader waits for: admission, or the next chunk."""
    error: Exception | None = None
    """Why it was ended from outside."""

    @property
    def seconds(self) -> float:
        """How long the engine works on it."""
        steps = len(self.chunks) - (self.failure is None)
        return self.first_delay + steps * self.delay

    def due(self, index: int) -> float:
        """When chunk *index* is there; it has been admitted."""
        assert self.start is not None
        return self.start + self.first_delay + index * self.delay

    def wake(self) -> None:
        """Let the reader look again."""
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)


@final
class Scripted:
    """An engine whose every word and every delay is given.

    Args:
        lines: A list of lines, said once each, or what answers any number of prompts: a mapping
            from whole prompts, or a function of the prompt. Chunks are given as a `Line`, as a
            list of texts, or as one text.
        slots: At most this many generations at once; others wait, in order. None: no limit.
        name: For messages and statistics.
        delay: Seconds from one chunk to the next, where the line does not say. With 0 a
            generation lets other tasks run once, before its first chunk, and not between chunks.
        first_delay: Seconds to the first chunk; None: the same as *delay*.
        max_model_len: Refuse longer prompts; None: any length will do.
    """

    def __init__(
        self,
        lines: Lines,
        /,
        *,
        slots: int | None = None,
        name: str = "scripted",
        delay: float = 0.0,
        first_delay: float | None = None,
        max_model_len: int | None = None,
    ) -> None:
        if slots is not None and slots < 1:
            msg = f"slots must be at least 1, not {slots}"
            raise ValueError(msg)
        if delay < 0 or (first_delay or 0) < 0:
            msg = "a delay must be >= 0 seconds"
            raise ValueError(msg)
        self._source: Source
        if callable(lines) or isinstance(lines, Mapping):
            self._source = Answers(lines)
        else:
            self._source = Script(lines)
        self._name = name
        self._slots = slots
        self._delay = delay
        self._first_delay = delay if first_delay is None else first_delay
        self._max_model_len = max_model_len
        self._requests: list[GenerateRequest] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._death: str | None = None
        self._running: set[_Generation] = set()
        self._waiting: deque[_Generation] = deque()
        self._finished = 0
        self._aborted = 0

    def __repr__(self) -> str:
        """Its state in a line."""
        state = "stopped" if self._loop is None else f"dead: {self._death}"
        if self._loop is not None and self._death is None:
            state = f"{len(self._running)} running, {len(self._waiting)} waiting"
        return f"<Scripted {self._name!r}, {state}>"

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        return self._name

    @property
    def requests(self) -> tuple[GenerateRequest, ...]:
        """Every request it got, in order."""
        return tuple(self._requests)

    async def start(self) -> None:
        """Make it ready, also after it died. What a script has left goes on."""
        if self._loop is None or self._death is not None:
            self._loop = asyncio.get_running_loop()
            self._death = None
            self._finished = self._aborted = 0

    async def stop(self) -> None:
        """Abort what runs.

        Raises:
            ScriptError: Lines are left over, and no other error is on its way already.
        """
        if self._loop is None:
            return
        self._end_all(lambda: Closed(f"engine {self._name!r} was stopped"))
        self._loop = None
        if sys.exc_info()[0] is None:
            self.check_leftovers()

    def kill(self, reason: str = "killed by the test") -> None:
        """Play dead: what runs, and every later generation until a restart, gets ``EngineDied``."""
        self._death = reason
        self._end_all(lambda: EngineDied(self._name, reason))

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Stop it; without an error in the block, complain about lines that are left over."""
        await self.stop()

    def check_leftovers(self) -> None:
        """Return if everything in the script has been said.

        Raises:
            ScriptError: Names the lines that have not.
        """
        left = self._source.leftovers()
        if left:
            listed = "".join(f"\n  {line}" for line in left)
            msg = f"engine {self._name!r} was never asked for {len(left)} of its lines:{listed}"
            raise ScriptError(msg)

    def check_health(self) -> None:
        """Return if it is started and not dead."""
        if self._loop is None:
            msg = f"engine {self._name!r} is not running; start it first"
            raise Closed(msg)
        if self._death is not None:
            raise EngineDied(self._name, self._death)

    def statistics(self) -> EngineStatistics:
        """What it is doing now."""
        return EngineStatistics(
            running=len(self._running),
            waiting=len(self._waiting),
            finished=self._finished,
            aborted=self._aborted,
        )

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Say the line that fits *request*.

        Raises:
            ScriptError: No line fits; the message names the prompt.
        """
        loop = self._started_loop()
        self._requests.append(request)
        generation = self._prepare(request)
        self._waiting.append(generation)
        self._admit()
        try:
            if generation.start is None:
                await self._sleep(generation, None)
            else:
                await asyncio.sleep(0)
            if generation.seconds == 0:  # the engine was done at once, so nothing can end it early
                for chunk in generation.chunks:
                    yield chunk
            else:
                last = len(generation.chunks) - 1
                for index, chunk in enumerate(generation.chunks):
                    if generation.error is not None or generation.due(index) > loop.time():
                        await self._sleep(generation, generation.due(index))
                    if index == last and generation.failure is None:
                        self._complete(generation)
                    yield chunk
                if generation.failure is not None:
                    await self._sleep(generation, generation.due(last + 1))
            if generation.failure is not None:
                self._complete(generation)
                raise generation.failure
        finally:
            self._leave(generation)

    def _started_loop(self) -> asyncio.AbstractEventLoop:
        self.check_health()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise EngineError(self._name, "it belongs to the event loop that started it")
        return loop

    def _prepare(self, request: GenerateRequest) -> _Generation:
        tokens = count_tokens(request.prompt)
        if self._max_model_len is not None and tokens >= self._max_model_len:
            raise PromptTooLong(tokens, self._max_model_len)
        line = self._source.line_for(prompt_text(request.prompt))
        performance = perform(line, request, tokens)
        failure = None
        if performance.fails:
            failure = line.error or GenerationFailed(self._name, "a scripted failure")
        delay, first = self._delay, self._first_delay
        if line.delay is not None:
            delay = first = line.delay
        if line.first_delay is not None:
            first = line.first_delay
        return _Generation(
            chunks=performance.chunks, failure=failure, first_delay=first, delay=delay
        )

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

    def _complete(self, generation: _Generation) -> None:
        """The engine is done with it, whoever reads it or not."""
        if generation.timer is not None:
            self._finished += 1
            self._free_slot(generation, generation.timer)

    def _leave(self, generation: _Generation) -> None:
        """Its reader is gone."""
        if generation.timer is not None:
            self._aborted += 1
            self._free_slot(generation, generation.timer)
        elif generation.start is None and generation.error is None:
            self._aborted += 1
            self._waiting.remove(generation)

    def _free_slot(self, generation: _Generation, timer: asyncio.TimerHandle) -> None:
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

    async def _sleep(self, generation: _Generation, until: float | None) -> None:
        """Wait for *until*, or for the admission where it is None; or for an error."""
        if generation.error is None:
            loop = asyncio.get_running_loop()
            generation.reader = loop.create_future()
            timer = None if until is None else loop.call_at(until, generation.wake)
            try:
                await generation.reader
            finally:
                generation.reader = None
                if timer is not None:
                    timer.cancel()
        if generation.error is not None:
            raise generation.error
