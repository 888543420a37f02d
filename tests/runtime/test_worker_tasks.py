"""The tasks of workers: ended when all have ended, and told of the first that failed."""

from __future__ import annotations

import asyncio
import contextvars

import anyio
import pytest

from alto._runtime.worker import WorkerTasks

VARIABLE = contextvars.ContextVar[str]("VARIABLE", default="the caller's")


def crew_of(failed: list[str]) -> WorkerTasks:
    """A crew that notes in *failed* when it was told of a failure."""
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "the opener's")
    return WorkerTasks(asyncio.get_running_loop(), context, lambda: failed.append("failed"))


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_stands_until_it_is_closed_and_all_have_ended() -> None:
    """Neither an empty crew nor a closed one ends by that alone."""
    crew, go = crew_of([]), asyncio.Event()
    standing = asyncio.create_task(crew.wait_closed())
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
    await crew.wait_closed()


async def test_workers_see_the_context_of_the_opener_in_copies_of_their_own() -> None:
    """What one sets no other sees."""
    crew, seen = crew_of([]), []

    async def work(name: str) -> None:
        seen.append((VARIABLE.get(), asyncio.current_task().get_name()))  # type: ignore[union-attr]
        VARIABLE.set(name)

    crew.spawn(work("a"), "first")
    crew.spawn(work("b"), "second")
    crew.close()
    await crew.wait_closed()
    assert seen == [("the opener's", "first"), ("the opener's", "second")]


async def test_a_failure_is_told_at_once_and_all_are_raised_by_check() -> None:
    """Others go on to their end; `stand` itself raises nothing, or it would stop the loop again."""
    failed: list[str] = []
    crew, go = crew_of(failed), asyncio.Event()
    crew.check()

    async def fail(said: str) -> None:
        raise ZeroDivisionError(said)

    async def fail_later() -> None:
        await go.wait()
        raise KeyError

    crew.spawn(fail_later(), "later")
    crew.spawn(fail("first"), "fails")
    standing = asyncio.create_task(crew.wait_closed())
    await settle()
    assert failed == ["failed"]
    crew.close()
    await settle()
    assert not standing.done()
    go.set()
    await standing
    assert failed == ["failed", "failed"]
    with pytest.raises(BaseExceptionGroup) as caught:
        crew.check()
    assert [type(one) for one in caught.value.exceptions] == [ZeroDivisionError, KeyError]


async def test_a_failure_that_cannot_be_told_is_still_waited_for() -> None:
    """A second fault, in whoever is told of the first, leaves nobody waiting."""
    loop = asyncio.get_running_loop()
    said: list[object] = []
    loop.set_exception_handler(lambda _, context: said.append(context["exception"]))

    def broken() -> None:
        raise LookupError

    async def fail() -> None:
        raise ZeroDivisionError

    crew = WorkerTasks(loop, contextvars.copy_context(), broken)
    crew.spawn(fail(), "fails")
    crew.close()
    await crew.wait_closed()
    loop.set_exception_handler(None)
    assert [type(one) for one in said] == [LookupError]
    with pytest.raises(BaseExceptionGroup):
        crew.check()


async def test_a_task_factory_of_the_program_is_not_asked() -> None:
    """An eager one would run a stage inside whatever hands over an item."""
    loop, ran = asyncio.get_running_loop(), []

    async def work() -> None:
        ran.append(True)

    loop.set_task_factory(lambda *_: pytest.fail("it was asked"))  # type: ignore[arg-type]
    try:
        crew = crew_of([])
        crew.spawn(work(), "one")
        assert ran == []
    finally:
        loop.set_task_factory(None)
    crew.close()
    await crew.wait_closed()
    assert ran == [True]


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
        tasks.start_soon(crew.wait_closed)
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
    standing = asyncio.create_task(crew.wait_closed())
    await settle()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settle()
    assert not standing.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await standing
