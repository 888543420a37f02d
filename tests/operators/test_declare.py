"""Operators in a declaration: the types that they give, and what is refused, with its remedy."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any, Literal, NewType, TypeVar

import attrs
import pytest

import alto
from alto import GraphError, Pane


@attrs.frozen
class Claim:
    """Something without an order that nobody can add."""

    text: str


class Level(IntEnum):
    """Numbers with names."""

    LOW = 1


class Colour(Enum):
    """No numbers."""

    RED = "red"


Metres = NewType("Metres", float)
Title = NewType("Title", str)
T = TypeVar("T")


def gives(tp: object) -> Any:
    """A stage whose results are of a type that is not written in a signature."""

    async def made(text: str) -> AsyncIterator[Any]:
        yield text

    made.__annotations__ = {"text": str, "return": AsyncIterator[tp]}
    return alto.stage(made)


def declared(make: Callable[[alto.Stream[str]], Any]) -> Any:
    """What is declared by a pipeline of one text."""

    @alto.pipeline(name="p")
    def made(text: alto.Stream[str]) -> alto.Stream[Any]:
        return make(text)

    return made.declaration


def type_of(make: Callable[[alto.Stream[str]], Any]) -> object:
    """The type of one of its results."""
    return declared(make).nodes[-1].stage.output


def refused(make: Callable[[alto.Stream[str]], Any], *said: str) -> None:
    """Expect that it is no pipeline, and that the message says all of *said*."""
    with pytest.raises(GraphError) as caught:
        declared(make)
    for text in said:
        assert text in str(caught.value), str(caught.value)
    assert str(caught.value).startswith("pipeline 'p'")


def score(claim: Claim) -> float:
    """A key with types."""
    return len(claim.text)


async def slow_score(claim: Claim) -> float:
    """The same, async."""
    return len(claim.text)


def add(so_far: float, number: int) -> float:
    """A function to reduce with."""
    return so_far + number


def longest(so_far: str, word: str) -> str:
    """Another one."""
    return max(so_far, word, key=len)


# ------------------------------------------------------------------------------------------- types

words, numbers, claims = gives(str), gives(int), gives(Claim)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda t: alto.collect(numbers(t)), list[int]),
        (lambda t: alto.collect(gives(Any)(t)), list[Any]),
        (lambda t: alto.collect(gives(T)(t)), list[Any]),
        (lambda t: alto.collect(gives(int | None)(t)), list[int | None]),
        (lambda t: alto.collect(alto.collect(numbers(words(t)))), list[list[int]]),
        (lambda t: alto.count(claims(t)), int),
        (lambda t: alto.count(claims(t), emit="partial"), Pane[int]),
        (lambda t: alto.top_k(numbers(t), 2), list[int]),
        (lambda t: alto.top_k(claims(t), 2, key=slow_score), list[Claim]),
        (lambda t: alto.top_k(numbers(t), 2, emit="partial"), Pane[list[int]]),
        (lambda t: alto.first(claims(t)), Claim),
        (lambda t: alto.where(claims(t), bool), Claim),
        (lambda t: alto.reduce(numbers(t), add, 0), float),
        (lambda t: alto.reduce(numbers(t), lambda s, x: s, 0), Any),
        (lambda t: alto.reduce(numbers(t), add, 0.5, emit="partial"), Pane[float]),
        (lambda t: alto.merge(numbers(t), words(t)), int | str),
        (lambda t: alto.merge(numbers(t), numbers(t)), int),
        (lambda t: alto.merge(*alto.switch(claims(t), bool, True, False)), Claim),
    ],
)
def test_the_type_of_a_result(make: Any, expected: object) -> None:
    """It follows from the types of the items, so a stage that takes others is refused."""
    assert type_of(make) == expected


@pytest.mark.parametrize(
    ("item", "options", "expected"),
    [
        (int, {}, int),
        (bool, {}, int),
        (Level, {}, int),
        (Literal[1, 2], {}, int),
        (float, {}, float),
        (int | float, {}, int | float),
        (Metres, {}, float),
        (complex, {}, complex),
        (Any, {}, Any),
        (Decimal, {}, Decimal | int),
        (Decimal, {"start": Decimal(0)}, Decimal),
        (Fraction, {"start": Fraction(0)}, Fraction),
        (int, {"start": 0.5}, int | float),
        (timedelta, {"start": timedelta()}, timedelta),
        (list[int], {"start": []}, list[int]),
        (Claim, {"key": score}, float),
        (Claim, {"key": slow_score}, float),
        (Claim, {"key": lambda claim: 1}, Any),
        (str, {"key": Decimal, "start": Decimal(0)}, Decimal),
        (float, {"emit": "partial"}, Pane[float]),
    ],
)
def test_the_type_of_a_total(item: object, options: dict[str, Any], expected: object) -> None:
    """It is that of the sum, and of `start` where that may be all there is."""
    assert type_of(lambda t: alto.total(gives(item)(t), **options)) == expected


def test_a_wrong_edge_behind_an_operator_is_refused() -> None:
    """A stage that takes other items is refused where it is called."""

    @alto.stage
    async def shout(word: str) -> str:
        return word.upper()

    for make, given in (
        (lambda t: shout(alto.collect(words(t))), "list[str]"),
        (lambda t: shout(alto.count(words(t))), "int"),
        (lambda t: shout(alto.reduce(words(t), longest, "", emit="partial")), "Pane[str]"),
        (lambda t: shout(alto.merge(words(t), numbers(t))), "str | int"),
    ):
        refused(make, "stage 'shout': parameter 'word' takes str", f"gives {given}")


def test_operators_have_their_own_names() -> None:
    """One used twice is numbered, like a stage."""
    made = declared(lambda t: alto.collect(alto.merge(alto.count(words(t)), alto.count(claims(t)))))
    names = [node.name for node in made.nodes if not node.name.startswith("made")]
    assert names == ["count", "count#2", "merge", "merge#2", "merge#3", "collect"]


# --------------------------------------------------------------------------------- what is refused

Operator = Callable[[Any], Any]
GATHERERS: list[Operator] = [
    alto.collect,
    alto.count,
    functools.partial(alto.total, key=len),
    functools.partial(alto.top_k, k=1),
    alto.first,
    functools.partial(alto.reduce, fn=longest, initial=""),
]


@pytest.mark.parametrize("operator", GATHERERS)
def test_there_must_be_something_to_gather(operator: Any) -> None:
    """One item per request is no group."""
    refused(operator, "input 'text' has one item per request and nothing to gather")


@pytest.mark.parametrize("operator", GATHERERS)
def test_by_must_be_an_ancestor(operator: Any) -> None:
    """Not a stream beside it, not the stream itself, and nothing that is no stream."""

    def beside(t: Any) -> Any:
        return alto.merge(operator(words(t), by=words(t)), words(t))

    refused(beside, "by= (one per item of made) is no ancestor of parameter 'stream'")
    refused(
        lambda t: operator(words(t), by=words(words(t))), "is no ancestor of parameter 'stream'"
    )

    def itself(t: Any) -> Any:
        found = words(t)
        return operator(found, by=found)

    refused(itself, "each group would hold exactly one item; name a stream further up")
    refused(lambda t: operator(words(t), by="text"), "by= must be a Stream, not str ('text')")


@pytest.mark.parametrize("operator", [*GATHERERS, functools.partial(alto.where, predicate=bool)])
def test_an_operator_takes_a_stream(operator: Any) -> None:
    """Not its items, not a stage, and no stream of another pipeline."""
    refused(lambda t: operator([1, 2]), "stream must be a Stream, not list ([1, 2])")
    refused(lambda t: operator(words), "stream must be a Stream", "itself; call it")
    kept = []

    def keeping(t: Any) -> Any:
        kept.append(words(t))
        return kept[0]

    declared(keeping)
    refused(lambda t: operator(kept[0]), "a stream can be used only while its own pipeline")
    with pytest.raises(GraphError, match="outside a pipeline; call it on streams"):
        operator(kept[0])


def test_an_earlier_mistake_is_reported_as_such() -> None:
    """A join that means nothing is what the message is about, not the operator behind it."""

    @alto.stage
    async def both(one: str, two: str) -> AsyncIterator[str]:
        yield one + two

    refused(lambda t: alto.collect(both(words(t), words(t))), "stage 'both'", "common ancestry")


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2", None])
def test_a_number_of_items_is_whole_and_positive(value: Any) -> None:
    """`k` and `n` are checked where they are given."""
    refused(lambda t: alto.top_k(words(t), value), "k must be a whole number >= 1, not")
    refused(lambda t: alto.first(words(t), value), "n must be a whole number >= 1, not")


def test_an_option_has_few_values() -> None:
    """`order=` and `emit=` say which."""
    for make in (
        lambda t: alto.collect(words(t), order="any"),
        lambda t: alto.first(words(t), order="any"),
        lambda t: alto.reduce(words(t), longest, "", order="any"),
        lambda t: alto.merge(words(t), words(t), order="any"),
    ):
        refused(make, "order= must be 'ancestry' or 'arrival', not 'any'")
    for make in (
        lambda t: alto.count(words(t), emit=True),
        lambda t: alto.total(numbers(t), emit=True),
        lambda t: alto.top_k(words(t), 1, emit=True),
        lambda t: alto.reduce(words(t), longest, "", emit=True),
    ):
        refused(make, "emit= must be 'final' or 'partial', not True")


async def generating(word: str) -> AsyncIterator[bool]:
    """No predicate: it would always be true."""
    yield False


def plainly(word: str) -> Iterator[bool]:
    """The same."""
    yield False


class Generator:
    """An object that can be called, in the wrong way."""

    async def __call__(self, word: str) -> AsyncIterator[bool]:
        """Generate."""
        yield False


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (3, "not int (3)"),
        (None, "not NoneType (None)"),
        (generating, "not a generator function: it gives one result for each call"),
        (plainly, "not a generator function"),
        (functools.partial(generating), "not a generator function"),
        (Generator(), "not a generator function"),
        (words, "call that on the stream beforehand, or pass its plain function, made.fn"),
        (lambda: True, "but <lambda> is declared <lambda>()"),
        (lambda a, b: True, "is declared <lambda>(a, b)"),
    ],
)
def test_a_function_is_one(fn: Any, said: str) -> None:
    """Whatever takes a function refuses what is none, or takes other arguments."""
    wanted = "must be a function (or async function) of 1 argument, "
    for operator, role in (
        (lambda t: alto.where(words(t), fn), "operator 'where': predicate "),
        (lambda t: alto.switch(words(t), fn, 1, 2)[0], "operator 'switch': choose "),
        (lambda t: alto.top_k(words(t), 1, key=fn), "operator 'top_k': key= "),
        (lambda t: alto.total(words(t), key=fn), "operator 'total': key= "),
    ):
        if fn is not None or "key=" not in role:
            refused(operator, role + wanted, said)


def test_a_stream_is_no_function() -> None:
    """Though it has the form of one, to say what to do."""
    refused(lambda t: alto.where(words(t), t), "predicate must be a function", "not Stream")


@pytest.mark.parametrize("fn", [bool, str.isdigit, functools.partial(max, "a"), "ab".__contains__])
def test_a_function_may_be_anything_that_can_be_called(fn: Any) -> None:
    """Builtins, methods, classes and partials among them."""
    assert type_of(lambda t: alto.where(words(t), fn)) is str


def test_a_function_that_takes_other_items_is_refused() -> None:
    """As an edge between stages would be."""
    said = "takes Claim, but stage 'made' gives str; correct an annotation"
    refused(lambda t: alto.where(words(t), score), "operator 'where': predicate " + said)
    refused(lambda t: alto.switch(words(t), score, 1, 2)[0], "'switch': choose " + said)
    refused(lambda t: alto.top_k(words(t), 1, key=score), "operator 'top_k': key= " + said)
    refused(lambda t: alto.total(words(t), key=slow_score), "operator 'total': key= " + said)
    refused(lambda t: alto.reduce(words(t), add, 0), "operator 'reduce': fn takes int")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (str, "made' gives str, and str is no number; give key="),
        (Title, "Title is no number"),
        (Literal["a"], "str is no number"),
        (Claim, "Claim is no number"),
        (Colour, "Colour is no number"),
        (list[int], "list[int] is no number"),
        (int | None, "gives int | None, and None is no number"),
        (dict[str, int], "dict[str, int] is no number"),
    ],
)
def test_what_is_no_number_has_no_total(item: object, said: str) -> None:
    """It is refused where that is certain."""
    refused(lambda t: alto.total(gives(item)(t)), "operator 'total': ", said)


def test_total_says_what_is_wrong_with_its_arguments() -> None:
    """A text to start with, and a key that gives no number."""

    def strip(word: str) -> str:
        return word.strip()

    refused(lambda t: alto.total(words(t), start=""), "start= must be a number, not ''", "join")
    refused(lambda t: alto.total(words(t), key=strip), "key= gives str", "let it return a number")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (Claim, "made' gives Claim, and values of type Claim have no order; give key="),
        (int | None, "values of type None have no order"),
        (complex, "values of type complex have no order"),
        (dict[str, int], "values of type dict[str, int] have no order"),
        (Colour, "values of type Colour have no order"),
    ],
)
def test_what_has_no_order_has_no_top(item: object, said: str) -> None:
    """It is refused where that is certain."""
    refused(lambda t: alto.top_k(gives(item)(t), 1), "operator 'top_k': ", said)


@pytest.mark.parametrize("item", [str, Level, Title, tuple[int, str], object, Any, int | float])
def test_what_may_have_an_order_is_accepted(item: object) -> None:
    """It is not refused where nobody can know."""
    assert type_of(lambda t: alto.top_k(gives(item)(t), 1)) == list[item]


def test_a_key_gives_what_has_an_order() -> None:
    """A key that is annotated with another type is refused."""

    def same(claim: Claim) -> Claim:
        return claim

    refused(lambda t: alto.top_k(claims(t), 1, key=same), "key= gives Claim", "let it return a")
    refused(lambda t: alto.total(claims(t), key=same), "key= gives Claim", "return a number")


def test_reduce_says_what_is_wrong_with_its_arguments() -> None:
    """The function, the first state, and what makes it."""
    refused(lambda t: alto.reduce(words(t), str.upper, ""), "fn must be a function", "2 arguments")
    refused(
        lambda t: alto.reduce(words(t), longest, 0),
        "initial is 0 (int), but fn is annotated to take and give str",
    )
    refused(
        lambda t: alto.reduce(words(t), lambda s, x: s, threading.Lock()),
        "cannot be copied",
        "`initial=lambda: ...`",
    )
    refused(
        lambda t: alto.reduce(words(t), lambda s, x: s, lambda x: x),
        "initial, if not a value, must be a function",
        "of 0 arguments",
    )


def test_switch_says_what_is_wrong_with_its_cases() -> None:
    """Too few, twice the same, one that cannot be hashed, and one that is never chosen."""

    def is_long(word: str) -> bool:
        return len(word) > 9

    def made(*cases: Any, otherwise: Any = False) -> Callable[[Any], Any]:
        return lambda t: alto.merge(
            *alto.switch(words(t), is_long, *cases, otherwise=otherwise), words(t)
        )

    refused(made(), "needs two cases or more, not 0; name the others, or add otherwise=True")
    refused(made(True), "needs two cases or more, not 1")
    refused(made(otherwise=True), "needs two cases or more, not 0")
    refused(made((True, False)), "write them one by one: `switch(stream, choose, *cases)`")
    refused(made(True, True), "case True is given twice")
    refused(made(True, [False]), "case [False] cannot be hashed")
    refused(made(True, "no"), "case 'no' (str) cannot be a result of choose", "annotated bool")
    refused(made(True, otherwise="False"), "otherwise= must be True or False, not 'False'")


def test_each_branch_of_a_switch_is_used() -> None:
    """The message names the one that is not."""
    refused(
        lambda t: alto.switch(words(t), bool, True, False)[0],
        "nothing takes the result of stage 'switch[False]'",
    )


def test_merge_says_what_is_wrong_with_its_streams() -> None:
    """Too few of them, one that is none, and different depths."""
    refused(lambda t: alto.merge(words(t)), "takes two or more streams, not 1; pass each one")
    refused(lambda t: alto.merge([words(t), words(t)]), "as `merge(*streams)`")
    refused(lambda t: alto.merge(words(t), 3), "stream 2 must be a Stream, not int (3)")
    refused(
        lambda t: alto.merge(words(t), numbers(words(t))),
        "stage 'made' (one per item of made) and stage 'made' (one per item of made > made) differ",
        "in depth", 'with order="arrival"', "gather stage 'made' first", "over Group[int]",
    )  # fmt: skip
    refused(lambda t: alto.merge(t, words(t)), "input 'text' (one per request)", "over Group[str]")
    refused(lambda t: alto.merge(words(t), words(t), by=words(t)), "by=", "is no ancestor")
    refused(lambda t: alto.merge(t, t, by=words(t)), "by=", "is no ancestor")
    refused(
        lambda t: alto.merge(words(t), numbers(words(t)), by=words(t), order="arrival"),
        "by=", "is no ancestor",
    )  # fmt: skip


def test_streams_of_any_depth_are_merged_by_arrival() -> None:
    """The result lies one level below what all of them have in common."""

    def deep(t: alto.Stream[str]) -> Any:
        parts = words(t)
        return alto.merge(numbers(parts), parts, t, order="arrival")

    plan = declared(deep).plan
    assert [node.name for node in plan.nodes] == ["made", "made#2", "merge", "merge#2"]
    assert (plan.nodes[-1].depth, plan.depth) == (0, 1)
    assert type_of(deep) == int | str

    def cousins(t: alto.Stream[str]) -> Any:
        parts = words(t)
        return alto.merge(words(parts), numbers(words(parts)), order="arrival")

    plan = declared(cousins).plan
    assert (plan.nodes[-1].depth, plan.depth) == (1, 2)


def test_outputs_say_what_is_wrong_with_their_streams() -> None:
    """None of them, one that is none, and one of another type than the pipeline's."""
    refused(lambda t: alto.outputs(), "takes streams by name", "alto.outputs(words=words")
    refused(lambda t: alto.outputs(words=3), "operator 'outputs': words must be a Stream, not int")
    assert type_of(lambda t: alto.outputs(a=words(t), b=t)) == alto.Output[str]
    assert type_of(lambda t: alto.outputs(a=numbers(words(t)), b=t)) == alto.Output[int | str]

    def wrong(t: alto.Stream[str]) -> alto.Stream[alto.Output[bytes | str]]:
        return alto.outputs(a=words(t), b=numbers(t))

    with pytest.raises(
        GraphError, match=r"Stream\[Output\[bytes \| str\]\], but returns stage 'outp"
    ):
        alto.pipeline(wrong)


def test_what_cannot_be_looked_up_is_not_refused() -> None:
    """A function whose annotations name what is not defined is taken as it is."""

    def later(word: Undefined) -> Undefined:  # noqa: F821
        return word

    assert type_of(lambda t: alto.where(words(t), later)) is str
