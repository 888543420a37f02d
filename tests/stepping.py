"""What tests use that look at a pipeline step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import alto
from alto.routing import ReplicaLoad, RoutedItem


@alto.stage
async def each(jobs: tuple[Any, ...]) -> AsyncIterator[Any]:
    """One after the other, at once."""
    for job in jobs:
        yield job


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


class Oldest:
    """A router that names replica 0, busy or not."""

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """Always the same."""
        return 0
