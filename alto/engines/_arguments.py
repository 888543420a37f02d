"""Which arguments an engine is started with: what the user gave, checked, over our defaults."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

__all__ = ("check_model_folder", "engine_arguments")

_GIB = 1 << 30


def check_model_folder(model: str) -> str | None:
    """What is wrong with *model* if it is meant as a folder; None: nothing, or it is a hub's name.

    vLLM would take a misspelt path for the name of a repository, and say so at length.
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
    """What to say about arguments that this vLLM does not know; None: it knows them all."""
    unknown = [name for name in given if name not in known]
    if not unknown:
        return None
    parts = []
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        parts.append(f"{name!r}{hint}")
    return f"this vLLM knows no engine argument {', '.join(parts)}"


def engine_arguments(
    model: str,
    given: Mapping[str, Any],
    *,
    known: Collection[str],
    cpu: bool,
    memory: int,
    cache_chosen: bool = False,
) -> dict[str, Any]:
    """Every argument to start an engine with; what is *given* wins.

    vLLM's own defaults depend on who asks and on the device, and on a CPU its KV cache would take
    nearly all memory; so the sizes that matter are always said.

    Args:
        model: Name or folder.
        given: The user's.
        known: Names that the installed vLLM has; a default that it lacks is left out.
        cpu: Whether vLLM runs on the CPU.
        memory: All of this machine's memory, in bytes.
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
