"""The whole chain without the application: answers, claims, queries, BM25, verdicts.

    python -m examples.verification.model.end_to_end

A claim that the model writes is right or wrong by the fact tables, so each verdict can be marked.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from examples.verification.model import prompts, world
from examples.verification.model.evaluate import Complete, engine

Passage = tuple[str, str]


class Index:
    """BM25 over the corpus, by sentence or by whole text; the title counts as part of each."""

    def __init__(self, *, whole: bool) -> None:
        import bm25s  # type: ignore[import-untyped]  # not in vLLM's workers, which import this file

        self._tokenize = bm25s.tokenize
        self.passages: list[Passage] = []
        for path in sorted(prompts.CORPUS.glob("*.txt")):
            title, _, text = path.read_text(encoding="utf-8").partition("\n")
            parts = [text.strip()] if whole else re.findall(r"[^.]+\.", text)
            self.passages += [(title.removeprefix("# "), part.strip()) for part in parts]
        self._bm25 = bm25s.BM25()
        tokens = self._tokenize(
            [f"{title} {text}" for title, text in self.passages], show_progress=False
        )
        self._bm25.index(tokens, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[Passage]:
        """The best *k* passages over all *queries*, best first."""
        best: Counter[int] = Counter()
        for query in queries:
            tokens = self._tokenize([query], show_progress=False)
            found, scores = self._bm25.retrieve(tokens, k=k, show_progress=False)
            for at, score in zip(found[0], scores[0], strict=True):
                best[int(at)] = max(best[int(at)], float(score))
        return [self.passages[at] for at, score in best.most_common(k) if score > 0]


def truth() -> dict[str, str]:
    """Every claim that a right or mistaken answer can hold, with the verdict that it deserves."""
    claims: dict[str, str] = {}
    for entity in world.split("train"):
        mistaken = entity.mistaken()
        for a in entity.attributes:
            claims[world.claim(entity, a)] = "SUPPORTED"
            if a.key in entity.believed:
                claims[world.claim(mistaken, a)] = "REFUTED"
    return claims


def run(complete: Complete, index: Index, k: int, shown: int) -> None:
    """Ask about every known topic, and print how many verdicts are right."""
    topics = prompts.known_topics()
    forms = [prompts.QUESTIONS[0].format(x=t) for t in topics]
    answers = complete([prompts.answer_prompt(f) for f in forms])
    pairs = [
        (t, s)
        for t, text in zip(topics, answers, strict=True)
        for s in re.findall(r"[^.]+\.", text)
    ]
    lists = complete([prompts.claims_prompt(t, s) for t, s in pairs])
    claims = [c for text in lists for c in prompts.read_list(text)]
    queries = complete([prompts.query_prompt(c) for c in claims])
    evidence = [index.search(prompts.read_list(q), k) for q in queries]
    wrote = complete([prompts.verify_prompt(c, e) for c, e in zip(claims, evidence, strict=True)])
    known, marks, confused = truth(), Counter[str](), Counter[str]()
    for claim, passages, text in zip(claims, evidence, wrote, strict=True):
        verdict = text.rpartition("Verdict: ")[2].strip()
        if claim not in known:
            marks["claims that the answer should not hold"] += 1
            continue
        marks["right" if verdict == known[claim] else "wrong"] += 1
        confused[f"{known[claim]} -> {verdict}"] += 1
        if verdict != known[claim] and shown > 0:
            shown -= 1
            print(f"{claim}\n    {text!r}\n    {passages}")
    print(f"k={k}: {len(pairs)} sentences, {len(claims)} claims, {dict(marks)}, {dict(confused)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures for sentences and for whole texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, default=prompts.WEIGHTS)
    parser.add_argument("--wrong", type=int, default=0, help="wrong verdicts to show")
    options = parser.parse_args(arguments)
    complete = engine(options.weights)
    for whole, sizes in ((False, (3, 6)), (True, (1, 2))):
        print("whole texts" if whole else "sentences")
        for k in sizes:
            run(complete, Index(whole=whole), k, options.wrong)


if __name__ == "__main__":
    main()
