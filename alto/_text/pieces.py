"""What all functions of `alto.text` give: pieces, read in a way that loses nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar, final

from alto._resumable import Resumable

__all__ = ("Pieces",)

T = TypeVar("T")


@final
class Pieces(Resumable[T], AsyncGenerator[T, None]):
    """Pieces of a text; those of a stage call are closed in the call's own task."""

    __slots__ = ()

    def __init__(self, pieces: AsyncGenerator[T, None]) -> None:
        super().__init__(pieces, "text")

    def asend(self, value: None, /) -> Any:  # noqa: ANN401, ARG002  # as `__anext__`
        """As of any async generator."""
        return anext(self)

    def athrow(self, *error: Any) -> Any:  # noqa: ANN401
        """As of any async generator."""
        return self.steps.source.athrow(*error)

    async def aclose(self) -> None:
        """Close the generator and the iterator of the chunks; cancel the read that was cut."""
        await super().aclose()
