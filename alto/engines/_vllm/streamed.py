"""Prefilling of prompts whose end is still being written.

Theory of operation. vLLM takes a prompt in chunks where it has ``StreamingInput``: each is computed,
one token is sampled after it, and the next chunk takes that token's place. :class:`IncomingPrompt` reads a
tail in its caller's task, asks :class:`alto.engines._vllm.feed.Feed` what to send when, and sends it through a
:class:`Prefill`. The rest of the prompt goes with the real sampling parameters.

Problems, and how they are handled:

* The token sampled after each chunk is part of the output, merged with others and with the answer if
  outputs are not read in time: these tokens are counted and skipped. They would enter the state of
  vLLM's detokenizer, so text is decoded here.
* A prompt longer than the model's context would kill the engine. `Feed` raises first.
* A chunked prompt that waits for text holds a slot and KV memory and is never preempted. Many of them
  would starve the stage that writes the text, if it runs on the same engine. :class:`PrefillBudget` gives
  them a quarter of each; other prompts wait for their whole text, as do all if that quarter is zero.
* Sent tokens may turn out wrong, since tokenizers look ahead: the chunks are then dropped and the whole
  prompt is sent; see :mod:`alto.engines._vllm.feed`.
* vLLM refuses stop texts and several samples for such prompts; constraints and log-probabilities would
  include the sampled tokens between chunks, and a seed would be consumed by them. Such requests wait
  for the whole text.
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
"""Divisor for the engine's slots and memory that waiting prompts may hold: enough for a pipeline whose
stages overlap, and little enough that running requests are hardly slowed."""


class PrefillHost(Protocol):
    """Methods of the engine that reading a streamed prompt needs."""

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the tokens of *prompt*."""
        ...

    def check_usable(self) -> None:
        """Raise if the engine is stopped or dead."""
        ...

    def translate(self, error: Exception, /) -> AltoError:
        """Return the error of alto that stands for vLLM's *error*."""
        ...


@final
class PrefillBudget:
    """Limit on the prompts that are prefilled while they are written, and on their tokens.

    Args:
        engine: vLLM's engine.
        enabled: Whether prompts may be prefilled early at all.
        capacity: Limits of the engine.
    """

    def __init__(self, engine: Any, /, *, enabled: bool, capacity: EngineCapacity) -> None:  # noqa: ANN401  # vLLM is not typed here
        self.make: Any = _streaming_input(engine) if enabled else None
        self.chunk_tokens = CHUNK_TOKENS
        self.used = 0
        """Number of prompts that were prefilled early since the start."""
        self._slots = capacity.max_num_seqs // _SHARE
        self._tokens = None if capacity.kv_tokens is None else capacity.kv_tokens // _SHARE
        self._waiting: dict[Prefill, int] = {}

    def fits(self, request: GenerateRequest, /) -> bool:
        """Return whether *request* can be prefilled while its prompt is written."""
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
        """Number of prompts that hold a slot and wait for text."""
        return len(self._waiting)

    def room(self, prefill: Prefill | None, /) -> int | None:
        """Return the number of tokens that *prefill*, or a new one, may send; None: any number."""
        if prefill is None and len(self._waiting) >= self._slots:
            return 0
        return None if self._tokens is None else self._tokens - sum(self._waiting.values())

    def sent(self, prefill: Prefill, tokens: int, /) -> None:
        """Record that *prefill* has sent *tokens* tokens in total and waits for text."""
        self._waiting[prefill] = tokens

    def left(self, prefill: Prefill, /) -> None:
        """Record that *prefill* no longer waits."""
        self._waiting.pop(prefill, None)


def _streaming_input(engine: Any) -> Any:  # noqa: ANN401  # as above
    """Return vLLM's class for a chunk; None: it has none, or a faulty one for this engine."""
    make = None
    for place in ("vllm.engine.protocol", "vllm.inputs.data", "vllm.v1.engine.async_llm"):
        with contextlib.suppress(ImportError, AttributeError):
            make = getattr(__import__(place, fromlist=["StreamingInput"]), "StreamingInput")  # noqa: B009
            break
    if make is None:
        return None
    if getattr(engine.vllm_config.scheduler_config, "async_scheduling", False):
        # Steps in progress when a chunk ends must be dropped, which only later versions do.
        from vllm.v1.request import Request

        if "drop_stale_output" not in Request.__init__.__code__.co_names:
            return None
    return make


@final
class Prefill:
    """One prompt that is sent to vLLM in chunks. Iterate it for vLLM's outputs.

    Args:
        open_: Returns vLLM's outputs for the chunks of an async generator.
        make: vLLM's class for a chunk.
        on_failure: Called if it fails before its first output is read.
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
        """Number of chunks sent, the last one not counted."""
        # vLLM accepts no chunk before its outputs are requested
        first = asyncio.get_running_loop().create_task(anext(self._outputs))
        first.add_done_callback(self._noticed)
        self._first: asyncio.Task[Any] | None = first

    def send(self, token_ids: Sequence[int], params: Any) -> None:  # noqa: ANN401  # as above
        """Send *token_ids* as a chunk."""
        self.chunks += 1
        self._put(token_ids, params)

    def finish(self, token_ids: Sequence[int], params: Any) -> None:  # noqa: ANN401  # as above
        """Send the last tokens, after which vLLM generates the answer."""
        self._put(token_ids, params)
        self._pieces.put_nowait(None)

    @property
    def failure(self) -> BaseException | None:
        """Error that ended it before its first output was read; None if there is none."""
        first = self._first
        if first is None or not first.done() or first.cancelled():
            return None
        return first.exception()

    def __aiter__(self) -> Prefill:
        """Return the iterator itself."""
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401  # as above
        """Return the next output."""
        first, self._first = self._first, None
        return await (anext(self._outputs) if first is None else first)

    async def aclose(self) -> None:
        """Abort the request, unless it has ended."""
        first, self._first = self._first, None
        if first is not None:
            first.cancel()
            await asyncio.wait([first])
        await self._outputs.aclose()
        self._pieces.put_nowait(None)
        with contextlib.suppress(RuntimeError):  # vLLM may be reading the end of the feed
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
        limit: Context length of the model, in tokens.
    """

    def __init__(self, prompt: StreamedPrompt, host: PrefillHost, /, *, limit: int) -> None:
        self._prompt = prompt
        self._host = host
        self._limit = limit
        self._scope: anyio.CancelScope | None = None
        self.prefill: Prefill | None = None
        """The chunks sent to vLLM; None if there are none. The reader of the prompt closes it."""

    def cut(self) -> None:
        """Stop waiting for text: the engine is stopped, dead, or has failed the request."""
        if self._scope is not None:
            self._scope.cancel()

    async def whole(self) -> list[int]:
        """Wait for the whole text and return its tokens.

        Raises:
            InvalidRequest: The text is empty, or the tail yields something other than text.

        Cancellation: the tail is closed.
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
        """Like :meth:`whole`, but send chunks of the text to vLLM as it arrives.

        Args:
            budget: Limit on waiting prompts.
            params: Sampling parameters of a chunk.
            open_: Opens the prompt in vLLM.
            drop: Aborts it in vLLM, if the sent tokens have turned out wrong.

        Returns:
            The tokens of the whole text, and those still to be sent; None for the latter: send all
            of them as a new prompt.
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
        """Yield the head, then each non-empty text of the tail."""
        if self._prompt.head:
            yield self._prompt.head
        tail = aiter(self._prompt.tail)
        try:
            while (piece := await self._next(tail)) is not None:
                if not isinstance(piece, str):
                    msg = (
                        f"the tail of a streamed prompt must yield str, not {type(piece).__name__}"
                    )
                    raise InvalidRequest(msg)
                if piece:
                    yield piece
        finally:
            close = getattr(tail, "aclose", None)
            if close is not None:
                await close()

    async def _next(self, tail: AsyncIterator[Any]) -> Any:  # noqa: ANN401  # checked by the caller
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
