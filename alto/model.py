"""Values that all layers share: paths, messages, requests, chunks, usage."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import attrs

from alto._validate import is_number, is_whole
from alto.errors import InvalidRequest

__all__ = (
    "Chunk",
    "Completion",
    "EmbedRequest",
    "Embedding",
    "EngineCapacity",
    "EngineStatistics",
    "FinishReason",
    "GenerateRequest",
    "Message",
    "Origin",
    "Path",
    "Prompt",
    "StageInfo",
    "StreamedPrompt",
    "TokenLogprob",
    "Usage",
)

_MOST_SAMPLES = 128
_SEEDS = range(-(2**63), 2**63)  # What engines take: a signed number of 64 bits.
_KINDS: dict[str, tuple[type, str]] = {
    "seed": (int, "a whole number, or None"),
    "regex": (str, "a regular expression as text, or None"),
    "json_schema": (dict, "a JSON schema as a dict, or None"),
    "ignore_eos": (bool, "True or False"),
    "resume": (bool, "True or False"),
    "priority": (int, "a whole number between -10**9 and 10**9, lower runs earlier"),
}

Path: TypeAlias = tuple[int, ...]
"""Ancestry of an item: one index per open level, below its request; ``()`` is the request."""

FinishReason: TypeAlias = Literal["stop", "length", "abort"]
"""Reason for the end of a generation: a stop condition, ``max_tokens``, or an abort."""


@attrs.frozen(kw_only=True, eq=False)
class StageInfo:
    """A stage as its executor sees it; see :class:`alto.protocols.Executor`."""

    name: str
    """Its name in messages and statistics; numbered where a pipeline uses it more than once."""
    function: Callable[..., Any]
    """The plain function, as it was decorated."""
    generator: bool
    """True if it is an async generator function."""
    concurrency: int
    """Most calls that run at once, per replica."""
    resources: Mapping[str, Any]
    """The annotations of its keyword-only parameters, by name."""


@attrs.frozen(kw_only=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    """``system``, ``user`` or ``assistant``, as the model's chat template knows them."""
    content: str
    """Text of the turn."""


Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or a chat that the model's own template turns into text."""


@attrs.frozen
class StreamedPrompt:
    """A text prompt whose end is still being written.

    The prompt is *head* followed by every text that *tail* gives. An engine that can computes the
    part that is there while the rest is written; any other waits for all of it. That pays for prompts of
    a thousand tokens and more, on an engine that has room: ``bench/streamed_prompt.py``.
    """

    head: str
    """Text that is already known; may be empty."""
    tail: AsyncIterable[str]
    """The rest, piece by piece: an :class:`alto.Group`, or any other source of texts. Read once."""


@attrs.frozen(kw_only=True)
class Origin:
    """The stage call that asks for a generation."""

    stage: str
    """Name of the stage, numbered where a pipeline uses it more than once."""
    request: int
    """Number of the outermost request, unique in this process."""
    path: Path
    """Ancestry of the call, from the outermost request down."""
    arrived: float
    """Time at which the outermost request began, in seconds on the loop's clock."""
    deadline: float | None = None
    """Time at which the request times out, in seconds on the loop's clock; None: never."""
    depth: int = 0
    """Position of the stage downstream: a stage comes after those that it takes streams from."""
    id: str = attrs.field(default="", eq=False)
    """Id of the outermost request, as in its events and errors; not compared."""


@attrs.frozen
class TokenLogprob:
    """Log-probability of one generated token."""

    token_id: int
    """Id of the token."""
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this position, each with its log-probability, likeliest first."""


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens and times of a generation so far."""

    prompt_tokens: int = 0
    """Length of the prompt."""
    cached_tokens: int = 0
    """Part of the prompt that the engine found in its prefix cache."""
    output_tokens: int = 0
    """Tokens generated up to and including this chunk; of all samples, where there are several."""
    queue_time: float = attrs.field(default=0.0, eq=False)
    """Seconds from asking for it until an engine began to work on it; not compared."""
    first_token_time: float = attrs.field(default=0.0, eq=False)
    """Seconds from asking for it until its first token; not compared."""


@attrs.define(frozen=False, kw_only=True)
class Chunk:
    """A piece of a generation, handed out as soon as the engine has it.

    The texts of a generation's chunks, joined, are its whole text. Treat it as frozen: it is not
    marked so because building a frozen record costs three times as much, once per token.
    """

    text: str
    """Text that is new since the chunk before; may be empty."""
    token_ids: tuple[int, ...] = ()
    """Tokens that are new since the chunk before."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk, and only there."""
    usage: Usage | None = None
    """Set at least on the last chunk of the generation."""
    index: int = 0
    """Number of its sample, if there are several (``n``); each has a last chunk of its own."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each of its tokens, where they were asked for."""


@attrs.frozen(kw_only=True)
class Completion:
    """A whole generation, or one of its samples."""

    text: str
    """All generated text."""
    token_ids: tuple[int, ...] = ()
    """Its tokens; empty if the engine does not report them."""
    finish_reason: FinishReason
    """Reason for its end."""
    usage: Usage
    """Tokens and times; of all samples together, if there are several."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token, where they were asked for."""


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """One generation as an engine gets it. Validated when it is built.

    Raises:
        InvalidRequest: A parameter is out of its range; the message says which and why.
    """

    prompt: Prompt | StreamedPrompt
    """Text, token ids or chat messages, or a text whose end is still being written."""
    max_tokens: int | None = 256
    """At most this many tokens are generated; None: up to the end of the model's context."""
    temperature: float = 0.0
    """0 is greedy; larger is more random."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this much probability; (0, 1]."""
    stop: tuple[str, ...] = ()
    """End before the first of these texts."""
    seed: int | None = None
    """Makes a sampled generation repeatable on one engine; from -2**63 to 2**63 - 1."""
    ignore_eos: bool = False
    """Go on after the model's end-of-text token, up to ``max_tokens``."""
    choice: tuple[str, ...] | None = None
    """Constrain the output to one of these texts."""
    regex: str | None = None
    """Constrain the output to this regular expression; not empty."""
    json_schema: dict[str, Any] | None = None
    """Constrain the output to JSON of this schema."""
    priority: int = 0
    """Lower runs earlier, where the engine schedules by priority."""
    n: int = 1
    """Samples to generate for the same prompt."""
    logprobs: int | None = None
    """With each token, its log-probability and those of this many of the likeliest; None: none."""
    lora: str | None = None
    """Name of the LoRA adapter to use; None: the bare model."""
    prefix: Prompt | None = None
    """Head that the prompts of one template share: what *prompt* begins with. A hint for placement
    that changes no output."""
    resume: bool = False
    """True if another engine may continue it after its engine has died."""
    origin: Origin | None = attrs.field(default=None, eq=False)
    """The stage call that asks for it; None: not from a pipeline. Not compared."""

    def __attrs_post_init__(self) -> None:
        """Raise `InvalidRequest` if a field is out of its range."""
        if isinstance(self.prompt, StreamedPrompt):
            _check_streamed(self.prompt.head, self.prompt.tail)
        else:
            _check_prompt(self.prompt)
        _check_extras(self)
        if self.n > 1 and isinstance(self.prompt, StreamedPrompt):
            msg = f"a streamed prompt has one sample, not n={self.n}; wait for its text first"
            raise InvalidRequest(msg)
        if self.prefix is not None:
            _check_prefix(self.prefix, self.prompt)
        if self.resume:
            _check_resume(self)
        _check_sampling(self)
        if not _are_texts(self.stop):
            msg = f"stop must hold non-empty texts, not {self.stop!r}"
            raise InvalidRequest(msg)
        given = [n for n in ("choice", "regex", "json_schema") if getattr(self, n) is not None]
        if len(given) > 1:
            msg = f"give one constraint at most, not {' and '.join(given)}"
            raise InvalidRequest(msg)
        if self.choice is not None and not (self.choice and _are_texts(self.choice)):
            msg = f"choice must hold at least one text, and no empty one, not {self.choice!r}"
            raise InvalidRequest(msg)


def _check_sampling(request: GenerateRequest) -> None:
    if request.max_tokens is not None and not is_whole(request.max_tokens, 1):
        msg = f"max_tokens must be a whole number >= 1 or None, not {request.max_tokens!r}"
        raise InvalidRequest(msg)
    for name in ("temperature", "top_p"):
        if not is_number(value := getattr(request, name)):
            msg = f"{name} must be a number, not {value!r}"
            raise InvalidRequest(msg)
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        msg = f"temperature must be a finite number >= 0, not {request.temperature!r}"
        raise InvalidRequest(msg)
    if not 0 < request.top_p <= 1:
        msg = f"top_p must be in (0, 1], not {request.top_p!r}"
        raise InvalidRequest(msg)


def _are_texts(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(v, str) and v for v in values)


def _check_streamed(head: object, tail: object) -> None:
    if not isinstance(head, str):
        msg = f"the head of a streamed prompt is text, not {type(head).__name__}"
        raise InvalidRequest(msg)
    if not isinstance(tail, AsyncIterable):
        msg = (
            f"the tail of a streamed prompt is a Group or another async iterable of texts, "
            f"not {type(tail).__name__}"
        )
        raise InvalidRequest(msg)
    # A generator that runs or has ended: it would give nothing, or the second half, without an error.
    if getattr(tail, "ag_running", False) or getattr(tail, "ag_frame", tail) is None:
        msg = "the tail of this streamed prompt was read before; it can be read once"
        raise InvalidRequest(msg)


def _check_extras(request: GenerateRequest) -> None:
    if not is_whole(request.n, 1, _MOST_SAMPLES):
        msg = f"n must be a whole number from 1 to {_MOST_SAMPLES}, not {request.n!r}"
        raise InvalidRequest(msg)
    if request.logprobs is not None and not is_whole(request.logprobs, 0, 20):
        msg = f"logprobs must be a whole number from 0 to 20, or None, not {request.logprobs!r}"
        raise InvalidRequest(msg)
    lora: object = request.lora
    if lora is not None and not (isinstance(lora, str) and lora):
        msg = f"lora must be the name of an adapter, not {lora!r}"
        raise InvalidRequest(msg)
    for name, (kind, what) in _KINDS.items():
        value = getattr(request, name)
        fits = is_whole(value) if kind is int else isinstance(value, kind)
        if not fits and not (value is None and what.endswith("None")):
            msg = f"{name} must be {what}, not {value!r}"
            raise InvalidRequest(msg)
    if request.seed is not None and request.seed not in _SEEDS:
        msg = f"seed must be a whole number from -2**63 to 2**63 - 1, or None, not {request.seed}"
        raise InvalidRequest(msg)
    if request.regex == "":
        msg = "regex is empty; leave it out, or give an expression that the output is to match"
        raise InvalidRequest(msg)
    if abs(request.priority) > 10**9:
        msg = f"priority must be {_KINDS['priority'][1]}, not {request.priority}"
        raise InvalidRequest(msg)


def _check_resume(request: GenerateRequest) -> None:
    odd = [n for n in ("choice", "regex", "json_schema") if getattr(request, n) is not None]
    odd += ["n > 1"] if request.n > 1 else []
    odd += ["stop"] if request.stop else []
    odd += ["a streamed prompt"] if isinstance(request.prompt, StreamedPrompt) else []
    if odd:
        msg = f"a generation with {' and '.join(odd)} cannot be resumed on another engine"
        raise InvalidRequest(msg)


def _check_prefix(prefix: Prompt, prompt: Prompt | StreamedPrompt) -> None:
    whole = prompt.head if isinstance(prompt, StreamedPrompt) else prompt
    if not isinstance(prefix, str) and not prefix:
        msg = "prefix= is empty; leave it out, or give the head that the template's prompts share"
        raise InvalidRequest(msg)
    if isinstance(prefix, str) != isinstance(whole, str) or len(prefix) > len(whole):
        begins = False
    elif isinstance(prefix, str):
        begins = isinstance(whole, str) and whole.startswith(prefix)
    else:
        begins = list(whole[: len(prefix)]) == list(prefix)
    if not begins:
        msg = "the prompt does not begin with prefix=; give the head that the template's prompts share"
        raise InvalidRequest(msg)


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Sequence):
        msg = f"a prompt is text, token ids or messages, not {type(prompt).__name__}"
        raise InvalidRequest(msg)
    if not prompt:
        msg = "the prompt is empty; give at least one token"
        raise InvalidRequest(msg)
    if isinstance(prompt, str):
        return
    # A prompt may have many thousand ids, so they are looked at by built-in functions only.
    kinds = {int if issubclass(k, int) and k is not bool else k for k in set(map(type, prompt))}
    if kinds not in ({int}, {Message}):
        names = ", ".join(sorted(k.__name__ for k in kinds))
        msg = f"a prompt list holds token ids or alto.Message, one kind only, not {names}"
        raise InvalidRequest(msg)
    ids = cast("Sequence[int]", prompt)
    if kinds == {int} and not 0 <= min(ids) <= max(ids) < 1 << 31:
        msg = "token ids must be from 0 to 2**31 - 1"
        raise InvalidRequest(msg)


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """Current activity of an engine."""

    running: int = 0
    """Generations that have been started and have not ended."""
    waiting: int = 0
    """Generations that wait for a slot of the engine."""
    finished: int = attrs.field(default=0, eq=False)
    """Generations that ended by themselves since the start."""
    aborted: int = attrs.field(default=0, eq=False)
    """Generations that were closed before they ended, since the start."""
    prompt_tokens: int = attrs.field(default=0, eq=False)
    """Tokens of the prompts of finished generations, since the start."""
    cached_tokens: int = attrs.field(default=0, eq=False)
    """Those of them that were found in the prefix cache."""
    output_tokens: int = attrs.field(default=0, eq=False)
    """Tokens of finished generations, since the start."""
    kv_usage: float = attrs.field(default=0.0, eq=False)
    """Part of the KV cache that running generations hold, 0 to 1; 0 where the engine cannot tell."""
    preempted: int = attrs.field(default=0, eq=False)
    """Times that a generation lost its KV memory to others and began anew, since the start."""


@attrs.frozen(kw_only=True)
class EngineCapacity:
    """Limits of an engine, for those that send it requests."""

    max_num_seqs: int
    """Generations that run at once."""
    max_num_batched_tokens: int
    """Tokens per step, prompts and outputs together."""
    kv_tokens: int | None = None
    """Tokens that the KV cache holds; None: as many as it takes."""
    block_size: int = 16
    """Tokens per block of the prefix cache."""
    max_model_len: int | None = None
    """The model's context, prompt and output together; None: without a limit."""


@attrs.frozen(kw_only=True)
class EmbedRequest:
    """A prompt to be turned into a vector, or with *pair* into a score, by an engine that pools.

    Raises:
        InvalidRequest: The prompt is empty or of no known kind.
    """

    prompt: Prompt
    """Text, token ids or chat messages."""
    pair: str | None = None
    """Second text, for a cross-encoder: how well does it answer *prompt*?"""
    tokens: bool = False
    """True: give a vector per token, as late interaction needs, rather than one for all."""
    priority: int = 0
    """Lower runs earlier, where the engine schedules by priority."""
    origin: Origin | None = attrs.field(default=None, eq=False)
    """The call that asks. Not compared."""

    def __attrs_post_init__(self) -> None:
        """Raise `InvalidRequest` if the prompt is not one."""
        _check_prompt(self.prompt)
        if self.pair is not None and not (isinstance(self.prompt, str) and self.pair):
            msg = "a pair to be scored is two texts, neither of them empty"
            raise InvalidRequest(msg)


@attrs.frozen(kw_only=True)
class Embedding:
    """Answer of a pooling engine to one prompt."""

    vectors: tuple[tuple[float, ...], ...]
    """One vector of the model's width; one for each token where that was asked for; for a pair one
    of width 1, its score."""
    prompt_tokens: int = 0
    """Length of the prompt."""
