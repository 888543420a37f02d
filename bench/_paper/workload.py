"""What the requests of a run are: when they come, and the lengths of all that is said for them.

Means and deviations are those of ALTO v1, Table 1, in words. What the table leaves open is assumed,
and said here:

* every length and number is log-normal, rounded, and at least 1; an answer has at most 512 tokens,
  the limit of the authors' prototype;
* a word is 1.3 tokens (each is one token, and three in ten are two);
* claims and queries are lines of a list, with two tokens more: the dash and the line break. Table 1
  has 21 ms for a word of an answer, 41 for one of a claim and 59 for one of a query; without these
  tokens the median of the streamed curve is 8 to 13 % below the paper's;
* longer answers have more claims: the correlation of words and claims is 0.6;
* claims lie evenly over the answer, which has a sentence for every 16 words or so.

*Run on*: after the claims of an answer of more than 130 words the model repeats them up to its limit
of 512 tokens.

Draws depend on the seed and the number of the request only, and the unit gaps between arrivals on the
seed only. So all configurations get the same requests, and at another load the same ones come
faster.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

ANSWER_WORDS = (62.5, 57.2)
CLAIMS = (3.3, 1.8)
CLAIM_WORDS = (9.8, 3.5)
QUERIES = (2.5, 1.3)
QUERY_WORDS = (5.5, 3.1)
SENTENCE_WORDS = (16.0, 6.0)
"""Assumed; the rest is Table 1."""
COPULA = 0.6586
"""Correlation of the normal variables, which gives one of 0.6 of answer words and claims."""
SECOND_TOKEN = 0.3
"""Part of the words that are two tokens."""
LIMIT = 512
"""Most tokens of a generation."""
QUESTION_TOKENS = 14
RUN_ON_WORDS = 130

NOTHING = ("none", "\n")
"""What is said where a piece of an answer has no claim."""


@dataclass(frozen=True, slots=True)
class ClaimPlan:
    """A claim, and the queries that it leads to."""

    number: int
    """From 0, in its answer."""
    tokens: tuple[str, ...]
    """Texts of its tokens, a line."""
    queries: tuple[str, ...]
    """Texts of the tokens of all its queries, a line each."""
    sentence: int
    """Number of the sentence that states it."""


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """All that will be said for a request."""

    number: int
    arrives: float
    """Seconds from the beginning of the run."""
    answer: tuple[str, ...]
    """Texts of its tokens."""
    sentences: tuple[int, ...]
    """Tokens up to the end of each sentence."""
    claims: tuple[ClaimPlan, ...]
    runs_on: bool
    """Whether its claims would be repeated up to the limit."""

    def stated(self, begin: int, end: int) -> tuple[ClaimPlan, ...]:
        """The claims that sentences *begin* to *end* state."""
        return tuple(claim for claim in self.claims if begin <= claim.sentence < end)

    def extraction(self, claims: tuple[ClaimPlan, ...]) -> tuple[str, ...]:
        """What the model says to a piece of the answer with these claims."""
        said = tuple(token for claim in claims for token in claim.tokens)
        if not said:
            return NOTHING
        if not self.runs_on:
            return said[:LIMIT]
        return (said * (LIMIT // len(said) + 1))[:LIMIT]


def requests(*, rate: float, seconds: float, seed: int, run_on: bool = False) -> list[RequestPlan]:
    """The requests of a run, in order of arrival.

    Args:
        rate: Mean arrivals per second; they are a Poisson process.
        seconds: Length of the window.
        seed: Makes the draws repeatable.
        run_on: Whether generations of claims run on; see the module.
    """
    found = []
    for number, time in enumerate(_times(rate, seconds, seed)):
        luck = random.Random(f"{seed}/{number}")
        found.append(_request(number, time, luck, run_on=run_on))
    return found


def _times(rate: float, seconds: float, seed: int) -> Iterator[float]:
    luck, time = random.Random(f"{seed}/arrivals"), 0.0
    while True:
        time += luck.expovariate(1.0) / rate
        if time >= seconds:
            return
        yield time


def _request(number: int, time: float, luck: random.Random, *, run_on: bool) -> RequestPlan:
    common = luck.gauss(0.0, 1.0)
    words = _whole(ANSWER_WORDS, common)
    own = luck.gauss(0.0, 1.0)
    claims = _whole(CLAIMS, COPULA * common + math.sqrt(1 - COPULA**2) * own)
    tokens, ends = _answer(words, luck)
    per_sentence = len(ends) / claims
    return RequestPlan(
        number=number,
        arrives=time,
        answer=tokens,
        sentences=ends,
        claims=tuple(_claim(k, int((k + 0.5) * per_sentence), luck) for k in range(claims)),
        runs_on=run_on and words > RUN_ON_WORDS,
    )


def _answer(words: int, luck: random.Random) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts of the tokens of an answer, and the tokens up to the end of each sentence."""
    lengths = []
    while words > 0:
        length = min(words, _whole(SENTENCE_WORDS, luck.gauss(0.0, 1.0)))
        lengths.append(length)
        words -= length
    tokens: list[str] = []
    sizes = []
    for length in lengths:
        before = len(tokens)
        for place in range(length):
            tokens.append(" Then" if place == 0 else " word")
            if luck.random() < SECOND_TOKEN:
                tokens.append("ing")
        tokens[-1] += "."
        sizes.append(len(tokens) - before)
    tokens = tokens[:LIMIT]
    ends = [min(end, LIMIT) for end in accumulate(sizes)]
    return tuple(tokens), tuple(end for k, end in enumerate(ends) if k == 0 or end > ends[k - 1])


def _claim(number: int, sentence: int, luck: random.Random) -> ClaimPlan:
    tokens = _line(_whole(CLAIM_WORDS, luck.gauss(0.0, 1.0)), luck)
    tokens[1] = f" claim-{number}"
    queries: list[str] = []
    for _ in range(_whole(QUERIES, luck.gauss(0.0, 1.0))):
        queries += _line(_whole(QUERY_WORDS, luck.gauss(0.0, 1.0)), luck)
    assert len(queries) < LIMIT, "so the last line is a whole one"
    return ClaimPlan(number, tuple(tokens), tuple(queries), sentence)


def _line(words: int, luck: random.Random) -> list[str]:
    """Texts of the tokens of one line of a list; each word begins with a space."""
    tokens = ["-"]
    for _ in range(words):
        tokens.append(" word")
        if luck.random() < SECOND_TOKEN:
            tokens.append("ing")
    return [*tokens, "\n"]


def _whole(moments: tuple[float, float], normal: float) -> int:
    """A log-normal number of this mean and deviation, rounded, at the place of *normal*."""
    mean, deviation = moments
    variance = math.log(1 + (deviation / mean) ** 2)
    value = math.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * normal)
    return max(1, round(value))
