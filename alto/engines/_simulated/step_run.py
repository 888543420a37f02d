"""Steps of a simulated engine that are alike, as one: when they end, what memory they take."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import final

__all__ = ("Stretch", "blocks_of", "steps_within")


@final
class Stretch:
    """Steps that follow each other, each longer than the one before by the same time."""

    __slots__ = ("first", "growth", "start", "steps")

    def __init__(self) -> None:
        self.start = 0.0  # the boundary that it begins at, or that was reached last
        self.steps = 0  # 0: there is no stretch
        self.first = 0.0  # seconds of the first step
        self.growth = 0.0  # and by how much each is longer than the one before

    def boundary(self, steps: int, /) -> float:
        """When so many of its steps are done."""
        return self.start + steps * (self.first + self.growth * (steps - 1) / 2)

    @property
    def end(self) -> float:
        """When it is over."""
        return self.boundary(self.steps)

    def cut(self, time: float, told: float = -inf, /) -> None:
        """End it at the first boundary at or after *time* that is after *told*."""
        steps = self.steps
        if steps <= 1 or self.boundary(steps - 1) < time:
            return
        seconds, half = max(0.0, time - self.start), self.first - self.growth / 2
        guess = 2 * seconds / (half + sqrt(half * half + 2 * self.growth * seconds))
        steps = max(1, min(steps, int(guess)))
        while steps < self.steps and not self._serves(steps, time, told):
            steps += 1
        while steps > 1 and self._serves(steps - 1, time, told):
            steps -= 1
        self.steps = steps

    def _serves(self, steps: int, time: float, told: float) -> bool:
        boundary = self.boundary(steps)
        return boundary >= time and boundary > told


def blocks_of(phases: Sequence[int], step: int, steps: int, decoding: int, /) -> int:
    """Blocks that are taken in *steps* steps from number *step* on.

    Args:
        phases: How many sequences take a block in steps of each number, modulo the block size.
        step: The first of them.
        steps: How many.
        decoding: The sum of *phases*.
    """
    size = len(phases)
    cycles, rest = divmod(steps, size)
    start = step % size
    more = sum(phases[start : start + rest]) + sum(phases[: max(0, start + rest - size)])
    return decoding * cycles + more


def steps_within(phases: Sequence[int], step: int, free: int, most: int, /) -> int:
    """For how many steps from number *step* on, at most *most*, *free* blocks are enough."""
    size, decoding = len(phases), sum(phases)
    cycles = free // decoding
    fit = cycles * size
    free -= cycles * decoding
    while fit < most:
        free -= phases[(step + fit) % size]
        if free < 0:
            break
        fit += 1
    return min(most, fit)
