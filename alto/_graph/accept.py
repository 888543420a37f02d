"""Whether a value fits an annotation: refused only where it is provably wrong.

Only the outermost class is looked at: a ``list[str]`` may be any list.
"""

from __future__ import annotations

from typing import Literal, NewType, get_args, get_origin, is_typeddict

from alto._graph.fit import (
    CALLABLE,
    PROMOTED,
    class_of,
    is_protocol,
    is_union,
    plain,
    protocol_methods,
)
from alto.llm import LLM
from alto.protocols import Engine

__all__ = ("accepts",)


def accepts(value: object, wanted: object, /) -> bool:
    """Whether *value* may be given where *wanted* is annotated.

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
    except TypeError:  # A metaclass that does not say.
        return True


def _is_below(value: type, wanted: object) -> bool:
    if is_union(wanted):
        return any(_is_below(value, plain(one)) for one in get_args(wanted))
    cls = class_of(wanted)
    try:
        return cls is None or issubclass(value, cls)
    except TypeError:
        return True
