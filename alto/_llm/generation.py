"""Generations: the handles through which a stage reads what an engine generates.

A generation has no task of its own. The task that iterates it drives the engine's generator; a read that
is cut leaves the generator as it is, and can be made again. A generation that is left early is closed by
the running stage call, in the call's own task.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, final

import anyio

from alto._current_call import Account, Closable
from alto._llm.schema import Schema, TypedReader
from alto._resumable import Resumable, Steps
from alto.errors import Closed, GenerationFailed, InvalidRequest
from alto.model import Chunk, Completion, FinishReason, GenerateRequest, TokenLogprob, Usage
from alto.protocols import Engine

__all__ = ("Generation", "TypedGeneration")

T = TypeVar("T")
U = TypeVar("U")


class Generation:
    """A generation: iterate it for chunks, or wait for its :meth:`text`. It can be used once.

    The chunks of several samples (``n``) come interleaved, each with its ``index``;
    :meth:`samples` waits for all of them.

    A read that is cut, by a time limit for example, loses nothing: continue with the same iterator.

    As a context manager (``async with llm.generate(...) as chunks``) it is closed at the end of the block.
    Without one, a generation that is left early is closed at the stage's next checkpoint, or, outside
    a stage, when its iterator is dropped.
    """

    __slots__ = ("_chunks", "_completions", "_engine", "_max_tokens", "_n", "_request")

    def __init__(self, engine: Engine, request: GenerateRequest, /) -> None:
        self._engine = engine
        self._request: GenerateRequest | None = request
        self._n = request.n
        self._max_tokens = request.max_tokens
        self._chunks: Closable | None = None  # The open source of chunks.
        self._completions: list[Completion] | None = None

    def __repr__(self) -> str:
        """Return the name of the engine and the state of the generation."""
        if self._request is not None:
            state = "not started"
        elif self._completions is not None:
            state = "complete"
        else:
            state = "used" if self._chunks is not None else "closed"
        return f"<{type(self).__name__} on {self._engine.name!r}, {state}>"

    @property
    def usage(self) -> Usage | None:
        """Cost of all samples together, after waiting for the end; when iterating, see the last chunk."""
        return None if self._completions is None else self._completions[0].usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason why the first sample ended, after waiting for it; when iterating, see the last chunk."""
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
            Closed: The generation was used or closed before. While iterating: it was closed before its
                end.
            RuntimeError: While iterating: another task waits for the next chunk.

        Cancellation of a read: nothing is lost, and the next read of the same iterator continues, in any
        task. If the stage call itself is cancelled, the generation is aborted.
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
        """Wait for the end and return every sample, in order of index.

        Cancellation: the generation is aborted.

        Raises:
            Closed: The generation was used or closed before.
            GenerationFailed: The engine ended it without a reason.
        """
        samples = _Samples(self._engine.name, self._n)
        account = Account(self._engine.name)
        async with aclosing(self._open()) as chunks:
            account.begin()
            try:
                async for chunk in chunks:
                    samples.add(chunk)
                self._completions = samples.completions()
            except BaseException as error:
                account.end(error)
                raise
            account.usage = samples.usage
            account.end(None)
        return list(self._completions)

    async def collect(self) -> Completion:
        """Wait for the end and return the whole completion.

        Cancellation: the generation is aborted.

        Raises:
            InvalidRequest: It has several samples; see :meth:`samples`. Nothing was started.
            Closed: The generation was used or closed before.
            GenerationFailed: The engine ended it without a reason.
        """
        self._needs_one_sample("collect")
        return (await self.samples())[0]

    async def text(self) -> str:
        """Wait for the end and return the whole text. Raises and is cancelled as :meth:`collect`."""
        self._needs_one_sample("text")
        return (await self.samples())[0].text

    async def aclose(self) -> None:
        """Close the generation, and abort it in the engine if it runs. It cannot be used after this."""
        self._request = None
        if self._chunks is not None:
            await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        """Enter a block at whose end the generation is closed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Close the generation."""
        await self.aclose()


@final
class TypedGeneration(Generation, Generic[T]):
    """A generation whose output is JSON of a type: ``llm.generate(..., schema=T)``.

    Wait for its :meth:`value`; if that is a list, iterate its :meth:`items`, each of which is
    given as soon as the model has closed it. Or use it as any :class:`Generation`: its text is the
    JSON. It can be used once, in one of these ways.
    """

    __slots__ = ("_schema",)

    def __init__(self, engine: Engine, request: GenerateRequest, schema: Schema, /) -> None:
        super().__init__(engine, request)
        self._schema = schema

    async def value(self) -> T:
        """Wait for the end and return the output as a value of its type.

        Cancellation: the generation is aborted.

        Raises:
            InvalidRequest: It has several samples; see :meth:`samples`. Nothing was started.
            OutputTruncated: The output reached ``max_tokens`` before it was complete.
            OutputError: The output is no JSON, or not of its type, as from an engine that knows no
                constraints. The generation is aborted when the fault is found.
            Closed: The generation was used or closed before.
            GenerationFailed: The engine ended it without a reason.
        """
        self._needs_one_sample("value")
        reading = _TypedValues[Any](self, self._schema, self._iterate())
        try:
            values = [value async for value in reading]
        except BaseException:
            await reading.abort()
            raise
        whole: T = values if self._schema.is_list else values[0]  # type: ignore[assignment]
        return whole

    def items(self: TypedGeneration[list[U]]) -> AsyncIterator[U]:
        """Stream the items of the list, each with the character that closes it.

        An item that is a number, which might have more digits, comes with the next character. Leaving
        the loop early aborts the generation.

        Raises:
            InvalidRequest: At once: the type is no list, or there are several samples.
            Closed: At once: the generation was used or closed before.
            OutputTruncated: While iterating, after the last complete item: the output reached
                ``max_tokens`` before it was complete. The error has the items too.
            OutputError: While iterating, after the last complete item: the output is not of its type.
            GenerationFailed: While iterating: the engine ended it without a reason.

        Cancellation of a read: nothing is lost, and the next read of the same iterator continues, in any
        task. If the stage call itself is cancelled, the generation is aborted.
        """
        self._needs_one_sample("items")
        if not self._schema.is_list:
            msg = (
                f"items() is for lists, and this generation gives {self._schema.name}; "
                f"use value(), or ask for schema={self._schema.as_list}"
            )
            raise InvalidRequest(msg)
        return _TypedValues[U](self, self._schema, self._iterate())

    def _ended(self, completions: list[Completion]) -> None:
        self._completions = completions


class _Samples:
    """The chunks of a generation, summed up by sample."""

    __slots__ = ("_engine", "_ids", "_logprobs", "_reasons", "_texts", "usage")

    def __init__(self, engine: str, n: int) -> None:
        self._engine = engine
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self._logprobs: list[list[TokenLogprob] | None] = [None] * n
        self._reasons: list[FinishReason | None] = [None] * n
        self.usage: Usage | None = None
        """Cost of all samples, after the last chunk."""

    def add(self, chunk: Chunk) -> None:
        """Add a chunk."""
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
        """Return every sample.

        Raises:
            GenerationFailed: One of them has no finish reason.
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
class _TypedValues(Generic[T]):
    """Iterator over a typed generation's values, driven by the task that reads it."""

    __slots__ = ("_chunks", "_generation", "_given", "_over", "_reader", "_reading", "_samples")

    def __init__(self, generation: TypedGeneration[Any], schema: Schema, chunks: _Chunks) -> None:
        self._generation = generation
        self._chunks = chunks
        self._reader = TypedReader(schema)
        self._samples = _Samples(generation._engine.name, 1)  # noqa: SLF001  # two halves of one
        self._given = 0  # Number of the reader's values that have been given.
        self._over = False
        self._reading = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._reading:  # the other task's read is left alone
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
            completions = self._samples.completions()
            generation._ended(completions)  # noqa: SLF001  # two halves of one
            reader.finish(completions[0].finish_reason, generation._max_tokens)  # noqa: SLF001
            self._over = reader.error is None
            return
        try:
            self._samples.add(chunk)
            reader.feed(chunk.text)
        except BaseException:  # a class of the user's may raise anything
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
    """Resumable iterator over an engine's chunks, which notes the usage."""

    __slots__ = ("_account",)

    def __init__(self, chunks: AsyncGenerator[Chunk, None], account: Account, /) -> None:
        super().__init__(chunks, "generation", account)
        self._account = account

    def reader(self) -> AsyncGenerator[Chunk, None]:
        """Return a reader, which ends when a read is cut."""
        return _reader(self.steps, self.guard, self._account)


async def _reader(
    steps: Steps,
    guard: AsyncGenerator[None, None] | None,  # noqa: ARG001  # kept alive, as in _resumable
    account: Account,
) -> AsyncGenerator[Chunk, None]:
    # A copy of `alto._resumable._reader` that also notes the usage: one frame per chunk instead of two.
    advance = steps.source.__anext__
    try:
        yield  # type: ignore[misc]  # an error thrown at a reader that has not begun would be lost
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
        steps.reader_ended()
        raise
