"""Contract checks that run against any implementation.

A :class:`Probe` runs requests against an engine. :class:`Abilities` checks what an engine may also
refuse: one that cannot do it must raise ``InvalidRequest``; one that does it wrongly, or ignores the
request for it, breaks the contract. ``_Check`` has the promises that hold for every engine.

Each check raises `AssertionError` with a sentence that states the promise and what happened instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any, TypeVar, final

import attrs

from alto.errors import Closed, InvalidRequest
from alto.model import Chunk, EngineStatistics, GenerateRequest, Prompt, StreamedPrompt
from alto.protocols import Engine

__all__ = ("Abilities", "Probe", "check_engine", "require", "text_of", "usage_adds_up")

_T = TypeVar("_T")


def require(condition: object, message: str) -> None:
    """Raise `AssertionError` with *message* unless *condition* holds."""
    if not condition:
        raise AssertionError(message)


def text_of(chunks: Sequence[Chunk], index: int = 0) -> str:
    """Return the text of one sample."""
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


@attrs.frozen(kw_only=True)
class Probe:
    """One engine under test."""

    engine: Engine
    """The engine to check."""
    request: GenerateRequest
    """A request that the engine can serve any number of times."""
    expect: str | None
    """The engine's answer to *request*; None: any."""
    timeout: float
    """Seconds after which a step counts as hanging."""

    async def within(self, what: str, work: Awaitable[_T]) -> _T:
        """Return the result of *work*, which must not hang."""
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except TimeoutError as error:
            raise AssertionError(f"{what} did not end within {self.timeout:g} s") from error

    async def read(self, request: GenerateRequest) -> list[Chunk]:
        """Return all chunks of one generation."""

        async def collect() -> list[Chunk]:
            return [chunk async for chunk in self.engine.generate(request)]

        return await self.within("a generation", collect())

    async def outcome(self, request: GenerateRequest) -> list[Chunk] | Exception:
        """Return the result or the exception of :meth:`read`. A task group would wrap an exception."""
        try:
            return await self.read(request)
        except Exception as error:  # noqa: BLE001  # the caller raises it
            return error

    async def refused(self, kind: type[Exception], request: GenerateRequest, when: str) -> None:
        """Assert that the first iteration raises *kind*."""
        try:
            chunks = await self.read(request)
        except kind:
            return
        except Exception as error:
            raise AssertionError(
                f"generate() {when} must raise {kind.__name__}, not {error!r}"
            ) from error
        raise AssertionError(
            f"generate() {when} must raise {kind.__name__}, but it said {text_of(chunks)!r}"
        )

    def unhealthy(self, when: str) -> None:
        """Assert that the health check raises ``Closed``."""
        try:
            self.engine.check_health()
        except Closed:
            return
        raise AssertionError(f"check_health() {when} must raise Closed, and it returned")

    def idle(self, when: str) -> None:
        """Assert that no generation runs or waits."""
        now = self.engine.statistics()
        require(now == EngineStatistics(), f"{when}, statistics() must be all zeros, not {now}")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """Run a block with a generation whose first chunk has been read."""
        chunks = self.engine.generate(self.request)
        try:
            await self.within("the first chunk", anext(chunks))
            yield chunks
        finally:
            await self.within("aclose()", chunks.aclose())


_SAMPLES = 3


class _TailFailedError(Exception):
    """The exception of a failing tail."""


def usage_adds_up(chunks: Sequence[Chunk], request: GenerateRequest) -> None:
    """Assert that the counts and times of the last chunk are consistent."""
    usage = chunks[-1].usage
    if usage is None:
        raise AssertionError("the last chunk must have a usage")
    limit = None if request.max_tokens is None else request.max_tokens * request.n
    require(
        limit is None or 0 <= usage.output_tokens <= limit,
        f"with max_tokens={request.max_tokens} output_tokens must not be {usage.output_tokens}",
    )
    ids = sum(len(chunk.token_ids) for chunk in chunks)
    require(
        ids in (0, usage.output_tokens),
        f"output_tokens is {usage.output_tokens}, and the chunks have {ids} token ids",
    )
    require(usage.prompt_tokens > 0, "prompt_tokens must be above 0")
    require(
        0 <= usage.cached_tokens <= usage.prompt_tokens,
        f"cached_tokens must be within the prompt: {usage}",
    )
    for name in ("queue_time", "first_token_time"):
        require(getattr(usage, name) >= 0, f"{name} must be at least 0 seconds: {usage}")


@attrs.frozen(kw_only=True)
class Abilities(Probe):
    """Checks of optional abilities. Every method leaves the engine as it was."""

    async def served(self, request: GenerateRequest) -> list[Chunk] | None:
        """Return all chunks; None if the engine refused the request, as it may."""
        try:
            chunks = await self.read(request)
        except InvalidRequest:
            chunks = None
        self.idle(f"after {_described(request)}")
        return chunks

    async def samples_are_well_formed(self) -> None:
        """Assert that each of several samples ends once, and that the usage is that of all."""
        request = attrs.evolve(self.request, n=_SAMPLES, temperature=1.0)
        chunks = await self.served(request)
        if chunks is None:
            return
        open_samples = set(range(_SAMPLES))
        for chunk in chunks:
            require(
                chunk.index in open_samples,
                f"with n={_SAMPLES} no chunk may have index {chunk.index!r} "
                f"while only {sorted(open_samples)} have not ended",
            )
            if chunk.finish_reason is not None:
                open_samples.remove(chunk.index)
        require(
            not open_samples,
            f"with n={_SAMPLES} each sample has a chunk with a finish_reason, "
            f"and {sorted(open_samples)} have none",
        )
        usage_adds_up(chunks, request)

    async def logprobs_come_with_tokens(self) -> None:
        """Assert that every chunk has one log probability per token."""
        chunks = await self.served(attrs.evolve(self.request, logprobs=2))
        for number, chunk in enumerate(chunks or ()):
            logprobs = chunk.logprobs or ()
            require(
                [entry.token_id for entry in logprobs] == [*chunk.token_ids],
                f"with logprobs=2 chunk {number} must have one for each of its token ids "
                f"{chunk.token_ids!r}, not {chunk.logprobs!r}",
            )
            for entry in logprobs:
                require(
                    entry.logprob <= 0 and all(value <= 0 for _, value in entry.top),
                    f"a log-probability must not be above 0: {entry!r}",
                )

    async def a_streamed_prompt_is_its_text(self, *, equal: bool) -> None:
        """Assert that a prompt that arrives piece by piece gets the answer of the whole prompt."""
        prompt = self.request.prompt
        if not isinstance(prompt, str):
            return
        places = [0, len(prompt) // 3, len(prompt) // 2, len(prompt)]
        head, *rest = (prompt[a:b] for a, b in pairwise(places))
        for start, pieces in ((head, rest), ("", [head, *rest]), (prompt, [])):
            streamed = attrs.evolve(self.request, prompt=StreamedPrompt(start, _tail(pieces)))
            chunks = await self.served(streamed)
            if chunks is None:
                return
            require(chunks, "a generation with a streamed prompt must have at least one chunk")
            require(
                chunks[-1].finish_reason is not None,
                "the last chunk for a streamed prompt must have a finish_reason",
            )
            usage_adds_up(chunks, streamed)
            if equal:
                whole = text_of(await self.read(self.request))
                require(
                    text_of(chunks) == whole,
                    f"streamed as {start!r} and {pieces!r} the prompt must get the text of the "
                    f"whole, {whole!r}, not {text_of(chunks)!r}",
                )

    async def a_failing_tail_frees(self) -> None:
        """Assert that a generation whose prompt raises ends with that error and holds nothing."""
        if not isinstance(self.request.prompt, str):
            return
        streamed = StreamedPrompt(self.request.prompt, _failing())
        try:
            chunks = await self.served(attrs.evolve(self.request, prompt=streamed))
        except _TailFailedError:
            self.idle("after the tail of a streamed prompt failed")
            return
        except Exception as error:
            raise AssertionError(
                f"what the tail of a streamed prompt raises must arrive as it is, not as {error!r}"
            ) from error
        require(
            chunks is None,
            f"where the tail of a streamed prompt raises, so must the generation; "
            f"it said {text_of(chunks or ())!r}",
        )

    async def leaving_an_open_tail_frees(self) -> None:
        """Assert that a reader cancelled while the prompt is still being written leaves nothing behind."""
        if not isinstance(self.request.prompt, str):
            return
        asked = asyncio.Event()
        streamed = StreamedPrompt(self.request.prompt, _endless(asked))
        request = attrs.evolve(self.request, prompt=streamed)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self.outcome(request))
            asking = group.create_task(asked.wait())
            await self.within(
                "a generation whose tail is read",
                asyncio.wait((reader, asking), return_when=asyncio.FIRST_COMPLETED),
            )
            await asyncio.sleep(0)
            asking.cancel()
            reader.cancel()
        if not reader.cancelled() and isinstance(error := reader.result(), Exception):
            require(isinstance(error, InvalidRequest), f"it must not fail with {error!r}")
        self.idle("after a reader left while the tail of its prompt was open")


def _described(request: GenerateRequest) -> str:
    if isinstance(request.prompt, StreamedPrompt):
        return "a streamed prompt"
    return f"n={request.n}" if request.n > 1 else f"logprobs={request.logprobs}"


async def _tail(pieces: Sequence[str]) -> AsyncIterator[str]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def _failing() -> AsyncIterator[str]:
    yield " and"
    await asyncio.sleep(0)
    raise _TailFailedError


async def _endless(asked: asyncio.Event) -> AsyncIterator[str]:
    yield " and"
    asked.set()
    await asyncio.Event().wait()


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

    Several samples, log-probabilities and streamed prompts it may refuse with ``InvalidRequest``;
    it may not serve them wrongly, nor ignore that they were asked for.

    Args:
        make: Makes an engine that has not been started.
        prompt: One that it can serve any number of times, with an answer of several chunks.
        max_tokens: For most of the generations.
        expect: What it says to *prompt*; None: anything.
        unservable: Requests that it must refuse with ``InvalidRequest``.
        concurrency: Number of generations to run concurrently.
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
        await check.samples_are_well_formed()
        await check.logprobs_come_with_tokens()
        await check.a_streamed_prompt_is_its_text(equal=repeatable)
        await check.a_failing_tail_frees()
        await check.leaving_an_open_tail_frees()
        for bad in unservable:
            await check.what_cannot_be_served_is_refused(bad)
        await check.stopping_ends_what_runs()
        if restart:
            await check.it_starts_again()
    except BaseException:
        with suppress(Exception):  # what it did before is the news
            await check.within("stop()", engine.stop())
        raise


@final
@attrs.frozen(kw_only=True)
class _Check(Abilities):
    """Checks of the contract. Every method leaves the engine as it was."""

    async def nothing_works_before_the_start(self) -> None:
        """Assert that requests are refused before the start."""
        require(isinstance(self.engine, Engine), f"{self.engine!r} lacks a method of Engine")
        require(isinstance(self.engine.name, str), f"name must be a str: {self.engine.name!r}")
        self.idle("before the start")
        self.unhealthy("before the start")
        await self.refused(Closed, self.request, "before the start")
        await self.within("stop() before the start", self.engine.stop())

    async def starting_again_does_nothing(self) -> None:
        """Assert that a second start has no effect."""
        await self.within("a second start()", self.engine.start())
        self.engine.check_health()
        self.idle("after the start")

    async def a_generation_is_well_formed(self) -> None:
        """Check the chunks, finish reason, usage and text of one generation."""
        chunks = await self.read(self.request)
        require(chunks, "a generation must have at least one chunk")
        for number, chunk in enumerate(chunks):
            require(isinstance(chunk, Chunk), f"chunk {number} is no Chunk: {chunk!r}")
            require(
                isinstance(chunk.token_ids, tuple),
                f"chunk {number} must have a tuple of token ids, not {chunk.token_ids!r}",
            )
            require(chunk.index == 0, f"chunk {number} of one sample has index {chunk.index!r}")
            is_last = number == len(chunks) - 1
            require(
                (chunk.finish_reason is not None) == is_last,
                f"the last chunk, and only the last, has a finish_reason; "
                f"chunk {number} of {len(chunks)} has {chunk.finish_reason!r}",
            )
        usage_adds_up(chunks, self.request)
        require(text_of(chunks), "a generation's text must not be empty here; give another prompt")
        if self.expect is not None:
            require(
                text_of(chunks) == self.expect,
                f"the chunks must join to {self.expect!r}, not {text_of(chunks)!r}",
            )
        self.idle("after a generation")

    async def max_tokens_is_respected(self) -> None:
        """Check that ``max_tokens=1`` yields at most one token."""
        chunks = await self.read(attrs.evolve(self.request, max_tokens=1))
        last = chunks[-1]
        require(
            last.usage is not None and last.usage.output_tokens <= 1,
            f"with max_tokens=1 the usage must not be {last.usage}",
        )
        require(
            last.finish_reason == "length",
            f"with max_tokens=1 the finish_reason must be 'length', not {last.finish_reason!r}",
        )

    async def equal_requests_get_equal_text(self) -> None:
        """Check that equal requests get equal answers."""
        first = text_of(await self.read(self.request))
        second = text_of(await self.read(self.request))
        require(first == second, f"equal requests must get equal text: {first!r}, {second!r}")

    async def many_run_at_once(self, concurrency: int, *, equal: bool) -> None:
        """Check that concurrent generations end with the answers that they get alone."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.outcome(self.request)) for _ in range(concurrency)]
        texts = set()
        for task in tasks:
            outcome = task.result()
            if isinstance(outcome, Exception):
                raise outcome
            texts.add(text_of(outcome))
        if equal:
            require(
                len(texts) == 1,
                f"{concurrency} equal requests at once must get equal text, not {sorted(texts)!r}",
            )
        self.idle(f"after {concurrency} generations at once")

    async def the_engine_goes_on_unread(self) -> None:
        """Check that a generation that is not read frees its slot."""

        async def wait_idle() -> None:
            while self.engine.statistics() != EngineStatistics():  # noqa: ASYNC110  # all there is
                await asyncio.sleep(0.01)

        async with self.reading():
            await self.within("a generation that is not read on", wait_idle())

    async def closing_early_frees(self) -> None:
        """Check a generation that is left after one chunk, or before the first."""
        async with self.reading() as chunks:
            await self.within("aclose()", chunks.aclose())
            self.idle("after a generation was closed early")
            require(
                await anext(chunks, None) is None, "a closed generation must not give more chunks"
            )
        unopened = self.engine.generate(self.request)
        await self.within("aclose()", unopened.aclose())
        self.idle("after a generation was closed before its first chunk")

    async def cancelling_the_reader_frees(self) -> None:
        """Check a task that is cancelled while it reads, at several points."""
        for steps in range(4):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self.outcome(self.request))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
            self.idle(f"after a reading task was cancelled at its step {steps}")

    async def what_cannot_be_served_is_refused(self, request: GenerateRequest) -> None:
        """Check that a bad request is refused without harm to others."""
        await self.refused(InvalidRequest, request, f"of {request!r}")
        self.idle("after a refused request")
        await self.read(self.request)

    async def stopping_ends_what_runs(self) -> None:
        """Check that readers get an error at a stop, and that a second stop does nothing."""
        request = attrs.evolve(self.request, max_tokens=None)
        chunks = self.engine.generate(request)
        await self.within("the first chunk", anext(chunks))
        ran = self.engine.statistics().running > 0
        async with asyncio.TaskGroup() as group:
            starting = [group.create_task(self.outcome(request)) for _ in range(3)]
            await asyncio.sleep(0)
            stopping = group.create_task(self._stopped())
        require(stopping.result() is None, str(stopping.result()))
        await self._ended_by_the_stop(chunks, ran=ran)
        for task in starting:
            outcome = task.result()
            require(
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
        require(not ran, "a generation that runs when the engine is stopped must end with Closed")

    async def it_starts_again(self) -> None:
        """Check that the engine can be started again."""
        await self.within("start() after a stop", self.engine.start())
        self.engine.check_health()
        self.idle("after a second start")
        await self.a_generation_is_well_formed()
        await self.within("stop()", self.engine.stop())
