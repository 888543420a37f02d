"""One running call of a stage: its permit, its waits, its cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import anyio

from alto._aio import Cleanup, current_call, uncut
from alto.model import Origin

if TYPE_CHECKING:
    from alto._run.group import Waiters
    from alto._run.lane import Lane
    from alto._run.replica import Replica
    from alto._run.request import Request
    from alto._run.worker import Worker
    from alto.model import Path, Usage

__all__ = ("Call", "calls_around", "check_outside", "parking_call")


class Call:
    """One call of a stage, from the moment it has a permit until it has ended.

    A call holds a permit of its stage while it runs user code, and gives it back while any of its
    tasks waits inside alto (``park`` … ``unpark``). See ``_core/turns.py``.
    """

    # Class attributes, not slots: of a call that never waits only three are ever set.
    cancelled = False
    """Nobody needs it any more; its outputs are dropped."""
    closing = False
    """Its code has ended; what is left is cleaning up, which nothing interrupts."""
    done = False
    """It has ended by itself and given all its outputs."""
    untidy = False
    """There may be something to close at the end: generations, nested requests."""
    _struck = False  # Its task was cancelled for it.
    _holds = True
    _parks = 0
    _resume: asyncio.Future[None] | None = None
    _cleanup: Cleanup | None = None
    _children: set[Request] | None = None

    _since: float | None = None
    """When it last got a permit, where that is to be known."""
    _busy = 0.0

    def __init__(self, lane: Lane, path: Path, worker: Worker) -> None:
        self.lane = lane
        self.path = path
        self.worker = worker
        if lane.routed:
            self._since = worker.replica.loop.time()

    @property
    def replica(self) -> Replica:
        """Which instance of its stage runs it."""
        return self.worker.replica

    @property
    def cleanup(self) -> Cleanup:
        """Where the call's open generations are kept."""
        if self._cleanup is None:
            self._cleanup = Cleanup()
            self.untidy = True
        return self._cleanup

    @property
    def priority(self) -> int:
        """The request's priority; lower runs earlier."""
        return self.lane.request.priority

    @property
    def deadline(self) -> float | None:
        """When the request's time is over, on the loop's clock; None: never."""
        return self.lane.request.deadline

    @property
    def origin(self) -> Origin:
        """Who asks, for engines that schedule. Paths of nested requests go on from the call's."""
        lane, path, depth = self.lane, self.path, self.lane.node.plan.index
        request = lane.request
        while (parent := request.parent) is not None:
            path = (*parent.path, *path)
            depth += parent.lane.node.plan.index + 1
            request = parent.lane.request
        return Origin(
            stage=lane.request.installed.declaration.name + "." + lane.node.plan.name,
            request=request.number,
            path=path,
            arrived=request.arrived,
            deadline=lane.request.deadline,
            depth=depth,
        )

    def generation_started(self, engine: str, /) -> int:  # noqa: ARG002
        """See ``CurrentCall``."""
        return 0

    def generation_ended(
        self, number: int, engine: str, usage: Usage | None, error: BaseException | None, /
    ) -> None:
        """See ``CurrentCall``."""

    def adopt(self, request: Request) -> None:
        """*request* was started inside this call and must not outlive it."""
        if self._children is None:
            self._children = set()
            self.untidy = True
        self._children.add(request)

    def disown(self, request: Request) -> None:
        """*request* has ended."""
        if self._children is not None:
            self._children.discard(request)

    def cancel(self) -> None:
        """Nobody needs the call any more: cancel it, once. Its own task may say so too."""
        if self.cancelled:
            return
        self.cancelled = True
        task = self.worker.task
        if not self.closing and task is not None and task is not asyncio.current_task():
            self._struck = True
            task.cancel()

    def park(self) -> None:
        """A task of the call is about to wait inside alto: give the permit back."""
        self._parks += 1
        if self._holds:
            self._gave()
            self.worker.replica.freed()

    def _gave(self) -> None:
        # The permit is given back.
        self._holds = False
        replica = self.worker.replica
        replica.turns.gave()
        if self._since is not None:
            self._busy += replica.loop.time() - self._since

    def _has(self) -> None:
        # It has a permit again.
        self._holds = True
        if self._since is not None:
            self._since = self.worker.replica.loop.time()

    async def unpark_cut(self) -> None:
        """The wait was cut short: by the end of the call, or by a time limit within the stage.

        A call that is to end needs no permit to clean up; one that goes on does.
        """
        if self.cancelled:
            self._parks -= 1
            return
        with anyio.CancelScope(shield=True):
            await self.unpark()

    async def unpark(self) -> None:
        """The wait is over: get a permit again, unless another task of the call still waits.

        A task that the call has left behind gets none.

        Cancellation: the call goes on without a permit, to clean up.
        """
        self._parks -= 1
        if self._parks or self._holds or self.closing or self._resume is not None:
            return
        replica = self.worker.replica
        if replica.turns.resume(self):
            self._has()
            return
        self._resume = resume = replica.loop.create_future()
        try:
            await resume
        except asyncio.CancelledError:
            if not replica.turns.left(self):
                replica.turns.gave()
                replica.freed()
            raise
        finally:
            self._resume = None
        if self.closing:  # A task that the call has left behind.
            replica.turns.gave()  # type: ignore[unreachable]  # it has changed meanwhile
            replica.freed()
            return
        self._has()

    def resumed(self) -> None:
        """The replica has taken a permit for this call."""
        if self._resume is not None and not self._resume.done():
            self._resume.set_result(None)

    async def room(self, path: Path) -> None:
        """Wait until every consumer of the stage has room for an item at *path*.

        Cancellation: the item is dropped; the room goes to the next who waits for it.
        """
        lane = self.lane
        again = False
        waited_at: Waiters | None = None
        while (waiters := lane.blocked_by(path)) is not None:
            granted = lane.node.loop.create_future()
            waiters.add(granted, first=again)  # Somebody was quicker: keep the place in the line.
            again = True
            self.park()
            try:
                await granted
            except asyncio.CancelledError:
                if granted.done() and not granted.cancelled():
                    waiters.wake()
                else:
                    waiters.remove(granted)
                await self.unpark_cut()
                raise
            try:
                await self.unpark()
            except asyncio.CancelledError:
                waiters.wake()
                raise
            waited_at = waiters
            if lane.blocked_by(path) not in (None, waiters):
                waiters.wake()
        if waited_at is not None:
            # The item may not take the room that it was told of: its group may have come to be
            # meanwhile, and have room of its own. So the next one looks too.
            waited_at.wake()

    @property
    def is_here(self) -> bool:
        """Whether its loop runs here: its context may have been copied to another thread."""
        return self.worker.replica.loop is asyncio.get_running_loop()

    @property
    def runs(self) -> bool:
        """Whether it has not ended, not even with what it does to clean up."""
        return self.worker.call is self or self.lane.calls.get(self.path) is self

    @property
    def must_close(self) -> bool:
        """Whether the stage's code has left a generation early, which is to be closed now."""
        return self._cleanup is not None and self._cleanup.pending

    async def tidy(self) -> None:
        """Close everything that must not outlive the call. Cancellation: shielded."""
        if self._children:
            self.park()
            for child in list(self._children):
                child.cancel()
            for child in list(self._children):
                await uncut(child.wait_ended)
            self._parks -= 1
        if self._cleanup is not None:
            await self._cleanup.close_all()

    def end(self) -> None:
        """The call has ended, well or not. Sync; exactly once."""
        self.closing = True
        lane = self.lane
        worker = self.worker
        replica, task = worker.replica, worker.task
        lane.calls.pop(self.path, None)
        if self._struck and task is not None and task.cancelling():
            task.uncancel()  # One cancellation: another one may be the loop's, which goes down.
        if self._holds:
            self._gave()
            if replica.turns.resuming:
                replica.kick()
        replica.done += self.done
        if lane.group_slots:
            lane.leave_row(self.path)
        if lane.routed:
            learnt = (
                self.done and self._since is not None
            )  # A call that fails at once is not quick.
            lane.node.ended(self, self._busy if learnt else None)
        lane.active -= 1
        if not lane.active:
            lane.request.check_end()


def parking_call() -> Call | None:
    """The stage call that runs in this context and has a permit to give back, if any."""
    call = current_call.get()
    if not isinstance(call, Call) or call.closing:
        return None
    # Not is_here: whatever waits comes through here.
    return call if call.worker.replica.loop is asyncio.get_running_loop() else None


def calls_around() -> Iterator[Call]:
    """The call that this context is of, perhaps ended; the one that waits for its request; and so on."""
    call = current_call.get()
    if isinstance(call, Call) and call.is_here:
        yield call
        while (call := call.lane.request.parent) is not None:
            yield call


def check_outside(requests: Collection[Request], what: str) -> None:
    """Refuse to close *what* where that would wait for the call that closes it.

    Raises:
        RuntimeError: A call that has not ended, of one of *requests* or of one inside them, runs here.
    """
    if any(call.lane.request in requests and call.runs for call in calls_around()):
        msg = f"a stage cannot close the {what} that it works for, and wait; raise instead"
        raise RuntimeError(msg)
