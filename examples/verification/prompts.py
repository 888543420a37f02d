"""What is said to a model, and how its words are read.

The stages need four things of a model: an answer, the claims of a sentence, search queries for a claim,
and a judgement of a claim by evidence. A `Model` says how to get them. `Trained` speaks the short
forms that the model in ``model/`` was trained on; `Instructed` asks any instruction-tuned model, in
words, and has its output held to a type.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol, final

import attrs

import alto
from examples.verification.model import prompts as forms
from examples.verification.model.attributes import ATTRIBUTES
from examples.verification.records import Evidence, Passage, Verdict
from examples.verification.rerank import closest

__all__ = ("Instructed", "Judgement", "Model", "Trained")


@attrs.frozen
class Judgement:
    """A model's verdict on a claim."""

    found: str | None
    """What the evidence says in the claim's place; None: nothing."""
    verdict: Verdict


_UNREADABLE = Judgement(None, "UNCLEAR")

_MOST_EVIDENCE = 6
"""Passages that a claim is judged by."""

_LONGEST_TOPIC = 100
"""Characters of a topic that fit the trained model's context of 512 tokens."""


class Model(Protocol):
    """How to ask one kind of model."""

    def refuses(self, question: str) -> str | None:
        """Why it cannot be asked this question; None: it can."""

    def answer(self, llm: alto.LLM, question: str) -> AsyncIterator[str]:
        """The answer, piece by piece."""

    def claims(self, llm: alto.LLM, question: str, sentence: str) -> AsyncIterator[str]:
        """Claims in one *sentence* of the answer, each as soon as it is there."""

    def queries(self, llm: alto.LLM, claim: str) -> AsyncIterator[str]:
        """Text with a search query in each line, piece by piece."""

    def reads(self, evidence: Sequence[Evidence]) -> Sequence[Evidence]:
        """As much of the evidence on a claim as it can make use of."""

    async def judge(self, llm: alto.LLM, claim: str, evidence: Sequence[Passage]) -> Judgement:
        """The verdict on a claim."""


@final
class Trained:
    """The model in ``model/``, which knows four forms of prompt and a few topics.

    Args:
        pace: Characters of an answer that are let through in a second, for those who watch it being
            written; None: all that the model has written.
    """

    def __init__(self, pace: float | None = None) -> None:
        self.pace = pace

    def refuses(self, question: str) -> str | None:
        """It needs a topic: something known, in quotation marks, or with a capital letter."""
        topic = forms.topic_of(question)
        if topic is None:
            return "it names nothing that could be looked up; try 'Where does the Danube end?'"
        if len(topic) > _LONGEST_TOPIC:
            return f"its topic has {len(topic)} characters, at most {_LONGEST_TOPIC} are taken"
        return None

    async def answer(self, llm: alto.LLM, question: str) -> AsyncIterator[str]:
        """In the question's own words where the model was trained on them."""
        prompt = forms.answer_prompt(_known_wording(question))
        async for chunk in llm.generate(prompt, max_tokens=160):
            if self.pace is None:
                yield chunk.text
                continue
            for word in re.findall(r"\s*\S+|\s+", chunk.text):  # who lags gets many at once
                await asyncio.sleep(len(word) / self.pace)
                yield word

    async def claims(self, llm: alto.LLM, question: str, sentence: str) -> AsyncIterator[str]:
        """One a line."""
        prompt = forms.claims_prompt(forms.topic_of(question) or "", sentence)
        text = (chunk.text async for chunk in llm.generate(prompt, max_tokens=80))
        async for line in alto.text.lines(text):
            for claim in forms.read_list(line):
                yield claim

    async def queries(self, llm: alto.LLM, claim: str) -> AsyncIterator[str]:
        """As the model writes them."""
        async for chunk in llm.generate(forms.query_prompt(claim), max_tokens=80):
            yield chunk.text

    def reads(self, evidence: Sequence[Evidence]) -> Sequence[Evidence]:
        """A few sentences of one text."""
        return closest(evidence)[:_MOST_EVIDENCE]

    async def judge(self, llm: alto.LLM, claim: str, evidence: Sequence[Passage]) -> Judgement:
        """What it finds, and the verdict. Evidence that its context has no room for is left out."""
        shown = [(passage.title, passage.text) for passage in evidence]
        try:
            said = await llm.text(forms.verify_prompt(claim, shown), max_tokens=40)
            return Judgement(*forms.read_appraisal(said))
        except alto.errors.PromptTooLong:
            return await self.judge(llm, claim, evidence[:-1]) if evidence else _UNREADABLE
        except ValueError:
            return _UNREADABLE


def _known_wording(question: str) -> str:
    """The question as it is, if the model was trained on its wording; else one that it knows."""
    topic = forms.topic_of(question)
    asks = [form for kind in ATTRIBUTES.values() for a in kind for form in a.asks]
    known = {form.format(x=topic).casefold(): form for form in (*forms.QUESTIONS, *asks)}
    form = known.get(question.casefold(), forms.QUESTIONS[0])
    return form.format(x=topic)


@attrs.frozen
class _Judged:
    """The form in which an instruction-tuned model is made to answer."""

    found: str | None
    verdict: Literal["SUPPORTED", "REFUTED", "NOT FOUND"]


@final
class Instructed:
    """Any instruction-tuned model."""

    def refuses(self, question: str) -> str | None:  # noqa: ARG002  # it may be asked anything
        """Never."""
        return None

    async def answer(self, llm: alto.LLM, question: str) -> AsyncIterator[str]:
        """A few sentences."""
        messages = _chat("Answer in three to five short sentences, each with facts.", question)
        async for chunk in llm.generate(messages, max_tokens=300):
            yield chunk.text

    async def claims(self, llm: alto.LLM, question: str, sentence: str) -> AsyncIterator[str]:
        """A list of JSON strings, each of which is given when it closes."""
        messages = _chat(
            "List the facts that the sentence states, as a JSON list of strings. Each fact is a "
            "sentence that can be understood alone: write names in place of 'it' or 'they'. "
            "An opinion, or a remark that states no fact, gives an empty list.",
            f"The sentence answers the question: {question}\nSentence: {sentence}",
        )
        try:
            async for claim in llm.generate(messages, max_tokens=300, schema=list[str]).items():
                if claim.strip():
                    yield claim.strip()
        except alto.OutputError:
            return  # what was whole has been given

    async def queries(self, llm: alto.LLM, claim: str) -> AsyncIterator[str]:
        """Held to one to three lines."""
        messages = _chat(
            "Write up to three short search queries, one a line, each after a dash, that would find "
            "whether the claim is true.",
            f"Claim: {claim}",
        )
        lines = r"(- [^\n]{3,80}\n){1,3}"
        async for chunk in llm.generate(messages, max_tokens=120, regex=lines):
            yield chunk.text

    def reads(self, evidence: Sequence[Evidence]) -> Sequence[Evidence]:
        """The best, from any text."""
        return evidence[:_MOST_EVIDENCE]

    async def judge(self, llm: alto.LLM, claim: str, evidence: Sequence[Passage]) -> Judgement:
        """A JSON object."""
        shown = "\n".join(f"- {p.title}: {p.text}" for p in evidence) or "- (nothing was found)"
        messages = _chat(
            "Does the evidence support the claim? Use nothing but the evidence. 'found': what the "
            "evidence says in the place of what the claim says, in a few words, or null. 'verdict': "
            "SUPPORTED, REFUTED, or NOT FOUND where the evidence does not say.",
            f"Evidence:\n{shown}\nClaim: {claim}",
        )
        try:
            judged = await llm.generate(messages, max_tokens=120, schema=_Judged).value()
        except alto.OutputError:
            return _UNREADABLE
        return Judgement(judged.found, judged.verdict)


def _chat(task: str, text: str) -> list[alto.Message]:
    return [alto.Message(role="system", content=task), alto.Message(role="user", content=text)]
