"""The resources of an app: which are engines, who starts them, who stops them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import anyio

from alto._graph.models import engine_of, engines_of, with_handles
from alto._graph.nested import mentioned
from alto._runtime.observers import Notify
from alto.errors import Closed
from alto.events import EngineStarted, EngineStopped

if TYPE_CHECKING:
    from alto._graph.spec import Declaration
    from alto.protocols import Engine

__all__ = ("Resources", "engine_of", "runs", "with_handles")

_users: Final[dict[int, int]] = {}
"""Apps that use an engine which one of them has started, by its identity; they keep it alive."""
_stopping: Final[dict[int, anyio.Event]] = {}
"""Engines that an app stops now, and what tells that it is over."""


class Resources:
    """Resources by name, and the engines among them.

    Engines that do not run yet are started, side by side, and those are stopped again, by the last
    app that uses them; engines that somebody else has started are left alone.
    """

    def __init__(
        self, declaration: Declaration, values: Mapping[str, object], notify: Notify | None = None
    ) -> None:
        self._notify = notify
        pipelines = [declaration, *mentioned(declaration, values.values())]
        given = [e for e in map(engine_of, values.values()) if e is not None]
        found = [*given, *(e for p in pipelines for e in engines_of(p, values))]
        engines = {id(e): e for e in found}
        self._engines = list(engines.values())
        self._used: list[Engine] = []

    async def start(self) -> None:
        """Start what does not run.

        Raises:
            EngineStartError: One did not start; the others have been stopped again.
        """
        errors: list[BaseException] = []

        async def start(engine: Engine) -> None:
            try:
                await engine.start()
            except Exception as error:  # noqa: BLE001  # raised below, without a group around it
                errors.append(error)
                tasks.cancel_scope.cancel()  # the others need not load to the end
            else:
                self._use(engine)
                if self._notify is not None:
                    now = asyncio.get_running_loop().time()
                    self._notify(EngineStarted(engine=engine.name, time=now))

        try:
            for engine in self._engines:
                while (stopped := _stopping.get(id(engine))) is not None:
                    await stopped.wait()
            async with anyio.create_task_group() as tasks:
                for engine in self._engines:
                    if not runs(engine):
                        tasks.start_soon(start, engine)
                    elif id(engine) in _users:
                        self._use(engine)
        except BaseException:
            await self.stop()
            raise
        if errors:
            await self.stop()
            raise errors[0]

    def _use(self, engine: Engine) -> None:
        self._used.append(engine)
        _users[id(engine)] = _users.get(id(engine), 0) + 1

    def _leave(self, engine: Engine) -> bool:
        """Stop using an engine, and say whether no other app uses it."""
        left = _users.pop(id(engine)) - 1
        if left:
            _users[id(engine)] = left
        return not left

    async def stop(self) -> None:
        """Stop what apps have started and this one was the last to use. Cancellation: shielded.

        Raises:
            Exception: What an engine raised; all have been asked to stop.
        """
        errors: list[Exception] = []

        async def stop(engine: Engine, stopped: anyio.Event) -> None:
            try:
                await engine.stop()
            except Exception as error:  # noqa: BLE001  # raised below, without a group around it
                errors.append(error)
            finally:
                del _stopping[id(engine)]
                stopped.set()
                if self._notify is not None:
                    now = asyncio.get_running_loop().time()
                    self._notify(EngineStopped(engine=engine.name, time=now))

        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                while self._used:
                    engine = self._used.pop()
                    if self._leave(engine):
                        stopped = _stopping[id(engine)] = anyio.Event()
                        tasks.start_soon(stop, engine, stopped)
        if errors:
            raise errors[0]


def runs(engine: Engine) -> bool:
    """Say whether an engine has been started."""
    try:
        engine.check_health()
    except Closed:
        return False
    return True
