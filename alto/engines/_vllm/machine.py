"""What this machine has to run engines on, asked without starting CUDA in this process.

A process that has started CUDA holds some hundreds of megabytes of a GPU and cannot fork any more.
So torch is asked only for the number of devices, which it learns from the driver; where their memory
matters, a process of its own asks, and is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from alto.engines._vllm.placement import Device, Machine
from alto.errors import EngineStartError

__all__ = ("CACHE_SPACE", "look_at_machine", "size_of_weights")

CACHE_SPACE: Final = "VLLM_CPU_KVCACHE_SPACE"
"""Variable in which a user may give the size of a KV cache on a CPU, in GiB; empty is as not set."""
_BINDING: Final = "VLLM_CPU_OMP_THREADS_BIND"
_ASK_TIMEOUT: Final = 120.0
"""Seconds that the process which asks for the devices' memory may take; it imports torch."""
_ASK: Final = """
import json, torch
print(json.dumps([torch.cuda.mem_get_info(i) for i in range(torch.cuda.device_count())]))
"""
_SUFFIXES: Final = (".safetensors", ".bin", ".gguf", ".pt")


def look_at_machine(name: str, *, with_memory: bool = False) -> Machine:
    """What there is. Blocks: imports vLLM, and with *with_memory* asks another process for seconds.

    Args:
        name: Of the engine, for errors.
        with_memory: Whether the memory of GPUs is wanted too.

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
    """Bytes that the environment gives to a KV cache; None: it does not say."""
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
    """Free and total bytes of each device; empty where that process fails."""
    try:
        asked = subprocess.run(  # noqa: S603  # our own words
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
    """One logical CPU for each physical core that we may use, by memory node."""
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
    """Size of the weights in a model folder, in bytes; None where it is no folder with weights."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    by_kind = {
        suffix: sum(path.stat().st_size for path in folder.glob(f"*{suffix}"))
        for suffix in _SUFFIXES
    }
    return next((size for size in by_kind.values() if size), None)
