"""Which values fit an annotation: only the outermost class is looked at."""

# ruff: noqa: D101, D102  # types as data

import enum
from collections import abc
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, Protocol, TypedDict, TypeVar

import attrs
import pytest

import alto
from alto._graph.types import accepts
from alto.model import Chunk, EngineStatistics, GenerateRequest

UserId = NewType("UserId", int)
T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1


@attrs.frozen
class Passage:
    text: str


class Retriever(Protocol):
    def search(self, query: str) -> list[str]: ...


class BM25:
    def search(self, query: str) -> list[str]:
        return [query]


class Row(TypedDict):
    a: int


class FakeEngine:
    """Has what the Engine protocol asks for."""

    name = "fake"

    async def start(self) -> None: ...

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        yield Chunk(text="")

    def statistics(self) -> EngineStatistics:
        return EngineStatistics()

    def check_health(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a", str), (True, int), (3, float), (True, float), (3, complex), (None, None),
        (3, object), (3, Any), (3, T), ([3], list[str]), ((1, 2), Sequence[str]),
        ({}, Mapping[str, int]), (3, int | str), (None, int | None), (3, UserId),
        (3, Annotated[int, "x"]), ("a", Literal["a", "b"]), (Passage("x"), Passage),
        (BM25(), Retriever), (len, Callable[[str], int]), ({"a": 1}, Row), (int, type[int]),
        (bool, type[int]), (bool, type[int | str]), (int, type[Any]), (Colour.RED, Colour),
        (Colour.RED, Literal[Colour.RED]), (FakeEngine(), alto.LLM), (FakeEngine(), alto.Engine),
        (FakeEngine(), alto.LLM | None), (alto.LLM(FakeEngine()), alto.LLM),
        ((x for x in ()), abc.Iterator[int]),
    ],
)  # fmt: skip
def test_what_may_be_right_is_accepted(value: object, wanted: object) -> None:
    """Instances, promotions, protocols and engines for LLMs are accepted."""
    assert accepts(value, wanted)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("a", int), (3, str), (3.0, int), (None, int), (3, None), ("a", int | None),
        ("a", list[str]), ([], Mapping[str, int]), ("a", UserId), (b"", str), (1, Literal[True]),
        ("c", Literal["a", "b"]), (Passage, Passage), (object(), Retriever), (3, Callable[..., Any]),
        ([], Row), (str, type[int]), (3, type[int]), (object(), alto.LLM), (object(), alto.Engine),
        (alto.LLM, alto.LLM),
    ],
)  # fmt: skip
def test_what_is_provably_wrong_is_not(value: object, wanted: object) -> None:
    """A value of another class is refused."""
    assert not accepts(value, wanted)


def test_a_class_that_does_not_say_accepts() -> None:
    """A metaclass that refuses to answer proves nothing."""

    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            raise TypeError

        def __subclasscheck__(cls, other: type) -> bool:
            raise TypeError

    class Odd(metaclass=Meta): ...

    assert accepts(3, Odd)
    assert accepts(int, type[Odd])
