"""Adapters to engines. Nothing below imports them; ``import alto.engines`` loads no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alto.engines.pool import Pool as Pool
    from alto.engines.pool import PoolEngine as PoolEngine
    from alto.engines.pool import PoolProgress as PoolProgress
    from alto.engines.profiles import EngineProfile as EngineProfile
    from alto.engines.read_ahead import ReadAhead as ReadAhead
    from alto.engines.simulated import Simulated as Simulated
    from alto.engines.vllm import VLLM as VLLM

__all__ = ("EngineProfile", "Pool", "PoolEngine", "PoolProgress", "ReadAhead", "Simulated", "VLLM")

_HOME = {
    "EngineProfile": "profiles",
    "Pool": "pool",
    "PoolEngine": "pool",
    "PoolProgress": "pool",
    "ReadAhead": "read_ahead",
    "Simulated": "simulated",
    "VLLM": "vllm",
}
"""Module of each name, imported at its first use."""


def __getattr__(name: str) -> object:
    if name in _HOME:
        from importlib import import_module  # for those who ask

        return getattr(import_module(f"alto.engines.{_HOME[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
