"""Resources of an app and of single requests; starting and stopping the engines among them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import anyio

from alto._graph import check_resource
from alto._graph.nested import mentioned
from alto._graph.resources import engine_of, engines_in, engines_of, refuse_unknown, with_handles
from alto._graph.spec import Declaration, PerReplica
from alto._runtime.observers import Notify
from alto.errors import Closed, ResourceError
from alto.events import EngineStarted, EngineStopped
from alto.protocols import Engine

__all__ = (
    "Resources",
    "check_inner",
    "check_names",
    "runs",
    "values_of_request",
)

_users: Final[dict[int, int]] = {}
"""Number of apps that use an engine which one of them has started, by ``id(engine)``.

The apps refer to the engine, so the id is not reused.
"""
_stopping: Final[dict[int, anyio.Event]] = {}
"""Engines that an app is stopping, by ``id(engine)``, with an event that is set when it has."""


class Resources:
    """Resources by name, and the engines among them.

    Engines that do not run yet are started, concurrently. They are stopped by the last app that uses
    them. Engines that were started elsewhere are not stopped.
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
        """Start the engines that do not run.

        Raises:
            EngineStartError: One did not start; the others have been stopped again.
        """
        errors: list[BaseException] = []

        async def start(engine: Engine) -> None:
            try:
                await engine.start()
            except Exception as error:  # noqa: BLE001  # raised below, without a group around it
                errors.append(error)
                tasks.cancel_scope.cancel()  # the others need not finish loading
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

    def _stop_using(self, engine: Engine) -> bool:
        """Stop using an engine. Returns whether no other app uses it."""
        others = _users.pop(id(engine)) - 1
        if others:
            _users[id(engine)] = others
        return not others

    async def stop(self) -> None:
        """Stop the engines that apps have started and this one is the last to use. Cancellation: shielded.

        Raises:
            Exception: An engine raised it; all have been asked to stop.
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
                    if self._stop_using(engine):
                        stopped = _stopping[id(engine)] = anyio.Event()
                        tasks.start_soon(stop, engine, stopped)
        if errors:
            raise errors[0]


def runs(engine: Engine) -> bool:
    """Return whether an engine is running."""
    try:
        engine.check_health()
    except Closed:
        return False
    return True


def check_names(
    declaration: Declaration, others: Sequence[Declaration], names: Iterable[str]
) -> None:
    """Raise an error for a name that no stage takes, of a pipeline or of *others* that its stages call.

    Raises:
        ResourceError: The message lists the names, or says that ``bind`` has fixed this one.
    """
    pipelines = (declaration, *others)
    taken = {name for one in pipelines for name in _taken(one)}
    asked = {spec.name for one in pipelines for node in one.nodes for spec in node.stage.resources}
    for name in names:
        if name in taken:
            continue
        if name in asked:
            msg = (
                f"using({name}=...): bind({name}=...) has fixed it in every stage of pipeline "
                f"{declaration.name!r} that takes it; leave it out, or bind only where it must stay"
            )
            raise ResourceError(msg)
        refuse_unknown(name, taken, f"pipeline {declaration.name!r}")


def check_inner(
    declaration: Declaration, others: Sequence[Declaration], given: Mapping[str, object]
) -> None:
    """Raise an error for a value that only inner pipelines take, and that fits none of them.

    It is not known which of them will be called. If a value does not fit one, calling that raises.

    Raises:
        ResourceError: As :func:`values_of_request`.
    """
    for name in given.keys() - _taken(declaration):
        refusals: list[ResourceError] = []
        takers = [other for other in others if name in _taken(other)]
        for taker in takers:
            try:
                values_of_request(taker, {name: given[name]})
            except ResourceError as error:
                refusals.append(error)
        if len(refusals) == len(takers):
            raise refusals[0]


def _taken(declaration: Declaration) -> set[str]:
    return {spec.name for node in declaration.nodes for spec in node.stage.resources
            if spec.name not in node.bound}  # fmt: skip


def values_of_request(
    declaration: Declaration, given: Mapping[str, object]
) -> tuple[Mapping[str, object] | None, ...]:
    """Return, for each stage of *declaration*, the resources among *given* that it takes; None: none.

    ``bind`` takes precedence over *given*.

    Raises:
        ResourceError: A value is of a wrong type, is an engine that does not run, or is to be made
            per replica.
    """
    for name, value in given.items():
        if isinstance(value, PerReplica):
            msg = (
                f"using({name}=...): per_replica(...) makes a resource for each replica, and a "
                f"request has none of its own; give it to open()"
            )
            raise ResourceError(msg)
    values: list[Mapping[str, object] | None] = []
    for node in declaration.nodes:
        own = {}
        for spec in node.stage.resources:
            if spec.name in given and spec.name not in node.bound:
                check_resource(node.stage.name, spec, given[spec.name])
                for engine in engines_in(given[spec.name], spec.type):
                    _check_running(spec.name, engine)
                own[spec.name] = given[spec.name]
        values.append(with_handles(node, own) if own else None)
    return tuple(values)


def _check_running(name: str, engine: Engine) -> None:
    if not runs(engine):
        msg = (
            f"using({name}=...): engine {engine.name!r} is not running, and a request does not "
            f"start engines; start it first, with `async with engine:` or engine.start()"
        )
        raise ResourceError(msg)
