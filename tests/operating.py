"""How the tests of the operators run them: each checks more than what a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import alto
from alto.testing import reference_run

Make = Callable[[alto.Stream[str]], Any]


def built(make: Make) -> Any:
    """A pipeline of text that does what *make* says."""

    @alto.pipeline
    def made(text: alto.Stream[str]) -> alto.Stream[Any]:
        return make(text)

    return made


async def results(make: Make, text: str) -> list[Any]:
    """What it gives, streamed, which is what it gives one step at a time."""
    pipeline = built(make)
    async with pipeline.open() as app:
        fresh = app.statistics()
        found = await app.run(text)
        assert app.statistics() == fresh
    assert found == await reference_run(pipeline, text)
    return found


async def timed(make: Make, text: str) -> list[tuple[float, Any]]:
    """What it gives, in order of arrival, and when."""
    clock = asyncio.get_running_loop().time
    async with built(make).open() as app:
        start = clock()
        return [(clock() - start, one) async for one in app.stream(text)]


async def failure(make: Make, text: str) -> alto.StageError:
    """How it fails, while another request goes on."""
    async with built(make).open() as app:
        fresh = app.statistics()
        other = asyncio.ensure_future(app.run(""))
        with pytest.raises(alto.StageError) as caught:
            await app.run(text)
        await other
        assert app.statistics() == fresh
    assert caught.value.__cause__ is caught.value.cause
    return caught.value
