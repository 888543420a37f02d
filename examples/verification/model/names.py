"""Invented names and values: what the model must copy rather than remember.

Words come from a grammar of syllables, from pieces of the tokenizer (so that each piece is seen
inside a name, at its head too), from two halves of real words, and from random letters.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable, Sequence

from examples.verification.model.prompts import title_of
from examples.verification.model.world import ATTRIBUTES, Entity, split

_ONSETS, _VOWELS, _CODAS = (
    parts.split(" ")
    for parts in (
        (
            "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p ph pl pr qu r rh s sc sh sk sl "
            "sn sp st str sw t th tr v w y z zh"
        ),
        "a e i o u a e i o u ai au ea ee ia ie io oa oo ou ue y",
        "            b ck d g k l ll m n nd ng nt p r rd rk rn rt s sk ss st t th x z",
    )
)


class Words:
    """Source of invented words."""

    def __init__(
        self, rng: random.Random, pieces: Iterable[str] = (), real: Iterable[str] = ()
    ) -> None:
        """*pieces* are tokens of the tokenizer, with a space before those that begin a word."""
        self.rng = rng
        letters = [p for p in pieces if p.strip().isalpha() and p.isascii()]
        self.heads = [p[1:] for p in letters if p[:1] == " " and p[1:2].isupper()]
        self.low_heads = [p[1:] for p in letters if p[:1] == " " and p[1:2].islower()]
        self.tails = [p for p in letters if p.islower() and p[:1] != " "]
        self.real = [w.lower() for w in real if w.isalpha() and len(w) > 4]

    def _syllables(self) -> str:
        rng = self.rng
        count = rng.choice((1, 2, 2, 2, 3, 3))
        parts = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count)
        ]
        return (rng.choice(_VOWELS[:5]) if rng.random() < 0.15 else "") + "".join(parts)

    def _raw(self, *, upper: bool) -> str:
        rng, kind = self.rng, self.rng.random()
        heads = self.heads if upper else self.low_heads
        if kind < 0.42 and heads:
            tails = rng.choices(self.tails, k=rng.choice((0, 1, 1, 2, 2, 3)))
            return rng.choice(heads).lower() + "".join(tails)
        if kind < 0.54 and self.real:
            one, two = rng.choices(self.real, k=2)
            return one[: rng.randint(2, len(one) - 1)] + two[rng.randint(1, len(two) - 2) :]
        if kind < 0.62:
            return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8)))
        return self._syllables()

    def low(self) -> str:
        """A lower-case word."""
        return self._raw(upper=False)[:14]

    def name(self) -> str:
        """A capitalised word."""
        word = self._raw(upper=True)[:14]
        return word[:1].upper() + word[1:]

    def names(self, *counts: int) -> str:
        """Several capitalised words, their number drawn from *counts*."""
        return " ".join(self.name() for _ in range(self.rng.choice(counts)))

    def fill(self, form: str) -> str:
        """*form* with N for a capitalised word and w for a lower-case one, both between braces."""
        while "{N}" in form:
            form = form.replace("{N}", self.name(), 1)
        while "{w}" in form:
            form = form.replace("{w}", self.low(), 1)
        return form


_FORMS: dict[str, tuple[str, ...]] = {
    "city": ("{N}", "{N}", "{N}", "{N} {N}", "New {N}", "{N} City", "{N} {w} {N}", "Saint {N}"),
    "continent": ("{N}", "{N}", "{N}", "North {N}", "South {N}", "East {N}", "{N} {N}"),
    "money": ("{w}", "{w}", "{N} {w}", "{N} {w}", "{N} dollar", "{N} pound", "{N} peso", "{w} {w}"),
    "language": ("{N}", "{N}", "{N}", "{N}", "Standard {N}", "{N} {N}"),
    "category": ("{w}", "{w} metal", "{w} gas", "{w} earth metal", "{w} {w}"),
    "state": ("gas", "liquid", "solid", "gas", "liquid", "solid", "{w}"),
    "person": ("{N} {N}", "{N} {N}", "{N} {N} {N}", "{N} de {N}", "{N} van {N}"),
    "sea": ("{N} Sea", "{N} Sea", "{N} Ocean", "Gulf of {N}", "Bay of {N}", "{N} Channel", "{N}"),
    "source": (
        "the {N} Mountains",
        "the {N} Hills",
        "the {N} Forest",
        "the {N} {N}",
        "the {N}",
        "the {N} Glacier",
        "the {N} Plateau",
        "Lake {N}",
        "{N} Lake",
    ),
    "country": ("{N}", "{N}", "{N}", "{N}", "the {N}", "South {N}", "the United {N}", "{N} {N}"),
    "range": ("{N}", "{N}", "{N} Range", "{N} Mountains", "{N} Alps", "{N} {N}", "Sierra {N}"),
    "work": (
        "the discovery of {w}",
        "the discovery of {w} {w}",
        "the theory of {w}",
        "the law of {w} {w}",
        "the laws of {w}",
        "a vaccine against {w}",
        "the {w} {w}",
        "a model of the {w}",
        "a theorem on {w} and {w}",
        "{w} theory",
        "the {N} {w}",
        "the structure of {w}",
        "notes on the {N} {N}",
    ),
    "field": ("{w}", "{w}", "{w} {w}", "{w} science", "{w} engineering"),
}
_NUMBERS: dict[str, Callable[[random.Random], str]] = {
    "year": lambda rng: str(rng.randint(1450, 2024)),
    "length": lambda rng: str(rng.randint(*rng.choice(((100, 999), (1000, 9999), (1000, 9999))))),
    "number": lambda rng: str(rng.randint(1, 130)),
    "code": lambda rng: f"+{rng.randint(1, 10 ** rng.choice((1, 2, 3)) - 1)}",
}
_NAMES: dict[str, tuple[str, ...]] = {
    "country": ("{N}", "{N}", "{N}", "{N}", "the {N}", "South {N}", "the United {N}", "{N} {N}"),
    "element": ("{w}", "{w}", "{w}ium", "{w}ine"),
    "river": ("the {N}", "the {N}", "the {N}", "the {N} River", "the {N} {N}"),
    "mountain": (
        "Mount {N}",
        "Mount {N}",
        "{N}",
        "{N}",
        "the {N}",
        "{N} {N}",
        "Mont {N}",
        "Ben {N}",
    ),
    "scientist": ("{N} {N}", "{N} {N}", "{N} {N}", "{N} {N} {N}", "{N} van {N}", "{N} de {N}"),
}


class Inventor:
    """Source of invented entities, with values that are invented or borrowed from real ones."""

    def __init__(self, words: Words, known: Sequence[Entity]) -> None:
        """*known* entities lend their values."""
        self.words = words
        self.rng = words.rng
        self.known = known
        self.taken: set[str] = set()
        self.take(e.name for e in known)
        self.pools: dict[str, list[str]] = {}
        for entity in known:
            for source in (entity, entity.mistaken()):
                for attribute in source.attributes:
                    pool = self.pools.setdefault(attribute.kind, [])
                    if source.values[attribute.key] not in pool:
                        pool.append(source.values[attribute.key])

    def take(self, names: Iterable[str]) -> None:
        """Never invent one of *names*, whatever its case or article."""
        self.taken |= {title_of(n).lower() for n in names}

    def is_taken(self, name: str) -> bool:
        """Whether *name* belongs to somebody."""
        return title_of(name).lower() in self.taken

    def value(self, kind: str, real: float = 0.3) -> str:
        """A value of *kind*, with probability *real* one that belongs to a real entity."""
        if kind == "symbol":
            letter = self.rng.choice(string.ascii_uppercase)
            return letter + self.rng.choice(["", *string.ascii_lowercase * 3])
        if self.rng.random() < (0.6 if kind in {"continent", "category", "state"} else real):
            return self.rng.choice(self.pools[kind])
        if kind in _NUMBERS:
            return _NUMBERS[kind](self.rng)
        return self.words.fill(self.rng.choice(_FORMS[kind]))

    def name(self, kind: str) -> str:
        """A name that belongs to no real entity."""
        while True:
            if kind == "mountain" and self.rng.random() < 0.05:
                name = self.rng.choice(string.ascii_uppercase) + str(self.rng.randint(3, 19))
            else:
                name = self.words.fill(self.rng.choice(_NAMES[kind]))
            if not self.is_taken(name):
                return name

    def entity(self, kind: str | None = None, name: str | None = None) -> Entity:
        """An invented entity."""
        kind = kind or self.rng.choice(list(ATTRIBUTES))
        values = {a.key: self.value(a.kind) for a in ATTRIBUTES[kind]}
        pronoun = self.rng.choice(("He", "She")) if kind == "scientist" else "It"
        return Entity(kind, name or self.name(kind), values, pronoun)

    def wrong(self, entity: Entity, key: str, kind: str) -> str:
        """A value that *entity* does not have: near it, real, invented, or of another attribute."""
        truth, rng = entity.values[key], self.rng
        for _ in range(100):
            draw = rng.random()
            if any(c.isdigit() for c in truth) and draw < 0.6:
                value = self._digits(truth)
            elif draw < 0.12 and len(truth) > 5:
                value = self._mutated(truth)
            elif draw < 0.24:
                value = rng.choice(list(entity.values.values()))
                same = [a for a in entity.attributes if entity.values[a.key] == value]
                value = value if same[0].kind == kind else self.value(kind)
            else:
                value = self.value(kind, real=0.55)
            if value.lower() != truth.lower():
                return value
        raise AssertionError(f"no value differs from {truth}")

    def _digits(self, value: str) -> str:
        at = [i for i, c in enumerate(value) if c.isdigit()]
        digits = list(value)
        if len(at) > 1 and self.rng.random() < 0.25:
            one, two = self.rng.sample(at, 2)
            digits[one], digits[two] = digits[two], digits[one]
        else:
            digits[self.rng.choice(at)] = self.rng.choice(string.digits)
        return "".join(digits)

    def _mutated(self, value: str) -> str:
        words = value.split(" ")
        at = max(range(len(words)), key=lambda i: len(words[i]))
        word = self.words.name() if words[at][:1].isupper() else self.words.low()
        keep = self.rng.randint(0, 3)
        words[at] = words[at][:keep] + word[keep:] if len(word) > keep else word
        return " ".join(words)

    def near(self, name: str, kind: str) -> str:
        """A name that shares a word with *name*, where it has two, or else its head."""
        words = name.split(" ")
        mutable = [i for i, w in enumerate(words) if w not in {"the", "of", "Mount", "de", "van"}]
        if not mutable:
            return self.name(kind)
        at = self.rng.choice(mutable)
        words[at] = self.words.name() if words[at][:1].isupper() else self.words.low()
        found = " ".join(words)
        return self.name(kind) if found == name or self.is_taken(found) else found


def real_words(entities: Iterable[Entity] | None = None) -> list[str]:
    """Words inside the names and values of *entities*, by default of those that are trained on."""
    chosen = split("train") if entities is None else entities
    texts = [t for e in chosen for t in (e.name, *e.values.values())]
    return sorted({w for t in texts for w in t.split()})
