"""The end of a vLLM engine: those that wait are told, and its processes go, whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from alto.engines._vllm.launch import Started, shut_down

__all__ = ("end",)


async def end(started: Started, known: Mapping[str, bool], death: Exception | None, /) -> None:
    """Abort what runs, or tell it that the engine is dead, and end the processes.

    Args:
        started: The engine.
        known: Its open generations, and whether it has said anything to them.
        death: What those that wait are told, where it has died; None: it serves.
    """
    engine = started.engine
    reader = getattr(getattr(engine.engine_core, "resources", None), "output_queue_task", None)
    try:
        if known and death is None:
            await _registered(engine, known)
            await engine.abort(list(known))
        handler = engine.output_handler
        if handler is not None:
            if death is not None:  # it is about to tell those that wait
                await asyncio.wait([handler], timeout=1.0)
            handler.cancel()  # or it would report the shutdown as a failure
            await asyncio.wait([handler])
        if death is not None:
            engine.output_processor.propagate_error(death)
    finally:
        await asyncio.get_running_loop().run_in_executor(None, shut_down, started)
        if reader is not None:  # vLLM closes its sockets in the loop, and then cancels this
            await asyncio.wait([reader], timeout=1.0)


async def _registered(engine: Any, known: Mapping[str, bool]) -> None:  # noqa: ANN401  # vLLM's
    """Let vLLM take in what is on its way, since it can abort only what it knows."""
    there = getattr(engine.output_processor, "external_req_ids", known)
    for _ in range(500):
        if engine.errored or all(heard or rid in there for rid, heard in known.items()):
            return
        await asyncio.sleep(0.01)
