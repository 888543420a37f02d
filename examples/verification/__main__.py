"""Ask questions, and watch every claim of the answers being checked.

python -m examples.verification "Where does the Danube end?"
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import alto
from examples.verification.engines import Engines, NoModel, choose, opened
from examples.verification.model import prompts as forms
from examples.verification.passages import CorpusError, read_corpus
from examples.verification.pipeline import watch, watch_in_steps
from examples.verification.prompts import Model, Trained
from examples.verification.records import Event
from examples.verification.report import JsonReport, LiveReport, Report, Summary, TextReport
from examples.verification.retrieval import Index

__all__ = ("ask", "main")

QUESTION: Final = "Where does the Danube end?"
PACE: Final = 100.0
"""Characters a second: some 25 tokens."""
WARM_UP: Final = "Tell me about gold."
"""Asked first, unseen: an engine's first generation is slow."""
LONGEST_QUESTION: Final = 1000
"""In characters."""

FAILED, REFUSED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
"""Exit codes: as of other programs, and for the last two as of a shell."""

REPORTS: Final[Mapping[str, Callable[[], Report]]] = {
    "text": TextReport,
    "jsonl": JsonReport,
    "live": LiveReport,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    if sys.stdout is None:
        _complain("the standard output is closed; send it to a file, or to /dev/null")
        return REFUSED
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a quotation mark
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _main(options)
        sys.stdout.flush()
    except (CorpusError, NoModel, alto.errors.EngineStartError) as error:
        _complain(str(error))
        return REFUSED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read this has gone, as `head` does
        _discard_output()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        _complain(f"the output cannot be written: {error.strerror}")
        return FAILED
    return code


def _discard_output() -> None:
    # What is left in the buffer would fail once more when the program ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.verification", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("questions", nargs="*", default=[QUESTION], metavar="QUESTION", help=f"default: {QUESTION}")
    add("--model", help="an instruction-tuned Hugging Face model, or a folder; default: the small "
        "model of this demonstration, which knows a few topics, some of them wrongly")  # fmt: skip
    add("--encoder", default="auto", help="a sentence encoder for the reranking; 'none': rank by "
        "words alone; default: the packaged one, where it is installed")  # fmt: skip
    add("--corpus", type=_folder, default=forms.CORPUS, metavar="FOLDER",
        help="*.txt files in UTF-8 that claims are checked against")  # fmt: skip
    add("--format", choices=sorted(REPORTS), default="text", help="default: text")
    add("--pace", type=_rate, metavar="CHARACTERS", help="how many a second of an answer of the "
        f"small model are shown, which writes all of it in a moment; 0: as it comes; default: {PACE:g}"
        ", about what a large model writes, and 0 for --format jsonl")  # fmt: skip
    add("--no-stream", action="store_true", help="every stage waits for the one above it to end")
    add("--verbose", action="store_true", help="show what vLLM prints")
    return parser


def _main(options: argparse.Namespace) -> int:
    try:
        report = REPORTS[options.format]()
    except ImportError as error:
        _complain(f"--format {options.format} needs {error.name}: pip install {error.name}")
        return REFUSED
    index = Index(read_corpus(options.corpus))
    pace = _pace(options)
    engines = choose(options.model, options.encoder, pace=pace)
    questions, refused = accepted(options.questions, engines.model)
    for complaint in refused:
        _complain(complaint)
    if not questions:
        return REFUSED
    if engines.note:
        _complain(engines.note)
    if pace is not None:
        _complain(
            f"the small model writes an answer in a moment; it is shown at {pace:g} characters a "
            f"second, about what a large model writes (--pace 0: as it comes)"
        )
    code = asyncio.run(_run(questions, report, engines, index, options))
    return code or (REFUSED if refused else 0)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if rate != 0 and not 1 <= rate < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of characters a second, from 1; 0 shows an answer as it comes"
        )
    return rate


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("name a folder; '.' is the one that you are in")
    return Path(text)


def _pace(options: argparse.Namespace) -> float | None:
    if options.model is not None:
        return None
    pace: float | None = options.pace
    if pace is None:
        pace = 0 if options.format == "jsonl" else PACE
    return pace or None


def accepted(questions: Sequence[str], model: Model) -> tuple[list[str], list[str]]:
    """The questions that can be asked, and what is wrong with the others."""
    good, bad = [], []
    for number, question in enumerate(questions, 1):
        text = " ".join(question.split())
        try:
            text.encode()
        except UnicodeEncodeError:
            problem: str | None = "it is not valid text in this terminal's encoding"
        else:
            if not text:
                problem = "it is empty"
            elif len(text) > LONGEST_QUESTION:
                problem = f"it has {len(text)} characters, at most {LONGEST_QUESTION} are taken"
            else:
                problem = model.refuses(text)
        if problem is None:
            good.append(text)
        else:
            bad.append(f"question {number} is left out: {problem}")
    return good, bad


async def _run(
    questions: Sequence[str],
    report: Report,
    engines: Engines,
    index: Index,
    options: argparse.Namespace,
) -> int:
    names = " and ".join(e.name for e in (engines.llm, engines.encoder) if e is not None)
    print(f"Starting vLLM: {names} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    pipeline = watch_in_steps if options.no_stream else watch
    async with opened(pipeline, engines, index, verbose=options.verbose) as app:
        await _warm_up(app, engines.model)
        seconds = time.perf_counter() - began
        print(f"Ready after {seconds:.0f} s.\n", file=sys.stderr, flush=True)
        code = 0
        for question in questions:
            try:
                await ask(app, question, report)
            except alto.AltoError as error:
                _complain(f"{question!r} failed: {error}")
                code = FAILED
        return code


async def _warm_up(app: alto.App[str, Event], model: Model) -> None:
    pace = None
    if isinstance(model, Trained):  # nobody watches
        pace, model.pace = model.pace, None
    with contextlib.suppress(alto.AltoError):  # if it is to fail, let a question of the user's
        await app.run(WARM_UP)
    if isinstance(model, Trained):
        model.pace = pace


async def ask(app: alto.App[str, Event], question: str, report: Report) -> Summary:
    """Ask one question, and report what happens.

    Raises:
        RequestError: It failed; what was there by then has been reported.

    Cancellation: ends the request, down to what the engines generate for it.
    """
    clock = asyncio.get_running_loop().time
    summary = Summary(question)
    began = clock()
    report.begin(question)
    try:
        async with app.stream(question) as events:
            async for event in events:
                seconds = clock() - began
                summary.add(event, seconds)
                report.tell(event, seconds)
        summary.done_s = clock() - began
    except BaseException:
        with contextlib.suppress(BrokenPipeError):
            report.end(summary)
        raise
    report.end(summary)
    return summary


def _complain(message: str) -> None:
    print(f"verification: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
