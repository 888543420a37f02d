"""The tasks of workers: ended when all have ended, and told of the first that failed."""

from __future__ import annotations

import asyncio
import contextvars

import anyio
import pytest

from alto._run.crew import Crew

VARIABLE = contextvars.ContextVar[str]("VARIABLE", default="the caller's")


def crew_of(failed: list[str]) -> Crew:
    """A crew that notes in *failed* when it was told of a failure."""
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "the opener's")
    return Crew(asyncio.get_running_loop(), context, lambda: failed.append("failed"))


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_stands_until_it_is_closed_and_all_have_ended() -> None:
    """Neither an empty crew nor a closed one ends by that alone."""
    crew, go = crew_of([]), asyncio.Event()
    standing = asyncio.create_task(crew.stand())
    await settle()
    assert not standing.done()

    async def work() -> None:
        await go.wait()

    crew.spawn(work(), "one")
    crew.close()
    await settle()
    assert not standing.done()
    go.set()
    await standing


async def test_a_closed_crew_without_workers_ends_at_once() -> None:
    """Also where it was closed before anybody stood for it."""
    crew = crew_of([])
    crew.close()
    await crew.stand()


async def test_workers_see_the_context_of_the_opener_in_copies_of_their_own() -> None:
    """What one sets no other sees."""
    crew, seen = crew_of([]), []

    async def work(name: str) -> None:
        seen.append((VARIABLE.get(), asyncio.current_task().get_name()))  # type: ignore[union-attr]
        VARIABLE.set(name)

    crew.spawn(work("a"), "first")
    crew.spawn(work("b"), "second")
    crew.close()
    await crew.stand()
    assert seen == [("the opener's", "first"), ("the opener's", "second")]


async def test_the_first_failure_is_told_at_once_and_raised_when_the_others_have_ended() -> None:
    """Others go on to their end, whatever they end with."""
    failed: list[str] = []
    crew, go = crew_of(failed), asyncio.Event()

    async def fail(said: str) -> None:
        raise ZeroDivisionError(said)

    async def fail_later() -> None:
        await go.wait()
        raise KeyError

    crew.spawn(fail_later(), "later")
    crew.spawn(fail("first"), "fails")
    standing = asyncio.create_task(crew.stand())
    await settle()
    assert failed == ["failed"]
    crew.close()
    await settle()
    assert not standing.done()
    go.set()
    with pytest.raises(ZeroDivisionError, match="first"):
        await standing
    assert failed == ["failed", "failed"]


async def test_a_cancelled_scope_does_not_cut_it() -> None:
    """The app's group is cancelled when a worker fails; workers are waited for, also later ones."""
    crew, go = crew_of([]), asyncio.Event()
    ended = []

    async def work() -> None:
        await go.wait()
        ended.append(True)

    def begin() -> None:
        crew.spawn(work(), "one")
        crew.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crew.stand)
        await settle()
        tasks.cancel_scope.cancel()
        asyncio.get_running_loop().call_later(1, begin)
        asyncio.get_running_loop().call_later(2, go.set)
    assert ended == [True]


async def test_a_loop_that_goes_down_ends_it_with_the_workers() -> None:
    """Cancelled as any task, it waits for those that there are, closed or not."""
    crew, go = crew_of([]), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await go.wait()

    crew.spawn(work(), "one")
    standing = asyncio.create_task(crew.stand())
    await settle()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settle()
    assert not standing.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await standing
