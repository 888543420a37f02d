"""The attributes of each kind of entity, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One property of a kind of entity, and the words for it."""

    key: str
    kind: str  # of value: "city", "year", ...
    noun: str
    verbs: tuple[str, ...]  # what follows the subject; {v} value, {a} its article
    asks: tuple[str, ...]  # questions; {x} the entity
    shown: str = "{v}"  # the value behind "The NOUN of X is"
    claim: str = ""  # where that form would be odd
    verb_only: bool = False


def _attributes() -> dict[str, tuple[Attribute, ...]]:
    a = Attribute
    return {
        "country": (
            a(
                "capital",
                "city",
                "capital",
                ("has the capital {v}", "is governed from {v}"),
                ("What is the capital of {x}?", "Which city is the capital of {x}?"),
            ),
            a(
                "continent",
                "continent",
                "continent",
                ("lies in {v}", "is part of {v}"),
                ("Which continent is {x} in?", "Where does {x} lie?"),
            ),
            a(
                "currency",
                "money",
                "currency",
                ("uses the {v} as money", "pays with the {v}"),
                ("What is the currency of {x}?", "Which money does {x} use?"),
                "the {v}",
            ),
            a(
                "language",
                "language",
                "official language",
                ("has the official language {v}", "writes its laws in {v}"),
                ("What is the official language of {x}?", "Which language do people in {x} speak?"),
            ),
            a(
                "code",
                "code",
                "calling code",
                ("has the calling code {v}", "is called with the prefix {v}"),
                ("What is the calling code of {x}?", "Which calling code does {x} have?"),
            ),
        ),
        "element": (
            a(
                "symbol",
                "symbol",
                "symbol",
                ("has the symbol {v}", "is written as {v}"),
                ("What is the symbol of {x}?", "Which symbol does {x} have?"),
            ),
            a(
                "number",
                "number",
                "atomic number",
                ("has the atomic number {v}", "has an atomic number of {v}"),
                ("What is the atomic number of {x}?", "Which atomic number does {x} have?"),
            ),
            a(
                "category",
                "category",
                "category",
                ("is classed as {a} {v}", "belongs to the category {v}"),
                ("What kind of element is {x}?", "Which category does {x} belong to?"),
            ),
            a(
                "state",
                "state",
                "normal state",
                ("is {a} {v} at room temperature", "occurs as {a} {v} at room temperature"),
                ("Is {x} a gas, a liquid or a solid?", "In which state is {x} normally?"),
            ),
            a(
                "discoverer",
                "person",
                "discoverer",
                ("was discovered by {v}", "was found by {v}"),
                ("Who discovered {x}?", "Who was the discoverer of {x}?"),
            ),
            a(
                "year",
                "year",
                "year of discovery",
                ("was discovered in {v}", "has been known since {v}"),
                ("When was {x} discovered?", "In which year was {x} discovered?"),
            ),
        ),
        "river": (
            a(
                "mouth",
                "sea",
                "mouth",
                ("flows into the {v}", "ends in the {v}"),
                ("Where does {x} end?", "What does {x} flow into?", "Where is the mouth of {x}?"),
                "the {v}",
            ),
            a(
                "source",
                "source",
                "source",
                ("rises in {v}", "begins in {v}"),
                ("Where does {x} rise?", "What is the source of {x}?", "Where does {x} begin?"),
            ),
            a(
                "continent",
                "continent",
                "continent",
                ("lies in {v}", "is a river of {v}"),
                ("Which continent is {x} in?", "Where does {x} lie?"),
            ),
            a(
                "length",
                "length",
                "length",
                ("runs for {v} kilometres", "is {v} kilometres long"),
                ("How long is {x}?", "What is the length of {x}?"),
                "{v} kilometres",
            ),
            a(
                "country",
                "country",
                "country at the mouth",
                ("reaches the sea in {v}", "ends its course in {v}"),
                ("In which country does {x} reach the sea?", "In which country does {x} end?"),
                claim="{X} reaches the sea in {v}.",
                verb_only=True,
            ),
        ),
        "mountain": (
            a(
                "height",
                "length",
                "height",
                ("is {v} metres high", "rises to {v} metres"),
                ("How high is {x}?", "What is the height of {x}?", "How tall is {x}?"),
                "{v} metres",
            ),
            a(
                "range",
                "range",
                "range",
                ("belongs to the {v}", "is part of the {v}"),
                ("Which range is {x} in?", "Which mountain range does {x} belong to?"),
                "the {v}",
            ),
            a(
                "country",
                "country",
                "country",
                ("lies within the borders of {v}", "stands in the country of {v}"),
                ("Which country is {x} in?", "In which country does {x} stand?"),
            ),
            a(
                "continent",
                "continent",
                "continent",
                ("lies on the continent of {v}", "stands on the continent of {v}"),
                ("Which continent is {x} in?", "On which continent is {x}?"),
            ),
            a(
                "ascent",
                "year",
                "year of the first ascent",
                ("was first climbed in {v}", "saw its first ascent in {v}"),
                ("When was {x} first climbed?", "In which year was {x} first climbed?"),
            ),
        ),
        "scientist": (
            a(
                "work",
                "work",
                "work",
                ("is known for {v}", "is remembered for {v}"),
                ("What is {x} known for?", "What did {x} do?", "Why is {x} famous?"),
                claim="{X} is known for {v}.",
                verb_only=True,
            ),
            a(
                "field",
                "field",
                "field",
                ("worked in {v}", "did research in {v}"),
                ("What was the field of {x}?", "In which field did {x} work?"),
            ),
            a(
                "birth",
                "year",
                "birth year",
                ("was born in {v}", "came into the world in {v}"),
                ("When was {x} born?", "What is the birth year of {x}?"),
            ),
            a(
                "place",
                "city",
                "birthplace",
                ("was born in the town of {v}", "was a native of {v}"),
                ("Where was {x} born?", "What is the birthplace of {x}?"),
            ),
            a(
                "death",
                "year",
                "year of death",
                ("died in {v}", "lived until {v}"),
                ("When did {x} die?", "What is the year of death of {x}?"),
            ),
        ),
    }


ATTRIBUTES: Mapping[str, tuple[Attribute, ...]] = _attributes()
