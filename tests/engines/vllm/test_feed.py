"""`alto.engines._vllm.feed`: what is sent is the beginning of the prompt, soon enough, or it is known not to be."""

from __future__ import annotations

import re
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alto.engines._vllm.feed import CHUNK_TOKENS, Feed
from alto.errors import PromptTooLong


def characters(text: str) -> list[int]:
    """A token for each character: what is there never changes."""
    return [ord(letter) for letter in text]


def words(text: str) -> list[int]:
    """A token for at most four letters of a word and the space before it: its end may change."""
    return [zlib.crc32(part.encode()) for part in re.findall(r"\s?\S{1,4}|\s", text)]


def shifty(text: str) -> list[int]:
    """Like characters, but a mark changes everything before it, as no good tokenizer does."""
    return [ord(letter) + text.count("!") for letter in text]


TOKENIZERS = [characters, words, shifty]
PIECES = st.lists(st.sampled_from(["a", "bc ", " ", "defghij", "k l m n ", "!", "\n"])).map("".join)


class Feeding(RuleBasedStateMachine):
    """A prompt that is written and sent; the model is the text and a list of what was sent."""

    ended = True

    @precondition(lambda self: self.ended)
    @rule(
        tokenize=st.sampled_from(TOKENIZERS), chunk=st.integers(4, 12), limit=st.integers(40, 300)
    )
    def begin(self, tokenize, chunk, limit):
        """A new prompt."""
        self.tokenize, self.chunk, self.limit = tokenize, chunk, limit
        self.feed = Feed(limit=limit, chunk_tokens=chunk)
        self.text = ""
        self.sent: list[int] = []
        self.wrong = False
        self.ended = False

    def _saw(self, token_ids):
        self.wrong = self.wrong or token_ids[: len(self.sent)] != self.sent

    @precondition(lambda self: not self.ended)
    @rule(piece=PIECES, room=st.none() | st.integers(0, 60))
    def write(self, piece, room):
        """More text."""
        self.text += piece
        certain = self.feed.add(piece)
        assert self.feed.text == self.text
        if certain is None:
            return
        assert not self.wrong, "a broken feed asks for nothing"
        assert self.text.startswith(certain)
        token_ids = self.tokenize(certain)
        try:
            new = self.feed.tokenised(token_ids, room=room)
        except PromptTooLong:
            assert len(token_ids) > self.limit
            self.ended = True
            return
        self._saw(token_ids)
        if new:
            assert len(new) >= self.chunk
            assert room is None or len(new) <= room
            self.sent += new
            assert token_ids[: len(self.sent)] == self.sent, "only what is certain is sent"
            assert len(self.sent) < len(token_ids), "the last tokens are held back"
        elif room is None and not self.wrong:
            assert len(token_ids) - len(self.sent) < self.chunk + 4, "it is not idle for nothing"

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self):
        """The text is complete."""
        self.ended = True
        token_ids = self.tokenize(self.text)
        if len(token_ids) >= self.limit:
            with pytest.raises(PromptTooLong) as caught:
                self.feed.finish(token_ids)
            assert (caught.value.prompt_tokens, caught.value.limit) == (len(token_ids), self.limit)
            return
        rest = self.feed.finish(token_ids)
        self._saw(token_ids)
        if rest is None:
            assert self.wrong or len(token_ids) == len(self.sent)
            assert self.feed.broken
        else:
            assert rest
            assert not self.wrong
            assert self.sent + rest == token_ids

    @invariant()
    def knows_what_was_sent(self):
        """It is broken exactly when a tokenisation has gone another way."""
        if not hasattr(self, "feed"):
            return
        assert self.feed.sent == self.sent
        assert len(self.sent) < self.limit
        if not self.ended:
            assert self.feed.broken == self.wrong


TestFeeding = Feeding.TestCase
TestFeeding.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(1, 9), min_size=60, max_size=200), st.integers(1, 300))
def test_most_of_a_long_text_is_sent_before_it_ends(lengths, size):
    """However the text is cut, little is left for the end when all of it is words."""
    text = " ".join("w" * length for length in lengths)
    feed = Feed(limit=10_000, chunk_tokens=16)
    for start in range(0, len(text), size):
        certain = feed.add(text[start : start + size])
        if certain is not None:
            feed.tokenised(characters(certain))
    left = len(text) - len(feed.sent)
    # a chunk, the tokens and the word held back, and a quarter of a chunk until the next try
    assert left <= 16 + 4 + 10 + 4 + size
    assert feed.finish(characters(text)) == characters(text)[len(feed.sent) :]


def test_a_text_without_spaces_is_sent_too():
    """A script that has no spaces, or one endless word, is not waited for."""
    feed = Feed(limit=10_000)
    certain = feed.add("好" * 400)
    assert certain == "好" * (400 - 64)
    assert len(feed.tokenised(characters(certain))) == 400 - 64 - 4


def test_the_last_word_and_the_space_before_it_are_not_certain():
    """A word that may grow is not tokenised, nor is the space that belongs to it."""
    feed = Feed(limit=1000, chunk_tokens=4)
    assert feed.add("one two three fo") == "one two three"


def test_a_short_text_asks_for_nothing():
    """Text of less than a chunk is not worth a step of the engine."""
    feed = Feed(limit=1000)
    assert feed.add("word " * (CHUNK_TOKENS // 5)) is None
    assert feed.finish([1, 2, 3]) == [1, 2, 3]


def test_a_text_that_grows_too_long_is_refused_before_its_end():
    """What is there already does not fit, so nobody waits for the rest."""
    feed = Feed(limit=50, chunk_tokens=8)
    certain = feed.add("word " * 20)
    with pytest.raises(PromptTooLong, match="and more to come"):
        feed.tokenised(characters(certain))


def test_a_feed_that_went_wrong_asks_for_nothing_more():
    """After a tokenisation that goes another way the prompt is to be sent whole."""
    feed = Feed(limit=1000, chunk_tokens=8)
    feed.tokenised(shifty(feed.add("word " * 20)))
    assert feed.sent
    assert feed.tokenised(shifty(feed.add("word! " * 20))) == []
    assert feed.broken
    assert feed.add("word " * 100) is None
    assert feed.finish(shifty(feed.text)) is None


@pytest.mark.parametrize(("room", "sent"), [(92, 92), (91, 0), (None, 92)])
def test_a_chunk_is_sent_if_it_fits_exactly(room, sent):
    """Room for all that is certain is enough; with less, nothing is sent."""
    feed = Feed(limit=1000, chunk_tokens=92)
    assert len(feed.tokenised(range(96), room=room)) == sent


@pytest.mark.parametrize(("tokens", "fits"), [(99, True), (100, False), (101, False)])
def test_a_place_is_left_for_the_answer(tokens, fits):
    """A prompt as long as the context is too long, at its end and, less what is held, before."""
    feed = Feed(limit=100, chunk_tokens=8)
    early = Feed(limit=100, chunk_tokens=8)
    if fits:
        assert len(feed.finish(range(tokens))) == tokens
        assert len(early.tokenised(range(tokens + 4))) == tokens
    else:
        with pytest.raises(PromptTooLong):
            feed.finish(range(tokens))
        with pytest.raises(PromptTooLong):
            early.tokenised(range(tokens + 4))


def test_a_text_that_may_not_be_sent_is_not_tokenised_at_every_word():
    """Where there is no room, the next try waits for a quarter of a chunk."""
    feed = Feed(limit=10_000, chunk_tokens=100)
    tries = 0
    for _ in range(400):
        certain = feed.add("word ")
        if certain is not None:
            tries += 1
            assert feed.tokenised(characters(certain), room=0) == []
    assert 50 < tries <= 2000 / 25
