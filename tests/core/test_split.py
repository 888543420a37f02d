"""`alto._core.split`: what comes out depends on the text, never on its chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._core.split import LineSplitter, SentenceSplitter

TEXT = st.lists(st.sampled_from([*"ab I.!?…。」\"') \n", "Dr.", "e.g. ", "3.5"]), max_size=30).map(
    "".join
)


def pieces(splitter: LineSplitter | SentenceSplitter, chunks: list[str]) -> list[str]:
    """Everything a splitter gives for these chunks."""
    return [p for chunk in chunks for p in splitter.feed(chunk)] + splitter.flush()


@st.composite
def chunked(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text, and a way to cut it."""
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in pairwise(edges)]


@given(chunked(), st.sampled_from([LineSplitter, SentenceSplitter]))
def test_chunks_do_not_matter(
    case: tuple[str, list[str]], kind: type[LineSplitter | SentenceSplitter]
) -> None:
    """Any chunking gives what the whole text gives, and no text is lost."""
    text, chunks = case
    got = pieces(kind(), chunks)
    assert got == pieces(kind(), [text])
    assert "".join("".join(got).split()) == "".join(text.split())
    assert all(piece == piece.strip() and piece for piece in got)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. No met J. R. Smith. He left.", ["Dr. No met J. R. Smith.", "He left."]),
        ("It is 3.5 km. See example.org now.", ["It is 3.5 km.", "See example.org now."]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("So did I. Then we ate.", ["So did I.", "Then we ate."]),
        ("Wait... what?", ["Wait...", "what?"]),
        ("A heading\n\nA text", ["A heading", "A text"]),
        ("好。「好。」再见", ["好。", "「好。」", "再见"]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Sentences end where a reader would end them."""
    assert pieces(SentenceSplitter(), [text]) == expected


def test_a_sentence_comes_as_soon_as_it_is_certain() -> None:
    """A sentence is given at the white space after its mark, not at the next sentence."""
    splitter = SentenceSplitter()
    assert splitter.feed("One.") == []
    assert splitter.feed(" ") == ["One."]
    assert splitter.feed("Two") == []
    assert splitter.flush() == ["Two"]


def test_lines() -> None:
    """Lines end at line breaks; empty ones are left out."""
    assert pieces(LineSplitter(), ["a\n\n b ", "c\nd"]) == ["a", "b c", "d"]


@given(st.lists(st.sampled_from([". ", ".", " ", "a"]), max_size=400))
def test_a_flushed_splitter_is_as_new(parts: list[str]) -> None:
    """A splitter that has flushed is as new."""
    splitter = SentenceSplitter()
    first = pieces(splitter, parts)
    assert pieces(splitter, parts) == first
