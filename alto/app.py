"""Apps: open pipelines."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, TypeVarTuple, final, overload

from alto._graph import check_input_count
from alto._graph.spec import GroupOrder
from alto._runtime.handles import StreamHandle as StreamHandle
from alto._runtime.host import Host
from alto._runtime.map import Failed as Failed
from alto._runtime.map import MapHandle as MapHandle
from alto._runtime.map import Progress as Progress
from alto._runtime.map import Result as Result
from alto._runtime.map import Succeeded as Succeeded
from alto._runtime.map import map_requests
from alto._runtime.request import Options, Request
from alto._runtime.request import RequestUsage as RequestUsage
from alto._runtime.statistics import AppStatistics as AppStatistics
from alto._runtime.statistics import ReplicaStatistics as ReplicaStatistics
from alto._runtime.statistics import StageStatistics as StageStatistics
from alto._validate import (
    check_bool_or_function,
    check_count,
    check_order,
    check_priority,
    check_timeout,
)

__all__ = (
    "App",
    "AppStatistics",
    "Failed",
    "MapHandle",
    "MapOrder",
    "Progress",
    "ReplicaStatistics",
    "RequestUsage",
    "Result",
    "StageStatistics",
    "StreamHandle",
    "Succeeded",
)

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ins = TypeVarTuple("Ins")
Rest = TypeVarTuple("Rest")

MapOrder: TypeAlias = Literal["input", "completed"]
"""Order in which ``App.map`` returns results: that of the inputs, or that in which requests end."""


@final
class App(Generic[*Ins, R_co]):
    """An open pipeline; made by ``Pipeline.open``.

    ``App[str, Verdict]`` takes one ``str`` per request and gives any number of ``Verdict``. It is
    opened in one of two ways::

        async with verify.open(llm=engine) as app: ...

        app = await verify.open(llm=engine)  # where no block fits: a notebook, a server object
        await app.aclose()

    Any task of its event loop may open it, use it and close it. Closing cancels what still runs and
    stops the engines that it started.
    """

    __slots__ = ("__weakref__", "_given", "_host", "_owner", "_values")

    def __init__(self, host: object = None, /) -> None:
        if not isinstance(host, Host):
            msg = "an App is made by Pipeline.open(): `async with verify.open(...) as app:`"
            raise TypeError(msg)
        self._host = host
        # For an app made by using(): the app that it was called on.
        self._owner: App[*Ins, R_co] | None = None
        self._given: Mapping[str, object] = {}
        self._values: tuple[Mapping[str, object] | None, ...] | None = None

    def __repr__(self) -> str:
        host = self._host
        return f"<App of {host.declaration.name!r}: {host.state}, {host.open_requests} requests>"

    # ---- opening and closing

    async def __aenter__(self) -> Self:
        """Start the engines that do not run yet, and open the app.

        Raises:
            EngineStartError: An engine did not start; nothing is left behind.
            Closed: It was opened before, or closed while it opened.

        Cancellation: nothing is left behind.
        """
        if self._owner is not None:
            msg = (
                "app.using(...) returns an app that is open already; use it directly, without "
                "`async with` or `await`: `await app.using(...).run(x)`"
            )
            raise TypeError(msg)
        await self._host.open()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the app, as ``async with`` does. It must be closed with :meth:`aclose`."""
        return self.__aenter__().__await__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel running requests, wait until they have ended, and stop the engines started here.

        Raises:
            RuntimeError: Called by a stage call of one of its requests.
            Exception: An engine or a resource raised it while it was stopped. If the block has
                raised, it becomes a note on the block's exception.

        Cancellation: shielded.
        """
        await self._host.close()
        self._host.raise_failure(error)

    async def aclose(self) -> None:
        """Close the app, as leaving ``async with`` does, from any task of its event loop. Idempotent."""
        await self.__aexit__(None, None, None)

    async def drain(self, *, timeout: float | None = None) -> bool:
        """Refuse new requests from now on, and wait until the open ones have ended.

        For an orderly shutdown; close the app afterwards. Maps that have begun continue with their
        inputs.

        Args:
            timeout: Maximum seconds to wait; None: no limit.

        Returns:
            Whether all requests have ended.

        Raises:
            Closed: The app is not open.

        Cancellation: new requests are still refused.
        """
        check_timeout("drain(timeout=...)", timeout)
        return await self._host.drain(timeout)

    def __del__(self) -> None:
        # May run anywhere, also inside a machine's step: act in a separate step of the loop.
        host = getattr(self, "_host", None)
        if host is None or self._owner is not None or host.state not in ("open", "draining"):
            return
        with contextlib.suppress(RuntimeError):  # The loop is closed: so is the app.
            host.loop.call_soon_threadsafe(host.close_soon)
            warnings.warn(
                f"an app of {host.declaration.name!r} was never closed; use `async with "
                f"{host.declaration.name}.open(...) as app:`, or `await app.aclose()`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    # ---- requests

    def using(self, **resources: object) -> App[*Ins, R_co]:
        """Return this app with other resources for the requests that are started through it.

        ``app.using(llm=other, tenant=tenant).stream(question)``: each name is that of a keyword-only
        parameter of stages. They get this value instead of that of ``open``, and so do stages of the
        pipelines that they call. Nothing else of the app changes. The returned app may be kept and
        used for several requests.

        Args:
            **resources: Values by name. An engine must run already; it may be passed where a stage
                takes an ``LLM``. Values for stages in worker processes must pickle.

        Raises:
            ResourceError: No stage takes a name, a value is of a wrong type, or an engine does not
                run.
            Closed: The app is not open.
        """
        self._host.check_open()
        given = {**self._given, **resources}
        app: App[*Ins, R_co] = App(self._host)
        app._owner = self if self._owner is None else self._owner
        app._given = given
        app._values = self._host.check_values(given)
        return app

    def stream(
        self,
        *inputs: *Ins,
        timeout: float | None = None,
        order: GroupOrder = "arrival",
        priority: int = 0,
    ) -> StreamHandle[R_co]:
        """Start a request; ``async for result in app.stream(x)`` reads its results.

        Its stage calls run in copies of the context of this call: they see its context variables.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the request is stopped with ``DeadlineExceeded``.
            order: ``"arrival"``: results as they are produced; ``"ancestry"``: in the order of a
                sequential program.
            priority: Lower runs earlier, at stages and at engines.

        Raises:
            InputError: An input does not fit the declaration; nothing was started.
            Overloaded: As many requests are open as ``open(max_requests=...)`` allows; nothing was
                started.
            Closed: The app is not open.
        """
        check_order(order)
        options = self._options(copy_context(), order, timeout, priority)
        return StreamHandle(self._begin(inputs, options))

    async def run(
        self, *inputs: *Ins, timeout: float | None = None, priority: int = 0
    ) -> list[R_co]:
        """Run a request to its end, and return all results in ancestry order.

        Its stage calls run in copies of the context of this call: they see its context variables.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the request is stopped with ``DeadlineExceeded``.
            priority: Lower runs earlier, at stages and at engines.

        Raises:
            InputError: An input does not fit the declaration; nothing was started.
            Overloaded: As many requests are open as ``open(max_requests=...)`` allows; nothing was
                started.
            RequestError: The request failed; ``StageError`` has stage, path and cause.
            Closed: The app is not open.

        Cancellation: the request is cancelled, down to the engine's generations.
        """
        options = self._options(copy_context(), None, timeout, priority)
        return await self._begin(inputs, options).results()

    @overload
    def map(
        self: App[A, R], xs: Iterable[A] | AsyncIterable[A], /, *, concurrency: int = 16,
        order: MapOrder = "input", timeout: float | None = None, priority: int = 0,
        progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[A, R]: ...  # fmt: skip
    @overload
    def map(
        self: App[A, B, *Rest, R],
        xs: Iterable[tuple[A, B, *Rest]] | AsyncIterable[tuple[A, B, *Rest]], /, *,
        concurrency: int = 16, order: MapOrder = "input", timeout: float | None = None,
        priority: int = 0, progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[tuple[A, B, *Rest], R]: ...  # fmt: skip
    def map(
        self,
        xs: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        concurrency: int = 16,
        order: MapOrder = "input",
        timeout: float | None = None,
        priority: int = 0,
        progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[Any, Any]:  # Any: the overloads have the types.
        """Start a request per input; ``async for result in app.map(xs)`` reads a record of each.

        A failed input becomes a record with an error; the others continue. If
        ``open(max_requests=...)`` allows no more requests, the map waits.

        Args:
            xs: The inputs; tuples where the pipeline has several. Pulled as requests end, so it may
                be endless. A plain iterable must not block: it is pulled on the event loop.
            concurrency: Maximum number of requests that run at the same time.
            order: ``"input"``: records in the order of *xs*; ``"completed"``: as requests end.
            timeout: Seconds for each request.
            priority: Of each request; lower runs earlier, at stages and at engines.
            progress: True prints the progress to stderr; a function is called with each
                :class:`alto.app.Progress`.

        Raises:
            Closed: The app is not open.
            TypeError: *xs* is a single text.
        """
        host = self._host
        host.check_open()
        declaration = host.declaration
        if isinstance(xs, str | bytes):
            msg = (
                f"app.map() of {declaration.name!r} takes many inputs, and a single "
                f"{type(xs).__name__} is one; write app.map([x]), or await app.run(x)"
            )
            raise TypeError(msg)
        check_count("map(concurrency=...)", concurrency)
        check_bool_or_function("map(progress=...)", progress)
        if order not in ("input", "completed"):
            msg = f"map(order=...) must be 'input' or 'completed', not {order!r}"
            raise ValueError(msg)
        options = self._options(copy_context(), None, timeout, priority)
        single = len(declaration.inputs) == 1

        def start(value: object) -> Request:
            given: Sequence[object] = (value,)
            if not single:
                given = check_input_count(declaration, value)
            return host.begin(given, options, waits=True)

        return map_requests(
            host, xs, start, concurrency=concurrency, order=order, progress=progress
        )

    def _options(
        self, context: Context, order: GroupOrder | None, timeout: float | None, priority: int
    ) -> Options:
        check_timeout("timeout=", timeout)
        check_priority(priority)
        return Options(
            context=context, order=order, timeout=timeout, priority=priority,
            values=self._values, given=self._given,
        )  # fmt: skip

    def _begin(self, inputs: Sequence[object], options: Options) -> Request:
        host = self._host
        return host.begin(check_input_count(host.declaration, inputs), options)

    # ---- scaling and statistics

    async def scale(self, stage: str, replicas: int) -> None:
        """Change the number of a stage's replicas while requests run.

        Returns when new replicas have made their resources and work. If there are to be fewer, those
        with the least to do are drained: they receive nothing new, the items that wait for them are
        routed again, and the groups that are bound to them stay until they close. Then their
        resources are given back. This is not waited for: ``statistics()`` shows them as draining.

        Args:
            stage: Name of the stage, as in ``statistics()``.
            replicas: New number of replicas, >= 1.

        Raises:
            ValueError: There is no such stage, or *replicas* is less than 1.
            ResourceError: A new replica could not make a resource; nothing has changed.
            Closed: The app is not open.

        Cancellation: nothing has changed.
        """
        self._host.check_open()
        check_count("scale(replicas=...)", replicas)
        await self._host.scale(stage, replicas)

    def statistics(self) -> AppStatistics:
        """Return the statistics of this moment. Those of an idle app equal those of a new one."""
        return self._host.statistics()
