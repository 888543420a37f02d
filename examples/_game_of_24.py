"""The game of 24: make 24 of four numbers with + - * /. Its rules, and one who plays by guessing."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from itertools import permutations
from typing import TypeAlias

from alto.testing import Line

Left: TypeAlias = tuple[tuple[Fraction, str], ...]
"""Numbers that are left each with the expression that it came from."""


def numbers(puzzle: str) -> Left:
    """What is left at first; a ``ValueError`` says what is wrong with *puzzle*."""
    given = puzzle.split()
    if len(given) != 4 or not all(number.isdecimal() for number in given):
        raise ValueError(f"give four whole numbers, such as 4 9 10 13, not {puzzle!r}")
    return tuple(sorted((Fraction(number), number) for number in given))


def steps(left: Left) -> dict[str, Left]:
    """Every step that combines two numbers, as a line of text, with what is left after it."""
    found = {}
    for one, two in permutations(left, 2):
        rest = list(left)
        rest.remove(one)
        rest.remove(two)
        (a, x), (b, y) = one, two
        made = {"+": a + b, "-": a - b, "*": a * b} | ({"/": a / b} if b else {})
        for sign, number in made.items():
            after = sorted([*rest, (number, f"({x} {sign} {y})")])
            found[f"{a} {sign} {b} = {number}"] = tuple(after)
    return found


def plays_24(prompt: str) -> str | Line:
    """Plays the game of 24: lists every step, or gives its opinion on the numbers that are left."""
    first, rest = prompt.split("\n", 1)
    given = re.findall(r"-?\d+(?:/\d+)?", first)
    left = tuple((Fraction(number), number) for number in given)
    if "one a line" in rest:
        return "".join(f"{line}\n" for line in steps(left))
    opinions = [glance(left, random.Random(f"{first} {sample}")) for sample in range(3)]
    return Line(opinions[0], samples=opinions[1:])


def glance(left: Left, luck: random.Random, *, tries: int = 25) -> str:
    """An opinion on what is left, from a few ways to go on, so it errs at times, as a model does."""
    opinion = "impossible"
    for _ in range(tries):
        after = [number for number, _ in left]
        while len(after) > 1:
            luck.shuffle(after)
            a, b = after.pop(), after.pop()
            after.append(luck.choice([a + b, a - b, a * b, a / b if b else a]))
        if after == [24]:
            return "sure"
        if len(left) > 2 and 20 <= after[0] <= 30:
            opinion = "likely"
    return opinion
