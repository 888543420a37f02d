"""What the dynamic examples share: an engine that follows rules in place of a model.

``engine(None, says)`` is an `alto.testing.Scripted` that answers each prompt with ``says(prompt)``,
word by word, at a pace that one can watch. ``engine("Qwen/Qwen3-0.6B", says)`` is a real model.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Coroutine

import anyio

import alto
from alto.testing import Line, Scripted


def command_line(
    doc: str | None, arguments: list[str] | None, default: str, **options: int
) -> tuple[str, str | None, dict[str, int]]:
    """What an example is to do: its text, the model to ask, and the *options*, whole numbers."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("text", nargs="?", default=default, help=f"default: {default}")
    parser.add_argument("--model", help="a Hugging Face model or a folder; default: rules answer")
    for name, number in options.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default: {number}")
    given = parser.parse_args(arguments)
    return given.text, given.model, {name: getattr(given, name) for name in options}


def run(main: Callable[[], Coroutine[None, None, object]]) -> None:
    """Run the main function of a script; where its input is bad, end with what is wrong with it."""
    try:
        asyncio.run(main())
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read this has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (alto.AltoError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


async def text_of(path: str) -> str:
    """What a file says."""
    try:
        return await anyio.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not UTF-8 text (byte {error.start})") from error


def engine(
    model: str | None, says: Callable[[str], str | Line], *, delay: float = 0.003
) -> alto.Engine:
    """The engine for an example: *model*; without one *says* answers, a word each *delay* seconds."""
    if model is not None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # what it logs goes among the answers
        return alto.VLLM(model)

    def answer(prompt: str) -> Line:
        said = says(prompt)
        return said if isinstance(said, Line) else Line(re.findall(r"\S+\s*|\s+", said))

    return Scripted(answer, name="rules", delay=delay)


def extracts(prompt: str) -> str:
    """Summarises: gives that sentence of a text whose words are the most frequent ones."""
    text = prompt.split("\n\n")[1]
    count = Counter(word for word in text.lower().split() if len(word) > 3)

    def weight(sentence: str) -> float:
        return sum(count[word] for word in sentence.lower().split()) / (len(sentence) + 50)

    return max(re.split(r"(?<=[.!?]) ", text), key=weight)


def researches(prompt: str) -> str:
    """Works with tools: looks up both ends of a time, takes the difference, and answers."""
    if difference := re.search(r"SUBTRACT \d+ \d+\n= (.+)", prompt):
        return f"ANSWER {difference[1]} years"
    years = sorted(re.findall(r"\n= .*(\d{4})", prompt))
    if len(years) == 2:
        return f"SUBTRACT {years[1]} {years[0]}"
    ends = re.search(r"between (.+) and (.+)\?", prompt)
    if ends is None or "\n= " in prompt:
        return "ANSWER I do not know"
    return f"I need the years of both.\nSEARCH {ends[1]}\nSEARCH {ends[2]}"
