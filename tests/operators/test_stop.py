"""What operators stop, and what they leave behind when they are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

import alto
from alto._operators.bodies import racing
from alto.testing import Scripted, group, reference_run
from tests.operating import built


@alto.stage
async def parts(text: str) -> AsyncIterator[str]:
    """Words, a second apart."""
    for word in text.split():
        yield word
        await asyncio.sleep(1)


@alto.stage
async def burst(text: str) -> AsyncIterator[str]:
    """Words, at once."""
    for word in text.split():
        yield word


@alto.stage
async def ask(word: str, *, llm: alto.LLM) -> str:
    """What the model says."""
    return await llm.text(word)


@alto.stage
async def slow(word: str) -> str:
    """As many seconds as there are letters, and half a second to clean up."""
    try:
        await asyncio.sleep(len(word))
    finally:
        await asyncio.sleep(0.5)
    return word.upper()


def engine() -> Scripted:
    """It says a token a second, as many as the prompt has letters."""
    return Scripted(list, delay=1)


# ------------------------------------------------------------------------------------------- first


async def test_first_gives_the_first_in_ancestry_order() -> None:
    """The same under every schedule, though later ones are there before."""
    pipeline = built(lambda t: alto.first(slow(burst(t)), 2))
    async with pipeline.open() as app:
        assert await app.run("aaa b cc d") == ["AAA", "B"]
        assert await app.run("a") == ["A"]
        assert await app.run("") == []
    assert await reference_run(pipeline, "aaa b cc d") == ["AAA", "B"]


async def test_first_hands_each_on_at_once() -> None:
    """The first one does not wait for the second."""
    clock = asyncio.get_running_loop().time
    async with built(lambda t: alto.first(parts(t), 2)).open() as app:
        start = clock()
        seen = [(clock() - start, word) async for word in app.stream("a b c")]
    assert seen == [(0, "a"), (1, "b")]


async def test_first_stops_the_producer() -> None:
    """Nothing more is made, and the request ends with the last item that is needed."""
    made: list[str] = []

    @alto.stage
    async def noted(word: str) -> str:
        made.append(word)
        return word

    clock = asyncio.get_running_loop().time
    async with built(lambda t: alto.first(noted(parts(t)), 2)).open() as app:
        fresh = app.statistics()
        start = clock()
        assert await app.run("a b c d e") == ["a", "b"]
        assert (clock() - start, made) == (1, ["a", "b"])
        assert app.statistics() == fresh


async def test_a_quorum_aborts_what_the_engine_still_does() -> None:
    """With `order="arrival"` the first k that are done win, and the others' generations end."""
    model = engine()
    async with built(lambda t: alto.first(ask(burst(t)), 2, order="arrival")).open(
        llm=model
    ) as app:
        fresh = app.statistics()
        clock = asyncio.get_running_loop().time
        start = clock()
        assert await app.run("aaaaaaaa bbb ccccc d") == ["d", "bbb"]
        assert clock() - start == 3
        assert app.statistics() == fresh
        said = model.statistics()
        assert (said.running, said.waiting, said.finished, said.aborted) == (0, 0, 2, 2)


async def test_first_aborts_the_rest_in_ancestry_order_too() -> None:
    """Engine requests of later siblings end when the first one is there."""
    model = engine()
    async with built(lambda t: alto.first(ask(burst(t)))).open(llm=model) as app:
        fresh = app.statistics()
        assert await app.run("bbb aaaaa c dddddd") == ["bbb"]
        assert app.statistics() == fresh
        said = model.statistics()
        assert (said.running, said.finished, said.aborted) == (0, 2, 2)


async def test_first_leaves_before_its_last_item_is_handed_on() -> None:
    """However long the consumer takes, nobody goes on to make what is not needed."""
    model = engine()
    pipeline = built(lambda t: alto.first(ask(burst(t)), 3, order="arrival"))
    async with pipeline.open(llm=model, capacity=1) as app:
        async with app.stream("a cccccccc bb dddddddd eee") as handle:
            assert await anext(aiter(handle)) == "a"
            await asyncio.sleep(100)  # One more waits in the edge, the third in hand.
        said = model.statistics()
    assert (said.running, said.aborted) == (0, 2)
    assert said.finished == 3


async def test_first_of_one_group_leaves_the_others_alone() -> None:
    """What other groups and other requests make goes on."""
    model = engine()

    def quick(t: alto.Stream[str]) -> Any:
        return alto.first(ask(letters(burst(t))), order="arrival")

    @alto.stage
    async def letters(word: str) -> AsyncIterator[str]:
        for k in range(1, len(word) + 1):
            yield word[:k] * 2

    async with built(quick).open(llm=model) as app:
        fresh = app.statistics()
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(app.run("abc de"))
            two = tasks.create_task(app.run("fg"))
        assert (one.result(), two.result()) == (["aa", "dd"], ["ff"])
        assert app.statistics() == fresh
        assert model.statistics().aborted == 4


# ------------------------------------------------------------------------------ cancelled anywhere


def everything(t: alto.Stream[str]) -> Any:
    """Each operator, with waits above, in and below it."""
    words = parts(t)
    long, short, rest = alto.switch(words, kind, "long", "short", otherwise=True)
    again = alto.merge(slow(long), slow(short), rest, by=t, order="arrival")
    some = alto.where(again, wanted)
    lists = alto.collect(some)
    sizes = alto.total(lists, key=size, by=t)
    best = alto.top_k(alto.first(slow(some), by=again), 2, by=t)
    states = alto.reduce(some, joined, "", by=t, emit="partial")
    return shown(sizes, best, alto.count(states))


async def kind(word: str) -> str:
    """Takes its time."""
    await asyncio.sleep(0.25)
    return {1: "short", 2: "long"}.get(len(word), "else")


async def wanted(word: str) -> bool:
    """The same."""
    await asyncio.sleep(0.25)
    return word != "X"


async def size(words: list[str]) -> int:
    """The same."""
    await asyncio.sleep(0.25)
    return len(words)


async def joined(so_far: str, word: str) -> str:
    """The same."""
    await asyncio.sleep(0.25)
    return min(so_far + word, word + so_far)


@alto.stage
async def shown(sizes: int, best: list[str], states: int) -> tuple[int, list[str], int]:
    """All that was found."""
    return sizes, best, states


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [1, 32])
async def test_a_request_may_be_cut_anywhere(capacity: int) -> None:
    """Cancelled after any fraction of a second, it leaves nothing, and the next one is complete."""
    async with built(everything).open(capacity=capacity) as app:
        fresh = app.statistics()
        whole = await app.run("aa b ccc x")
        assert whole == [(3, ["CCC", "B"], 4)]
        for eighths in range(80):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(eighths / 8):
                    await app.run("aa b ccc x")
            assert app.statistics() == fresh
        assert await app.run("aa b ccc x") == whole


def even(t: alto.Stream[str]) -> Any:
    """Streams of one depth."""
    words = burst(t)
    return alto.merge(ask(words), ask(slow(words)), words, by=t, order="arrival")


def uneven(t: alto.Stream[str]) -> Any:
    """Streams of several depths."""
    words = burst(t)
    return alto.outputs(said=ask(words), again=burst(ask(slow(words))), words=words)


@pytest.mark.parametrize("merged", [even, uneven])
@pytest.mark.parametrize("capacity", [1, 32])
async def test_a_stream_may_be_left_anywhere(capacity: int, merged: Any) -> None:
    """Left after any number of results, it leaves nothing of its requests at the engine."""
    model = engine()
    async with built(merged).open(capacity=capacity, llm=model) as app:
        fresh = app.statistics()
        for number in range(10):
            async with app.stream("a bb ccc") as handle:
                seen = 0
                async for _ in handle:
                    seen += 1
                    if seen == number:
                        break
            assert seen == (number if number > 0 else 9)
            assert app.statistics() == fresh
            assert model.statistics().running == 0


async def test_merge_in_order_of_arrival_fails_with_its_producer() -> None:
    """A stage that raises fails the request, and the reads of the other groups end."""

    @alto.stage
    async def fails(word: str) -> str:
        await asyncio.sleep(1)
        msg = f"no {word}"
        raise LookupError(msg)

    def merged(t: alto.Stream[str]) -> Any:
        words = burst(t)
        return alto.merge(slow(words), fails(words), order="arrival")

    async with built(merged).open() as app:
        fresh = app.statistics()
        with pytest.raises(alto.StageError, match="stage 'fails' raised") as caught:
            await app.run("aaaa")
        assert isinstance(caught.value.cause, LookupError)
        assert app.statistics() == fresh


async def test_left_merge_ends_all_its_reads() -> None:
    """A consumer that has enough ends the merge, and with it what is still being made."""
    model = engine()

    def quick(t: alto.Stream[str]) -> Any:
        words = burst(t)
        return alto.first(alto.merge(ask(words), slow(words), by=t, order="arrival"))

    async with built(quick).open(llm=model) as app:
        fresh = app.statistics()
        clock = asyncio.get_running_loop().time
        start = clock()
        assert await app.run("aaaaaaaa bbb") == ["bbb"]
        assert app.statistics() == fresh
        assert (clock() - start, model.statistics().aborted) == (3.5, 1)


async def test_a_merge_that_is_left_closes_its_groups_itself() -> None:
    """Not the garbage collector, in some task of its own; what fails meanwhile is not reported."""
    closed: list[str] = []

    async def pieces(name: str) -> AsyncIterator[str]:
        try:
            yield name
            await asyncio.sleep(10)
        finally:
            closed.append(name)

    async def failing() -> AsyncIterator[str]:
        try:
            await asyncio.sleep(10)
        finally:
            raise LookupError
        yield "never"

    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    merged: Any = racing()(group(pieces("a")), group(failing()), group(pieces("b")))
    assert await anext(merged) == "a"
    await asyncio.sleep(1)  # The read of the third group has ended; that of the second will fail.
    await merged.aclose()
    assert sorted(closed) == ["a", "b"]
    del merged
    gc.collect()
    await asyncio.sleep(1)
    assert reported == []
