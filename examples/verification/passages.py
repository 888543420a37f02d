"""Reading a folder of texts, one passage a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import attrs

import alto
from examples.verification.records import Passage

__all__ = ("CorpusError", "read_corpus")

_LONGEST_TITLE, _LONGEST_SENTENCE = 100, 350
"""In characters; what is longer is cut, since a model's context is short."""


class CorpusError(ValueError):
    """A folder that no corpus can be read from; the message says why and what to do."""


def read_corpus(folder: Path) -> list[Passage]:
    """The sentences of every ``*.txt`` below *folder*, in the order of the files' names.

    A first line ``# Danube`` is the title of a text; without one its file's name is.

    Raises:
        CorpusError: There is no such folder, it holds no text, or a file is not UTF-8.
        RuntimeError: An event loop runs in this thread.
    """
    try:
        there = folder.exists()
    except OSError as error:  # a name that no file can have
        raise CorpusError(f"{str(folder)!r} cannot be read: {error.strerror}") from error
    if not there:
        raise CorpusError(f"there is no folder {str(folder)!r}; name one with --corpus")
    if not folder.is_dir():
        raise CorpusError(f"{str(folder)!r} is a file; give the folder of texts that it lies in")
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not files:
        raise CorpusError(f"no *.txt files below {str(folder)!r}; a corpus is a folder of texts")
    passages = asyncio.run(_split([_read(path, folder) for path in files]))
    if not passages:
        raise CorpusError(f"the {len(files)} texts below {str(folder)!r} hold no sentence")
    return passages


def _read(path: Path, folder: Path) -> Passage:
    """A whole file as one passage."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start}); convert it, or leave it out"
        ) from error
    except OSError as error:
        raise CorpusError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    first, _, rest = content.strip().partition("\n")
    title = path.stem.replace("-", " ").replace("_", " ")
    if first.startswith("# "):
        title, content = first[2:].strip(), rest
    source = path.relative_to(folder).as_posix()
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"the name of {str(path)!a} is not UTF-8; rename it, or leave it out"
        ) from error
    return Passage(source, title[:_LONGEST_TITLE], content)


async def _split(files: Iterable[Passage]) -> list[Passage]:
    return [
        attrs.evolve(file, text=sentence)
        for file in files
        async for sentence in alto.text.sentences(
            _paragraphs(file.text), max_chars=_LONGEST_SENTENCE
        )
    ]


async def _paragraphs(text: str) -> AsyncIterator[str]:
    for paragraph in text.split("\n\n"):
        yield " ".join(paragraph.split()) + "\n\n"
