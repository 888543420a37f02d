"""How well the trained model and the application do, over all topics that the model knows.

python -m examples.verification.evaluate --json

A claim of the model is right or wrong by the tables that it was trained on (``model/facts``), so every
verdict can be marked. A claim that no table has counts as a wrong verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

import alto
from alto.testing import reference_run
from examples.verification.__main__ import ask
from examples.verification.engines import Engines, NoModel, choose, opened
from examples.verification.model import prompts as forms
from examples.verification.model import world
from examples.verification.passages import read_corpus
from examples.verification.pipeline import verify, watch
from examples.verification.records import Appraisal, Event
from examples.verification.report import Summary
from examples.verification.rerank import PassageVectors
from examples.verification.retrieval import Index
from examples.verification.scripted import truth

__all__ = ("evaluate", "main")


class _Silent:
    """A report that says nothing."""

    def begin(self, question: str) -> None:
        """Nothing."""

    def tell(self, event: Event, seconds: float) -> None:
        """Nothing."""

    def end(self, summary: Summary) -> None:
        """Nothing."""


async def evaluate(
    engines: Engines, index: Index, *, topics: Sequence[str], sequential: int, alone: int
) -> dict[str, Any]:
    """Figures of the whole application.

    Args:
        engines: They run already, or are started and stopped.
        index: The corpus.
        topics: What is asked about.
        sequential: Questions whose results are compared with those of a sequential interpreter.
        alone: Questions that are asked one at a time, to take times.
    """
    questions = [forms.QUESTIONS[0].format(x=topic) for topic in topics]
    resources: dict[str, Any] = {
        "llm": engines.llm,
        "encoder": engines.encoder,
        "model": engines.model,
        "index": index,
        "known": PassageVectors(index),
    }
    began = time.perf_counter()
    results: dict[str, list[Appraisal]] = {}
    async with verify.open(**resources) as app:
        async for done in app.map(questions):
            results[done.input] = done.unwrap()
    together = time.perf_counter() - began
    async with watch.open(**resources) as watching:
        times = [await ask(watching, q, _Silent()) for q in _spread(questions, alone)]
        strangers = [f"Who is {name}?" for name in world.unknown("test")]
        silent = [await ask(watching, question, _Silent()) for question in strangers]
    sample = _spread(questions, sequential)
    identical = [await reference_run(verify, q, **resources) == results[q] for q in sample]
    return {
        **marks([appraisal for found in results.values() for appraisal in found]),
        "topics": len(topics),
        "topics_without_a_claim": sum(not found for found in results.values()),
        "unknown_names": len(silent),
        "unknown_names_without_a_claim": sum(not s.verdicts for s in silent),
        "identical_to_sequential": all(identical),
        "compared_with_sequential": len(sample),
        "first_verdict_s": _median(times, "first_verdict_s"),
        "answer_done_s": _median(times, "answer_done_s"),
        "all_verdicts_s": _median(times, "done_s"),
        "timed_alone": len(times),
        "all_topics_s": round(together, 2),
        "encoder": None if engines.encoder is None else engines.encoder.name,
    }


def marks(appraisals: Sequence[Appraisal]) -> dict[str, Any]:
    """How many verdicts are right, and what the wrong ones are."""
    known = truth()
    pairs = Counter((known.get(a.claim.text, "no known claim"), a.verdict) for a in appraisals)
    right = sum(count for (deserved, given), count in pairs.items() if deserved == given)
    wrong = {
        f"{deserved} -> {given}": n for (deserved, given), n in pairs.items() if deserved != given
    }
    return {
        "claims": len(appraisals),
        "verdict_accuracy": round(right / len(appraisals), 4) if appraisals else None,
        "refuted": sum(a.verdict == "REFUTED" for a in appraisals),
        "mistakes": wrong,
    }


def _spread(questions: Sequence[str], count: int) -> list[str]:
    """*count* of them, evenly spread."""
    step = max(1, len(questions) // max(1, count))
    return list(questions[::step][:count])


def _median(summaries: Sequence[Summary], name: str) -> float | None:
    values = [value for s in summaries if (value := getattr(s, name)) is not None and s.verdicts]
    return round(statistics.median(values), 3) if values else None


def main(arguments: Sequence[str] | None = None, out: TextIO | None = None) -> int:
    """Print the figures; returns the exit code, 1 where results depend on the schedule."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.verification.evaluate",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--encoder", default="auto", help="as of the demonstration")
    parser.add_argument("--sequential", type=int, default=12, metavar="N",
        help="questions that are run sequentially, too; default: 12")  # fmt: skip
    parser.add_argument("--alone", type=int, default=12, metavar="N",
        help="questions that are timed one at a time; default: 12")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        index = Index(read_corpus(forms.CORPUS))
        figures = asyncio.run(_run(index, options))
    except (NoModel, alto.errors.EngineStartError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(figures), file=out)
    else:
        for name, value in figures.items():
            print(f"{name:<30} {value}", file=out)
    return 0 if figures["identical_to_sequential"] else 1


async def _run(index: Index, options: argparse.Namespace) -> dict[str, Any]:
    engines = choose(None, options.encoder)
    began = time.perf_counter()
    async with opened(verify, engines, index):
        seconds = time.perf_counter() - began
        figures = await evaluate(
            engines,
            index,
            topics=forms.known_topics(),
            sequential=options.sequential,
            alone=options.alone,
        )
    return {**figures, "start_s": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
