# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Every public signature of operators, for the type checkers; never run.

A line with an ignore is an error in both checkers. An ignore that is not needed is one as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import TypeGuard, assert_type

import attrs

import alto


@attrs.frozen
class Claim:
    text: str
    score: float


class Index: ...


def score(claim: Claim) -> float:
    return claim.score


async def slow_score(claim: Claim) -> float:
    return claim.score


def append(texts: list[str], claim: Claim) -> list[str]:
    return [*texts, claim.text]


async def slow_append(texts: list[str], claim: Claim) -> list[str]:
    return [*texts, claim.text]


def add(so_far: float, number: int) -> float:
    return so_far + number


def is_text(item: str | int) -> TypeGuard[str]:
    return isinstance(item, str)


async def is_short(claim: Claim) -> bool:
    return len(claim.text) < 9


def kind(claim: Claim) -> str:
    return claim.text


@alto.stage
async def claims(question: str) -> AsyncIterator[Claim]:
    yield Claim(question, 0.5)


def gathered(
    question: alto.Stream[str], claim: alto.Stream[Claim], number: alto.Stream[int]
) -> None:
    assert_type(alto.collect(claim), alto.Stream[list[Claim]])
    assert_type(alto.collect(number, by=question, order="arrival"), alto.Stream[list[int]])
    alto.collect([1])  # type: ignore[arg-type]
    alto.collect(claim, order="any")  # type: ignore[arg-type]

    assert_type(alto.count(claim, by=question), alto.Stream[int])
    assert_type(alto.count(claim, emit="partial"), alto.Stream[alto.Pane[int]])


def summed(
    question: alto.Stream[str], claim: alto.Stream[Claim], number: alto.Stream[int],
    ratio: alto.Stream[float], price: alto.Stream[Decimal], time: alto.Stream[timedelta],
) -> None:  # fmt: skip
    assert_type(alto.total(number), alto.Stream[int])
    assert_type(alto.total(number, key=lambda one: one > 3), alto.Stream[int])
    assert_type(alto.total(ratio, start=0.5, by=question), alto.Stream[float])
    assert_type(alto.total(number, emit="partial"), alto.Stream[alto.Pane[int]])
    assert_type(alto.total(claim, key=score), alto.Stream[float])
    assert_type(alto.total(claim, key=slow_score), alto.Stream[float])
    assert_type(alto.total(claim, key=lambda one: len(one.text)), alto.Stream[int])
    assert_type(alto.total(claim, key=score, emit="partial"), alto.Stream[alto.Pane[float]])
    assert_type(alto.total(price, start=Decimal(0)), alto.Stream[Decimal])
    assert_type(
        alto.total(time, start=timedelta(), emit="partial"), alto.Stream[alto.Pane[timedelta]]
    )
    assert_type(
        alto.total(claim, key=lambda one: Decimal(one.text), start=Decimal(0)),
        alto.Stream[Decimal],
    )
    alto.total(claim)  # type: ignore[type-var]
    alto.total(question)  # type: ignore[type-var]
    alto.total(claim, key=kind)  # type: ignore[type-var]


def ranked(
    question: alto.Stream[str], claim: alto.Stream[Claim], number: alto.Stream[int],
    index: alto.Stream[Index],
) -> None:  # fmt: skip
    assert_type(alto.top_k(number, 3), alto.Stream[list[int]])
    assert_type(alto.top_k(question, k=3, by=question), alto.Stream[list[str]])
    assert_type(alto.top_k(claim, 3, key=score), alto.Stream[list[Claim]])
    assert_type(alto.top_k(claim, 3, key=slow_score), alto.Stream[list[Claim]])
    assert_type(
        alto.top_k(claim, 3, key=lambda one: (one.score, one.text)), alto.Stream[list[Claim]]
    )
    assert_type(alto.top_k(number, 3, emit="partial"), alto.Stream[alto.Pane[list[int]]])
    assert_type(
        alto.top_k(claim, 1, key=score, emit="partial"), alto.Stream[alto.Pane[list[Claim]]]
    )
    alto.top_k(index, 3)  # type: ignore[type-var]


def reduced(claim: alto.Stream[Claim], number: alto.Stream[int]) -> None:
    assert_type(alto.reduce(number, add, 0.0), alto.Stream[float])
    assert_type(alto.reduce(number, lambda so_far, one: so_far + one, 0), alto.Stream[int])
    assert_type(alto.reduce(claim, append, list), alto.Stream[list[str]])
    assert_type(alto.reduce(claim, append, ["first"], order="arrival"), alto.Stream[list[str]])
    assert_type(alto.reduce(claim, slow_append, list), alto.Stream[list[str]])
    assert_type(alto.reduce(claim, slow_append, ["first"]), alto.Stream[list[str]])
    assert_type(alto.reduce(number, add, 0.0, emit="partial"), alto.Stream[alto.Pane[float]])
    assert_type(alto.reduce(claim, append, list, emit="partial"), alto.Stream[alto.Pane[list[str]]])
    assert_type(
        alto.reduce(claim, slow_append, list, emit="partial"), alto.Stream[alto.Pane[list[str]]]
    )
    assert_type(
        alto.reduce(claim, slow_append, [""], emit="partial"), alto.Stream[alto.Pane[list[str]]]
    )
    alto.reduce(claim, add, 0.0)  # type: ignore[arg-type]


def chosen(
    claim: alto.Stream[Claim], number: alto.Stream[int], mixed: alto.Stream[str | int],
    ratio: alto.Stream[float], raw: alto.Stream[bytes], question: alto.Stream[str],
) -> None:  # fmt: skip
    assert_type(alto.first(claim), alto.Stream[Claim])
    assert_type(alto.first(claim, 3, by=number, order="arrival"), alto.Stream[Claim])
    assert_type(alto.first(claim, n=3), alto.Stream[Claim])

    assert_type(alto.where(claim, lambda one: one.score > 0.5), alto.Stream[Claim])
    assert_type(alto.where(claim, is_short), alto.Stream[Claim])
    assert_type(alto.where(mixed, is_text), alto.Stream[str])
    alto.where(number, is_short)  # type: ignore[arg-type]

    long, short = alto.switch(claim, lambda one: len(one.text) > 9, True, False)
    assert_type(long, alto.Stream[Claim])
    assert_type(alto.merge(long, short), alto.Stream[Claim])
    assert_type(alto.merge(*alto.switch(claim, kind, "a", "b")), alto.Stream[Claim])
    _one, _rest = alto.switch(claim, is_short, True, otherwise=True)
    _a, _b, _c = alto.switch(claim, kind, "a", "b", "c")
    _a, _b, _c = alto.switch(claim, kind, "a", "b", otherwise=True)
    _a, _b, _c, _d = alto.switch(claim, kind, "a", "b", "c", otherwise=True)
    many = alto.switch(claim, kind, "a", "b", "c", "d", otherwise=True)
    assert_type(many, tuple[alto.Stream[Claim], ...])
    assert_type(alto.merge(*many), alto.Stream[Claim])
    _a, _b = alto.switch(claim, kind, "a", "b", "c")  # type: ignore[misc]

    assert_type(alto.merge(claim, number), alto.Stream[Claim | int])
    assert_type(alto.merge(claim, number, mixed), alto.Stream[Claim | int | str])
    assert_type(
        alto.merge(claim, number, mixed, claim, by=number, order="arrival"),
        alto.Stream[Claim | int | str],
    )
    assert_type(
        alto.merge(claim, number, mixed, ratio, raw, question, order="arrival"),
        alto.Stream[Claim | int | str | float | bytes],
    )
    assert_type(alto.merge(*[number] * 7), alto.Stream[int])
    assert_type(alto.outputs(one=number, two=number), alto.Stream[alto.Output[int]])
    alto.outputs(number)  # type: ignore[call-arg]
    alto.outputs(one=[1])  # type: ignore[arg-type]


@alto.pipeline
def whole(question: alto.Stream[str]) -> alto.Stream[list[Claim]]:
    return alto.top_k(claims(question), 2, key=lambda claim: claim.score)


@alto.pipeline
def several(question: alto.Stream[str]) -> alto.Stream[alto.Output[Claim | int]]:
    found = claims(question)
    return alto.outputs(claims=found, number=alto.count(found))


@alto.pipeline
def several_wrong(question: alto.Stream[str]) -> alto.Stream[alto.Output[Claim | str]]:
    found = claims(question)
    return alto.outputs(claims=found, number=alto.count(found))  # type: ignore[arg-type]


async def read_outputs(app: alto.App[str, alto.Output[Claim | int]]) -> None:
    async for output in app.stream("?"):
        assert_type(output.name, str)
        assert_type(output.value, Claim | int)
        match output:
            case alto.Output("claims", Claim() as claim):
                assert_type(claim, Claim)
            case _:
                pass


async def read(pane: alto.Pane[bool]) -> None:
    _wider: alto.Pane[int] = pane
    assert_type(pane.value, bool)
    assert_type(pane.revision, int)
    assert_type(pane.final, bool)
