"""Streams of text, cut into pieces while they grow."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from alto._core.split import LineSplitter, SentenceSplitter

__all__ = ("lines", "sentences")


async def sentences(text: AsyncIterable[str], /) -> AsyncIterator[str]:
    """Sentences of *text*, each as soon as it is certain to have ended.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.

    Yields:
        Sentences without the white space around them. A sentence ends with ``. ! ? …`` before white
        space, except after a common English abbreviation or an initial; or at an empty line; the
        rest of the text is the last one. How the text is cut into chunks changes nothing.

    Cancellation: *text* is left where it is.
    """
    splitter = SentenceSplitter()
    async for chunk in text:
        for piece in splitter.feed(chunk):
            yield piece
    for piece in splitter.flush():
        yield piece


async def lines(text: AsyncIterable[str], /) -> AsyncIterator[str]:
    """Lines of *text*, each as soon as its line break is there.

    Args:
        text: Chunks of any size, for example a ``Group[str]``.

    Yields:
        Lines without the white space around them; empty ones are left out.

    Cancellation: *text* is left where it is.
    """
    splitter = LineSplitter()
    async for chunk in text:
        for line in splitter.feed(chunk):
            yield line
    for line in splitter.flush():
        yield line
