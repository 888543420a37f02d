"""Hand over pieces of a text together: as many as are worth a call of the stage that gets them.

Theory of operation. One stage writes a text, and its pieces go to another stage that asks a model about
them. A piece that is passed on alone is processed while the text is still arriving. But each call
computes the head of its prompt once more, unless that is cached, and all other generations of its
engine wait meanwhile.

If a text ended now, after ``seen`` characters in calls of ``k`` each, then

* ``seen / k`` calls would have cost ``uncached * prefill * generations`` seconds each: the time of the
  prompt tokens, for every generation that they hold up;
* the last call would still have ``output * k`` tokens to write, one in each step of an engine, so
  its text would be complete that much later.

Of a step only *base* counts, the time that it takes however small it is. All else in a step is work that is
done at some time anyway, and cancels out of the latency. (By Little's law this holds for a fixed number of
requests and for requests that arrive at random: *c* such calls more raise the mean latency by
``c * uncached * prefill`` for each generation on the engine.) With *step_tokens* for ``base / prefill`` the
sum is least where ``k`` is the root of ``price * seen``, and the price is ::

    price = (uncached + call_tokens) * generations / (output * step_tokens)

That many characters a call must hold to pay for itself. So held text goes when it is at least that root and
at least `MARGIN` times the price, since the text may end soon after a call, which has then saved less.

So the sum is never above that of one call at the end, and where a call costs nothing every piece goes by
itself. The mean over requests is least: long texts, which gain most, hold up short ones.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any, Final, final

from alto._resumable import ResumableGenerator, close
from alto._validate import check_finite
from alto.llm import LLM
from alto.model import Usage
from alto.protocols import Engine

__all__ = ("MARGIN", "CallCost", "Coarsening", "HeldPieces", "joined")

MARGIN: Final = 3.0
"""Least ratio of what a call saves to what it costs. Found by trial with ``python -m bench.streaming_gain``:
with less, short texts pay more for long ones where engines are busy; with more, the mean gains less."""


@final
class CallCost:
    """Cost of a call, learned from calls, and the decision that follows from it.

    Everything is learned from about the last *window* calls, each of which counts less than the next.
    A line fitted by least squares separates what a call costs by itself from what its text adds. Where
    all calls have texts of one size, the whole prompt is taken to be the call's own.

    Args:
        uncached: Prompt tokens that a call computes beside its text, until one is known.
        output: Tokens that it writes for each character, until one is known.
        step_tokens: Prompt tokens computed in the time that an empty step of an engine takes.
        call_tokens: Those computed in the time that a prompt takes beside its tokens.
        window: Calls that count, >= 1.

    Attributes:
        uncached: The value known now.
        output: The value known now.
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
        """Learn from a call with *size* characters, > 0, that computed and wrote so many tokens."""
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
        if spread > 1e-3 * mean_size * mean_size:  # with less, rounding would decide
            slope = max(0.0, (self._su / self._w - mean_size * mean) / spread)
        self.uncached = max(0.0, mean - slope * mean_size)

    def price(self, generations: float, /) -> float:
        """Return the characters that a call must hold to pay for itself.

        Args:
            generations: Generations on the engine of the call.
        """
        cost = (self.uncached + self.call_tokens) * generations
        gain = self.output * self.step_tokens
        if gain > 0:
            return cost / gain
        return math.inf if cost > 0 else 0.0

    def is_worth_it(self, held: float, given: float, generations: float, /) -> bool:
        """Return whether to hand over now.

        Args:
            held: Characters that would go, > 0.
            given: Characters of the same text that went before.
            generations: Generations on the engine of the call.
        """
        price = self.price(generations)
        return held >= MARGIN * price and held * held >= price * (held + given)


@final
class Coarsening:
    """Rule for :func:`joined`: hand over the text so far when it is worth a call.

    Each call computes the head of its prompt again, unless an engine has it cached, and holds up what
    that engine decodes; but the sooner it begins, the less is left to do when the text has ended. With
    few generations on the engines every piece goes by itself; the more there are, the larger what goes,
    up to the whole text. Give one object to all calls of the stage that cuts, and report to it what the
    calls of the other stage have cost::

        async def claims(text: alto.Group[str], *, size: alto.text.Coarsening) -> AsyncIterator[str]:
            async for piece in alto.text.joined(alto.text.sentences(text), size.ready):
                yield piece


        async def check(piece: str, *, llm: alto.LLM, size: alto.text.Coarsening) -> str:
            verdict = llm.generate(f"True or false? {piece}")
            text = await verdict.text()
            size.learn(verdict.usage, len(piece))
            return text

    The price of a call is the number of characters with which it pays for itself: it then saves its text
    as many seconds, one token's for each that is not to be written after the end, as it costs all other
    generations. It grows with *uncached*, *call_tokens* and the load, and falls with *output* and
    *step_tokens*; the head of ``alto/_text/coalescing.py`` derives it. What is held goes when it is 3 times
    the price, as a margin, and the root of the price times the text so far, so that the cost of all calls
    and the wait for the last one together are least. ``python -m bench.streaming_gain`` measures the gain.

    Args:
        engine: The engine of the calls, whose load counts. The load of a pool is that of its least busy
            engine; if its policy gives the calls engines of their own, give a pool of these.
        uncached: Prompt tokens that a call computes beside its text, such as instructions that are
            not in the prefix cache. Used until the first call is learned.
        output: Tokens that a call writes for each character. Used until the first call is learned.
        step_tokens: Prompt tokens that the engine computes in the time that a step of it takes
            however small it is: ``base_s / per_prefill_token_s`` of an
            :class:`~alto.engines.EngineProfile`. It is 150 to 200 for the profiles of alto. What
            computing and reading memory cost on a device gives the same: operations per second over
            bytes per second, about 156 with half precision on an A100 and 295 on an H100.
        call_tokens: Prompt tokens that the engine computes in the time that a call costs it beside its
            prompt's: ``(per_prefill_step_s + per_prefill_s) / per_prefill_token_s``, 88 on the CPU of
            ``CPU_TINY``.

    Raises:
        TypeError: *engine* is neither an engine nor an :class:`alto.LLM`, or another argument is no
            number.
        ValueError: A number is out of its range: *uncached* and *call_tokens* at least 0, the
            others above 0.
    """

    __slots__ = ("_cost", "_llm")

    def __init__(
        self,
        engine: Engine | LLM,
        /,
        *,
        uncached: float = 500.0,
        output: float = 0.1,
        step_tokens: float = 160.0,
        call_tokens: float = 0.0,
    ) -> None:
        if isinstance(engine, type) or not isinstance(engine, Engine | LLM):
            msg = f"Coarsening() takes an engine or an alto.LLM, not {engine!r}"
            raise TypeError(msg)
        check_finite("uncached", uncached, zero=True)
        check_finite("output", output, zero=False)
        check_finite("step_tokens", step_tokens, zero=False)
        check_finite("call_tokens", call_tokens, zero=True)
        self._llm = engine if isinstance(engine, LLM) else LLM(engine)
        self._cost = CallCost(
            uncached=uncached, output=output, step_tokens=step_tokens, call_tokens=call_tokens
        )

    def __repr__(self) -> str:
        """Return the cost of a call, as it is known now."""
        known = self._cost
        return (
            f"<Coarsening: a call computes {known.uncached:.0f} tokens beside its text "
            f"and writes {known.output:.2g} per character>"
        )

    def ready(self, held: int, given: int, /) -> bool:
        """Return whether to hand over now, with the present load of the engines.

        Args:
            held: Characters that wait to be handed over, at least 1. Another measure will do, such as
                sentences, if it is the same everywhere.
            given: Characters of the same text that were handed over before.
        """
        return self._cost.is_worth_it(held, given, self._llm.load)

    def learn(self, usage: Usage | None, size: float, /) -> None:
        """Learn from a call that has ended.

        Args:
            usage: Its cost; None, as for an aborted call: nothing is learned.
            size: Characters that it was given, as :meth:`ready` measures them.

        Raises:
            ValueError: *size* is not above 0.
        """
        check_finite("size", size, zero=False)
        if usage is not None:
            uncached = usage.prompt_tokens - usage.cached_tokens
            self._cost.learn(size, uncached=uncached, output=usage.output_tokens)


def joined(
    pieces: AsyncIterable[str],
    /,
    ready: Callable[[int, int], bool],
    *,
    separator: str = " ",
) -> AsyncGenerator[str, None]:
    """Join *pieces* of a text, as many at a time as *ready* decides; at their end, the rest.

    Args:
        pieces: For example ``alto.text.sentences(text)``.
        ready: Called with each piece, returns whether what is held goes now. It gets the characters that
            are held, and those of this text that went before. ``Coarsening.ready`` uses the load of the
            engines; ``lambda held, given: held >= 200`` gives at least 200 characters. Not called while
            only empty pieces are held.
        separator: Put between pieces that go together.

    Returns:
        Texts of one or more pieces, in order. Nothing is left out.

    Raises:
        TypeError: At the call: an argument is of another type. While iterating: a piece is no ``str``.

    An error of *pieces* comes through after what is held, and one of *ready* at once. Cancellation of a
    read: nothing is lost, and the next read continues. *pieces* are closed when this is left early.
    """
    _check(pieces, ready, separator)
    return ResumableGenerator(_join(pieces, HeldPieces(ready, separator)), "text")


def _check(pieces: object, ready: object, separator: object) -> None:
    if not isinstance(pieces, AsyncIterable):
        msg = (
            "alto.text.joined() takes an async iterable of pieces, such as "
            f"alto.text.sentences(text), not {type(pieces).__name__}"
        )
        raise TypeError(msg)
    if not callable(ready):
        msg = f"ready must be a function such as Coarsening(engine).ready, not {ready!r}"
        raise TypeError(msg)
    if not isinstance(separator, str):
        msg = f"separator must be a str, not {separator!r}"
        raise TypeError(msg)


@final
class HeldPieces:
    """Pieces of one text that wait to be handed over together.

    Args:
        ready: Returns whether to hand over so many characters, after so many.
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
        """Add a piece. Returns the text to hand over now, if any."""
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held and self._ready(self._held, self._given):
            return self.flush()
        return None

    def flush(self) -> str | None:
        """Return the text that is held, if any, and hold nothing."""
        if not self._pieces:
            return None
        text = self._separator.join(self._pieces)
        self._given += self._held
        self._held = 0
        self._pieces.clear()
        return text


async def _join(pieces: AsyncIterable[Any], held: HeldPieces) -> AsyncGenerator[str, None]:
    source = aiter(pieces)
    error: Exception | None = None
    try:
        while True:
            try:
                piece = await anext(source)
            except StopAsyncIteration:
                break
            except Exception as failure:  # noqa: BLE001  # raised after the held pieces
                error = failure
                break
            if not isinstance(piece, str):
                msg = f"alto.text.joined() takes pieces of str, not {type(piece).__name__}"
                raise TypeError(msg)
            text = held.add(piece)
            if text is not None:
                yield text
        text = held.flush()
        if text is not None:
            yield text
        if error is not None:
            raise error
    finally:
        error = None  # its traceback refers to this frame
        await close(source)
