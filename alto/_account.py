"""The account of one generation: what a stage call hears of it."""

from __future__ import annotations

import asyncio
from typing import final

from alto._aio import current_call
from alto.model import Usage

__all__ = ("Account",)


@final
class Account:
    """Tells the stage call that runs when one generation begins and when it ends."""

    __slots__ = ("_call", "_engine", "_number", "usage")

    def __init__(self, engine: str, /) -> None:
        self._engine = engine
        self._call = current_call.get()
        self._number: int | None = None
        self.usage: Usage | None = None
        """What it has cost, once the engine has said so. It is complete then, read on or not."""

    def begin(self) -> None:
        """The engine is asked now."""
        if self._call is not None:
            self._number = self._call.generation_started(self._engine)

    def end(self, error: BaseException | None, /) -> None:
        """The engine is done with it; see ``CurrentCall.generation_ended``. Not begun: no effect."""
        call, self._call = self._call, None
        if call is None or self._number is None:
            return
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            error = None if self.usage is not None else asyncio.CancelledError()
        call.generation_ended(self._number, self._engine, self.usage, error)
