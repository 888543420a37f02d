"""A running vLLM engine and its generations: from a request to chunks, and every way out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast, final

import anyio

from alto.engines._child_output import find_cause
from alto.engines._launch import Started, shut_down
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
    EngineStatistics,
    FinishReason,
    GenerateRequest,
    Message,
    Prompt,
    Usage,
)

__all__ = ("Session", "to_the_end")

_T = TypeVar("_T")


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Do *work* to its end, and only then be cancelled."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # it has been seen
        raise cancelled
    return task.result()


@final
class Session:
    """One life of an engine, from its start to its stop or death.

    Belongs to the event loop that made it.
    """

    def __init__(self, name: str, started: Started, /) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._name = name
        self._started: Started | None = started
        self._engine = started.engine
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._finished = 0
        self._aborted = 0
        self._numbers = itertools.count()
        self._open: dict[str, bool] = {}
        """Generations by id, and whether the engine has said anything yet."""
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="alto-tokenizer")
        """One at a time: fast tokenizers are not made for several threads."""
        self._sampling_params = SamplingParams
        self._structured_outputs = StructuredOutputsParams
        self._delta = RequestOutputKind.DELTA
        self._dead_error = EngineDeadError
        self._generate_error = EngineGenerateError
        self._client_errors = _client_errors()
        config = started.engine.vllm_config
        self.max_model_len: int = config.model_config.max_model_len
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs

    @property
    def is_dead(self) -> bool:
        """Whether a process of the engine is gone that should not be."""
        return bool(self._engine.errored)

    def check_health(self) -> None:
        """Raise `EngineDied` if it did."""
        if self.is_dead:
            raise self._death()

    def statistics(self) -> EngineStatistics:
        """What it is doing now. A generation that the engine is done with does not count."""
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

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation; see :class:`alto.protocols.Engine`."""
        self._check_usable()
        rid = f"alto-{next(self._numbers)}"
        self._open[rid] = False
        outputs: AsyncGenerator[Any, None] | None = None
        tokens_out = 0
        try:
            token_ids = await self._token_ids(request.prompt)
            if self._closing:
                raise self._stopped()
            outputs = self._submit(rid, token_ids, request)
            while True:
                try:
                    output = await anext(outputs)
                except Exception as error:
                    raise self._translate(error) from error
                said = output.outputs[0]
                new = tuple(said.token_ids)
                tokens_out += len(new)
                if not output.finished:
                    self._open[rid] = True
                    yield Chunk(text=said.text, token_ids=new)
                    continue
                reason = self._finish_reason(said.finish_reason)
                await anext(outputs, None)  # lets vLLM's generator end by itself
                outputs = None
                self._finished += 1
                del self._open[rid]
                usage = Usage(
                    prompt_tokens=len(token_ids),
                    cached_tokens=output.num_cached_tokens or 0,
                    output_tokens=tokens_out,
                )
                yield Chunk(text=said.text, token_ids=new, finish_reason=reason, usage=usage)
                return
        finally:
            if rid in self._open:
                await self._abandon(rid, outputs)

    async def stop(self) -> None:
        """Abort what runs and end the processes."""
        self._closing = True
        engine, started, self._started = self._engine, self._started, None
        assert started is not None
        if self._open and not self.is_dead:
            await self._wait_registered()
            await engine.abort(list(self._open))
        handler = engine.output_handler
        if handler is not None:  # or it would report the shutdown as a failure
            handler.cancel()
            await asyncio.wait([handler])
        resources = getattr(engine.engine_core, "resources", None)
        reader = getattr(resources, "output_queue_task", None)
        await self._loop.run_in_executor(None, shut_down, started)
        if reader is not None:  # vLLM closes its sockets in the loop, and then cancels this
            await asyncio.wait([reader], timeout=1.0)
        self._tokenizer_thread.shutdown(wait=False)

    async def _wait_registered(self) -> None:
        """Let vLLM take in what is on its way, since it can abort only what it knows."""
        known = getattr(self._engine.output_processor, "external_req_ids", self._open)
        for _ in range(500):
            if self.is_dead or all(heard or rid in known for rid, heard in self._open.items()):
                return
            await asyncio.sleep(0.01)

    def _check_usable(self) -> None:
        if self._closing:
            raise self._stopped()
        if asyncio.get_running_loop() is not self._loop:
            raise EngineError(self._name, "it belongs to the event loop that started it")
        self.check_health()

    def _submit(
        self, rid: str, token_ids: Sequence[int], request: GenerateRequest
    ) -> AsyncGenerator[Any, None]:
        if len(token_ids) >= self.max_model_len:
            raise PromptTooLong(len(token_ids), self.max_model_len)
        constraint = None
        if request.choice is not None:
            constraint = self._structured_outputs(choice=list(request.choice))
        elif request.regex is not None:
            constraint = self._structured_outputs(regex=request.regex)
        elif request.json_schema is not None:
            constraint = self._structured_outputs(json=request.json_schema)
        try:
            params = self._sampling_params(
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                stop=list(request.stop),
                seed=request.seed,
                ignore_eos=request.ignore_eos,
                structured_outputs=constraint,
                output_kind=self._delta,
            )
        except Exception as error:
            raise self._translate(error) from error
        prompt = {"type": "token", "prompt_token_ids": token_ids}
        outputs: AsyncGenerator[Any, None] = self._engine.generate(
            prompt, params, rid, priority=request.priority
        )
        return outputs

    async def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            encode = partial(_encode, self._engine.tokenizer, prompt)
        elif isinstance(prompt[0], Message):
            encode = partial(_encode_chat, self._engine.tokenizer, cast(Sequence[Message], prompt))
        else:
            return list(cast(Sequence[int], prompt))
        if self._engine.tokenizer is None:
            raise InvalidRequest(f"engine {self._name!r} has no tokenizer; give token ids")
        try:
            return await self._loop.run_in_executor(self._tokenizer_thread, encode)
        except AltoError:
            raise
        except Exception as error:
            if self._closing:
                raise self._stopped() from error
            raise InvalidRequest(f"the prompt cannot be tokenised: {error}") from error

    async def _abandon(self, rid: str, outputs: AsyncGenerator[Any, None] | None) -> None:
        """The generation ends before the engine is done with it."""
        del self._open[rid]
        self._aborted += 1
        if outputs is None:
            return
        with anyio.CancelScope(shield=True):
            await outputs.aclose()
            if not self._closing and not self.is_dead:
                await self._engine.abort(rid)  # again: a cancellation may have met it half-way in

    def _finish_reason(self, reason: str | None) -> FinishReason:
        if reason == "length":
            return "length"
        if reason in ("stop", "repetition"):
            return "stop"
        if self._closing:
            raise self._stopped()
        detail = "aborted a generation by itself" if reason == "abort" else f"reported {reason!r}"
        raise GenerationFailed(self._name, f"vLLM {detail}")

    def _translate(self, error: Exception) -> AltoError:
        """What *error* of vLLM's means to us."""
        if isinstance(error, self._generate_error) and isinstance(error.__cause__, Exception):
            return self._translate(error.__cause__)
        if self._closing:
            return self._stopped()
        if isinstance(error, self._dead_error) or self.is_dead:
            return self._death()
        if isinstance(error, StopAsyncIteration):
            return GenerationFailed(self._name, "a generation ended without a finish reason")
        if isinstance(error, self._client_errors):
            return InvalidRequest(str(error))
        return GenerationFailed(self._name, f"{type(error).__name__}: {error}")

    def _stopped(self) -> Closed:
        return Closed(f"engine {self._name!r} was stopped")

    def _death(self) -> EngineDied:
        lines = () if self._started is None else self._started.output.lines()
        cause, _ = find_cause(lines)
        return EngineDied(self._name, f"it died: {cause or 'a process of it is gone'}")


def _client_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that cannot be served; newer ones have a class for it."""
    from vllm import exceptions

    named = (getattr(exceptions, name, None) for name in ("VLLMClientError", "VLLMValidationError"))
    return (ValueError, TypeError, *(error for error in named if error is not None))


def _encode(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401  # vLLM is not typed here
    return list(tokenizer.encode(text))


def _encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:  # noqa: ANN401
    if not getattr(tokenizer, "chat_template", None):
        msg = "this model's tokenizer has no chat template; give text or token ids"
        raise InvalidRequest(msg)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))
