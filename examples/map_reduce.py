"""Summarise a long document: passages to notes, notes to a summary per section, those to one summary.

    document -> sections -> passages -> a note on each -> a summary per section -> one of the whole

There are two levels of groups, each complete when its own children are, so a section is summarised
while others are still read. A group of any size becomes one text in a ``while`` around a pipeline.

    python examples/map_reduce.py README.md

``--model NAME`` asks any instruction-tuned Hugging Face model; without it rules stand in for one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
from _rules_engine import command_line, engine, extracts, run, text_of

import alto

GUIDE = Path(__file__).parent.parent / "docs" / "explanation" / "design.md"
PROMPT = "Summarise in one sentence.\n\n{}\n\nSummary: "
NO_PROSE = re.compile(r"^```.*?^```$|^[|(].*?$", re.DOTALL | re.MULTILINE)


@attrs.frozen
class Section:
    """A heading and what is below it: the text, or its summary."""

    title: str
    text: str


@alto.stage
async def sections(document: str) -> AsyncIterator[Section]:
    """The sections of a Markdown text that have any prose."""
    prose = NO_PROSE.sub("", f"# Beginning\n{document}")
    _, *parts = re.split(r"^#+ +(.+)$", prose, flags=re.MULTILINE)
    if not "".join(parts[1::2]).strip():
        raise ValueError("the document is empty; give one with text below its headings")
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        if text.strip():
            yield Section(title, " ".join(text.split()))


@alto.stage
async def sentences(section: Section) -> list[str]:
    """What is to be summarised."""
    return re.split(r"(?<=[.!?]) ", section.text)


@alto.stage
async def fives(texts: list[str]) -> AsyncIterator[str]:
    """Neighbours, five at a time, as one text."""
    for at in range(0, len(texts), 5):
        yield " ".join(texts[at : at + 5])


@alto.stage(concurrency=4)
async def note(text: str, *, llm: alto.LLM) -> str:
    """A text in one sentence."""
    return (await llm.text(PROMPT.format(text), max_tokens=80)).strip()


@alto.pipeline
def shorten(texts: alto.Stream[list[str]]) -> alto.Stream[str]:
    """A round: a fifth as many texts, in order."""
    return note(fives(texts))


async def unite(texts: list[str]) -> str:
    """One text of several, however many they are."""
    while len(texts) > 1:
        texts = await shorten.run(texts)
    return texts[0]


@alto.stage
async def digest(section: Section, notes: alto.Group[str]) -> Section:
    """The summary of a section, once all its notes are there."""
    return Section(section.title, await unite(await notes.list()))


@alto.stage
async def outline(digests: alto.Group[Section]) -> AsyncIterator[Section]:
    """The summary of each section, when its turn has come, and then that of the whole."""
    found = []
    async for section in digests:
        yield section
        found.append(section.text)
    yield Section("All in all", await unite(found))


@alto.pipeline
def summarise(document: alto.Stream[str]) -> alto.Stream[Section]:
    """The whole application: notes gather by section, and digests by document."""
    part = sections(document)
    return outline(digest(part, shorten(sentences(part))))


async def main(arguments: list[str] | None = None) -> None:
    """Summarise one document."""
    path, model, _ = command_line(__doc__, arguments, str(GUIDE))
    document = await text_of(path)
    async with summarise.open(llm=engine(model, extracts)) as app:
        async for section in app.stream(document):
            notes = app.statistics().stages["note"].done
            print(f"After {notes:2} notes: {section.title}: {section.text}", flush=True)


if __name__ == "__main__":
    run(main)
