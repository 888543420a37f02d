"""Types of declarations: show a type, compare two types, test a value against a type.

The rules are those of the type checkers where both types are known, and lenient where one is not
known: ``Any``, type variables, bare generics, what a Protocol's methods take. Type arguments are
compared covariantly, also where a checker would insist on equality.

Only the outermost class is looked at: a ``list[str]`` may be any list.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable
from enum import Enum
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Never,
    NewType,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    is_typeddict,
)

from alto.llm import LLM
from alto.protocols import Engine

__all__ = (
    "CALLABLE",
    "MAPPINGS",
    "ONE_ARGUMENT",
    "PROMOTED",
    "accepts",
    "arguments_as",
    "class_of",
    "fits",
    "is_protocol",
    "is_union",
    "is_unpacked",
    "missing_members",
    "plain",
    "protocol_methods",
    "show",
)


def show(tp: object, /) -> str:
    """Return *tp* as it is written in source: ``list[str] | None``, without module names."""
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


PROMOTED: dict[type, tuple[type, ...]] = {float: (int,), complex: (int, float)}
"""Classes that the type checkers accept for a class though they are no subclasses."""

ONE_ARGUMENT: tuple[type, ...] = (
    abc.AsyncIterable, abc.AsyncIterator, abc.Collection, abc.Container, abc.Iterable, abc.Iterator,
    abc.MutableSequence, abc.MutableSet, abc.Reversible, abc.Sequence, abc.Set,
)  # fmt: skip
"""Generics whose argument is the type of an element."""

MAPPINGS: tuple[type, ...] = (abc.Mapping, abc.MutableMapping, dict)

CALLABLE: object = abc.Callable
"""A class to Python, a special form to the checkers."""

ELEMENTS: dict[type, type] = {str: str, bytes: int, bytearray: int, range: int}
"""Types of the elements of classes without type arguments."""


def plain(tp: object, /) -> object:
    """Return *tp* without ``Annotated`` and aliases, which do not restrict its values."""
    while True:
        if get_origin(tp) is Annotated:
            tp = get_args(tp)[0]
        elif type(tp).__name__ == "TypeAliasType":  # Python 3.12: `type X = ...`.
            tp = getattr(tp, "__value__", Any)
        else:
            return NoneType if tp is None else tp


def is_union(tp: object, /) -> bool:
    """Return whether *tp* is ``A | B`` or ``Union[A, B]``."""
    origin = get_origin(tp)
    return origin is Union or origin is UnionType


def class_of(tp: object, /) -> type | None:
    """Return the class of *tp*'s values; None where there is no single class."""
    origin = get_origin(tp) or tp
    return origin if isinstance(origin, type) and origin is not Any else None


def is_protocol(cls: type, /) -> bool:
    """Return whether *cls* is a Protocol."""
    return bool(getattr(cls, "_is_protocol", False))


def fits(given: object, wanted: object, /) -> bool:
    """Return whether a value of type *given* may be passed where *wanted* is asked for.

    Returns:
        False only where it is provably wrong.
    """
    given, wanted = plain(given), plain(wanted)
    if wanted is object or given is Never or given is NoReturn:
        return True
    if is_union(given):
        return all(fits(one, wanted) for one in get_args(given))
    if get_origin(given) is Literal:
        return all(_value_fits(value, wanted) for value in get_args(given))
    if is_union(wanted):
        return any(fits(given, one) for one in get_args(wanted)) or _members_fit(given, wanted)
    if get_origin(wanted) is Literal:
        return class_of(given) is None or _members_fit(given, wanted)
    if isinstance(given, NewType):
        return given is wanted or fits(given.__supertype__, wanted)
    if isinstance(wanted, NewType):
        return class_of(given) is None
    given_class, wanted_class = class_of(given), class_of(wanted)
    if given_class is None or wanted_class is None:
        return True
    return _class_fits(given, given_class, wanted, wanted_class)


def _value_fits(value: object, wanted: object) -> bool:
    # One value of a Literal.
    if is_union(wanted):
        return any(_value_fits(value, plain(one)) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return any(type(one) is type(value) and one == value for one in get_args(wanted))
    return fits(type(value), wanted)


def _members_fit(given: object, wanted: object) -> bool:
    # bool and enums are the union of their values.
    if given is bool:
        return all(_value_fits(value, wanted) for value in (True, False))
    if given is NoneType:
        return _value_fits(None, wanted)
    if isinstance(given, type) and issubclass(given, Enum):
        return all(_value_fits(value, wanted) for value in given)
    return False


def _class_fits(given: object, given_class: type, wanted: object, wanted_class: type) -> bool:
    if is_protocol(wanted_class):
        return not missing_members(given_class, wanted_class)
    if is_typeddict(wanted_class):
        return is_typeddict(given_class) or given_class in MAPPINGS
    try:
        below = issubclass(given_class, wanted_class)
    except TypeError:  # Its metaclass does not support the test.
        return True
    if not below:
        return issubclass(given_class, PROMOTED.get(wanted_class, ()))
    return _arguments_fit(given, get_args(wanted), wanted_class)


def _arguments_fit(given: object, wanted: tuple[object, ...], cls: type) -> bool:
    if not wanted or cls is CALLABLE:
        return True
    if cls is tuple and class_of(given) is tuple:
        return _tuples_fit(get_args(given), wanted)
    have = arguments_as(given, cls)
    if have is None or len(have) != len(wanted):
        return True
    if cls in (abc.Generator, abc.AsyncGenerator, abc.Coroutine):
        have = have[:1]  # The others are contravariant or inputs.
    flipped = [getattr(p, "__contravariant__", False) for p in getattr(cls, "__parameters__", ())]
    flipped += [False] * len(wanted)
    return all(
        turned or fits(one, other)
        for one, other, turned in zip(have, wanted, flipped, strict=False)
    )


def _tuples_fit(given: tuple[object, ...], wanted: tuple[object, ...]) -> bool:
    if not given:
        return True
    if len(wanted) == 2 and wanted[1] is Ellipsis:
        return all(fits(one, wanted[0]) for one in given if one is not Ellipsis)
    if len(given) == 2 and given[1] is Ellipsis:
        return all(fits(given[0], one) for one in wanted)
    if any(map(is_unpacked, (*given, *wanted))):
        return True
    return len(given) == len(wanted) and all(map(fits, given, wanted))


def arguments_as(tp: object, cls: type, /) -> tuple[object, ...] | None:
    """Return the arguments of *cls* when *tp*, of a subclass, is seen as one; None: unknown."""
    own, args = class_of(tp), get_args(tp)
    assert own is not None
    if own is cls:
        return args or None
    if cls in ONE_ARGUMENT and own in ELEMENTS:
        return (ELEMENTS[own],)
    if own.__module__ in ("builtins", "collections", "collections.abc"):
        return _builtin_as(own, args, cls)
    known = dict(zip(getattr(own, "__parameters__", ()), args, strict=False))
    for base in vars(own).get("__orig_bases__", own.__bases__):
        base_class = class_of(base)
        if base_class is not None and issubclass(base_class, cls):
            filled = tuple(known.get(arg, Any) if _is_variable(arg) else arg
                           for arg in get_args(base))  # fmt: skip
            return arguments_as(base_class[filled] if filled else base, cls)  # type: ignore[index]
    return None


def _builtin_as(own: type, args: tuple[object, ...], cls: type) -> tuple[object, ...] | None:
    if own is tuple and args and cls in ONE_ARGUMENT:
        elements = tuple(arg for arg in args if arg is not Ellipsis)
        return (Union[elements],) if elements else None  # noqa: UP007  # built at run time
    if cls in ONE_ARGUMENT and args and own is not abc.ItemsView:
        return args[:1]
    if cls in MAPPINGS and len(args) == len(("key", "value")):
        return args
    return None


def is_unpacked(tp: object, /) -> bool:
    """Return whether *tp* is ``*Ts`` or ``*tuple[...]``."""
    return get_origin(tp) is Unpack or getattr(tp, "__unpacked__", False) is True


def _is_variable(tp: object) -> bool:
    return hasattr(tp, "__bound__")  # TypeVar, ParamSpec


def missing_members(cls: type, protocol: type, /) -> list[str]:
    """Return the methods of *protocol* that instances of *cls* provably do not have.

    An instance may get a method in ``__init__`` or through ``__getattr__``, so only what Python
    looks up on the class, and classes without a dictionary, prove anything.
    """
    if cls is protocol or is_protocol(cls) or hasattr(cls, "__getattr__"):
        return []
    closed = cls.__dictoffset__ == 0
    return [name for name in protocol_methods(protocol)
            if not hasattr(cls, name) and (closed or name.startswith("__"))]  # fmt: skip


def protocol_methods(protocol: type, /) -> list[str]:
    """Return the methods and properties that *protocol*, or a protocol it extends, declares."""
    return sorted(set(_methods(protocol.__mro__)))


def _methods(classes: Iterable[type]) -> Iterable[str]:
    of_any_class = {"__annotate__", "__annotate_func__", "__class_getitem__", "__init__",
                    "__init_subclass__", "__new__", "__subclasshook__"}  # fmt: skip
    for cls in classes:
        if is_protocol(cls) and cls is not Protocol:
            for name, value in vars(cls).items():
                is_method = callable(value) or isinstance(value, property)
                if is_method and name not in of_any_class:
                    yield name


def accepts(value: object, wanted: object, /) -> bool:
    """Return whether *value* may be passed where *wanted* is annotated.

    An engine fits where ``alto.LLM`` is asked for: the runtime wraps it.

    Returns:
        False only where it is provably wrong.
    """
    wanted = plain(wanted)
    if is_union(wanted):
        return any(accepts(value, one) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return any(type(one) is type(value) and one == value for one in get_args(wanted))
    if isinstance(wanted, NewType):
        return accepts(value, wanted.__supertype__)
    cls = class_of(wanted)
    if cls is None:
        return True
    if cls is CALLABLE:
        return callable(value)
    if is_typeddict(cls):
        return isinstance(value, dict)
    if is_protocol(cls):
        return all(hasattr(value, name) for name in protocol_methods(cls))
    if cls is type and get_args(wanted):
        return isinstance(value, type) and _is_below(value, plain(get_args(wanted)[0]))
    if cls is LLM and isinstance(value, Engine) and not isinstance(value, type):
        return True
    return _is_instance(value, cls)


def _is_instance(value: object, cls: type) -> bool:
    try:
        return isinstance(value, (cls, *PROMOTED.get(cls, ())))
    except TypeError:  # Its metaclass does not support the test.
        return True


def _is_below(value: type, wanted: object) -> bool:
    if is_union(wanted):
        return any(_is_below(value, plain(one)) for one in get_args(wanted))
    cls = class_of(wanted)
    try:
        return cls is None or issubclass(value, cls)
    except TypeError:
        return True
