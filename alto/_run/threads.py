"""Plain functions on worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

from alto._aio import current_call, uncut

__all__ = ("Threads",)


class Threads:
    """The threads of one replica.

    Args:
        stage: Name of the stage.
        number: Number of the replica.
        limit: How many functions run at once.
    """

    def __init__(self, stage: str, number: int, limit: int) -> None:
        name = f"alto {stage} {number}"
        self._pool = ThreadPoolExecutor(max_workers=limit, thread_name_prefix=name)

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        """*function*, to be awaited."""

        async def in_thread(*args: object, **resources: object) -> object:
            return await self.run(function, *args, **resources)

        return in_thread

    async def run(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        """Run *function* in a thread, with the context variables of whoever asks.

        Cancellation: raised when the function has returned, since nothing can interrupt it; what it
        returned or raised is lost.
        """
        context = copy_context()
        context.run(current_call.set, None)  # A call belongs to its loop.
        call = partial(context.run, partial(function, *args, **kwargs))
        done = asyncio.get_running_loop().run_in_executor(self._pool, _guarded, call)

        async def wait() -> None:
            await asyncio.wait([done])

        try:
            await uncut(wait)
        finally:
            if not done.cancelled():
                done.exception()  # Seen, also where nobody is left to hear of it.
        return done.result()

    def close(self) -> None:
        """End the threads, none of which works any more."""
        self._pool.shutdown(wait=True)


def _guarded(call: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return call()
    except StopIteration as error:  # A future takes any exception but this one.
        msg = "the function raised StopIteration"
        raise RuntimeError(msg) from error
