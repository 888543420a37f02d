"""What a reader sees: text, JSON lines, or a terminal that is redrawn while the answer grows."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from typing import Any, Literal, Protocol, TextIO, TypeAlias, final

import attrs

from examples.verification.records import Appraisal, Claim, Event, Evidence, Sentence, Written

__all__ = ("Format", "JsonReport", "LiveReport", "Report", "Summary", "TextReport", "in_words")

Format: TypeAlias = Literal["text", "jsonl", "live"]

_WIDTH = 100
_COLOURS = {
    "SUPPORTED": "green",
    "REFUTED": "bold red",
    "NOT FOUND": "yellow",
    "UNCLEAR": "magenta",
}


@final
@attrs.define
class Summary:
    """How a question went. Times are seconds since it was asked."""

    question: str
    verdicts: Counter[str] = attrs.field(factory=Counter)
    first_verdict_s: float | None = None
    answer_done_s: float | None = None
    done_s: float | None = None

    def add(self, event: Event, seconds: float) -> None:
        """Count *event*."""
        if isinstance(event, Appraisal):
            self.verdicts[event.verdict] += 1
            if self.first_verdict_s is None:
                self.first_verdict_s = seconds
        elif isinstance(event, Written) and event.complete:
            self.answer_done_s = seconds

    def __str__(self) -> str:
        """One or two sentences."""
        if not self.verdicts:
            return "The answer claims nothing that could be checked."
        count = self.verdicts.total()
        parts = ", ".join(f"{n} {verdict.lower()}" for verdict, n in self.verdicts.most_common())
        return (
            f"{count} claim{'s' * (count != 1)}: {parts}. First verdict after "
            f"{self.first_verdict_s:.2f} s, answer complete after {self.answer_done_s:.2f} s, "
            f"all verdicts after {self.done_s:.2f} s."
        )


class Report(Protocol):
    """Tells a reader what happens, one question after the other."""

    def begin(self, question: str) -> None:
        """A question is asked."""

    def tell(self, event: Event, seconds: float) -> None:
        """Something has happened, that many seconds later."""

    def end(self, summary: Summary) -> None:
        """All is there that will be; also when it was cut short."""


def in_words(appraisal: Appraisal) -> str:
    """The verdict in words."""
    if appraisal.verdict == "UNCLEAR":
        return "the model's judgement cannot be read"
    if appraisal.found is None:
        return "the evidence does not say" if appraisal.evidence else "nothing was found about it"
    return f"the evidence says {_shown(appraisal.found)}"


_JOINERS = "\u200c\u200d"


def _shown(text: str) -> str:
    """Text on one line, without what a terminal would obey; joiners of letters and emoji stay."""
    shown = "".join(c if c.isprintable() or c in _JOINERS else " " for c in text)
    return " ".join(shown.split())


def _cited(appraisal: Appraisal) -> list[str]:
    """The evidence that has what the model found, or else the best; none where there is none."""
    if not appraisal.evidence:
        return []
    with_it = [
        e for e in appraisal.evidence if appraisal.found and appraisal.found in e.passage.text
    ]
    best: Evidence = (with_it or appraisal.evidence)[0]
    near = "" if best.similarity is None else f", similarity {best.similarity:.2f}"
    passage = best.passage
    text = f"{_shown(passage.source)}: “{_shown(passage.text)}” (BM25 {best.bm25:.1f}{near})"
    return [text]


@final
class TextReport:
    """A line for each sentence of the answer and for each verdict, as they come."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._first = True

    def begin(self, question: str) -> None:
        """The question itself."""
        self._print(("" if self._first else "\n") + _shown(question) + "\n")
        self._first = False

    def tell(self, event: Event, seconds: float) -> None:
        """A sentence, or a verdict with its claim and the best evidence."""
        if isinstance(event, Sentence):
            self._row(seconds, "answer", event.text)
        elif isinstance(event, Appraisal):
            self._row(seconds, event.verdict, event.claim.text)
            self._row(None, "", in_words(event))
            for cited in _cited(event):
                self._row(None, "", cited)

    def end(self, summary: Summary) -> None:
        """Counts and times."""
        if summary.done_s is not None:
            self._print(f"\n{summary}")

    def _row(self, seconds: float | None, kind: str, text: str) -> None:
        head = f"{'' if seconds is None else f'{seconds:.2f} s':>8}  {kind:<9}  "
        lines = textwrap.wrap(_shown(text), _WIDTH - len(head)) or [""]
        self._print(head + f"\n{' ' * len(head)}".join(lines))

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


@final
class JsonReport:
    """A JSON object for each event, one a line: ``event`` says which, ``t`` when, in seconds."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._question = ""

    def begin(self, question: str) -> None:
        """``{"event": "question", ...}``."""
        self._question = question
        self._print("question", 0.0)

    def tell(self, event: Event, seconds: float) -> None:
        """``text`` (a piece of the answer), ``sentence``, ``claim``, ``verdict``."""
        match event:
            case Written(text, complete=complete):
                self._print("answer_done" if complete else "text", seconds, text=text)
            case Sentence(text):
                self._print("sentence", seconds, text=text)
            case Claim(text, sentence):
                self._print("claim", seconds, claim=text, sentence=sentence)
            case Appraisal():
                self._print(
                    "verdict", seconds, claim=event.claim.text, sentence=event.claim.sentence,
                    verdict=event.verdict, found=event.found,
                    evidence=[attrs.asdict(evidence) for evidence in event.evidence],
                )  # fmt: skip

    def end(self, summary: Summary) -> None:
        """``{"event": "done", ...}`` with counts and times."""
        if summary.done_s is not None:
            self._print(
                "done", summary.done_s, claims=summary.verdicts.total(),
                verdicts=dict(summary.verdicts), first_verdict_s=summary.first_verdict_s,
                answer_done_s=summary.answer_done_s,
            )  # fmt: skip

    def _print(self, event: str, seconds: float, **values: Any) -> None:  # noqa: ANN401  # JSON
        record = {"event": event, "t": round(seconds, 4), "question": self._question, **values}
        utf_8 = (getattr(self._out, "encoding", None) or "utf-8").lower() in ("utf-8", "utf8")
        print(json.dumps(record, ensure_ascii=not utf_8), file=self._out, flush=True)


@final
class LiveReport:
    """The answer, which grows, and below it a table of its claims, which fills. Needs rich."""

    def __init__(self, out: TextIO | None = None) -> None:
        from rich.console import Console

        class Honest(Console):
            def on_broken_pipe(self) -> None:  # Rich's own ends the program with 1.
                raise BrokenPipeError

        self._console = Honest(file=out)
        self._live: Any = None
        self._question = ""
        self._answer = ""
        self._claims: list[tuple[Claim, Appraisal | None]] = []

    def begin(self, question: str) -> None:
        """An empty answer."""
        from rich.live import Live

        self._question, self._answer, self._claims = question, "", []
        self._live = Live(console=self._console, get_renderable=self._drawn, refresh_per_second=15)
        self._live.start()

    def tell(self, event: Event, seconds: float) -> None:  # noqa: ARG002  # the reader sees when
        """It is drawn at the next refresh."""
        match event:
            case Written(text):
                self._answer += text
            case Claim():
                self._claims.append((event, None))
            case Appraisal():
                waiting = (event.claim, None)
                if waiting not in self._claims:  # the claim itself is told by another stream
                    self._claims.append(waiting)
                self._claims[self._claims.index(waiting)] = (event.claim, event)
            case Sentence():
                pass

    def end(self, summary: Summary) -> None:
        """The last picture stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if summary.done_s is not None:
            self._console.print(f"\n{summary}", style="dim", markup=False, highlight=False)

    def _drawn(self) -> Any:  # noqa: ANN401  # rich is imported where it is used
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True, show_edge=False, pad_edge=False)
        table.add_column("verdict", no_wrap=True, width=9)
        table.add_column("claim", ratio=2)
        table.add_column("evidence", ratio=3)
        for claim, appraisal in self._claims:
            if appraisal is None:
                table.add_row(Text("...", "dim"), Text(_shown(claim.text)), Text(""))
                continue
            cited = "".join(f"\n{line}" for line in _cited(appraisal))
            table.add_row(
                Text(appraisal.verdict, _COLOURS[appraisal.verdict]),
                Text(_shown(claim.text)),
                Text.assemble(in_words(appraisal), (cited, "dim")),
            )
        answer = Panel(
            Text(_shown(self._answer)), title=Text(_shown(self._question)), title_align="left"
        )
        return Group(answer, table)
