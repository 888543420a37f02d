"""Bodies of the stages that choose, route and merge: a new function for each call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import attrs

from alto._operators.fold import outcome
from alto._safe_text import short
from alto._wait import wait_shielded
from alto.stream import Group

__all__ = ("Routed", "branching", "keeping", "leaving", "lifting", "merging", "racing", "routing")

_END: Final = object()
"""Result of a read from a complete group."""


@attrs.frozen
class Routed:
    """An item on its way to one of the branches of a switch."""

    item: Any
    branch: int


def keeping(predicate: Callable[[Any], Any]) -> Callable[[Any], AsyncIterator[Any]]:
    """Make a body that yields an item if *predicate* is true for it."""

    async def body(item: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        if await outcome(predicate(item)):
            yield item

    return body


def leaving(n: int) -> Callable[[Group[Any]], AsyncIterator[Any]]:
    """Make a body that yields the first *n* pieces of a group, and leaves it before the last one."""

    async def body(items: Group[Any]) -> AsyncIterator[Any]:
        pieces = aiter(items)
        for left in reversed(range(n)):
            piece = await anext(pieces, _END)
            if piece is _END:
                return
            if not left:
                await _close(pieces)  # The yield may wait long; no more pieces are needed.
            yield piece

    return body


def routing(
    choose: Callable[[Any], Any], branches: Mapping[object, int], default: int | None
) -> Callable[[Any], Awaitable[Routed]]:
    """Make a body that returns an item with the number of its branch."""

    async def body(item: Any) -> Routed:  # noqa: ANN401
        case = await outcome(choose(item))
        try:
            branch = branches.get(case, default)
        except TypeError as error:  # It cannot be hashed.
            msg = (
                f"choose({short(item)}) is {short(case)} ({type(case).__name__}), which cannot be "
                f"hashed and so is no case; let it return one of {_listed(branches)}"
            )
            raise TypeError(msg) from error
        if branch is None:
            msg = (
                f"choose({short(item)}) is {short(case)}, which is none of the cases "
                f"{_listed(branches)}; add a case, or otherwise=True for a branch of what is left"
            )
            raise ValueError(msg)
        return Routed(item, branch)

    return body


def branching(branch: int) -> Callable[[Routed], AsyncIterator[Any]]:
    """Make a body that yields the items of one branch."""

    async def body(routed: Routed) -> AsyncIterator[Any]:
        if routed.branch == branch:
            yield routed.item

    return body


def lifting() -> Callable[[Any], AsyncIterator[Any]]:
    """Make a body that yields its item, so that there is a level to gather."""

    async def body(item: Any) -> AsyncIterator[Any]:  # noqa: ANN401
        yield item

    return body


def merging() -> Callable[..., AsyncIterator[Any]]:
    """Make a body that yields all pieces of one group, then those of the next."""

    async def body(*groups: Group[Any]) -> AsyncIterator[Any]:
        for group in groups:
            async for piece in group:
                yield piece

    return body


def racing(
    marks: Sequence[Callable[[Any], Any]] | None = None, /
) -> Callable[..., AsyncIterator[Any]]:
    """Make a body that yields the pieces of several groups as they come.

    Each group has a task that reads one piece. The next read starts when that piece has been
    yielded, so no group is read ahead of the consumer. The tasks end with the call, which waits for
    them; a task group would hold its cancel scope open across the `yield`.

    Args:
        marks: A function for each group, applied to its pieces; None: pieces are yielded as they
            are.
    """

    async def body(*groups: Group[Any]) -> AsyncIterator[Any]:
        iterators = [aiter(group) for group in groups]
        reads = {_read(pieces): (pieces, k) for k, pieces in enumerate(iterators)}
        try:
            while reads:
                done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
                for read in [read for read in reads if read in done]:
                    pieces, k = reads.pop(read)
                    piece = read.result()
                    if piece is not _END:
                        yield piece if marks is None else marks[k](piece)
                        reads[_read(pieces)] = pieces, k
        finally:
            for read in reads:
                read.cancel()
            if reads:
                await wait_shielded(partial(_ended, list(reads)))
            for pieces in iterators:
                await _close(pieces)

    return body


def _read(pieces: AsyncIterator[Any]) -> asyncio.Task[Any]:
    async def read() -> Any:  # noqa: ANN401
        return await anext(pieces, _END)

    return asyncio.ensure_future(read())  # noqa: TID251  # awaited in every case, see `racing`


async def _ended(reads: list[asyncio.Task[Any]]) -> None:
    await asyncio.wait(reads)
    for read in reads:
        if not read.cancelled():
            read.exception()  # Marks it as retrieved: the call ends with an error of its own.


async def _close(pieces: AsyncIterator[Any]) -> None:
    close = getattr(pieces, "aclose", None)  # A group made by hand may have nothing to close.
    if close is not None:
        await close()


def _listed(branches: Mapping[object, int]) -> str:
    return ", ".join(map(short, branches))
