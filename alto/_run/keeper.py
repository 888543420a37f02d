"""What one replica has of its own: resources made for it, threads, a worker process.

Theory of operation. A keeper is a task. It makes what its replica needs, says so, waits until the
replica is closed, and gives everything back: whatever was entered is left by the task that entered
it, in the reverse order, whoever opened, scaled or closed the app.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from typing import TYPE_CHECKING, Any, Final

import anyio

from alto._declare import check_resource
from alto._declare.models import engines_in, with_handles
from alto._run.resources import runs
from alto._run.threads import Threads
from alto._spec import PerReplica
from alto._told import shown, told
from alto.errors import ResourceError

if TYPE_CHECKING:
    from alto._run.processes import Process
    from alto._spec import NodeSpec

__all__ = ("Keeper", "needs_keeper")


def needs_keeper(spec: NodeSpec, resources: Mapping[str, object]) -> bool:
    """Whether a replica of a stage has something of its own."""
    made = any(isinstance(value, PerReplica) for value in resources.values())
    return made or spec.stage.runs_in != "loop"


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
        self._process: Process | None = None
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
            self.resources, self._given, self._process = {}, {}, None
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

    def abort(self) -> None:
        """Do not wait for a call that cannot be interrupted otherwise: nobody needs it."""
        if self._process is not None:
            self._process.abort()

    async def _enter(self, stack: AsyncExitStack) -> None:
        stage = self._spec.stage
        if stage.runs_in == "process":
            from alto._run.processes import Process  # noqa: PLC0415  # 20 ms that few need

            self._process = Process(self._spec, self._name, self._number, self._given)
            self.fn = await stack.enter_async_context(self._process.running())
            return
        threads = None
        if stage.runs_in == "thread":
            threads = Threads(self._name, self._number, stage.concurrency)
            stack.callback(threads.close)
            self.fn = threads.wrap(stage.fn)
        made = dict(self._given)
        for name, value in self._given.items():
            if isinstance(value, PerReplica):
                made[name] = await self._made(name, value, stack, threads)
        self.resources = with_handles(self._spec, made)

    async def _made(
        self, name: str, value: PerReplica[object], stack: AsyncExitStack, threads: Threads | None
    ) -> object:
        [asked] = [spec for spec in self._spec.stage.resources if spec.name == name]
        try:
            made = await stack.enter_async_context(
                _entered(value, asked.type, self._number, threads)
            )
        except (Exception, asyncio.CancelledError) as error:
            if self._is_cancelled():
                raise
            raise factory_failed(self._name, name, self._number, error) from error
        check_resource(self._name, asked, made, self._number)
        return made


def factory_failed(stage: str, resource: str, number: int, error: BaseException) -> ResourceError:
    """What to raise where a factory has."""
    return ResourceError(
        f"stage {stage!r}: resource {resource!r} of replica {number} could not be made: "
        f"{told(error)}"
    )


@asynccontextmanager
async def _entered(
    value: PerReplica[object], wanted: object, number: int, threads: Threads | None
) -> AsyncGenerator[object]:
    # What blocks is made and left in a thread of the replica, where it has threads.
    async def run(function: Callable[..., object], *args: object) -> object:
        return function(*args) if threads is None else await threads.run(function, *args)

    made = await run(value.make, number)
    if isinstance(made, AbstractAsyncContextManager):
        async with made as inside:
            yield inside
    elif isinstance(made, AbstractContextManager):
        inside = await run(made.__enter__)
        try:
            yield inside
        finally:
            await run(made.__exit__, *_NOTHING)
    else:
        if inspect.isawaitable(made):
            made = await made
        async with AsyncExitStack() as started:
            for engine in engines_in(made, wanted):
                if not runs(engine):
                    await engine.start()
                    started.push_async_callback(engine.stop)
            yield made


_NOTHING: Final = (None, None, None)
