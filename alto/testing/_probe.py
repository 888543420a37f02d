"""How the contract checks look at an engine: with a time limit, and in words.

A probe asks; the promises that it looks into are in `alto.testing.checks` and, as far as an engine
may also refuse them, in `alto.testing._abilities`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs

from alto.errors import Closed
from alto.model import Chunk, EngineStatistics, GenerateRequest
from alto.protocols import Engine

__all__ = ("Probe", "require", "text_of")

_T = TypeVar("_T")


def require(condition: object, message: str) -> None:
    """Raise `AssertionError` with *message* unless *condition* holds."""
    if not condition:
        raise AssertionError(message)


def text_of(chunks: Sequence[Chunk], index: int = 0) -> str:
    """What one sample says."""
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


@attrs.frozen(kw_only=True)
class Probe:
    """One engine under test."""

    engine: Engine
    """The engine."""
    request: GenerateRequest
    """One that it can serve any number of times."""
    expect: str | None
    """What it says to *request*; None: anything."""
    timeout: float
    """Seconds that anything may take."""

    async def within(self, what: str, work: Awaitable[_T]) -> _T:
        """The result of *work*, which may not hang."""
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except TimeoutError as error:
            raise AssertionError(f"{what} did not end within {self.timeout:g} s") from error

    async def read(self, request: GenerateRequest) -> list[Chunk]:
        """All chunks of one generation."""

        async def collect() -> list[Chunk]:
            return [chunk async for chunk in self.engine.generate(request)]

        return await self.within("a generation", collect())

    async def outcome(self, request: GenerateRequest) -> list[Chunk] | Exception:
        """What :meth:`read` gives or raises; a task group would wrap an error in a group."""
        try:
            return await self.read(request)
        except Exception as error:  # noqa: BLE001  # raised again by who asks
            return error

    async def refused(self, kind: type[Exception], request: GenerateRequest, when: str) -> None:
        """The first iteration raises *kind*."""
        try:
            chunks = await self.read(request)
        except kind:
            return
        except Exception as error:
            raise AssertionError(
                f"generate() {when} must raise {kind.__name__}, not {error!r}"
            ) from error
        raise AssertionError(
            f"generate() {when} must raise {kind.__name__}, but it said {text_of(chunks)!r}"
        )

    def unhealthy(self, when: str) -> None:
        """The health check raises ``Closed``."""
        try:
            self.engine.check_health()
        except Closed:
            return
        raise AssertionError(f"check_health() {when} must raise Closed, and it returned")

    def idle(self, when: str) -> None:
        """Nothing runs and nothing waits."""
        now = self.engine.statistics()
        require(now == EngineStatistics(), f"{when}, statistics() must be all zeros, not {now}")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """A generation whose first chunk has been read."""
        chunks = self.engine.generate(self.request)
        try:
            await self.within("the first chunk", anext(chunks))
            yield chunks
        finally:
            await self.within("aclose()", chunks.aclose())
