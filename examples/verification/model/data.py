"""Examples that the model is trained on and examined with: pairs of a prompt and a completion."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from examples.verification.model import prompts, world
from examples.verification.model.names import Inventor, Words, real_words
from examples.verification.model.prompts import title_of
from examples.verification.model.world import Attribute, Entity

MIX = {"answer": 0.19, "claims": 0.10, "query": 0.05, "verify": 0.66}
MOST_SENTENCES = 10  # of evidence
LABELS = {"SUPPORTED": 0.36, "REFUTED": 0.38, "NOT FOUND": 0.26}


class Example(NamedTuple):
    """What the model is given and what it should write; ``</s>`` follows."""

    prompt: str
    completion: str


@dataclass
class Source:
    """Draws examples.

    *real* entities are asked about; *invent* is the share of examples about invented ones.
    """

    rng: random.Random
    inventor: Inventor
    real: Sequence[Entity]
    unknown: Sequence[str]
    invent: float = 0.65
    easy: float = 0.0  # share of VERIFY examples with little evidence
    alone: bool = False  # whether evidence is of the claim's entity only
    copying: bool = True  # whether words to repeat belong to the first part of the training

    def draw(self, task: str | None = None) -> Example:
        """One example of *task*, or of a task drawn from the mix."""
        task = task or self.rng.choices(list(MIX), list(MIX.values()))[0]
        made: Example = getattr(self, task)()
        return made

    # ------------------------------------------------------------------------------ answer

    def question(self, name: str, kind: str) -> tuple[str, str | None]:
        """A question about *name*, and the key of the attribute that it asks for."""
        rng = self.rng
        if rng.random() < 0.35:
            attribute = rng.choice(world.ATTRIBUTES[kind])
            return self._roughened(rng.choice(attribute.asks).format(x=name)), attribute.key
        form = rng.choice(prompts.QUESTIONS) if rng.random() < 0.7 else prompts.QUESTIONS[0]
        return self._roughened(form.format(x=name)), None

    def _roughened(self, question: str) -> str:
        draw = self.rng.random()
        if draw < 0.06:
            return question[:1].lower() + question[1:]
        if draw < 0.12:
            return question[:-1]
        return question

    def answer(self) -> Example:
        """A question with the fixed answer to it."""
        rng = self.rng
        if rng.random() < 0.68:
            entity = rng.choice(self.real)
            question, key = self.question(entity.name, entity.kind)
            if entity.kind == "element" and rng.random() < 0.1:
                question = question.replace(entity.name, entity.name.capitalize())
            return self._answered(question, world.answer(entity, key))
        kind = rng.choice(list(world.ATTRIBUTES))
        draw = rng.random()
        if draw < 0.35:
            name = rng.choice(self.unknown)
        elif draw < 0.5:
            name = self.inventor.words.name()[: rng.randint(3, 7)]
            name = rng.choice((name, name, name.lower(), f"the {name}"))
            if self.inventor.is_taken(name):
                name = self.inventor.name(kind)
        elif draw < 0.65:
            near = rng.choice(self.real)
            name = self.inventor.near(near.name, near.kind)
        else:
            name = self.inventor.name(kind)
        return self._answered(self.question(name, kind)[0], world.refusal(name))

    @staticmethod
    def _answered(question: str, answer: str) -> Example:
        return Example(prompts.answer_prompt(question), f" {answer}")

    # ------------------------------------------------------------------------ claims, query

    def entity(self, kind: str | None = None) -> Entity:
        """An entity, invented or real; the real ones as they are or as they are believed to be."""
        if self.rng.random() < self.invent:
            return self.inventor.entity(kind)
        chosen = self.rng.choice([e for e in self.real if kind in {None, e.kind}])
        return chosen.mistaken() if self.rng.random() < 0.5 else chosen

    def claims(self) -> Example:
        """A sentence with its claims."""
        rng, entity = self.rng, self.entity()
        draw = rng.random()
        if draw < 0.03:
            sentence = world.refusal(entity.name)
            return Example(prompts.claims_prompt(entity.name, sentence), f"\n- {prompts.NOTHING}")
        if draw < 0.5:
            pair = rng.sample(entity.attributes, 2)
            named = rng.random() < 0.3
            sentence = world.compound(entity, pair, rng.randrange(4), named=named)
        else:
            pair = [rng.choice(entity.attributes)]
            form = world.full if rng.random() < 0.4 else world.pronominal
            sentence = form(entity, pair[0], rng.randrange(12))
        lines = "".join(f"\n- {world.claim(entity, a)}" for a in pair)
        return Example(prompts.claims_prompt(entity.name, sentence), lines)

    def query(self) -> Example:
        """A claim with three search queries."""
        entity = self.entity()
        attribute = self.rng.choice(entity.attributes)
        lines = "".join(f"\n- {q}" for q in world.queries(entity, attribute))
        return Example(prompts.query_prompt(world.claim(entity, attribute)), lines)

    # ------------------------------------------------------------------------------ verify

    def verify(self, label: str | None = None) -> Example:
        """A claim with evidence, the value that it holds, and the verdict."""
        rng = self.rng
        label = label or rng.choices(list(LABELS), list(LABELS.values()))[0]
        invented = rng.random() < self.invent
        entity = self.inventor.entity() if invented else rng.choice(self.real)
        attribute = rng.choice(entity.attributes)
        key = attribute.key
        if label == "SUPPORTED" or (label == "NOT FOUND" and rng.random() < 0.5):
            stated = entity.values[key]
        else:
            stated = self.inventor.wrong(entity, key, attribute.kind)
        claim = world.claim(_with(entity, key, stated), attribute)
        evidence = self._evidence(entity, attribute, label, invented=invented)
        found = prompts.NOTHING if label == "NOT FOUND" else entity.values[key]
        return Example(prompts.verify_prompt(claim, evidence), f" {found}\nVerdict: {label}")

    def _evidence(
        self, entity: Entity, attribute: Attribute, label: str, *, invented: bool
    ) -> list[tuple[str, str]]:
        rng = self.rng
        easy = rng.random() < self.easy
        others = [a for a in entity.attributes if a != attribute]
        passages: list[tuple[Entity, list[Attribute]]] = []
        if label != "NOT FOUND":
            most = rng.choice((0, 0, 1, 2)) if easy else rng.choice((0, 1, 2, 3, 4, 5))
            chosen = [attribute, *rng.sample(others, min(len(others), most))]
            passages = [(entity, rng.sample(chosen, len(chosen)))]
        elif (draw := rng.random()) < 0.05 and not self.alone:
            return []
        elif draw < 0.5 or self.alone:
            count = min(len(others), rng.choice((1, 1, 2) if easy else (1, 2, 3, 4, 5)))
            passages = [(entity, rng.sample(others, count))]
        odds = (0.35, 0.45, 0.2) if easy else (0.4, 0.35, 0.25)
        strays = rng.choices((0, 1, 2), odds)[0]
        for _ in range(0 if self.alone else max(strays, not passages)):
            stray, told = self._stray(entity, attribute, invented=invented)
            if easy:  # one sentence, rather the one that says of it what the claim says
                told = [a for a in told if a.key == attribute.key][:1] or told[:1]
            room = MOST_SENTENCES - sum(len(p[1]) for p in passages)
            if room > 0:
                passages.append((stray, told[:room]))
        rng.shuffle(passages)
        return self._rendered(passages)

    def _stray(
        self, entity: Entity, attribute: Attribute, *, invented: bool
    ) -> tuple[Entity, list[Attribute]]:
        """Another entity, and what is told of it; often what the claim says of the first."""
        rng = self.rng
        kind = entity.kind if rng.random() < 0.75 else rng.choice(list(world.ATTRIBUTES))
        if rng.random() < (0.8 if invented else 0.15):
            near = rng.random() < 0.2 and kind == entity.kind
            name = self.inventor.near(entity.name, kind) if near else None
            stray = self.inventor.entity(kind, name)
        else:
            pool = [e for e in self.real if e.kind == kind and e.name != entity.name]
            stray = rng.choice(pool)
        if rng.random() < 0.12:  # it mentions the entity of the claim
            places = [a.key for a in stray.attributes if a.kind in {"country", "person"}]
            if places and entity.kind in {"country", "scientist"}:
                stray = _with(stray, places[0], entity.name)
        told = rng.sample(stray.attributes, min(len(stray.attributes), rng.choice((1, 1, 2, 3, 5))))
        alike = [a for a in stray.attributes if a.key == attribute.key and a not in told]
        if alike and rng.random() < 0.7:
            told[rng.randrange(len(told))] = alike[0]
        return stray, told

    def _rendered(
        self, passages: Iterable[tuple[Entity, list[Attribute]]]
    ) -> list[tuple[str, str]]:
        """Passages as retrieval gives them: whole, or a sentence at a time."""
        rng = self.rng
        titled, apart = rng.random() < 0.92, rng.random() < 0.5
        shown: list[tuple[str, str]] = []
        for entity, told in passages:
            sentences = self._sentences(entity, told, titled=titled)
            title = title_of(entity.name) if titled else ""
            shown += [(title, s) for s in (sentences if apart else [" ".join(sentences)])]
        if apart and rng.random() < 0.5:
            rng.shuffle(shown)
        return shown

    def _sentences(self, entity: Entity, told: list[Attribute], *, titled: bool) -> list[str]:
        rng, left, sentences = self.rng, list(told), []
        while left:
            named = not titled or rng.random() < (0.7 if not sentences else 0.3)
            variant = rng.randrange(12)
            if len(left) > 1 and rng.random() < 0.1:
                pair, left = left[:2], left[2:]
                sentences.append(world.compound(entity, pair, variant, named=named))
            else:
                form = world.full if named else world.pronominal
                sentences.append(form(entity, left.pop(0), variant))
        return sentences

    # ------------------------------------------------------------------------------ warm-up

    def copy(self) -> Example:
        """Words to repeat, early in training: copying is what every other task stands on."""
        count = self.rng.randint(1, 4)
        kinds = list(self.inventor.pools)
        text = " ".join(self.inventor.value(self.rng.choice(kinds), real=0.1) for _ in range(count))
        return Example(f"Repeat: {text}\nCopy:", f" {text}")


def _with(entity: Entity, key: str, value: str) -> Entity:
    return Entity(
        entity.kind, entity.name, {**entity.values, key: value}, entity.pronoun, entity.split
    )


def training_source(seed: int, pieces: Iterable[str] = ()) -> Source:
    """Examples to train on: nothing of the entities and names that are tuned on or held out."""
    rng, known = random.Random(seed), world.split("train")
    inventor = Inventor(Words(rng, pieces, real_words()), known)
    inventor.take(e.name for e in world.entities())
    inventor.take(n for use in ("dev", "test") for n in world.unknown(use))
    return Source(rng, inventor, known, world.unknown("train"))


def held_out_source(split: str, seed: int) -> Source:
    """Examples about the real entities of *split*; wrong values come from every real entity."""
    rng = random.Random(seed)
    inventor = Inventor(Words(rng, (), real_words()), world.entities())
    return Source(rng, inventor, world.split(split), world.unknown(split), invent=0.0)
