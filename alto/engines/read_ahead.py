"""`ReadAhead`: the chunks between an engine that runs ahead and the reader of a generation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Self, final

from alto.model import Chunk, TokenLogprob

__all__ = ("ReadAhead",)


@final
class ReadAhead:
    """Chunks of one generation that its engine has made and its reader has not got yet.

    The engine puts chunks in and never waits, so its slot is free when *it* is done, read or not.
    The reader iterates; a reader that lags gets what it missed of a sample in one chunk. The
    iteration ends after the last chunk of every sample.

    A read that is cancelled loses nothing and can be made again, in any task. To abort the work when
    the reader leaves is the task of the generator around it::

        ahead = ReadAhead()
        task = asyncio.create_task(self._work(request, ahead))
        try:
            async for chunk in ahead:
                yield chunk
        finally:
            task.cancel()

    Args:
        samples: Number of samples that the request asks for (``n``).
    """

    __slots__ = ("_error", "_news", "_open", "_unread")

    def __init__(self, samples: int = 1) -> None:
        self._unread: deque[Chunk] = deque()
        self._open = samples
        self._error: BaseException | None = None
        self._news: asyncio.Event | None = None

    def put(self, chunk: Chunk, /) -> None:
        """Add a chunk, for the reader. The last one of a sample has a ``finish_reason``."""
        self._unread.append(chunk)
        if chunk.finish_reason is not None:
            self._open -= 1
        if self._news is not None:
            self._news.set()

    def fail(self, error: BaseException, /) -> None:
        """End the generation: the reader gets *error* after the chunks that are there."""
        self._error = error
        if self._news is not None:
            self._news.set()

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Chunk:
        """Return the next chunk, or several of one sample joined.

        Raises:
            BaseException: The generation was ended with this error by :meth:`fail`.

        Cancellation: nothing is lost; the next read goes on.
        """
        while not self._unread:
            if not self._open:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._news = asyncio.Event()
            try:
                await self._news.wait()
            finally:
                self._news = None
        chunk = self._unread.popleft()
        if not self._unread or self._unread[0].index != chunk.index:
            return chunk
        missed = [chunk]
        while self._unread and self._unread[0].index == chunk.index:
            missed.append(self._unread.popleft())
        return _joined(missed)


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    """Return chunks of one sample as one."""
    last = chunks[-1]
    logprobs: tuple[TokenLogprob, ...] | None = None
    if any(chunk.logprobs is not None for chunk in chunks):
        logprobs = tuple(chain.from_iterable(chunk.logprobs or () for chunk in chunks))
    return Chunk(
        text="".join([chunk.text for chunk in chunks]),
        token_ids=tuple(chain.from_iterable(chunk.token_ids for chunk in chunks)),
        finish_reason=last.finish_reason,
        usage=last.usage,
        index=last.index,
        logprobs=logprobs,
    )
