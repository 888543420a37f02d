"""Vectors and scores of a `Scripted` engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar, final

from alto.engines._prompt_text import prompt_text
from alto.errors import InvalidRequest
from alto.model import Embedding, EmbedRequest
from alto.testing._script import ScriptError, count_tokens, shorten

__all__ = ("Embeds", "Scores", "Vectors")

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

Vector: TypeAlias = Sequence[float]
Embeds: TypeAlias = Mapping[str, Vector] | Callable[[str], Vector]
Scores: TypeAlias = Mapping[tuple[str, str], float] | Callable[[str, str], float]


@final
class Vectors:
    """Vectors of prompts and scores of pairs, from mappings or functions."""

    def __init__(self, name: str, embeds: Embeds | None, scores: Scores | None, /) -> None:
        self._name = name
        self._embeds = embeds
        self._scores = scores

    @property
    def scores_pairs(self) -> bool:
        """True if scores were given."""
        return self._scores is not None

    def embedding(self, request: EmbedRequest, /) -> Embedding:
        """Return the answer to *request*.

        Raises:
            InvalidRequest: No vectors, or no scores, were given.
            ScriptError: None was given for this prompt.
        """
        text = prompt_text(request.prompt)
        if request.pair is not None:
            tokens = len(text.split()) + len(request.pair.split())
            score = float(self._score(text, request.pair))
            return Embedding(vectors=((score,),), prompt_tokens=tokens)
        tokens = count_tokens(request.prompt)
        vector = tuple(float(value) for value in self._vector(text))
        return Embedding(
            vectors=(vector,) * (tokens if request.tokens else 1), prompt_tokens=tokens
        )

    def _vector(self, text: str) -> Vector:
        if self._embeds is None:
            raise InvalidRequest(f"engine {self._name!r} has no vectors; give Scripted(embeds=...)")
        return self._embeds(text) if callable(self._embeds) else _look_up(self._embeds, text)

    def _score(self, text: str, pair: str) -> float:
        if self._scores is None:
            raise InvalidRequest(f"engine {self._name!r} has no scores; give Scripted(scores=...)")
        if callable(self._scores):
            return self._scores(text, pair)
        return _look_up(self._scores, (text, pair))


def _look_up(answers: Mapping[_Key, _Value], key: _Key) -> _Value:
    if key not in answers:
        known = "; ".join(shorten(str(each)) for each in answers) or "none"
        raise ScriptError(f"no answer is given for {shorten(str(key), 400)}; known: {known}")
    return answers[key]
