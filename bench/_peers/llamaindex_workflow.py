"""LlamaIndex Workflows: a step that returns a list fans out, a step that takes a list fans in.

This is the form the documentation teaches first, and the cheapest of those tried: ``send_event``
with ``collect_events`` costs more, and so do more workers than the default four. A step cannot
yield, so the producer is a list. Events arrive in completion order, so they carry their index
and are sorted. The time-out, 45 s for a run by default, is off.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Request(StartEvent):
    """How many items to make."""

    n: int


class Piece(Event):
    """One item."""

    item: int


class Done(Event):
    """The result of one item."""

    item: int
    result: int


class Fan(Workflow):
    """Fan out, work, fan in."""

    @step
    async def expand(self, ev: Request) -> list[Piece]:
        """Make the items."""
        return [Piece(item=i) for i in range(ev.n)]

    @step
    async def work(self, ev: Piece) -> Done:
        """One async call that does not wait."""
        return Done(item=ev.item, result=ev.item + 1)

    @step
    async def gather(self, done: list[Done]) -> StopEvent:
        """Put the results in order."""
        return StopEvent(result=[d.result for d in sorted(done, key=lambda d: d.item)])


@asynccontextmanager
async def opened() -> AsyncIterator[Callable[[int], Awaitable[list[int]]]]:
    """Build and validate the workflow."""
    workflow = Fan(timeout=None)

    async def fan(n: int) -> list[int]:
        return await workflow.run(n=n)

    yield fan
