"""What scale costs: items in flight, engines, open requests and text chunks in one process.

Every figure comes from a process of its own. Costs are CPU time, the median of ``--rounds``; memory is
what tracemalloc sees while all items wait, values not counted, and the growth of the resident set. All
items are in flight at once (``bench/_scale/items.py`` says how they are held); engines are simulated and
run, as do the open requests, on the virtual clock. Beside these: the same work as bare tasks of asyncio.

Goals: the cost of an item flat within 1.2 times from 1,000 up, at most 1 KB for a waiting item, and
100,000 text chunks a second on one core, from an engine through a sentence splitter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

from bench._result import origin, write
from bench._scale import flow
from bench._scale.items import SHAPES, Run, Shape, measure

ITEMS = (1_000, 10_000, 100_000)
ENGINES = (1, 2, 4, 8, 16, 32, 64)
REQUESTS = (1, 10, 100, 1_000, 2_000)
CALLS = 2_000
FLAT, BYTES, CHUNKS = 1.2, 1024.0, 100_000.0
"""The goals."""


def alone(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401  # whatever it gives
    """Its result, from a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def items(shape: Shape, count: int, rounds: int) -> dict[str, float]:
    """Figures of one number of items."""
    timed = [alone(measure, Run(shape, count, traced=False)) for _ in range(rounds)]
    traced = alone(measure, Run(shape, count, traced=True))
    names = ("us_per_item", "close_us_per_item", "lag_ms", "rss_per_item")
    return {
        **{name: round(statistics.median(row[name] for row in timed), 3) for name in names},
        "bytes_per_item": round(traced["bytes_per_item"], 1),
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    found: dict[str, Any] = {"shapes": {}, "engines": {}, "requests": {}, "bare_requests": {}}
    for shape in SHAPES:
        found["shapes"][shape] = {}
        for count in options.items:
            found["shapes"][shape][str(count)] = row = items(shape, count, options.rounds)
            _say(f"{shape}, {count} items: {row}")
    for count in options.engines:
        costs = [alone(flow.engines, count, CALLS) for _ in range(options.rounds)]
        found["engines"][str(count)] = {"us_per_call": round(statistics.median(costs), 2)}
        _say(f"{count} engines: {found['engines'][str(count)]}")
    for count in options.requests:
        again = max(1, CALLS // count)
        for key, function in (("requests", flow.requests), ("bare_requests", flow.bare_requests)):
            costs = [alone(function, count, again) for _ in range(options.rounds)]
            found[key][str(count)] = row = {"us_per_item": round(statistics.median(costs), 3)}
            _say(f"{count} {key.replace('_', ' ')} at a time: {row}")
    rates = [alone(flow.chunks, 2_000, 20) for _ in range(options.rounds)]
    for name in rates[0]:
        found[f"chunks_{name}"] = round(statistics.median(row[name] for row in rates))
    found["items"] = {
        count: {name: row[name] for name in ("us_per_item", "bytes_per_item")}
        for count, row in found["shapes"]["waiting"].items()
    }
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rise(rows: dict[str, dict[str, float]], name: str, least: int = 0) -> float:
    """The highest over the first, from *least* on."""
    values = [row[name] for count, row in rows.items() if int(count) >= least]
    return max(values) / values[0]


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Goal, aim, figure, held or not."""
    rows: list[tuple[str, float, float, bool]] = []
    for shape, figures in found["shapes"].items():
        rows += [
            (f"{shape}: cost of an item over that of the fewest", _rise(figures, "us_per_item"), FLAT, False),
            (f"{shape}: bytes of a waiting item", max(r["bytes_per_item"] for r in figures.values()), BYTES,
             False),
        ]  # fmt: skip
    rows += [
        ("open requests: cost of an item over that of 10 at a time",
         _rise(found["requests"], "us_per_item", 10), FLAT, False),
        ("text chunks a second, engine to splitter", found["chunks_per_s"], CHUNKS, True),
    ]  # fmt: skip
    return [
        {
            "goal": label,
            "aim": f"{'>=' if up else '<='} {aim:g}",
            "measured": value,
            "holds": value >= aim if up else value <= aim,
        }
        for label, value, aim, up in rows
    ]


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """Figures and goals, and where they were measured."""
    found = measured(options)
    return {
        **found,
        "goals": goals(found),
        "rounds": options.rounds,
        "seed": None,
        **origin(),
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines: list[str] = []
    for shape, figures in result["shapes"].items():
        lines.append(
            f"{shape:<10}{'us an item':>12}{'bytes':>10}{'RSS bytes':>11}{'lag, ms':>10}{'us to close':>13}"
        )
        lines += [
            f"{count:>10}{row['us_per_item']:12.2f}{row['bytes_per_item']:10.0f}"
            f"{row['rss_per_item']:11.0f}{row['lag_ms']:10.1f}{row['close_us_per_item']:13.2f}"
            for count, row in figures.items()
        ]
    lines.append(f"{'engines':<10}{'us a call, simulated engine included':>40}")
    lines += [f"{n:>10}{row['us_per_call']:40.1f}" for n, row in result["engines"].items()]
    lines.append(f"{'requests':<10}{'us an item':>12}{'as bare tasks':>15}")
    bare = result["bare_requests"]
    lines += [
        f"{n:>10}{row['us_per_item']:12.2f}{bare[n]['us_per_item']:15.2f}"
        for n, row in result["requests"].items()
    ]
    lines += [
        (
            f"text chunks a second: {result['chunks_per_s']:,}; "
            f"{result['chunks_without_engine_per_s']:,} without the engine's own part"
        ),
        "",
    ]
    for goal in result["goals"]:
        verdict = "held" if goal["holds"] else "MISSED"
        lines.append(f"{goal['goal']:<62}{goal['aim']:>10}{goal['measured']:>12.4g}  {verdict}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, not {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object instead of a table")
    add("--rounds", type=_positive, default=5, help="default 5")
    add("--items", type=_positive, nargs="+", default=list(ITEMS), help="in flight, multiples of 4")
    add("--engines", type=_positive, nargs="+", default=list(ENGINES))
    add("--requests", type=_positive, nargs="+", default=list(REQUESTS), help="open at once")
    add("--short", action="store_true", help="one round, and less of everything")
    add("--out", help="also write the JSON to this file")
    add("--profile", action="store_true", help="only say where the time of the chunks goes")
    options = parser.parse_args(arguments)
    if any(count % 4 for count in options.items):
        parser.error("--items must be multiples of 4, the size of a group")
    if options.profile:
        print(alone(flow.profile, 2_000, 20))
        return
    if options.short:
        options.rounds, options.engines, options.requests = 1, [1, 8], [10, 200]
        options.items = [1_000, 20_000]
    result = whole(options)
    if options.out:
        write(options.out, result)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
