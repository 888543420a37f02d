"""Translation between alto and vLLM: sampling parameters, adapters, and outputs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

import attrs

from alto.errors import InvalidRequest
from alto.model import Chunk, EngineCapacity, FinishReason, GenerateRequest, TokenLogprob, Usage

__all__ = (
    "Adapters",
    "Detokenizer",
    "Outputs",
    "OutputReader",
    "VLLMRequest",
    "Sampling",
    "Times",
    "capacity_of",
    "settle_constraints",
    "client_errors",
)


def capacity_of(config: Any, /) -> EngineCapacity:  # noqa: ANN401  # vLLM is not typed here
    """Return the limits of an engine with vLLM's *config*, as resolved at its start."""
    scheduler = config.scheduler_config
    cache = getattr(config, "cache_config", None)
    block_size = getattr(cache, "block_size", None) or 16
    kv_tokens = getattr(cache, "kv_cache_size_tokens", None)
    blocks = getattr(cache, "num_gpu_blocks", None)
    if kv_tokens is None and blocks:
        kv_tokens = blocks * block_size
    ranks = getattr(getattr(config, "parallel_config", None), "data_parallel_size", None) or 1
    return EngineCapacity(  # vLLM counts the memory of all ranks, and of the rest what one has
        max_num_seqs=ranks * scheduler.max_num_seqs,
        max_num_batched_tokens=ranks * getattr(scheduler, "max_num_batched_tokens", 2048),
        kv_tokens=kv_tokens,
        block_size=block_size,
        max_model_len=config.model_config.max_model_len,
    )


def client_errors() -> tuple[type[Exception], ...]:
    """Return vLLM's errors for a request that cannot be served; newer versions have a class for it."""
    from vllm import exceptions

    named = (getattr(exceptions, name, None) for name in ("VLLMClientError", "VLLMValidationError"))
    return (ValueError, TypeError, *(error for error in named if error is not None))


def settle_constraints(engine: Any, /) -> None:  # noqa: ANN401  # as above
    """Make vLLM check every constraint with the backend that will have to follow it.

    Left to itself, vLLM chooses a backend per request, and its engine keeps to the one of the first
    request: what only the other can express is then ignored, or ends at once without a word. Of the
    two, ``guidance`` refuses what it cannot express, with a reason; ``xgrammar`` ignores some of it.
    """
    config: Any = getattr(engine.vllm_config, "structured_outputs_config", None)
    if config is not None and getattr(config, "backend", None) == "auto":
        fast = getattr(engine.tokenizer, "is_fast", False)
        config.backend = "guidance" if fast else "xgrammar"


@final
class Sampling:
    """Builds vLLM's parameters. Needs vllm."""

    def __init__(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        self._params = SamplingParams
        self._structured = StructuredOutputsParams
        self._delta = RequestOutputKind.DELTA

    def of(self, request: GenerateRequest, /, **others: Any) -> Any:  # noqa: ANN401  # vLLM is not typed here
        """Return the parameters for *request*; *others* are vLLM's own, and override them."""
        given: dict[str, Any] = {
            "n": request.n,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop),
            "seed": request.seed,
            "ignore_eos": request.ignore_eos,
            "logprobs": request.logprobs,
            "structured_outputs": self._constraint(request),
            "output_kind": self._delta,
        }
        return self._params(**(given | others))

    def prefill(self) -> Any:  # noqa: ANN401  # as above
        """Return the parameters for a chunk of a prompt: one token, which is discarded."""
        return self._params(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=self._delta,
        )

    def _constraint(self, request: GenerateRequest) -> Any:  # noqa: ANN401  # as above
        if any("\0" in text for text in (*(request.choice or ()), request.regex or "")):
            raise InvalidRequest("a choice or regex cannot hold the character NUL")
        if request.choice is not None:
            return self._structured(choice=list(request.choice))
        if request.regex is not None:
            return self._structured(regex=request.regex)
        if request.json_schema is not None:
            return self._structured(json=request.json_schema)
        return None


@final
class Adapters:
    """LoRA adapters by name. Each is loaded when it is first asked for.

    Args:
        name: Name of the engine, for messages.
        folders: Folder of each adapter.
        enabled: Whether the engine was started with ``enable_lora``.
    """

    def __init__(self, name: str, folders: Mapping[str, str], /, *, enabled: bool) -> None:
        self._name = name
        self._folders = dict(folders)
        self._numbers = {adapter: number for number, adapter in enumerate(self._folders, 1)}
        self._enabled = enabled
        self._loaded: dict[str, Any] = {}

    def check(self, adapter: str | None, /) -> None:
        """Refuse an adapter that is not known.

        Raises:
            InvalidRequest: There is no such adapter; the message lists those that there are.
        """
        if adapter is None:
            return
        if adapter not in self._folders:
            known = ", ".join(map(repr, self._folders)) or "none"
            msg = f"engine {self._name!r} has no LoRA adapter {adapter!r}; it has {known}"
            raise InvalidRequest(msg)
        if not self._enabled:
            msg = f"engine {self._name!r} was started without adapters; start it with enable_lora=True"
            raise InvalidRequest(msg)

    async def load(self, adapter: str | None, engine: Any, /) -> dict[str, Any]:  # noqa: ANN401  # as above
        """Load *adapter*, and return the arguments for vLLM's ``generate``.

        A folder that cannot be loaded would kill the engine if a generation were the first to use it. So
        it is loaded beforehand, where vLLM only reports the failure.

        Raises:
            InvalidRequest: It cannot be loaded.
        """
        if adapter is None:
            return {}
        if adapter not in self._loaded:
            from vllm.lora.request import LoRARequest

            folder = self._folders[adapter]
            if not (Path(folder) / "adapter_config.json").is_file():
                msg = f"LoRA adapter {adapter!r}: there is no adapter_config.json in {folder!r}"
                raise InvalidRequest(msg)
            loaded = LoRARequest(adapter, self._numbers[adapter], folder)
            try:
                await engine.add_lora(loaded)
            except Exception as error:
                if engine.errored:
                    raise
                msg = f"LoRA adapter {adapter!r} cannot be loaded: {_last_line(error)}"
                raise InvalidRequest(msg) from error
            self._loaded[adapter] = loaded
        return {"lora_request": self._loaded[adapter]}


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class Outputs(Protocol):
    """Outputs of vLLM for one request."""

    def __anext__(self) -> Awaitable[Any]:
        """The next output."""
        ...

    async def aclose(self) -> None:
        """Abort it, unless it has ended."""
        ...


@attrs.define(eq=False, kw_only=True)
class VLLMRequest:
    """One request inside vLLM."""

    rid: str = ""
    """Its id in vLLM; empty: it has not begun."""
    outputs: Outputs | None = None
    """None: vLLM is not working on it, or not any more."""


@attrs.define(eq=False, kw_only=True)
class Times:
    """Times of the events of one generation, in seconds on the loop's clock."""

    asked: float
    """It was asked for."""
    submitted: float = 0.0
    """vLLM got it."""
    first: float | None = None
    """Its first token came."""

    def queue_time(self, metrics: Any) -> float:  # noqa: ANN401  # as above
        """Return the seconds until the engine scheduled it; 0 where vLLM keeps no statistics."""
        queued = getattr(metrics, "queued_ts", 0.0)
        scheduled = getattr(metrics, "scheduled_ts", 0.0)
        if not queued or not scheduled:
            return 0.0
        return max(0.0, self.submitted - self.asked) + max(0.0, float(scheduled - queued))


@final
class Detokenizer:
    """Incremental detokenizer for tokens that follow others; incomplete characters are held back."""

    def __init__(self, tokenizer: Any, context: Sequence[int], /) -> None:  # noqa: ANN401  # as above
        self._decode = tokenizer.decode
        self._ids = list(context[-6:])  # enough for a tokenizer to know what it is in the middle of
        self._said = self._text()

    def add(self, token_ids: Iterable[int], /) -> str:
        """Return the text that *token_ids* add."""
        new = []
        for token in token_ids:
            self._ids.append(token)
            text = self._text()
            if len(text) > len(self._said) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                new.append(text[len(self._said) :])
                del self._ids[:-6]
                self._said = self._text()
        return "".join(new)

    def _text(self) -> str:
        return str(self._decode(self._ids, skip_special_tokens=True))


@final
@attrs.define(eq=False, kw_only=True)
class OutputReader:
    """Reader of vLLM's outputs for one generation, which turns them into chunks."""

    request: GenerateRequest
    """The request."""
    prompt_tokens: int
    """Length of the prompt."""
    times: Times
    """Of the generation."""
    reason: Callable[[str | None], FinishReason]
    """Translates vLLM's finish reason; raises for those that are failures."""
    skip: int = 0
    """Tokens at the beginning that belong to chunks of the prompt."""
    detokenizer: Detokenizer | None = None
    """Detokenizer that makes the texts; None: vLLM makes them."""
    _tokens: int = 0
    _cached: int = 0
    _spoke: set[int] = attrs.field(factory=set)
    """Samples that have given text."""

    def read(self, output: Any, now: float) -> tuple[list[Chunk], bool]:  # noqa: ANN401  # as above
        """Return the chunks in *output*, which came at *now*, and whether they are the last.

        The last one of all has the usage.

        Raises:
            AltoError: The engine gave up.
        """
        self._cached = output.num_cached_tokens or self._cached
        chunks = [chunk for said in output.outputs if (chunk := self._chunk(said)) is not None]
        if self.times.first is None and self._tokens:
            self.times.first = now
        ended = bool(chunks) and chunks[-1].finish_reason is not None
        ended = ended and (output.finished or self.detokenizer is not None)
        if ended:
            first = self.times.first
            chunks[-1].usage = Usage(
                prompt_tokens=self.prompt_tokens,
                cached_tokens=min(self._cached, self.prompt_tokens),
                output_tokens=self._tokens,
                queue_time=self.times.queue_time(getattr(output, "metrics", None)),
                first_token_time=0.0 if first is None else first - self.times.asked,
            )
        return chunks, ended

    def _chunk(self, said: Any) -> Chunk | None:  # noqa: ANN401  # as above
        new = tuple(said.token_ids)
        if self.skip:
            skipped = min(self.skip, len(new))
            self.skip -= skipped
            new = new[skipped:]
            if not new:
                if said.finish_reason not in (None, "length", "stop"):
                    self.reason(said.finish_reason)
                return None
        self._tokens += len(new)
        reason = None if said.finish_reason is None else self.reason(said.finish_reason)
        text = said.text
        if self.detokenizer is not None:  # the token that stops a text is not part of it
            text = self.detokenizer.add(new[:-1] if reason == "stop" else new)
        index = getattr(said, "index", 0)
        if text:
            self._spoke.add(index)
        elif reason == "stop" and index not in self._spoke and self._must_speak():
            raise InvalidRequest("vLLM cannot follow this constraint: it said nothing at all")
        return Chunk(
            text=text,
            token_ids=new,
            finish_reason=reason,
            index=index,
            logprobs=self._logprobs(said, new),
        )

    def _must_speak(self) -> bool:
        return self.request.json_schema is not None or self.request.choice is not None

    def _logprobs(self, said: Any, new: Sequence[int]) -> tuple[TokenLogprob, ...] | None:  # noqa: ANN401
        asked = self.request.logprobs
        if asked is None:
            return None
        return tuple(
            _logprob(token, places, asked)
            for token, places in zip(new, said.logprobs or (), strict=False)
        )


def _logprob(token: int, places: Mapping[int, Any], asked: int) -> TokenLogprob:
    """Return one token's log-probability; vLLM lists the token beside the likeliest ones."""
    ranked = sorted(places.items(), key=lambda item: item[1].rank or 0)
    top = tuple((each, float(place.logprob)) for each, place in ranked[:asked])
    return TokenLogprob(token, float(places[token].logprob), top)
