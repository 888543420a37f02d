"""A request: its runs at the stages, its results, its end.

A request has an identity: an id, the caller's context, a priority, a deadline, its own resources and
its usage. Everything here is sync except the waits for its end.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from alto._graph.plan import Plan
from alto._graph.spec import Declaration, GroupOrder
from alto._runtime.call import Call, wait
from alto._runtime.group import NamedRun
from alto._runtime.node_run import NodeRun
from alto._runtime.observers import Notify
from alto._runtime.sink import Sink
from alto._wait import wait_shielded
from alto.errors import (
    BufferExceeded,
    DeadlineExceeded,
    RequestCancelled,
    RequestError,
    StageError,
)
from alto.events import Event, Outcome, RequestEnded, RequestStarted
from alto.model import Path, Usage

if TYPE_CHECKING:
    from alto._runtime.node import Node

__all__ = ("Options", "Request", "RequestApp", "RequestUsage")

_PROCESS = secrets.token_hex(4)


@attrs.frozen(kw_only=True)
class RequestUsage:
    """Usage of a request's generations, including those of inner requests."""

    generations: int = 0
    """Number of generations that have ended and reported usage, including vectors and scores."""
    prompt_tokens: int = 0
    """Tokens of their prompts."""
    cached_tokens: int = 0
    """Tokens of the prompts that engines found in their prefix caches."""
    output_tokens: int = 0
    """Tokens generated."""


@attrs.frozen(kw_only=True)
class Options:
    """Options of one request."""

    context: Context
    """The caller's context variables. Each call gets a copy."""
    order: GroupOrder | None = "arrival"
    """Order in which results are handed out; None: they are kept for a list."""
    timeout: float | None = None
    """Seconds until the request times out; None: never."""
    priority: int = 0
    """Lower runs earlier."""
    values: tuple[Mapping[str, object] | None, ...] | None = None
    """For each stage of the pipeline, its resources for this request alone."""
    given: Mapping[str, object] = attrs.field(factory=dict)
    """The resources for this request alone by name, for pipelines that its stages call."""


class RequestApp(Protocol):
    """The app, as its requests see it."""

    capacity: int
    max_held_items: int

    @property
    def notify_request(self) -> Notify | None:
        """Function that notifies observers of requests; None: no observer wants them."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Event loop of its app."""
        ...

    @property
    def context(self) -> Context:
        """Context of the app's own callbacks."""
        ...

    def inner(
        self, declaration: Declaration, inputs: Sequence[object], call: Call, options: Options
    ) -> Request:
        """Start a request of another pipeline from inside a call."""
        ...

    def request_ended(self, request: Request) -> None:
        """Forget a request that has ended."""
        ...


class Request:
    """One run of a pipeline, from its input to its last result.

    It ends when all results have arrived or it was stopped, *and* none of its calls runs or can start:
    nothing of a request outlives it.
    """

    __slots__ = ("__weakref__", "_drops", "_ended", "_id", "_plan", "_root", "_runs", "_timer", "app", "arrived",
                 "capacity", "context", "deadline", "declaration", "ended", "error", "finished", "first_unread", "fresh",
                 "given", "held", "max_held", "number", "on_end", "parent", "priority", "reason", "sink",
                 "stopping", "usage")  # fmt: skip

    _numbers = itertools.count()

    def __init__(
        self,
        app: RequestApp,
        declaration: Declaration,
        nodes: Sequence[Node],
        options: Options,
        *,
        parent: Call | None = None,
    ) -> None:
        self.app = app
        self.declaration = declaration
        """The declaration of its pipeline, kept alive while the request runs."""
        self.capacity = app.capacity
        self.max_held = app.max_held_items
        # A copy, since a map passes one context to all its requests.
        self.context = options.context.copy()
        self.priority = options.priority
        self.given = options.given
        self.parent = parent
        """The call that started it, for an inner request."""
        self._root: Request | None = None if parent is None else parent.run.request.root
        self.number = next(self._numbers)
        """Unique in this process."""
        self._id: str | None = None
        self.arrived = app.loop.time()
        """Time of its start, on the loop's clock."""
        self.finished = 0.0
        """Time of its end, on the loop's clock."""
        self.deadline: float | None = None
        """Time at which it times out, on the loop's clock; None: never."""
        self.held = 0
        """Number of items in group and join buffers."""
        self.usage = RequestUsage()
        """Usage of its generations."""
        self.error: RequestError | None = None
        self.stopping = False
        """It failed or was cancelled: no call is started and no result is kept."""
        self.reason = ""
        """Reason of its cancellation, for the error message."""
        self.ended = False
        self.fresh = options.order is not None
        """True until its reader has got the first result."""
        self.first_unread = False
        """True while its reader is about to read the first result. Workers pause to let it."""
        self.on_end: Callable[[Request], None] | None = None
        self._drops: deque[tuple[NodeRun, Path]] = deque()
        self._ended: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._plan: Plan = declaration.plan
        self.sink = Sink(self, self._plan.depth, options.order)
        self._runs: tuple[NodeRun, ...] = ()
        self._connect(nodes, options.values)
        if parent is not None:
            self.deadline = parent.deadline
            parent.adopt(self)
        if options.timeout is not None:
            self._limit(options.timeout)

    def _connect(
        self, nodes: Sequence[Node], values: Sequence[Mapping[str, object] | None] | None
    ) -> None:
        own = values or [None] * len(nodes)
        self._runs = tuple(NodeRun(self, *one) for one in zip(nodes, own, strict=True))
        for run in self._runs:
            plan = run.node.plan
            run.connect(self._targets(plan.consumers), self._targets(plan.counts_to))

    def _limit(self, timeout: float) -> None:
        at = self.arrived + timeout
        if self.deadline is None or at < self.deadline:
            self.deadline = at
        # Not in the caller's context: the timer would keep it alive.
        self._timer = self.app.loop.call_at(
            at, self.fail, DeadlineExceeded(timeout), context=self.app.context
        )

    @property
    def id(self) -> str:
        """Id in events, errors and results, unique also among processes."""
        if self._id is None:
            self._id = f"{_PROCESS}-{self.number}"
        return self._id

    @property
    def root(self) -> Request:
        """The outermost request: itself, or for an inner request the one that the program started."""
        return self if self._root is None else self._root

    @property
    def runs(self) -> Sequence[NodeRun]:
        """The request's run at each stage; empty once it has ended."""
        return self._runs

    def start(self, inputs: Sequence[object]) -> None:
        """Push the inputs to their consumers."""
        if (notify := self.app.notify_request) is not None:
            self._notify(notify, self._started_event())
        for value, consumers in zip(inputs, self._plan.inputs, strict=True):
            for target in self._targets(consumers):
                target.push((), value)
        self.check_end()

    def producer(self, source: int) -> NodeRun | None:
        """Return the run that produces stream *source*; None for an input of the pipeline."""
        index = source - len(self._plan.inputs)
        return self._runs[index] if index >= 0 and self._runs else None

    def drop_soon(self, run: NodeRun, ancestor: Path) -> None:
        """Drop what *run* produces below *ancestor*. Not recursive, because graphs may be deep."""
        self._drops.append((run, ancestor))
        if len(self._drops) == 1:
            while self._drops:
                run, ancestor = self._drops[0]
                run.drop(ancestor)
                self._drops.popleft()

    def add_held(self, items: int, run: NamedRun) -> None:
        """Count *items* in group and join buffers; fail the request if there are too many."""
        self.held += items
        if self.held > self.max_held:
            self.fail(BufferExceeded(run.name, self.max_held))

    def remove_held(self, items: int) -> None:
        """Count *items* that have left group and join buffers."""
        self.held -= items

    def add_usage(self, usage: Usage) -> None:
        """Add the usage of a generation, here and in the requests around this one."""
        request: Request = self
        while True:
            total = request.usage
            request.usage = RequestUsage(
                generations=total.generations + 1,
                prompt_tokens=total.prompt_tokens + usage.prompt_tokens,
                cached_tokens=total.cached_tokens + usage.cached_tokens,
                output_tokens=total.output_tokens + usage.output_tokens,
            )
            if request.parent is None:
                return
            request = request.parent.run.request  # type: ignore[assignment]  # a call sees less of it

    def stage_failed(self, call: Call, cause: BaseException) -> None:
        """Fail with the exception that a call has raised."""
        _cut_traceback(cause)
        self.fail(StageError(call.run.name, call.path, cause))

    def fail(self, error: RequestError) -> None:
        """Stop with *error*. The first of several errors counts; the others become notes on it."""
        if self.ended:
            return
        if self.error is not None:
            self.error.add_note(f"while stopping, also: {error}")
            return
        if self.stopping:  # Cancelled before: no reader takes the error.
            if isinstance(error.__cause__, KeyboardInterrupt | SystemExit):
                return  # It ends the program by itself.
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"while a cancelled request was stopping: {error}", "exception": error}
            )
            return
        error.request_id = self.id
        self.error = error
        self._stop()

    def cancel(self, reason: str = "its handle was closed or left") -> None:
        """Stop; the results are not needed any more, for *reason*. Idempotent."""
        if not self.stopping and not self.ended:
            self.reason = reason
            self.sink.clear()
            self._stop()

    def give_up(self) -> None:
        """Stop and end without waiting for calls, which may never end because alto itself has failed."""
        self.cancel()
        if not self.ended:
            self._end()

    async def wait_ended(self) -> None:
        """Wait until none of its calls runs any more.

        Cancellation: the request continues.
        """
        if not self.ended:
            await self._end_event().wait()

    async def results(self) -> list[Any]:
        """Wait for all results, in ancestry order.

        Raises:
            RequestError: It failed.
            RequestCancelled: It was cancelled.

        Cancellation: the request is cancelled; raised when it has ended.
        """
        if not self.ended:
            try:
                await wait(self._end_event())
            except BaseException:
                self.cancel()
                await wait_shielded(self.wait_ended)
                raise
        return self.take_all()

    def take_all(self) -> list[Any]:
        """Take all results of an ended request, in ancestry order, or raise its error."""
        if self.stopping:
            raise self.take_error()
        return self.sink.take_all()

    def take_error(self) -> RequestError:
        """Take the error to raise to the reader of a stopped request; the request forgets it."""
        # A raised error refers to its traceback, that to the frames of readers, and those to the
        # request. If the request referred to the error, only the garbage collector would free them.
        error, self.error = self.error, None
        if error is None:
            error = RequestCancelled(self.reason)
            error.request_id = self.id
        return error

    def _end_event(self) -> asyncio.Event:
        if self._ended is None:
            self._ended = asyncio.Event()
        return self._ended

    def _targets(self, consumers: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
        return tuple(self.sink if n < 0 else self._runs[n].ports[slot] for n, slot in consumers)

    def _stop(self) -> None:
        self.stopping = True
        self.fresh = self.first_unread = False
        for run in self._runs:
            self.drop_soon(run, ())
        self.sink.stop()
        self.sink.room.wake_all()
        self.check_end()

    def check_end(self) -> None:
        """End the request if it has all results, or was stopped, and none of its calls runs."""
        if self.ended or not (self.sink.complete or self.stopping):
            return
        # All results may have arrived while calls still run whose outputs go nowhere (the other side
        # of an empty join). Wait for them: a request makes the calls that a sequential run makes.
        if any(run.busy for run in self._runs):
            return
        self._end()

    def _end(self) -> None:
        self.ended = True
        self.fresh = self.first_unread = False
        self.finished = self.app.loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        runs, self._runs = self._runs, ()
        for run in runs:
            run.close()
        if self._ended is not None:
            self._ended.set()
        self.sink.detach()
        self.sink.wake()
        if self.parent is not None:
            self.parent.disown(self)
        self.app.request_ended(self)
        if (notify := self.app.notify_request) is not None:
            self._notify(notify, self._ended_event())
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end(self)

    def _notify(self, notify: Notify, event: Event) -> None:
        # In the request's context: the request's calls see what an observer sets at the start, and the
        # observer can reset it at the end.
        try:
            self.context.run(notify, event)
        except RuntimeError:  # Inside an event of the same request: its context is entered already.
            notify(event)

    def _started_event(self) -> RequestStarted:
        parent = self.parent
        return RequestStarted(
            request=self.id,
            pipeline=self.declaration.name,
            time=self.arrived,
            root=self.root.id,
            parent=None if parent is None else parent.run.request.id,
            parent_stage=None if parent is None else parent.run.stage,
            parent_path=None if parent is None else parent.path,
            priority=self.priority,
            deadline=self.deadline,
        )

    def _ended_event(self) -> RequestEnded:
        outcome: Outcome = "failed" if self.error else "cancelled" if self.stopping else "done"
        return RequestEnded(
            request=self.id,
            pipeline=self.declaration.name,
            time=self.finished,
            outcome=outcome,
            error=self.error,
        )


def _cut_traceback(error: BaseException) -> None:
    # Remove the runtime's own frames: they do not help users, and would keep the request's items
    # alive as long as the error.
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__package__") == "alto._runtime":
        trace = trace.tb_next
    if trace is not None:  # Works also for a frozen dataclass, whose fields cannot be set.
        BaseException.with_traceback(error, trace)
