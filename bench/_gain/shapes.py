"""The pipelines, their requests, and the modes that are compared.

A producer writes a text of pieces, a line each; a consumer asks a model about one piece or several at a
time, and writes so many tokens for each. Numbers and lengths are log-normal. Draws depend on the
seed and the number of the request only, so every mode and every load gets the same requests.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["waiting", "pieces", "adaptive"]
MODES: Final[tuple[Mode, ...]] = ("waiting", "pieces", "adaptive")
"""The consumer gets the whole text; each piece by itself; or what ``alto.text.Coarsening`` says."""

GRAIN = 8
"""Tokens per chunk of an engine, and what the length of a piece is a multiple of: fewer chunks cost
less to simulate, and none says later than it is that a piece has ended."""
QUESTION_TOKENS = 16
PIECES_CV, TOKENS_CV, OUTPUT_CV = 0.6, 0.4, 0.5
"""Deviation over mean, of the pieces of a text and the lengths of each."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A pipeline of two stages; all numbers but the heads are means."""

    name: str
    about: str
    head: int
    """Tokens that a prompt of the producer begins with."""
    pieces: float
    """Pieces of a text: the fan-out."""
    tokens: float
    """Tokens of a piece."""
    consumer_head: int
    """Tokens that a prompt of the consumer begins with."""
    output: float
    """Tokens that the consumer writes for a piece."""


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="long_head", about="many short pieces, each behind a long head",
            head=60, pieces=10, tokens=16, consumer_head=600, output=8,
        ),
        Shape(
            name="few_long", about="few long pieces, and much to write about each",
            head=60, pieces=3, tokens=80, consumer_head=150, output=48,
        ),
        Shape(
            name="cheap", about="a consumer that writes a word",
            head=60, pieces=8, tokens=24, consumer_head=100, output=2,
        ),
        Shape(
            name="slow", about="a consumer that writes more than it reads",
            head=60, pieces=5, tokens=16, consumer_head=300, output=40,
        ),
    )
}  # fmt: skip


def shape(name: str) -> Shape:
    """The pipeline of that name, or of five numbers in the order of a `Shape`, such as ``60-10-16-600-8``.

    Raises:
        ValueError: It is neither, or a number is below 1.
    """
    if name in SHAPES:
        return SHAPES[name]
    numbers = [int(number) for number in name.split("-")]
    if len(numbers) != 5 or min(numbers) < 1:
        msg = f"a shape is one of {', '.join(SHAPES)} or five numbers from 1 up, not {name!r}"
        raise ValueError(msg)
    head, pieces, tokens, consumer_head, output = numbers
    return Shape(
        name=name, about="given by its numbers",
        head=head, pieces=pieces, tokens=tokens, consumer_head=consumer_head, output=output,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be said for a request."""

    tokens: tuple[int, ...]
    """Of each piece."""
    outputs: tuple[int, ...]
    """Of the consumer, for each piece."""


def plans(shape: Shape, count: int, seed: int) -> list[Plan]:
    """The requests of a run."""
    return [_plan(shape, random.Random(f"{seed}/{number}")) for number in range(count)]


def _plan(shape: Shape, luck: random.Random) -> Plan:
    pieces = range(_draw(luck, shape.pieces, PIECES_CV))
    return Plan(
        tokens=tuple(_draw(luck, shape.tokens, TOKENS_CV, GRAIN) for _ in pieces),
        outputs=tuple(_draw(luck, shape.output, OUTPUT_CV) for _ in pieces),
    )


def _draw(luck: random.Random, mean: float, deviation: float, grain: int = 1) -> int:
    """A log-normal number, rounded to a multiple of *grain*; *deviation* is over the mean."""
    variance = math.log(1 + deviation * deviation)
    value = math.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * luck.gauss(0.0, 1.0))
    return grain * max(1, round(value / grain))
