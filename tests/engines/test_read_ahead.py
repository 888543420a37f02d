"""The buffer between an engine that runs ahead and the reader of a generation."""

from __future__ import annotations

import asyncio

import pytest

from alto.engines import ReadAhead
from alto.errors import GenerationFailed
from alto.model import Chunk, TokenLogprob


async def test_each_chunk_is_read_as_it_comes():
    """A reader that keeps up gets the very chunks, and the iteration ends after the last."""
    ahead, chunks = (
        ReadAhead(),
        [Chunk(text="a"), Chunk(text="b"), Chunk(text="", finish_reason="stop")],
    )

    async def work():
        for chunk in chunks:
            await asyncio.sleep(1)
            ahead.put(chunk)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        got = [chunk async for chunk in ahead]
    assert all(a is b for a, b in zip(got, chunks, strict=True))
    with pytest.raises(StopAsyncIteration):
        await anext(ahead)


async def test_a_reader_that_lags_gets_what_it_missed_in_one_chunk():
    """Text, tokens and log-probabilities are joined, and end as the last chunk does."""
    ahead = ReadAhead()
    ahead.put(Chunk(text="a", token_ids=(1,), logprobs=(TokenLogprob(1, 0.0, ()),)))
    ahead.put(Chunk(text="b", token_ids=(2,), logprobs=(TokenLogprob(2, 0.0, ()),)))
    ahead.put(Chunk(text="", token_ids=(3,), finish_reason="length"))
    (chunk,) = [chunk async for chunk in ahead]
    assert (chunk.text, chunk.token_ids, chunk.finish_reason) == ("ab", (1, 2, 3), "length")
    assert [logprob.token_id for logprob in chunk.logprobs] == [1, 2]


async def test_samples_are_not_joined_with_each_other():
    """Chunks keep the order in which they came, and their sample."""
    ahead = ReadAhead(2)
    for chunk in (
        Chunk(text="a"),
        Chunk(text="x", index=1, finish_reason="stop"),
        Chunk(text="b"),
        Chunk(text="c", finish_reason="stop"),
    ):
        ahead.put(chunk)
    assert [(chunk.index, chunk.text) async for chunk in ahead] == [(0, "a"), (1, "x"), (0, "bc")]


async def test_an_error_comes_after_what_was_there_before():
    """A failure takes nothing from the reader, and is raised at every later read."""
    ahead = ReadAhead()
    ahead.put(Chunk(text="a"))
    ahead.fail(GenerationFailed("engine", "it broke"))
    assert (await anext(ahead)).text == "a"
    for _ in range(2):
        with pytest.raises(GenerationFailed):
            await anext(ahead)


async def test_an_error_wakes_the_reader():
    """A reader that waits gets it at once."""
    ahead = ReadAhead()
    asyncio.get_running_loop().call_later(1, ahead.fail, GenerationFailed("engine", "it broke"))
    with pytest.raises(GenerationFailed):
        await anext(ahead)


async def test_a_cancelled_read_loses_nothing():
    """The next read goes on, in another task."""
    ahead = ReadAhead()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(ahead)
    ahead.put(Chunk(text="a", finish_reason="stop"))
    assert [chunk.text async for chunk in ahead] == ["a"]
