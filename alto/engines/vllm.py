"""`VLLM`: a model served by vLLM on this machine's devices, as one engine.

Importing this module needs neither vllm nor torch; starting an engine does. There is a vLLM engine
for each GPU, or for each group of them that a model is spread over, or as many as were asked for on a
CPU (:mod:`alto.engines._vllm.placement`), behind one scheduler (:mod:`alto.engines.pool`). Their schedulers and
models run in child processes, their requests and texts are handled in this process's event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, final

from alto._wait import run_shielded
from alto.engines._vllm.arguments import check_model_folder, lora_arguments
from alto.engines._vllm.engine import VLLMEngine
from alto.engines._vllm.placement import (
    Placement,
    PlacementRequest,
    check_request,
    look_at_machine,
    plan,
    size_of_weights,
)
from alto.engines.pool import Pool, PoolProgress
from alto.errors import Closed, EngineDied, EngineStartError
from alto.sched import Policy, Recorder

__all__ = ("VLLM",)

_SIZES: Final = ("pipeline_parallel_size", "data_parallel_size")
"""Engine arguments that say on how many devices one engine runs, besides the tensor-parallel one."""


@final
class VLLM(Pool):
    """A model served by vLLM inside this process, on one device of this machine or on many.

    Starting takes from seconds to minutes and does not block the event loop. Ctrl-C reaches this
    program only, not the engines' processes, so a program that catches it can still use its engines
    to shut down in order. When the program ends, for whatever reason, the processes end too.

    Args:
        model: Name on the hub, or a folder.
        replicas: How many engines serve it. "auto": one on each device, or on each group of as many
            devices as an engine needs; one on a CPU, whose cores more of them share.
        tensor_parallel_size: Devices that one engine is spread over.
        devices: Numbers or UUIDs of the devices to use; None: all that are visible.
        policy: Chooses an engine for a call; None: :class:`alto.sched.PromptAware`.
        recorder: Called with every decision of the scheduler, see :class:`alto.sched.Decision`.
        name: For messages and statistics; None: the last part of *model*.
        lora: Adapters that a generation may name, with their folders.
        streamed_prompts: Whether the engines compute a prompt while its end is being written.
        kv_events: Whether the engines report what is in their prefix caches; otherwise it is guessed.
        replace: Whether an engine that dies is started again.
        progress: Called at every start, death and replacement; True: a line each on stderr.
        max_waiting: Largest number of calls that wait for an engine; None: no limit.
        **engine_args: Any argument of vLLM's ``AsyncEngineArgs``, such as ``max_model_len`` or
            ``gpu_memory_utilization``, for each of the engines. Batch sizes, the scheduling policy
            and, on a CPU, the size of the KV cache have defaults of alto's own.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(  # noqa: PLR0913  # settings of a long-lived object, all but the first with defaults
        self,
        model: str | os.PathLike[str],
        /,
        *,
        replicas: int | Literal["auto"] = "auto",
        tensor_parallel_size: int = 1,
        devices: Sequence[int | str] | None = None,
        policy: Policy | None = None,
        recorder: Recorder | None = None,
        name: str | None = None,
        lora: Mapping[str, str | os.PathLike[str]] | None = None,
        streamed_prompts: bool = False,
        kv_events: bool = True,
        replace: bool = True,
        progress: bool | Callable[[PoolProgress], object] | None = None,
        max_waiting: int | None = None,
        **engine_args: Any,  # noqa: ANN401  # vLLM's own
    ) -> None:
        self._model = os.fspath(model)
        if not self._model:
            msg = "the model needs a name or a folder"
            raise ValueError(msg)
        if "device_ids" in engine_args:  # vLLM's word for it
            if devices is not None:
                raise ValueError("give devices or device_ids, not both")
            devices = engine_args.pop("device_ids")
        self._devices = check_request(replicas, tensor_parallel_size, devices)
        self._replicas: int | Literal["auto"] = replicas
        self._sizes: dict[str, Any] = {
            "tensor_parallel_size": tensor_parallel_size,
            **{size: engine_args[size] for size in _SIZES if engine_args.get(size)},
        }
        self._lora = {adapter: os.fspath(folder) for adapter, folder in (lora or {}).items()}
        self._engine_args = engine_args
        self._each: dict[str, Any] = {
            "lora": self._lora, "streamed_prompts": streamed_prompts, "kv_events": kv_events,
        }  # fmt: skip
        self._groups: dict[int, Hashable] = {}
        """Start group of each engine, by its id."""
        super().__init__(
            self._make_engines,
            policy=policy,
            name=name or Path(self._model).name or self._model,
            recorder=recorder,
            replace=replace,
            start_group=lambda engine: self._groups[id(engine)],
            progress=progress or False,
            max_waiting=max_waiting,
        )

    def __repr__(self) -> str:
        """Return its state in a line."""
        try:
            self.check_health()
        except Closed:
            state = "stopped"
        except EngineDied:
            state = "dead"
        else:
            state = f"{self.statistics().running} running"
            if len(self.engines) > 1:
                alive = sum(engine.state == "running" for engine in self.engines)
                state += f" on {alive} of {len(self.engines)} engines"
        return f"<VLLM {self.name!r}, {state}>"

    @property
    def model(self) -> str:
        """Name or folder of the model."""
        return self._model

    @property
    def max_model_len(self) -> int:
        """The model's context, in tokens: prompt and output together.

        Raises:
            Closed: It is not running, so it is not known.
        """
        length = self.capacity.max_model_len
        assert length is not None  # vLLM always knows
        return length

    @property
    def max_num_seqs(self) -> int:
        """Number of generations that run at once on each engine; further ones wait.

        Raises:
            Closed: It is not running, so it is not known.
        """
        return self.capacity.max_num_seqs // len(self.scheduler.engines)

    async def stop(self, *, drain: bool = False) -> None:
        """End the engines' processes.

        Args:
            drain: Refuse new calls and wait until the open ones have ended; otherwise they are
                aborted. Cancelling the wait aborts them too.

        Cancellation: shielded, also from ``Task.cancel``; no process is left behind.
        """
        if drain:
            await super().stop(drain=True)
        else:
            await run_shielded(super().stop())

    async def _make_engines(self) -> list[VLLMEngine]:
        """Make the engines, if the machine has room for them; nothing is started.

        Raises:
            EngineStartError: The machine has no room, or the model or an adapter is not there.
        """
        problem = check_model_folder(self._model)
        if problem is not None:
            raise EngineStartError(self.name, problem)
        try:
            lora_arguments(self._lora)
        except ValueError as error:
            raise EngineStartError(self.name, str(error)) from error
        looking = asyncio.get_running_loop().run_in_executor(None, self._placements)
        try:
            placements = await asyncio.shield(looking)
        except asyncio.CancelledError:
            # The thread only imports: it cannot be stopped, and does no harm.
            looking.add_done_callback(lambda future: future.exception())
            raise
        engines = [
            self._engine(number, placement, len(placements))
            for number, placement in enumerate(placements)
        ]
        for engine, placement in zip(engines, placements, strict=True):
            self._groups[id(engine)] = placement.group
        return engines

    def _placements(self) -> tuple[Placement, ...]:
        """Plan the placement of each engine. Blocks: imports vLLM."""
        request = PlacementRequest(
            name=self.name,
            replicas=self._replicas,
            devices=self._devices,
            sizes=self._sizes,
            engine_args=self._engine_args,
            weights=size_of_weights(self._model),
        )
        machine = look_at_machine(self.name)
        there = len(machine.devices if self._devices is None else self._devices)
        if (
            not machine.cpu
            and request.replicas != "auto"
            and request.replicas * request.width > there
        ):
            machine = look_at_machine(self.name, with_memory=True)
        return plan(machine, request)

    def _engine(self, number: int, placement: Placement, count: int) -> VLLMEngine:
        arguments = {**self._sizes, **placement.arguments, **self._engine_args}
        return VLLMEngine(
            self._model,
            name=self.name if count == 1 else f"{self.name}[{number}]",
            cores=placement.cores,
            **self._each,
            **arguments,
        )
