"""Replicas that come and go while an app is open."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from alto._safe_text import noted, shown

if TYPE_CHECKING:
    from alto._runtime.lifespan import Keeper
    from alto._runtime.node import Node
    from alto._runtime.node_run import NodeRun
    from alto._runtime.replica import Replica

__all__ = ("Keepers", "add_replicas", "find_node", "remove_replicas", "unseen")


class Keepers:
    """Those of an app, who make and keep what single replicas have of their own.

    Args:
        spawn: Starts a task of the app.
    """

    def __init__(self, spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]) -> None:
        self._spawn = spawn
        self._kept: list[Keeper] = []
        self._late_errors: list[Exception] = []

    async def start(self, replicas: Iterable[Replica]) -> None:
        """Let replicas that get nothing yet make what each has of its own, side by side.

        Raises:
            ResourceError: Something could not be made; what the others had made is given back.

        Cancellation: everything that was made is given back.
        """
        kept = [(replica, replica.keeper) for replica in replicas if replica.keeper is not None]
        keepers = [keeper for _, keeper in kept]
        if not keepers:
            return
        for keeper in keepers:
            self._kept.append(keeper)
            self._spawn(partial(self._keep, keeper))

        async def wait(keeper: Keeper) -> None:
            await keeper.entered.wait()
            if keeper.error is not None:
                _give_up(keepers)

        try:
            async with anyio.create_task_group() as tasks:
                for keeper in keepers:
                    tasks.start_soon(wait, keeper)
        except BaseException:
            await _given_back(keepers)
            raise
        failed = [keeper.error for keeper in keepers if keeper.error is not None]
        if failed or any(keeper.given_up for keeper in keepers):
            await _given_back(keepers)
        if failed:
            raise failed[0]
        for replica, keeper in kept:
            replica.fn, replica.resources = keeper.fn, keeper.resources

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.main()
        finally:
            self._kept.remove(keeper)
            if keeper.late_error is not None:
                self._late_errors.append(keeper.late_error)

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


def _give_up(keepers: Iterable[Keeper]) -> None:
    for keeper in list(keepers):
        keeper.give_up()


async def _given_back(keepers: Sequence[Keeper]) -> None:
    _give_up(keepers)
    with anyio.CancelScope(shield=True):
        for keeper in keepers:
            await keeper.left.wait()


def add_replicas(node: Node, replicas: Iterable[Replica], runs: Iterable[NodeRun]) -> None:
    """Replicas that have all they need work from now on. *runs* are those of open requests."""
    node.route(runs)
    for replica in replicas:
        node.add(replica)
    node.dispatch()


def remove_replicas(node: Node, count: int, runs: Sequence[NodeRun]) -> None:
    """*count* replicas get nothing new: those with the least to do, and of these the youngest."""
    for number in node.binding.leaving(count):
        node.drain(number, runs)


def find_node(nodes: Sequence[tuple[str, Node]], stage: object, pipeline: str) -> Node:
    """Find the stage of that name.

    Raises:
        ValueError: There is none; the message names those that there are.
    """
    for name, node in nodes:
        if name == stage:
            return node
    names = [name for name, _ in nodes]
    near = difflib.get_close_matches(str(stage), names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names))}"
    msg = f"scale(...): pipeline {pipeline!r} has no stage {stage!r}; {remedy}"
    raise ValueError(msg)


def unseen(pipeline: str, app: str) -> str:
    """Give the message for a pipeline that open() would have had to know of."""
    return (
        f"pipeline {pipeline!r}, which a stage of {app!r} calls, has resources of its replicas or "
        f"worker processes, which are made when an app opens, and open() did not see that it would "
        f"be called; mention it by name in the stage, or give it to open() as a resource"
    )
