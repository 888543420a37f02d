"""Generations: how a stage uses what it has asked an engine for, once, in one of several ways.

A generation has no task of its own. Whoever iterates it drives the engine's generator, in its own
task; a read that is cut leaves it as it is, and can be made again. Whoever stops leaves it to the stage
call that runs, which closes it in the call's own task.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, final

import anyio

from alto._current_call import Account, Closable
from alto._llm.schema import Reader, Schema
from alto._resumable import Resumable, Steps
from alto.errors import Closed, GenerationFailed, InvalidRequest
from alto.model import Chunk, Completion, FinishReason, GenerateRequest, TokenLogprob, Usage
from alto.protocols import Engine

__all__ = ("Generation", "TypedGeneration")

T = TypeVar("T")
U = TypeVar("U")


class Generation:
    """One generation: iterate it for chunks, or wait for its :meth:`text`. Either, and once.

    Of several samples (``n``) the chunks come interleaved, each with its ``index``;
    :meth:`samples` waits for all of them.

    A read that is cut, by a time limit for example, loses nothing: read on with the same iterator.

    As a context manager (``async with llm.generate(...) as chunks``) it is closed on the way out.
    Without one, a generation that is left early is closed at the stage's next checkpoint, or outside of
    a stage when its iterator is dropped.
    """

    __slots__ = ("_chunks", "_completions", "_engine", "_max_tokens", "_n", "_request")

    def __init__(self, engine: Engine, request: GenerateRequest, /) -> None:
        self._engine = engine
        self._request: GenerateRequest | None = request
        self._n = request.n
        self._max_tokens = request.max_tokens
        self._chunks: Closable | None = None  # What was opened.
        self._completions: list[Completion] | None = None

    def __repr__(self) -> str:
        """Names the engine and says how far it is."""
        if self._request is not None:
            state = "not started"
        elif self._completions is not None:
            state = "complete"
        else:
            state = "used" if self._chunks is not None else "closed"
        return f"<{type(self).__name__} on {self._engine.name!r}, {state}>"

    @property
    def usage(self) -> Usage | None:
        """What it cost, all samples together, once it was waited for; else see the last chunk."""
        return None if self._completions is None else self._completions[0].usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, once it was waited for; else see the last chunk. Of the first sample."""
        return None if self._completions is None else self._completions[0].finish_reason

    def _open(self) -> AsyncGenerator[Chunk, None]:
        if self._request is None:
            msg = (
                "a generation can be used once, and this one already was; call generate() again, "
                "or keep the chunks you need"
            )
            raise Closed(msg)
        chunks = self._engine.generate(self._request)
        self._chunks = chunks
        self._request = None
        return chunks

    def _iterate(self) -> _Chunks:
        chunks = _Chunks(self._open(), Account(self._engine.name))
        self._chunks = chunks.steps
        return chunks

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Stream the chunks.

        Raises:
            Closed: It was used or closed before. While iterating: it was closed before its end.
            RuntimeError: While iterating: another task waits for the next chunk.

        Cancellation of a read: nothing is lost, and the next read of the same iterator goes on, in any
        task. In a stage call that was itself cancelled the generation is aborted.
        """
        return self._iterate()

    def _needs_one_sample(self, method: str) -> None:
        if self._n > 1:
            msg = (
                f"{method}() is for one sample, and this generation has n={self._n}; "
                f"use samples(), or iterate it"
            )
            raise InvalidRequest(msg)

    async def samples(self) -> list[Completion]:
        """Wait for the end and give every sample, in order of its index.

        Cancellation: the generation is aborted.

        Raises:
            Closed: It was used or closed before.
            GenerationFailed: The engine ended it without saying why.
        """
        tally = _Tally(self._engine.name, self._n)
        account = Account(self._engine.name)
        async with aclosing(self._open()) as chunks:
            account.begin()
            try:
                async for chunk in chunks:
                    tally.add(chunk)
                self._completions = tally.completions()
            except BaseException as error:
                account.end(error)
                raise
            account.usage = tally.usage
            account.end(None)
        return list(self._completions)

    async def collect(self) -> Completion:
        """Wait for the end and give everything at once.

        Cancellation: the generation is aborted.

        Raises:
            InvalidRequest: It has several samples; see :meth:`samples`. Nothing was started.
            Closed: It was used or closed before.
            GenerationFailed: The engine ended it without saying why.
        """
        self._needs_one_sample("collect")
        return (await self.samples())[0]

    async def text(self) -> str:
        """Wait for the end and give the whole text; see :meth:`collect`."""
        self._needs_one_sample("text")
        return (await self.samples())[0].text

    async def aclose(self) -> None:
        """Abort it in the engine, if it runs; it cannot be used after this."""
        self._request = None
        if self._chunks is not None:
            await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        """Close it on the way out of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Close it."""
        await self.aclose()


@final
class TypedGeneration(Generation, Generic[T]):
    """A generation whose output is JSON of a type: ``llm.generate(..., schema=T)``.

    Wait for its :meth:`value`; where that is a list, iterate its :meth:`items`, each of which is
    there as soon as the model has closed it. Either, and once, or use it as any
    :class:`Generation`: its text is the JSON.
    """

    __slots__ = ("_schema",)

    def __init__(self, engine: Engine, request: GenerateRequest, schema: Schema, /) -> None:
        super().__init__(engine, request)
        self._schema = schema

    async def value(self) -> T:
        """Wait for the end and give the output as its type.

        Cancellation: the generation is aborted.

        Raises:
            InvalidRequest: It has several samples; see :meth:`samples`. Nothing was started.
            OutputTruncated: It came to ``max_tokens`` before it was complete.
            OutputError: It is not of its type, or no JSON; an engine that knows no constraints.
                The generation is aborted where that shows.
            Closed: It was used or closed before.
            GenerationFailed: The engine ended it without saying why.
        """
        self._needs_one_sample("value")
        reading = _Values[Any](self, self._schema, self._iterate())
        try:
            values = [value async for value in reading]
        except BaseException:
            await reading.abort()
            raise
        whole: T = values if self._schema.is_list else values[0]  # type: ignore[assignment]
        return whole

    def items(self: TypedGeneration[list[U]]) -> AsyncIterator[U]:
        """Stream the items of the list, each with the character that closes it.

        An item that is a number, which might go on, comes with the character behind it. Leaving
        the loop early aborts the generation.

        Raises:
            InvalidRequest: At once: the type is no list, or there are several samples.
            Closed: At once: it was used or closed before.
            OutputTruncated: While iterating, after the last whole item, which the error has too:
                the output came to ``max_tokens`` before it was complete.
            OutputError: While iterating, in the same way: the output is not of its type.
            GenerationFailed: While iterating: the engine ended it without saying why.

        Cancellation of a read: nothing is lost; as of a chunk.
        """
        self._needs_one_sample("items")
        if not self._schema.is_list:
            msg = (
                f"items() is for lists, and this generation gives {self._schema.name}; "
                f"use value(), or ask for schema={self._schema.as_list}"
            )
            raise InvalidRequest(msg)
        return _Values[U](self, self._schema, self._iterate())

    def _ended(self, completions: list[Completion]) -> None:
        self._completions = completions


class _Tally:
    """What the chunks of a generation add up to, sample by sample."""

    __slots__ = ("_engine", "_ids", "_logprobs", "_reasons", "_texts", "usage")

    def __init__(self, engine: str, n: int) -> None:
        self._engine = engine
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self._logprobs: list[list[TokenLogprob] | None] = [None] * n
        self._reasons: list[FinishReason | None] = [None] * n
        self.usage: Usage | None = None
        """Of all samples, once the last chunk is there."""

    def add(self, chunk: Chunk) -> None:
        """One more chunk."""
        index = chunk.index
        if not 0 <= index < len(self._texts):
            why = f"it gave a chunk of sample {index}, where {len(self._texts)} were asked for"
            raise GenerationFailed(self._engine, why)
        self._texts[index].append(chunk.text)
        self._ids[index] += chunk.token_ids
        if chunk.logprobs is not None:
            known = self._logprobs[index]
            self._logprobs[index] = [*chunk.logprobs] if known is None else known
            if known is not None:
                known += chunk.logprobs
        if chunk.finish_reason is not None:
            self._reasons[index] = chunk.finish_reason
        if chunk.usage is not None:
            self.usage = chunk.usage

    def completions(self) -> list[Completion]:
        """Every sample.

        Raises:
            GenerationFailed: One of them has no end.
        """
        done = []
        for index, reason in enumerate(self._reasons):
            if reason is None:
                why = "a generation ended without a finish reason"
                raise GenerationFailed(self._engine, why)
            logprobs = self._logprobs[index]
            done.append(
                Completion(
                    text="".join(self._texts[index]),
                    token_ids=tuple(self._ids[index]),
                    finish_reason=reason,
                    usage=self.usage or Usage(),
                    logprobs=None if logprobs is None else tuple(logprobs),
                )
            )
        return done


@final
class _Values(Generic[T]):
    """Reads a typed generation's values while it runs, in the task that asks for them."""

    __slots__ = ("_chunks", "_generation", "_given", "_over", "_reader", "_reading", "_tally")

    def __init__(self, generation: TypedGeneration[Any], schema: Schema, chunks: _Chunks) -> None:
        self._generation = generation
        self._chunks = chunks
        self._reader = Reader(schema)
        self._tally = _Tally(generation._engine.name, 1)  # noqa: SLF001  # two halves of one
        self._given = 0  # How many of the reader's values have been handed out.
        self._over = False
        self._reading = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._reading:  # and that task goes on undisturbed
            msg = (
                "another task waits for the next item of this generation; let one task read the "
                "items and hand them on, through a stage or a queue"
            )
            raise RuntimeError(msg)
        self._reading = True
        try:
            return await self._next()
        finally:
            self._reading = False

    async def _next(self) -> T:
        reader = self._reader
        while True:
            if self._given < len(reader.values):
                value: T = reader.values[self._given]
                self._given += 1
                return value
            if self._over:
                raise StopAsyncIteration
            if reader.error is not None:
                self._over = True
                raise reader.error
            try:
                await self._read_on()
            except Exception:
                self._over = True
                raise

    async def _read_on(self) -> None:
        """Give the reader one more chunk, or the end. Cancellation: nothing is lost."""
        reader, generation = self._reader, self._generation
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            completions = self._tally.completions()
            generation._ended(completions)  # noqa: SLF001  # two halves of one
            reader.finish(completions[0].finish_reason, generation._max_tokens)  # noqa: SLF001
            self._over = reader.error is None
            return
        try:
            self._tally.add(chunk)
            reader.feed(chunk.text)
        except BaseException:  # a class of the user's that fails as no type may
            self._over = True
            await self.abort()
            raise
        if reader.error is not None:
            await self.abort()

    async def abort(self) -> None:
        """Abort the generation in the engine. Cancellation: shielded."""
        with anyio.CancelScope(shield=True):
            await self._generation.aclose()


@final
class _Chunks(Resumable[Chunk]):
    """Iterates an engine's generator, and keeps what it has cost."""

    __slots__ = ("_account",)

    def __init__(self, chunks: AsyncGenerator[Chunk, None], account: Account, /) -> None:
        super().__init__(chunks, "generation", account)
        self._account = account

    def reader(self) -> AsyncGenerator[Chunk, None]:
        """Read on, until a read is cut."""
        return _reader(self.steps, self.guard, self._account)


async def _reader(
    steps: Steps,
    guard: AsyncGenerator[None, None] | None,  # noqa: ARG001  # kept, as there
    account: Account,
) -> AsyncGenerator[Chunk, None]:
    # As that of a Resumable, and keeps the usage.
    advance = steps.source.__anext__
    try:
        yield  # type: ignore[misc]  # see there
        drive = steps.begin()
        while True:
            try:
                chunk = await drive
            except BaseException as error:
                if (passed_on := steps.interrupted(error)) is None:
                    raise
                chunk = await passed_on
            steps.step = None
            if chunk.usage is not None:
                account.usage = chunk.usage
            yield chunk
            steps.step = advance()
    except StopAsyncIteration:
        return
    except BaseException:
        steps.left()
        raise
