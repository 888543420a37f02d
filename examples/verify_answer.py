"""Answer a question and verify the answer, claim by claim, while it is still being written.

    answer -> sentences -> queries -> retrieval (BM25) -> a verdict per claim

Every stage is a function of a few lines. Text leaves the model as it is decoded, so the first claim
has its verdict long before the answer is complete. Run it with

    python examples/verify_answer.py "Who discovered penicillin?" --model NAME

where NAME is any instruction-tuned Hugging Face model, or a folder. Without ``--model`` a tiny Llama
with random weights is built: its text means nothing, constrained decoding keeps the shapes right.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

import attrs
import bm25s  # type: ignore[import-untyped]

import alto

Log: TypeAlias = Callable[[str, str], None]


@attrs.frozen
class Passage:
    """A sentence of the corpus."""

    source: str
    text: str
    score: float


@attrs.frozen
class Verdict:
    """What the evidence says about one claim."""

    claim: str
    label: str
    evidence: list[Passage]


class Index:
    """BM25 over the sentences of a folder of texts."""

    def __init__(self, folder: Path) -> None:
        """Read every ``*.txt`` below *folder*."""
        self.passages = [
            (path.stem, sentence.strip() + ".")
            for path in sorted(folder.rglob("*.txt"))
            for sentence in path.read_text().replace("\n", " ").split(". ")
        ]
        if not self.passages:
            message = f"no *.txt files below {folder}; give a folder of texts with --corpus"
            raise SystemExit(message)
        self._bm25 = bm25s.BM25()
        tokens = bm25s.tokenize([text for _, text in self.passages], show_progress=False)
        self._bm25.index(tokens, show_progress=False)
        self.vocabulary = sorted(w for w in tokens.vocab if w.isascii() and w.isalpha())

    def search(self, query: str, k: int = 3) -> list[Passage]:
        """The best passages for *query*, best first; none if no word of it is known."""
        tokens = bm25s.tokenize([query], show_progress=False)
        found, scores = self._bm25.retrieve(
            tokens, k=min(k, len(self.passages)), show_progress=False
        )
        return [
            Passage(*self.passages[int(at)], float(score))
            for at, score in zip(found[0], scores[0], strict=True)
            if score > 0
        ]


@attrs.frozen(kw_only=True)
class Shapes:
    """Regular expressions that hold a model to the form of its output; None: it needs no holding."""

    answer: str | None = None
    queries: str | None = None


@alto.stage
async def answer(question: str, *, llm: alto.LLM, shapes: Shapes, log: Log) -> AsyncIterator[str]:
    """Text of the answer, as it is decoded."""
    prompt = f"Answer in three to five short sentences.\nQuestion: {question}\nAnswer:"
    async for chunk in llm.generate(
        prompt, max_tokens=400, temperature=0.7, seed=7, regex=shapes.answer
    ):
        yield chunk.text
    log("answer", "complete")


@alto.stage
async def claims(text: alto.Group[str], *, log: Log) -> AsyncIterator[str]:
    """Sentences of the answer, each as soon as it has ended."""
    async for sentence in alto.text.sentences(text):
        log("claim", sentence)
        yield sentence


@alto.stage
async def queries(claim: str, *, llm: alto.LLM, shapes: Shapes, log: Log) -> AsyncIterator[str]:
    """Search queries for a claim, each as soon as its line has ended."""
    prompt = (
        f"Write two search queries, one a line, to check this claim.\nClaim: {claim}\nQueries:\n"
    )
    generation = llm.generate(
        prompt, max_tokens=80, temperature=0.7, seed=crc32(claim.encode()), regex=shapes.queries
    )
    async for line in alto.text.lines(chunk.text async for chunk in generation):
        log("query", line)
        yield line


@alto.stage
async def search(query: str, *, index: Index) -> list[Passage]:
    """Passages for a query."""
    return index.search(query)


@alto.stage
async def appraise(
    claim: str, evidence: alto.Group[list[Passage]], *, llm: alto.LLM, log: Log
) -> Verdict:
    """The verdict on a claim, once all its evidence is there."""
    found = {p.text: p async for passages in evidence for p in passages}
    best = sorted(found.values(), key=lambda p: p.score, reverse=True)[:3]
    facts = "\n".join(f"- {p.text}" for p in best) or "- (nothing was found)"
    prompt = f"Evidence:\n{facts}\nClaim: {claim}\nThe claim is"
    label = await llm.text(prompt, choice=[" SUPPORTED", " REFUTED", " NOT FOUND"], max_tokens=12)
    verdict = Verdict(claim, label.strip(), best)
    log("verdict", f"{verdict.label}: {claim}")
    return verdict


@alto.pipeline
def verify(question: alto.Stream[str]) -> alto.Stream[Verdict]:
    """The whole application: evidence is gathered per claim, by itself."""
    found = claims(answer(question))
    return appraise(found, search(queries(found)))


def nonsense(index: Index) -> Shapes:
    """Shapes for a model that knows nothing: sentences and queries of words of the corpus."""
    words = "(" + "|".join(index.vocabulary[::4]) + ")"
    return Shapes(
        answer=rf"(The {words} {words} {words} is {words} {words}\. ){{4}}",
        queries=rf"({words} {words}\n){{2}}",
    )


async def main(arguments: list[str] | None = None) -> list[Verdict]:
    """Ask one question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("question", nargs="?", default="Who discovered penicillin?")
    parser.add_argument("--model", help="a Hugging Face model or a folder; default: a tiny Llama")
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parent / "corpus")
    options = parser.parse_args(arguments)
    index = Index(options.corpus)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    shapes, model = Shapes(), options.model
    settings: dict[str, object] = {}
    if model is None:
        from alto.engines.tiny import build_tiny_llama

        model = build_tiny_llama(Path(tempfile.gettempdir()) / "alto-tiny-llama")
        shapes = nonsense(index)
        settings = {"max_model_len": 2048, "enforce_eager": True, "kv_cache_memory_bytes": 2**27}
        settings["replicas"] = 2  # a pool of two engines, each with cores of its own
        print("The tiny Llama speaks: its words mean nothing, only their times do.\n")
    start: float | None = None

    def log(kind: str, what: str) -> None:
        if start is not None:
            print(f"{time.perf_counter() - start:7.3f} s  {kind:<8} {what}", flush=True)

    print(f"Starting {model} ...", flush=True)
    engine = alto.VLLM(
        str(model), progress=lambda event: print(f"  {event}", flush=True), **settings
    )
    async with verify.open(llm=engine, index=index, shapes=shapes, log=log) as app:
        await app.run("Warm up.")  # Not logged: the first request compiles the shapes.
        print(f"\n{options.question}\n")
        start = time.perf_counter()
        first, verdicts = 0.0, []
        async for verdict in app.stream(options.question):
            first = first or time.perf_counter() - start
            verdicts.append(verdict)
        whole = time.perf_counter() - start
    print(f"\nFirst verdict after {first:.2f} s, all {len(verdicts)} after {whole:.2f} s.")
    return verdicts


if __name__ == "__main__":
    sys.exit(not asyncio.run(main()))
