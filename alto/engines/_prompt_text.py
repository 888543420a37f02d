"""The text of a prompt, for the engines and pools that read prompts as text."""

from __future__ import annotations

from alto.errors import InvalidRequest
from alto.model import Message, Prompt, StreamedPrompt

__all__ = ("prompt_text", "whole_prompt")


def prompt_text(prompt: Prompt, /) -> str:
    """Return a prompt of any kind as one text.

    A chat becomes ``role: content`` lines; token ids become numbers with spaces between them.
    """
    if isinstance(prompt, str):
        return prompt
    parts = [f"{p.role}: {p.content}" if isinstance(p, Message) else str(p) for p in prompt]
    return ("\n" if isinstance(prompt[0], Message) else " ").join(parts)


async def whole_prompt(prompt: StreamedPrompt, /) -> str:
    """Read a streamed prompt to its end.

    Raises:
        InvalidRequest: It is empty, or its tail gives something other than texts.

    Cancellation: the tail is left where it is.
    """
    whole = prompt.head + "".join([_checked(piece) async for piece in prompt.tail])
    if not whole:
        raise InvalidRequest("the prompt is empty; give at least one token")
    return whole


def _checked(piece: object) -> str:
    if not isinstance(piece, str):
        raise InvalidRequest(
            f"the tail of a streamed prompt must yield str, not {type(piece).__name__}"
        )
    return piece
