"""Many items in flight in one process: what each costs, what each holds, how the loop fares.

All items are in flight at once: a gate holds what comes first until the last has
been made: for ``waiting`` the call behind which all others wait in the buffer, for ``ordered`` the first
item, which all others have overtaken and must follow, for ``groups`` the group behind which all wait.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import alto
from alto.pipeline import Pipeline

Shape = Literal["waiting", "ordered", "groups"]
SHAPES: tuple[Shape, ...] = ("waiting", "ordered", "groups")
PIECES = 4
"""Items in a group."""
LAG_S = 0.005
"""How often the loop is asked whether it is late."""


class Gate:
    """Opens when everything is in flight and has been looked at."""

    def __init__(self) -> None:
        self.made = asyncio.Event()
        self.open = asyncio.Event()


@alto.stage
async def numbers(n: int, *, gate: Gate) -> AsyncIterator[int]:
    """*n* items, whose values cost nothing."""
    for k in range(n):
        yield k & 0xFF if k else -1
    gate.made.set()


@alto.stage(concurrency=1)
async def one_by_one(k: int, *, gate: Gate) -> int:
    """The first waits for the gate, so all others wait for it."""
    if k < 0:
        await gate.open.wait()
    return k


@alto.stage(concurrency=2)
async def all_but_the_first(k: int, *, gate: Gate) -> int:
    """The first waits for the gate, and the others go by."""
    if k < 0:
        await gate.open.wait()
    return k


@alto.stage
async def parents(n: int, *, gate: Gate) -> AsyncIterator[int]:
    """One for each group."""
    for k in range(n // PIECES):
        yield k & 0xFF if k else -1
    gate.made.set()


@alto.stage
async def pieces(k: int) -> AsyncIterator[int]:
    """Those of one group."""
    for _ in range(PIECES):
        yield k


@alto.stage(concurrency=1)
async def gather(group: alto.Group[int], *, gate: Gate) -> int:
    """The number of pieces; the first group waits for the gate, so all others wait for it."""
    found = await group.list()
    if found[0] < 0:
        await gate.open.wait()
    return len(found)


@alto.pipeline
def waiting(n: alto.Stream[int]) -> alto.Stream[int]:
    """Items wait for a call."""
    return one_by_one(numbers(n))


@alto.pipeline
def ordered(n: alto.Stream[int]) -> alto.Stream[list[int]]:
    """Results wait for the first of them."""
    return alto.collect(all_but_the_first(numbers(n)))


@alto.pipeline
def groups(n: alto.Stream[int]) -> alto.Stream[int]:
    """Pieces wait in groups that are not closed."""
    return gather(pieces(parents(n)))


App = alto.App[int, Any]

PIPELINES: dict[Shape, Pipeline[int, Any]] = {
    "waiting": waiting,
    "ordered": ordered,
    "groups": groups,
}


@dataclass(frozen=True)
class Run:
    """What to run, in a process of its own."""

    shape: Shape
    items: int
    traced: bool
    """Whether memory is looked at, which slows everything."""


def measure(run: Run) -> dict[str, float]:
    """Its figures."""
    return asyncio.run(_measure(run))


async def _measure(run: Run) -> dict[str, float]:
    await _once(run.shape, 1000)  # whatever is made on first use
    gc.collect()
    gc.freeze()
    if not run.traced:
        return await _once(run.shape, run.items)
    tracemalloc.start()
    try:
        return await _once(run.shape, run.items)
    finally:
        tracemalloc.stop()


async def _once(shape: Shape, items: int) -> dict[str, float]:
    gate = Gate()
    lags: list[float] = []
    traced = tracemalloc.is_tracing()
    figures: dict[str, float] = {}
    gc.collect()
    resident, before = _resident(), tracemalloc.get_traced_memory()[0]
    began = time.process_time()
    async with _opened(shape, items, gate) as app, asyncio.TaskGroup() as tasks:
        lag = tasks.create_task(_lag(lags))
        asked = tasks.create_task(app.run(items))
        await _in_flight(app, gate, shape, items)
        spent = time.process_time() - began
        if traced:
            gc.collect()
            figures["bytes_per_item"] = (tracemalloc.get_traced_memory()[0] - before) / items
        figures["rss_per_item"] = max(0, _resident() - resident) / items
        began = time.process_time()
        gate.open.set()
        result = await asked
        spent += time.process_time() - began
        lag.cancel()
    assert _counted(shape, result) == items, (shape, len(result))
    return {
        **figures,
        "us_per_item": spent / items * 1e6,
        "close_us_per_item": await _closing(shape, items) / items * 1e6,
        "lag_ms": 1e3 * max(lags, default=0.0),
    }


def _opened(shape: Shape, items: int, gate: Gate) -> AbstractAsyncContextManager[App]:
    return PIPELINES[shape].open(gate=gate, capacity=items + 1, max_held_items=2 * items + 2)


async def _in_flight(app: App, gate: Gate, shape: Shape, items: int) -> None:
    """Wait until all items are there, and nothing moves any more."""
    await gate.made.wait()
    while not _is_still(app.statistics().stages, shape, items):  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.02)  # what is waited for tells nobody


def _is_still(stages: Mapping[str, Any], shape: Shape, items: int) -> bool:
    if shape == "ordered":
        return bool(stages["all_but_the_first"].done == items - 1)
    stage, calls = ("one_by_one", items) if shape == "waiting" else ("gather", items // PIECES)
    return bool(stages[stage].running + stages[stage].waiting == calls)


async def _closing(shape: Shape, items: int) -> float:
    """CPU seconds of leaving an app with everything in flight."""
    gate = Gate()
    async with asyncio.TaskGroup() as tasks:
        async with _opened(shape, items, gate) as app:
            tasks.create_task(_cut_off(app, items))
            await _in_flight(app, gate, shape, items)
            began = time.process_time()
        return time.process_time() - began


async def _cut_off(app: App, items: int) -> None:
    try:
        await app.run(items)
    except alto.Closed:
        return
    raise AssertionError("it was to be closed")


def _counted(shape: Shape, result: list[Any]) -> int:
    if shape == "ordered":
        return len(result[0])
    return len(result) if shape == "waiting" else sum(result)


async def _lag(found: list[float]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + LAG_S
        await asyncio.sleep(LAG_S)
        found.append(clock() - due)


def _resident() -> int:
    """Bytes of memory that the process has now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
