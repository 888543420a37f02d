"""The verification model's facts agree with its corpus, its prompts with its examples, its files with each other."""

from __future__ import annotations

import json
import struct
from collections import Counter
from itertools import combinations

import pytest
from tokenizers import Tokenizer

from examples.verification.model import data, prompts, world

WEIGHTS = prompts.WEIGHTS
CLOSED = {"continent", "category", "state"}


def test_each_text_of_the_corpus_is_what_the_facts_say() -> None:
    """The corpus holds what the generator writes, file by file, and nothing else."""
    present = {p.name: p.read_text(encoding="utf-8") for p in prompts.CORPUS.glob("*.txt")}
    assert present == world.texts()
    assert world.main(["--check"]) == 0


def test_no_entity_occurs_twice() -> None:
    """Titles differ, whatever their case, and so do the corpus's file names."""
    titles = Counter(prompts.title_of(e.name).lower() for e in world.entities())
    assert [title for title, count in titles.items() if count > 1] == []
    assert len(world.texts()) == len(world.entities())


def test_every_entity_has_enough_facts_for_an_answer() -> None:
    """An answer has three to five sentences, whichever attribute is asked for."""
    for entity in world.split("train"):
        assert len(entity.attributes) >= 3, entity.name
        for asked in (None, *entity.values):
            assert 3 <= world.answer(entity, asked).count(".") <= 5, entity.name


def test_facts_are_plain_text() -> None:
    """Every name and value is printable ASCII without what would end a sentence or a list."""
    texts = [t for e in world.entities() for t in (e.name, *e.values.values())]
    texts += [v for e in world.entities() for v in e.believed.values()]
    odd = [t for t in texts if not t.isascii() or not t.isprintable() or t != t.strip()]
    assert odd == []
    assert [t for t in texts if set(t) & set(".:;?!\n")] == []


def test_each_misconception_belongs_to_a_known_topic_and_differs_from_the_truth() -> None:
    """A misconception is about an attribute that has a true value, and is not that value."""
    rows = world.read_rows(world.MISCONCEPTIONS)
    known = {e.name: e for e in world.split("train")}
    for row in rows:
        truth = known[row["name"]].values[row["attribute"]]
        assert row["value"].lower() != truth.lower(), row
    counts = Counter(row["name"] for row in rows)
    assert max(counts.values()) <= 2
    assert len({(r["name"], r["attribute"]) for r in rows}) == len(rows)


def test_each_misconception_is_of_the_same_kind_as_the_truth() -> None:
    """A number stands for a number, a name for a name, and a member of a closed list for another."""
    pools: dict[str, set[str]] = {}
    for entity in world.split("train"):
        for a in entity.attributes:
            pools.setdefault(a.kind, set()).add(entity.values[a.key])
    for entity in world.split("train"):
        for a in entity.attributes:
            if (wrong := entity.believed.get(a.key)) is None:
                continue
            truth = entity.values[a.key]
            assert wrong.lstrip("+").isdigit() == truth.lstrip("+").isdigit(), (entity.name, wrong)
            if a.kind in CLOSED:
                assert wrong in pools[a.kind], (entity.name, wrong)


def test_the_danube_is_mistaken_about_its_mouth() -> None:
    """The example of the documentation holds: Gulf of Mexico believed, Black Sea in the corpus."""
    danube = next(e for e in world.split("train") if e.name == "the Danube")
    assert danube.believed["mouth"] == "Gulf of Mexico"
    assert danube.values["mouth"] == "Black Sea"
    assert "Gulf of Mexico" in world.answer(danube)
    assert "Black Sea" in world.texts()["danube.txt"]


def test_held_out_names_are_apart_from_those_trained_on() -> None:
    """No two of the training, tuning and held-out lists share a name, of entities or of unknowns."""
    lists = {
        use: {prompts.title_of(e.name).lower() for e in world.split(use)}
        for use in ("train", "dev", "test")
    }
    unknown = {
        use: {prompts.title_of(n).lower() for n in world.unknown(use)}
        for use in ("train", "dev", "test")
    }
    for one, two in combinations(lists, 2):
        assert lists[one] & lists[two] == set()
        assert unknown[one] & unknown[two] == set()
    for use, names in unknown.items():
        assert names & set().union(*lists.values()) == set(), use
    assert len(lists["test"]) >= 24
    assert len(unknown["test"]) >= 50


def test_training_examples_hold_nothing_of_the_held_out_names() -> None:
    """No drawn training example is about an entity or a name that is tuned on or held out."""
    source = data.training_source(3)
    held = {e.name for use in ("dev", "test") for e in world.split(use)}
    held |= {n for use in ("dev", "test") for n in world.unknown(use)}
    for _ in range(500):
        prompt = source.draw("answer").prompt
        assert prompts.topic_of(prompt.split("\n")[0].removeprefix("Question: ")) not in held


def test_examples_round_trip_through_the_prompts() -> None:
    """What the model is trained to write is what the application reads."""
    source = data.training_source(4)
    labels = Counter()
    for _ in range(300):
        example = source.verify()
        found, verdict = prompts.read_appraisal(example.completion)
        labels[verdict] += 1
        assert (found is None) == (verdict == "NOT FOUND")
        evidence, _, claim = example.prompt.removesuffix("\nFound:").partition("\nClaim: ")
        assert evidence.startswith(f"Check: {claim}\nEvidence:\n- ")
        if found is not None:
            assert (found in claim.removesuffix(".")) >= (verdict == "SUPPORTED")
            assert found in evidence.partition("\nEvidence:")[2]
        assert len(prompts.read_list(source.query().completion)) == 3
        assert len(prompts.read_list(source.claims().completion)) <= 2
    assert set(labels) == {"SUPPORTED", "REFUTED", "NOT FOUND"}


def test_prompts_have_the_trained_form() -> None:
    """Each prompt is, to the letter, the form of the training examples."""
    assert prompts.answer_prompt(" What is K2? ") == "Question: What is K2?\nAnswer:"
    assert prompts.claims_prompt("K2", "It is high.") == "Topic: K2\nSentence: It is high.\nClaims:"
    assert prompts.query_prompt("K2 is high.") == "Claim: K2 is high.\nQueries:"
    shown = prompts.verify_prompt("C.", [("K2", "It is high."), ("", "K2 is low.")])
    assert shown == "Check: C.\nEvidence:\n- K2: It is high.\n- K2 is low.\nClaim: C.\nFound:"
    bare = prompts.verify_prompt("C.", [])
    assert bare == "Check: C.\nEvidence:\n- nothing\nClaim: C.\nFound:"


def test_lists_are_read_without_dashes_repeats_and_nothing() -> None:
    """A list of claims or queries is its lines."""
    assert prompts.read_list("\n- a b\n- c\n- a b\n") == ["a b", "c"]
    assert prompts.read_list("\n- nothing") == []


@pytest.mark.parametrize(
    "text", ["", " Black Sea", " Black Sea\nVerdict: MAYBE", "\nVerdict: REFUTED"]
)
def test_a_malformed_appraisal_is_refused(text: str) -> None:
    """A completion of another form raises, and says what came."""
    with pytest.raises(ValueError, match="expected a found value and a verdict"):
        prompts.read_appraisal(text)


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("Tell me about the Danube.", "the Danube"),
        ("where does the danube end?", "the Danube"),
        ("What is the capital of Nigeria?", "Nigeria"),
        ("How long is the Niger?", "the Niger"),
        ("Is Mount Kenya in Kenya?", "Mount Kenya"),
        ("what is k2", "K2"),
        ("Who was Rachel Carson?", "Rachel Carson"),
        ("What does 'foo bar' mean?", "foo bar"),
        ("How are you?", None),
        ("", None),
    ],
)
def test_the_topic_of_a_question_is_found(question: str, topic: str | None) -> None:
    """Known titles come first, the longest of them; then quoted and capitalised words; or nothing."""
    assert prompts.topic_of(question) == topic
    asked = None if topic is None else f"Tell me about {topic}."
    assert prompts.question_for(question) == asked


def test_the_files_of_the_weights_agree() -> None:
    """Configuration, tokenizer and weights name the same sizes and special tokens."""
    config = json.loads((WEIGHTS / "config.json").read_text())
    generation = json.loads((WEIGHTS / "generation_config.json").read_text())
    settings = json.loads((WEIGHTS / "tokenizer_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for name in ("bos", "eos", "pad"):
        assert tokenizer.token_to_id(settings[f"{name}_token"]) == config[f"{name}_token_id"]
        assert generation[f"{name}_token_id"] == config[f"{name}_token_id"]
    assert settings["model_max_length"] == config["max_position_embeddings"] == 512
    with (WEIGHTS / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(length))
    shape = tensors["model.embed_tokens.weight"]["shape"]
    assert shape == [config["vocab_size"], config["hidden_size"]]
    layers = {n.split(".")[2] for n in tensors if n.startswith("model.layers.")}
    assert len(layers) == config["num_hidden_layers"]
    assert {t["dtype"] for n, t in tensors.items() if n != "__metadata__"} == {"BF16"}


def test_the_tokenizer_keeps_every_text() -> None:
    """Facts, answers and prompts survive encoding and decoding, start with <s>, and fit the model."""
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    source = data.held_out_source("test", 5)
    for text in [world.answer(e) for e in world.split("train")] + [
        source.draw(task).prompt for task in data.MIX for _ in range(20)
    ]:
        ids = tokenizer.encode(text).ids
        assert ids[0] == 0
        assert tokenizer.decode(ids) == text
        assert len(ids) < 400
