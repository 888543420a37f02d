"""What the trained model should say, from the tables that it was trained on: for tests without it.

engine = Scripted(says, delay=0.01)
"""

from __future__ import annotations

import re
from functools import cache

from examples.verification.model import prompts as forms
from examples.verification.model import world
from examples.verification.model.attributes import Attribute
from examples.verification.model.world import Entity

__all__ = ("says", "truth")


def says(prompt: str) -> list[str]:
    """The completion of one of the four forms of prompt, in pieces of a word or less."""
    head, _, rest = prompt.partition(": ")
    if head == "Question":
        text = " " + _answer(rest.removesuffix("\nAnswer:"))
    elif head == "Topic":
        topic, _, sentence = rest.removesuffix("\nClaims:").partition("\nSentence: ")
        text = _listed(_claims(topic, sentence))
    elif head == "Claim":
        entity, attribute = _facts()[rest.removesuffix("\nQueries:")]
        text = _listed(world.queries(entity, attribute))
    else:
        evidence, _, claim = prompt.removesuffix("\nFound:").partition("\nClaim: ")
        text = _judgement(claim, evidence)
    return re.findall(r"\s?\w{1,6}|[^\w]", text)


@cache
def truth() -> dict[str, str]:
    """Every claim that an answer may hold, with the verdict that it deserves."""
    claims = {}
    for entity in world.split("train"):
        for attribute in entity.attributes:
            claims[world.claim(entity.mistaken(), attribute)] = "REFUTED"
            claims[world.claim(entity, attribute)] = "SUPPORTED"
    return claims


@cache
def _known() -> dict[str, Entity]:
    return {entity.name: entity for entity in world.split("train")}


@cache
def _facts() -> dict[str, tuple[Entity, Attribute]]:
    """Every claim, true or mistaken, with what it is about."""
    return {
        world.claim(believed, attribute): (entity, attribute)
        for entity in _known().values()
        for believed in (entity, entity.mistaken())
        for attribute in entity.attributes
    }


def _answer(question: str) -> str:
    topic = forms.topic_of(question) or question
    if topic not in _known():
        return world.refusal(topic)
    entity = _known()[topic]
    asks = {ask.format(x=topic): a.key for a in entity.attributes for ask in a.asks}
    return world.answer(entity, asks.get(question))


def _claims(topic: str, sentence: str) -> list[str]:
    if topic not in _known():
        return []
    believed = _known()[topic].mistaken()
    ways = {
        attribute.key: [world.phrase(believed, attribute, n) for n in range(len(attribute.verbs))]
        + [f"{attribute.noun} is ", f"{attribute.noun} of {topic} is "]
        for attribute in believed.attributes
    }
    found = [a for a in believed.attributes if any(way in sentence for way in ways[a.key])]
    return [world.claim(believed, attribute) for attribute in found]


def _judgement(claim: str, evidence: str) -> str:
    entity, attribute = _facts()[claim]
    sentences = [
        form(entity, attribute, n) for n in range(12) for form in (world.full, world.pronominal)
    ]
    title = forms.title_of(entity.name)
    if not any(f"- {title}: {sentence}" in evidence for sentence in sentences):
        return f" {forms.NOTHING}\nVerdict: NOT FOUND"
    verdict = "SUPPORTED" if world.claim(entity, attribute) == claim else "REFUTED"
    return f" {entity.values[attribute.key]}\nVerdict: {verdict}"


def _listed(lines: list[str]) -> str:
    return "".join(f"\n- {line}" for line in lines or [forms.NOTHING])
