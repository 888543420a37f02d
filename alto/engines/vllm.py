"""`VLLM`: one in-process vLLM engine, on a GPU build and on a CPU build alike.

Importing this module needs neither vllm nor torch; starting an engine does. The engine's scheduler
and model run in child processes, its requests and texts are handled in this process's event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from alto.engines._launch import Launch, shut_down
from alto.engines._session import Session, to_the_end
from alto.errors import Closed
from alto.model import Chunk, EngineStatistics, GenerateRequest

__all__ = ("VLLM",)


@final
class VLLM:
    """A model served by vLLM inside this process.

    Starting takes from seconds to minutes and does not block the event loop. Several engines may
    be started at the same time. Ctrl-C reaches this program only, not the engine's processes, so
    a program that catches it still has its engines to finish with.

    Args:
        model: Name on the hub, or a folder.
        name: For messages and statistics; None: the last part of *model*.
        **engine_args: Any argument of vLLM's ``AsyncEngineArgs``, such as ``max_model_len``,
            ``gpu_memory_utilization``, ``device_ids`` or ``tensor_parallel_size``. Batch sizes, the
            scheduling policy and, on a CPU, the size of the KV cache have defaults of alto's own.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        /,
        *,
        name: str | None = None,
        **engine_args: Any,  # noqa: ANN401  # vLLM's own
    ) -> None:
        self._model = os.fspath(model)
        if not self._model:
            msg = "the model needs a name or a folder"
            raise ValueError(msg)
        self._name = name or Path(self._model).name or self._model
        self._engine_args = engine_args
        self._session: Session | None = None
        self._gate: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def __repr__(self) -> str:
        """Its state in a line."""
        session = self._session
        if session is None:
            state = "stopped"
        elif session.is_dead:
            state = "dead"
        else:
            state = f"{session.statistics().running} running"
        return f"<VLLM {self._name!r}, {state}>"

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        return self._name

    @property
    def model(self) -> str:
        """Name or folder of the model."""
        return self._model

    @property
    def max_model_len(self) -> int:
        """The model's context, in tokens: prompt and output together.

        Raises:
            Closed: The engine is not running, so it is not known.
        """
        return self._running().max_model_len

    @property
    def max_num_seqs(self) -> int:
        """How many generations run at once; more wait inside the engine.

        Raises:
            Closed: The engine is not running, so it is not known.
        """
        return self._running().max_num_seqs

    async def start(self) -> None:
        """Load the model; a dead engine is replaced.

        Raises:
            EngineStartError: With the true error of the engine's processes, and its last lines.

        Cancellation: processes that have been started are ended before it goes on.
        """
        async with self._lifecycle():
            if self._session is not None and not self._session.is_dead:
                return
            await to_the_end(self._stop_session())
            launch = Launch(self._name, self._model, self._engine_args)
            loop = asyncio.get_running_loop()
            building = loop.run_in_executor(None, launch.run)
            try:
                await asyncio.shield(building)
            except asyncio.CancelledError:
                await to_the_end(_give_up(launch, building))
                raise
            self._session = Session(self._name, launch.take())

    async def stop(self) -> None:
        """Abort what runs and end the engine's processes."""
        await to_the_end(self._stop_in_turn())

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Stop it."""
        await self.stop()

    def statistics(self) -> EngineStatistics:
        """What it is doing now."""
        return EngineStatistics() if self._session is None else self._session.statistics()

    def check_health(self) -> None:
        """Return if it can serve."""
        self._running().check_health()

    def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation; see :class:`alto.protocols.Engine`.

        A reader that lags gets what it missed in one chunk.
        """
        return self._running().generate(request)

    def _running(self) -> Session:
        if self._session is None:
            msg = f"engine {self._name!r} is not running; start it first"
            raise Closed(msg)
        return self._session

    def _lifecycle(self) -> asyncio.Lock:
        """Starts and stops come one after the other, in whichever loop."""
        loop = asyncio.get_running_loop()
        if self._gate is None or self._gate[0] is not loop:
            self._gate = (loop, asyncio.Lock())
        return self._gate[1]

    async def _stop_in_turn(self) -> None:
        async with self._lifecycle():
            await self._stop_session()

    async def _stop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.stop()


async def _give_up(launch: Launch, building: asyncio.Future[None]) -> None:
    """End what a cancelled start has brought to life."""
    if not launch.cancel():  # it still imports: that harms nobody, and cannot be stopped
        building.add_done_callback(lambda future: future.exception())
        return
    while not building.done():
        launch.cancel()
        await asyncio.wait([building], timeout=0.1)
    if building.exception() is None:
        await asyncio.get_running_loop().run_in_executor(None, shut_down, launch.take())
