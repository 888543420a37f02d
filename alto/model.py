"""The frozen nouns that travel between floors: paths, messages, requests, chunks, usage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import attrs

from alto.errors import InvalidRequest

__all__ = (
    "Chunk",
    "Completion",
    "EngineStatistics",
    "FinishReason",
    "GenerateRequest",
    "Message",
    "Path",
    "Prompt",
    "Usage",
)

Path: TypeAlias = tuple[int, ...]
"""Ancestry of an item: one index per open level, below its request; ``()`` is the request."""

FinishReason: TypeAlias = Literal["stop", "length", "abort"]
"""Why a generation ended: a stop condition, ``max_tokens``, or somebody aborted it."""


@attrs.frozen(kw_only=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    """``system``, ``user`` or ``assistant``, as the model's chat template knows them."""
    content: str
    """What was said."""


Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""Text, token ids, or a chat that the model's own template turns into text."""


@attrs.frozen(kw_only=True)
class Usage:
    """What a generation has cost so far, in tokens."""

    prompt_tokens: int = 0
    """Length of the prompt."""
    cached_tokens: int = 0
    """Part of the prompt that the engine found in its prefix cache."""
    output_tokens: int = 0
    """Tokens generated up to and including this chunk."""


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
    """Set at least on the last chunk."""


@attrs.frozen(kw_only=True)
class Completion:
    """A whole generation."""

    text: str
    """Everything that was said."""
    token_ids: tuple[int, ...] = ()
    """The same, in tokens; empty where the engine does not tell."""
    finish_reason: FinishReason
    """Why it ended."""
    usage: Usage
    """What it cost."""


def _positive(name: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a whole number of tokens or None, not {value!r}"
        raise InvalidRequest(msg)
    if value <= 0:
        msg = f"{name} must be at least 1, not {value}"
        raise InvalidRequest(msg)


@attrs.frozen(kw_only=True)
class GenerateRequest:
    """One generation as an engine gets it. Validated when it is built.

    Raises:
        InvalidRequest: A parameter is out of its range; the message says which and why.
    """

    prompt: Prompt
    """Text, token ids or chat messages."""
    max_tokens: int | None = 256
    """At most this many tokens are generated; None: up to the end of the model's context."""
    temperature: float = 0.0
    """0 is greedy; larger is more random."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this much probability; (0, 1]."""
    stop: tuple[str, ...] = ()
    """End before the first of these texts."""
    seed: int | None = None
    """Makes a sampled generation repeatable on one engine."""
    ignore_eos: bool = False
    """Go on after the model's end-of-text token, up to ``max_tokens``."""
    choice: tuple[str, ...] | None = None
    """Constrain the output to one of these texts."""
    regex: str | None = None
    """Constrain the output to this regular expression."""
    json_schema: dict[str, Any] | None = None
    """Constrain the output to JSON of this schema."""
    priority: int = 0
    """Lower runs earlier, where the engine schedules by priority."""

    def __attrs_post_init__(self) -> None:
        """Check every field; see the class."""
        _check_prompt(self.prompt)
        _positive("max_tokens", self.max_tokens)
        for name in ("temperature", "top_p"):
            _number(name, getattr(self, name))
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            msg = f"temperature must be a finite number >= 0, not {self.temperature!r}"
            raise InvalidRequest(msg)
        if not 0 < self.top_p <= 1:
            msg = f"top_p must be in (0, 1], not {self.top_p!r}"
            raise InvalidRequest(msg)
        if not _texts(self.stop):
            msg = f"stop must hold non-empty texts, not {self.stop!r}"
            raise InvalidRequest(msg)
        given = [n for n in ("choice", "regex", "json_schema") if getattr(self, n) is not None]
        if len(given) > 1:
            msg = f"give one constraint at most, not {' and '.join(given)}"
            raise InvalidRequest(msg)
        if self.choice is not None and not (self.choice and _texts(self.choice)):
            msg = f"choice must hold at least one text, and no empty one, not {self.choice!r}"
            raise InvalidRequest(msg)


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be a number, not {value!r}"
        raise InvalidRequest(msg)


def _texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, (bytes, bytearray)) or not isinstance(prompt, Sequence):
        msg = f"a prompt is text, token ids or messages, not {type(prompt).__name__}"
        raise InvalidRequest(msg)
    if not prompt:
        msg = "the prompt is empty; give at least one token"
        raise InvalidRequest(msg)
    if isinstance(prompt, str):
        return
    kinds = {int if isinstance(p, int) and not isinstance(p, bool) else type(p) for p in prompt}
    if kinds not in ({int}, {Message}):
        names = ", ".join(sorted(k.__name__ for k in kinds))
        msg = f"a prompt list holds token ids or alto.Message, one kind only, not {names}"
        raise InvalidRequest(msg)
    if any(isinstance(token, int) and token < 0 for token in prompt):
        msg = "token ids must be >= 0"
        raise InvalidRequest(msg)


@attrs.frozen(kw_only=True)
class EngineStatistics:
    """What an engine is doing at this moment."""

    running: int = 0
    """Generations that have been started and have not ended."""
    waiting: int = 0
    """Generations that wait for a slot of the engine."""
    finished: int = attrs.field(default=0, eq=False)
    """Generations that ended by themselves since the start."""
    aborted: int = attrs.field(default=0, eq=False)
    """Generations that were closed before they ended, since the start."""
