"""Operators that hand items on: which, in what order, when, and what they leave alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any, TypeGuard

import pytest

import alto
from alto.testing import reference_run
from tests.operating import built, failure, results, timed


@alto.stage
async def parts(text: str) -> AsyncIterator[str]:
    """Words, at once."""
    for word in text.split():
        yield word


@alto.stage
async def slow(word: str) -> str:
    """As many seconds as there are letters."""
    await asyncio.sleep(len(word))
    return word.upper()


@alto.stage
async def other(word: str) -> str:
    """At once."""
    return word + "'"


@alto.stage
async def pair(word: str, made: alto.Group[str]) -> tuple[str, list[str]]:
    """An item and what was made of it."""
    return word, await made.list()


# ------------------------------------------------------------------------------------------- where


async def is_short(word: str) -> bool:
    """Takes a second to say."""
    await asyncio.sleep(1)
    return len(word) < 3


def is_lower(word: str) -> bool:
    """At once."""
    return word.islower()


@pytest.mark.parametrize(
    ("predicate", "kept"), [(is_short, ["a", "B", "bb"]), (is_lower, ["a", "ccc", "bb"])]
)
async def test_where_keeps_some_items(predicate: Any, kept: list[str]) -> None:
    """Those for which the predicate is true, sync or async, in their order."""
    assert await results(lambda t: alto.where(parts(t), predicate), "a ccc B bb") == kept


async def test_where_asks_for_all_items_at_once() -> None:
    """A predicate that waits holds up nobody else."""
    seen = await timed(lambda t: alto.where(parts(t), is_short), "a b c")
    assert seen == [(1, "a"), (1, "b"), (1, "c")]


async def test_where_joins_below_what_it_chose_from() -> None:
    """An item that was left out has an empty group, so nothing is matched wrongly."""

    def kept(t: alto.Stream[str]) -> Any:
        words = parts(t)
        return pair(words, other(alto.where(words, is_lower)))

    assert await results(kept, "a B c") == [("a", ["a'"]), ("B", []), ("c", ["c'"])]


async def test_where_is_counted_by_an_ancestor() -> None:
    """Its parent is the item itself, so `by=` says what to count by."""

    def counted(t: alto.Stream[str], by: bool) -> Any:
        return alto.count(alto.where(parts(t), is_lower), by=t if by else None)

    assert await results(lambda t: counted(t, by=True), "a B c") == [2]
    assert await results(lambda t: counted(t, by=False), "a B c") == [1, 0, 1]


async def test_where_may_ask_another_pipeline() -> None:
    """A predicate runs inside a stage call, and its pipeline gets its resources from `open`."""

    @alto.stage
    async def known(word: str, *, words: frozenset[str]) -> bool:
        return word in words

    @alto.pipeline
    def look_up(word: alto.Stream[str]) -> alto.Stream[bool]:
        return known(word)

    async def is_known(word: str) -> bool:
        [found] = await look_up.run(word)
        return found

    kept = built(lambda t: alto.where(parts(t), is_known))
    async with kept.open(words=frozenset("ac")) as app:
        assert await app.run("a b c") == ["a", "c"]


async def test_a_predicate_that_raises_is_named() -> None:
    """The error names the operator and the item's path."""
    error = await failure(lambda t: alto.where(parts(t), lambda w: 1 / (len(w) - 2) > 0), "ccc bb")
    assert (error.stage, error.path) == ("where", (1,))
    assert isinstance(error.cause, ZeroDivisionError)


# ------------------------------------------------------------------------------------------ switch


def routed(t: alto.Stream[str], **options: Any) -> Any:
    """Long words go through a slow stage, the others do not."""
    long, short = alto.switch(parts(t), lambda word: len(word) > 1, True, False)
    return alto.merge(slow(long), other(short), **options)


async def test_merge_after_switch_restores_the_order() -> None:
    """What was made in the branches comes back in the order of the items."""
    assert await results(routed, "ccc a bb c") == ["CCC", "a'", "BB", "c'"]
    assert await timed(routed, "ccc a bb") == [(0, "a'"), (2, "BB"), (3, "CCC")]


@pytest.mark.parametrize("wait", [False, True])
async def test_switch_asks_once_per_item(wait: bool) -> None:
    """However many cases there are, sync or async."""
    asked: list[str] = []

    def choose(word: str) -> int:
        asked.append(word)
        return len(word)

    async def slowly(word: str) -> int:
        await asyncio.sleep(1)
        return choose(word)

    def made(t: alto.Stream[str]) -> Any:
        return alto.merge(
            *alto.switch(parts(t), slowly if wait else choose, 3, 1, otherwise=True), by=t
        )

    async with built(made).open() as app:
        assert await app.run("a ccc bb c dddd") == ["ccc", "a", "c", "bb", "dddd"]
    assert sorted(asked) == ["a", "bb", "c", "ccc", "dddd"]


async def test_switch_names_its_branches() -> None:
    """Statistics, and so errors, tell them apart."""

    def made(t: alto.Stream[str]) -> Any:
        return alto.merge(*alto.switch(parts(t), len, 1, 2, otherwise=True))

    async with built(made).open() as app:
        assert list(app.statistics().stages) == [
            "parts", "switch", "switch[1]", "switch[2]", "switch[otherwise]", "merge",
        ]  # fmt: skip


async def test_an_item_of_no_case_is_an_error() -> None:
    """It names the item, what was chosen for it, the cases, and what to do."""
    error = await failure(lambda t: alto.merge(*alto.switch(parts(t), len, 1, 2)), "a ccc")
    assert (error.stage, error.path) == ("switch", (1,))
    assert isinstance(error.cause, ValueError)
    assert "choose('ccc') is 3, which is none of the cases 1, 2; add a case" in str(error)
    assert "otherwise=True" in str(error)


async def test_a_case_that_cannot_be_hashed_is_an_error() -> None:
    """Also where there is a branch for what is left, since it is surely a mistake."""
    error = await failure(
        lambda t: alto.merge(*alto.switch(parts(t), lambda w: [w], "a", otherwise=True)), "a"
    )
    assert isinstance(error.cause, TypeError)
    assert "choose('a') is ['a'] (list), which cannot be hashed" in str(error)


# ------------------------------------------------------------------------------------------- merge


def two(t: alto.Stream[str], **options: Any) -> Any:
    """Slow ones first, then the others."""
    words = parts(t)
    return alto.merge(slow(words), other(words), **options)


async def test_merge_gives_one_stream_after_the_other() -> None:
    """Below each common ancestor, all of the first and then all of the second."""
    assert await results(two, "aa b") == ["AA", "B", "aa'", "b'"]
    assert await timed(two, "aa b") == [(2, "AA"), (2, "B"), (2, "aa'"), (2, "b'")]


async def test_merge_in_order_of_arrival_waits_for_nobody() -> None:
    """Items leave as they come, whichever stream they are from."""
    seen = await timed(lambda t: two(t, order="arrival"), "aa b")
    assert seen[:2] in ([(0, "aa'"), (0, "b'")], [(0, "b'"), (0, "aa'")])
    assert seen[2:] == [(1, "B"), (2, "AA")]
    pipeline = built(lambda t: two(t, order="arrival"))
    assert sorted(await reference_run(pipeline, "aa b")) == ["AA", "B", "aa'", "b'"]


async def test_merge_of_three_in_order_of_arrival_loses_nothing() -> None:
    """Groups of any length, empty ones too, end when all of them are complete."""

    def uneven(t: alto.Stream[str]) -> Any:
        words = parts(t)
        return alto.merge(
            slow(words), alto.where(words, is_lower), alto.where(other(words), is_short),
            by=t, order="arrival",
        )  # fmt: skip

    def same_depth(t: alto.Stream[str]) -> Any:
        words = parts(t)
        return alto.merge(
            alto.where(slow(words), is_short), alto.where(words, is_lower),
            alto.where(other(words), is_short), by=t, order="arrival",
        )  # fmt: skip

    for make, capacity in itertools.product((uneven, same_depth), (1, 32)):
        async with built(make).open(capacity=capacity) as app:
            found = await app.run("aa B c")
            assert sorted(found) == sorted(["AA", "B", "C", "aa", "c", "B'", "c'"])
            assert await app.run("") == []


async def test_merge_by_arrival_of_a_stream_and_what_is_made_of_it() -> None:
    """The words for the screen are not held up by what is judged of them, and each comes once."""

    @alto.stage
    async def letters(word: str) -> AsyncIterator[str]:
        for letter in word:
            await asyncio.sleep(1)
            yield letter

    def both(t: alto.Stream[str]) -> Any:
        words = parts(t)
        return alto.merge(words, letters(words), order="arrival")

    assert await timed(both, "ab - c") == [
        (0, "ab"), (0, "-"), (0, "c"), (1, "a"), (1, "-"), (1, "c"), (2, "b"),
    ]  # fmt: skip
    assert await timed(both, "") == []
    assert sorted(await reference_run(built(both), "ab c")) == ["a", "ab", "b", "c", "c"]


async def test_merge_by_arrival_of_cousins_keeps_to_each_common_ancestor() -> None:
    """Below each word its own, and nothing of another; of left-out words nothing."""

    def both(t: alto.Stream[str]) -> Any:
        words = alto.where(parts(t), is_lower)
        mixed = alto.merge(
            alto.where(words, is_short), parts(alto.where(slow(words), is_short)), order="arrival"
        )
        return alto.collect(mixed, order="arrival")

    assert await timed(both, "aa B ccc d") == [
        (2, ["d", "D"]), (3, ["aa", "AA"]), (4, []),
    ]  # fmt: skip
    expected = [["aa", "AA"], [], ["d", "D"]]
    assert await reference_run(built(both), "aa B ccc d") == expected
    async with built(both).open(capacity=1) as app:
        assert await app.run("aa B ccc d") == expected


async def test_merge_by_arrival_with_an_item_of_the_request() -> None:
    """One item per request stands beside what was made of it."""
    seen = await timed(lambda t: alto.merge(slow(t), parts(t), order="arrival"), "a b")
    assert seen == [(0, "a"), (0, "b"), (3, "A B")]


async def test_outputs_name_what_each_stream_gives() -> None:
    """One request serves all of them, by arrival, whatever their depths."""

    def chat(t: alto.Stream[str]) -> Any:
        words = parts(t)
        return alto.outputs(words=words, shouts=slow(words), whole=slow(t), known=parts(words))

    O = alto.Output  # noqa: N806, E741  # short, for the table
    seen = await timed(chat, "a bb")
    assert sorted(seen[:4], key=lambda one: (one[1].name, one[1].value)) == [
        (0, O("known", "a")), (0, O("known", "bb")), (0, O("words", "a")), (0, O("words", "bb")),
    ]  # fmt: skip
    assert seen[4:] == [(1, O("shouts", "A")), (2, O("shouts", "BB")), (4, O("whole", "A BB"))]
    pipeline = built(chat)
    async with pipeline.open(capacity=1) as app:
        found = {(one.name, one.value) for one in await app.run("a bb")}
    assert found == {(one.name, one.value) for _, one in seen}
    assert {(one.name, one.value) for one in await reference_run(pipeline, "a bb")} == found
    assert await results(lambda t: alto.outputs(only=parts(t)), "a b") == [
        O("only", "a"), O("only", "b"),
    ]  # fmt: skip


async def test_merge_of_the_items_of_a_request() -> None:
    """Streams with one item per request become a stream of so many."""
    assert await results(lambda t: alto.merge(t, other(t)), "a") == ["a", "a'"]
    assert await results(lambda t: alto.count(alto.merge(t, t, t)), "a") == [3]
    seen = await timed(lambda t: alto.merge(slow(t), other(t), order="arrival"), "aa")
    assert seen == [(0, "aa'"), (2, "AA")]


async def test_merge_by_an_ancestor() -> None:
    """With `by=` all of the first stream below it comes first, not only below each item."""

    def made(t: alto.Stream[str]) -> Any:
        words = parts(t)
        short, long = alto.switch(words, lambda word: len(word) < 2, True, False)
        return alto.merge(long, short, by=t)

    assert await results(made, "a bb c dd") == ["bb", "dd", "a", "c"]


async def test_merge_in_order_of_arrival_does_not_read_ahead() -> None:
    """Where the reader stops, the producers of all streams stop soon."""
    made = 0

    @alto.stage
    async def endless(text: str) -> AsyncIterator[int]:
        nonlocal made
        for number in range(1000):
            made += 1
            yield number
            await asyncio.sleep(0)

    def merged(t: alto.Stream[str]) -> Any:
        return alto.merge(endless(t), endless(t), order="arrival")

    async with built(merged).open(capacity=2) as app, app.stream("x") as handle:
        async for _ in handle:
            await asyncio.sleep(100)
            break
        assert 4 <= made <= 11


async def test_a_stream_may_be_merged_with_itself() -> None:
    """Each time it is given counts."""

    def doubled(t: alto.Stream[str]) -> Any:
        words = parts(t)
        return alto.merge(words, words)

    assert await results(doubled, "a b") == ["a", "b", "a", "b"]


# ------------------------------------------------------------------------------------ what is known


def is_text(item: str | int) -> TypeGuard[str]:
    """Narrows the type, for the checkers and for alto."""
    return isinstance(item, str)


async def test_where_narrows_what_the_predicate_narrows() -> None:
    """A stage that takes texts may follow where only texts are left."""

    @alto.stage
    async def mixed(text: str) -> AsyncIterator[str | int]:
        yield text
        yield 3

    assert await results(lambda t: other(alto.where(mixed(t), is_text)), "a") == ["a'"]
    with pytest.raises(alto.GraphError, match=r"takes str, but stage 'where' gives str \| int"):
        built(lambda t: other(alto.where(mixed(t), bool)))
