"""Contracts, as checks that run against anybody's implementation.

Each raises `AssertionError` with a sentence that says what was promised and what came instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, final

import attrs

from alto.errors import Closed, InvalidRequest
from alto.model import Chunk, EngineStatistics, GenerateRequest, Prompt
from alto.protocols import Engine

__all__ = ("check_engine",)

_T = TypeVar("_T")


async def check_engine(  # noqa: PLR0913  # each is a fact about the engine under test
    make: Callable[[], Engine],
    *,
    prompt: Prompt = "Tell me something.",
    max_tokens: int = 16,
    expect: str | None = None,
    unservable: Sequence[GenerateRequest] = (),
    concurrency: int = 16,
    repeatable: bool = True,
    restart: bool = True,
    timeout: float = 60.0,
) -> None:
    """Run the contract of :class:`alto.protocols.Engine` against one engine that *make* makes.

    Args:
        make: Makes an engine that has not been started.
        prompt: One that it can serve any number of times, with an answer of several chunks.
        max_tokens: For most of the generations.
        expect: What it says to *prompt*; None: anything.
        unservable: Requests that it must refuse with ``InvalidRequest``.
        concurrency: How many generations to run at once.
        repeatable: Whether it says the same to equal requests with temperature 0 and a seed.
        restart: Whether to start it a second time, which may be slow.
        timeout: Seconds that a start, a stop or a generation may take.

    Raises:
        AssertionError: The first promise that it breaks.
    """
    engine = make()
    request = GenerateRequest(prompt=prompt, max_tokens=max_tokens, temperature=0.0, seed=1)
    check = _Check(engine=engine, request=request, expect=expect, timeout=timeout)
    await check.nothing_works_before_the_start()
    await check.within("start()", engine.start())
    try:
        await check.starting_again_does_nothing()
        await check.a_generation_is_well_formed()
        await check.max_tokens_is_respected()
        if repeatable:
            await check.equal_requests_get_equal_text()
        await check.many_run_at_once(concurrency, equal=repeatable)
        await check.the_engine_goes_on_unread()
        await check.closing_early_frees()
        await check.cancelling_the_reader_frees()
        for bad in unservable:
            await check.what_cannot_be_served_is_refused(bad)
        await check.stopping_ends_what_runs()
        if restart:
            await check.it_starts_again()
    except BaseException:
        with suppress(Exception):  # what it did before is the news
            await check.within("stop()", engine.stop())
        raise


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


@final
@attrs.frozen(kw_only=True)
class _Check:
    """One engine under test. Every method is a promise, and leaves the engine as it was."""

    engine: Engine
    request: GenerateRequest
    expect: str | None
    timeout: float

    async def within(self, what: str, work: Awaitable[_T]) -> _T:
        """The result of *work*, which may not hang."""
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except TimeoutError as error:
            raise AssertionError(f"{what} did not end within {self.timeout:g} s") from error

    async def read(self, request: GenerateRequest) -> list[Chunk]:
        """All chunks of one generation."""

        async def collect() -> list[Chunk]:
            return [chunk async for chunk in self.engine.generate(request)]

        return await self.within("a generation", collect())

    async def refused(self, kind: type[Exception], request: GenerateRequest, when: str) -> None:
        """The first iteration raises *kind*."""
        try:
            chunks = await self.read(request)
        except kind:
            return
        except Exception as error:
            raise AssertionError(
                f"generate() {when} must raise {kind.__name__}, not {error!r}"
            ) from error
        raise AssertionError(
            f"generate() {when} must raise {kind.__name__}, but it said {_text(chunks)!r}"
        )

    def unhealthy(self, when: str) -> None:
        """The health check raises ``Closed``."""
        try:
            self.engine.check_health()
        except Closed:
            return
        raise AssertionError(f"check_health() {when} must raise Closed, and it returned")

    def idle(self, when: str) -> None:
        """Nothing runs and nothing waits."""
        now = self.engine.statistics()
        _require(now == EngineStatistics(), f"{when}, statistics() must be all zeros, not {now}")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """A generation whose first chunk has been read."""
        chunks = self.engine.generate(self.request)
        try:
            await self.within("the first chunk", anext(chunks))
            yield chunks
        finally:
            await self.within("aclose()", chunks.aclose())

    async def nothing_works_before_the_start(self) -> None:
        """Before the start."""
        _require(isinstance(self.engine, Engine), f"{self.engine!r} lacks a method of Engine")
        _require(isinstance(self.engine.name, str), f"name must be a str: {self.engine.name!r}")
        self.idle("before the start")
        self.unhealthy("before the start")
        await self.refused(Closed, self.request, "before the start")
        await self.within("stop() before the start", self.engine.stop())

    async def starting_again_does_nothing(self) -> None:
        """A second start."""
        await self.within("a second start()", self.engine.start())
        self.engine.check_health()
        self.idle("after the start")

    async def a_generation_is_well_formed(self) -> None:
        """Chunks, the finish reason, the usage, the text."""
        chunks = await self.read(self.request)
        _require(chunks, "a generation must have at least one chunk")
        for number, chunk in enumerate(chunks):
            _require(isinstance(chunk, Chunk), f"chunk {number} is no Chunk: {chunk!r}")
            _require(
                isinstance(chunk.token_ids, tuple),
                f"chunk {number} must have a tuple of token ids, not {chunk.token_ids!r}",
            )
            is_last = number == len(chunks) - 1
            _require(
                (chunk.finish_reason is not None) == is_last,
                f"the last chunk, and only the last, has a finish_reason; "
                f"chunk {number} of {len(chunks)} has {chunk.finish_reason!r}",
            )
        self._usage_adds_up(chunks)
        _require(_text(chunks), "a generation's text must not be empty here; give another prompt")
        if self.expect is not None:
            _require(
                _text(chunks) == self.expect,
                f"the chunks must join to {self.expect!r}, not {_text(chunks)!r}",
            )
        self.idle("after a generation")

    def _usage_adds_up(self, chunks: Sequence[Chunk]) -> None:
        usage = chunks[-1].usage
        if usage is None:
            raise AssertionError("the last chunk must have a usage")
        limit = self.request.max_tokens
        _require(
            limit is None or 0 <= usage.output_tokens <= limit,
            f"with max_tokens={limit} output_tokens must not be {usage.output_tokens}",
        )
        ids = sum(len(chunk.token_ids) for chunk in chunks)
        _require(
            ids in (0, usage.output_tokens),
            f"output_tokens is {usage.output_tokens}, and the chunks have {ids} token ids",
        )
        _require(usage.prompt_tokens > 0, "prompt_tokens must be above 0")
        _require(
            0 <= usage.cached_tokens <= usage.prompt_tokens,
            f"cached_tokens must be within the prompt: {usage}",
        )

    async def max_tokens_is_respected(self) -> None:
        """One token at most."""
        chunks = await self.read(attrs.evolve(self.request, max_tokens=1))
        last = chunks[-1]
        _require(
            last.usage is not None and last.usage.output_tokens <= 1,
            f"with max_tokens=1 the usage must not be {last.usage}",
        )
        _require(
            last.finish_reason == "length",
            f"with max_tokens=1 the finish_reason must be 'length', not {last.finish_reason!r}",
        )

    async def equal_requests_get_equal_text(self) -> None:
        """The same twice."""
        first = _text(await self.read(self.request))
        second = _text(await self.read(self.request))
        _require(first == second, f"equal requests must get equal text: {first!r}, {second!r}")

    async def many_run_at_once(self, concurrency: int, *, equal: bool) -> None:
        """All end, and say what they say alone."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._outcome(self.request)) for _ in range(concurrency)]
        texts = set()
        for task in tasks:
            outcome = task.result()
            if isinstance(outcome, Exception):
                raise outcome
            texts.add(_text(outcome))
        if equal:
            _require(
                len(texts) == 1,
                f"{concurrency} equal requests at once must get equal text, not {sorted(texts)!r}",
            )
        self.idle(f"after {concurrency} generations at once")

    async def the_engine_goes_on_unread(self) -> None:
        """The slot of a generation that nobody reads."""

        async def wait_idle() -> None:
            while self.engine.statistics() != EngineStatistics():  # noqa: ASYNC110  # all there is
                await asyncio.sleep(0.01)

        async with self.reading():
            await self.within("a generation that is not read on", wait_idle())

    async def _outcome(self, request: GenerateRequest) -> list[Chunk] | Exception:
        """What :meth:`read` gives or raises; a task group would wrap an error in a group."""
        try:
            return await self.read(request)
        except Exception as error:  # noqa: BLE001  # raised again by who asks
            return error

    async def closing_early_frees(self) -> None:
        """Left after one chunk, or before the first."""
        async with self.reading() as chunks:
            await self.within("aclose()", chunks.aclose())
            self.idle("after a generation was closed early")
            _require(
                await anext(chunks, None) is None, "a closed generation must not give more chunks"
            )
        unopened = self.engine.generate(self.request)
        await self.within("aclose()", unopened.aclose())
        self.idle("after a generation was closed before its first chunk")

    async def cancelling_the_reader_frees(self) -> None:
        """A task that is cancelled in the middle of reading, at several places."""
        for steps in range(4):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self._outcome(self.request))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
            self.idle(f"after a reading task was cancelled at its step {steps}")

    async def what_cannot_be_served_is_refused(self, request: GenerateRequest) -> None:
        """Refused, without harm to others."""
        await self.refused(InvalidRequest, request, f"of {request!r}")
        self.idle("after a refused request")
        await self.read(self.request)

    async def stopping_ends_what_runs(self) -> None:
        """Readers learn of it, and a second stop does nothing."""
        request = attrs.evolve(self.request, max_tokens=None)
        chunks = self.engine.generate(request)
        await self.within("the first chunk", anext(chunks))
        ran = self.engine.statistics().running > 0
        async with asyncio.TaskGroup() as group:
            starting = [group.create_task(self._outcome(request)) for _ in range(3)]
            await asyncio.sleep(0)
            stopping = group.create_task(self._stopped())
        _require(stopping.result() is None, str(stopping.result()))
        await self._ended_by_the_stop(chunks, ran=ran)
        for task in starting:
            outcome = task.result()
            _require(
                isinstance(outcome, (list, Closed)),
                f"a generation that starts when the engine stops must end with Closed, "
                f"not {outcome!r}",
            )
        self.idle("after the stop")
        self.unhealthy("after the stop")
        await self.refused(Closed, self.request, "after the stop")
        await self.within("a second stop()", self.engine.stop())

    async def _stopped(self) -> AssertionError | None:
        try:
            await self.within("stop()", self.engine.stop())
        except AssertionError as error:
            return error
        return None

    async def _ended_by_the_stop(self, chunks: AsyncIterator[Chunk], *, ran: bool) -> None:
        async def drain() -> None:
            async for _ in chunks:
                pass

        try:
            await self.within("a generation after the stop", drain())
        except Closed:
            return
        _require(not ran, "a generation that runs when the engine is stopped must end with Closed")

    async def it_starts_again(self) -> None:
        """A second life."""
        await self.within("start() after a stop", self.engine.start())
        self.engine.check_health()
        self.idle("after a second start")
        await self.a_generation_is_well_formed()
        await self.within("stop()", self.engine.stop())


def _text(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)
