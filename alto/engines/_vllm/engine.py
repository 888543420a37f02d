"""One in-process vLLM engine; :class:`alto.VLLM` is a pool of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, final

import anyio
import attrs

from alto._wait import LoopLock, run_shielded
from alto.engines._vllm.arguments import lora_arguments
from alto.engines._vllm.kv_events import CacheEvents
from alto.engines._vllm.launch import Launch, RunningEngine, shut_down
from alto.engines._vllm.process_watcher import ProcessWatcher
from alto.engines._vllm.session import Session
from alto.errors import Closed, EngineDied, EngineStartError
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    EngineCapacity,
    EngineStatistics,
    GenerateRequest,
    Prompt,
)
from alto.protocols import CacheListener

__all__ = ("VLLMEngine",)

_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
_WORKER: Final = ("multiprocessing.spawn", "VLLM::")
"""Parts of a worker's command line: before, and after vLLM has renamed the process."""
_CONNECT: Final = 2.0
"""Seconds to wait for the socket of the cache's events, once the engine runs."""
_PATIENCE: Final = 1.0
"""Seconds for vLLM to notice that a process of it has ended; after that the others are killed."""
_NOTICE: Final = 5.0
"""Seconds for vLLM to notice that; after that the engine counts as dead anyway."""


@final
@attrs.frozen
class _Health:
    """Stand-in for a process, where the system does not list an engine's processes."""

    session: Session
    pid = -1

    def is_running(self) -> bool:
        return not self.session.is_dead

    def status(self) -> str:
        return "running"


@final
@attrs.define(eq=False, kw_only=True)
class _Lifespan:
    """Lifespan of an engine, from a start to the next stop."""

    session: Session
    started: RunningEngine
    events: CacheEvents | None
    died: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when a process has ended and vLLM has had the time to notice."""
    watcher: ProcessWatcher | None = None
    noticing: asyncio.Task[None] | None = None

    @property
    def is_dead(self) -> bool:
        return self.died.is_set() or self.session.is_dead

    def watch(self) -> None:
        workers = [worker for process in self.started.processes for worker in _workers(process)]
        processes = [*self.started.processes, *workers]
        self.started.processes = tuple(
            processes
        )  # once the first has ended, its children cannot be found
        self.watcher = ProcessWatcher(processes or [_Health(self.session)], self._process_gone)

    def _process_gone(self) -> None:
        self.noticing = asyncio.get_running_loop().create_task(self._notice())

    async def _notice(self) -> None:
        """Declare the engine dead: it cannot serve without one of its processes.

        vLLM gets a moment to notice by itself, which ends its generations in order; otherwise its other
        processes are killed, since they would wait for the one that ended.
        """
        if not await self._is_noticed(_PATIENCE):
            import psutil

            for process in self.started.processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            await self._is_noticed(_NOTICE)
        self.session.cut_incoming()
        self.died.set()

    async def _is_noticed(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while not self.session.is_dead:  # noqa: ASYNC110  # vLLM has no event for it
                    await asyncio.sleep(0.005)
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        if self.watcher is not None:
            self.watcher.close()
        if self.noticing is not None:
            self.noticing.cancel()
        try:
            await self.session.stop(died=self.died.is_set())
        finally:
            if self.events is not None:
                await self.events.close()


@final
class VLLMEngine:
    """A model served by one vLLM engine inside this process; an :class:`alto.protocols.Member`.

    Starting takes from seconds to minutes and does not block the event loop. Several engines may
    be started at the same time. Ctrl-C reaches this program only, not the engine's processes, so
    a program that catches it can still use its engines to shut down in order.

    Args:
        model: Name on the hub, or a folder.
        name: For messages and statistics; None: the last part of *model*.
        cores: CPU cores for its threads, in the format of ``VLLM_CPU_OMP_THREADS_BIND``; None: as
            the environment or vLLM chooses. Ignored on a GPU.
        lora: Adapters that a request may name, with their folders.
        streamed_prompts: Whether to compute a prompt while its end is still being written.
        kv_events: Whether the engine reports what its prefix cache holds, for :meth:`listen`.
        **engine_args: Any argument of vLLM's ``AsyncEngineArgs``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        /,
        *,
        name: str | None = None,
        cores: str | None = None,
        lora: Mapping[str, str | os.PathLike[str]] | None = None,
        streamed_prompts: bool = False,
        kv_events: bool = True,
        **engine_args: Any,  # noqa: ANN401  # vLLM's own
    ) -> None:
        self._model = os.fspath(model)
        if not self._model:
            msg = "the model needs a name or a folder"
            raise ValueError(msg)
        self._name = name or Path(self._model).name or self._model
        self._cores = cores
        self._lora = {adapter: os.fspath(folder) for adapter, folder in (lora or {}).items()}
        self._streamed_prompts = streamed_prompts
        self._kv_events = kv_events and _has_one_cache(engine_args)
        self._engine_args = engine_args
        self._life: _Lifespan | None = None
        self._lifecycle = LoopLock()

    def __repr__(self) -> str:
        """Return its state in a line."""
        life = self._life
        if life is None:
            state = "stopped"
        elif life.is_dead:
            state = "dead"
        else:
            state = f"{life.session.statistics().running} running"
        return f"<VLLMEngine {self._name!r}, {state}>"

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        return self._name

    @property
    def model(self) -> str:
        """Name or folder of the model."""
        return self._model

    @property
    def capacity(self) -> EngineCapacity:
        """Limits of the engine.

        Raises:
            Closed: It is not running, so they are not known.
        """
        return self._running().session.capacity

    @property
    def streams_prompts(self) -> bool:
        """True if it computes a prompt while its end is still being written."""
        return self._streamed_prompts

    @property
    def scores_pairs(self) -> bool:
        """True if the model is a cross-encoder, which scores a pair of texts; False until it runs."""
        return self._life is not None and self._life.session.scores_pairs

    async def start(self) -> None:
        """Load the model; a dead engine is replaced.

        Raises:
            EngineStartError: The error names the cause in the engine's processes, and has the last
                lines of their output.

        Cancellation: processes that have been started are ended first.
        """
        async with self._lifecycle.here():
            if self._life is not None and not self._life.is_dead:
                return
            await run_shielded(self._end_life())
            try:
                arguments = {**lora_arguments(self._lora), **self._engine_args}
                events = CacheEvents() if self._kv_events else None
            except (ValueError, OSError) as error:  # adapters; a folder for events
                raise EngineStartError(self._name, str(error)) from error
            try:
                started = await self._launch(arguments, events)
            except BaseException:
                if events is not None:
                    await run_shielded(events.close())
                raise
            try:
                await run_shielded(self._begin_life(started, events))
            except BaseException:
                await run_shielded(self._end_life())
                raise

    async def _launch(
        self, arguments: Mapping[str, Any], events: CacheEvents | None
    ) -> RunningEngine:
        launch = Launch(
            self._name,
            self._model,
            arguments,
            variables={} if self._cores is None else {_BINDING: self._cores},
            events=None if events is None else events.endpoint,
        )
        building = asyncio.get_running_loop().run_in_executor(None, launch.run)
        try:
            await asyncio.shield(building)
        except asyncio.CancelledError:
            await run_shielded(_give_up(launch, building))
            raise
        return launch.take()

    async def _begin_life(self, started: RunningEngine, events: CacheEvents | None) -> None:
        try:
            session = Session(
                self._name, started, lora=self._lora, streamed_prompts=self._streamed_prompts
            )
        except BaseException:
            await asyncio.get_running_loop().run_in_executor(None, shut_down, started)
            if events is not None:
                await events.close()
            raise
        self._life = _Lifespan(session=session, started=started, events=events)
        self._life.watch()
        if events is not None:
            await events.wait_connected(_CONNECT)

    async def stop(self) -> None:
        """Abort all generations and end the engine's processes."""
        await run_shielded(self._stop_in_turn())

    async def __aenter__(self) -> Self:
        """Start the engine."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        """Stop the engine."""
        await self.stop()

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing now."""
        life = self._life
        if life is None:
            return EngineStatistics()
        counters = life.started.counters
        return attrs.evolve(
            life.session.statistics(),
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            output_tokens=counters.output_tokens,
            kv_usage=counters.kv_usage,
            preempted=counters.preempted,
        )

    def check_health(self) -> None:
        """Return if the engine can serve.

        Raises:
            Closed: It has not been started, or was stopped.
            EngineDied: It was started and has died.
        """
        self._alive().check_health()

    async def wait_died(self) -> None:
        """Wait until a process of the engine has ended; for ever, if it is stopped or not running."""
        if self._life is not None:
            await self._life.died.wait()
        else:
            await anyio.sleep_forever()

    def listen(self, listener: CacheListener, /) -> bool:
        """Report to *listener* what the prefix cache holds, from now on until the engine is stopped.

        Raises:
            Closed: It is not running.
        """
        events = self._running().events
        if events is None:
            return False
        events.add(listener)
        return True

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the token ids of a prompt, as :meth:`generate` makes them."""
        return await self._running().session.encode(prompt)

    def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation; see :class:`alto.protocols.Engine`.

        A reader that lags gets what it missed in one chunk.
        """
        return self._alive().generate(request)

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Run one prompt of a model that pools; see :class:`alto.protocols.Embedder`."""
        return await self._alive().embed(request)

    def _running(self) -> _Lifespan:
        if self._life is None:
            msg = f"engine {self._name!r} is not running; start it first"
            raise Closed(msg)
        return self._life

    def _alive(self) -> Session:
        life = self._running()
        if life.died.is_set() and not life.session.is_dead:
            raise EngineDied(self._name, "it died: one of its processes has ended")
        return life.session

    async def _stop_in_turn(self) -> None:
        async with self._lifecycle.here():
            await self._end_life()

    async def _end_life(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            await life.end()


def _workers(process: Any) -> list[Any]:  # noqa: ANN401  # psutil is not typed
    """Return the workers below vLLM's first process, without short-lived helpers.

    That process notices the end of a worker too, but takes seconds to report it.
    """
    import psutil

    try:
        below = process.children(recursive=True)
        return [p for p in below if any(m in " ".join(p.cmdline()) for m in _WORKER)]
    except psutil.Error:
        return []


def _has_one_cache(engine_args: Mapping[str, Any]) -> bool:
    """Return whether the engine has exactly one prefix cache, whose events the user has not claimed."""
    return (
        engine_args.get("enable_prefix_caching") is not False
        and engine_args.get("data_parallel_size", 1) == 1
        and engine_args.get("kv_events_config") is None
    )


async def _give_up(launch: Launch, building: asyncio.Future[None]) -> None:
    """End the processes that a cancelled start has started."""
    if not launch.cancel():  # it only imports, which is harmless and cannot be stopped
        building.add_done_callback(lambda future: future.exception())
        return
    while not building.done():
        launch.cancel()
        await asyncio.wait([building], timeout=0.1)
    if building.exception() is None:
        await asyncio.get_running_loop().run_in_executor(None, shut_down, launch.take())
