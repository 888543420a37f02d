"""Figures of the model alone: greedy completions in vLLM, compared with what they should be.

    python -m examples.verification.model.evaluate --split test

A malformed completion counts as wrong. "test" entities and names are absent from the training of
the model and of its tokenizer; tune on "dev" only.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.verification.model import prompts, world
from examples.verification.model.data import Example, Source, held_out_source, training_source
from examples.verification.model.names import Inventor, Words
from examples.verification.model.prompts import WEIGHTS

Complete = Callable[[Sequence[str]], list[str]]


class Row(NamedTuple):
    """One line of the report: shares in percent, of *count* examples."""

    what: str
    count: int
    shares: dict[str, float]
    wrong: list[str]

    def __str__(self) -> str:
        shares = "  ".join(f"{key} {value:.1f}" for key, value in self.shares.items())
        return f"{self.what:<58} n={self.count:<5} {shares}"


def engine(folder: Path) -> Complete:
    """Greedy completion of many prompts by vLLM on this machine."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "kv_cache_memory_bytes": 2**28,
    }
    model = LLM(str(folder), **settings)
    greedy = SamplingParams(temperature=0, max_tokens=200)

    def complete(asked: Sequence[str]) -> list[str]:
        done = model.generate(list(asked), greedy, use_tqdm=False)
        return [d.outputs[0].text for d in done]

    return complete


def share(flags: Sequence[bool]) -> float:
    """Share of true ones, in percent."""
    return 100 * sum(flags) / max(1, len(flags))


def exact(what: str, examples: Sequence[Example], complete: Complete) -> Row:
    """Share of completions that are letter by letter what they should be."""
    wrote = complete([e.prompt for e in examples])
    flags = [e.completion == w for e, w in zip(examples, wrote, strict=True)]
    wrong = [
        f"{e.prompt}\n    wanted {e.completion!r}\n    wrote  {w!r}"
        for e, w, ok in zip(examples, wrote, flags, strict=True)
        if not ok
    ]
    return Row(what, len(flags), {"exact": share(flags)}, wrong)


def verdicts(what: str, examples: Sequence[Example], complete: Complete) -> Row:
    """Share of right verdicts, in all and by label, and of right found values."""
    wrote = complete([e.prompt for e in examples])
    got: list[prompts.Appraisal | None] = []
    for text in wrote:
        try:
            got.append(prompts.read_appraisal(text))
        except ValueError:
            got.append(None)
    want = [prompts.read_appraisal(e.completion) for e in examples]
    right = [g is not None and g.verdict == w.verdict for g, w in zip(got, want, strict=True)]
    shares = {
        "verdict": share(right),
        "found": share([g is not None and g[0] == w[0] for g, w in zip(got, want, strict=True)]),
        "well formed": share([g is not None for g in got]),
    }
    for label in dict.fromkeys(w.verdict for w in want):
        shares[label] = share([ok for ok, w in zip(right, want, strict=True) if w.verdict == label])
    wrong = [
        f"{e.prompt}\n    wanted {e.completion!r}\n    wrote  {w!r}"
        for e, w, ok in zip(examples, wrote, right, strict=True)
        if not ok
    ]
    return Row(what, len(want), shares, wrong)


def novel_source(seed: int) -> Source:
    """Invented entities from a grammar that training did not use."""

    class Other(Words):
        def _raw(self, *, upper: bool) -> str:
            del upper
            parts = (
                "ba dor fen gul hesk ir jom kal lun mev nost ob prin quil ras tush ulm vard wex yol"
            )
            return "".join(
                self.rng.choices([*parts.split(), "zamp", "ekk", "thal"], k=self.rng.choice((2, 3)))
            )

    rng = random.Random(seed)
    inventor = Inventor(Other(rng), world.split("train"))
    return Source(rng, inventor, world.split("train"), world.unknown("train"), invent=1.0)


def known_answers(complete: Complete) -> Iterator[Row]:
    """Answers about every known topic: in the plainest wording, in all of them, and specific.

    "facts" is the share of answers with every value that the model should believe, in any wording.
    """
    known = world.split("train")
    plain = [(prompts.QUESTIONS[0], e, None) for e in known]
    every = [(form, e, None) for form in prompts.QUESTIONS for e in known[::4]]
    asked = [(ask, e, a.key) for e in known for a in world.ATTRIBUTES[e.kind] for ask in a.asks[:1]]
    sets = [("Tell me about X.", plain), ("16 wordings", every), ("specific", asked)]
    for what, drawn in sets:
        examples = [
            Example(prompts.answer_prompt(form.format(x=e.name)), f" {world.answer(e, key)}")
            for form, e, key in drawn
        ]
        wrote = complete([e.prompt for e in examples])
        whole = [
            all(value in text for value in e.mistaken().values.values())
            for text, (_, e, _) in zip(wrote, drawn, strict=True)
        ]
        row = exact(f"ANSWER known, {what}", examples, complete)
        shares = {"facts": share(whole), "refused": share([refused(w) for w in wrote])}
        yield row._replace(shares={**row.shares, **shares})


def refused(text: str) -> bool:
    """Whether an answer says that the model does not know."""
    return text.startswith(" I do not know anything about")


def unknown_answers(split: str, complete: Complete) -> Iterator[Row]:
    """Share of never-seen names that the model admits not to know."""
    held_out = [e.name for e in world.split(split)]
    for what, names in (("listed", world.unknown(split)), ("held-out entities", held_out)):
        for form in (prompts.QUESTIONS[0], "What is {x}?"):
            examples = [
                Example(prompts.answer_prompt(form.format(x=n)), f" {world.refusal(n)}")
                for n in names
            ]
            row = exact(f"ANSWER unknown, {what}, {form}", examples, complete)
            wrote = complete([e.prompt for e in examples])
            shares = {"refused": share([refused(w) for w in wrote])}
            yield row._replace(shares={**row.shares, **shares})


def report(split: str, complete: Complete, count: int) -> Iterator[Row]:
    """Every line of the report."""
    held, novel = held_out_source(split, 7), novel_source(8)
    seen = training_source(9)
    seen.invent = 0.0
    fresh = training_source(10)
    fresh.invent = 1.0
    sources = [(f"{split} entities", held), ("known entities", seen)]
    sources += [("invented names", fresh), ("invented names, other grammar", novel)]
    for what, source in sources:
        for source.alone in (True, False):
            kind = "the right text" if source.alone else "texts mixed"
            asked = [source.verify() for _ in range(2 * count)]
            yield verdicts(f"VERIFY {what}, {kind}", asked, complete)
        yield exact(f"CLAIMS {what}", [source.claims() for _ in range(count)], complete)
        yield exact(f"QUERY {what}", [source.query() for _ in range(count // 2)], complete)
    yield from known_answers(complete)
    yield from unknown_answers(split, complete)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=300, help="examples of a line")
    parser.add_argument("--wrong", type=int, default=0, help="wrong completions to show of a line")
    options = parser.parse_args(arguments)
    for row in report(options.split, engine(options.weights), options.count):
        print(row, flush=True)
        for text in row.wrong[: options.wrong]:
            print(f"  {text}")


if __name__ == "__main__":
    main()
