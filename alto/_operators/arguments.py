"""Arguments of operators, checked where the operator is called."""

from __future__ import annotations

import functools
import inspect
from collections import abc
from collections.abc import Callable, Iterable, Sequence
from inspect import getattr_static
from numbers import Number
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import attrs

from alto._graph.types import class_of, fits, is_protocol, is_union, plain, show
from alto._safe_text import short
from alto._validate import is_whole
from alto.errors import GraphError
from alto.stream import Stream, Symbol

__all__ = (
    "Function",
    "check_choice",
    "check_function",
    "check_takes",
    "check_whole",
    "function_of",
    "sum_of",
    "unaddable",
    "unordered",
)

NOT_ADDED: tuple[type, ...] = (str, bytes, bytearray, list, tuple, type(None))
"""Classes whose ``+`` does not add numbers, or that have none."""

NOT_ORDERED: tuple[type, ...] = (dict, complex, type(None))
"""Classes whose ``<`` is defined and always fails."""


def unaddable(tp: object, /) -> object | None:
    """Return the part of *tp* whose values provably cannot be added to a number, if any."""
    return _first(tp, _is_unaddable)


def unordered(tp: object, /) -> object | None:
    """Return the part of *tp* whose values provably have no order, if any."""
    return _first(tp, _is_unordered)


def sum_of(tp: object, start: object, /) -> Any:  # noqa: ANN401  # a type
    """Return the type of a sum of *start* and any number of values of type *tp*."""
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
    plain_object = vars(object)  # Its comparisons are defined and always fail.
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


@attrs.frozen(kw_only=True)
class Function:
    """The types in the annotations of a function that an operator is given."""

    takes: tuple[object, ...]
    """Types of its arguments, as annotated; Any where they are not."""
    gives: object
    """Type of its result, awaited; Any where that is not annotated."""
    narrows: object | None
    """The X of a predicate that is annotated ``-> TypeGuard[X]`` or ``TypeIs[X]``."""


def check_whole(value: object, where: str, name: str) -> None:
    """Check that an argument is a whole number from 1.

    Raises:
        GraphError: It is not.
    """
    if not is_whole(value, 1):
        msg = f"{where}: {name} must be a whole number >= 1, not {short(value)}"
        raise GraphError(msg)


def check_choice(value: object, where: str, name: str, choices: Sequence[str]) -> None:
    """Check that an argument is one of *choices*.

    Raises:
        GraphError: It is not.
    """
    if value not in choices:
        msg = f"{where}: {name} must be {' or '.join(map(repr, choices))}, not {short(value)}"
        raise GraphError(msg)


def check_function(fn: object, where: str, arguments: int) -> None:
    """Check that *fn* is a function, sync or async, from that many arguments to one result.

    Raises:
        GraphError: It is not.
    """
    wanted = f"a function (or async function) of {_counted(arguments)}"
    if isinstance(fn, Stream) or not callable(fn):
        msg = f"{where} must be {wanted}, not {type(fn).__name__} ({short(fn)})"
        raise GraphError(msg)
    if hasattr(fn, "fn") and hasattr(fn, "name"):
        msg = (
            f"{where} must be {wanted}, not {fn!r}; call that on the stream beforehand, or pass "
            f"its plain function, {fn.name}.fn, where it needs no resources"
        )
        raise GraphError(msg)
    code = _written(fn)
    if inspect.isasyncgenfunction(code) or inspect.isgeneratorfunction(code):
        msg = (
            f"{where} must be {wanted}, not a generator function: it gives one result for each "
            f"call; `return` it instead of yielding"
        )
        raise GraphError(msg)
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # A builtin without a signature.
        return
    try:
        signature.bind(*range(arguments))
    except TypeError:
        msg = f"{where} must be {wanted}, but {_name(fn)} is declared {_name(fn)}{signature}"
        raise GraphError(msg) from None


def function_of(fn: Callable[..., Any], arguments: int) -> Function:
    """Read the annotations of a function; those that cannot be looked up are Any."""
    if isinstance(fn, type):
        return Function(takes=(Any,) * arguments, gives=fn, narrows=None)
    try:
        hints = get_type_hints(_written(fn))
        bound = inspect.signature(fn).bind(*range(arguments)).arguments
    except Exception:  # noqa: BLE001  # names that are not defined yet, builtins: nothing is known
        return Function(takes=(Any,) * arguments, gives=Any, narrows=None)
    takes = [Any] * arguments
    for name, number in bound.items():
        if isinstance(number, int):
            takes[number] = hints.get(name, Any)
    gives = hints.get("return", Any)
    if class_of(gives) in (abc.Awaitable, abc.Coroutine):
        gives = get_args(gives)[-1] if get_args(gives) else Any
    narrows = None
    if getattr(get_origin(gives), "_name", None) in ("TypeGuard", "TypeIs"):
        (narrows,) = get_args(gives)
        gives = bool
    return Function(takes=tuple(takes), gives=gives, narrows=narrows)


def check_takes(wanted: object, symbol: Symbol, where: str) -> None:
    """Check that the items of a stream may be passed to a parameter of type *wanted*.

    Raises:
        GraphError: They provably do not fit.
    """
    if not fits(symbol.type, wanted):
        msg = (
            f"{where} takes {show(plain(wanted))}, but {symbol.label} gives {symbol.shown}; correct "
            f"an annotation, or put a stage in between"
        )
        raise GraphError(msg)


def _written(fn: object) -> object:
    # The function in the source: inside a partial, or the __call__ of an object.
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.isfunction(fn) or inspect.ismethod(fn) or isinstance(fn, type):
        return fn
    return getattr(type(fn), "__call__", fn)  # noqa: B004  # the method, not whether there is one


def _counted(arguments: int) -> str:
    return "1 argument" if arguments == 1 else f"{arguments} arguments"


def _name(fn: object) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
