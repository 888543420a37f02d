"""Tokenisation of texts, chats and pairs with a vLLM engine's tokenizer, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast, final

from alto.errors import AltoError, InvalidRequest
from alto.model import Message, Prompt

__all__ = ("Tokens",)

_T = TypeVar("_T")


@final
class Tokens:
    """One engine's tokenizer and the thread it runs in.

    Args:
        name: Name of the engine, for error messages.
        engine: vLLM's engine.
    """

    def __init__(self, name: str, engine: Any, /) -> None:  # noqa: ANN401  # vLLM is not typed here
        self._name = name
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alto-tokenizer")
        """A single thread, since fast tokenizers are not safe to use from several."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401  # as above
        """The tokenizer, for short work in the event loop.

        Raises:
            InvalidRequest: The engine was started without one.
        """
        tokenizer = self._engine.tokenizer
        if tokenizer is None:
            raise InvalidRequest(f"engine {self._name!r} has no tokenizer; give token ids")
        return tokenizer

    async def of(self, prompt: Prompt, /) -> list[int]:
        """Return the tokens of *prompt*.

        Raises:
            InvalidRequest: The prompt cannot be tokenised.
        """
        if isinstance(prompt, str):
            return await self.in_thread(partial(_encode, self.tokenizer, prompt))
        if isinstance(prompt[0], Message):
            chat = cast(Sequence[Message], prompt)
            return await self.in_thread(partial(_encode_chat, self.tokenizer, chat))
        return list(cast(Sequence[int], prompt))

    async def in_thread(self, work: Callable[[], _T], /) -> _T:
        """Run *work*, which uses the tokenizer, in its thread.

        Raises:
            InvalidRequest: The tokenizer raised.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except AltoError:
            raise
        except Exception as error:
            raise InvalidRequest(f"the prompt cannot be tokenised: {error}") from error

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)


def _encode(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401  # vLLM is not typed here
    return list(tokenizer.encode(text))


def _encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:  # noqa: ANN401
    if not getattr(tokenizer, "chat_template", None):
        msg = "this model's tokenizer has no chat template; give text or token ids"
        raise InvalidRequest(msg)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))
