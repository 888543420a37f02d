"""Annotations as strings: where their names are looked up, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

import alto
from alto import GraphError

if TYPE_CHECKING:
    from decimal import Decimal


@alto.stage
async def early(text: str) -> AsyncIterator[Later]:
    """Names a class that this module defines further down."""
    yield Later(text)


@alto.pipeline
def reads_later(text: alto.Stream[str]) -> alto.Stream[list[Later]]:
    """Calls a stage that this module defines further down."""
    return gathers(early(text))


@alto.stage
async def gathers(found: alto.Group[Later]) -> list[Later]:
    """A group of them."""
    return await found.list()


class Later(str):
    """Defined after its first use in an annotation."""

    __slots__ = ()


def test_names_defined_further_down_are_looked_up_at_the_first_use() -> None:
    """Nothing is wrong with a module that is written top-down."""
    declaration = reads_later.declaration
    assert declaration.output == list[Later]
    assert [node.stage.output for node in declaration.nodes] == [Later, list[Later]]
    assert reads_later.run_sync("x") == [["x"]]


def test_local_types_are_found() -> None:
    """A type that is local to the caller needs no closure to be found."""

    class Local:
        pass

    @alto.stage
    async def make(text: str) -> Local:
        return Local()

    @alto.stage
    async def take(it: Local, *, other: list[Local] | None = None) -> str:
        return "taken"

    @alto.pipeline
    def both(text: alto.Stream[str]) -> alto.Stream[str]:
        return take(make(text))

    assert both.declaration.nodes[0].stage.output is Local
    assert both.run_sync("x") == ["taken"]


def test_a_local_type_that_the_function_closes_over_is_found() -> None:
    """A closure is part of the scope even where the decoration happens elsewhere."""

    class Closed:
        pass

    async def make(text: str) -> Closed:
        return Closed()

    assert _decorated_elsewhere(make)._spec.resolve().output is Closed


def _decorated_elsewhere(fn):
    return alto.stage(fn)


def test_a_name_that_is_never_defined_is_named_at_the_first_use() -> None:
    """The message has stage, parameter, annotation and remedy."""

    @alto.stage
    async def add(number: Decimal) -> str:
        return str(number)

    @alto.pipeline
    def sums(number: alto.Stream[int]) -> alto.Stream[str]:
        return add(number)

    for use in (sums.check, sums.open, lambda: sums.run_sync(1), lambda: sums.declaration):
        with pytest.raises(GraphError, match="TYPE_CHECKING") as caught:
            use()
        assert type(caught.value) is GraphError
        assert "stage 'add': parameter 'number'" in str(caught.value)
        assert "'Decimal'" in str(caught.value)


def test_a_pipeline_with_an_unknown_name_is_reported_at_the_first_use() -> None:
    """A pipeline's own annotations are looked up like a stage's."""

    @alto.pipeline
    def sums(number: alto.Stream[Decimal]) -> alto.Stream[Decimal]:
        return number

    with pytest.raises(GraphError, match=r"pipeline 'sums': parameter 'number'.*Decimal"):
        sums.check()


def test_an_annotation_that_is_no_type_is_refused_at_once() -> None:
    """What no later definition can mend is not put off."""
    for annotation in ("list[", "int + str", "3", "[str]"):

        async def f(x: int) -> int:
            return x

        f.__annotations__["x"] = annotation
        with pytest.raises(GraphError, match=r"stage 'f': parameter 'x'.*is not a type.*correct"):
            alto.stage(f)


def test_an_undefined_name_in_the_body_is_put_off() -> None:
    """A pipeline function that calls a stage of the future raises Python's own error when used."""

    @alto.pipeline
    def ahead(text: alto.Stream[str]) -> alto.Stream[str]:
        return never_defined(text)  # noqa: F821

    with pytest.raises(NameError, match="never_defined"):
        ahead.check()


def test_an_unknown_name_does_not_hinder_bind() -> None:
    """Types that cannot be looked up yet are checked at open()."""

    @alto.stage
    async def add(number: int, *, to: Decimal) -> str:
        return f"{number}{to}"

    assert "bound: to" in repr(add.bind(to=3))
