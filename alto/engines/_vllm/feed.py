"""State machine that decides which tokens of an unfinished prompt to send to an engine, and when.

Theory of operation. Text arrives in pieces (:meth:`Feed.add`). When there is enough new text, the
machine returns the part that is final, for the caller to tokenise, and then selects the tokens to send
(:meth:`Feed.tokenised`). At the end the caller tokenises the whole text and gets the remaining tokens
(:meth:`Feed.finish`).

Tokens at the end of a text may still change: ``pre`` may become ``prefill``, and many tokenizers join
a full stop with the newline after it. So the last word is not tokenised before the next one has
begun, and the last few tokens are not sent. This is a heuristic, and if it is wrong it costs only
time: the sent tokens are compared with every later tokenisation. If a tokenisation does not begin
with them, the feed is broken permanently, and the caller must send the whole prompt.

States: open, broken, ended. Every event is legal in the states open and broken, none after the end.
A broken feed requests nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from alto.errors import PromptTooLong

__all__ = ("CHUNK_TOKENS", "Feed")

CHUNK_TOKENS = 128
"""Minimum number of tokens in a chunk. Each chunk costs the engine a step and an unused token: with a
tiny Llama on a CPU, 900 tokens took 0.39 s in chunks of 8 and 0.018 s at once, so 3 ms per chunk. With
128 tokens this is hidden behind the writing of the next chunk, at up to tens of thousands of tokens per
second, and the remainder at the end of the prompt is still short. It is also a multiple of the usual
sizes of a cache block."""

_HELD_TOKENS = 4
"""Tokens at the end of the final text that are held back, since later text may change them."""
_HELD_CHARACTERS = 64
"""Longest last word that is held back; longer ones are a script without spaces, or not words."""


@final
class Feed:
    """One prompt whose end is still being written.

    Args:
        limit: Context length of the model, in tokens.
        chunk_tokens: Minimum number of tokens to send at once.

    Invariant: every tokenisation seen so far begins with *sent*, unless *broken*.
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
        self._certain = 0  # characters of the text that was last returned for tokenisation
        self._tokenised = 0  # tokens in that text
        self._per_token = (
            1.0  # characters per token; 1 is the minimum, so the first tokenisation comes early
        )
        self._ended = False
        self.sent: list[int] = []
        self.broken = False

    @property
    def text(self) -> str:
        """All text so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def add(self, piece: str, /) -> str | None:
        """Add text.

        Returns:
            Text to tokenise now; pass its tokens to :meth:`tokenised`. None: too little is new.
        """
        assert not self._ended
        self._parts.append(piece)
        self._whole += len(piece)
        if self.broken:
            return None
        new = (self._whole - self._certain) / self._per_token  # estimated tokens
        unsent = self._tokenised - len(self.sent) + new
        if unsent < self._chunk_tokens + _HELD_TOKENS or new < self._chunk_tokens / 4:
            return None
        certain = _certain(self.text)
        if certain <= self._certain:
            return None
        self._certain = certain
        return self.text[:certain]

    def tokenised(self, token_ids: Sequence[int], /, *, room: int | None = None) -> list[int]:
        """Take the tokens of the text that :meth:`add` returned.

        Args:
            token_ids: All tokens of that text.
            room: Maximum number of tokens that may be sent now; None: any number.

        Returns:
            Tokens to send now, which count as sent; empty if there are none.

        Raises:
            PromptTooLong: The text so far leaves no room for an answer.
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
        """Take the tokens of the whole text. Nothing may follow.

        Returns:
            The tokens not sent yet, never empty; None: they do not continue the sent ones, so send
            the whole prompt again.

        Raises:
            PromptTooLong: The prompt leaves no room for an answer.
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
    """Return the number of leading characters of *text* that belong to words that have ended."""
    end = len(text)
    earliest = max(0, end - _HELD_CHARACTERS)
    while end > earliest and not text[end - 1].isspace():
        end -= 1
    if end == earliest:
        return end
    while end > earliest and text[end - 1].isspace():
        end -= 1
    return end
