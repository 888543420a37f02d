"""Exceptions and values that misbehave themselves, and faults of alto's own: nothing hangs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import alto
from alto._runtime.request import Request
from alto._safe_text import message, shown, told
from tests.operating import failure


class Odd(Exception):
    """Its author forgot to set what it shows."""

    def __str__(self) -> str:
        return self.text  # type: ignore[attr-defined, no-any-return]  # that is what is odd

    __repr__ = __str__


@alto.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1."""
    for k in range(n):
        yield k


@alto.stage
async def fails(k: int) -> int:
    """Raises at 1."""
    if k == 1:
        raise Odd
    await asyncio.sleep(1)
    return k


@alto.stage
async def fails_late(k: int) -> AsyncIterator[int]:
    """Gives its item, then raises at 1."""
    yield k
    if k == 1:
        raise Odd


class OddRouter:
    """Fails where there is a choice."""

    def choose(self, item: alto.routing.RoutedItem, replicas: object, /) -> int:
        """Raises at 1."""
        if item.value == 1:
            raise Odd
        return 0


@alto.stage(replicas=2, router=OddRouter())
async def routed(k: int) -> int:
    """The item."""
    return k


def test_text_of_what_cannot_say_what_it_is() -> None:
    """There is always a message, and an ordinary one is as it was."""
    assert told(ValueError("no")) == "ValueError: no"
    assert (message(Odd()), told(Odd())) == (
        "(its __str__ raises AttributeError)", "Odd: (its __str__ raises AttributeError)",
    )  # fmt: skip
    assert shown(3) == "3"
    assert shown(Odd()) == "<Odd whose __repr__ raises AttributeError>"


@pytest.mark.parametrize("stage", [fails, fails_late, routed], ids=lambda stage: stage.name)
async def test_an_odd_exception_fails_its_request_alone(stage: Any) -> None:
    """Whatever its ``__str__`` does, the request ends with it, and others go on."""

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return stage(n)

    async with p.open() as app:
        fresh = app.statistics()
        other = asyncio.ensure_future(app.run(5))
        with pytest.raises((alto.StageError, alto.errors.RoutingError), match="Odd") as caught:
            await app.run(1)
        assert isinstance(caught.value.__cause__, Odd)
        assert await other == [5]
        assert await app.run(7) == [7]
        assert app.statistics() == fresh


async def test_a_factory_that_fails_oddly_is_named() -> None:
    """Stage, resource and replica are said, as with any other exception."""

    @alto.stage(replicas=2)
    async def work(k: int, *, db: int) -> int:
        return k + db

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return work(n)

    def make(number: int) -> int:
        if number == 1:
            raise Odd
        return number

    with pytest.raises(alto.ResourceError, match=r"stage 'work': resource 'db' of replica 1 .*Odd"):
        async with p.open(db=alto.per_replica(make)):
            pass

    def generator(number: int) -> Iterator[int]:
        yield number

    wanted = "resource 'db' of replica 0 must be int, not generator; decorate .*@contextlib.context"
    with pytest.raises(alto.ResourceError, match=wanted):
        async with p.open(db=alto.per_replica(generator)):
            pass


async def test_closing_does_not_wait_for_what_alto_itself_has_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fault in the runtime comes out of ``async with``; it does not hang."""

    def broken(self: Request, call: object, cause: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Request, "stage_failed", broken)

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return fails(n)

    async def use() -> None:
        async with p.open() as app:
            asked.append(asyncio.ensure_future(app.run(1)))
            asked.append(asyncio.ensure_future(app.run(5)))
            await asyncio.wait(asked, timeout=10)
            await asyncio.sleep(1)
            unaware.append(True)

    unaware: list[bool] = []
    asked: list[asyncio.Future[list[int]]] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        await use()
    assert caught.value.subgroup(ZeroDivisionError) is not None
    for one in asked:
        with pytest.raises(alto.Closed):
            await one


async def test_every_kind_of_nan_is_refused_as_a_rank() -> None:
    """Decimals, signalling or not, and tuples that hold one."""

    @alto.stage
    async def rank(words: str) -> AsyncIterator[Any]:
        for word in words.split():
            yield Decimal(word) if word[0] in "Ns" else (float(word), 1)

    for text in ("NaN", "sNaN", "nan"):
        error = await failure(lambda t: alto.top_k(rank(t), 2), text)
        assert "is ranked by NaN" in str(error)


def test_a_first_state_is_not_awaited() -> None:
    """An async function as the initial state is refused where it is given."""

    async def zero() -> int:
        return 0

    with pytest.raises(alto.GraphError, match="initial must not be async"):

        @alto.pipeline
        def p(n: alto.Stream[int]) -> alto.Stream[int]:
            return alto.reduce(numbers(n), lambda a, b: a + b, zero)  # type: ignore[call-overload, no-any-return]


def test_a_router_that_cannot_be_called_is_refused_where_it_is_given() -> None:
    """An async ``choose``, and one of other arguments."""

    class Waits:
        async def choose(self, item: object, replicas: object) -> int:
            return 0

    class Lacks:
        def choose(self, item: object) -> int:
            return 0

    for router, why in ((Waits(), "must be a plain function"), (Lacks(), r"declared choose\(item")):
        with pytest.raises(alto.GraphError, match=why):
            alto.stage(replicas=2, router=router)  # type: ignore[call-overload]


# ---- worker processes


@alto.stage(runs_in="process")
def doubled(item: Any, *, device: Any) -> Any:
    """Something that cannot be sent back, of 0."""
    return (lambda: 0) if item == 0 else device


@alto.stage
async def prepared(n: int) -> AsyncIterator[Any]:
    """Something that cannot be sent, of 1."""
    yield (lambda: 0) if n == 1 else n


@alto.pipeline
def processed(n: alto.Stream[int]) -> alto.Stream[Any]:
    """Through a worker process."""
    return doubled(prepared(n))


@alto.stage(runs_in="process", replicas=2)
def used(k: int, *, device: str) -> str:
    """The device."""
    return device


@alto.pipeline
def devices(n: alto.Stream[int]) -> alto.Stream[str]:
    """Of two replicas."""
    return used(n)


def _free() -> str:
    return "free"


class _Taken:
    """Makes replica 0 fail while replica 1 is still being made; files say what is taken."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @contextmanager
    def __call__(self, number: int) -> Iterator[str]:
        mine, other = (Path(self.folder, f"{n}") for n in (number, 1 - number))
        mine.touch()
        try:
            for _ in range(6000):  # a minute
                if number == 0 and other.exists():
                    raise OSError("no device 0")
                __import__("time").sleep(0.01)
            yield str(number)
        finally:
            mine.unlink()


@pytest.mark.realtime
async def test_what_cannot_be_sent_is_said() -> None:
    """Whether it is the item or the result, and what to do."""
    async with processed.open(device="d") as app:
        with pytest.raises(alto.StageError, match=r"an item cannot be sent to the worker process"):
            await app.run(1)
        with pytest.raises(alto.StageError, match=r"its result cannot be sent back .* plain data"):
            await app.run(0)
        assert await app.run(2) == ["d"]


@pytest.mark.realtime
async def test_what_is_being_made_in_a_process_is_given_back_when_another_fails(
    tmp_path: Path,
) -> None:
    """Replica 1 is stopped in the midst of making its device, and leaves nothing taken."""
    with pytest.raises(alto.ResourceError, match="no device 0"):
        async with devices.open(device=alto.per_replica(_Taken(str(tmp_path)))):
            pass
    assert not os.listdir(tmp_path)  # noqa: PTH208  # of a folder in memory
