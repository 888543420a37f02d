"""How much of a text one call of its consumer should get.

Theory of operation. A producer writes a text; its pieces go to a consumer that asks a model about them.
A piece that is handed over by itself is worked on while the text goes on. But each call computes the
head of its prompt once more, unless that is cached, and whatever its engine decodes waits meanwhile.

If a text ended now, after ``seen`` characters in calls of ``k`` each, then

* ``seen / k`` calls would have cost ``uncached * prefill * generations`` seconds each: the time of the
  prompt tokens, for every generation that they hold up;
* the last call would still have ``output * k`` tokens to write, one in each step of an engine, so that
  its text is complete that much later.

Of a step only the time that it takes however small it is, *base*, counts: all else in it is work that is
done some time anyway, and cancels out of the latency. (By Little's law that holds for a fixed number of
requests and for requests that come by chance: with *c* such calls more the mean latency grows by
``c * uncached * prefill`` for each generation on the engine.) With *step_tokens* for ``base / prefill`` the
sum is least where ``k`` is the root of ``price * seen`` and ::

    price = (uncached + call_tokens) * generations / (output * step_tokens)

is what a call must hold to pay for itself. So held text goes when it is at least that root, and

* at least `MARGIN` times the price: the text may end soon after a call, which has then saved less.

So the sum is never above that of one call at the end, and where a call costs nothing every piece goes by
itself. It is the mean over requests that is least: long texts, which gain most, hold up short ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, final

__all__ = ("MARGIN", "Coarsening", "Pile")

MARGIN: Final = 3.0
"""How often a call must gain what it costs. By trial, see ``python -m bench.streaming_gain``: with less
short texts pay more for long ones where engines are busy, and with more the mean gains less."""


@final
class Coarsening:
    """Decide whether what is held is worth a call, and learn what calls cost.

    Everything is learned from about the last *window* calls, each of which counts less than the next.
    What a call costs by itself is told from what its text adds by a line, fitted by least squares; where
    all calls have texts of one size, the prompt is taken to be the call's.

    Args:
        uncached: Prompt tokens that a call computes beside its text, until one is known.
        output: Tokens that it writes for each character, until one is known.
        step_tokens: Prompt tokens computed in the time that an empty step of an engine takes.
        call_tokens: Those computed in the time that a prompt takes beside its tokens.
        window: Calls that count, >= 1.

    Attributes:
        uncached: As it is known now.
        output: The same.
    """

    __slots__ = (
        "_keep",
        "_s",
        "_ss",
        "_su",
        "_u",
        "_w",
        "_written",
        "call_tokens",
        "output",
        "step_tokens",
        "uncached",
    )

    def __init__(
        self,
        *,
        uncached: float,
        output: float,
        step_tokens: float,
        call_tokens: float = 0.0,
        window: int = 32,
    ) -> None:
        self.uncached: float = uncached
        self.output: float = output
        self.step_tokens: float = step_tokens
        self.call_tokens: float = call_tokens
        self._keep = 1 - 1 / window
        # Sums over calls, weighted by age: 1, size, its square, size times uncached, uncached, output.
        self._w = self._s = self._ss = self._su = self._u = self._written = 0.0

    def learn(self, size: float, /, *, uncached: float, output: float) -> None:
        """A call of *size* characters, > 0, has computed and written so many tokens."""
        keep = self._keep
        self._w = keep * self._w + 1
        self._s = keep * self._s + size
        self._ss = keep * self._ss + size * size
        self._su = keep * self._su + size * uncached
        self._u = keep * self._u + uncached
        self._written = keep * self._written + output
        self.output = self._written / self._s
        mean_size, mean = self._s / self._w, self._u / self._w
        spread = self._ss / self._w - mean_size * mean_size
        slope = 0.0
        if spread > 1e-3 * mean_size * mean_size:
            slope = max(0.0, (self._su / self._w - mean_size * mean) / spread)
        self.uncached = max(0.0, mean - slope * mean_size)

    def price(self, generations: float, /) -> float:
        """Characters that a call must hold to pay for itself, with so many generations on its engine."""
        cost = (self.uncached + self.call_tokens) * generations
        gain = self.output * self.step_tokens
        if gain > 0:
            return cost / gain
        return math.inf if cost > 0 else 0.0

    def ready(self, held: float, given: float, generations: float, /) -> bool:
        """Whether to hand over *held* characters, > 0; *given* were handed over before them."""
        price = self.price(generations)
        return held >= MARGIN * price and held * held >= price * (held + given)


@final
class Pile:
    """The pieces of one text that wait to be handed over together.

    Args:
        ready: Says whether to hand over so many characters, after so many.
        separator: Put between pieces.
    """

    __slots__ = ("_given", "_held", "_pieces", "_ready", "_separator")

    def __init__(self, ready: Callable[[int, int], bool], separator: str) -> None:
        self._ready = ready
        self._separator = separator
        self._pieces: list[str] = []
        self._held = 0
        self._given = 0

    def add(self, piece: str, /) -> str | None:
        """One more piece. Returns what is to be handed over now, if anything."""
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held and self._ready(self._held, self._given):
            return self.flush()
        return None

    def flush(self) -> str | None:
        """What is held, if anything: the text has ended."""
        if not self._pieces:
            return None
        text = self._separator.join(self._pieces)
        self._given += self._held
        self._held = 0
        self._pieces.clear()
        return text
