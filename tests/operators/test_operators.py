"""Operators at work: what each gives, when, and what it says of items that it cannot take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

import alto
from alto._operators.fold import Largest
from tests.operating import built, failure, results, timed


@alto.stage
async def parts(text: str) -> AsyncIterator[str]:
    """Words, a second apart."""
    for word in text.split():
        yield word
        await asyncio.sleep(1)


@alto.stage
async def letters(word: str) -> AsyncIterator[str]:
    """No letter of a word that begins with a dot."""
    if not word.startswith("."):
        for letter in word:
            yield letter


@alto.stage
async def length(word: str) -> int:
    """One number for each."""
    return len(word)


@alto.stage
async def anything(word: str) -> Any:
    """A number where it is one, else the text: nobody can know before."""
    return int(word) if word.isdigit() else float(word) if word == "nan" else word


@alto.stage
async def slow(word: str) -> str:
    """As many seconds as there are letters."""
    await asyncio.sleep(len(word))
    return word.upper()


# ------------------------------------------------------------------------------- one value per group


async def test_collect_gives_a_list_per_parent() -> None:
    """Every word has a list of its letters, a word without any an empty one."""
    found = await results(lambda t: alto.collect(letters(parts(t))), "ab .x c")
    assert found == [["a", "b"], [], ["c"]]


async def test_collect_by_an_ancestor() -> None:
    """With `by=` there is one list for each item of that stream."""
    found = await results(lambda t: alto.collect(letters(parts(t)), by=t), "ab .x c")
    assert found == [["a", "b", "c"]]


async def test_collect_in_order_of_arrival() -> None:
    """The list holds the items as they came; without `order=` as a sequential program has them."""
    text = "aaaa b cc"
    made = built(lambda t: alto.collect(slow(parts(t)), order="arrival"))
    async with made.open() as app:
        assert await app.run(text) == [["B", "AAAA", "CC"]]
    assert await results(lambda t: alto.collect(slow(parts(t))), text) == [["AAAA", "B", "CC"]]


async def test_count_counts() -> None:
    """One number per parent, and 0 where there is nothing."""
    assert await results(lambda t: alto.count(letters(parts(t))), "ab .x c") == [2, 0, 1]
    assert await results(lambda t: alto.count(letters(parts(t)), by=t), "ab .x c") == [3]


async def test_count_keeps_nothing_back() -> None:
    """Items that come out of order are counted at once, not when those before them are there."""
    seen = await timed(lambda t: alto.count(slow(parts(t)), emit="partial"), "aaaaaaaaaa b c")
    assert [(when, pane.value) for when, pane in seen] == [(2, 1), (3, 2), (10, 3), (10, 3)]


async def test_total_adds() -> None:
    """The sum per parent, and `start` where there is nothing."""

    def summed(t: alto.Stream[str]) -> alto.Stream[int]:
        return alto.total(length(letters(parts(t))), start=10)

    assert await results(summed, "ab .x c") == [12, 10, 11]


@pytest.mark.parametrize("wait", [False, True])
async def test_total_of_a_key(wait: bool) -> None:
    """What is added is what `key=` makes of an item, sync or async."""

    async def slowly(word: str) -> float:
        await asyncio.sleep(1)
        return len(word) / 2

    key: Any = slowly if wait else lambda word: len(word) / 2
    assert await results(lambda t: alto.total(parts(t), key=key), "ab c") == [1.5]


async def test_total_of_another_kind_of_number() -> None:
    """`start=` says which number an empty group gives."""

    def summed(t: alto.Stream[str]) -> alto.Stream[Decimal]:
        return alto.total(parts(t), key=Decimal, start=Decimal(0))

    assert await results(summed, "1.1 2.2") == [Decimal("3.3")]
    assert repr(await results(summed, "")) == "[Decimal('0')]"


async def test_total_never_changes_what_it_starts_with() -> None:
    """A `start` that can be changed is not shared between groups."""
    made = built(lambda t: alto.total(letters(parts(t)), key=lambda x: [x], start=[]))
    async with made.open() as app:
        first, second, third = await app.run(".a .b c")
    assert (first, second, third) == ([], [], ["c"])
    assert first is not second


async def test_total_of_something_else_says_which_item() -> None:
    """The error names the operator, the item, the sum so far, and `key=`."""
    error = await failure(lambda t: alto.total(anything(parts(t))), "1 2 x 4")
    assert (error.stage, error.path) == ("total", ())
    assert isinstance(error.cause, TypeError)
    assert "item 2 of the group is 'x' (str), which cannot be added to 3" in str(error)
    assert "give key=, a function from an item to a number" in str(error)


async def test_total_of_a_wrong_key_says_what_it_gave() -> None:
    """The error names the item and what `key=` made of it."""
    error = await failure(lambda t: alto.total(parts(t), key=lambda w: w * 2), "a")
    assert "item 0 of the group, key('a') is 'aa' (str)" in str(error)
    assert "let key= return a number" in str(error)


async def test_top_k_gives_the_largest_first() -> None:
    """The k largest of each parent, largest first, and all where there are fewer."""
    found = await results(lambda t: alto.top_k(letters(parts(t)), 2), "xayz .x c")
    assert found == [["z", "y"], [], ["c"]]


@pytest.mark.parametrize("text", ["aa b cc d ee", "b d ee cc aa", "ee d cc b aa"])
async def test_top_k_of_equals_takes_the_first(text: str) -> None:
    """Ties are in ancestry order, though the later ones may be there first."""
    words = text.split()
    expected = sorted(words, key=len, reverse=True)
    for k in range(1, 7):
        found = await results(lambda t, k=k: alto.top_k(slow(parts(t)), k, key=len), text)
        assert found == [[word.upper() for word in expected[:k]]]


async def test_top_k_takes_an_async_key() -> None:
    """A `key=` may wait, for a model for example."""

    async def score(word: str) -> int:
        await asyncio.sleep(1)
        return -len(word)

    assert await results(lambda t: alto.top_k(parts(t), 1, key=score), "ccc a bb") == [["a"]]


async def test_top_k_keeps_no_more_than_k() -> None:
    """Its memory does not grow with the group."""
    state = Largest(3, None)
    for number in range(100):
        await state.add(number * 37 % 101)
        assert len(state._heap) <= 3
    assert state.value() == [100, 99, 98]


async def test_top_k_of_what_cannot_be_compared_names_both() -> None:
    """The error names both items with their types, and `key=`."""
    error = await failure(lambda t: alto.top_k(anything(parts(t)), 2), "1 x")
    assert error.stage == "top_k"
    assert isinstance(error.cause, TypeError)
    assert "1 (int) and 'x' (str) cannot be compared; give key=" in str(error)


async def test_top_k_of_a_wrong_key_names_both() -> None:
    """The error names both items and what `key=` made of them."""
    made = failure(lambda t: alto.top_k(parts(t), 2, key=lambda w: int(w) if w < "a" else w), "1 x")
    said = str(await made)
    assert "key('1') is 1 (int) and key('x') is 'x' (str), which cannot be compared" in said


async def test_top_k_refuses_what_is_not_a_number() -> None:
    """NaN has no place in any order, so it is an error and not luck."""
    error = await failure(lambda t: alto.top_k(anything(parts(t)), 2), "1 nan 3")
    assert isinstance(error.cause, ValueError)
    assert "item 1 of the group, nan, is ranked by NaN" in str(error)


# ------------------------------------------------------------------------------------------ reduce


def append(so_far: list[str], word: str) -> list[str]:
    """Change the list in place."""
    so_far.append(word)
    return so_far


async def slow_append(so_far: list[str], word: str) -> list[str]:
    """The same, taking its time."""
    await asyncio.sleep(1)
    return append(so_far, word)


@pytest.mark.parametrize("fn", [append, slow_append])
@pytest.mark.parametrize("initial", [[], list])
async def test_reduce_shares_no_state_between_groups(fn: Any, initial: Any) -> None:
    """Each group begins with a copy of `initial`, or with what it makes."""
    found = await results(lambda t: alto.reduce(letters(parts(t)), fn, initial), "ab .x c")
    assert found == [["a", "b"], [], ["c"]]
    assert initial in ([], list)


async def test_reduce_goes_in_ancestry_order_or_as_items_come() -> None:
    """`order=` says which; the default is that of a sequential program."""

    def joined(t: alto.Stream[str], **options: Any) -> alto.Stream[str]:
        return alto.reduce(slow(parts(t)), lambda so_far, word: so_far + word, ">", **options)

    assert await results(joined, "aaa b") == [">AAAB"]
    async with built(lambda t: joined(t, order="arrival")).open() as app:
        assert await app.run("aaa b") == [">BAAA"]


async def test_reduce_gives_a_pane_after_each_item_and_one_at_the_end() -> None:
    """Early panes leave at once and hold the state of their moment, the last one is final."""
    made = await timed(lambda t: alto.reduce(parts(t), append, list, emit="partial"), "a b")
    assert made == [
        (0, alto.Pane(value=["a"], revision=0, final=False)),
        (1, alto.Pane(value=["a", "b"], revision=1, final=False)),
        (2, alto.Pane(value=["a", "b"], revision=2, final=True)),
    ]


async def test_an_empty_group_has_one_pane() -> None:
    """It is final, and holds the first state."""
    pane = alto.Pane(value=0, revision=0, final=True)
    assert await results(lambda t: alto.count(parts(t), emit="partial"), "") == [pane]


async def test_a_slow_reader_misses_no_pane() -> None:
    """Panes are results like others: none is left out, however late they are read."""
    async with built(lambda t: alto.count(parts(t), emit="partial")).open(capacity=1) as app:
        seen = []
        async for pane in app.stream("a b c d"):
            seen.append(pane.value)
            await asyncio.sleep(10)
    assert seen == [1, 2, 3, 4, 4]


async def test_total_and_top_k_give_panes() -> None:
    """The sum so far, and the largest so far."""
    panes = await results(lambda t: alto.total(length(parts(t)), emit="partial"), "a bb")
    assert [(one.value, one.final) for one in panes] == [(1, False), (3, False), (3, True)]
    panes = await results(lambda t: alto.top_k(parts(t), 2, emit="partial"), "a c b")
    assert [one.value for one in panes] == [["a"], ["c", "a"], ["c", "b"], ["c", "b"]]


async def test_a_pane_never_changes() -> None:
    """Neither the sum of lists in an earlier one, nor anything inside of a state."""

    def summed(t: alto.Stream[str]) -> Any:
        return alto.total(parts(t), key=lambda w: [w], start=[], emit="partial")

    panes = await results(summed, "a b")
    assert [one.value for one in panes] == [["a"], ["a", "b"], ["a", "b"]]

    def by_length(so_far: dict[int, list[str]], word: str) -> dict[int, list[str]]:
        so_far.setdefault(len(word), []).append(word)
        return so_far

    panes = await results(lambda t: alto.reduce(parts(t), by_length, {}, emit="partial"), "a b")
    assert [one.value for one in panes] == [{1: ["a"]}, {1: ["a", "b"]}, {1: ["a", "b"]}]


async def test_a_state_that_cannot_be_copied_gives_no_panes() -> None:
    """The error says why a pane needs a copy, and what to do."""

    def opened(so_far: Any, word: str) -> Any:
        return (letter for letter in word)

    error = await failure(lambda t: alto.reduce(parts(t), opened, 0, emit="partial"), "a")
    assert isinstance(error.cause, TypeError)
    assert "cannot be copied" in str(error)
    assert "emit='final'" in str(error)
    final = built(lambda t: alto.reduce(parts(t), opened, 0))
    async with final.open() as app:
        assert [list(one) for one in await app.run("ab")] == [["a", "b"]]


async def test_a_function_that_raises_fails_its_request() -> None:
    """The error names the operator and the group."""
    made = failure(lambda t: alto.reduce(letters(parts(t)), lambda s, x: s + int(x), 0), "12 3x")
    error = await made
    assert (error.stage, error.path) == ("reduce", (1,))
    assert isinstance(error.cause, ValueError)
