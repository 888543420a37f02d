"""Stages: functions as parts of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper
from types import MappingProxyType
from typing import (
    Any,
    Generic,
    TypeVar,
    TypeVarTuple,
    cast,
    final,
    overload,
)

from alto._graph import check_resource
from alto._graph.names import Unresolved
from alto._graph.resources import refuse_unknown
from alto._graph.source import Source
from alto._graph.spec import StageSpec
from alto._graph.trace import call_stage
from alto.errors import ResourceError
from alto.stream import Stream

__all__ = ("Stage",)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ins = TypeVarTuple("Ins")
Rest = TypeVarTuple("Rest")


@final
class Stage(Generic[*Ins, R_co]):
    """An async function as a part of pipelines; made by :data:`alto.stage`.

    ``Stage[str, Passage]`` takes a stream of ``str`` and gives a stream of ``Passage``; with more
    stream parameters their types stand before the last one: ``Stage[str, Passage, Verdict]``.

    Calling it in a pipeline function, on one stream for each positional parameter, gives the stream
    of its results. ``by=`` names the stream whose items the groups are gathered by, where that is
    not the direct parent.

    Raises:
        GraphError: From a call: outside a pipeline, or on streams that do not fit; the message
            names stage, parameter and remedy.
    """

    def __init__(self, source: Source[StageSpec], bound: Mapping[str, object], /) -> None:
        self._source = source
        self._bound = MappingProxyType(dict(bound))
        update_wrapper(cast("Callable[..., object]", self), source.shape.fn)  # see the overloads

    def __repr__(self) -> str:
        shape = self._source.shape
        bound = f", bound: {', '.join(self._bound)}" if self._bound else ""
        return f"<Stage {shape.name!r} {shape}{bound}>"

    @property
    def name(self) -> str:
        """Its name in messages and statistics: the function's, unless ``@stage(name=...)``."""
        return self._source.shape.name

    @property
    def fn(self) -> Callable[..., Any]:
        """The plain function, for unit tests: ``await search.fn("a query", index=fake)``."""
        return self._source.shape.fn  # Any: its parameters are not kept in the stage's type.

    def bind(self, /, **resources: object) -> Stage[*Ins, R_co]:
        """The same stage with resources fixed, which ``open()`` then does not give.

        Raises:
            ResourceError: It has no such resource, has it bound already, or the value is provably
                of a wrong type.
        """
        names = [parameter.name for parameter in self._source.shape.resources]
        for name in resources:
            if name not in names:
                refuse_unknown(name, names, f"stage {self.name!r}")
            if name in self._bound:
                msg = (
                    f"stage {self.name!r}: resource {name!r} is bound already; "
                    f"bind it once, on the stage as it was declared"
                )
                raise ResourceError(msg)
        try:
            specs = self._source.resolve().resources
        except Unresolved:
            specs = ()  # The types are checked when the pipeline is opened.
        for spec in specs:
            if spec.name in resources:
                check_resource(self.name, spec, resources[spec.name])
        return Stage(self._source, {**self._bound, **resources})

    @overload
    def __call__(
        self: Stage[A, R], a: Stream[A], /, *, by: Stream[object] | None = None
    ) -> Stream[R]: ...
    @overload
    def __call__(
        self: Stage[A, B, R], a: Stream[A], b: Stream[B], /, *, by: Stream[object] | None = None
    ) -> Stream[R]: ...
    @overload
    def __call__(
        self: Stage[A, B, C, R], a: Stream[A], b: Stream[B], c: Stream[C], /, *,
        by: Stream[object] | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def __call__(
        self: Stage[A, B, C, D, R], a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D], /, *,
        by: Stream[object] | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def __call__(
        self: Stage[A, B, C, D, E, R], a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D],
        e: Stream[E], /, *, by: Stream[object] | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def __call__(
        self: Stage[A, B, C, D, E, F, R], a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D],
        e: Stream[E], f: Stream[F], /, *, by: Stream[object] | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def __call__(
        self: Stage[A, B, C, D, E, F, G, *Rest, R],
        a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D], e: Stream[E], f: Stream[F],
        g: Stream[G], /, *more: Stream[object], by: Stream[object] | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    def __call__(
        self, /, *streams: object, by: object = None, **keywords: object
    ) -> Stream[Any]:  # Any: see the overloads.
        """Use it in the pipeline that is being read; see the class."""
        return call_stage(self._source.resolve, self.name, self._bound, streams, by, keywords)
