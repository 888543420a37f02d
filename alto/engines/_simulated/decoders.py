"""The calls of a simulated engine that decode: in lockstep, so they are counted together."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import final

from alto.engines._simulated.call import BatchedCall
from alto.engines._simulated.step_run import blocks_of, steps_within

__all__ = ("Decoders",)


@final
class Decoders:
    """Each says a token a step, and takes a block whenever its last one is full.

    Args:
        block_size: Tokens per block.
    """

    __slots__ = ("_due", "_phases", "context", "count", "step")

    def __init__(self, block_size: int, /) -> None:
        self.count = 0
        self.context = 0  # tokens that they attend to in the next step
        self.step = 0  # number of the next step
        self._phases = [0] * block_size  # how many take a block in steps of which number, modulo
        self._due: list[tuple[int, int, BatchedCall]] = []  # a heap; some do not decode any more

    def said(self, call: BatchedCall, /) -> int:
        """Tokens that *call*, which decodes, has said by now."""
        return self.step - 1 + call.ahead

    def start(self, call: BatchedCall, /) -> None:
        """Its prompt is computed, and its next token is there."""
        call.ahead = call.done + 2 - self.step
        call.phase = (2 - call.prompt - call.ahead) % len(self._phases)
        self._phases[call.phase] += 1
        self.count += 1
        self.context += call.prompt + call.done + 1

    def stop(self, call: BatchedCall, /) -> None:
        """It decodes no more."""
        self.count -= 1
        self.context -= call.prompt + self.said(call)
        self._phases[call.phase] -= 1
        call.phase = -1

    def look_at(self, call: BatchedCall, tokens: int, /) -> None:
        """Something is to be done when it has said so many."""
        heappush(self._due, (tokens - call.ahead, call.number, call))

    def due(self) -> Iterator[BatchedCall]:
        """Those at which to look now, in the order of their admission."""
        due, last = self._due, self.step - 1
        while due and due[0][0] <= last:
            _, number, call = heappop(due)
            if call.number == number:
                yield call

    def needs(self) -> int:
        """Blocks that they take in the next step."""
        return self._phases[self.step % len(self._phases)]

    def takes(self, call: BatchedCall, /) -> bool:
        """Whether *call* takes a block in the next step."""
        return call.phase == self.step % len(self._phases)

    def alike(self, free: int, /) -> int:
        """Steps up to the first after which to look at one; or for which *free* blocks suffice.

        Those for the next step are taken already.
        """
        due = self._due
        while due[0][2].number != due[0][1]:
            heappop(due)
        steps = due[0][0] - self.step + 1
        if self.count * ((steps - 1) // len(self._phases) + 1) <= free:
            return steps
        return 1 + steps_within(self._phases, self.step + 1, free, steps - 1)

    def go(self, steps: int, /) -> int:
        """So many steps are done; the blocks that all but the first have taken."""
        taken = 0
        if steps > 1:
            taken = blocks_of(self._phases, self.step + 1, steps - 1, self.count)
        self.context += self.count * steps
        self.step += steps
        return taken
