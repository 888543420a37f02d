"""Async generators whose reads may be cut: the read can be made again, in any task, and nothing is lost.

Theory of operation. ``await anext(chunks)`` runs one *step* of an async generator. If the task that
awaits it is cancelled during the step, as by a time limit, asyncio throws the cancellation into the
awaited coroutines. A native generator ends with it, and the next read raises
``StopAsyncIteration``, as if everything had been read. Such a read is called *cut*.

A :class:`Resumable` is between the task and the generator. The step is driven through an iterator
that has no ``throw``, so an error that is thrown at the reader stops there and leaves the step as it is.
The task waits for a stand-in of the future that the step waits for, so cancelling the task does not
cancel that future either. There is no other future, no task and no turn of the loop in between: when the
future is done, the task wakes, and the step continues in it. After a cut the next read continues the
pending step, in whatever task it is made.

An item costs a single Python frame of this module: that of a *reader*, a native async generator that
drives the steps. It ends with the read that is cut, as any generator would, and the next read gets
a new one, which continues the step.

A step that will not be continued is cancelled as asyncio would have cancelled it: see
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
    """Close *chunks*, if it has ``aclose``. Cancellation: closing is finished first."""
    aclose = getattr(chunks, "aclose", None)
    if aclose is not None:
        await wait_shielded(aclose)


_CLOSED: Final = (
    "this {} was closed or cancelled before its end; ask for it again, or keep what you have read"
)
_WITHIN: Final = (
    "a read of this {} was cut while its source waited inside of a `with`, such as a time limit, which "
    "ended the source; ask for it again, and let the source wait outside of any `with`, for a queue that a "
    "task of its own fills"
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
"""Exits of context managers that need not be left by the task that entered them."""


@final
class _Drive(map):  # type: ignore[type-arg]
    """Awaitable of the current step, without a Python frame of its own and without ``throw``.

    Awaiting runs ``next(step)``, whose ``StopIteration`` has the value of the step. An error thrown into
    a coroutine that awaits an iterator without ``throw`` is raised in that coroutine; the iterator is
    not touched.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __await__(self) -> Generator[Any, Any, Any]: ...

    else:
        __await__ = map.__iter__


@final
class Steps:
    """Steps of one async generator, of which at most one is under way.

    It is also the object that a task waits for while a step waits: it has the interface of a future.

    Args:
        source: The generator; any other async iterator is wrapped in one.
        what: Name of the source, for messages.
        account: Notified of the first read and the end.
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
        # Only a native generator shows whether a step is under way, so anything else is wrapped in one.
        native: Any = source if type(source) is AsyncGeneratorType else _native(source)
        self.source: AsyncGenerator[Any, None] = native
        self.what = what
        self.step: Any = None
        """The step under way; None: none is."""
        self.cut = False
        """The read that waited for the step under way was cut."""
        self.waits_for: Any = None
        """The object that the step under way gave to the loop when it suspended."""
        self.front: Callable[[], Resumable[Any] | None] = _no_object
        """Weak reference to the `Resumable` that is read."""
        self.guard: Callable[[], AsyncGenerator[None, None] | None] = _no_object
        """Weak reference to the generator that asyncio closes instead of *source*."""
        self._begun = self._closed = False
        self._account = account
        self._asyncio_future_blocking = False
        self._future: asyncio.Future[Any] | None = None  # The future that this stands in for.
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._call = current_call.get()
        """Stage call that reads; None: there is none, or the generator has ended."""

    # -- a read

    def begin(self) -> _Drive:
        """Make the first step, or take up the one whose read was cut.

        Returns:
            An object to await again and again, each time for the item of the current step.
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
                self.step = _ContinuedStep(self, waits_for)
        current = map(getattr, repeat(self), repeat("step"))
        return _Drive(self._suspends, map(next, current))

    def _suspends(self, waits_for: Any) -> Any:  # noqa: ANN401  # whatever goes to the loop
        # Called when the step suspends; the result goes to the task. If the step reads another Resumable,
        # *waits_for* is a stand-in already.
        if getattr(waits_for, "_asyncio_future_blocking", None) and type(waits_for) is not Steps:
            waits_for._asyncio_future_blocking = False  # noqa: SLF001  # asyncio's protocol
            self._future = waits_for
            waits_for = self.stand_in()
        self.waits_for = waits_for
        return waits_for

    def interrupted(self, error: BaseException, /) -> Coroutine[Any, Any, Any] | None:
        """Handle the *error* that a read raised.

        If the step raised it, the generator has ended. If it was thrown at the reader, the step continues
        waiting: the read is cut. Two cancellations are passed on to the step instead: if the call that
        reads was cancelled, since no read will follow; and if the step waits inside a ``with``, which may
        be a time limit of its own that caused the cancellation.

        Returns:
            None if the read raises *error*, else an awaitable of the item.
        """
        step = self.step
        if type(step) is _ContinuedStep:
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
            del error  # its traceback refers to this frame

    def reader_ended(self) -> None:
        """Prepare the next read after a reader ended outside a read: one was cut before it began."""
        if (self.step is None or self.cut) and not self._closed and not self.over:
            self._next_read(partial(_read_on, self.front))

    def finish(self, error: BaseException, why: str = _CLOSED) -> None:
        """End: there will be no more steps; the last one raised *error*."""
        if isinstance(error, asyncio.CancelledError):  # StopAsyncIteration would look like the end
            self._next_read(partial(_refuse, why.format(self.what)))
        self._call = None
        guard = self.guard()
        if guard is not None and self.over and not guard.ag_running:  # type: ignore[attr-defined]
            with suppress(StopAsyncIteration):  # end the guard, so that asyncio need not close it
                guard.__anext__().__await__().send(None)
        account, self._account = self._account, None
        if account is not None:
            account.end(None if isinstance(error, StopAsyncIteration) else error)

    def _next_read(self, read: Callable[[], Any]) -> None:
        front = self.front()
        if front is not None:
            front.__anext__ = read  # type: ignore[method-assign]

    # -- the interface of a future, as asyncio uses it

    @property
    def waits(self) -> bool:
        """True while the future that this stands in for is not done."""
        return self._future is not None and not self._future.done()

    def stand_in(self) -> Self:
        """Return this object, marked as the future that the task has to wait for."""
        self._asyncio_future_blocking = True
        return self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the future that this stands in for."""
        assert self._future is not None
        return self._future.get_loop()

    def add_done_callback(
        self, callback: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        """Call *callback* when the future is done. Used by the waiting task, once per suspension."""
        assert self._future is not None
        self._callback, self._context = callback, context
        self._future.add_done_callback(self._wake, context=context)

    def _wake(self, _: object) -> None:
        callback, self._callback, self._context = self._callback, None, None
        self._future = None
        if callback is not None:
            callback(self)

    def done(self) -> bool:
        """Return whether the future that this stands in for is done."""
        return not self.waits

    def result(self) -> None:
        """Return nothing: the step itself reads the result of the future that it waits for."""

    def cancel(self, msg: object = None) -> bool:
        """Wake the waiting task with a cancellation. The step keeps waiting."""
        return self.throw(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def throw(self, error: BaseException, /) -> bool:
        """Wake the waiting task with an error, unless it wakes anyway. The step keeps waiting."""
        future, callback, context = self._future, self._callback, self._context
        if callback is None or future is None or future.done():
            return False
        self._callback = self._context = None
        future.remove_done_callback(self._wake)
        # The task gets a future that ended with the error, since this one may be waited for again.
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
        """True once the generator has ended, so that nothing has to be closed."""
        return self.source.ag_frame is None  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        """Close the generator; cancel its step, if one is under way.

        The step is cancelled as if the task that waits in it were. A read that still waits for the step
        raises ``Closed``.

        Cancellation: it is passed on to the step, or to the generator's cleanup.
        """
        if self.over:
            return
        self._closed = True
        step, waits_for = self.step, self.waits_for
        self.step = self.waits_for = None
        try:
            if step is not None:
                if not self.cut:
                    self._dismiss_reader(waits_for)
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
            if task is not None and task.cancelling() > before:  # the task itself was cancelled too
                raise

    def _dismiss_reader(self, waits_for: object) -> None:
        # A task waits for the step that is closed. If it waits for a stand-in, it is woken with the error.
        # If it only waits for its turn of the loop, it finds a step that raises.
        why = _CLOSED.format(self.what)
        self.step, self.cut = _RefusingStep(why), True
        if type(waits_for) is Steps:
            waits_for.throw(Closed(why))


class Resumable(AsyncIterator[T_co], Generic[T_co]):
    """Async generator whose reads may be cut and made again.

    When it is dropped in a stage, it is closed at the call's next checkpoint, at the latest when the
    call ends; elsewhere asyncio closes it, like any async generator.

    Args:
        source: The generator, or any other async iterator.
        what: Name of the source, for messages.
        account: Notified of the first read and the end.
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
        # The steps refer to this weakly, so that dropping it ends the reading.
        self.steps = steps = Steps(source, what, account)
        steps.front = front = ref(self)
        self.__anext__ = partial(_read_on, front)  # type: ignore[method-assign]
        self._cleanup: Cleanup | None = None
        self.guard: AsyncGenerator[None, None] | None = None
        """Outside a stage call, the generator that asyncio closes."""
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
        """Return a reader, which ends when a read is cut."""
        return _reader(self.steps, self.guard)

    async def aclose(self) -> None:
        """Close the generator, and cancel the read that was cut, if there is one."""
        steps = self.steps
        await steps.aclose()
        self.__anext__ = steps.source.__anext__  # type: ignore[method-assign]  # ends, like a closed generator

    def __del__(self) -> None:
        cleanup, steps = self._cleanup, self.steps
        if cleanup is None:
            return
        if steps.over:
            cleanup.discard(steps)
        elif steps.cut or steps.step is None:  # else a task still waits for a step
            cleanup.abandon(steps)


@final
class ResumableGenerator(Resumable[T], AsyncGenerator[T, None]):
    """`Resumable` with the whole interface of an async generator."""

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
    guard: AsyncGenerator[None, None] | None,  # noqa: ARG001  # kept alive, see below
) -> AsyncGenerator[Any, None]:
    # The frame keeps *guard* alive, since a pending read may be the only reference that is left.
    # `alto/_llm/generation.py` has a copy of this function, for speed.
    advance = steps.source.__anext__
    try:
        yield  # an error thrown at a reader that has not begun would be lost
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
        steps.reader_ended()
        raise


def _read_on(front: Callable[[], Resumable[T_co] | None]) -> Any:  # noqa: ANN401  # a step
    resumable = front()
    assert resumable is not None  # its __anext__ is what was called
    anext_ = resumable.reader().__anext__
    resumable.__anext__ = anext_  # type: ignore[method-assign]
    begin = _unhooked(anext_)  # run to the first yield, so that a later throw is noticed
    with suppress(StopIteration):
        begin.send(None)
    return anext_()


def _no_object() -> None:
    return None


def _refuse(why: str) -> Any:  # noqa: ANN401  # a step
    raise Closed(why)


@final
class _ContinuedStep:
    """Step after a cut: waits again for the stand-in of before, then continues the old step."""

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
class _RefusingStep:
    """Step of a closed generator: raises ``Closed``."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        return _refuse(self._why)


async def _guard(steps: Steps) -> AsyncGenerator[None, None]:
    """Close *steps* when asyncio closes this: when it is dropped, or when the loop shuts down."""
    try:
        yield
    finally:
        await steps.aclose()


def _unhooked(use: Callable[[], Any]) -> Any:  # noqa: ANN401  # a step
    # Asyncio must not close the generator itself, which may be in the middle of a step: it closes the guard.
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, _leave)
    try:
        return use()
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _leave(_: object) -> None:
    """Finalise a dropped generator: nothing to do, as its steps or the loop are closed already."""


async def _native(source: AsyncIterator[T_co]) -> AsyncGenerator[T_co, None]:
    """Read any async iterator, and close it if it has ``aclose``."""
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
    """Throw *error* into a step, await the end of the step, and return its item.

    For a cancellation the future that the step waits for is cancelled instead, if it can be, as
    asyncio does it for a task.
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
        else:  # the future is another task, which may take time to end
            future._asyncio_future_blocking = True  # noqa: SLF001  # asyncio's protocol
            waits_for = future
        while True:
            try:
                yield waits_for
            except BaseException as late:  # noqa: BLE001  # passed on to the step
                waits_for = step.throw(late)
            else:
                waits_for = step.send(None)
    except StopIteration as end:
        return end.value
    finally:
        del error  # its traceback refers to this frame


def _waits_within(waiting: Any) -> bool:  # noqa: ANN401  # a generator or coroutine
    """Return whether a suspended generator, or what it awaits, is inside a ``with`` that may be a scope."""
    while waiting is not None:
        # CPython keeps the exit method of each entered `with` on the stack of the frame.
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
