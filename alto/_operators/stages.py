"""Stages made by operators: for the item types at hand, which no signature could say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from types import FunctionType
from typing import Any

from alto._graph.spec import GroupOrder
from alto.stage import StageDecorator
from alto.stream import Group, Stream

__all__ = ("call", "generic")


def generic(cls: Any, argument: object, /) -> Any:  # noqa: ANN401  # a class, a type that it makes
    """``cls[argument]``, where the argument is known at run time only."""
    return cls[argument]


def call(  # noqa: PLR0913  # what a decorated function and its call say together
    body: Callable[..., object],
    streams: Mapping[str, tuple[object, object]],
    gives: object,
    *,
    name: str,
    group: bool,
    by: object = None,
    order: GroupOrder = "ancestry",
) -> Stream[Any]:  # Any: the operator's own signature says.
    """Make a stage of *body* and call it in the pipeline that is being read.

    Args:
        body: An async function of as many positional parameters as there are streams, or of any
            number; its annotations do not matter. It becomes the stage's own, so make a new one
            for each call.
        streams: Per parameter the stream, and the type of its items.
        gives: What the function is to be annotated to return.
        name: The operator's name.
        group: Whether the parameters are groups.
        by: As for a stage.
        order: As for a stage.

    Raises:
        GraphError: The streams do not fit each other.
    """
    assert isinstance(body, FunctionType)
    body.__dict__["__signature__"] = Signature(
        [
            Parameter(
                parameter,
                Parameter.POSITIONAL_ONLY,
                annotation=generic(Group, tp) if group else tp,
            )
            for parameter, (_, tp) in streams.items()
        ],
        return_annotation=gives,
    )
    made: Any = StageDecorator(name=name, order=order)(body)  # Any: of any number of streams.
    stream: Stream[Any] = made(*(stream for stream, _ in streams.values()), by=by)
    return stream
