"""`alto._text.splitter`: pieces depend on the text, never on its chunks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import combinations, groupby, pairwise, product, takewhile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alto._text.sentences import SentenceSplitter
from alto._text.splitter import (
    LineSplitter,
    PieceSplitter,
    SeparatorSplitter,
    Splitter,
    WordSplitter,
)

FAMILY = "👩\u200d👩\u200d👧"
ACCENTED = "e\u0301\u0323"
PARTS = [*"ab I1.!?…。」\"')*-( \n\r\t", "Dr.", "e.g. ", "3.5", "U.S. ", "The", "etc", "\n\n", "\r\n",
         "No. ", "1. ", "J. ", "... ", "。！", "ไทย", "日本", "カナ", "かな", "؟ ", "क्या।", FAMILY, ACCENTED,
         "👍🏽", "🇫🇷", "\ud83d\ude00", "\u3000", "葛\U000e0100", "क्ष",
         "ক্ত"]  # fmt: skip
TEXT = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)

SEPARATORS = (". ", "\n", "; ", "\n\n", "..", "日", ".!", "a.")
Make = Callable[[int | None], Splitter]
KINDS: dict[str, Make] = {
    "sentences": SentenceSplitter,
    "lines": LineSplitter,
    "all lines": lambda max_chars: LineSplitter(max_chars, keep_empty=True),
    "words": lambda max_chars: WordSplitter(1, max_chars),
    "three words": lambda max_chars: WordSplitter(3, max_chars),
    "separators": lambda max_chars: SeparatorSplitter(SEPARATORS, max_chars),
}
CLASSES: dict[type[PieceSplitter], Callable[..., Splitter]] = {
    SentenceSplitter: lambda kind, limit: kind(limit),
    LineSplitter: lambda kind, limit: kind(limit, keep_empty=True),
    WordSplitter: lambda kind, limit: kind(2, limit),
    SeparatorSplitter: lambda kind, limit: kind(SEPARATORS, limit),
}


def pieces(splitter: Splitter, chunks: list[str]) -> list[str]:
    """Return all pieces for these chunks."""
    return [p for chunk in chunks for p in splitter.feed(chunk)] + splitter.flush()


@st.composite
def chunked(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text, and a way to cut it."""
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in pairwise(edges)]


def units(text: str) -> list[str]:
    """Characters as people see them, near enough: the naive model of a hard cut."""
    found: list[str] = []
    for char in text:
        last = found[-1] if found else ""
        flags = "".join(c for c in last if "\U0001f1e6" <= c <= "\U0001f1ff")
        joins = last and (
            unicodedata.category(char).startswith("M")
            or char == "\u200d"
            or last[-1] == "\u200d"
            or (last[-1] in "\u094d\u09cd" and unicodedata.category(char).startswith("L"))
            or "\U0001f3fb" <= char <= "\U0001f3ff"
            or "\U000e0020" <= char <= "\U000e007f"
            or ("\udc00" <= char <= "\udfff" and "\ud800" <= last[-1] <= "\udbff")
            or ("\U0001f1e6" <= char <= "\U0001f1ff" and len(flags) == 1 and last[-1] in flags)
        )
        if joins:
            found[-1] += char
        else:
            found.append(char)
    return found


def cut(piece: str, limit: int) -> list[str]:
    """Cut a piece as the naive model does."""
    parts = []
    while len(piece) > limit:
        spaces = [at for at in range(1, limit + 1) if piece[at].isspace()]
        ends = [sum(map(len, units(piece)[:n])) for n in range(1, limit + 1)]
        fits = [end for end in ends if end <= limit]
        end = max(spaces) if spaces else max(fits, default=limit)
        parts.append(piece[:end].strip())
        piece = piece[end:].strip()
    return [*parts, piece]


@pytest.mark.parametrize("kind", KINDS)
@given(case=chunked(), limit=st.none() | st.integers(1, 12))
@example(case=("1.2.3.4. X", [*"1.2.3.4. X"]), limit=5)  # looks back at what has been cut off
def test_chunks_do_not_matter(kind: str, case: tuple[str, list[str]], limit: int | None) -> None:
    """Any chunking gives what the whole text gives, with a limit and without."""
    text, chunks = case
    make = KINDS[kind]
    got = pieces(make(limit), chunks)
    assert got == pieces(make(limit), [text])
    assert got == pieces(make(limit), list(text))
    assert all(piece == piece.strip() for piece in got)
    assert kind == "all lines" or all(got)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "separators"])
@given(text=TEXT, limit=st.none() | st.integers(1, 12))
def test_nothing_is_lost(kind: str, text: str, limit: int | None) -> None:
    """The pieces together are the text, but for white space."""
    got = pieces(KINDS[kind](limit), [text])
    assert "".join("".join(got).split()) == "".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT, limit=st.integers(1, 12))
@example(text=FAMILY + "a" + FAMILY, limit=6)
@example(text="🇫🇷🇩🇪🇮🇹", limit=3)
@example(text="ab " + ACCENTED * 3, limit=4)
@example(text="a\u0301\u0301\u0301\u0301", limit=2)
@example(text="👍🏽👍🏽", limit=3)
@example(text="\ud83d\ude00\ud83d\ude00", limit=3)
@example(text="🏴\U000e0067\U000e007fb", limit=2)
@example(text="क्षक्ष", limit=4)
@example(text="क्षक्ष", limit=2)
def test_a_limit_cuts_each_piece_and_moves_no_other_end(kind: str, text: str, limit: int) -> None:
    """With a limit the pieces are those without, each cut where the naive model cuts it."""
    whole = pieces(KINDS[kind](None), [text])
    got = pieces(KINDS[kind](limit), [text])
    assert got == [part for piece in whole for part in cut(piece, limit)]
    assert all(len(part) <= limit for part in got)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT, more=TEXT, limit=st.none() | st.integers(1, 12))
def test_what_is_given_is_never_taken_back(
    kind: str, text: str, more: str, limit: int | None
) -> None:
    """The pieces of a text are the first pieces of any longer text that begins with it."""
    given_now = KINDS[kind](limit).feed(text)
    assert pieces(KINDS[kind](limit), [text + more])[: len(given_now)] == given_now


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXT, limit=st.none() | st.integers(1, 12))
def test_a_flushed_splitter_is_as_new(kind: str, text: str, limit: int | None) -> None:
    """A splitter that has flushed splits the next text as a new one does."""
    splitter = KINDS[kind](limit)
    first = pieces(splitter, [text, "."])
    assert pieces(splitter, [text, "."]) == first
    assert splitter.flush() == []


@given(TEXT, st.booleans())
def test_lines_are_those_between_line_breaks(text: str, keep_empty: bool) -> None:
    r"""Lines end at ``\n``, ``\r\n`` and ``\r``, and at nothing else."""
    raw = re.split(r"\r\n|\r|\n", text)
    if raw[-1] == "":
        raw.pop()
    expected = [line.strip() for line in raw if keep_empty or line.strip()]
    assert pieces(LineSplitter(keep_empty=keep_empty), [text]) == expected


def test_a_line_comes_with_its_break() -> None:
    r"""A line is given at its ``\r``, and an ``\n`` that comes later begins no other line."""
    splitter = LineSplitter(keep_empty=True)
    assert splitter.feed("one") == []
    assert splitter.feed("\r") == ["one"]
    assert splitter.feed("") == []
    assert splitter.feed("\ntwo\n") == ["two"]
    assert splitter.feed("\n") == [""]
    assert splitter.flush() == []


def test_a_line_break_may_come_in_two_halves_around_a_rest() -> None:
    r"""A flush between ``\r`` and ``\n`` makes no second line of them."""
    splitter = LineSplitter(keep_empty=True)
    assert splitter.feed("one\r") == ["one"]
    assert splitter.flush() == []
    assert splitter.feed("\ntwo") == []
    assert splitter.flush() == ["two"]


def kind_of(char: str) -> str:
    """The kind of character that a word is made of, by its name in Unicode."""
    first, *rest = unicodedata.name(char, "?").split()
    if first == "CJK" and rest[1].startswith("IDEOGRAPH"):
        return "han"
    if first in ("THAI", "LAO", "MYANMAR", "KHMER"):
        return "unspaced"
    return first if first in ("HIRAGANA", "KATAKANA") else "spaced"


@given(
    st.text(alphabet="ab1.,'é \n日本語かなカナーไทยລາວမြန်ខ្មែ한국", max_size=30), st.integers(1, 4)
)
def test_words_are_runs_of_one_kind(text: str, size: int) -> None:
    """A word is a Han character, or a run of characters of one kind without white space."""
    words = []
    for run_of_text in text.split():
        for kind, chars in groupby(run_of_text.replace("ー", "ア"), kind_of):
            run = "".join(chars)
            words += list(run) if kind == "han" else [run]
    got = pieces(WordSplitter(size), [text])
    expected = ["".join(words[at : at + size]) for at in range(0, len(words), size)]
    assert ["".join(piece.split()).replace("ー", "ア") for piece in got] == expected


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("It's 3.5 km, no?", 1, ["It's", "3.5", "km,", "no?"]),
        ("one  two\nthree four", 2, ["one  two", "three four"]),
        ("one two three", 2, ["one two", "three"]),
        ("東京タワーへいく。", 1, ["東", "京", "タワー", "へいく", "。"]),
        ("GPT4は速い", 1, ["GPT4", "は", "速", "い"]),
        ("葛\U000e0100城", 1, ["葛\U000e0100", "城"]),
        ("ภาษาไทย test", 1, ["ภาษาไทย", "test"]),
        ("शब्द और", 1, ["शब्द", "और"]),
        ("שלום עולם", 1, ["שלום", "עולם"]),
        ("", 1, []),
    ],
)
def test_words(text: str, size: int, expected: list[str]) -> None:
    """Words stand between spaces; in scripts without spaces they are characters or runs of one kind."""
    assert pieces(WordSplitter(size), list(text)) == expected


def test_a_word_comes_with_the_character_after_it() -> None:
    """A word may go on until another kind of character comes, and then it is given at once."""
    splitter = WordSplitter()
    assert splitter.feed("wo") == []
    assert splitter.feed("rd") == []
    assert splitter.feed(" ") == ["word"]
    assert splitter.feed("日") == []
    assert splitter.feed("本a") == ["日", "本"]
    assert splitter.flush() == ["a"]
    two = WordSplitter(2)
    assert [two.feed(chunk) for chunk in ("a", " ", "b", " ", "c")] == [[], [], [], ["a b"], []]


def split(text: str, separators: Sequence[str]) -> list[str]:
    """Split the whole text as the naive model does: leftmost, then longest."""
    found, start, at = [], 0, 0
    while at < len(text):
        here = [separator for separator in separators if text.startswith(separator, at)]
        if here:
            found.append(text[start:at])
            start = at = at + max(map(len, here))
        else:
            at += 1
    return [piece.strip() for piece in [*found, text[start:]] if piece.strip()]


SOME_SEPARATORS = st.lists(st.text("ab;", min_size=1, max_size=4), min_size=1, max_size=4)


@given(SOME_SEPARATORS, st.text("ab;x \n", max_size=12))
@example(["ab", "bc"], "xabcx")
@example(["a", "ab", "abab"], "xababxaba")
@example(["aab", "b"], "aaab")
@example(["[[", "^-", "\\d", "||", "]^"], "a[[b^-c\\dd||]^e[")
def test_separators_cut_as_in_the_whole_text_in_every_chunking(
    separators: list[str], text: str
) -> None:
    """Pieces are those of the naive model, for any separators and any chunks."""
    expected = split(text, separators)
    for cuts in combinations(range(1, len(text)), 2):
        edges = [0, *cuts, len(text)]
        chunks = [text[low:high] for low, high in pairwise(edges)]
        assert pieces(SeparatorSplitter(separators), chunks) == expected
    for size in range(1, len(text) + 1):
        chunks = [text[at : at + size] for at in range(0, len(text), size)]
        assert pieces(SeparatorSplitter(separators), chunks) == expected


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.text("abx", max_size=7),
)
def test_a_piece_comes_as_soon_as_it_is_certain(separators: list[str], text: str) -> None:
    """The pieces so far are exactly those that all continuations of the text have in common."""
    rests = ["".join(rest) for size in range(5) for rest in product("abx", repeat=size)]
    futures = [split(text + rest, separators) for rest in rests]
    certain = [
        given[0]
        for given in takewhile(lambda given: len(set(given)) == 1, zip(*futures, strict=False))
    ]
    splitter = SeparatorSplitter(separators)
    assert [piece for char in text for piece in splitter.feed(char)] == certain


@pytest.mark.parametrize(
    ("separators", "marked"),
    [
        # A bar after a chunk: with it a piece is given.
        ([";"], ["a", ";|", "b", ";|"]),
        (["\n", "\n\n"], ["a", "\n|", "\n", "b", "\n|c"]),
        (["\n\n"], ["a", "\n", "b\n", "\n|", "c"]),
        (["---", "--="], ["a-", "-", "=|", "b--", "c-", "--|"]),
    ],
)
def test_a_separator_ends_a_piece_with_its_last_character(
    separators: list[str], marked: list[str]
) -> None:
    """A piece waits neither for the text after its separator nor for a longer separator."""
    splitter = SeparatorSplitter(separators)
    for chunk in marked:
        assert len(splitter.feed(chunk.replace("|", ""))) == chunk.count("|"), chunk


def test_a_cut_comes_with_the_first_character_that_is_too_many() -> None:
    """A piece is cut once it is too long for certain; white space at its end does not count."""
    splitter = LineSplitter(5)
    assert splitter.feed("  abcde") == []
    assert splitter.feed("   ") == []
    assert splitter.feed("f") == ["abcde"]
    assert splitter.feed(" ghij") == ["f"]
    assert splitter.feed("k") == []
    assert splitter.feed("l") == ["ghijk"]
    assert splitter.flush() == ["l"]


def counted(kind: type[PieceSplitter], work: list[int]) -> type[PieceSplitter]:
    """The class, with the length of every text that it takes in hand added to *work*."""

    class Counted(kind):
        def _add(self, text: str, out: list[str]) -> None:
            work.append(len(text))
            super()._add(text, out)

        def _cut(self, limit: int, out: list[str]) -> None:
            work.append(sum(map(len, self._parts)))
            super()._cut(limit, out)

        def _end(self, out: list[str], *, keep_empty: bool = False) -> None:
            work.append(1 + sum(map(len, self._parts)))
            super()._end(out, keep_empty=keep_empty)

        def _scan(self, text: str, *, final: bool) -> list[str]:
            work.append(len(text))
            return super()._scan(text, final=final)

    return Counted


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("limit", [None, 50])
@pytest.mark.parametrize("text", ["a", ".", " ", "a.b", "a. ", "etc. ", "!", '."', "\n", "\r", "a \n", "日",
                                  ".(", "1. ", ".\n ", "a\u0301", "; "])  # fmt: skip
def test_the_work_grows_with_the_text_and_no_faster(
    kind: type[PieceSplitter], limit: int | None, text: str
) -> None:
    """Twice the text, character by character, is at most twice the work."""
    done = []
    for length in (1500, 3000):
        work: list[int] = []
        splitter = CLASSES[kind](counted(kind, work), limit)
        pieces(splitter, list((text * length)[:length]))
        done.append(sum(work))
    assert 0 < done[1] <= 2.1 * done[0]
