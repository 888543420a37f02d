"""Stages: the ``@stage`` decorator, and the stages that it makes of async functions.

Most of this module is overloads. Neither mypy nor pyright can map a list of parameter types, such
as ``[Group[A], B]``, to the item types ``[A, B]``, so each combination of ``T`` and ``Group[T]`` is
written out, for up to six parameters. The code itself is short.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Callable, Coroutine, Mapping
from functools import update_wrapper
from types import MappingProxyType
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    cast,
    final,
    overload,
)

import attrs

from alto._graph import check_resource
from alto._graph.declaration import stage_options
from alto._graph.resources import refuse_unknown
from alto._graph.signature import LazySpec, Unresolved, lazy_stage_spec, local_names
from alto._graph.spec import GroupOrder, RunsIn, StageSpec
from alto._graph.trace import call_stage
from alto._runtime.executors import Loop, Process, Thread
from alto.errors import GraphError, ResourceError
from alto.protocols import Executor, Router
from alto.stream import Group, Stream

__all__ = ("AnyStageDecorator", "PlainStageDecorator", "Stage", "StageDecorator", "stage")

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

    def __init__(self, spec: LazySpec[StageSpec], bound: Mapping[str, object], /) -> None:
        self._spec = spec
        self._bound = MappingProxyType(dict(bound))
        update_wrapper(cast("Callable[..., object]", self), spec.shape.fn)  # see the overloads

    def __repr__(self) -> str:
        shape = self._spec.shape
        bound = f", bound: {', '.join(self._bound)}" if self._bound else ""
        return f"<Stage {shape.name!r} {shape}{bound}>"

    @property
    def name(self) -> str:
        """Its name in messages and statistics: the function's, unless ``@stage(name=...)``."""
        return self._spec.shape.name

    @property
    def fn(self) -> Callable[..., Any]:
        """The plain function, for unit tests: ``await search.fn("a query", index=fake)``."""
        return self._spec.shape.fn  # Any: its parameters are not kept in the stage's type.

    def bind(self, /, **resources: object) -> Stage[*Ins, R_co]:
        """Return the same stage with resources fixed, which ``open()`` then does not take.

        Raises:
            ResourceError: It has no such resource, has it bound already, or the value is provably
                of a wrong type.
        """
        names = [parameter.name for parameter in self._spec.shape.resources]
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
            specs = self._spec.resolve().resources
        except Unresolved:
            specs = ()  # The types are checked when the pipeline is opened.
        for spec in specs:
            if spec.name in resources:
                check_resource(self.name, spec, resources[spec.name])
        return Stage(self._spec, {**self._bound, **resources})

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
        """Add a call of the stage to the pipeline that is being read, and return its results."""
        return call_stage(self._spec.resolve, self.name, self._bound, streams, by, keywords)


P = ParamSpec("P")

_AsyncFunction: TypeAlias = Callable[P, Coroutine[Any, Any, R] | AsyncIterable[R]]
"""The first two types of a coroutine, Any here, concern only the event loop that runs it."""


@final
class StageDecorator:
    """Makes a stage of an async function, whose signature is the whole declaration.

    * **Positional parameters are streams.** ``x: T``: one call per item. ``xs: Group[T]``: one call
      per parent, with all that descends from it. With several, one call per item of the deepest
      stream; shallower ones are repeated for what descends from them. Up to six are typed.
    * **Keyword-only parameters are resources**, given once in ``open()`` or with ``Stage.bind``.
    * ``async def`` with ``-> R`` gives exactly one result per call; an async generator with
      ``-> AsyncIterator[R]`` gives any number, each leaving when it is yielded.

    Used bare, ``@alto.stage``, or with options::

        @alto.stage(concurrency=4)
        async def search(query: str, *, index: Index) -> list[Passage]: ...

    The annotations are looked up at once; where they name something defined further down, at the
    first use.

    A blocking or computing function is written as a plain ``def`` that takes items and returns one
    result, with ``runs_in="thread"`` or ``"process"``. It is run in a worker thread, or in a process
    that lives as long as the replica and has resources of its own: those given are pickled to it,
    those of :func:`alto.per_replica` are made there. A process that dies is replaced, and the call
    that it ran is run once more; a second death fails the request with :class:`alto.errors.WorkerDied` as
    the cause. Nothing can interrupt such a function, but a call that is cancelled returns at once:
    its thread is abandoned until the function returns, its process is killed and replaced. An
    executor of your own, see :class:`alto.protocols.Executor`, runs functions of any kind, anywhere.

    Args:
        concurrency: Most calls that run at once in each replica, over all requests; by default 32,
            and 1 where ``runs_in="process"``, which cannot run more. Calls that wait inside alto do
            not count.
        order: ``"ancestry"``: groups hand out their pieces as a sequential program would make
            them; ``"arrival"``: as they come.
        name: What messages and statistics call it; by default the function's name.
        replicas: How many instances of it there are, each with its own ``concurrency``, workers and
            resources of :func:`alto.per_replica`. ``App.scale`` changes it.
        router: Which replica gets an item or a group, see :mod:`alto.routing`; by default
            ``LeastWork()``. Each open pipeline works with a copy.
        runs_in: ``"loop"``: an async function, in the event loop; ``"thread"``, ``"process"``: a
            plain one. Or an executor: one of :mod:`alto.executors`, or of your own.

    Raises:
        GraphError: No stage can be made of the function; the message names the stage, the
            parameter and the remedy.
    """

    def __init__(
        self, *, concurrency: int | None = None, order: GroupOrder = "ancestry",
        name: str | None = None, replicas: int = 1, router: Router | None = None,
        runs_in: RunsIn | Executor = "loop",
    ) -> None:  # fmt: skip
        self._options = stage_options(
            concurrency=concurrency, order=order, name=name, replicas=replicas, router=router,
            runs_in=runs_in,
        )  # fmt: skip

    def __repr__(self) -> str:
        given = attrs.asdict(self._options, recurse=False)
        plain = {"name": None, "replicas": 1, "router": None, "runs_in": "loop"}
        said = (f"{k}={v!r}" for k, v in given.items() if k not in plain or v != plain[k])
        return f"stage({', '.join(said)})"

    # The order matters: more parameters before fewer, which take the rest for resources; Group[T]
    # before T, which takes anything.
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Any, Any, Any, Any, Any, Any, Any, P], R], /
    ) -> Stage[Any, Any, Any, Any, Any, Any, Any, *tuple[Any, ...], R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[
            Concatenate[Group[A], Group[B], Group[C], Group[D], Group[E], Group[F], P], R
        ],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], Group[D], Group[E], F, P], R],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], Group[D], E, Group[F], P], R],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, Group[E], Group[F], P], R],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], Group[E], Group[F], P], R],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], Group[E], Group[F], P], R],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], Group[E], Group[F], P], R],
        /,
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, Group[E], Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, Group[E], F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, E, Group[F], P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], Group[D], Group[E], P], R],
        /,
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, Group[E], P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, Group[D], P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, C, D, P], R], /
    ) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], Group[C], P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], C, P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, Group[C], P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], B, C, P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], Group[C], P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, Group[B], C, P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[A, B, Group[C], P], R], /
    ) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, B, C, P], R], /) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], P], R], /
    ) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[Group[A], B, P], R], /) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, Group[B], P], R], /) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, B, P], R], /) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[Group[A], P], R], /) -> Stage[A, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, P], R], /) -> Stage[A, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # alto's own are executors too
        self, /, *, concurrency: int = ..., order: GroupOrder = ..., name: str | None = ...,
        replicas: int = ..., router: Router | None = ...,
        runs_in: Literal["loop"] | Loop = ...,
    ) -> StageDecorator: ...  # fmt: skip
    @overload
    def __call__(  # type: ignore[overload-overlap]  # alto's own are executors too
        self, /, *, concurrency: int = ..., name: str | None = ..., replicas: int = ...,
        router: Router | None = ..., runs_in: Literal["thread", "process"] | Thread | Process,
    ) -> PlainStageDecorator: ...  # fmt: skip
    @overload
    def __call__(
        self, /, *, concurrency: int = ..., order: GroupOrder = ..., name: str | None = ...,
        replicas: int = ..., router: Router | None = ..., runs_in: Executor,
    ) -> AnyStageDecorator: ...  # fmt: skip
    def __call__(self, fn: object = None, /, **options: Any) -> object:  # Any: the overloads say.
        """Make a stage of *fn*, or with options a decorator."""
        if options:
            if fn is not None:
                msg = "write the options of @stage in a call of their own: `stage(...)(fn)`"
                raise GraphError(msg)
            return StageDecorator(**options)
        if fn is None:
            return self
        caller = local_names(sys._getframe(1))  # noqa: SLF001  # the caller's
        spec = lazy_stage_spec(fn, caller, self._options)
        made: Stage[Any, Any] = Stage(spec, {})
        return made


class PlainStageDecorator(Protocol):
    """Makes a stage of a plain function: ``@stage(runs_in="thread")``; see :class:`StageDecorator`."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, Any, Any, Any, Any, Any, Any, P], R], /
    ) -> Stage[Any, Any, Any, Any, Any, Any, Any, *tuple[Any, ...], R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[A, B, C, D, E, F, P], R], /
    ) -> Stage[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[A, B, C, D, E, P], R], /
    ) -> Stage[A, B, C, D, E, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, C, D, P], R], /) -> Stage[A, B, C, D, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, C, P], R], /) -> Stage[A, B, C, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, P], R], /) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, P], R], /) -> Stage[A, R]: ...
    def __call__(self, fn: Any, /) -> Any:  # Any: the overloads say.
        """Make a stage of *fn*."""
        ...


class AnyStageDecorator(Protocol):
    """Makes a stage of a function of any kind: ``@stage(runs_in=MyExecutor())``.

    Static checks know its parameters one by one up to two; see :class:`StageDecorator`.
    """

    # An async function is a function too: the first overload that fits is meant.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: _AsyncFunction[Concatenate[Any, Any, Any, P], R], /
    ) -> Stage[Any, Any, Any, *tuple[Any, ...], R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: _AsyncFunction[Concatenate[Group[A], Group[B], P], R], /
    ) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[Group[A], B, P], R], /) -> Stage[A, B, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, Group[B], P], R], /) -> Stage[A, B, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, B, P], R], /) -> Stage[A, B, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[Group[A], P], R], /) -> Stage[A, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: _AsyncFunction[Concatenate[A, P], R], /) -> Stage[A, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, Any, Any, P], R], /
    ) -> Stage[Any, Any, Any, *tuple[Any, ...], R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, B, P], R], /) -> Stage[A, B, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[A, P], R], /) -> Stage[A, R]: ...
    def __call__(self, fn: Any, /) -> Any:  # Any: the overloads say.
        """Make a stage of *fn*."""
        ...


stage: Final = StageDecorator()
"""Makes a stage of an async function; see :class:`StageDecorator`."""
