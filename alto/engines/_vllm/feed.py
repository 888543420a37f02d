"""When to hand an engine the tokens of a prompt that is still being written.

Theory of operation. Text comes in pieces (:meth:`Feed.add`). Whenever enough is new, the machine gives
the text that is certain, for the caller to tokenise; of its tokens (:meth:`Feed.tokenised`) it says
which to send. At the end the caller tokenises the whole text, and gets the rest (:meth:`Feed.finish`).

Tokens at the end of a text are not certain: ``pre`` may become ``prefill``, and many tokenizers join
a full stop with the newline after it. So the last word is not tokenised before the next one has
begun, and the last few tokens are not sent. That is a guess about tokenizers, and a wrong one costs
time and nothing else: what was sent is compared with every later tokenisation. If a tokenisation
does not begin with it, the feed is broken for good, and the prompt is to be sent whole.

States: open, broken, ended. Every event but a second end is legal in every state; a broken feed
asks for nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from alto.errors import PromptTooLong

__all__ = ("CHUNK_TOKENS", "Feed")

CHUNK_TOKENS = 128
"""Tokens that a chunk has at least. Each costs the engine a step of its own and a token that nobody
wants: with a tiny Llama on a CPU, 900 tokens took 0.39 s in chunks of 8, and 0.018 s at once, so 3 ms a
chunk. At 128 tokens that is hidden behind the writing of the next, at up to tens of thousands of tokens
a second, and what is left for the end of the prompt is still short. Also a multiple of the usual sizes
of a cache block."""

_HELD_TOKENS = 4
"""Tokens at the end of what is certain that are not sent yet; see the head of the file."""
_HELD_CHARACTERS = 64
"""A last word longer than this is taken for a script without spaces, or for no word."""


@final
class Feed:
    """One prompt whose end is still being written.

    Args:
        limit: The model's context, in tokens.
        chunk_tokens: The fewest tokens worth sending.

    Invariant: *sent* is the beginning of every tokenisation seen so far, unless *broken*.
    """

    __slots__ = (
        "_certain",
        "_chunk_tokens",
        "_ended",
        "_limit",
        "_parts",
        "_per_token",
        "_tokenised",
        "_whole",
        "broken",
        "sent",
    )

    def __init__(self, *, limit: int, chunk_tokens: int = CHUNK_TOKENS) -> None:
        self._limit = limit
        self._chunk_tokens = chunk_tokens
        self._parts: list[str] = []
        self._whole = 0  # characters in all parts
        self._certain = 0  # characters of the text that was last given to be tokenised
        self._tokenised = 0  # tokens it has
        self._per_token = (
            1.0  # characters; 1 is the least that makes sense, so the first try is early
        )
        self._ended = False
        self.sent: list[int] = []
        self.broken = False

    @property
    def text(self) -> str:
        """All that is there."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def add(self, piece: str, /) -> str | None:
        """Take more text.

        Returns:
            What to tokenise now, to be told to :meth:`tokenised`; None: it is not worth it yet.
        """
        assert not self._ended
        self._parts.append(piece)
        self._whole += len(piece)
        if self.broken:
            return None
        new = (self._whole - self._certain) / self._per_token  # tokens, by what was seen so far
        unsent = self._tokenised - len(self.sent) + new
        if unsent < self._chunk_tokens + _HELD_TOKENS or new < self._chunk_tokens / 4:
            return None
        certain = _certain(self.text)
        if certain <= self._certain:
            return None
        self._certain = certain
        return self.text[:certain]

    def tokenised(self, token_ids: Sequence[int], /, *, room: int | None = None) -> list[int]:
        """Take the tokens of the text that :meth:`add` gave.

        Args:
            token_ids: All of them.
            room: The most tokens that may be sent now; None: any number.

        Returns:
            What to send now, which counts as sent; empty: nothing.

        Raises:
            PromptTooLong: What is there already leaves no place for an answer.
        """
        assert not self._ended
        if not self._goes_on(token_ids):
            return []
        certain = len(token_ids) - _HELD_TOKENS
        if certain >= self._limit:
            raise PromptTooLong(None, self._limit, detail=f"{certain} tokens, and more to come")
        self._tokenised = len(token_ids)
        self._per_token = max(1.0, self._certain / len(token_ids)) if token_ids else 1.0
        new = list(token_ids[len(self.sent) : certain]) if certain > len(self.sent) else []
        if len(new) < self._chunk_tokens or (room is not None and len(new) > room):
            return []
        self.sent += new
        return new

    def finish(self, token_ids: Sequence[int], /) -> list[int] | None:
        """Take the tokens of the whole text; nothing is to follow.

        Returns:
            The rest, never empty; None: they do not go on from what was sent, so begin anew.

        Raises:
            PromptTooLong: The whole leaves no place for an answer.
        """
        assert not self._ended
        self._ended = True
        if len(token_ids) >= self._limit:
            raise PromptTooLong(len(token_ids), self._limit)
        if not self._goes_on(token_ids) or len(token_ids) == len(self.sent):
            self.broken = True
            return None
        return list(token_ids[len(self.sent) :])

    def _goes_on(self, token_ids: Sequence[int]) -> bool:
        if not self.broken and list(token_ids[: len(self.sent)]) != self.sent:
            self.broken = True
        return not self.broken


def _certain(text: str) -> int:
    """How many characters at the beginning of *text* belong to words that have ended."""
    end = len(text)
    earliest = max(0, end - _HELD_CHARACTERS)
    while end > earliest and not text[end - 1].isspace():
        end -= 1
    if end == earliest:
        return end
    while end > earliest and text[end - 1].isspace():
        end -= 1
    return end
