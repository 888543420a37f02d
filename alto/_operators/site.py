"""Where an operator is called: what it can know of the streams that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs

from alto._graph.plan import call_levels, is_prefix
from alto._graph.trace import Tracer, reading
from alto.errors import GraphError
from alto.stream import Stream, Symbol

__all__ = ("Place", "Site")


@attrs.frozen(kw_only=True)
class Place:
    """A stream as an operator sees it."""

    type: object
    """Type of one item."""
    shown: str
    """The type as people write it."""
    label: str
    """Where it comes from, for messages: ``stage 'claims'``."""
    levels: tuple[int, ...]
    """The numbers of the nodes that opened its levels, outermost first."""
    said: str
    """The same in words: ``one per item of claims > queries``."""


@final
class Site:
    """One call of an operator in a pipeline function.

    Args:
        operator: The operator's name.

    Raises:
        GraphError: No pipeline is being read.
    """

    def __init__(self, operator: str, /) -> None:
        tracer = reading()
        if tracer is None:
            msg = (
                f"operator {operator!r} is called outside a pipeline; call it on streams in a "
                f"function decorated with @alto.pipeline"
            )
            raise GraphError(msg)
        self._tracer = tracer
        self._levels = _levels(tracer)
        self.where = f"{tracer.where}: operator {operator!r}"
        """The pipelines being read and the operator, for messages."""

    def place(self, value: object, role: str, /) -> Place:
        """Look at the argument *role*, which must be a stream of this reading.

        Raises:
            GraphError: It is none.
        """
        symbol = self._symbol(value, f"{self.where}: {role}")
        levels = self._levels[symbol.number]
        names = " > ".join(self._tracer.decls[owner].name for owner in levels)
        return Place(
            type=symbol.type,
            shown=symbol.shown,
            label=symbol.label,
            levels=levels,
            said=f"one per item of {names}" if names else "one per request",
        )

    def gathered(self, stream: object, by: object, /) -> Place:
        """Look at a stream whose items are to be gathered, by the argument ``by=`` if that is given.

        Raises:
            GraphError: There is nothing to gather, or nothing to gather by.
        """
        place = self.place(stream, "stream")
        if not place.levels:
            msg = (
                f"{self.where}: {place.label} has one item per request and nothing to gather; "
                f"use the stream as it is, or let a stage yield its items one by one"
            )
            raise GraphError(msg)
        self.check_by(by, [place])
        return place

    def check_by(self, by: object, gathered: Sequence[Place], /) -> None:
        """See that *gathered* can be gathered by the argument ``by=``; None: it was not given.

        Raises:
            GraphError: It is no stream, or no ancestor of all of them.
        """
        if by is None:
            return
        anchor = self.place(by, "by=")
        for place in gathered:
            if anchor.levels == place.levels:
                msg = (
                    f"{self.where}: by= has the same level as {place.label} ({place.said}), so "
                    f"each group would hold exactly one item; name a stream further up"
                )
                raise GraphError(msg)
            if not is_prefix(anchor.levels, place.levels):
                msg = (
                    f"{self.where}: by= ({anchor.said}) is no ancestor of {place.label} "
                    f"({place.said}); name a stream that it is made from"
                )
                raise GraphError(msg)

    def _symbol(self, value: object, what: str) -> Symbol:
        declared = hasattr(value, "fn") and hasattr(value, "name")  # A stage itself, for example.
        if not isinstance(value, Stream) and not declared:
            text = repr(value)
            shown = text if len(text) <= 60 else text[:57] + "..."
            msg = (
                f"{what} must be a Stream, not {type(value).__name__} ({shown}); pass what an "
                f"input, a stage or another operator gives"
            )
            raise GraphError(msg)
        return self._tracer.own(value, what)


def _levels(tracer: Tracer) -> list[tuple[int, ...]]:
    # Per stream that there is so far; see _graph/plan.py.
    levels: list[tuple[int, ...]] = [()] * len(tracer.root.inputs)
    try:
        for index, node in enumerate(tracer.decls):
            call = call_levels(node, levels, tracer.decls)
            levels.append((*call, index) if node.generator else call)
    except GraphError as error:
        raise tracer.named(error) from None
    return levels
