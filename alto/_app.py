"""Apps: open pipelines, as typed handles on the runtime."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, TypeVarTuple, final, overload

from alto._declare import check_input_count
from alto._run import App as Running
from alto._run import AppStatistics, MapHandle, Progress, StreamHandle
from alto._spec import GroupOrder

__all__ = ("App", "MapOrder", "app_of")

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ins = TypeVarTuple("Ins")
Rest = TypeVarTuple("Rest")

MapOrder: TypeAlias = Literal["input", "completed"]
"""How ``App.map`` hands out results: in the order of the inputs, or as requests end."""


@final
class App(Generic[*Ins, R_co]):
    """An open pipeline; made by ``Pipeline.open``, used as ``async with verify.open() as app:``.

    ``App[str, Verdict]`` takes one ``str`` per request and gives any number of ``Verdict``. Leaving
    the block cancels what still runs and stops the engines that it started.
    """

    __slots__ = ("_running",)

    _running: Running

    def __init__(self) -> None:
        msg = "an App is made by Pipeline.open(): `async with verify.open(...) as app:`"
        raise TypeError(msg)

    def __repr__(self) -> str:
        return repr(self._running)

    async def __aenter__(self) -> Self:
        """Start the engines that do not run yet, and open.

        Raises:
            EngineStartError: An engine did not start; nothing is left behind.
            Closed: It was opened before.

        Cancellation: nothing is left behind.
        """
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Cancel what still runs, wait until it has ended, stop the engines started here.

        Cancellation: shielded.
        """
        return await self._running.__aexit__(kind, error, traceback)

    def stream(
        self,
        *inputs: *Ins,
        timeout: float | None = None,
        order: GroupOrder = "arrival",
        priority: int = 0,
    ) -> StreamHandle[R_co]:
        """Start a request; ``async for result in app.stream(x)`` reads its results.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the request is stopped with ``DeadlineExceeded``.
            order: ``"arrival"``: results as they are made; ``"ancestry"``: as a sequential program
                would make them.
            priority: Lower runs earlier.

        Raises:
            InputError: An input does not fit the declaration; nothing was started.
            Closed: The app is not open.
        """
        given = check_input_count(self._running.declaration, inputs)
        return self._running.stream(given, timeout=timeout, order=order, priority=priority)

    async def run(
        self, *inputs: *Ins, timeout: float | None = None, priority: int = 0
    ) -> list[R_co]:
        """Run a request to its end: all results, in ancestry order.

        Args:
            *inputs: One value for each input of the pipeline.
            timeout: Seconds until the request is stopped with ``DeadlineExceeded``.
            priority: Lower runs earlier.

        Raises:
            InputError: An input does not fit the declaration; nothing was started.
            RequestError: The request failed; ``StageError`` has stage, path and cause.
            Closed: The app is not open.

        Cancellation: the request is cancelled, down to the engine's generations.
        """
        given = check_input_count(self._running.declaration, inputs)
        return await self._running.run(given, timeout=timeout, priority=priority)

    @overload
    def map(
        self: App[A, R], xs: Iterable[A] | AsyncIterable[A], /, *, concurrency: int = 16,
        order: MapOrder = "input", timeout: float | None = None,
        progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[A, R]: ...  # fmt: skip
    @overload
    def map(
        self: App[A, B, *Rest, R],
        xs: Iterable[tuple[A, B, *Rest]] | AsyncIterable[tuple[A, B, *Rest]], /, *,
        concurrency: int = 16, order: MapOrder = "input", timeout: float | None = None,
        progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[tuple[A, B, *Rest], R]: ...  # fmt: skip
    def map(
        self,
        xs: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        concurrency: int = 16,
        order: MapOrder = "input",
        timeout: float | None = None,
        progress: bool | Callable[[Progress], object] = False,
    ) -> MapHandle[Any, Any]:  # Any: the overloads say.
        """Run a request per input; ``async for result in app.map(xs)`` reads a record of each.

        A failed input gives a record with an error; the others go on.

        Args:
            xs: The inputs; tuples where the pipeline has several. Pulled as requests end, so it may
                be endless.
            concurrency: Most requests that run at once.
            order: ``"input"``: records in the order of *xs*; ``"completed"``: as requests end.
            timeout: Seconds for each request.
            progress: True prints to stderr how far it is; a function is called with it.

        Raises:
            Closed: The app is not open.
            TypeError: *xs* is a single text.
        """
        declaration = self._running.declaration
        if isinstance(xs, str | bytes):
            msg = (
                f"app.map() of {declaration.name!r} takes many inputs, and a single "
                f"{type(xs).__name__} is one; write app.map([x]), or await app.run(x)"
            )
            raise TypeError(msg)
        single = len(declaration.inputs) == 1

        def unpack(value: object) -> Sequence[object]:
            return (value,) if single else check_input_count(declaration, value)

        return self._running.map(
            xs, unpack=unpack, concurrency=concurrency, order=order, timeout=timeout,
            progress=progress,
        )  # fmt: skip

    async def scale(self, stage: str, replicas: int) -> None:
        """Change the number of a stage's replicas while requests run.

        Returns when new replicas have made their resources and work. Replicas that are to go get
        nothing new from now on: those with the least to do. Items that wait for one go to others,
        groups that are bound to one stay until they close; then its resources are given back. That
        is not waited for: ``statistics()`` shows it as draining.

        Args:
            stage: Its name, as in ``statistics()``.
            replicas: How many there are to be, at least one.

        Raises:
            ValueError: There is no such stage, or *replicas* is less than 1.
            ResourceError: A new replica could not make a resource; all is as it was before.
            Closed: The app is not open.

        Cancellation: all is as it was before.
        """
        await self._running.scale(stage, replicas)

    def statistics(self) -> AppStatistics:
        """What it is doing now. An app without requests has the statistics of a fresh one."""
        return self._running.statistics()


def app_of(running: Running, /) -> Any:  # noqa: ANN401  # the pipeline knows the types
    """The typed handle on *running*."""
    app: App[*tuple[Any, ...], Any] = App.__new__(App)
    app._running = running  # noqa: SLF001  # the constructor is refused, for users
    return app
