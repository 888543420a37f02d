"""Declared functions on their way to a record: form checked now, annotations as soon as possible.

A decorated function may be annotated with names that its module defines further down. What cannot
be looked up at the decoration is tried again at the first use, and reported there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Generic, TypeVar, final

from alto._graph.declaration import Shape, pipeline_shape, stage_shape
from alto._graph.names import Names, Unresolved
from alto._graph.options import StageOptions
from alto._graph.signature import PipelineSpec, pipeline_spec, stage_spec
from alto._graph.spec import StageSpec

__all__ = ("Source", "local_names", "pipeline_source", "stage_source")

S = TypeVar("S")


def local_names(frame: FrameType) -> Mapping[str, object]:
    """The local names of *frame*; none where it is a module's."""
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)


@final
class Source(Generic[S]):
    """A shape, and its record once its annotations mean something."""

    def __init__(
        self, shape: Shape, caller: Mapping[str, object], read: Callable[[Shape, Names], S], /
    ) -> None:
        self.shape = shape
        self._caller = caller
        self._read = read
        self._spec: S | None = None
        try:
            self.resolve()
        except Unresolved:
            return  # Tried again at the first use.

    def resolve(self) -> S:
        """The record.

        Raises:
            Unresolved: A name in an annotation is not defined (yet).
            GraphError: An annotation is wrong.
        """
        if self._spec is None:
            self._spec = self._read(self.shape, Names(self.shape.fn, self._caller))
            self._caller = {}
        return self._spec


def stage_source(
    fn: object,
    caller: Mapping[str, object],
    options: StageOptions,
) -> Source[StageSpec]:
    """A stage's function with its options.

    Raises:
        GraphError: No stage can be made of it.
    """
    read = partial(stage_spec, options=options)
    return Source(stage_shape(fn, options.name, options.where), caller, read)


def pipeline_source(
    fn: object, caller: Mapping[str, object], *, name: str | None
) -> Source[PipelineSpec]:
    """A pipeline's function.

    Raises:
        GraphError: No pipeline can be made of it.
    """
    return Source(pipeline_shape(fn, name), caller, pipeline_spec)
