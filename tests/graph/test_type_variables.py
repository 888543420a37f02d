"""Generic stages: what their type variables stand for at a call, and what a call may not be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, AnyStr, Generic, Literal, NewType, TypeVar, TypeVarTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto import GraphError
from alto._graph.type_variables import TypeVariables
from alto._graph.types import fits, show

T = TypeVar("T")
K = TypeVar("K")
Ts = TypeVarTuple("Ts")
N = TypeVar("N", bound=float)
Id = NewType("Id", list[int])


class Box(Generic[T]):
    """A generic class."""


class Words(Box[str]):
    """A subclass that is not generic."""


class Bag(list[T], Generic[T]):
    """A subclass that is generic itself."""


@pytest.mark.parametrize(
    ("pairs", "output", "filled"),
    [
        ([(T, str)], T, "str"),
        ([(T, list[int])], tuple[T, int], "tuple[list[int], int]"),
        ([(list[T], list[int])], T, "int"),
        ([(Sequence[T], list[int])], T, "int"),
        ([(Iterable[T], str)], T, "str"),
        ([(Iterable[T], Bag[int])], T, "int"),
        ([(Box[T], Words)], list[T], "list[str]"),
        ([(Mapping[K, T], dict[str, int])], tuple[T, K], "tuple[int, str]"),
        ([(tuple[T, int], tuple[str, int])], T, "str"),
        ([(tuple[T, ...], tuple[str, int])], T, "str | int"),
        ([(tuple[T, K], tuple[str, ...])], tuple[T, K], "tuple[str, str]"),
        ([(tuple[T, *Ts], tuple[str, int])], T, "Any"),
        ([(Iterable[T], tuple[str, int])], T, "str | int"),
        ([(T | None, str | None)], T, "str"),
        ([(T | None, None)], T, "Any"),
        ([(T | None, Any)], T, "Any"),
        ([(list[T] | T, list[int])], T, "int"),
        ([(list[T] | T, list[int] | str)], T, "int | str"),
        ([(list[T], list[int] | list[str])], T, "int | str"),
        ([(Callable[[T], K], Callable[[int], str])], tuple[T, K], "tuple[Any, str]"),
        ([(Awaitable[T], Awaitable[int])], T, "int"),
        ([(Annotated[T, "x"], Annotated[int, "y"])], Annotated[list[T], "z"], "list[int]"),
        ([(T, Literal["a"])], T, "Literal['a']"),
        ([(list[T], Id)], T, "int"),
        ([(list[T], Any)], T, "Any"),
        ([(list[T], list)], T, "Any"),
        ([(T, str), (T, int)], T, "str | int"),
        ([(T, str), (list[T], list[int])], T, "str | int"),
        ([(T, str), (list[T], list[Any])], T, "str | Any"),
        ([(T, str), (T, str)], T | None, "str | None"),
        ([(int, int)], T, "Any"),
        ([(T, int)], Box, "Box"),
        ([(T, int)], Callable[[K], T], "Callable[[Any], int]"),
        ([(T, int)], tuple[T, *Ts], "tuple[int, *tuple[Any, ...]]"),
        ([(AnyStr, str)], AnyStr, "str"),
        ([(AnyStr, Literal["a"])], AnyStr, "str"),
        ([(AnyStr, Any)], AnyStr, "Any"),
        ([(N, bool)], N, "bool"),
        ([(N, Any)], N, "Any"),
    ],
)
def test_what_a_variable_stands_for(
    pairs: list[tuple[object, object]], output: object, filled: str
) -> None:
    """It is what the streams give in its place; what they do not say is Any."""
    variables = TypeVariables()
    for wanted, found in pairs:
        assert fits(found, wanted)
        assert variables.bind(found, wanted) is None
    assert (
        show(variables.fill(output)).replace("Unpack[tuple[Any, ...]]", "*tuple[Any, ...]")
        == filled
    )


@pytest.mark.parametrize(
    ("pairs", "refused"),
    [
        ([(N, str)], "N is bound to float, which str is not"),
        ([(list[N], list[str])], "N is bound to float, which str is not"),
        ([(N, int), (N, str | int)], "N is bound to float, which str | int is not"),
        ([(AnyStr, int)], "AnyStr is bytes or str, not int"),
        ([(AnyStr, str), (AnyStr, bytes)], "AnyStr is bytes or str, not str and bytes"),
    ],
)
def test_a_bound_or_a_constraint_refuses(pairs: list[tuple[object, object]], refused: str) -> None:
    """The last pair is the one that cannot be."""
    variables = TypeVariables()
    for wanted, found in pairs[:-1]:
        assert variables.bind(found, wanted) is None
    assert variables.bind(*reversed(pairs[-1])) == refused


leaves = st.sampled_from((int, str, bool, float, None, Any, object, Literal["a"], Id))
types = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda tp: list[tp]),  # type: ignore[valid-type]
        st.tuples(inner, inner).map(lambda pair: tuple[pair]),  # type: ignore[valid-type]
        st.tuples(inner, inner).map(lambda pair: dict[pair[0], pair[1]]),  # type: ignore[name-defined]
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1] if pair[0] else pair[1]),
    ),
    max_leaves=6,
)  # fmt: skip
wrappers = st.sampled_from((
    lambda tp: tp,
    lambda tp: list[tp],
    lambda tp: tuple[tp, int],
    lambda tp: tuple[int, tp, tp],
    lambda tp: dict[str, list[tp]],
    lambda tp: Annotated[tp, "note"],
))  # fmt: skip


@given(types, wrappers)
def test_what_was_put_in_is_found(tp: object, wrap: Callable[[object], object]) -> None:
    """Filling a type's hole and comparing the two gives what the hole was filled with."""
    variables = TypeVariables()
    assert variables.bind(wrap(tp), wrap(T)) is None
    assert variables.fill(T) == (type(None) if tp is None else tp)


@given(types, types, wrappers)
def test_what_was_given_fits_what_is_found(
    one: object, other: object, wrap: Callable[[object], object]
) -> None:
    """Whatever several parameters get, it fits the parameters' types once they are filled."""
    variables = TypeVariables()
    assert variables.bind(wrap(one), wrap(T)) is None
    assert variables.bind(other, T) is None
    assert fits(wrap(one), variables.fill(wrap(T)))
    assert fits(other, variables.fill(T))


@alto.stage
async def words(text: str) -> AsyncIterator[str]:
    """Many from one."""
    for word in text.split():
        yield word


@alto.stage
async def doubled(number: int) -> int:
    """Two times."""
    return 2 * number


@alto.stage
async def distinct(items: alto.Group[T]) -> AsyncIterator[T]:
    """Each item once."""
    seen = set[T]()
    async for item in items:
        if item not in seen:
            seen.add(item)
            yield item


@alto.stage
async def either(one: alto.Group[T], other: alto.Group[T]) -> AsyncIterator[T]:
    """The items of both."""
    for group in (one, other):
        async for item in group:
            yield item


@alto.stage
async def largest(items: alto.Group[N]) -> N:
    """The largest."""
    return max(await items.list())


def refused(fn: Callable[..., Any]) -> str:
    """Expect that no pipeline can be made of *fn*, and give the message."""
    with pytest.raises(GraphError) as caught:
        alto.pipeline(fn)
    return str(caught.value)


def test_a_wrong_edge_after_a_generic_stage_is_refused() -> None:
    """Its stream has the items of the stream that it was called on."""

    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        stream: Any = distinct(words(text))
        return doubled(stream)

    assert refused(p) == (
        "pipeline 'p': stage 'doubled': parameter 'number' takes int, but stage 'distinct' gives "
        "str; correct an annotation, or put a stage in between"
    )


def test_a_stream_outside_a_bound_is_refused() -> None:
    """The message names stage, parameter, both types and the bound."""

    def p(text: alto.Stream[str]) -> alto.Stream[float]:
        stream: Any = words(text)
        return largest(stream)

    assert refused(p) == (
        "pipeline 'p': stage 'largest': parameter 'items' takes Group[N], but stage 'words' gives "
        "str, and N is bound to float, which str is not; correct an annotation, or put a stage in "
        "between"
    )


def test_a_generic_stage_runs() -> None:
    """Each call has a type of its own."""

    @alto.stage
    async def length(word: str) -> int:
        return len(word)

    lengths: Any = length  # mypy: a stage's own variables cannot be solved.

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        calls: Any = distinct
        unique = calls(words(text))
        return calls(lengths(unique), by=text)

    assert p.run_sync("a bc a de f") == [1, 2]


def test_two_streams_of_different_items_make_a_union() -> None:
    """So the next stage must take both."""

    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        calls: Any = either
        return doubled(calls(words(text), calls(words(text), words(text))))

    def q(text: alto.Stream[str], n: alto.Stream[int]) -> alto.Stream[int]:
        calls: Any = either
        return doubled(calls(words(text), alto.merge(n, n), by=None))

    assert "gives str;" in refused(p)
    assert "gives str | int;" in refused(q)


def test_a_generic_pipeline_is_solved_where_it_is_called() -> None:
    """Its result has the items of the stream that it was called on."""

    @alto.pipeline
    def unique(items: alto.Stream[T]) -> alto.Stream[list[T]]:
        return alto.collect(alto.merge(items, items))

    def p(text: alto.Stream[str]) -> alto.Stream[list[int]]:
        calls: Any = unique
        return calls(text)  # type: ignore[no-any-return]

    assert "returns pipeline 'unique', a Stream[list[str]]" in refused(p)
