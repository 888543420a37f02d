"""Pipelines: the ``@pipeline`` decorator, and the pipelines that it makes of functions."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import update_wrapper
from types import MappingProxyType, ModuleType
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    TypeVar,
    TypeVarTuple,
    cast,
    final,
    overload,
)

from alto._current_call import current_call
from alto._graph import check_input_count
from alto._graph.declaration import check_name
from alto._graph.nested import bound_pipeline
from alto._graph.signature import (
    LazySpec,
    PipelineSpec,
    Unresolved,
    lazy_pipeline_spec,
    local_names,
)
from alto._graph.spec import Declaration, GroupOrder, HasDeclaration
from alto._graph.trace import inline, trace
from alto._runtime.handles import StreamHandle
from alto._runtime.host import Host
from alto._runtime.nested import nested_run, nested_stream
from alto.app import App
from alto.errors import GraphError, ResourceError
from alto.protocols import Observer
from alto.stream import Stream

__all__ = ("Pipeline", "PipelineDecorator", "pipeline")

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")
Ins = TypeVarTuple("Ins")
Rest = TypeVarTuple("Rest")

_CAPACITY: Final = 32
"""Most items that wait on an edge, per request."""

_HELD_ITEMS: Final = 100_000
"""Most items of one request that wait for their group or join."""


@final
class Pipeline(HasDeclaration, Generic[*Ins, R_co]):
    """Connected stages; made by :data:`pipeline`.

    ``Pipeline[str, Verdict]`` takes one ``str`` per request and gives any number of ``Verdict``;
    with more inputs their types stand before the last one.

    Its function is called once, with symbolic streams: when it is decorated, or at the first use
    where it needs a name that its module defines further down. Everything wrong with it is reported
    there.

    Calling the pipeline on streams, inside another pipeline function, makes it a part of that one.
    """

    def __init__(
        self, spec: LazySpec[PipelineSpec], bound: Mapping[str, object], read: Declaration | None, /
    ) -> None:
        self._spec = spec
        self._bound = MappingProxyType(dict(bound))
        self._unbound = read
        """The pipeline as it was declared, once its function has been called."""
        self._declaration: Declaration | None = None
        update_wrapper(cast("Callable[..., object]", self), spec.shape.fn)  # see the overloads
        self._read_early()

    def __repr__(self) -> str:
        shape = self._spec.shape
        bound = f", bound: {', '.join(self._bound)}" if self._bound else ""
        return f"<Pipeline {shape.name!r} {shape}{bound}>"

    @property
    def name(self) -> str:
        """Its name in messages: the function's, unless ``@pipeline(name=...)``."""
        return self._spec.shape.name

    @property
    def fn(self) -> Callable[..., Stream[R_co]]:
        """The plain function."""
        return self._spec.shape.fn  # type: ignore[return-value]  # checked when it is read

    @property
    def declaration(self) -> Declaration:
        """Its inputs, stages and connections.

        Raises:
            GraphError: It is declared wrongly.
        """
        try:
            return self._read()
        except Unresolved as error:
            raise GraphError(str(error)) from error.__cause__

    def check(self) -> None:
        """Report now what may be wrong with the declaration, rather than at the first use.

        Raises:
            GraphError: It is declared wrongly; the message names stage, parameter and remedy.
        """
        _ = self.declaration

    def bind(self, /, **resources: object) -> Pipeline[*Ins, R_co]:
        """Return the same pipeline with resources fixed, which ``open()`` then does not take.

        So two parts of a pipeline that ask for the same name get different values::

            draft, check = answer.bind(llm=small), verify.bind(llm=large)

        A bound value goes to the stages of this pipeline, those of pipelines that its function
        calls included, except where ``bind`` has fixed the name before. A pipeline that a stage
        calls while it runs has resources of its own: bind it, or give them to ``open()``.
        Engines that are bound are started and stopped with the app.

        Raises:
            ResourceError: No stage takes such a resource, it is bound already, or the value is
                provably of a wrong type.
        """
        for name in resources:
            if name in self._bound:
                msg = (
                    f"pipeline {self.name!r}: resource {name!r} is bound already; "
                    f"bind it once, on the pipeline as it was declared"
                )
                raise ResourceError(msg)
        return Pipeline(self._spec, {**self._bound, **resources}, self._unbound)

    def open(
        self, /, *, capacity: int = _CAPACITY, max_held_items: int = _HELD_ITEMS,
        max_requests: int | None = None, observers: Iterable[Observer] = (), **resources: object,
    ) -> App[*Ins, R_co]:  # fmt: skip
        """Open it: ``async with verify.open(llm=engine, index=index) as app:``.

        Where no block fits, ``app = await verify.open(...)`` and ``await app.aclose()``.

        Args:
            capacity: Most items that wait on an edge, per request; more make the producer wait.
            max_held_items: Most items of one request that wait for their group or join, which have
                no other bound; a request that needs more fails with ``BufferExceeded``.
            max_requests: Most requests that are open at once; one more is refused with
                ``Overloaded`` before anything of it has started, and a map waits. None: any number.
            observers: Objects that get the events of requests, calls, groups, generations and engines; see
                ``alto.events``.
            **resources: A value for every keyword-only parameter of its stages, by name. An engine
                may be given where a stage asks for an ``LLM``; it is started with the app.

        Raises:
            GraphError: The pipeline is declared wrongly.
            ResourceError: A resource is missing, unknown, bound twice or of a wrong type.
            ValueError: An option is out of its range.
            TypeError: An observer has no method ``notify``.
        """
        host = Host(
            self.declaration,
            resources,
            capacity=capacity,
            max_held_items=max_held_items,
            max_requests=max_requests,
            observers=observers,
        )
        return App(host)

    def stream(
        self, *inputs: *Ins, timeout: float | None = None, order: GroupOrder = "arrival"
    ) -> StreamHandle[R_co]:
        """Run it from inside a stage, results as they come: ``async for y in inner.stream(x)``.

        The inner request inherits ancestry, deadline, priority, cancellation and resources from
        the call that it is made in, and cannot outlive it.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the inner request is stopped with ``DeadlineExceeded``.
            order: ``"arrival"``: results as they are made; ``"ancestry"``: as a sequential program
                would make them.

        Raises:
            Closed: No stage runs here; use ``open()``.
            InputError: An input does not fit the declaration.
            ResourceError: The open pipeline has no value for a resource of this one.
        """
        declaration = self.declaration
        given = check_input_count(declaration, inputs)
        return nested_stream(declaration, given, timeout=timeout, order=order)

    async def run(self, *inputs: *Ins, timeout: float | None = None) -> list[R_co]:
        """Run it from inside a stage and return all results, in ancestry order.

        The inner request inherits ancestry, deadline, priority, cancellation and resources from
        the call that it is made in, and cannot outlive it.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the inner request is stopped with ``DeadlineExceeded``.

        Raises:
            Closed: No stage runs here; use ``open()``.
            InputError: An input does not fit the declaration.
            ResourceError: The open pipeline has no value for a resource of this one.
            RequestError: The inner request failed.

        Cancellation: the inner request is cancelled.
        """
        declaration = self.declaration
        given = check_input_count(declaration, inputs)
        return await nested_run(declaration, given, timeout=timeout)

    def run_sync(
        self, *inputs: *Ins, timeout: float | None = None, **resources: object
    ) -> list[R_co]:
        """Open it, run one request on an event loop of its own, and close it; for scripts.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the request is stopped with ``DeadlineExceeded``.
            **resources: As in :meth:`open`.

        Raises:
            RuntimeError: An event loop runs in this thread, as in a notebook; await ``app.run``.
            AltoError: As :meth:`open` and ``App.run``.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            msg = (
                f"{self.name}.run_sync() cannot be used where an event loop runs already (a "
                f"notebook, an async function); write `async with {self.name}.open(...) as app:` "
                f"and `await app.run(...)`"
            )
            raise RuntimeError(msg)

        async def main() -> list[R_co]:
            current_call.set(None)  # This thread may have the context of another loop's call.
            opened: App[*Ins, R_co] = App(
                Host(self.declaration, resources, capacity=_CAPACITY, max_held_items=_HELD_ITEMS)
            )
            async with opened as app:
                return await app.run(*inputs, timeout=timeout)

        return asyncio.run(main())

    @overload
    def __call__(self: Pipeline[A, R], a: Stream[A], /) -> Stream[R]: ...
    @overload
    def __call__(self: Pipeline[A, B, R], a: Stream[A], b: Stream[B], /) -> Stream[R]: ...
    @overload
    def __call__(
        self: Pipeline[A, B, C, R], a: Stream[A], b: Stream[B], c: Stream[C], /
    ) -> Stream[R]: ...
    @overload
    def __call__(
        self: Pipeline[A, B, C, D, R], a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D], /
    ) -> Stream[R]: ...
    @overload
    def __call__(
        self: Pipeline[A, B, C, D, E, R], a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D],
        e: Stream[E], /,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def __call__(
        self: Pipeline[A, B, C, D, E, F, R], a: Stream[A], b: Stream[B], c: Stream[C],
        d: Stream[D], e: Stream[E], f: Stream[F], /,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def __call__(
        self: Pipeline[A, B, C, D, E, F, G, *Rest, R],
        a: Stream[A], b: Stream[B], c: Stream[C], d: Stream[D], e: Stream[E], f: Stream[F],
        g: Stream[G], /, *more: Stream[object],
    ) -> Stream[R]: ...  # fmt: skip
    def __call__(self, /, *streams: object, **keywords: object) -> Stream[Any]:
        """Make it a part of the pipeline that is being read."""
        return inline(self._spec.resolve, self.name, self._bound, streams, keywords)

    def _read(self) -> Declaration:
        if self._declaration is None:
            if self._unbound is None:
                self._unbound = trace(self._spec.resolve())
            self._declaration = (
                bound_pipeline(self._unbound, self._bound) if self._bound else self._unbound
            )
        return self._declaration

    def _read_early(self) -> None:
        # At the decoration: report what is wrong, unless a name is still to be defined.
        try:
            self._read()
        except (Unresolved, NameError):
            return
        except AttributeError as error:
            if not isinstance(error.obj, ModuleType):  # Of a module that is half imported.
                raise


@final
class PipelineDecorator:
    """Makes a pipeline of a plain function that connects stages.

    Its parameters are the inputs, ``Stream[T]`` each; it calls stages, operators and other
    pipelines on them, and returns the ``Stream[R]`` that holds the results::

        @alto.pipeline
        def verify(question: alto.Stream[str]) -> alto.Stream[Verdict]:
            claims = sentences(answer(question))
            return appraise(claims, search(queries(claims)))

    Used bare, or with options: ``@alto.pipeline(name="check")``. Up to six inputs are typed. See
    :class:`Pipeline` for when the function is called.

    Args:
        name: Its name in messages; by default the function's name.

    Raises:
        GraphError: The declaration has no meaning; the message names pipeline, stage, parameter
            and remedy.
    """

    def __init__(self, *, name: str | None = None) -> None:
        check_name("pipeline", name)
        self._name = name

    def __repr__(self) -> str:
        return "pipeline" if self._name is None else f"pipeline(name={self._name!r})"

    @overload
    def __call__(self, fn: Callable[[Stream[A]], Stream[R]], /) -> Pipeline[A, R]: ...
    @overload
    def __call__(self, fn: Callable[[Stream[A], Stream[B]], Stream[R]], /) -> Pipeline[A, B, R]: ...
    @overload
    def __call__(
        self, fn: Callable[[Stream[A], Stream[B], Stream[C]], Stream[R]], /
    ) -> Pipeline[A, B, C, R]: ...
    @overload
    def __call__(
        self, fn: Callable[[Stream[A], Stream[B], Stream[C], Stream[D]], Stream[R]], /
    ) -> Pipeline[A, B, C, D, R]: ...
    @overload
    def __call__(
        self, fn: Callable[[Stream[A], Stream[B], Stream[C], Stream[D], Stream[E]], Stream[R]], /
    ) -> Pipeline[A, B, C, D, E, R]: ...
    @overload
    def __call__(
        self,
        fn: Callable[[Stream[A], Stream[B], Stream[C], Stream[D], Stream[E], Stream[F]], Stream[R]],
        /,
    ) -> Pipeline[A, B, C, D, E, F, R]: ...
    @overload
    def __call__(
        self,
        fn: Callable[
            Concatenate[
                Stream[A], Stream[B], Stream[C], Stream[D], Stream[E], Stream[F], Stream[G], P
            ],
            Stream[R],
        ],
        /,
    ) -> Pipeline[Any, Any, Any, Any, Any, Any, Any, *tuple[Any, ...], R]: ...
    @overload
    def __call__(self, /, *, name: str | None = ...) -> PipelineDecorator: ...
    def __call__(self, fn: object = None, /, **options: Any) -> object:  # Any: see the overloads.
        """Make a pipeline of *fn*, or with options a decorator."""
        if options:
            if fn is not None:
                msg = "write the options of @pipeline in a call of their own: `pipeline(...)(fn)`"
                raise GraphError(msg)
            return PipelineDecorator(**options)
        if fn is None:
            return self
        caller = local_names(sys._getframe(1))  # noqa: SLF001  # where annotations may point
        made: Pipeline[Any, Any] = Pipeline(
            lazy_pipeline_spec(fn, caller, name=self._name), {}, None
        )
        return made


pipeline: Final = PipelineDecorator()
"""Makes a pipeline of a function; see :class:`PipelineDecorator`."""
