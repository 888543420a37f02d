"""What an item costs on its way through two hops: alto, bare queues and other frameworks.

The work is the same for every contender: a request makes a producer yield ``--items`` items, each
is awaited once (``i + 1``, no real wait), and the results are gathered, in order, into one list.
Every result is compared with ``[1, ..., items]``. Each contender is one file of ``bench/_peers``,
which says what it does. Two figures each, in microseconds per item: requests one after another,
and 20 at once. For alto also the cost per text chunk that goes from an engine that speaks from a
script through a stage into a stage that cuts sentences, on top of iterating that engine.

Method: one process, one event loop. Set-up (compile, validate, open) is outside the timed part,
the whole request inside. Each contender is warmed up, then they take turns for ``--rounds``
rounds, each round starting with another one; a turn lasts about 0.1 s or one request, whichever
is longer, and those whose request (or batch) takes over 2 s sit out after three rounds. The figure
is the median over rounds of a round's mean; ``spread`` has minimum, 90th and 99th percentile over
single requests (or batches of 20), divided by their items. ``ratios``, and the difference that is
the cost per chunk, are taken within each round, and then the median: a machine that is slow for a
while upsets them less than it does the figures. The garbage collector is on, for making garbage is
part of the cost; it runs in full before each turn, and what the set-up left behind is frozen, so
nobody pays for another's imports. Nothing is drawn at random: the seed is null.
``--cpu`` times by the process's CPU clock instead of the wall's, for a machine that others use too.

A contender whose package cannot be imported is null; the reason goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from time import perf_counter, process_time
from types import ModuleType
from typing import Any

CONTENDERS = {
    "asyncio_queue": "asyncio_queue",
    "asyncio_queue_bounded": "asyncio_queue_bounded",
    "anyio": "anyio_streams",
    "aiostream": "aiostream_map",
    "langgraph": "langgraph_send",
    "llamaindex": "llamaindex_workflow",
    "pydantic_graph": "pydantic_graph_map",
    "alto": "alto_pipeline",
}
"""Key in the output, and module of ``bench._peers``."""

DISTRIBUTIONS = {
    "alto": "alto-llm",
    "anyio": "anyio",
    "aiostream": "aiostream",
    "langgraph": "langgraph",
    "llamaindex": "llama-index-workflows",
    "pydantic_graph": "pydantic-graph",
}
"""Key in the output, and the package whose version it gets."""

TURN_SECONDS = 0.1
SLOW_SECONDS = 2.0
SLOW_ROUNDS = 3
AT_ONCE = 20
MICRO = 1e6
SECTIONS = ("per_item_us", "per_item_us_concurrent", "per_chunk_us")
COMPARED = ("asyncio_queue", "langgraph")


@dataclass(kw_only=True)
class Entry:
    """One thing that is timed, and what its turns took."""

    section: str
    """Key of the output that it belongs to."""
    name: str
    """Key within the section."""
    call: Callable[[], Awaitable[object]]
    """Does the whole of one sample: a request, or a batch of them."""
    expected: object
    """What ``call`` must return."""
    units: int
    """Items or chunks in one sample."""
    clock: Callable[[], float]
    """Seconds on the clock that times it."""
    samples_per_turn: int = 1
    """How many samples make a turn of about ``TURN_SECONDS``."""
    turns_at_most: float = math.inf
    """How many rounds it takes part in, where it is slow."""
    rounds: list[float] = field(default_factory=list)
    """Mean microseconds per unit, one a round."""
    samples: list[float] = field(default_factory=list)
    """Microseconds per unit, one a sample."""

    async def sample(self) -> float:
        """Seconds of one sample, whose result is checked off the clock."""
        started = self.clock()
        result = await self.call()
        took = self.clock() - started
        if result != self.expected:
            msg = f"{self.section}: {self.name} gave a wrong result: {str(result)[:200]}"
            raise RuntimeError(msg)
        return took

    async def warm_up(self) -> None:
        """Run it cold, then size its turns."""
        await self.sample()
        took = min([await self.sample() for _ in range(2)])
        self.samples_per_turn = max(1, round(TURN_SECONDS / took))
        self.turns_at_most = SLOW_ROUNDS if took > SLOW_SECONDS else math.inf

    async def take_turn(self) -> None:
        """Time one round's samples."""
        if len(self.rounds) >= self.turns_at_most:
            return
        gc.collect()
        took = [await self.sample() for _ in range(self.samples_per_turn)]
        scale = MICRO / self.units
        self.rounds.append(statistics.fmean(took) * scale)
        self.samples += [seconds * scale for seconds in took]

    def figure(self) -> float:
        """The figure to report: the median round."""
        return statistics.median(self.rounds)

    def ratio(self, other: Entry | None) -> float | None:
        """Cost over *other*'s cost, the median of the rounds that both took part in."""
        if other is None:
            return None
        pairs = zip(self.rounds, other.rounds, strict=False)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def excess(self, other: Entry) -> float:
        """Cost on top of *other*'s, the median of the rounds that both took part in."""
        pairs = zip(self.rounds, other.rounds, strict=False)
        return statistics.median(mine - theirs for mine, theirs in pairs)

    def spread(self) -> dict[str, float | None]:
        """How far the samples lie apart."""
        ordered = sorted(self.samples)
        return {
            "min": _rounded(ordered[0]),
            "p90": _rounded(_percentile(ordered, 90)),
            "p99": _rounded(_percentile(ordered, 99)),
            "samples": len(ordered),
        }


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that at least *percent* of the sorted values do not exceed."""
    return ordered[-(-len(ordered) * percent // 100) - 1]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


async def _batch(request: Callable[[int], Awaitable[object]], items: int) -> list[object]:
    """``AT_ONCE`` requests at the same time."""

    async def one() -> object:
        return await request(items)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one()) for _ in range(AT_ONCE)]
    return [task.result() for task in running]


def _load(module: str) -> ModuleType | None:
    """The module of ``bench._peers``, or None, with the reason on stderr."""
    try:
        return importlib.import_module(f"bench._peers.{module}")
    except ImportError as error:
        sys.stderr.write(f"{module}: not measured: {error}\n")
        return None


async def measure(
    names: Sequence[str], *, items: int, rounds: int, cpu: bool = False
) -> dict[str, Any]:
    """Time the contenders in *names* and give the record that is printed."""
    clock = process_time if cpu else perf_counter
    expected = list(range(1, items + 1))
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    async with AsyncExitStack() as stack:
        for name in names:
            module = _load(CONTENDERS[name])
            if module is None:
                missing += [("per_item_us", name), ("per_item_us_concurrent", name)]
                continue
            request = await stack.enter_async_context(module.opened())
            entries += [
                Entry(
                    section="per_item_us",
                    name=name,
                    call=partial(request, items),
                    expected=expected,
                    units=items,
                    clock=clock,
                ),
                Entry(
                    section="per_item_us_concurrent",
                    name=name,
                    call=partial(_batch, request, items),
                    expected=[expected] * AT_ONCE,
                    units=items * AT_ONCE,
                    clock=clock,
                ),
            ]
        if "alto" in names:
            module = _load("alto_chunks")
            if module is None:
                missing += [("per_chunk_us", "alto"), ("per_chunk_us", "engine_alone")]
            else:
                calls = await stack.enter_async_context(module.opened(items))
                entries += [
                    Entry(
                        section="per_chunk_us",
                        name=name,
                        call=call,
                        expected=result,
                        units=items,
                        clock=clock,
                    )
                    for name, (call, result) in calls.items()
                ]
        for section in SECTIONS:
            await _run_rounds([e for e in entries if e.section == section], rounds)
    report = _report(entries, missing)
    return report | {
        "items": items,
        "rounds": rounds,
        "at_once": AT_ONCE,
        "clock": "cpu" if cpu else "wall",
        "gc": "on, collected before each turn, set-up frozen",
        "seed": None,
    }


async def _run_rounds(entries: list[Entry], rounds: int) -> None:
    """Warm everything up, then let the entries take turns."""
    if not entries:
        return
    for entry in entries:
        await entry.warm_up()
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds):
            first = number % len(entries)
            for entry in entries[first:] + entries[:first]:
                await entry.take_turn()
    finally:
        gc.unfreeze()


def _report(entries: list[Entry], missing: list[tuple[str, str]]) -> dict[str, Any]:
    """Put figures, spread, ratios, machine and versions into one record."""
    figures: dict[tuple[str, str], Any] = dict.fromkeys(missing)
    figures |= {(entry.section, entry.name): entry for entry in entries}
    ranks = {name: rank for rank, name in enumerate(CONTENDERS)}
    report: dict[str, Any] = {section: {} for section in SECTIONS}
    spread: dict[str, Any] = {section: {} for section in SECTIONS}
    ratios: dict[str, Any] = {section: {} for section in SECTIONS[:2]}
    for section, name in sorted(figures, key=lambda key: ranks.get(key[1], len(ranks))):
        entry = figures[section, name]
        report[section][name] = entry and _rounded(entry.figure())
        spread[section][name] = entry and entry.spread()
        if section in ratios and entry:
            queue, graph = (figures.get((section, other)) for other in COMPARED)
            ratios[section][name] = {
                "to_asyncio_queue": _rounded(entry.ratio(queue)),
                "langgraph_to_it": _rounded(graph and graph.ratio(entry)),
            }
    through = figures.get(("per_chunk_us", "through_alto"))
    if through is not None:
        alone = figures["per_chunk_us", "engine_alone"]
        report["per_chunk_us"]["alto"] = _rounded(through.excess(alone))
    report["spread"] = spread
    report["ratios"] = ratios
    report["machine"] = _machine()
    report["versions"] = _versions()
    return report


def _machine() -> dict[str, Any]:
    """What it ran on."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return {
        "processor": processor,
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
    }


def _versions() -> dict[str, str | None]:
    """Versions of Python and of every contender's package."""
    versions: dict[str, str | None] = {
        "python": f"{platform.python_implementation()} {platform.python_version()}"
    }
    for name, distribution in DISTRIBUTIONS.items():
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def table(report: dict[str, Any]) -> str:
    """The record as text, with ratios to the bare queue and to LangGraph."""
    titles = {
        "per_item_us": "us per item, one request after another",
        "per_item_us_concurrent": f"us per item, {report['at_once']} requests at once",
    }
    lines: list[str] = []
    for section, title in titles.items():
        figures = report[section]
        columns = ("median", "min", "p90", "p99", "/ asyncio_queue", "LangGraph /")
        lines.append(f"{title:<40}" + "".join(f"{column:>16}" for column in columns))
        for name, figure in figures.items():
            if figure is None:
                lines.append(f"  {name:<38}{'not measured':>16}")
                continue
            spread = report["spread"][section][name]
            cells = [f"{value:.2f}" for value in (figure, *(spread[c] for c in columns[1:4]))]
            ratios = report["ratios"][section][name].values()
            cells += ["-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
            lines.append(f"  {name:<38}" + "".join(f"{cell:>16}" for cell in cells))
        lines.append("")
    chunks = report["per_chunk_us"]
    if chunks.get("alto") is not None:
        lines += [
            "us per text chunk, engine to sentence splitter",
            f"  {'engine alone':<38}{chunks['engine_alone']:>16.2f}",
            f"  {'through alto':<38}{chunks['through_alto']:>16.2f}",
            f"  {'alto, on top of the engine':<38}{chunks['alto']:>16.2f}",
            "",
        ]
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += [
        f"{report['items']} items, {report['rounds']} rounds, {report['clock']} time, nothing random",
        f"garbage collector {report['gc']}",
        f"{machine['processor']}, {machine['cpus']} CPUs, {machine['system']}",
        versions,
    ]
    return "\n".join(lines)


def _names(text: str) -> list[str]:
    """Parse ``--only``; the order is that of the table."""
    wanted = set(text.split(","))
    if unknown := wanted - CONTENDERS.keys():
        msg = f"no such contender: {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}"
        raise argparse.ArgumentTypeError(msg)
    return [name for name in CONTENDERS if name in wanted]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, not {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.overhead", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--only", type=_names, default=list(CONTENDERS), metavar="A,B", help="only these contenders"
    )
    parser.add_argument("--rounds", type=_positive, default=15, help="rounds (default 15)")
    parser.add_argument("--items", type=_positive, default=200, help="per request (default 200)")
    parser.add_argument("--cpu", action="store_true", help="time by the process's CPU clock")
    options = parser.parse_args()
    report = asyncio.run(
        measure(options.only, items=options.items, rounds=options.rounds, cpu=options.cpu)
    )
    text = json.dumps(report, indent=2) if options.json else table(report)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
