"""Arguments of a vLLM engine: the user's, checked, over alto's defaults."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from alto._validate import is_whole

__all__ = (
    "check_model_folder",
    "engine_arguments",
    "lora_arguments",
    "memory_remedy",
    "unknown_arguments",
)

_GIB = 1 << 30
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as ``max_lora_rank``."""
_ADAPTERS_AT_ONCE = 8
"""Default for the adapters that one step may use; each takes memory permanently."""
_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|OutOfMemory|MemoryError|No available memory for the cache"
    r"|KV cache (?:is|memory)|[Ff]ree memory on|[Cc]an(?:no|')t allocate memory"
    r"|less than desired|gpu_memory_utilization|want of memory",
)


def check_model_folder(model: str) -> str | None:
    """Return the problem with *model* as a folder; None if there is none, or it is a hub's name.

    vLLM would take a misspelt path for a repository's name, and give a long, unrelated error.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return None if any(folder.iterdir()) else f"the model folder {model!r} is empty"
    if folder.exists():
        return None  # one file, as some quantised formats are
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        return f"there is no model folder {model!r}"
    return None


def unknown_arguments(given: Collection[str], known: Collection[str]) -> str | None:
    """Return a message about arguments that this vLLM does not know; None if it knows all."""
    unknown = [name for name in given if name not in known]
    if not unknown:
        return None
    parts = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        parts.append(f"{name!r}{hint}")
    return f"this version of vLLM has no engine argument {', '.join(parts)}"


def engine_arguments(
    model: str,
    given: Mapping[str, Any],
    *,
    known: Collection[str],
    cpu: bool,
    memory: int,
    cache_chosen: bool = False,
) -> dict[str, Any]:
    """Return all arguments to start an engine with; those in *given* win.

    vLLM's own defaults depend on the caller and the device, and on a CPU its KV cache would take
    nearly all memory. So the sizes that matter are always passed.

    Args:
        model: Name or folder.
        given: The user's arguments.
        known: Names that the installed vLLM has; a default that it lacks is left out.
        cpu: Whether vLLM runs on the CPU.
        memory: Total memory of this machine, in bytes.
        cache_chosen: Whether the size of the KV cache is set elsewhere, by the environment.
    """
    sequences = given.get("max_num_seqs") or (64 if cpu else 256)
    defaults: dict[str, Any] = {
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(2048 if cpu else 8192, sequences),
        "scheduling_policy": "priority",
        "disable_log_stats": True,
    }
    sizes = ("kv_cache_memory_bytes", "num_gpu_blocks_override", "gpu_memory_utilization")
    if cpu and not cache_chosen and not any(name in given for name in sizes):
        defaults["kv_cache_memory_bytes"] = min(4 * _GIB, memory // 8)
    usable = {name: value for name, value in defaults.items() if name in known}
    return {"model": model, **usable, **given}


def lora_arguments(adapters: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments that make room for *adapters* (name to folder); empty if there are none.

    Raises:
        ValueError: A folder is missing, or holds no adapter.
    """
    if not adapters:
        return {}
    ranks = []
    for name, folder in adapters.items():
        path = Path(folder).expanduser() / "adapter_config.json"
        try:
            rank = json.loads(path.read_text())["r"]
        except FileNotFoundError:
            raise ValueError(f"adapter {name!r}: there is no {str(path)!r}") from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"adapter {name!r}: {str(path)!r} gives no rank: {error!r}") from error
        if not is_whole(rank, 1, _RANKS[-1]):
            raise ValueError(
                f"adapter {name!r} has rank {rank!r}; vLLM takes ranks up to {_RANKS[-1]}"
            )
        ranks.append(rank)
    count = len(adapters)
    return {
        "enable_lora": True,
        "max_loras": min(count, _ADAPTERS_AT_ONCE),
        "max_cpu_loras": count,
        "max_lora_rank": next(room for room in _RANKS if room >= max(ranks)),
    }


def memory_remedy(cause: str, *, cpu: bool) -> str:
    """Return a remedy if *cause*, an engine's error, is about memory; else the empty string."""
    if not _OUT_OF_MEMORY.search(cause):
        return ""
    if cpu:
        return (
            "; the model does not fit: lower max_model_len, change kv_cache_memory_bytes, start "
            "fewer replicas, or take a smaller model"
        )
    return (
        "; the model does not fit: raise tensor_parallel_size to spread it over more GPUs, lower "
        "max_model_len, set kv_cache_memory_bytes or gpu_memory_utilization, or stop other "
        "programs on the GPU"
    )
