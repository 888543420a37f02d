"""Which types fit which: refused only where it is provably wrong, as a type checker would."""

# ruff: noqa: D101, D102, PYI030, PYI061, UP007, UP044, UP045  # types as data, in every spelling

import enum
from collections import Counter, OrderedDict, abc
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Never,
    NewType,
    Optional,
    Protocol,
    SupportsInt,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Union,
    Unpack,
)

import pytest

from alto._graph.types import fits, show

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
T_contra = TypeVar("T_contra", contravariant=True)
UserId = NewType("UserId", int)
AdminId = NewType("AdminId", UserId)


class Animal: ...


class Cat(Animal): ...


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Box(Generic[T]): ...


class StrBox(Box[str]): ...


class Pair(Box[T], Generic[T]): ...


class Lines(list[str]): ...


class Sink(Generic[T_contra]): ...


class Named(Protocol):
    name: str

    def greet(self) -> str: ...


class Greeter:
    name = "x"

    def greet(self) -> str:
        return self.name


class Sized2(Protocol):
    def __len__(self) -> int: ...


class Row(TypedDict):
    a: int


class Point(NamedTuple):
    x: int


FIT = [
    (str, str), (str, object), (str, Any), (Any, str), (T, str), (str, T), (Never, str),
    (Cat, Animal), (bool, int), (int, float), (bool, float), (int, complex), (float, complex),
    (None, None), (None, Optional[int]), (int, Optional[int]), (int, int | str),
    (int | str, str | int | None), (bool, float | None), (Union[Cat, Animal], Animal),
    (Literal["a"], str), (Literal["a"], Literal["b", "a"]), (bool, Literal[True, False]),
    (bool, Literal[True] | Literal[False]), (Colour, Literal[Colour.RED, Colour.BLUE]),
    (Literal["a"], Literal["a"] | None), (Literal[None], None), (None, Literal[None]),
    (UserId, int), (UserId, UserId), (AdminId, UserId), (AdminId, int), (Any, UserId),
    (Annotated[str, "x"], str), (str, Annotated[str, "x"]),
    (list[str], list[str]), (list[Cat], list[Animal]), (list, list[str]), (list[str], list),
    (list[Any], list[str]), (list[str], Sequence[str]), (list[str], Iterable[str]),
    (str, Sequence[str]), (str, Iterable[str]), (bytes, Sequence[int]), (range, Iterable[int]),
    (dict[str, int], Mapping[str, int]), (dict[str, int], Iterable[str]),
    (OrderedDict[str, int], dict[str, int]), (Counter[str], Mapping[str, int]),
    (tuple[int, str], tuple[int, str]), (tuple[int, int], tuple[int, ...]), (tuple, tuple[int]),
    (tuple[int, ...], tuple[int, int]), (tuple[int, str], Sequence[int | str]),
    (tuple[int, *tuple[str, ...]], tuple[int]), (tuple[int], tuple[int, Unpack[Ts]]),
    (tuple[()], Sequence[int]), (Point, tuple[int]),
    (Box[str], Box[str]), (StrBox, Box[str]), (StrBox, Box), (Pair[str], Box[str]),
    (Pair, Box[str]), (Lines, Sequence[str]), (Sink[Animal], Sink[Cat]),
    (AsyncGenerator[int, None], AsyncGenerator[int, str]), (Iterator[int], Iterable[int]),
    (Callable[[int], str], Callable[..., Any]), (Callable[[int], str], Callable[[str], int]),
    (Greeter, Named), (Animal, Named), (Lines, Sized2), (int, SupportsInt), (Named, Named),
    (Row, Row), (Row, Mapping[str, Any]), (dict[str, int], Row),
    (type[Cat], type[Animal]), (type, type[Animal]), (Path, Path), (T, UserId),
    (abc.ItemsView[str, int], Iterable[tuple[str, int]]),
]  # fmt: skip

MISFIT = [
    (int, str), (object, str), (Animal, Cat), (float, int), (complex, float), (str, None),
    (Optional[int], int), (int | str, int), (None, int), (int, str | None),
    (Literal["c"], Literal["a", "b"]), (Literal[1], Literal[True]), (str, Literal["a"]),
    (bool, Literal[True]), (Colour, Literal[Colour.RED]), (Literal["a"], int),
    (Literal["c"], Literal["a"] | int), (Literal["a", 1], str),
    (int, UserId), (UserId, AdminId), (UserId, str), (Literal[3], UserId),
    (Annotated[int, "x"], Annotated[str, "x"]),
    (list[str], list[int]), (list[str], str), (str, list[str]), (list[str], Sequence[int]),
    (list[list[str]], list[list[int]]), (list[str] | None, list[str]), (str, Iterable[int]),
    (dict[str, int], Mapping[str, str]), (dict[str, int], Iterable[int]), (bytes, Sequence[str]),
    (tuple[int, str], tuple[int, int]), (tuple[int], tuple[int, int]),
    (tuple[str, ...], tuple[int, ...]), (tuple[int, str], tuple[int, ...]),
    (tuple[int, str], Sequence[int]), (tuple[int, ...], tuple[str, str]),
    (Box[str], Box[int]), (StrBox, Box[int]), (Pair[str], Box[int]), (Lines, Sequence[int]),
    (AsyncGenerator[int, None], AsyncGenerator[str, None]), (Iterable[int], Iterator[int]),
    (str, Callable[..., Any]), (int, Named), (int, Sized2), (str, SupportsInt), (Animal, Sized2),
    (str, Row), (Row, str), (type[Animal], type[Cat]), (list[str], abc.Hashable), (str, Path),
]  # fmt: skip


@pytest.mark.parametrize(("given", "wanted"), FIT, ids=show)
def test_what_may_be_right_fits(given: object, wanted: object) -> None:
    """Subtypes fit, and so does what cannot be judged."""
    assert fits(given, wanted)


@pytest.mark.parametrize(("given", "wanted"), MISFIT, ids=show)
def test_what_is_provably_wrong_does_not_fit(given: object, wanted: object) -> None:
    """What a type checker would refuse for sure does not fit."""
    assert not fits(given, wanted)


def test_a_class_that_does_not_say_fits() -> None:
    """A metaclass that refuses to answer proves nothing."""

    class Meta(type):
        def __subclasscheck__(cls, other: type) -> bool:
            raise TypeError

    class Odd(metaclass=Meta): ...

    assert fits(int, Odd)


def test_an_alias_is_what_it_stands_for() -> None:
    """A ``type X = ...`` of Python 3.12 is looked through."""

    class TypeAliasType:
        __value__ = int

    assert fits(TypeAliasType(), int)
    assert not fits(str, TypeAliasType())


def test_a_class_with_getattr_may_have_any_method() -> None:
    """Proxies are not judged by their class."""

    class Proxy:
        def __getattr__(self, name: str) -> object:
            return name

    assert fits(Proxy, Named)
    assert fits(Proxy, Sized2)


@pytest.mark.parametrize(
    ("tp", "text"),
    [
        (str, "str"), (None, "None"), (type(None), "None"), (list[str], "list[str]"),
        (Optional[int], "int | None"), (int | list[str], "int | list[str]"), (Any, "Any"),
        (Literal["a", 1], "Literal['a', 1]"), (Annotated[int, "x"], "int"), (UserId, "UserId"),
        (T, "T"), (tuple[int, ...], "tuple[int, ...]"), (dict[str, Path], "dict[str, Path]"),
        (Callable[[int], str], "Callable[[int], str]"), (Box[str], "Box[str]"),
        ("a.B", "a.B"), (Never, "Never"), (abc.Sequence[int], "Sequence[int]"),
    ],
)  # fmt: skip
def test_types_are_shown_as_people_write_them(tp: object, text: str) -> None:
    """Messages have no module names in types."""
    assert show(tp) == text
