"""What all functions of `alto.text` have in common: how their pieces and their chunks are closed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar, final

from alto._aio import Cleanup, current_call, uncut

__all__ = ("Pieces", "close")

T = TypeVar("T")


async def close(chunks: AsyncIterator[Any], /) -> None:
    """Close what can be closed, whatever cancels the task meanwhile."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is not None:
        await uncut(aclose)


@final
class Pieces(AsyncGenerator[T, None]):
    """Pieces, and whose they are: those of a stage call are closed in the call's own task.

    When this object dies, so has the loop that iterated it; see ``Cleanup``. Outside of a stage call
    asyncio's own hook closes the generator.
    """

    __slots__ = ("__weakref__", "_cleanup", "_pieces")

    def __init__(self, pieces: AsyncGenerator[T, None]) -> None:
        self._pieces = pieces
        call = current_call.get()
        self._cleanup: Cleanup | None = None if call is None else call.cleanup
        if self._cleanup is not None:
            self._cleanup.add(pieces)

    def __anext__(self) -> Any:  # noqa: ANN401  # the generator's own awaitable
        return self._pieces.__anext__()

    def asend(self, value: None, /) -> Any:  # noqa: ANN401
        """As of any async generator."""
        return self._pieces.asend(value)

    def athrow(self, *error: Any) -> Any:  # noqa: ANN401
        """As of any async generator."""
        return self._pieces.athrow(*error)

    def aclose(self) -> Any:  # noqa: ANN401
        """Close the generator, and the iterator of the chunks."""
        return self._pieces.aclose()

    def __del__(self) -> None:
        cleanup, pieces = self._cleanup, self._pieces
        if cleanup is None:
            return
        if getattr(pieces, "ag_frame", pieces) is None:
            cleanup.discard(pieces)
        elif not getattr(pieces, "ag_running", False):
            cleanup.abandon(pieces)
