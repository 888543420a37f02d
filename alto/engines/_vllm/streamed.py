"""Prompts whose end is still being written, prefilled while it is.

Theory of operation. vLLM takes a prompt in chunks where it has ``StreamingInput``: each is computed,
one token is sampled after it, and the next chunk takes that token's place. :class:`IncomingPrompt` reads a
tail in its caller's task, asks :class:`alto.engines._vllm.feed.Feed` what to send when, and sends it through a
:class:`Prefill`. The rest of the prompt goes with the real sampling parameters.

What can go wrong, and what is done:

* The tokens that chunks end in come out, glued to each other and to the answer if nobody reads: they are
  counted off. vLLM's own detokenizer would have them in its state, so texts are made here.
* A prompt above the model's context would kill the engine. `Feed` refuses it first.
* A chunked prompt that waits for text holds a slot and KV memory, and is never preempted, so that many
  would starve the stage that writes the text, if it runs on the same engine. :class:`PrefillBudget` gives them
  a quarter of each; more wait for their whole text, and so does all where that quarter is nothing.
* Tokens sent turn out wrong, since tokenisers look ahead: the chunks are dropped, and the prompt sent
  whole; see :mod:`alto.engines._vllm.feed`.
* vLLM refuses stop texts and several samples of such prompts; constraints and log-probabilities would
  see the tokens between; a seed would be used up by them. These wait for the whole text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol, final

import anyio

from alto.engines._vllm.feed import CHUNK_TOKENS, Feed
from alto.errors import AltoError, InvalidRequest
from alto.model import EngineCapacity, GenerateRequest, Prompt, StreamedPrompt

__all__ = ("PrefillHost", "IncomingPrompt", "Prefill", "PrefillBudget")

_SHARE = 4
"""Waiting prompts get this fraction of the engine's slots and memory: enough for a pipeline whose
stages overlap, and little enough that what runs is hardly slowed by their absence."""


class PrefillHost(Protocol):
    """What reading a prompt needs of the engine that it is for."""

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """The prompt's tokens."""
        ...

    def check_usable(self) -> None:
        """Raise if the engine is stopped or dead."""
        ...

    def translate(self, error: Exception, /) -> AltoError:
        """What an error of vLLM's means."""
        ...


@final
class PrefillBudget:
    """How many prompts may be prefilled while they are written, and how far.

    Args:
        engine: vLLM's.
        enabled: Whether it is wanted at all.
        capacity: What the engine can do at once.
    """

    def __init__(self, engine: Any, /, *, enabled: bool, capacity: EngineCapacity) -> None:  # noqa: ANN401  # vLLM is not typed here
        self.make: Any = _streaming_input(engine) if enabled else None
        self.chunk_tokens = CHUNK_TOKENS
        self.used = 0
        """Prompts that were prefilled as they came, since the start."""
        self._slots = capacity.max_num_seqs // _SHARE
        self._tokens = None if capacity.kv_tokens is None else capacity.kv_tokens // _SHARE
        self._waiting: dict[Prefill, int] = {}

    def fits(self, request: GenerateRequest, /) -> bool:
        """Whether *request* could be prefilled as it comes."""
        plain = (request.choice, request.regex, request.json_schema, request.logprobs)
        return (
            self.make is not None
            and request.n == 1
            and not request.stop
            and all(each is None for each in plain)
            and (request.seed is None or request.temperature == 0)
        )

    @property
    def waiting(self) -> int:
        """Prompts that hold a slot and wait for text."""
        return len(self._waiting)

    def room(self, prefill: Prefill | None, /) -> int | None:
        """Tokens that *prefill*, or a new one, may send now; None: any number."""
        if prefill is None and len(self._waiting) >= self._slots:
            return 0
        return None if self._tokens is None else self._tokens - sum(self._waiting.values())

    def sent(self, prefill: Prefill, tokens: int, /) -> None:
        """*prefill* waits with so many tokens in all."""
        self._waiting[prefill] = tokens

    def left(self, prefill: Prefill, /) -> None:
        """*prefill* does not wait any more."""
        self._waiting.pop(prefill, None)


def _streaming_input(engine: Any) -> Any:  # noqa: ANN401  # as above
    """The class for a chunk of vLLM's; None: it has none, or one that goes wrong with this engine."""
    make = None
    for place in ("vllm.engine.protocol", "vllm.inputs.data", "vllm.v1.engine.async_llm"):
        with contextlib.suppress(ImportError, AttributeError):
            make = getattr(__import__(place, fromlist=["StreamingInput"]), "StreamingInput")  # noqa: B009
            break
    if make is None:
        return None
    if getattr(engine.vllm_config.scheduler_config, "async_scheduling", False):
        # Steps that are under way when a chunk ends must be dropped, which vLLM has learnt later.
        from vllm.v1.request import Request

        if "drop_stale_output" not in Request.__init__.__code__.co_names:
            return None
    return make


@final
class Prefill:
    """One prompt inside vLLM, chunk by chunk. Iterate it for vLLM's outputs.

    Args:
        open_: Gives vLLM's outputs for the chunks of an async generator.
        make: vLLM's class for a chunk.
        on_failure: Called when it fails before anybody has read an output.
    """

    def __init__(
        self,
        open_: Callable[[AsyncGenerator[Any, None]], AsyncGenerator[Any, None]],
        make: Any,  # noqa: ANN401  # as above
        on_failure: Callable[[], None],
    ) -> None:
        self._make = make
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()
        self._feed = self._chunks()
        self._outputs = open_(self._feed)
        self._on_failure = on_failure
        self.chunks = 0
        """Chunks sent, the last one not counted."""
        # vLLM takes nothing in before its outputs are asked for
        first = asyncio.get_running_loop().create_task(anext(self._outputs))
        first.add_done_callback(self._noticed)
        self._first: asyncio.Task[Any] | None = first

    def send(self, token_ids: Sequence[int], params: Any) -> None:  # noqa: ANN401  # as above
        """Prefill *token_ids*."""
        self.chunks += 1
        self._put(token_ids, params)

    def finish(self, token_ids: Sequence[int], params: Any) -> None:  # noqa: ANN401  # as above
        """Prefill the rest and answer."""
        self._put(token_ids, params)
        self._pieces.put_nowait(None)

    @property
    def failure(self) -> BaseException | None:
        """Why it ended before its first output; None: it did not."""
        first = self._first
        if first is None or not first.done() or first.cancelled():
            return None
        return first.exception()

    def __aiter__(self) -> Prefill:
        """Its outputs."""
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401  # as above
        """The next output."""
        first, self._first = self._first, None
        return await (anext(self._outputs) if first is None else first)

    async def aclose(self) -> None:
        """Abort it, unless it has ended."""
        first, self._first = self._first, None
        if first is not None:
            first.cancel()
            await asyncio.wait([first])
        await self._outputs.aclose()
        self._pieces.put_nowait(None)
        with contextlib.suppress(RuntimeError):  # vLLM is just being told that nothing follows
            await self._feed.aclose()

    def _put(self, token_ids: Sequence[int], params: Any) -> None:  # noqa: ANN401  # as above
        prompt = {"type": "token", "prompt_token_ids": list(token_ids)}
        self._pieces.put_nowait(self._make(prompt, sampling_params=params))

    def _noticed(self, first: asyncio.Task[Any]) -> None:
        if not first.cancelled() and first.exception() is not None:
            self._on_failure()

    async def _chunks(self) -> AsyncGenerator[Any, None]:
        while (piece := await self._pieces.get()) is not None:
            yield piece


@final
class IncomingPrompt:
    """One streamed prompt, read in its caller's task.

    Args:
        prompt: The prompt.
        host: The engine.
        limit: The model's context, in tokens.
    """

    def __init__(self, prompt: StreamedPrompt, host: PrefillHost, /, *, limit: int) -> None:
        self._prompt = prompt
        self._host = host
        self._limit = limit
        self._scope: anyio.CancelScope | None = None
        self.prefill: Prefill | None = None
        """What has been sent; None: nothing. Whoever reads the prompt closes it."""

    def cut(self) -> None:
        """Stop waiting for text: the engine is stopped or dead, or gave up."""
        if self._scope is not None:
            self._scope.cancel()

    async def whole(self) -> list[int]:
        """The tokens of the whole text, when it is there.

        Raises:
            InvalidRequest: It is empty, or holds something that is no text.

        Cancellation: the tail is left.
        """
        async with contextlib.aclosing(self._pieces()) as pieces:
            parts = [piece async for piece in pieces]
        return await self._encoded("".join(parts))

    async def streamed(
        self,
        budget: PrefillBudget,
        params: Any,  # noqa: ANN401  # as above
        *,
        open_: Callable[[], Prefill],
        drop: Callable[[Prefill], Awaitable[None]],
    ) -> tuple[list[int], list[int] | None]:
        """The same, while what is there is prefilled with *params* for each chunk.

        Args:
            budget: How much may wait.
            params: Sampling parameters of a chunk.
            open_: Opens the prompt in vLLM.
            drop: Ends it there, when what was sent has turned out wrong.

        Returns:
            The tokens of the whole text, and those of them that are still to be sent; None: begin
            anew, with all.
        """
        feed = Feed(limit=self._limit, chunk_tokens=budget.chunk_tokens)
        try:
            async with contextlib.aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    certain = feed.add(piece)
                    if certain is None:
                        continue
                    token_ids = await self._host.encode(certain)
                    self._host.check_usable()
                    chunk = feed.tokenised(token_ids, room=budget.room(self.prefill))
                    if feed.broken:
                        await self._drop(budget, drop)
                    elif chunk:
                        if self.prefill is None:
                            self.prefill = open_()
                            budget.used += 1
                        self.prefill.send(chunk, params)
                        budget.sent(self.prefill, len(feed.sent))
            whole = await self._encoded(feed.text)
            rest = feed.finish(whole)
            if rest is None:
                await self._drop(budget, drop)
            return whole, rest
        finally:
            if self.prefill is not None:
                budget.left(self.prefill)

    async def _encoded(self, text: str) -> list[int]:
        if not text:
            msg = "the prompt is empty; give at least one token"
            raise InvalidRequest(msg)
        return list(await self._host.encode(text))

    async def _drop(
        self, budget: PrefillBudget, drop: Callable[[Prefill], Awaitable[None]]
    ) -> None:
        prefill, self.prefill = self.prefill, None
        if prefill is not None:
            budget.left(prefill)
            await drop(prefill)

    async def _pieces(self) -> AsyncGenerator[str, None]:
        """The head, then each text of the tail that is not empty."""
        if self._prompt.head:
            yield self._prompt.head
        tail = aiter(self._prompt.tail)
        try:
            while (piece := await self._next(tail)) is not None:
                if not isinstance(piece, str):
                    msg = f"the tail of a streamed prompt gives texts, not {type(piece).__name__}"
                    raise InvalidRequest(msg)
                if piece:
                    yield piece
        finally:
            close = getattr(tail, "aclose", None)
            if close is not None:
                await close()

    async def _next(self, tail: AsyncIterator[Any]) -> Any:  # noqa: ANN401  # checked by who asks
        piece = None
        with anyio.CancelScope() as scope:
            self._scope = scope
            piece = await anext(tail, None)
        self._scope = None
        self._host.check_usable()
        failure = None if self.prefill is None else self.prefill.failure
        if isinstance(failure, Exception):
            raise self._host.translate(failure) from failure
        if scope.cancelled_caught:
            raise self._host.translate(RuntimeError("its engine does not answer"))
        return piece
