"""What one replica has of its own: resources made for it, threads, a worker process.

Theory of operation. A keeper is a task. It makes what its replica needs, says so, waits until the
replica is closed, and gives everything back: whatever was entered is left by the task that entered
it, in the reverse order, whoever opened, scaled or closed the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from alto._graph.spec import PerReplica
from alto._runtime.executors import InThread, Loop, enter_replica, executor_of
from alto._safe_text import shown
from alto.model import StageInfo

if TYPE_CHECKING:
    from alto._graph.spec import NodeSpec

__all__ = ("Keeper", "needs_keeper")


def needs_keeper(spec: NodeSpec, resources: Mapping[str, object]) -> bool:
    """Say whether a replica of a stage has something of its own."""
    made = any(isinstance(value, PerReplica) for value in resources.values())
    return made or not isinstance(executor_of(spec.stage.runs_in), Loop)


class Keeper:
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
        self.entered = anyio.Event()
        """It has made everything, or has failed."""
        self.left = anyio.Event()
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
            self.entered.set()
            self.left.set()

    async def _keep(self) -> None:
        if self.given_up:
            return
        try:
            async with AsyncExitStack() as stack:
                await self._enter(stack)
                self.entered.set()
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
        if self.entered.is_set():
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
        if self.entered.is_set() or self.given_up:
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
