"""Lines of a `Scripted` engine: finding one for a prompt, and cutting it to a request.

Values in, decisions out: there is no clock and no engine here.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol, TypeAlias, final

import attrs

from alto.engines._prompt_text import prompt_text
from alto.model import (
    Chunk,
    FinishReason,
    GenerateRequest,
    Message,
    Prompt,
    TokenLogprob,
    Usage,
)

__all__ = (
    "Line",
    "Lines",
    "Performance",
    "Script",
    "ScriptError",
    "ScriptSource",
    "ScriptedAnswers",
    "perform",
)


class ScriptError(AssertionError):
    """A prompt that no line of a script answers, or a line that no prompt has used."""


def _chunks(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _samples(value: Sequence[str | Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    if isinstance(value, str):
        msg = "samples are a list, of one text or one list of texts each"
        raise TypeError(msg)
    return tuple(_chunks(sample) for sample in value)


def _numbers(value: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(value)


@lru_cache(maxsize=4096)
def _chunk(text: str) -> Chunk:
    return Chunk(text=text, token_ids=(zlib.crc32(text.encode()) & 0xFFFF,))


def _say(texts: Iterable[str]) -> tuple[Chunk, ...]:
    return tuple(map(_chunk, texts))


@final
@attrs.frozen
class Line:
    """The answer to one prompt.

    Every chunk counts as one token; its id is made up, and equal for equal texts.
    """

    chunks: tuple[str, ...] = attrs.field(converter=_chunks)
    """Texts of the chunks; one text is one chunk."""
    match: str | Callable[[str], bool] | None = attrs.field(default=None, kw_only=True)
    """Prompts that it answers: those that contain this text, those for which this function returns True;
    None: any. A chat is matched as ``role: content`` lines, token ids as numbers with spaces between."""
    delay: float | None = attrs.field(default=None, kw_only=True)
    """Seconds before each chunk; None: the engine's."""
    first_delay: float | None = attrs.field(default=None, kw_only=True)
    """Seconds before the first chunk; None: the same as *delay*."""
    fail_at: int | None = attrs.field(default=None, kw_only=True)
    """Fail in place of the chunk with this index; the number of chunks: fail after the last."""
    error: Exception | None = attrs.field(default=None, kw_only=True)
    """Error to fail with; None: a ``GenerationFailed``."""
    finish_reason: FinishReason = attrs.field(default="stop", kw_only=True)
    """Finish reason, unless the request cuts the line short."""
    cached_tokens: int = attrs.field(default=0, kw_only=True)
    """Number of prompt tokens reported as cached, at most those of the prompt."""
    samples: tuple[tuple[str, ...], ...] = attrs.field(default=(), kw_only=True, converter=_samples)
    """Chunks of the further samples for a request with ``n`` above 1, given step by step with the first;
    empty: all samples are equal."""
    logprobs: tuple[float, ...] | None = attrs.field(default=None, kw_only=True, converter=_numbers)
    """Log-probability of each chunk of the first sample, for requests with ``logprobs``; None: 0."""
    said: tuple[Chunk, ...] = attrs.field(
        init=False,
        repr=False,
        eq=False,
        default=attrs.Factory(lambda self: _say(self.chunks), takes_self=True),
    )
    """The chunks, built once."""

    def __attrs_post_init__(self) -> None:
        """Refuse delays in the past and failures beyond the end."""
        if (self.delay or 0) < 0 or (self.first_delay or 0) < 0:
            msg = "a delay must be >= 0 seconds"
            raise ValueError(msg)
        if self.fail_at is None and self.error is not None:
            msg = "a line with an error needs fail_at, the index of the chunk that it replaces"
            raise ValueError(msg)
        if self.fail_at is not None and not 0 <= self.fail_at <= len(self.chunks):
            msg = f"fail_at must be from 0 to {len(self.chunks)}, not {self.fail_at}"
            raise ValueError(msg)
        if self.logprobs is not None and (
            len(self.logprobs) != len(self.chunks) or any(value > 0 for value in self.logprobs)
        ):
            msg = f"logprobs must be {len(self.chunks)} numbers, none above 0: one for each chunk"
            raise ValueError(msg)

    def fits(self, prompt: str, /) -> bool:
        """Return whether this line answers *prompt*."""
        if self.match is None:
            return True
        return self.match in prompt if isinstance(self.match, str) else bool(self.match(prompt))

    def describe(self) -> str:
        """Return the line in a few words, for messages."""
        text = shorten("".join(self.chunks))
        return text if self.match is None else f"{text} for {self.match!r}"


Said: TypeAlias = Line | str | Sequence[str]
Lines: TypeAlias = Sequence[Said] | Mapping[str, Said] | Callable[[str], Said]


def _as_line(value: Said) -> Line:
    return value if isinstance(value, Line) else Line(value)


def shorten(text: str, width: int = 80) -> str:
    """Return *text* as a literal, without its middle where it is long."""
    if len(text) > width:
        text = f"{text[: width // 2]}…{text[-width // 2 :]}"
    return repr(text)


def count_tokens(prompt: Prompt) -> int:
    """Return the length of a prompt: the number of its ids, or of its words."""
    if isinstance(prompt, str) or isinstance(prompt[0], Message):
        return len(prompt_text(prompt).split())
    return len(prompt)


class ScriptSource(Protocol):
    """Source of the lines of an engine."""

    def line_for(self, prompt: str, /) -> Line:
        """Return the line that answers *prompt*.

        Raises:
            ScriptError: There is none.
        """
        ...

    def leftovers(self) -> list[str]:
        """Return the lines that should have been used and were not, in words."""
        ...


@final
class Script:
    """Lines in order, each used once, for the first prompt that it fits."""

    def __init__(self, lines: Sequence[Said], /) -> None:
        if isinstance(lines, str):
            msg = "give a list of lines; one text alone would be taken letter by letter"
            raise TypeError(msg)
        self._lines: list[Line | None] = [_as_line(line) for line in lines]
        self._first = 0  # Invariant: every line before this one has been said.

    def line_for(self, prompt: str, /) -> Line:
        """Take the first line that fits *prompt* out of the script."""
        for index in range(self._first, len(self._lines)):
            line = self._lines[index]
            if line is not None and line.fits(prompt):
                self._lines[index] = None
                while self._first < len(self._lines) and self._lines[self._first] is None:
                    self._first += 1
                return line
        left = self.leftovers()
        tail = "its lines are used up" if not left else f"lines left: {'; '.join(left)}"
        msg = f"no line of the script answers the prompt {shorten(prompt, 400)}; {tail}"
        raise ScriptError(msg)

    def leftovers(self) -> list[str]:
        """Return the lines that have not been used."""
        return [line.describe() for line in self._lines if line is not None]


@final
class ScriptedAnswers:
    """Answers to any number of prompts, from a mapping or a function."""

    def __init__(self, answers: Mapping[str, Said] | Callable[[str], Said], /) -> None:
        self._function = answers if callable(answers) else None
        self._lines = {} if callable(answers) else {k: _as_line(v) for k, v in answers.items()}

    def line_for(self, prompt: str, /) -> Line:
        """Return the answer to *prompt*."""
        if self._function is not None:
            return _as_line(self._function(prompt))
        line = self._lines.get(prompt)
        if line is None:
            known = "; ".join(shorten(key) for key in self._lines) or "none"
            msg = f"no answer is given for the prompt {shorten(prompt, 400)}; known: {known}"
            raise ScriptError(msg)
        return line

    def leftovers(self) -> list[str]:
        """Return no lines: answers may stay unused."""
        return []


@final
@attrs.frozen(kw_only=True)
class Performance:
    """A line cut to a request."""

    chunks: Sequence[Chunk]
    """Chunks, in order; the last one ends the generation, unless it fails."""
    steps: Sequence[int]
    """Step of each chunk: in a step the engine gives one chunk of every sample."""
    fails_at: int | None
    """Step in which an error comes in place of a chunk; None: it ends by itself."""

    @property
    def last_step(self) -> int:
        """The step in which the engine is done with it."""
        return self.steps[-1] if self.fails_at is None else self.fails_at


def perform(line: Line, request: GenerateRequest, prompt_tokens: int) -> Performance:
    """Cut *line* to what *request* allows, and put its usage on the last chunk.

    Raises:
        ScriptError: The line has fewer samples than *request* asks for, or breaks a constraint.
    """
    if line.samples and request.n > 1 + len(line.samples):
        msg = (
            f"the request asks for {request.n} samples, and the scripted {line.describe()} "
            f"has {1 + len(line.samples)}"
        )
        raise ScriptError(msg)
    said = [_sample(line, index, request) for index in range(request.n)]
    fails_at = line.fail_at
    if fails_at is not None and fails_at <= len(said[0][0]):
        return _in_steps([chunks[:fails_at] for chunks, _ in said], request, fails_at)
    for chunks, reason in said:
        if reason != "length":
            _check_constraint(chunks, request)
    performance = _in_steps(
        [_ended(*sample, index) for index, sample in enumerate(said)], request, None
    )
    performance.chunks[-1].usage = Usage(
        prompt_tokens=prompt_tokens,
        cached_tokens=min(line.cached_tokens, prompt_tokens),
        output_tokens=sum(len(chunks) for chunks, _ in said),
    )
    return performance


_Sample: TypeAlias = tuple[tuple[Chunk, ...], FinishReason]
"""Chunks of a sample, and its finish reason."""


def _sample(line: Line, index: int, request: GenerateRequest) -> _Sample:
    """Return one sample of *line*, cut to what *request* allows."""
    texts = line.samples[index - 1] if index and line.samples else line.chunks
    said = line.said if texts is line.chunks else _say(texts)
    reason = line.finish_reason
    if request.stop and (kept := _cut(texts, request.stop)) is not None:
        said, reason = _say(kept), "stop"
    if request.max_tokens is not None and len(said) > request.max_tokens:
        said, reason = said[: request.max_tokens], "length"
    if request.logprobs is not None:
        given = line.logprobs if texts is line.chunks else None
        said = tuple(
            attrs.evolve(chunk, logprobs=_logprobs(chunk, value, request.logprobs))
            for chunk, value in zip(said, given or (0.0,) * len(said), strict=False)
        )
    if index:
        said = tuple(attrs.evolve(chunk, index=index) for chunk in said)
    return said, reason


def _ended(said: tuple[Chunk, ...], reason: FinishReason, index: int) -> tuple[Chunk, ...]:
    """Return the chunks with a last chunk of their own, which has the finish reason."""
    last = said[-1] if said else Chunk(text="", index=index)
    return (*said[:-1], attrs.evolve(last, finish_reason=reason))


def _logprobs(chunk: Chunk, value: float, top: int) -> tuple[TokenLogprob, ...]:
    """Return the log-probability of a chunk's token, the only one that the engine considers."""
    return tuple(TokenLogprob(token, value, ((token, value),)[:top]) for token in chunk.token_ids)


def _in_steps(
    samples: Sequence[Sequence[Chunk]], request: GenerateRequest, fails_at: int | None
) -> Performance:
    """Interleave samples: the first chunk of each, then the second of each."""
    if request.n == 1:
        (said,) = samples
        return Performance(chunks=said, steps=range(len(said)), fails_at=fails_at)
    placed = sorted(
        ((step, chunk) for sample in samples for step, chunk in enumerate(sample)),
        key=lambda pair: (pair[0], pair[1].index),
    )
    chunks, steps = [chunk for _, chunk in placed], [step for step, _ in placed]
    return Performance(chunks=chunks, steps=steps, fails_at=fails_at)


def _cut(texts: Sequence[str], stops: Sequence[str]) -> list[str] | None:
    """Return *texts* up to the first of *stops*; None: none of them occurs."""
    whole = "".join(texts)
    places = [place for place in map(whole.find, stops) if place >= 0]
    if not places:
        return None
    left, kept = min(places), []
    for text in texts:
        kept.append(text[:left])
        left -= len(text)
        if left <= 0:
            break
    return kept


def _check_constraint(said: Sequence[Chunk], request: GenerateRequest) -> None:
    if request.choice is None and request.regex is None and request.json_schema is None:
        return
    text, problem = "".join(chunk.text for chunk in said), None
    if request.choice is not None and text not in request.choice:
        problem = f"is none of {request.choice!r}"
    elif request.regex is not None and re.fullmatch(request.regex, text) is None:
        problem = f"does not match {request.regex!r}"
    elif request.json_schema is not None:
        try:
            json.loads(text)
        except ValueError as error:
            problem = f"is no JSON ({error})"
    if problem is not None:
        msg = f"the request constrains the output, and the scripted {shorten(text)} {problem}"
        raise ScriptError(msg)
