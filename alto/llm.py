"""The handle through which a stage talks to an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, final

from alto._aio import Cleanup, current_call
from alto.errors import Closed, GenerationFailed, InvalidRequest
from alto.model import Chunk, Completion, FinishReason, GenerateRequest, Prompt, Usage
from alto.protocols import Engine

__all__ = ("Generation", "GenerationOptions", "LLM")


class GenerationOptions(TypedDict, total=False):
    """The keyword arguments of :meth:`alto.LLM.generate`, which explains them."""

    max_tokens: int | None
    temperature: float
    top_p: float
    stop: str | Sequence[str]
    seed: int | None
    ignore_eos: bool
    choice: Sequence[str] | None
    regex: str | None
    json_schema: dict[str, Any] | None
    priority: int | None


@final
class LLM:
    """An engine, as a stage sees it: prompts in, streams of text out."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine, /) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        """Names the engine."""
        return f"<LLM on {self._engine.name!r}>"

    @property
    def engine(self) -> Engine:
        """The engine behind this handle."""
        return self._engine

    def generate(  # noqa: PLR0913  # each is a parameter of its own to whoever writes a stage
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        ignore_eos: bool = False,
        choice: Sequence[str] | None = None,
        regex: str | None = None,
        json_schema: dict[str, Any] | None = None,
        priority: int | None = None,
    ) -> Generation:
        """Describe a generation; it starts when it is iterated or awaited.

        ``async for chunk in llm.generate(...)`` streams it, ``await llm.generate(...).text()``
        waits for all of it. Leaving the loop early aborts it in the engine.

        Args:
            prompt: Text, token ids, or :class:`~alto.model.Message` turns.
            max_tokens: Generate at most this many; None: to the end of the model's context.
            temperature: 0 is greedy; larger is more random.
            top_p: Sample from the smallest set of tokens with this much probability; (0, 1].
            stop: End before the first of these texts.
            seed: Makes a sampled generation repeatable on one engine.
            ignore_eos: Go on after the model's end-of-text token.
            choice: The output is one of these texts.
            regex: The output matches this.
            json_schema: The output is JSON of this schema.
            priority: Lower runs earlier; None: the request's own priority.

        Raises:
            InvalidRequest: At once, for a parameter that no engine could serve.
        """
        if isinstance(choice, str):
            msg = f"choice must be several texts, not the one text {choice!r}"
            raise InvalidRequest(msg)
        if priority is None:
            call = current_call.get()
            priority = 0 if call is None else call.priority
        request = GenerateRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
            ignore_eos=ignore_eos,
            choice=None if choice is None else tuple(choice),
            regex=regex,
            json_schema=json_schema,
            priority=priority,
        )
        return Generation(self._engine, request)

    async def text(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> str:
        """Short for ``await llm.generate(prompt, ...).text()``."""
        return await self.generate(prompt, **options).text()


@final
class Generation:
    """One generation: iterate it for chunks, or wait for its :meth:`text`. Either, and once.

    As a context manager (``async with llm.generate(...) as chunks``) it is closed on the way out.
    Without one, a generation that is left early is closed at the stage's next checkpoint.
    """

    __slots__ = ("_chunks", "_completion", "_engine", "_request")

    def __init__(self, engine: Engine, request: GenerateRequest, /) -> None:
        self._engine = engine
        self._request: GenerateRequest | None = request
        self._chunks: AsyncGenerator[Chunk, None] | None = None
        self._completion: Completion | None = None

    def __repr__(self) -> str:
        """Names the engine and says how far it is."""
        if self._request is not None:
            state = "not started"
        elif self._completion is not None:
            state = "complete"
        else:
            state = "used" if self._chunks is not None else "closed"
        return f"<Generation on {self._engine.name!r}, {state}>"

    @property
    def usage(self) -> Usage | None:
        """What it cost, after :meth:`text` or :meth:`collect`; else see the last chunk."""
        return None if self._completion is None else self._completion.usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, after :meth:`text` or :meth:`collect`; else see the last chunk."""
        return None if self._completion is None else self._completion.finish_reason

    def _open(self) -> AsyncGenerator[Chunk, None]:
        if self._request is None:
            msg = (
                "a generation can be used once, and this one already was; call generate() again, "
                "or keep the chunks you need"
            )
            raise Closed(msg)
        self._chunks = self._engine.generate(self._request)
        self._request = None
        return self._chunks

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Stream the chunks.

        Raises:
            Closed: It was used or closed before.
        """
        call = current_call.get()
        return _Chunks(self._open(), None if call is None else call.cleanup)

    async def collect(self) -> Completion:
        """Wait for the end and give everything at once.

        Cancellation: the generation is aborted.

        Raises:
            Closed: It was used or closed before.
            GenerationFailed: The engine ended it without saying why.
        """
        texts: list[str] = []
        token_ids: list[int] = []
        last = None
        async for chunk in self._open():
            texts.append(chunk.text)
            token_ids += chunk.token_ids
            last = chunk
        if last is None or last.finish_reason is None:
            raise GenerationFailed(self._engine.name, "a generation ended without a finish reason")
        self._completion = Completion(
            text="".join(texts),
            token_ids=tuple(token_ids),
            finish_reason=last.finish_reason,
            usage=last.usage or Usage(),
        )
        return self._completion

    async def text(self) -> str:
        """Wait for the end and give the whole text; see :meth:`collect`."""
        return (await self.collect()).text

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
class _Chunks:
    """Iterates an engine's generator at almost no cost, and notices when it is left early.

    ``__anext__`` hands out the generator's own awaitable, so a chunk passes no frame of ours.
    When this object dies, so has the loop that drove it: what the generator then needs is left to
    the stage call that opened it, which closes it in its own task. Outside of a stage call
    asyncio's own hook does that.
    """

    __slots__ = ("_chunks", "_cleanup")

    def __init__(self, chunks: AsyncGenerator[Chunk, None], cleanup: Cleanup | None, /) -> None:
        self._chunks = chunks
        self._cleanup = cleanup
        if cleanup is not None:
            cleanup.add(chunks)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Chunk]:
        return self._chunks.__anext__()

    def __del__(self) -> None:
        cleanup = self._cleanup
        if cleanup is None:
            return
        chunks = self._chunks
        if getattr(chunks, "ag_frame", chunks) is None:  # it ended by itself
            cleanup.discard(chunks)
        elif not getattr(chunks, "ag_running", False):
            cleanup.abandon(chunks)  # else: somebody still awaits it; closed when the call ends
