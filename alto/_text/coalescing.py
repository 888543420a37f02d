"""Pieces of a text handed over together, as many as are worth a call of whoever gets them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any, Final, final

from alto._resumable import close
from alto._text.coarsening import Coarsening as Decision
from alto._text.coarsening import Pile
from alto._text.pieces import Pieces
from alto._validate import check_finite
from alto.llm import LLM
from alto.model import Usage
from alto.protocols import Engine

__all__ = ("Coarsening", "joined")

STEP_TOKENS: Final = 160.0


@final
class Coarsening:
    """Says when what a text has so far is worth a call of the stage that gets it.

    A call more computes the head of its prompt again, unless an engine has it cached, and holds up what
    that engine decodes; but the sooner it begins, the less is left to do when the text has ended. With
    few generations on the engines every piece goes by itself; the more there are, the larger what goes,
    up to the whole text. Give one to all calls of the stage that cuts, and tell it what the calls of the
    other stage have cost::

        async def claims(text: alto.Group[str], *, size: alto.text.Coarsening) -> AsyncIterator[str]:
            async for piece in alto.text.joined(alto.text.sentences(text), size.ready):
                yield piece


        async def check(piece: str, *, llm: alto.LLM, size: alto.text.Coarsening) -> str:
            verdict = llm.generate(f"True or false? {piece}")
            text = await verdict.text()
            size.learn(verdict.usage, len(piece))
            return text

    Source: ``alto/_text/coarsening.py`` derives that a call pays for itself with so many characters::

        price = (uncached + call_tokens) * generations / (output * step_tokens)

    For these it saves its text as many seconds, one token's for each that is not to be written after
    the end, as it costs all others. What is held goes when it is 3 times the price, a margin, and the
    root of the price times the text so far, so that the cost of all calls and the wait for the last one
    together are least. ``python -m bench.streaming_gain`` measures what it gives.

    Args:
        engine: Where the calls go, and whose load counts. Of a pool that is the load of its least busy
            engine; if its policy gives the calls engines of their own, give a pool of these.
        uncached: Prompt tokens that a call computes beside its text, such as instructions that are
            not in the prefix cache. Learned; until then this.
        output: Tokens that a call writes for each character. Learned; until then this.
        step_tokens: Prompt tokens that the engine computes in the time that a step of it takes
            however small it is: ``base_s / per_prefill_token_s`` of an
            :class:`~alto.engines.EngineProfile`. It is 150 to 200 of those that alto has, and what
            computing and reading memory cost on a device gives the same: operations per second over
            bytes per second, about 156 with half precision on an A100 and 295 on an H100.
        call_tokens: Prompt tokens that it computes in the time that a call costs it beside its prompt's:
            ``(per_prefill_step_s + per_prefill_s) / per_prefill_token_s``, 88 on the CPU of ``CPU_TINY``.

    Raises:
        TypeError: *engine* is neither an engine nor an :class:`alto.LLM`, or a number is none.
        ValueError: A number is out of its range: *uncached* and *call_tokens* at least 0, the
            others above 0.
    """

    __slots__ = ("_decision", "_llm")

    def __init__(
        self,
        engine: Engine | LLM,
        /,
        *,
        uncached: float = 500.0,
        output: float = 0.1,
        step_tokens: float = STEP_TOKENS,
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
        self._decision = Decision(
            uncached=uncached, output=output, step_tokens=step_tokens, call_tokens=call_tokens
        )

    def __repr__(self) -> str:
        """What a call costs, as far as is known."""
        known = self._decision
        return (
            f"<Coarsening: a call computes {known.uncached:.0f} tokens beside its text "
            f"and writes {known.output:.2g} per character>"
        )

    def ready(self, held: int, given: int, /) -> bool:
        """Whether to hand over now, with the engines as busy as they are.

        Args:
            held: Characters that wait to be handed over, at least 1. Another measure will do, such as
                sentences, if it is the same everywhere.
            given: Characters of the same text that were handed over before.
        """
        return self._decision.ready(held, given, self._llm.load)

    def learn(self, usage: Usage | None, size: float, /) -> None:
        """A call has ended.

        Args:
            usage: What it has cost; None, as of one that was aborted: nothing is learned.
            size: Characters that it was given, as :meth:`ready` measures them.

        Raises:
            ValueError: *size* is not above 0.
        """
        check_finite("size", size, zero=False)
        if usage is not None:
            uncached = usage.prompt_tokens - usage.cached_tokens
            self._decision.learn(size, uncached=uncached, output=usage.output_tokens)


def joined(
    pieces: AsyncIterable[str],
    /,
    ready: Callable[[int, int], bool],
    *,
    separator: str = " ",
) -> AsyncGenerator[str, None]:
    """*pieces* of a text, as many together as *ready* says; when they end, the rest.

    Args:
        pieces: For example ``alto.text.sentences(text)``.
        ready: Asked with each piece: should what is held go now? It gets the characters that are
            held, and those of this text that went before. ``Coarsening.ready`` knows how busy the engines
            are; ``lambda held, given: held >= 200`` gives 200 characters at least. Never asked where only
            empty pieces are held.
        separator: Put between pieces that go together.

    Returns:
        Texts of one or more pieces, in order. Nothing is left out.

    Raises:
        TypeError: At the call: an argument is of another type. While iterating: a piece is no ``str``.

    An error of *pieces* comes through after what is held, and one of *ready* at once. Cancellation of a
    read: nothing is lost, and the next read goes on. *pieces* are closed when this is left early.
    """
    _check(pieces, ready, separator)
    return Pieces(_join(pieces, Pile(ready, separator)))


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


async def _join(pieces: AsyncIterable[Any], pile: Pile) -> AsyncGenerator[str, None]:
    source = aiter(pieces)
    error: Exception | None = None
    try:
        while True:
            try:
                piece = await anext(source)
            except StopAsyncIteration:
                break
            except Exception as failure:  # noqa: BLE001  # raised when what is held has gone
                error = failure
                break
            if not isinstance(piece, str):
                msg = f"alto.text.joined() takes pieces of str, not {type(piece).__name__}"
                raise TypeError(msg)
            text = pile.add(piece)
            if text is not None:
                yield text
        text = pile.flush()
        if text is not None:
            yield text
        if error is not None:
            raise error
    finally:
        error = None  # it has this frame in its traceback
        await close(source)
