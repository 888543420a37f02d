"""Answers of a simulated engine: from a prompt to the tokens of its answer.

The answer is given when the engine is made. It is split into tokens, one per word unless a tokeniser is
given, and cut to what the request allows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, final

import attrs

from alto.engines._prompt_text import prompt_text
from alto.errors import InvalidRequest, PromptTooLong
from alto.model import FinishReason, GenerateRequest, Message, Prompt

__all__ = ("Answer", "Said", "Says", "SimulatedAnswers", "split_words")

Said: TypeAlias = str | int | Sequence[str]
"""An answer: a text, a number of filler tokens, or the texts of its tokens."""

Says: TypeAlias = Said | Mapping[str, Said] | Callable[[GenerateRequest], Said]
"""An answer to everything, answers by the text of the prompt, or a function of the request."""

_WORD = re.compile(r"\s*\S+|\s+")


def split_words(text: str, /) -> list[str]:
    """Split *text* into words, each with the space before it."""
    return _WORD.findall(text)


def _token_id(text: str) -> int:
    return zlib.crc32(text.encode()) & 0x7FFF_FFFF  # as large as an engine takes


@final
@attrs.frozen
class Answer:
    """The answer to one request; each of its samples gives it."""

    texts: Sequence[str]
    """Text of each token; at least one, which may be empty."""
    reason: FinishReason
    """Finish reason."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the answer; equal texts have equal ids."""
        return tuple(map(_token_id, self.texts))


@final
class SimulatedAnswers:
    """Answers of one engine.

    Args:
        says: The answer or answers, as given to the engine.
        split: Splits a text into the texts of its tokens, which must join to it.
        max_model_len: The context, in tokens.
    """

    def __init__(
        self, says: Says, split: Callable[[str], Sequence[str]], max_model_len: int, /
    ) -> None:
        if isinstance(says, (str, int)):
            _check_said(says)
        self._says = says
        self._split = split
        self._limit = max_model_len

    def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the token ids of a prompt: one for each word, or those that it consists of."""
        if isinstance(prompt, str) or isinstance(prompt[0], Message):
            return tuple(map(_token_id, self._split(prompt_text(prompt))))
        return prompt  # type: ignore[return-value]  # a prompt is of one kind

    def find(self, request: GenerateRequest, prompt: Prompt, prompt_tokens: int, /) -> Answer:
        """Return the answer to *request*, whose prompt is *prompt*, of *prompt_tokens* tokens.

        Raises:
            PromptTooLong: The prompt alone fills the context.
            InvalidRequest: There is no answer to it.
        """
        room = self._limit - prompt_tokens
        if room < 1:
            raise PromptTooLong(prompt_tokens, self._limit)
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        texts = self._texts(self._said(request, prompt), request, prompt)
        reason: FinishReason = "stop"
        if request.stop:
            texts = _cut(texts, request.stop)
        elif request.ignore_eos:
            texts = [*texts, *_filler(most - len(texts))]
            reason = "length"
        if len(texts) > most:
            texts, reason = texts[:most], "length"
        return Answer(texts or [""], reason)

    def _said(self, request: GenerateRequest, prompt: Prompt) -> Said:
        says = self._says
        if callable(says):
            says = says(attrs.evolve(request, prompt=prompt, prefix=None))
        elif isinstance(says, Mapping):
            text = prompt_text(prompt)
            if text not in says:
                shown = text if len(text) <= 200 else f"{text[:200]}…"
                msg = f"no answer is given for the prompt {shown!r}; add it to says="
                raise InvalidRequest(msg)
            says = says[text]
        return _check_said(says)

    def _texts(self, said: Said, request: GenerateRequest, prompt: Prompt) -> Sequence[str]:
        if request.choice is not None:
            text = said if isinstance(said, str) else ""
            if not isinstance(said, (str, int)):
                text = "".join(said)
            if text not in request.choice:
                place = zlib.crc32(prompt_text(prompt).encode()) % len(request.choice)
                text = request.choice[place]
            return self._split(text)
        if isinstance(said, int):
            return _filler(said)
        return self._split(said) if isinstance(said, str) else said


def _check_said(said: object) -> Said:
    if isinstance(said, str) or (isinstance(said, int) and not isinstance(said, bool)):
        if isinstance(said, int) and said < 1:
            msg = f"an answer has at least 1 token, not {said}"
            raise ValueError(msg)
        return said
    if isinstance(said, Sequence) and all(isinstance(text, str) for text in said):
        return said
    msg = f"an answer is a text, a number of tokens or a list of texts, not {said!r}"
    raise TypeError(msg)


def _filler(tokens: int) -> list[str]:
    return [" blah"] * tokens


def _cut(texts: Sequence[str], stops: Sequence[str]) -> Sequence[str]:
    """Return *texts* up to the first of *stops*; the token that completes the stop text counts."""
    whole = "".join(texts)
    found = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    if not found:
        return texts
    end, place = min(found)
    kept, start = [], 0
    for text in texts:
        if start >= end:
            break
        kept.append(text[: max(0, place - start)])
        start += len(text)
    return kept
