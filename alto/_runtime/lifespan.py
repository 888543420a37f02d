"""What one replica has of its own: resources made for it, threads, a worker process.

Theory of operation. A keeper is a task. It makes what its replica needs, says so, waits until the
replica is closed, and gives everything back: whatever was entered is left by the task that entered
it, in the reverse order, whoever opened, scaled or closed the app.
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
    """Return whether a replica of a stage has something of its own."""
    made = any(isinstance(value, PerReplica) for value in resources.values())
    return made or not isinstance(executor_of(spec.stage.runs_in), Loop)


class Lifespan:
    """Makes and keeps what one replica has of its own.

    Args:
        spec: The stage.
        name: Its name in messages.
        number: Number of the replica.
        resources: The keyword arguments of the stage, as they were given.
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
        """It has made everything, or has failed."""
        self.closed = anyio.Event()
        """It has given everything back."""
        self._cancelled = False
        self.given_up = False
        """It was told to make no more before it had made everything."""
        self.error: Exception | None = None
        """Why something could not be made."""
        self.late_error: Exception | None = None
        """What was raised while it was given back."""
        self.fn: Callable[..., Any] = spec.stage.fn
        """What a call awaits or iterates."""
        self.resources: Mapping[str, object] = {}
        """Its keyword arguments."""

    async def main(self) -> None:
        """Make everything, wait for the end, give it back. Raises no exception of a resource's."""
        # Making is cancelled natively, once: what is given back then is given back undisturbed, and
        # whatever scopes resources have open stay properly nested.
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            with anyio.CancelScope(shield=True):
                await self._keep()
        except asyncio.CancelledError:
            if not self._cancelled or task.uncancel():  # By somebody else than this keeper.
                raise
        except Exception as error:  # noqa: BLE001  # said by whoever waits for it
            self._failed(error)
        finally:
            # A replica that has gone is to leave nothing in memory.
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
            # Raised by a resource of its own accord: nobody has cancelled this task.
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
        """Give everything back. No calls run any more."""
        self._closing.set()

    def give_up(self) -> None:
        """Give everything back, and make no more."""
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
        if type(call) is partial and not call.args:  # Spares a worker the call in between.
            self.fn, self.resources = call.func, call.keywords
        else:
            self.fn, self.resources = call, {}


class LifespanReplica(Protocol):
    """A replica, as its lifespan sees it."""

    fn: Callable[..., Any]
    resources: Mapping[str, object]

    @property
    def lifespan(self) -> Lifespan | None:
        """What makes and gives back the replica's own resources; None: it has none."""
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
        """Let replicas that get nothing yet make what each has of its own, side by side.

        Raises:
            ResourceError: Something could not be made; what the others had made is given back.

        Cancellation: everything that was made is given back.
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
        """Give everything back, and make no more."""
        _give_up(self._kept)

    def raise_late(self, error: BaseException | None) -> None:
        """Say what was raised while things were given back, unless the caller raised *error*."""
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
