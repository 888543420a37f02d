"""Plain functions in worker threads, which a cancelled call abandons.

Theory of operation. A thread cannot be interrupted. A call that is cancelled returns immediately and
*abandons* its thread: the function's result or exception is dropped, and the next call runs in
another thread. An abandoned thread ends, or is used again, when its function has returned.

The threads are daemons of a separate pool. Those of ``concurrent.futures`` are joined when the
interpreter exits, so a function that never returns would keep the program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar, final

import anyio

from alto._current_call import current_call
from alto._wait import wait_shielded

__all__ = ("GRACE_S", "MOST_PER_PERMIT", "Threads")

GRACE_S: Final = 2.0
"""Seconds that closing waits for abandoned threads before it gives back their resources."""
MOST_PER_PERMIT: Final = 4
"""Maximum number of a replica's threads, per permit, including abandoned ones."""

_log = logging.getLogger("alto")
T = TypeVar("T")


@final
class Threads:
    """The threads of one replica.

    Args:
        stage: Name of the stage.
        number: Number of the replica.
        concurrency: Maximum number of calls that run concurrently.
    """

    def __init__(self, stage: str, number: int, concurrency: int) -> None:
        self._stage = stage
        self._number = number
        self._pool = _ThreadPool(f"alto {stage} {number}", concurrency)
        self._slots = asyncio.Semaphore(MOST_PER_PERMIT * concurrency)
        """Slots for threads, held from the start of a function until it has returned, abandoned or not."""
        self._loop = asyncio.get_running_loop()
        self._returned = anyio.Event()

    @property
    def abandoned(self) -> int:
        """Number of threads that still run the function of a cancelled call."""
        return self._pool.abandoned

    async def run(self, function: Callable[..., Any], /, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        """Run *function* in a thread, in a copy of the caller's context.

        Waits first while the maximum number of threads runs.

        Cancellation: raised immediately; the thread is abandoned, and the function's result or
        exception is dropped.
        """
        await self._slots.acquire()
        job = _Job(_in_context(function, args, kwargs), self._wake)
        try:
            done = self._loop.run_in_executor(self._pool, job)
        except BaseException:  # The system has no more threads.
            self._slots.release()
            raise
        try:
            return await done
        finally:
            if done.done() and not done.cancelled():
                done.exception()  # Mark it as retrieved, also if this task is cancelled at the same moment.
                self._slots.release()
            else:
                done.cancel()
                # The thread keeps the slot until its function has returned: see _over().
                if not self._pool.abandon(job):
                    self._slots.release()

    async def run_to_end(self, function: Callable[..., Any], /, *args: object) -> Any:  # noqa: ANN401
        """Run *function* in a thread, without a limit on their number.

        Cancellation: raised when *function* has returned; its result is lost.
        """
        job = _Job(_in_context(function, args, {}), self._wake)
        done = self._loop.run_in_executor(self._pool, job)

        async def wait() -> None:
            await asyncio.wait([done])

        try:
            await wait_shielded(wait)
        finally:
            if not done.cancelled():
                done.exception()  # Mark it as retrieved, also if the cancellation is raised instead.
        return done.result()

    def _wake(self) -> None:
        # Runs in the thread of an abandoned function that has returned.
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._over)

    def _over(self) -> None:
        self._slots.release()
        self._returned.set()

    async def settle(self) -> None:
        """Wait until no thread is abandoned, but at most ``GRACE_S`` seconds."""
        with anyio.move_on_after(GRACE_S):
            while self.abandoned:
                self._returned = anyio.Event()
                await self._returned.wait()

    def close(self) -> None:
        """End the threads. Abandoned ones end when their functions have returned."""
        running = self._pool.close()
        if running:
            _log.warning(
                "stage %r: %d thread(s) of replica %d still run functions whose calls were "
                "cancelled; a thread cannot be interrupted: give the function a time limit of its own",
                self._stage,
                running,
                self._number,
            )


def _in_context(
    function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]
) -> Callable[[], T]:
    context = copy_context()
    context.run(
        current_call.set, None
    )  # In a thread there is no current call: a call belongs to its loop.
    return partial(context.run, partial(function, *args, **kwargs))


@final
class _Job:
    """A function to run in a thread, and its state. Guarded by its pool's lock."""

    __slots__ = ("_call", "abandoned", "ended", "future", "returned", "thread")

    def __init__(self, call: Callable[[], object], returned: Callable[[], None]) -> None:
        self._call = call
        self.returned = returned
        """Called in the thread when an abandoned function has returned."""
        self.future: Future[Any] = Future()
        self.thread: threading.Thread | None = None
        """The thread that runs it."""
        self.abandoned = False
        self.ended = False

    def __call__(self) -> object:
        """Run the function."""
        try:
            return self._call()
        except StopIteration as error:  # A future does not accept a StopIteration.
            msg = "the function raised StopIteration"
            raise RuntimeError(msg) from error


@final
class _ThreadPool(Executor):
    """A pool of daemon threads: one for each running job, and at most *keep* idle ones.

    It is a ``concurrent.futures.Executor``, so that a loop on virtual time knows that a job runs.
    """

    def __init__(self, name: str, keep: int) -> None:
        self._name = name
        self._keep = keep
        self._lock = threading.Lock()
        self._work: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}
        self._spare = 0
        """Number of threads that wait for work and have none in the queue."""
        self._jobs: set[_Job] = set()
        """Jobs that have not ended."""
        self.abandoned = 0
        """Number of abandoned jobs."""
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *_: Any, **__: Any) -> Future[T]:  # noqa: ANN401
        """Run a job in a thread."""
        assert isinstance(fn, _Job)
        with self._lock:
            if self._spare:
                self._spare -= 1
            else:
                self._start()
            self._jobs.add(fn)
        self._work.put(fn)
        return fn.future

    def _start(self) -> None:
        number = next(n for n in range(len(self._threads) + 1) if n not in self._threads)
        name = f"{self._name}_{number}"
        thread = threading.Thread(target=self._main, args=(number,), name=name, daemon=True)
        thread.start()
        self._threads[number] = thread

    def abandon(self, job: _Job) -> bool:
        """Abandon a job. Returns False if it has ended; then its ``returned`` is not called."""
        with self._lock:
            if not job.ended:
                job.abandoned = True
                self.abandoned += 1
            return job.abandoned

    def close(self) -> int:
        """End all idle threads. Returns the number of others, which end with their jobs.

        All running jobs were abandoned, unless the loop shuts down and cancels everything together.
        """
        with self._lock:
            self._closed = True
            # A job whose future can be cancelled has not begun, and now never will.
            busy = {job.thread for job in self._jobs if not job.future.cancel()}
            idle = [thread for thread in self._threads.values() if thread not in busy]
            for _ in idle:
                self._work.put(None)
        for thread in idle:
            thread.join()
        return len(busy)

    def _main(self, number: int) -> None:
        while self._serve(self._work.get(), number):
            pass

    def _serve(self, job: _Job | None, number: int) -> bool:
        # Return whether the thread takes another job.
        if job is None:
            return False
        job.thread = threading.current_thread()
        # The future is cancelled before the awaiting call can mark the job as abandoned.
        begins = job.future.set_running_or_notify_cancel()
        value, error = None, None
        if begins:
            try:
                value = job()
            except BaseException as raised:  # noqa: BLE001  # passed to the future
                error = raised
        with self._lock:
            job.ended = True
            self._jobs.discard(job)
            self.abandoned -= job.abandoned
            # Before the result is set, so that a job submitted then finds this thread spare.
            stays = not self._closed and len(self._threads) <= self._keep + self.abandoned
            if stays:
                self._spare += 1
            else:
                del self._threads[number]
        try:
            if job.abandoned:
                job.returned()
            elif not begins:
                pass
            elif error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(value)
        finally:
            del error, value  # Break the cycle through the traceback's frame.
        return stays
