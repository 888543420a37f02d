"""One call of an operator: look at its streams, and make the stage that it stands for.

An operator knows its item types only when it is called, so no signature could say them. Each call
makes the record of a stage for the types at hand and calls it like any other stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import isasyncgenfunction
from typing import Any, final

from alto._graph.declaration import DEFAULT_CONCURRENCY
from alto._graph.plan import levels_in_words
from alto._graph.spec import GroupOrder, ParamSpec, StageSpec
from alto._graph.trace import call_stage, reading
from alto.errors import GraphError
from alto.stream import Stream, Symbol, symbol_of

__all__ = ("OperatorCall", "generic")


def generic(cls: Any, argument: object, /) -> Any:  # noqa: ANN401  # a class, a type that it makes
    """Return ``cls[argument]``, where the argument is known at run time only."""
    return cls[argument]


@final
class OperatorCall:
    """One call of an operator in a pipeline function.

    Args:
        name: The operator's name.

    Raises:
        GraphError: No pipeline is being read.
    """

    def __init__(self, name: str, /) -> None:
        tracer = reading()
        if tracer is None:
            msg = (
                f"operator {name!r} is called outside a pipeline; call it on streams in a "
                f"function decorated with @alto.pipeline"
            )
            raise GraphError(msg)
        self._tracer = tracer
        self._name = name
        self.where = f"{tracer.where}: operator {name!r}"
        """The pipelines being read and the operator, for messages."""

    def symbol(self, value: object, role: str, /) -> Symbol:
        """Return the symbol of the argument *role*, which must be a stream of this reading.

        Raises:
            GraphError: It is no such stream.
        """
        return self._tracer.own(
            value, f"{self.where}: {role}",
            remedy="pass what an input, a stage or another operator gives",
        )  # fmt: skip

    def gathered(self, stream: object, /) -> Symbol:
        """Return the symbol of a stream whose items are to be gathered.

        Raises:
            GraphError: There is nothing to gather.
        """
        symbol = self.symbol(stream, "stream")
        if not symbol.levels:
            msg = (
                f"{self.where}: {symbol.label} has one item per request and nothing to gather; "
                f"use the stream as it is, or let a stage yield its items one by one"
            )
            raise GraphError(msg)
        return symbol

    def in_words(self, symbol: Symbol, /) -> str:
        """Return the levels of a stream in words: ``one per item of claims > queries``."""
        return levels_in_words(symbol.levels, self._tracer.decls)

    def stage(  # noqa: PLR0913  # the options of a stage and of its call
        self,
        body: Callable[..., object],
        streams: Mapping[str, Stream[Any]],
        output: object,
        *,
        group: bool,
        by: object = None,
        order: GroupOrder = "ancestry",
        suffix: str = "",
    ) -> Stream[Any]:  # Any: the operator's own signature says.
        """Make a stage of *body* and call it in the pipeline that is being read.

        Args:
            body: An async function of as many positional parameters as there are streams, or of any
                number; its annotations do not matter.
            streams: The stream for each parameter.
            output: The type of one result.
            group: Whether the parameters are groups.
            by: The argument ``by=`` of the call.
            order: Order in which groups hand out their pieces.
            suffix: Text after the operator's name in the name of the stage.

        Raises:
            GraphError: The streams do not fit each other.
        """
        spec = StageSpec(
            name=self._name + suffix,
            fn=body,
            generator=isasyncgenfunction(body),
            params=tuple(
                ParamSpec(name, group=group, type=symbol_of(stream).type)
                for name, stream in streams.items()
            ),
            resources=(),
            output=output,
            concurrency=DEFAULT_CONCURRENCY,
            order=order,
        )
        return call_stage(lambda: spec, spec.name, {}, tuple(streams.values()), by, {})
