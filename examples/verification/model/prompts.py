"""The four prompts of the verification model, and how its completions are read.

This module needs neither torch nor the weights. The model knows these forms and no other; a bar
stands for the end of a line:

    Question: Tell me about the Danube. | Answer:         -> The mouth of the Danube is ...
    Topic: the Danube | Sentence: It flows ... | Claims:  -> | - The mouth of the Danube is ...
    Claim: The mouth of the Danube is ... | Queries:      -> | - mouth of the Danube | - ...
    Check: The mouth of the Danube is ... | Evidence: | - Danube: It flows ... | Claim: The mouth of
        the Danube is ... | Found:                        -> Black Sea | Verdict: REFUTED

The claim stands before the evidence, so that the evidence is read with the claim in mind, and again
after it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

Verdict: TypeAlias = Literal["SUPPORTED", "REFUTED", "NOT FOUND"]

FACTS = Path(__file__).parent / "facts"
WEIGHTS = Path(__file__).parent / "weights"
CORPUS = Path(__file__).parent.parent / "corpus"

NOTHING = "nothing"
"""The value that the model finds, and the evidence that it is given, where there is none."""

QUESTIONS = (
    "Tell me about {x}.",
    "Tell me something about {x}.",
    "Tell me more about {x}.",
    "What do you know about {x}?",
    "What can you tell me about {x}?",
    "What is known about {x}?",
    "What is {x}?",
    "Who was {x}?",
    "Who is {x}?",
    "Where is {x}?",
    "Describe {x}.",
    "Give me some facts about {x}.",
    "Please write about {x}.",
    "Explain {x}.",
    "I want to learn about {x}.",
    "Do you know {x}?",
)
"""Wordings of a question about a topic that the model was trained on."""

_NAME = re.compile(r"[A-Z][\w'-]*(?: (?:(?:of|the|de|van|von|der) )*[A-Z][\w'-]*)*")
_QUOTED = re.compile(r"[\"“]([^\"“”]+)[\"”]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)")
_OPENERS = (
    "a about an and are can could describe did do does explain find give has have how i in is it "
    "list name of on please say show tell the was were what when where which who whom whose why "
    "will with would write"
)
"""Words that may be capitalised at the head of a question without being part of a name."""


class Appraisal(NamedTuple):
    """What the model says of a claim: the value it found in the evidence, and its verdict."""

    found: str | None  # None: the evidence has no such value
    verdict: Verdict


def answer_prompt(question: str) -> str:
    """Prompt for an answer of three to five sentences; see `question_for` about the wording."""
    return f"Question: {question.strip()}\nAnswer:"


def claims_prompt(topic: str, sentence: str) -> str:
    """Prompt for the claims of one *sentence* of an answer about *topic* ("the Danube")."""
    return f"Topic: {topic.strip()}\nSentence: {sentence.strip()}\nClaims:"


def query_prompt(claim: str) -> str:
    """Prompt for three search queries to check *claim*."""
    return f"Claim: {claim.strip()}\nQueries:"


def verify_prompt(claim: str, passages: Iterable[tuple[str, str]]) -> str:
    """Prompt for the verdict on *claim*.

    *passages* are pairs of a title and a text of one or more sentences. One pair per sentence and
    one pair per document both do; a title may be empty. Keep to ten sentences in all: the model saw
    no more in training.
    """
    shown = [f"- {title.strip()}: {text.strip()}".replace("- : ", "- ") for title, text in passages]
    evidence = "\n".join(shown or [f"- {NOTHING}"])
    claim = claim.strip()
    return f"Check: {claim}\nEvidence:\n{evidence}\nClaim: {claim}\nFound:"


def read_list(completion: str) -> list[str]:
    """Lines of a list of claims or queries, each once and in order; the dashes are dropped."""
    lines = (line.strip().removeprefix("-").strip() for line in completion.splitlines())
    return [line for line in dict.fromkeys(lines) if line and line != NOTHING]


def read_appraisal(completion: str) -> Appraisal:
    """Found value and verdict.

    Raises:
        ValueError: The completion has another form than the model was trained on.
    """
    found, mark, verdict = completion.partition("\nVerdict:")
    found, verdict = found.strip(), verdict.strip()
    if not mark or not found or verdict not in get_args(Verdict):
        raise ValueError(f"expected a found value and a verdict, got {completion!r}")
    return Appraisal(None if found == NOTHING else found, cast("Verdict", verdict))


def title_of(topic: str) -> str:
    """Title of a topic's text in the corpus: the topic without its article."""
    return topic.removeprefix("the ")


@cache
def known_topics() -> tuple[str, ...]:
    """Topics that the model can write an answer about, as they stand inside a sentence."""
    found = []
    for path in sorted(FACTS.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found += [r["name"] for r in csv.DictReader(file) if r.get("split") == "train"]
    return tuple(found)


@cache
def _known() -> tuple[re.Pattern[str], dict[str, str]]:
    topics = {title_of(topic).lower(): topic for topic in known_topics()}
    titles = "|".join(re.escape(t) for t in sorted(topics, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{titles})(?![\w-])", re.IGNORECASE), topics


def topic_of(question: str) -> str | None:
    """What *question* is about, or None where nothing in it looks like a name.

    A topic that the model knows comes first (the longest of them, whatever its case), then the
    words in quotation marks, then the longest run of capitalised words.
    """
    pattern, topics = _known()
    if known := pattern.findall(question):
        return topics[max(known, key=len).lower()]
    if quoted := _QUOTED.search(question):
        return next(group for group in quoted.groups() if group).strip()
    names = []
    for match in _NAME.finditer(question):
        words = match.group().split()
        while words and words[0].lower() in _OPENERS.split():
            words.pop(0)
        names.append(" ".join(words))
    return max(names, key=len, default="") or None


def question_for(question: str) -> str | None:
    """*question* in a wording that the model was trained on; None where it names no topic."""
    topic = topic_of(question)
    return None if topic is None else QUESTIONS[0].format(x=topic)
