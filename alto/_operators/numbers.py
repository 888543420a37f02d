"""Which types can be added up or ranked: refused only where it is provably wrong."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import getattr_static
from numbers import Number
from typing import Any, Literal, NewType, Union, get_args, get_origin

from alto._graph.fit import class_of, fits, is_protocol, is_union, plain

__all__ = ("sum_of", "unaddable", "unordered")

NOT_ADDED: tuple[type, ...] = (str, bytes, bytearray, list, tuple, type(None))
"""Classes with a ``+`` of another meaning, or which nothing makes a number of."""

NOT_ORDERED: tuple[type, ...] = (dict, complex, type(None))
"""Classes whose ``<`` is there and always fails."""


def unaddable(tp: object, /) -> object | None:
    """The part of *tp* whose values provably cannot be added to a number; None: there is none."""
    return _first(tp, _is_unaddable)


def unordered(tp: object, /) -> object | None:
    """The part of *tp* whose values provably have no order; None: there is none."""
    return _first(tp, _is_unordered)


def sum_of(tp: object, start: object, /) -> Any:  # noqa: ANN401  # a type
    """The type of the sum of values of type *tp* and *start*, which is all there is without any."""
    summed, began = _widened(tp), _widened(type(start))
    if summed is Any or fits(began, summed):
        return summed
    return Union[summed, began]  # noqa: UP007  # built at run time


def _first(tp: object, holds: Any) -> object | None:  # noqa: ANN401  # one of the two below
    tp = plain(tp)
    if is_union(tp):
        found = (_first(one, holds) for one in get_args(tp))
        return next((one for one in found if one is not None), None)
    if get_origin(tp) is Literal:
        found = (_first(type(value), holds) for value in get_args(tp))
        return next((one for one in found if one is not None), None)
    if isinstance(tp, NewType):
        return None if _first(tp.__supertype__, holds) is None else tp
    cls = class_of(tp)
    return tp if cls is not None and not is_protocol(cls) and holds(cls) else None


def _is_unaddable(cls: type) -> bool:
    if cls is object or issubclass(cls, Number):
        return False
    return issubclass(cls, NOT_ADDED) or not (hasattr(cls, "__add__") or hasattr(cls, "__radd__"))


def _is_unordered(cls: type) -> bool:
    if issubclass(cls, NOT_ORDERED):
        return True
    plain_object = vars(object)  # Whose comparisons are there and always fail.
    return cls is not object and all(
        getattr_static(cls, name) is plain_object[name] for name in ("__lt__", "__gt__")
    )


def _widened(tp: object) -> Any:  # noqa: ANN401  # a type
    tp = plain(tp)
    if is_union(tp):
        return _union(get_args(tp))
    if get_origin(tp) is Literal:
        return _union(map(type, get_args(tp)))
    if isinstance(tp, NewType):
        return _widened(tp.__supertype__)
    if isinstance(tp, type):
        for kind in (int, float, complex):
            if issubclass(tp, kind):
                return kind
    return tp


def _union(types: Iterable[object]) -> Any:  # noqa: ANN401  # a type
    return Union[tuple(map(_widened, types))]  # noqa: UP007  # built at run time
