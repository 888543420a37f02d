"""A running vLLM engine and its generations: from a request to chunks, and every way out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, final

import anyio

from alto._safe_text import told
from alto._wait import run_shielded
from alto.engines._vllm.child_output import find_cause
from alto.engines._vllm.launch import RunningEngine, shut_down
from alto.engines._vllm.pooling import Pooling, pools
from alto.engines._vllm.requests import (
    Adapters,
    Detokenizer,
    OutputReader,
    Sampling,
    Times,
    VLLMRequest,
    capacity_of,
    client_errors,
    settle_constraints,
)
from alto.engines._vllm.streamed import IncomingPrompt, Prefill, PrefillBudget
from alto.engines._vllm.tokens import Tokens
from alto.errors import (
    AltoError,
    Closed,
    EngineDied,
    EngineError,
    GenerationFailed,
    InvalidRequest,
    PromptTooLong,
)
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    EngineCapacity,
    EngineStatistics,
    FinishReason,
    GenerateRequest,
    Prompt,
    StreamedPrompt,
)

__all__ = ("Session", "end", "run_shielded")


async def end(
    started: RunningEngine, known: Mapping[str, bool], death: Exception | None, /
) -> None:
    """Abort the open generations, or end them with *death*, and end the processes.

    Args:
        started: The engine.
        known: Its open generations, and whether it has given output to them.
        death: Error for those that wait, if the engine has died; None: it serves.
    """
    engine = started.engine
    reader = getattr(getattr(engine.engine_core, "resources", None), "output_queue_task", None)
    try:
        if known and death is None:
            await _registered(engine, known)
            await engine.abort(list(known))
        handler = engine.output_handler
        if handler is not None:
            if death is not None:  # it is about to pass the death on to those that wait
                await asyncio.wait([handler], timeout=1.0)
            handler.cancel()  # otherwise it would report the shutdown as a failure
            await asyncio.wait([handler])
        if death is not None:
            engine.output_processor.propagate_error(death)
    finally:
        await asyncio.get_running_loop().run_in_executor(None, shut_down, started)
        if reader is not None:  # vLLM closes its sockets in the loop, and cancels this task then
            await asyncio.wait([reader], timeout=1.0)


async def _registered(engine: Any, known: Mapping[str, bool]) -> None:  # noqa: ANN401  # vLLM's
    """Wait until vLLM has registered the requests under way, since it aborts only those it knows."""
    there = getattr(engine.output_processor, "external_req_ids", known)
    for _ in range(500):
        if engine.errored or all(heard or rid in there for rid, heard in known.items()):
            return
        await asyncio.sleep(0.01)


@final
class Session:
    """One life of an engine, from its start to its stop or death.

    Belongs to the event loop that made it.

    Args:
        name: For messages.
        started: The engine.
        lora: Folders of adapters, by the names that requests give.
        streamed_prompts: Whether to prefill a `StreamedPrompt` while it is written, where vLLM can.
    """

    def __init__(
        self,
        name: str,
        started: RunningEngine,
        /,
        *,
        lora: Mapping[str, str] | None = None,
        streamed_prompts: bool = False,
    ) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._name = name
        self._started: RunningEngine | None = started
        self._engine = started.engine
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._died: EngineDied | None = None
        self._finished = 0
        self._aborted = 0
        self._numbers = itertools.count()
        self._open: dict[str, bool] = {}
        """Open requests by id, and whether the engine has given output to them."""
        self._incoming: set[IncomingPrompt] = set()
        """Prompts that are still being written."""
        self._tokens = Tokens(name, started.engine)
        self._dead_error = EngineDeadError
        self._generate_error = EngineGenerateError
        self._client_errors = client_errors()
        config = started.engine.vllm_config
        self.max_model_len: int = config.model_config.max_model_len
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        settle_constraints(started.engine)
        self._sampling = Sampling()
        with_lora = getattr(config, "lora_config", None) is not None
        self._adapters = Adapters(name, lora or {}, enabled=with_lora)
        self._pooling = Pooling(name, self._engine, self._tokens) if pools(config) else None
        self._budget = PrefillBudget(self._engine, enabled=streamed_prompts, capacity=self.capacity)

    @property
    def is_dead(self) -> bool:
        """True if vLLM reports the engine as failed."""
        return bool(self._engine.errored)

    @property
    def capacity(self) -> EngineCapacity:
        """Limits of the engine."""
        return capacity_of(self._engine.vllm_config)

    @property
    def scores_pairs(self) -> bool:
        """True if the model is a cross-encoder."""
        return self._pooling is not None and self._pooling.scores_pairs

    def check_health(self) -> None:
        """Raise `EngineDied` if the engine has died."""
        if self.is_dead:
            self.cut_incoming()
            raise self._death()

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing now.

        A generation that the engine is done with does not count, also while it is not read to its end.
        """
        known = getattr(self._engine.output_processor, "external_req_ids", self._open)
        active = sum(1 for rid, heard in self._open.items() if not heard or rid in known)
        if self.is_dead:
            active = 0
        waiting = max(0, active - self.max_num_seqs)
        return EngineStatistics(
            running=active - waiting,
            waiting=waiting,
            finished=self._finished,
            aborted=self._aborted,
        )

    async def encode(self, prompt: Prompt, /) -> list[int]:
        """Return the token ids of *prompt*, as :meth:`generate` makes them.

        Raises:
            InvalidRequest: It cannot be tokenised.
        """
        try:
            return await self._tokens.of(prompt)
        except InvalidRequest as error:
            self._check_open(error)
            raise

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation; see :class:`alto.protocols.Engine`."""
        times = Times(asked=self._loop.time())
        self.check_usable()
        self._check_can_generate(request)
        run = VLLMRequest()
        try:
            if isinstance(request.prompt, StreamedPrompt):
                reader = await self._begin_streamed(run, request, request.prompt, times)
            else:
                self._register(run)
                reader = await self._begin(run, request, await self.encode(request.prompt), times)
            done = False
            while not done:
                output = await self._next(run)
                chunks, done = reader.read(output, self._loop.time())
                self._open[run.rid] = True
                if done:
                    await self._let_end(run)
                for chunk in chunks:
                    yield chunk
        finally:
            if run.rid in self._open:
                await self._abandon(run)

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Run one prompt; see :class:`alto.protocols.Embedder`."""
        self.check_usable()
        if self._pooling is None:
            raise InvalidRequest(
                f"engine {self._name!r} generates; for vectors start one with runner='pooling'"
            )
        run = VLLMRequest()
        try:
            self._register(run)
            token_ids, params = await self._pooling.prepare(request)
            self._check_open()
            if len(token_ids) > self.max_model_len:
                raise PromptTooLong(len(token_ids), self.max_model_len)
            prompt = {"type": "token", "prompt_token_ids": token_ids}
            run.outputs = self._engine.encode(prompt, params, run.rid, priority=request.priority)
            output = await self._next(run)
            data = output.outputs.data
            problem = getattr(output, "error", None)
            if problem is not None or data.numel() == 0:  # an aborted request has no data
                self._finish_reason("abort" if problem is None else f"error: {problem}")
            await self._let_end(run)
            return self._pooling.embedding(request, data, len(token_ids))
        finally:
            if run.rid in self._open:
                await self._abandon(run)

    async def stop(self, *, died: bool = False) -> None:
        """End the processes; generations end with `Closed`, or `EngineDied` where it *died*."""
        if died or self.is_dead:
            self._died = self._death()
        self._closing = True
        self.cut_incoming()
        started, self._started = self._started, None
        assert started is not None
        try:
            await end(started, self._open, None if self._died is None else self._dead_error())
        finally:
            self._tokens.close()

    def check_usable(self) -> None:
        """Raise the reason why the engine cannot serve, if it cannot."""
        self._check_open()
        if asyncio.get_running_loop() is not self._loop:
            raise EngineError(self._name, "it belongs to the event loop that started it")
        self.check_health()

    def _check_open(self, cause: Exception | None = None) -> None:
        if self._closing:
            raise self._stopped() from cause

    def _check_can_generate(self, request: GenerateRequest) -> None:
        if self._pooling is not None:
            raise InvalidRequest(
                f"engine {self._name!r} has runner='pooling'; start another one to generate text"
            )
        self._adapters.check(request.lora)

    def _register(self, run: VLLMRequest) -> None:
        run.rid = f"alto-{next(self._numbers)}"
        self._open[run.rid] = False

    async def _begin(
        self, run: VLLMRequest, request: GenerateRequest, token_ids: list[int], times: Times
    ) -> OutputReader:
        """Give vLLM a whole prompt."""
        self._check_open()
        if len(token_ids) >= self.max_model_len:
            raise PromptTooLong(len(token_ids), self.max_model_len)
        params, adapter = await self._asked(request)
        self._check_open()
        prompt = {"type": "token", "prompt_token_ids": token_ids}
        times.submitted = self._loop.time()
        run.outputs = self._engine.generate(
            prompt, params, run.rid, priority=request.priority, **adapter
        )
        length, reason = len(token_ids), self._finish_reason
        return OutputReader(request=request, prompt_tokens=length, times=times, reason=reason)

    async def _asked(self, request: GenerateRequest) -> tuple[Any, dict[str, Any]]:
        """Return the sampling parameters of *request*, and the arguments for its adapter."""
        try:
            adapter = await self._adapters.load(request.lora, self._engine)
            return self._sampling.of(request), adapter
        except Exception as error:
            raise self.translate(error) from error

    async def _begin_streamed(
        self, run: VLLMRequest, request: GenerateRequest, prompt: StreamedPrompt, times: Times
    ) -> OutputReader:
        """Read the rest of the prompt, and let vLLM work on it meanwhile where it can."""
        incoming = IncomingPrompt(prompt, self, limit=self.max_model_len)
        self._incoming.add(incoming)
        try:
            if not self._budget.fits(request):
                token_ids, rest = await incoming.whole(), None
            else:
                _, adapter = await self._asked(
                    request
                )  # a wrong request fails before its prompt is read
                token_ids, rest = await incoming.streamed(
                    self._budget,
                    self._sampling.prefill(),
                    open_=partial(self._open_prefill, run, incoming, request, adapter),
                    drop=partial(self._drop_prefill, run),
                )
        finally:
            self._incoming.discard(incoming)
        if incoming.prefill is None or rest is None:
            self._register(run)
            return await self._begin(run, request, token_ids, times)
        left = self.max_model_len - len(token_ids)
        limit = left if request.max_tokens is None else min(request.max_tokens, left)
        params = self._sampling.of(request, max_tokens=limit, detokenize=False)
        times.submitted = self._loop.time()
        incoming.prefill.finish(rest, params)
        return OutputReader(
            request=request,
            prompt_tokens=len(token_ids),
            times=times,
            reason=self._finish_reason,
            skip=incoming.prefill.chunks,
            detokenizer=Detokenizer(self._engine.tokenizer, token_ids),
        )

    def _open_prefill(
        self,
        run: VLLMRequest,
        incoming: IncomingPrompt,
        request: GenerateRequest,
        adapter: dict[str, Any],
    ) -> Prefill:
        self._register(run)
        start = partial(
            self._engine.generate,
            sampling_params=self._sampling.prefill(),
            request_id=run.rid,
            priority=request.priority,
            **adapter,
        )
        prefill = Prefill(start, self._budget.make, incoming.cut)
        run.outputs = prefill
        return prefill

    async def _drop_prefill(self, run: VLLMRequest, _: Prefill) -> None:
        await self._abandon(run)
        self._aborted -= 1  # not aborted for its reader: it goes on as another request
        run.outputs = None

    async def _next(self, run: VLLMRequest) -> Any:  # noqa: ANN401  # vLLM is not typed here
        assert run.outputs is not None
        try:
            return await anext(run.outputs)
        except Exception as error:
            raise self.translate(error) from error

    async def _let_end(self, run: VLLMRequest) -> None:
        """Let vLLM's generator end by itself, after its last output."""
        assert run.outputs is not None
        with contextlib.suppress(StopAsyncIteration):
            await anext(run.outputs)
        await run.outputs.aclose()
        run.outputs = None
        self._finished += 1
        del self._open[run.rid]

    async def _abandon(self, run: VLLMRequest) -> None:
        """The request ends before the engine is done with it."""
        del self._open[run.rid]
        self._aborted += 1
        if run.outputs is None:
            return
        with anyio.CancelScope(shield=True):
            await run.outputs.aclose()
            if not self._closing and not self.is_dead:
                await self._engine.abort(
                    run.rid
                )  # again: a generator that is closed early may not know its request

    def cut_incoming(self) -> None:
        """Wake the prompts that wait for text, so that they check whether the engine still serves."""
        for incoming in self._incoming:
            incoming.cut()

    def _finish_reason(self, reason: str | None) -> FinishReason:
        if reason == "length":
            return "length"
        if reason in ("stop", "repetition"):
            return "stop"
        if self._closing:
            raise self._stopped()
        detail = "aborted a generation by itself" if reason == "abort" else f"reported {reason!r}"
        raise GenerationFailed(self._name, f"vLLM {detail}")

    def translate(self, error: Exception, /) -> AltoError:
        """Return alto's error for *error*, which vLLM or alto has raised."""
        if isinstance(error, AltoError):
            return error
        if isinstance(error, self._generate_error) and isinstance(error.__cause__, Exception):
            return self.translate(error.__cause__)
        if self._closing:
            return self._stopped()
        if isinstance(error, self._dead_error) or self.is_dead:
            return self._death()
        if isinstance(error, StopAsyncIteration):
            return GenerationFailed(self._name, "a generation ended without a finish reason")
        if isinstance(error, self._client_errors):
            return InvalidRequest(str(error))
        return GenerationFailed(self._name, f"{told(error)}")

    def _stopped(self) -> Closed | EngineDied:
        if self._died is not None:
            return EngineDied(self._died.engine, self._died.reason)
        return Closed(f"engine {self._name!r} was stopped")

    def _death(self) -> EngineDied:
        if self._died is not None:
            return EngineDied(self._died.engine, self._died.reason)
        lines = () if self._started is None else self._started.output.lines()
        cause, _ = find_cause(lines)
        return EngineDied(self._name, f"it died: {cause or 'one of its processes has ended'}")
