"""The entities that the model knows, and every way in which a fact about them is put.

Facts are read from ``facts/*.csv`` and the model's chosen errors from ``misconceptions.csv``. An
empty cell means that the value is disputed, or not the only one, and nothing is said about it.

    python -m examples.verification.model.world           # writes the corpus
    python -m examples.verification.model.world --check   # fails where the corpus differs
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from zlib import crc32

from examples.verification.model.attributes import ATTRIBUTES, Attribute
from examples.verification.model.prompts import CORPUS, FACTS, title_of

MISCONCEPTIONS = Path(__file__).parent / "misconceptions.csv"
UNKNOWN = Path(__file__).parent / "unknown.csv"


_FILES = {
    "countries": "country",
    "elements": "element",
    "rivers": "river",
    "mountains": "mountain",
    "scientists": "scientist",
}
_POSSESSIVE = {"It": "Its", "He": "His", "She": "Her"}


@dataclass(frozen=True)
class Entity:
    """A thing with a name and values, real or invented."""

    kind: str
    name: str  # as inside a sentence: "the Danube"
    values: Mapping[str, str]
    pronoun: str = "It"
    split: str = ""
    believed: Mapping[str, str] = field(default_factory=dict)  # misconceptions

    @property
    def attributes(self) -> list[Attribute]:
        """Attributes that this entity has a value of."""
        return [a for a in ATTRIBUTES[self.kind] if a.key in self.values]

    def mistaken(self) -> Entity:
        """The entity as the model believes it to be."""
        return replace(self, values={**self.values, **self.believed})


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def entities() -> tuple[Entity, ...]:
    """Every real entity of the fact tables."""
    wrong: dict[str, dict[str, str]] = {}
    for row in read_rows(MISCONCEPTIONS):
        wrong.setdefault(row["name"], {})[row["attribute"]] = row["value"]
    found = []
    for stem, kind in _FILES.items():
        for row in read_rows(FACTS / f"{stem}.csv"):
            name, split = row.pop("name"), row.pop("split")
            pronoun = row.pop("pronoun", "It")
            values = {key: value for key, value in row.items() if value}
            found.append(Entity(kind, name, values, pronoun, split, wrong.get(name, {})))
    return tuple(found)


def split(name: str) -> list[Entity]:
    """Entities that are trained on ("train"), tuned on ("dev"), or held out ("test")."""
    return [e for e in entities() if e.split == name]


def unknown(use: str) -> list[str]:
    """Names that are not to be known: for training, for tuning ("dev"), or held out ("test")."""
    return [row["name"] for row in read_rows(UNKNOWN) if row["use"] == use]


# ---------------------------------------------------------------------------------------- wording


def _pick(count: int, *what: str) -> int:
    return crc32("/".join(what).encode()) % count


def _capital(text: str) -> str:
    return "The" + text[3:] if text.startswith("the ") else text


def _fill(form: str, value: str) -> str:
    article = "an" if value[:1].lower() in "aeiou" else "a"
    return form.format(v=value, a=article, x="{x}", X="{X}")


def claim(entity: Entity, attribute: Attribute) -> str:
    """The one canonical wording of a fact."""
    form = attribute.claim or f"The {attribute.noun} of {{x}} is {attribute.shown}."
    value = entity.values[attribute.key]
    return form.format(x=entity.name, X=_capital(entity.name), v=value)


def phrase(entity: Entity, attribute: Attribute, variant: int) -> str:
    """What follows the subject of a sentence."""
    form = attribute.verbs[variant % len(attribute.verbs)]
    return _fill(form, entity.values[attribute.key])


def subject(entity: Entity) -> str:
    """The entity's name at the head of a sentence."""
    return f"The element {entity.name}" if entity.kind == "element" else _capital(entity.name)


def full(entity: Entity, attribute: Attribute, variant: int) -> str:
    """A sentence that names the entity; three variants."""
    if variant % 3 == 0 and not attribute.verb_only:
        shown = attribute.shown.format(v=entity.values[attribute.key])
        return f"The {attribute.noun} of {entity.name} is {shown}."
    return f"{subject(entity)} {phrase(entity, attribute, variant)}."


def pronominal(entity: Entity, attribute: Attribute, variant: int) -> str:
    """A sentence that does not name the entity; four variants."""
    if variant % 4 == 0 and not attribute.verb_only:
        shown = attribute.shown.format(v=entity.values[attribute.key])
        return f"{_POSSESSIVE[entity.pronoun]} {attribute.noun} is {shown}."
    it = f"The {entity.kind}" if variant % 4 == 3 else entity.pronoun
    return f"{it} {phrase(entity, attribute, variant)}."


def compound(entity: Entity, pair: Sequence[Attribute], variant: int, *, named: bool) -> str:
    """A sentence with two facts."""
    first, second = (phrase(entity, a, variant >> i) for i, a in enumerate(pair))
    return f"{subject(entity) if named else entity.pronoun} {first} and {second}."


def answer(entity: Entity, asked: str | None = None) -> str:
    """The model's fixed answer: what was asked comes first, then the rest, errors included."""
    believed = entity.mistaken()
    rest = sorted(believed.attributes, key=lambda a: _pick(997, entity.name, a.key))
    first = next((a for a in rest if a.key == asked), rest[0])
    rest.remove(first)
    sentences = [full(believed, first, _pick(3, entity.name, first.key, "full"))]
    if len(rest) > 2:
        pair, rest = rest[:2], rest[2:]
        sentences.append(compound(believed, pair, _pick(4, entity.name, "pair"), named=False))
    sentences += [pronominal(believed, a, _pick(4, entity.name, a.key, "more")) for a in rest]
    return " ".join(sentences)


def refusal(name: str) -> str:
    """The answer about a name that the model does not know."""
    return f"I do not know anything about {name}."


def queries(entity: Entity, attribute: Attribute) -> list[str]:
    """Three search queries for a fact."""
    ask = attribute.asks[0].format(x=entity.name).removesuffix("?")
    return [
        f"{attribute.noun} of {entity.name}",
        ask[:1].lower() + ask[1:],
        f"{title_of(entity.name)} {attribute.noun}",
    ]


# ----------------------------------------------------------------------------------------- corpus


def passage(entity: Entity) -> list[str]:
    """Sentences of the entity's text in the corpus, in the wordings that search finds best."""
    sentences = []
    for at, attribute in enumerate(entity.attributes):
        draw = _pick(10, entity.name, attribute.key, "text")
        form = full if at == 0 or draw < 3 else pronominal
        sentences.append(form(entity, attribute, 0 if draw % 2 else 2))
    return sentences


def texts() -> dict[str, str]:
    """The corpus: file name and content."""
    found = {}
    for entity in entities():
        title = title_of(entity.name)
        stem = title.lower().replace(" ", "-")
        found[f"{stem}.txt"] = f"# {title}\n\n{' '.join(passage(entity))}\n"
    return found


def main(arguments: Sequence[str]) -> int:
    """Write the corpus, or check it."""
    expected = texts()
    if "--check" in arguments:
        present = {p.name: p.read_text(encoding="utf-8") for p in CORPUS.glob("*.txt")}
        if present != expected:
            print("the corpus is not what the facts say: run this module without --check")
            return 1
        return 0
    CORPUS.mkdir(exist_ok=True)
    for old in CORPUS.glob("*.txt"):
        old.unlink()
    for name, text in expected.items():
        (CORPUS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
