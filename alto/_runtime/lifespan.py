"""Lifespans of replicas: their own resources, threads and worker processes.

Theory of operation. A lifespan is a task. It makes what its replica needs, signals that it is ready,
waits until the replica is closed, and gives everything back in the reverse order. So whatever is
entered is left by the task that entered it, no matter which task opens, scales or closes the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from alto._graph.spec import PerReplica
from alto._runtime.executors import InThread, Loop, enter_replica, executor_of
from alto._safe_text import noted, shown
from alto.model import StageInfo

if TYPE_CHECKING:
    from alto._graph.spec import NodeSpec

__all__ = ("Lifespan", "LifespanReplica", "Lifespans", "needs_lifespan")


def needs_lifespan(spec: NodeSpec, resources: Mapping[str, object]) -> bool:
    """Return whether the replicas of a stage have resources, threads or processes of their own."""
    made = any(isinstance(value, PerReplica) for value in resources.values())
    return made or not isinstance(executor_of(spec.stage.runs_in), Loop)


class Lifespan:
    """The lifespan of what one replica has of its own.

    Args:
        spec: The stage.
        name: The stage's name in messages.
        number: Number of the replica.
        resources: The keyword arguments of the stage, with ``per_replica`` declarations.
    """

    def __init__(
        self, spec: NodeSpec, name: str, number: int, resources: Mapping[str, object]
    ) -> None:
        self._spec = spec
        self._name = name
        self._number = number
        self._given = resources
        self._closing = anyio.Event()
        self._task: asyncio.Task[Any] | None = None
        self.ready = anyio.Event()
        """Set when it has made everything, or has failed."""
        self.closed = anyio.Event()
        """Set when it has given everything back."""
        self._cancelled = False
        self.given_up = False
        """True if it was stopped before it had made everything."""
        self.error: Exception | None = None
        """The reason why something could not be made."""
        self.late_error: Exception | None = None
        """The error that giving back has raised."""
        self.fn: Callable[..., Any] = spec.stage.fn
        """Function whose result a call awaits or iterates."""
        self.resources: Mapping[str, object] = {}
        """Keyword arguments of *fn*."""

    async def main(self) -> None:
        """Make everything, wait for the end, give it back. Errors of resources are stored, not raised."""
        # Making is cancelled natively, and once: giving back is not interrupted, and the cancel scopes
        # that resources have open stay properly nested.
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            with anyio.CancelScope(shield=True):
                await self._keep()
        except asyncio.CancelledError:
            if not self._cancelled or task.uncancel():  # Cancelled by something else.
                raise
        except Exception as error:  # noqa: BLE001  # raised by Lifespans.start() or raise_late()
            self._failed(error)
        finally:
            # A removed replica must keep nothing alive.
            self.resources, self._given = {}, {}
            self._task = None
            self.ready.set()
            self.closed.set()

    async def _keep(self) -> None:
        if self.given_up:
            return
        try:
            async with AsyncExitStack() as stack:
                await self._enter(stack)
                self.ready.set()
                await self._closing.wait()
        except asyncio.CancelledError as error:
            if self._cancelled or self._is_cancelled():
                raise
            # A resource raised it although nothing has cancelled this task.
            msg = (
                f"stage {self._name!r}: a resource of replica {self._number} raised {shown(error)}"
            )
            self._failed(RuntimeError(msg))

    def _failed(self, error: Exception) -> None:
        if self.ready.is_set():
            self.late_error = error
        else:
            self.error = error

    def _is_cancelled(self) -> bool:
        return self._task is not None and self._task.cancelling() > 0

    def close(self) -> None:
        """Let the task give everything back. No calls run any more."""
        self._closing.set()

    def give_up(self) -> None:
        """Stop making, and give everything back."""
        self._closing.set()
        if self.ready.is_set() or self.given_up:
            return
        self.given_up = True
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()

    @property
    def abandoned(self) -> int:
        """Threads that still run the function of a call that was cancelled."""
        return self.fn.abandoned if isinstance(self.fn, InThread) else 0

    async def _enter(self, stack: AsyncExitStack) -> None:
        stage = self._spec.stage
        info = StageInfo(
            name=self._name,
            function=stage.fn,
            generator=stage.generator,
            concurrency=stage.concurrency,
            resources={resource.name: resource.type for resource in stage.resources},
        )
        executor = executor_of(stage.runs_in)
        call = await enter_replica(executor, info, self._number, self._given, stack)
        if type(call) is partial and not call.args:  # Unwrap it: saves one call per stage call.
            self.fn, self.resources = call.func, call.keywords
        else:
            self.fn, self.resources = call, {}


class LifespanReplica(Protocol):
    """A replica, as its lifespan sees it."""

    fn: Callable[..., Any]
    resources: Mapping[str, object]

    @property
    def lifespan(self) -> Lifespan | None:
        """Lifespan of the replica's own resources; None: it has none."""
        ...


class Lifespans:
    """The lifespans of an app's replicas.

    Args:
        spawn: Starts a task of the app.
    """

    def __init__(self, spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]) -> None:
        self._spawn = spawn
        self._kept: list[Lifespan] = []
        self._late_errors: list[Exception] = []

    async def start(self, replicas: Iterable[LifespanReplica]) -> None:
        """Make the resources of new replicas concurrently.

        Raises:
            ResourceError: A resource could not be made; the resources of all of them are given back.

        Cancellation: raised when everything that was made is given back.
        """
        kept = [(replica, replica.lifespan) for replica in replicas if replica.lifespan is not None]
        lifespans = [lifespan for _, lifespan in kept]
        if not lifespans:
            return
        for lifespan in lifespans:
            self._kept.append(lifespan)
            self._spawn(partial(self._keep, lifespan))

        async def wait(lifespan: Lifespan) -> None:
            await lifespan.ready.wait()
            if lifespan.error is not None:
                _give_up(lifespans)

        try:
            async with anyio.create_task_group() as tasks:
                for lifespan in lifespans:
                    tasks.start_soon(wait, lifespan)
        except BaseException:
            await _given_back(lifespans)
            raise
        failed = [lifespan.error for lifespan in lifespans if lifespan.error is not None]
        if failed or any(lifespan.given_up for lifespan in lifespans):
            await _given_back(lifespans)
        if failed:
            raise failed[0]
        for replica, lifespan in kept:
            replica.fn, replica.resources = lifespan.fn, lifespan.resources

    async def _keep(self, lifespan: Lifespan) -> None:
        try:
            await lifespan.main()
        finally:
            self._kept.remove(lifespan)
            if lifespan.late_error is not None:
                self._late_errors.append(lifespan.late_error)

    def give_up(self) -> None:
        """Stop making, and give everything back."""
        _give_up(self._kept)

    def raise_late(self, error: BaseException | None) -> None:
        """Raise the first error of giving back; if *error* is being raised, add a note to it instead."""
        if not self._late_errors:
            return
        if error is None:
            raise self._late_errors[0]
        note = f"while its resources were given back, also: {shown(self._late_errors[0])}"
        noted(error, note)


def _give_up(lifespans: Iterable[Lifespan]) -> None:
    for lifespan in list(lifespans):
        lifespan.give_up()


async def _given_back(lifespans: Sequence[Lifespan]) -> None:
    _give_up(lifespans)
    with anyio.CancelScope(shield=True):
        for lifespan in lifespans:
            await lifespan.closed.wait()
