"""Reads that may be cut: the same read can be made again, in any task, and nothing is lost.

Theory of operation. ``await anext(chunks)`` runs one *step* of an async generator. Where the task that
awaits it is cancelled in the middle, as by a time limit, asyncio throws the cancellation into what the
task waits in, from the outside in; a native generator ends with it, and the next read says
``StopAsyncIteration``, as if everything had been read.

A :class:`Resumable` stands between the task and the generator. The step is driven through an iterator
that has no ``throw``, so what is thrown at the reader stops there and the step stays as it is. And the
task waits for a stand-in of the future that the step waits for, so cancelling the task does not cancel
that future either. There is no other future, no task and no turn of the loop in between: when the
future is done, the task wakes, and the step goes on in it. After a cut the next read goes on with the
step that is there, whatever task makes it.

What is awaited for an item is native, at no Python frame of ours per item but one: an async generator
that drives the steps, a *reader*. It ends with the read that is cut, as any would, and the next read gets
another one, which goes on with the step.

A step that will not be gone on with is cancelled as asyncio would have cancelled it: see
:meth:`Steps.aclose`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import repeat
from types import AsyncGeneratorType, CoroutineType, GeneratorType, coroutine
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, final
from weakref import ref

from alto._current_call import Account, Cleanup, current_call
from alto._wait import wait_shielded
from alto.errors import Closed

__all__ = ("Resumable", "ResumableGenerator", "Steps", "close")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


async def close(chunks: AsyncIterator[Any], /) -> None:
    """Close what can be closed, whatever cancels the task meanwhile."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is not None:
        await wait_shielded(aclose)


_CLOSED: Final = (
    "this {} was closed or cancelled before its end; ask for it again, or keep what you have read"
)
_WITHIN: Final = (
    "a read of this {} was cut while its source waited inside of a `with`, such as a time limit, so that "
    "it had to end; ask for it again, and let the source wait outside of any `with`, for what a task of "
    "its own puts into a queue"
)

_HARMLESS: Final = frozenset(
    {
        "Generation.__aexit__",
        "_ContextManagerMixin.__aexit__",  # of asyncio's locks
        "aclosing.__aexit__",
        "closing.__exit__",
        "nullcontext.__aexit__",
        "nullcontext.__exit__",
        "suppress.__exit__",
    }
)
"""Exits of what may stay entered between two reads, and be left by another task."""


@final
class _Drive(map):  # type: ignore[type-arg]
    """Awaits the current step, without a Python frame of its own, and has no ``throw``.

    Awaiting runs ``next(step)``, whose ``StopIteration`` has the value of the step. What is thrown into
    a coroutine that awaits an iterator without ``throw`` is raised in that coroutine, and leaves the
    iterator alone.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __await__(self) -> Generator[Any, Any, Any]: ...

    else:
        __await__ = map.__iter__


@final
class Steps:
    """The steps of one async generator, of which at most one is under way.

    It is also what a task waits for while a step waits: it implements the interface of a future.

    Args:
        source: The generator.
        what: What is being read, for messages.
        account: Notes the first read and the end.
    """

    __slots__ = ("_account", "_asyncio_future_blocking", "_begun", "_call", "_callback", "_closed", "_context",
                 "_future", "cut", "front", "guard", "source", "step", "waits_for",
                 "what")  # fmt: skip

    def __init__(
        self,
        source: AsyncIterator[Any],
        what: str,
        account: Account | None = None,
    ) -> None:
        # Of a native generator it is known whether a step is under way, so any other gets one around it.
        native: Any = source if type(source) is AsyncGeneratorType else _native(source)
        self.source: AsyncGenerator[Any, None] = native
        self.what = what
        self.step: Any = None
        """The step under way; None: none is."""
        self.cut = False
        """Let go of the step under way: the read that waited for it was cancelled."""
        self.waits_for: Any = None
        """What the step under way gave to the loop when it suspended."""
        self.front: Callable[[], Resumable[Any] | None] = _no_one
        """What it is read through, as long as that is there."""
        self.guard: Callable[[], AsyncGenerator[None, None] | None] = _no_one
        """What asyncio closes in the place of the generator."""
        self._begun = self._closed = False
        self._account = account
        self._asyncio_future_blocking = False
        self._future: asyncio.Future[Any] | None = None  # What this stands in for.
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._call = current_call.get()
        """The stage call that reads, until the end."""

    # -- a read

    def begin(self) -> _Drive:
        """Make the first step, unless one is there that was cut.

        Returns:
            What to await, again and again, for the item of the current step.
        """
        if self.step is None:
            if self._account is not None and not self._begun:
                self._account.begin()
            self._begun = True
            self.step = _unhooked(self.source.__anext__)
        elif self.cut:
            self.cut = False
            waits_for = self.waits_for
            if type(waits_for) is Steps and waits_for.waits:
                self.step = _Again(self, waits_for)
        current = map(getattr, repeat(self), repeat("step"))
        return _Drive(self._suspends, map(next, current))

    def _suspends(self, waits_for: Any) -> Any:  # noqa: ANN401  # whatever goes to the loop
        # The step waits. What this returns goes to the task that drives it. Where a read within this one has put its own stand-in already, that will do.
        if getattr(waits_for, "_asyncio_future_blocking", None) and type(waits_for) is not Steps:
            waits_for._asyncio_future_blocking = False  # noqa: SLF001  # asyncio's protocol
            self._future = waits_for
            waits_for = self.stand_in()
        self.waits_for = waits_for
        return waits_for

    def interrupted(self, error: BaseException, /) -> Coroutine[Any, Any, Any] | None:
        """Note that a read raised *error*.

        Where the step raised it, that was its end. Where it was thrown at the reader, the step goes on
        waiting: the read was cut. But a cancellation is passed on to the step where the call that
        reads has been cancelled, since it will not be read on, and where the step waits inside of a
        ``with``: that may be a time limit of its own, whose cancellation this is.

        Returns:
            None: the read raises *error*. Else what to await instead for the item.
        """
        step = self.step
        if type(step) is _Again:
            step = self.step = step.step
        if self._closed:
            return None
        if not self.source.ag_running:  # type: ignore[attr-defined]
            self.step = None
            self.finish(error)
            return None
        if isinstance(error, asyncio.CancelledError):
            call = self._call
            within = _waits_within(self.source)
            if within or (call is not None and call.cancelled):
                return self._pass_on(step, error, _WITHIN if within else _CLOSED)
        self.cut = True
        self._next_read(partial(_read_on, self.front))
        return None

    async def _pass_on(self, step: Any, error: asyncio.CancelledError, why: str) -> Any:  # noqa: ANN401
        future = self._future if self.waits_for is self else None
        try:
            return await _interrupted(step, future, error)
        except BaseException as end:
            self.step = None
            self.finish(end, why)
            raise
        finally:
            del error  # it has this frame in its traceback

    def left(self) -> None:
        """Note that a reader has ended otherwise than with a read: one was cut before it began."""
        if (self.step is None or self.cut) and not self._closed and not self.over:
            self._next_read(partial(_read_on, self.front))

    def finish(self, error: BaseException, why: str = _CLOSED) -> None:
        """Note that there will be no more steps; *error* is how the last one has ended."""
        if isinstance(error, asyncio.CancelledError):  # "it has ended" would say: it is complete
            self._next_read(partial(_refuse, why.format(self.what)))
        self._call = None
        guard = self.guard()
        if guard is not None and self.over and not guard.ag_running:  # type: ignore[attr-defined]
            with suppress(StopAsyncIteration):  # it has nothing to close, so asyncio need not
                guard.__anext__().__await__().send(None)
        account, self._account = self._account, None
        if account is not None:
            account.end(None if isinstance(error, StopAsyncIteration) else error)

    def _next_read(self, read: Callable[[], Any]) -> None:
        front = self.front()
        if front is not None:
            front.__anext__ = read  # type: ignore[method-assign]

    # -- what asyncio asks of a future

    @property
    def waits(self) -> bool:
        """Whether what it stands in for is still to come."""
        return self._future is not None and not self._future.done()

    def stand_in(self) -> Self:
        """Take the place of the future that the step waits for."""
        self._asyncio_future_blocking = True
        return self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """As of a future."""
        assert self._future is not None
        return self._future.get_loop()

    def add_done_callback(
        self, callback: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        """As of a future; only the task that waits does so, once for each suspension."""
        assert self._future is not None
        self._callback, self._context = callback, context
        self._future.add_done_callback(self._wake, context=context)

    def _wake(self, _: object) -> None:
        callback, self._callback, self._context = self._callback, None, None
        self._future = None
        if callback is not None:
            callback(self)

    def done(self) -> bool:
        """As of a future."""
        return not self.waits

    def result(self) -> None:
        """Return, so that the step goes on and sees itself how what it waits for has ended."""

    def cancel(self, msg: object = None) -> bool:
        """Wake the task that waits with a cancellation. The step goes on waiting."""
        return self.throw(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def throw(self, error: BaseException, /) -> bool:
        """Wake the task that waits with an error, unless it wakes anyway. The step goes on waiting."""
        future, callback, context = self._future, self._callback, self._context
        if callback is None or future is None or future.done():
            return False
        self._callback = self._context = None
        future.remove_done_callback(self._wake)
        # A future that has ended so takes the place of this one, which may be waited for again.
        loop = future.get_loop()
        woken = loop.create_future()
        if isinstance(error, asyncio.CancelledError):
            woken.cancel(*error.args)
        else:
            woken.set_exception(error)
        loop.call_soon(callback, woken, context=context)
        return True

    # -- its end

    @property
    def over(self) -> bool:
        """Whether the generator has ended, so that there is nothing to close."""
        return self.source.ag_frame is None  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        """Close the generator; cancel its step, if one is under way.

        The step sees what it would see if the task that waits in it were cancelled. Whoever still
        waits for it gets ``Closed``.

        Cancellation: the step, or what the generator does to end, is cancelled.
        """
        if self.over:
            return
        self._closed = True
        step, waits_for = self.step, self.waits_for
        self.step = self.waits_for = None
        try:
            if step is not None:
                if not self.cut:
                    self._send_away(waits_for)
                future, self._future = self._future, None
                await self._cancel(step, future if waits_for is self else None)
            await _unhooked(self.source.aclose)
        finally:
            self.finish(asyncio.CancelledError())

    @staticmethod
    async def _cancel(step: Any, future: asyncio.Future[Any] | None) -> None:  # noqa: ANN401
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        try:
            await _interrupted(step, future, asyncio.CancelledError())
        except StopAsyncIteration:
            return
        except asyncio.CancelledError:
            if task is not None and task.cancelling() > before:  # not only the step was cancelled
                raise

    def _send_away(self, waits_for: object) -> None:
        # A task waits for the step that is to be closed. Where that cannot be woken, since it waits
        # for nothing but its turn, it finds a step that refuses.
        why = _CLOSED.format(self.what)
        self.step, self.cut = _Refusal(why), True
        if type(waits_for) is Steps:
            waits_for.throw(Closed(why))


class Resumable(AsyncIterator[T_co], Generic[T_co]):
    """An async generator whose reads may be cut and made again.

    In a stage it is closed at the call's next checkpoint once it is dropped, and at the latest when the
    call ends; elsewhere by asyncio, as any async generator.

    Args:
        source: The generator; any other async iterator will do.
        what: What is being read, for messages.
        account: Notes the first read and the end.
    """

    __slots__ = ("__anext__", "__weakref__", "_cleanup", "guard", "steps")

    if TYPE_CHECKING:

        def __anext__(self) -> Coroutine[Any, Any, T_co]:
            """Read the next item.

            Raises:
                Closed: It was closed or cancelled before its end.
                RuntimeError: Another task waits for the next item.

            Cancellation: nothing is lost; the next read gets the item.
            """
            ...

    def __init__(
        self,
        source: AsyncIterator[T_co],
        what: str,
        account: Account | None = None,
    ) -> None:
        # The steps hold this weakly: when it dies there is no reader any more.
        self.steps = steps = Steps(source, what, account)
        steps.front = front = ref(self)
        self.__anext__ = partial(_read_on, front)  # type: ignore[method-assign]
        self._cleanup: Cleanup | None = None
        self.guard: AsyncGenerator[None, None] | None = None
        """Outside of a stage call: what asyncio closes."""
        call = current_call.get()
        if call is not None:
            self._cleanup = call.cleanup
            self._cleanup.add(steps)
        else:
            self.guard = _guard(steps)
            steps.guard = ref(self.guard)
            with suppress(StopIteration):
                self.guard.__anext__().__await__().send(None)

    def __aiter__(self) -> Self:
        return self

    def reader(self) -> AsyncGenerator[T_co, None]:
        """Read on, until a read is cut."""
        return _reader(self.steps, self.guard)

    async def aclose(self) -> None:
        """Close the generator, and cancel the read that was cut, if there is one."""
        steps = self.steps
        await steps.aclose()
        self.__anext__ = steps.source.__anext__  # type: ignore[method-assign]  # its owner knows why

    def __del__(self) -> None:
        cleanup, steps = self._cleanup, self.steps
        if cleanup is None:
            return
        if steps.over:
            cleanup.discard(steps)
        elif steps.cut or steps.step is None:  # else a task waits for it
            cleanup.abandon(steps)


@final
class ResumableGenerator(Resumable[T], AsyncGenerator[T, None]):
    """A :class:`Resumable` with the interface of an async generator."""

    __slots__ = ()

    def asend(self, value: None, /) -> Any:  # noqa: ANN401, ARG002  # as `__anext__`
        """Read the next item, as ``__anext__`` does."""
        return anext(self)

    def athrow(self, *error: Any) -> Any:  # noqa: ANN401
        """Throw *error* into the generator."""
        return self.steps.source.athrow(*error)

    async def aclose(self) -> None:
        """Close the generator, and cancel the read that was cut, if there is one."""
        await super().aclose()


async def _reader(
    steps: Steps,
    guard: AsyncGenerator[None, None] | None,  # noqa: ARG001  # kept, as the next line says
) -> AsyncGenerator[Any, None]:
    # It keeps *guard*, since it may be all that is left of the reader. `_Chunks` has a copy, for the
    # sake of speed.
    advance = steps.source.__anext__
    try:
        yield  # What is thrown at a reader before it has begun would end it unnoticed.
        drive = steps.begin()
        while True:
            try:
                item = await drive
            except BaseException as error:
                if (passed_on := steps.interrupted(error)) is None:
                    raise
                item = await passed_on
            steps.step = None
            yield item
            steps.step = advance()
    except StopAsyncIteration:
        return
    except BaseException:
        steps.left()
        raise


def _read_on(front: Callable[[], Resumable[T_co] | None]) -> Any:  # noqa: ANN401  # a step
    resumable = front()
    assert resumable is not None  # it is being read
    anext_ = resumable.reader().__anext__
    resumable.__anext__ = anext_  # type: ignore[method-assign]
    begin = _unhooked(anext_)
    with suppress(StopIteration):
        begin.send(None)
    return anext_()


def _no_one() -> None:
    return None


def _refuse(why: str) -> Any:  # noqa: ANN401  # a step
    raise Closed(why)


@final
class _Again:
    """A step that waits on after a cut, and then goes on."""

    __slots__ = ("_steps", "_waits_for", "step")

    def __init__(self, steps: Steps, waits_for: Steps) -> None:
        self._steps = steps
        self._waits_for: Steps | None = waits_for
        self.step = steps.step

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:  # noqa: ANN401  # whatever goes to the loop
        if self._waits_for is not None:
            waits_for, self._waits_for = self._waits_for, None
            return waits_for.stand_in()
        self._steps.step = self.step
        return next(self.step)


@final
class _Refusal:
    """A step that cannot go on."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        return _refuse(self._why)


async def _guard(steps: Steps) -> AsyncGenerator[None, None]:
    """Close *steps* when asyncio closes this: once it is dropped, or when the loop ends."""
    try:
        yield
    finally:
        await steps.aclose()


def _unhooked(use: Callable[[], Any]) -> Any:  # noqa: ANN401  # a step
    # Asyncio is to close a generator's steps, and not the generator, which may be in the middle of one.
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, _leave)
    try:
        return use()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _leave(_: object) -> None:
    """Do nothing for a generator that is dropped, since its steps were closed or the loop is."""


async def _native(source: AsyncIterator[T_co]) -> AsyncGenerator[T_co, None]:
    """Read any async iterator, and close it where it can be closed."""
    try:
        async for item in source:
            yield item
    finally:
        await close(source)


@coroutine
def _interrupted(
    step: Any,  # noqa: ANN401  # of a generator
    future: asyncio.Future[Any] | None,
    error: BaseException,
) -> Generator[Any, None, Any]:
    """Throw *error* into a step and await its end, natively; give its item.

    As asyncio cancels a task, what the step waits for is cancelled instead, where it can be.
    """
    try:
        if (
            future is None
            or not isinstance(error, asyncio.CancelledError)
            or not future.cancel(*error.args[:1])
        ):
            waits_for = step.throw(error)
        elif future.done():
            waits_for = step.send(None)
        else:  # another task, which takes its time to end
            future._asyncio_future_blocking = True  # noqa: SLF001  # asyncio's protocol
            waits_for = future
        while True:
            try:
                yield waits_for
            except BaseException as late:  # noqa: BLE001  # passed on to where it belongs
                waits_for = step.throw(late)
            else:
                waits_for = step.send(None)
    except StopIteration as end:
        return end.value
    finally:
        del error  # it has this frame in its traceback


def _waits_within(waiting: Any) -> bool:  # noqa: ANN401  # a generator or coroutine
    """Whether a suspended generator, or what it awaits, is inside of a ``with`` that may be a scope."""
    while waiting is not None:
        # The interpreter keeps the exit of each `with` on the stack of the frame.
        for held in gc.get_referents(waiting):
            if getattr(held, "__name__", None) in ("__exit__", "__aexit__") and (
                getattr(held, "__qualname__", None) not in _HARMLESS
            ):
                return True
        waiting = _awaited(waiting)
    return False


def _awaited(waiting: Any) -> Any:  # noqa: ANN401  # as above
    for name in ("ag_await", "cr_await", "gi_yieldfrom"):
        if hasattr(waiting, name):
            return getattr(waiting, name)
    if isinstance(waiting, _Drive):  # a read within this one
        owners = (getattr(held, "__self__", None) for held in gc.get_referents(waiting))
        return next((owner.source for owner in owners if type(owner) is Steps), None)
    kinds = (AsyncGeneratorType, CoroutineType, GeneratorType)
    return next((held for held in gc.get_referents(waiting) if isinstance(held, kinds)), None)
