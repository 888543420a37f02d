"""The verification example: its parts, and the pipeline on a scripted engine and virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto.testing import Line, Scripted, reference_run
from examples.verification.engines import Engines
from examples.verification.evaluate import evaluate, marks
from examples.verification.model import prompts as forms
from examples.verification.passages import CorpusError, read_corpus
from examples.verification.pipeline import verify, verify_in_steps, watch, watch_in_steps
from examples.verification.prompts import Instructed, Trained
from examples.verification.records import (
    Appraisal,
    Candidate,
    Candidates,
    Claim,
    Evidence,
    Passage,
    Ranking,
    Sentence,
    Written,
)
from examples.verification.rerank import PassageVectors, closest, fuse, max_sim, rank
from examples.verification.retrieval import Index, RunningSearch, terms
from examples.verification.scripted import says, truth

QUESTION = "Where does the Danube end?"
CORPUS = read_corpus(forms.CORPUS)
INDEX = Index(CORPUS)
WORDS = st.sampled_from(
    ["Danube", "mouth", "of", "the", "Rhine", "K2", "Dvořák", "黒海", "x-ray", "-"]
)
QUERIES = st.lists(WORDS, max_size=6).map(" ".join)


def vector(text: str) -> list[float]:
    """A direction of its own for every text."""
    luck = random.Random(crc32(text.encode()))
    return [luck.gauss(0, 1) for _ in range(8)]


def resources(*, encoder: bool = True, delay: float = 0.02, **others: object) -> dict[str, object]:
    """Everything that the pipeline needs."""
    return {
        "llm": Scripted(says, delay=delay),
        "encoder": Scripted({}, embeds=vector, first_delay=0.01) if encoder else None,
        "model": Trained(),
        "index": INDEX,
        "known": PassageVectors(INDEX),
        **others,
    }


def app_time() -> float:
    """Seconds on the loop's clock."""
    return asyncio.get_running_loop().time()


# ----------------------------------------------------------------------------------- BM25


@pytest.mark.slow
@given(queries=st.lists(QUERIES, max_size=4), cuts=st.lists(st.integers(0, 200), max_size=20))
def test_scores_kept_word_by_word_are_those_of_the_whole_query(queries, cuts) -> None:
    """However a text of queries is cut into tokens, each has the scores of a search at once."""
    text = "".join(f"\n- {query}" for query in queries)
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    running = RunningSearch(INDEX, 5)
    found = [c for a, b in pairwise(at) for c in running.feed(text[a:b])]
    found += running.end()
    expected = [query for query in queries if query]
    assert [candidates.query for candidates in found] == expected
    for candidates in found:
        whole = INDEX.whole(candidates.query)
        assert candidates == INDEX.best(candidates.query, whole, 5)


@pytest.mark.slow
@given(queries=st.lists(QUERIES, max_size=4))
async def test_the_queries_that_are_encoded_are_those_that_are_searched_for(queries) -> None:
    """Two stages cut the same text into queries, each its own way, and agree."""
    text = "\r\n".join(queries)
    running = RunningSearch(INDEX, 1)
    searched = [c.query for c in (*running.feed(text), *running.end())]
    from examples.verification.pipeline import whole_queries  # noqa: PLC0415  # a stage's function

    encoded = [q async for q in whole_queries.fn(alto.testing.group([*text]))]
    assert encoded == searched


def test_a_query_finds_the_passage_that_answers_it() -> None:
    """The best passages for a query about the mouth of the Danube are about the Danube."""
    best = INDEX.best("q", INDEX.whole("mouth of the Danube"), 3)
    found = [INDEX.passages[candidate.passage] for candidate in best.found]
    assert {passage.title for passage in found} == {"Danube"}
    assert "Black Sea" in found[0].text
    assert INDEX.best("q", INDEX.whole("zyzzyva"), 3).found == ()


def test_words_without_letters_of_the_latin_script_are_words() -> None:
    """Case is ignored, marks separate, and other scripts are searched for like any."""
    assert terms("The K2, (Дунай) الدانوب 黒海 x-ray") == [
        "k2",
        "дунай",
        "الدانوب",
        "黒海",
        "x",
        "ray",
    ]


# ------------------------------------------------------------------------------- reranking


def test_late_interaction_matches_each_token_of_the_query_with_its_best() -> None:
    """The similarity is the mean over query tokens of the largest cosine."""
    query = np.array([[1, 0], [0, 1]], dtype=np.float32)
    passage = np.array([[1, 0], [math.sqrt(0.5), math.sqrt(0.5)]], dtype=np.float32)
    assert max_sim(query, passage) == round((1 + math.sqrt(0.5)) / 2, 3)
    assert max_sim(query, -passage[:1]) == -0.5


def test_candidates_are_reordered_by_similarity() -> None:
    """The encoder's order counts; without an encoder it is that of BM25."""
    found = Candidates("q", (Candidate(0, 9.0), Candidate(1, 5.0)))
    vectors = {0: np.array([[0, 1]], dtype=np.float32), 1: np.array([[1, 0]], dtype=np.float32)}
    near = rank(INDEX, found, ((2.0, 0.0),), vectors)
    assert [e.passage for e in near.found] == [INDEX.passages[1], INDEX.passages[0]]
    assert [e.similarity for e in near.found] == [1.0, 0.0]
    plain = rank(INDEX, found, None, {})
    assert [e.passage for e in plain.found] == [INDEX.passages[0], INDEX.passages[1]]
    assert {e.similarity for e in plain.found} == {None}


def test_evidence_that_several_queries_agree_on_comes_first() -> None:
    """Fusion adds up reciprocal ranks, and keeps the best score of each kind."""

    def evidence(name: str, bm25: float, place: int) -> Evidence:
        return Evidence(Passage("a.txt", "A", name), bm25, None, 1 / (60 + place))

    rankings = [
        Ranking("p", (evidence("once", 9, 1), evidence("twice", 2, 2))),
        Ranking("q", (evidence("twice", 3, 1), evidence("late", 1, 2))),
    ]
    best = fuse(rankings)
    assert [(e.passage.text, e.bm25) for e in best] == [("twice", 3), ("once", 9), ("late", 1)]
    assert fuse([]) == ()


def test_a_small_model_reads_what_is_close_in_one_text() -> None:
    """Passages of other texts, and those much less alike than the best, are not shown to it."""

    def evidence(source: str, bm25: float, similarity: float | None, score: float) -> Evidence:
        return Evidence(Passage(source, "A", f"{bm25} {similarity}"), bm25, similarity, score)

    far = evidence("b.txt", 9.0, 0.9, 0.04)
    ours = [evidence("a.txt", 5.0, 0.85, 0.03), evidence("a.txt", 4.0, 0.75, 0.02)]
    other = evidence("a.txt", 5.0, 0.7, 0.01)
    assert closest([far, *ours, other]) == tuple(ours)
    words = [evidence("a.txt", bm25, None, 0.01) for bm25 in (5.0, 3.6, 3.4)]
    assert closest(words) == tuple(words[:2])
    assert closest([]) == ()
    assert len(Instructed().reads([far, *ours, other] * 2)) == 6


# -------------------------------------------------------------------------------- pipeline


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("question", [QUESTION, "Tell me about hydrogen.", "Who was Napoleon?"])
async def test_streamed_unstreamed_and_sequential_runs_agree(question, encoder) -> None:
    """Streaming, waiting for each stage, and one step at a time give the same appraisals."""
    given = resources(encoder=encoder)
    async with verify.open(**given) as app, verify_in_steps.open(**given) as steps:
        streamed = await app.run(question)
        assert await steps.run(question) == streamed
        assert await reference_run(verify, question, **given) == streamed
    assert bool(streamed) == ("Napoleon" not in question)


@pytest.mark.slow
async def test_questions_at_once_and_slow_engines_change_no_appraisal() -> None:
    """With few slots, small edges and many questions, each has what it has alone."""
    topics = forms.known_topics()[::20]
    questions = [f"Tell me about {topic}." for topic in topics]
    given = resources(llm=Scripted(says, delay=0.01, slots=3))
    async with verify.open(capacity=1, **given) as app:
        many = [result.unwrap() async for result in app.map(questions)]
        assert many == [await app.run(question) for question in questions]


async def test_a_mistake_is_refuted_by_what_the_corpus_says() -> None:
    """The answer has the Danube end in the Gulf of Mexico; the corpus has the Black Sea."""
    async with verify.open(**resources(encoder=False)) as app:
        appraisals = await app.run(QUESTION)
    first = appraisals[0]
    assert first.claim.text == "The mouth of the Danube is the Gulf of Mexico."
    assert (first.verdict, first.found) == ("REFUTED", "Black Sea")
    assert any("Black Sea" in evidence.passage.text for evidence in first.evidence)
    assert {a.verdict for a in appraisals} == {"REFUTED", "SUPPORTED"}


async def test_a_verdict_comes_before_the_answer_is_complete() -> None:
    """Watching shows text, sentence, claim and verdict in that order, while the answer goes on."""

    def slow_answer(prompt: str) -> Line:
        return Line(says(prompt), delay=0.1 if prompt.startswith("Question") else 0.01)

    async with watch.open(**resources(llm=Scripted(slow_answer))) as app:
        events = await app.stream(QUESTION).list()
    kinds = [type(event) for event in events]
    assert kinds[0] is Written
    first = [kinds.index(kind) for kind in (Written, Sentence, Claim, Appraisal)]
    assert first == sorted(first)
    complete = events.index(Written("", complete=True))
    assert first[-1] < complete
    text = "".join(event.text for event in events if isinstance(event, Written))
    sentences = [event.text for event in events if isinstance(event, Sentence)]
    assert text.strip() == " ".join(sentences)
    claims = [event for event in events if isinstance(event, Claim)]
    appraised = [event.claim for event in events if isinstance(event, Appraisal)]
    assert sorted(claims, key=str) == sorted(appraised, key=str)


async def test_an_answer_may_be_shown_at_the_pace_of_a_larger_model() -> None:
    """At ten characters a second the text takes as long as it is; the appraisals are the same."""
    given = resources(llm=Scripted(says))
    async with watch.open(**{**given, "model": Trained(pace=10)}) as app:
        began = app_time()
        events = await app.stream(QUESTION).list()
        seconds = app_time() - began
    text = "".join(event.text for event in events if isinstance(event, Written))
    assert seconds == pytest.approx(len(text) / 10, abs=0.5)
    async with watch.open(**given) as app:
        assert sorted(map(str, await app.stream(QUESTION).list())) == sorted(map(str, events))


async def test_without_streaming_no_verdict_comes_before_all_evidence_is_there() -> None:
    """One stage at a time tells the same, but each kind of event only after the one before."""
    async with watch_in_steps.open(**resources()) as app:
        events = await app.stream(QUESTION).list()
    kinds = [type(event) for event in events]
    last_claim = len(kinds) - kinds[::-1].index(Claim)
    assert last_claim <= kinds.index(Appraisal)
    assert events.index(Written("", complete=True)) < kinds.index(Claim)
    async with watch.open(**resources()) as app:
        assert sorted(map(str, await app.stream(QUESTION).list())) == sorted(map(str, events))


async def test_tokens_of_a_claim_go_to_one_of_four_searchers() -> None:
    """Searching is spread over replicas by claim, and no group is left bound."""
    async with verify.open(**resources()) as app:
        [_ async for _ in app.map([f"Tell me about {t}." for t in forms.known_topics()[:2]])]
        statistics = app.statistics().stages["search"]
    assert len(statistics.replicas) == 4
    assert all(replica.done > 0 and replica.bound == 0 for replica in statistics.replicas)


async def test_leaving_early_stops_what_the_model_generates() -> None:
    """A reader who goes after the first verdict leaves no generation behind."""
    given = resources()
    async with watch.open(**given) as app:
        async with app.stream(QUESTION) as events:
            async for event in events:
                if isinstance(event, Appraisal):
                    break
        assert given["llm"].statistics().running == 0


async def test_a_judgement_that_cannot_be_read_is_unclear() -> None:
    """Malformed words of the model end no request; the verdict says that it is unknown."""

    def mumbles(prompt: str) -> list[str]:
        return [" perhaps"] if prompt.endswith("Found:") else says(prompt)

    async with verify.open(**resources(llm=Scripted(mumbles))) as app:
        appraisals = await app.run(QUESTION)
    assert {(a.verdict, a.found) for a in appraisals} == {("UNCLEAR", None)}


async def test_evidence_that_the_context_has_no_room_for_is_left_out() -> None:
    """A long passage does not fail the claim: the model is asked with less."""
    long = [
        Passage("a.txt", "Danube", f"The mouth of the Danube is {'far ' * n}.") for n in (1, 99)
    ]
    llm = Scripted(lambda _: [" far\nVerdict: REFUTED"], max_model_len=60)
    async with llm:
        judged = await Trained().judge(alto.LLM(llm), "The mouth of the Danube is near.", long)
    assert (judged.found, judged.verdict) == ("far", "REFUTED")


@pytest.mark.slow
async def test_an_instruction_tuned_model_answers_in_types() -> None:
    """With any other model claims and verdicts come as JSON, and the stages are the same."""
    pytest.importorskip("msgspec")
    pytest.importorskip("ijson")

    def instructed(prompt: str) -> list[str]:
        if "short sentences" in prompt:
            return ["The Danube ", "ends in Peru. ", "Nice."]
        if "List the facts" in prompt:
            return ["[]"] if "Sentence: Nice." in prompt else ['["The Danube', ' ends in Peru."]']
        if "search queries" in prompt:
            return ["- mouth of", " the Danube\n"]
        return ['{"found": "Black Sea", "verdict": "REFUTED"}']

    async with verify.open(**resources(llm=Scripted(instructed), model=Instructed())) as app:
        (appraisal,) = await app.run("Where does it end?")
    assert appraisal.claim == Claim("The Danube ends in Peru.", "The Danube ends in Peru.")
    assert (appraisal.verdict, appraisal.found) == ("REFUTED", "Black Sea")
    assert appraisal.evidence[0].passage.title == "Danube"


# ------------------------------------------------------------------------------ evaluation


@pytest.mark.slow
async def test_topics_are_marked_against_the_tables() -> None:
    """A model that says what it was taught is wrong only where the evidence was not found."""
    engines = Engines(Scripted(says, delay=0.002), None, Trained())
    topics = forms.known_topics()[::8]
    figures = await evaluate(engines, INDEX, topics=topics, sequential=3, alone=3)
    assert figures["topics"] == len(topics)
    assert figures["claims"] > 3 * len(topics)
    assert figures["refuted"] > len(topics) // 2
    assert figures["verdict_accuracy"] >= 0.95
    assert all(mistake.endswith("-> NOT FOUND") for mistake in figures["mistakes"])
    assert figures["identical_to_sequential"] is True
    assert figures["unknown_names_without_a_claim"] == figures["unknown_names"] > 0
    assert 0 < figures["first_verdict_s"] < figures["all_verdicts_s"]


def test_wrong_verdicts_are_counted() -> None:
    """A false verdict, and a claim that no table has, lower the accuracy."""
    claim = next(claim for claim, verdict in truth().items() if verdict == "SUPPORTED")
    given = [(claim, "SUPPORTED"), (claim, "REFUTED"), ("Peru is a river.", "SUPPORTED")]
    found = marks([Appraisal(Claim(text, text), verdict, None, ()) for text, verdict in given])
    assert (found["claims"], found["verdict_accuracy"]) == (3, 0.3333)
    assert found["mistakes"] == {"SUPPORTED -> REFUTED": 1, "no known claim -> SUPPORTED": 1}


# ---------------------------------------------------------------------------------- corpus


def test_a_corpus_is_read_sentence_by_sentence(tmp_path: Path) -> None:
    """Titles come from the first line or the file's name, and sentences may be in any script."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "black-sea.txt").write_text("It is\nsalty. It is deep.\n\nThe end", "utf-8")
    (tmp_path / "a.txt").write_text("# गंगा\n\nगंगा बहती है। 黒海に注ぐ。نهر طويل؟", "utf-8")
    (tmp_path / "note.md").write_text("no text")
    assert read_corpus(tmp_path) == [
        Passage("a.txt", "गंगा", "गंगा बहती है।"),
        Passage("a.txt", "गंगा", "黒海に注ぐ。"),
        Passage("a.txt", "गंगा", "نهر طويل؟"),
        Passage("sub/black-sea.txt", "black sea", "It is salty."),
        Passage("sub/black-sea.txt", "black sea", "It is deep."),
        Passage("sub/black-sea.txt", "black sea", "The end"),
    ]


def test_a_corpus_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """No folder, a file, no texts, no sentence, and bytes that are no UTF-8 are each refused."""
    with pytest.raises(CorpusError, match=r"there is no folder .*gone"):
        read_corpus(tmp_path / "gone")
    with pytest.raises(CorpusError, match=r"no \*.txt files"):
        read_corpus(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(CorpusError, match="hold no sentence"):
        read_corpus(tmp_path)
    with pytest.raises(CorpusError, match=r"empty.txt' is a file"):
        read_corpus(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("Dvořák".encode("iso-8859-2"))
    with pytest.raises(CorpusError, match=r"latin.txt' is not UTF-8 text \(byte 3\)"):
        read_corpus(tmp_path)
