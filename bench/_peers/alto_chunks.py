"""alto: an engine's text chunks through a stage that says them and a stage that cuts sentences.

``engine_alone`` iterates the scripted engine and counts; ``through_alto`` runs the pipeline on the
same text. The engine does not wait, so all that is timed is work. The cutting is three lines, so
that what is timed is the way there.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from alto import LLM, Group, Stream, pipeline, stage
from alto.model import GenerateRequest
from alto.testing.scripted import Scripted

PROMPT = "Speak."
SENTENCE = ("The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", ".")
"""Each chunk is a token or so, as an engine gives them."""


@stage
async def say(prompt: str, *, llm: LLM) -> AsyncIterator[str]:
    """The text, chunk by chunk."""
    async for chunk in llm.generate(prompt, max_tokens=None):
        yield chunk.text


@stage
async def split(text: Group[str]) -> AsyncIterator[str]:
    """The sentences; what is left at the end is one too."""
    sentence: list[str] = []
    async for piece in text:
        sentence.append(piece)
        if piece == ".":
            yield "".join(sentence)
            sentence.clear()
    if sentence:
        yield "".join(sentence)


@pipeline
def speak(prompt: Stream[str]) -> Stream[str]:
    """From the engine to sentences."""
    return split(say(prompt))


@asynccontextmanager
async def opened(
    chunks: int,
) -> AsyncIterator[Mapping[str, tuple[Callable[[], Awaitable[Any]], Any]]]:
    """Open the pipeline; give both calls with the result each must have."""
    said = [SENTENCE[i % len(SENTENCE)] for i in range(chunks)]
    sentences = ["".join(said[i : i + len(SENTENCE)]) for i in range(0, len(said), len(SENTENCE))]
    script = {PROMPT: said}
    async with Scripted(script) as engine, speak.open(llm=Scripted(script)) as app:

        async def alone() -> int:
            count = 0
            async for _ in engine.generate(GenerateRequest(prompt=PROMPT, max_tokens=None)):
                count += 1
            return count

        async def through() -> list[str]:
            return await app.run(PROMPT)

        yield {"engine_alone": (alone, chunks), "through_alto": (through, sentences)}
