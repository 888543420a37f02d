"""Types as people write them, for messages."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Literal, NewType, TypeVar, Union, get_args, get_origin

__all__ = ("show",)


def show(tp: object, /) -> str:
    """*tp* as it would stand in source: ``list[str] | None``, without module names."""
    if isinstance(tp, str):
        return tp
    if tp is None or tp is NoneType:
        return "None"
    if tp is Ellipsis:
        return "..."
    if isinstance(tp, list):  # The parameters of a Callable.
        return f"[{', '.join(map(show, tp))}]"
    if isinstance(tp, NewType | TypeVar):
        return tp.__name__
    origin, args = get_origin(tp), get_args(tp)
    if origin is Annotated:
        return show(args[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is Union or origin is UnionType:
        return " | ".join(map(show, args))
    if origin is not None and args:
        return f"{_name(origin)}[{', '.join(map(show, args))}]"
    return _name(tp)


def _name(tp: object) -> str:
    if isinstance(tp, type):
        return tp.__qualname__.removeprefix("builtins.").rpartition("<locals>.")[2]
    return repr(tp).removeprefix("typing.")
