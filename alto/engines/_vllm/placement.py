"""Place engines on the devices of this machine.

A replica needs ``width`` devices: the product of its parallel sizes. With ``replicas="auto"``
there are as many as have devices of their own; a CPU counts as one device. More replicas than that
share the devices, or a CPU's cores, as far as the memory suffices. :func:`look_at_machine` reads the
state of the machine; :func:`plan` decides, from that alone.

A process that has started CUDA holds some hundreds of megabytes of a GPU and cannot fork any more.
So torch is asked only for the number of devices, which it learns from the driver; where their memory
matters, a short-lived process of its own asks.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, final

import attrs

from alto._validate import is_whole
from alto.errors import EngineStartError

__all__ = (
    "CACHE_SPACE",
    "Device",
    "Machine",
    "Placement",
    "PlacementRequest",
    "check_request",
    "look_at_machine",
    "plan",
    "size_of_weights",
)

DeviceId: TypeAlias = int | str
"""A device's number among those that the program sees, or its UUID."""

_GIB = 1 << 30
_UTILISATION = 0.92
"""Part of a device's memory that its engines take together by default."""
_DEVICE_OVERHEAD = 2 * _GIB
"""Bytes of a device that an engine takes besides its weights and its cache, roughly."""
_PROCESS_MEMORY = 3 * _GIB // 2
"""Bytes that the processes of one engine take on a CPU besides weights and cache; measured: 1.3 GB."""
_SPARE_CORES = 4
"""With this many cores, a replica on a CPU leaves one to the process that schedules."""


@final
@attrs.frozen(kw_only=True)
class Device:
    """One GPU that the program sees."""

    index: int
    """Its number among the visible ones."""
    memory: int | None = None
    """Total memory, in bytes; None: not known."""
    free: int | None = None
    """Free memory, in bytes; None: not known."""


@final
@attrs.frozen(kw_only=True)
class Machine:
    """Hardware that engines can run on."""

    cpu: bool
    """True if vLLM computes on the CPU."""
    devices: tuple[Device, ...] = ()
    """The GPUs, as the program sees them; none on a CPU."""
    cores: tuple[int, ...] = ()
    """Numbers of the CPU's cores that the program may use, one for each physical core, those of one
    memory node beside each other; empty where the system cannot tell."""
    memory: int = 0
    """Total memory of the machine, in bytes."""
    available: int | None = None
    """Free memory of the machine, in bytes; None: not known."""
    binding_chosen: bool = False
    """True if the program's environment binds cores; then alto does not."""
    cache_space: int | None = None
    """Size of the KV cache of each part of a replica on a CPU, in bytes, where the program's environment
    sets it; vLLM prefers it to its arguments, so alto sets none. None: it is not set."""


@final
@attrs.frozen(kw_only=True)
class PlacementRequest:
    """Request for engines: their number, devices and sizes."""

    name: str
    """Name of the engine, for messages."""
    replicas: int | Literal["auto"] = "auto"
    """Number of replicas."""
    devices: tuple[DeviceId, ...] | None = None
    """Devices to use; None: all."""
    sizes: Mapping[str, int] = attrs.field(factory=dict)
    """The parallel sizes by the names of their arguments; those that are missing are 1."""
    engine_args: Mapping[str, Any] = attrs.field(factory=dict)
    """The other arguments, those about memory among them."""
    weights: int | None = None
    """Size of the model's files, in bytes; None where it is not known."""

    @property
    def width(self) -> int:
        """Devices per replica."""
        return math.prod(self.sizes.values())


@final
@attrs.frozen(kw_only=True)
class Placement:
    """Placement of one replica."""

    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    """Arguments for its engine, besides the user's."""
    cores: str | None = None
    """Cores to bind to, in the format of ``VLLM_CPU_OMP_THREADS_BIND``; None: vLLM chooses."""
    group: int
    """Replicas of the same group share a device and start one after the other."""


def check_request(
    replicas: object, tensor_parallel_size: object, devices: object
) -> tuple[DeviceId, ...] | None:
    """Refuse what is wrong on any machine, and return the devices as a tuple.

    Raises:
        ValueError: The message says what is allowed.
    """
    if replicas != "auto" and not is_whole(replicas, 1):
        raise ValueError(f'replicas must be a whole number above 0 or "auto", not {replicas!r}')
    if not is_whole(tensor_parallel_size, 1):
        raise ValueError(
            f"tensor_parallel_size must be a whole number above 0, not {tensor_parallel_size!r}"
        )
    if devices is None:
        return None
    if isinstance(devices, (str, bytes)) or not isinstance(devices, Sequence) or not devices:
        raise ValueError(f"devices must be a list of device numbers or UUIDs, not {devices!r}")
    for device in devices:
        if isinstance(device, bool) or not isinstance(device, (int, str)) or device == "":
            raise ValueError(f"a device is named by its number or UUID, not {device!r}")
    if len({type(device) for device in devices}) > 1:
        raise ValueError(f"name devices by number or by UUID, not both: {list(devices)}")
    if len(set(devices)) < len(devices):
        raise ValueError(f"a device is given twice: {list(devices)}")
    return tuple(devices)


def plan(machine: Machine, request: PlacementRequest) -> tuple[Placement, ...]:
    """Place each replica.

    Raises:
        EngineStartError: The machine has no room. The message says what was asked for, what there is,
            and what to set.
    """
    return _plan_cpu(machine, request) if machine.cpu else _plan_devices(machine, request)


def _plan_devices(machine: Machine, request: PlacementRequest) -> tuple[Placement, ...]:
    usable = _usable_devices(machine, request)
    groups = len(usable) // request.width
    replicas = groups if request.replicas == "auto" else request.replicas
    if groups == 0 or (replicas > groups and request.width > 1):
        _too_few(request, len(usable), max(replicas, 1))
    if replicas == 1 and request.devices is None and len(usable) == request.width:
        return (Placement(group=0),)
    by_index = {device.index: device for device in machine.devices}
    placements = []
    for number in range(replicas):
        group = number % groups
        ids = usable[group * request.width : (group + 1) * request.width]
        sharers = len(range(group, replicas, groups))
        shared: dict[str, Any] = {}
        if sharers > 1:
            shared = _share_of_device(request, ids[0], by_index.get(ids[0]), sharers)
        placements.append(Placement(arguments={"device_ids": list(ids), **shared}, group=group))
    return tuple(placements)


def _usable_devices(machine: Machine, request: PlacementRequest) -> tuple[Any, ...]:
    visible = tuple(device.index for device in machine.devices)
    if not visible:
        raise EngineStartError(
            request.name,
            "this vLLM is built for GPUs, and none is visible; look at CUDA_VISIBLE_DEVICES and "
            "the driver, or install alto-llm[cpu]",
        )
    if request.devices is None:
        return visible
    missing = [i for i in request.devices if isinstance(i, int) and i not in visible]
    if missing:
        raise EngineStartError(
            request.name,
            f"devices={list(request.devices)} asks for {missing}, and the visible devices are "
            f"{list(visible)}; set devices to some of them (they are numbered within "
            f"CUDA_VISIBLE_DEVICES, where that is set)",
        )
    return request.devices


def _too_few(request: PlacementRequest, there: int, replicas: int) -> None:
    sizes = ", ".join(f"{name}={size}" for name, size in request.sizes.items() if size > 1)
    each = f"{request.width} device{'s' if request.width > 1 else ''}"
    most = there // request.width
    remedy = f"replicas={most}" if most else f"a product of these sizes of at most {there}"
    what = "given" if request.devices is not None else "visible"
    raise EngineStartError(
        request.name,
        f"replicas={replicas} with {sizes} needs {each} for each replica, {replicas * request.width} "
        f"in all, and {there} {'is' if there == 1 else 'are'} {what}; set {remedy}",
    )


def _share_of_device(
    request: PlacementRequest, device_id: DeviceId, device: Device | None, sharers: int
) -> dict[str, Any]:
    """Return the memory arguments of one of *sharers* replicas on a device."""
    asked = f"replicas={request.replicas} puts {sharers} of them on device {device_id!r}"
    cache = request.engine_args.get("kv_cache_memory_bytes")
    memory = None if device is None else device.memory
    if cache is not None:
        needed = sharers * (cache + (request.weights or 0) + _DEVICE_OVERHEAD)
        if memory is not None and needed > memory:
            raise EngineStartError(
                request.name,
                f"{asked}, which takes about {_gib(needed)} with kv_cache_memory_bytes={cache}, "
                f"and it has {_gib(memory)}; set fewer replicas or a smaller kv_cache_memory_bytes",
            )
        # vLLM refuses to start unless this share is free, even where the cache has a size of its own.
        return {"gpu_memory_utilization": _down(_UTILISATION / sharers)}
    given = request.engine_args.get("gpu_memory_utilization")
    if given is not None and given * sharers > 1:
        raise EngineStartError(
            request.name,
            f"{asked}, each with gpu_memory_utilization={given}, which is more than the device; "
            f"set at most {_down(_UTILISATION / sharers)}, or fewer replicas",
        )
    share = given if given is not None else _down(_UTILISATION / sharers)
    least = (request.weights or 0) + _DEVICE_OVERHEAD
    if share <= 0:
        raise EngineStartError(
            request.name, f"{asked}, which leaves no memory for any of them; set fewer replicas"
        )
    if memory is not None and share * memory < least:
        raise EngineStartError(
            request.name,
            f"{asked}, where each has {_gib(share * memory)} of {_gib(memory)} and needs "
            f"{_gib(least)} before it caches anything; set fewer replicas, or give it more devices",
        )
    free = None if device is None else device.free
    if memory is not None and free is not None and share * sharers * memory > free:
        raise EngineStartError(
            request.name,
            f"{asked}, which takes {_gib(share * sharers * memory)} of it, and only {_gib(free)} "
            f"of {_gib(memory)} are free; end what uses the device, or set "
            f"gpu_memory_utilization={_down(free / memory / sharers)}",
        )
    return {} if given is not None else {"gpu_memory_utilization": share}


def _plan_cpu(machine: Machine, request: PlacementRequest) -> tuple[Placement, ...]:
    replicas = 1 if request.replicas == "auto" else request.replicas
    if request.devices is not None:
        raise EngineStartError(
            request.name,
            f"devices={list(request.devices)} was given, and this vLLM computes on the CPU; leave "
            f"devices out, and set replicas for more than one engine",
        )
    memory = _share_of_memory(machine, request, replicas)
    alone = replicas == 1 and request.width == 1  # vLLM itself binds one part for each memory node
    if alone or machine.binding_chosen or not machine.cores:
        return tuple(Placement(arguments=memory, group=i) for i in range(replicas))
    cores = len(machine.cores)
    if replicas * request.width > cores:
        raise EngineStartError(
            request.name,
            f"replicas={replicas} needs {replicas * request.width} CPU cores, one for each part of a "
            f"replica at least, and there are {cores}; set replicas={max(1, cores // request.width)}, "
            f"or the environment variable VLLM_CPU_OMP_THREADS_BIND=nobind to let them share cores",
        )
    return tuple(
        Placement(
            arguments=memory, cores=_cores_of(machine.cores, i, replicas, request.width), group=i
        )
        for i in range(replicas)
    )


def _share_of_memory(machine: Machine, request: PlacementRequest, replicas: int) -> dict[str, Any]:
    sizes = ("kv_cache_memory_bytes", "num_gpu_blocks_override", "gpu_memory_utilization")
    given = machine.cache_space is not None or any(name in request.engine_args for name in sizes)
    cache, said = request.engine_args.get("kv_cache_memory_bytes") or 0, "kv_cache_memory_bytes"
    if machine.cache_space is not None:
        cache, said = machine.cache_space, "VLLM_CPU_KVCACHE_SPACE in the environment"
    least = (
        cache * request.width + _PROCESS_MEMORY + (request.weights or 0)
    )  # each part has a cache
    available = machine.available
    if available is not None and replicas > 1 and replicas * least > available:
        raise EngineStartError(
            request.name,
            f"replicas={replicas} needs about {_gib(replicas * least)} of memory, and "
            f"{_gib(available)} are free; set replicas={max(1, available // least)}"
            f"{f', or a smaller {said}' if cache else ''}",
        )
    if given or replicas == 1:
        return {}
    spare = machine.memory // 4 // replicas
    if available is not None:
        spare = min(spare, (available - replicas * least) // (2 * replicas))
    return {"kv_cache_memory_bytes": max(64 << 20, min(4 * _GIB, spare))}


def _cores_of(cores: Sequence[int], number: int, replicas: int, width: int) -> str:
    """Return the cores of one replica: a list for each of its parts."""
    mine = _slice(cores, number, replicas)
    if len(mine) >= _SPARE_CORES * width:
        mine = mine[:-1]
    return "|".join(",".join(map(str, _slice(mine, part, width))) for part in range(width))


def _slice(values: Sequence[int], number: int, of: int) -> Sequence[int]:
    return values[len(values) * number // of : len(values) * (number + 1) // of]


def _down(share: float) -> float:
    return math.floor(share * 100) / 100


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"


CACHE_SPACE: Final = "VLLM_CPU_KVCACHE_SPACE"
"""Variable with the size of a KV cache on a CPU, in GiB; empty counts as not set."""
_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
_ASK_TIMEOUT: Final = 120.0
"""Seconds that the process which asks for the devices' memory may take; it imports torch."""
_ASK: Final = """
import json, torch
print(json.dumps([torch.cuda.mem_get_info(i) for i in range(torch.cuda.device_count())]))
"""
_SUFFIXES: Final = (".safetensors", ".bin", ".gguf", ".pt")


def look_at_machine(name: str, *, with_memory: bool = False) -> Machine:
    """Describe the machine. Blocks: imports vLLM, and with *with_memory* runs a process for seconds.

    Args:
        name: Name of the engine, for errors.
        with_memory: Whether to ask for the memory of GPUs too.

    Raises:
        EngineStartError: vLLM is not installed, or the environment gives a size that is no number.
    """
    try:
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise EngineStartError(
            name, "vLLM is not installed; install alto-llm[vllm], or [cpu] where there is no GPU"
        ) from error
    import psutil  # which vLLM brings

    memory = psutil.virtual_memory()
    cpu = bool(current_platform.is_cpu())
    return Machine(
        cpu=cpu,
        devices=() if cpu else _devices(with_memory=with_memory),
        cores=_cores() if cpu else (),
        memory=memory.total,
        available=memory.available,
        binding_chosen=_BINDING in os.environ,
        cache_space=_cache_space(name) if cpu else None,
    )


def _cache_space(name: str) -> int | None:
    """Return the size of a KV cache that the environment sets, in bytes; None: it sets none."""
    given = os.environ.get(CACHE_SPACE)
    if not given:
        return None
    try:
        return int(given) << 30
    except ValueError:
        raise EngineStartError(
            name, f"{CACHE_SPACE}={given!r} is not a whole number of GiB; set one, or unset it"
        ) from None


def _devices(*, with_memory: bool) -> tuple[Device, ...]:
    import torch

    count = torch.cuda.device_count()
    if count == 0 and hasattr(torch, "accelerator"):
        count = torch.accelerator.device_count()  # a GPU of another kind
    if not with_memory:
        return tuple(Device(index=i) for i in range(count))
    memory = _ask_memory()
    if len(memory) != count:
        return tuple(Device(index=i) for i in range(count))
    return tuple(Device(index=i, free=free, memory=total) for i, (free, total) in enumerate(memory))


def _ask_memory() -> list[tuple[int, int]]:
    """Return free and total bytes of each device; empty where the process that asks fails."""
    try:
        asked = subprocess.run(  # noqa: S603  # a constant program
            [sys.executable, "-c", _ASK],
            capture_output=True,
            check=True,
            timeout=_ASK_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
        return [(int(free), int(total)) for free, total in json.loads(asked.stdout)]
    except (subprocess.SubprocessError, OSError, ValueError):
        return []


def _cores() -> tuple[int, ...]:
    """Return a logical CPU for each physical core that this process may use, by memory node."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    chosen: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        chosen.setdefault(siblings or str(cpu), cpu)
    return tuple(sorted(chosen.values(), key=lambda cpu: (_memory_node(cpu), cpu)))


def _memory_node(cpu: int) -> int:
    nodes = Path(f"/sys/devices/system/cpu/cpu{cpu}").glob("node[0-9]*")
    return min((int(node.name.removeprefix("node")) for node in nodes), default=0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def size_of_weights(model: str) -> int | None:
    """Return the size of the weights in a model folder, in bytes; None: it is not such a folder."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    by_kind = {
        suffix: sum(path.stat().st_size for path in folder.glob(f"*{suffix}"))
        for suffix in _SUFFIXES
    }
    return next((size for size in by_kind.values() if size), None)
