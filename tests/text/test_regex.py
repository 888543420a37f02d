"""`alto._text.regex`: a match is certain when nothing that follows could change it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from alto._text.regex import RegexSplitter, Separator

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\n", r"\s", r"\w", "(?i:A)", r"\b", r"\B", "(?=b)",
                         "(?!b)", "(?<=a)", "(?<!ab)", "(?=a+b)", "(?!a*c)", "c", "(?m:^)", "(?m:$)",
                         "(?s:.)", "(?<=\\b)", "[^\\s]"])  # fmt: skip
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(
            inner, st.sampled_from(["+", "*", "?", "+?", "{2}", "{1,3}", "*?", "++", "??"])
        ).map(lambda two: f"(?:{two[0]}){two[1]}"),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"(?>{one})"),
    ),
    max_leaves=5,
)
TEXT = st.text(alphabet="abcA \n.", max_size=14)


def pieces(pattern: str | re.Pattern[str], chunks: list[str]) -> list[str]:
    """Everything a splitter gives for these chunks."""
    splitter = RegexSplitter(Separator(pattern))
    return [p for chunk in chunks for p in splitter.feed(chunk)] + splitter.flush()


def split(pattern: str | re.Pattern[str], text: str) -> list[str]:
    """The naive model: ``re.split`` of the whole, without groups."""
    found, start = [], 0
    for match in re.compile(pattern).finditer(text):
        found.append(text[start : match.start()])
        start = match.end()
    return [piece.strip() for piece in [*found, text[start:]] if piece.strip()]


@given(PATTERNS, TEXT, st.integers(1, 5))
@example(r".(?<=\b)", "AA", 1)
def test_pieces_are_those_of_the_whole_text_in_every_chunking(
    pattern: str, text: str, size: int
) -> None:
    """Whatever the pattern, pieces are those of ``re.split``, however the text is cut."""
    try:
        Separator(pattern)
    except ValueError:
        assume(False)
    expected = split(pattern, text)
    assert pieces(pattern, [text]) == expected
    assert pieces(pattern, list(text)) == expected
    assert pieces(pattern, [text[at : at + size] for at in range(0, len(text), size)]) == expected


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"[^>]+>|a", "bbac>da"),
        (r"a|ab.{5}c", "abXXXXXcabYYYYYY"),
        (r"a|ab+c", "xabbbbcxabbbbd"),
        (r"\n+", "one\n\n\ntwo\nthree\n"),
        (r"\s*\n\s*", "one  \n  two \n\n three"),
        (r"(?<=[.!?])\s+(?=[A-Z])", "One. Two! three? Four.  Five"),
        (r"(?i)<(?:br|p)\s*/?>", "a<BR/>b<p  >c<b>d<br"),
        (r"(?m)^-{3,}$\n?", "a\n---\nb\n--\n---- \n-----"),
        (r"(?x) , \s*  # a comma", "a, b,c"),
        (r"(?s)/\*.*?\*/", "a/*x\n*/b/* *c*/d/*"),
        (r"\bor\b", "this or that for or"),
        (r"ab(?!c)", "xabcxabdxab"),
        (r"(?>a+)b|a", "aaaXaab"),
        ("é|日本", "caféau日本語"),
        (re.compile("X", re.IGNORECASE), "axbXc"),
        (r"(?a:\w)\W", "aéb c"),
        ("\\d{3}[-–]|[^\\x00-\\x7f]", "a123-bé12"),
    ],
)
def test_patterns(pattern: str | re.Pattern[str], text: str) -> None:
    """Patterns of many kinds cut as ``re.split`` does, character by character too."""
    assert split(pattern, text)
    assert pieces(pattern, [text]) == pieces(pattern, list(text)) == split(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "marked"),
    [
        # A bar after a chunk: with it a piece is given.
        (";", ["a", ";|", "b", ";|"]),
        (r"\n+", ["a", "\n", "\n", "b|", "\nc|"]),
        (r"\n\n", ["a", "\n", "b\n", "\n|", "c"]),
        (r"a|ab.{5}c", ["xa", "d|", "xab12345", "d|"]),
        (r"[^>]+>|a", ["bb", "a", "a"]),
        (r"\n(?=[A-Z])", ["a", "\n", "B|", "\n", "c"]),
        (r"xa|a.*z|;", ["qxaw;||", "b"]),
        (r"(?<=\.)\s", ["a", " ", "b", ".", " |", "c"]),
    ],
)
def test_a_piece_comes_as_soon_as_the_match_after_it_is_certain(
    pattern: str, marked: list[str]
) -> None:
    """A match waits for the characters that could change it, and for no more than one beyond."""
    splitter = RegexSplitter(Separator(pattern))
    given_at = [
        chunk + "|" * len(splitter.feed(chunk)) for chunk in (m.rstrip("|") for m in marked)
    ]
    assert given_at == marked


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("a*", "may match nothing at all"),
        (r"\b", "may match nothing at all"),
        ("(?=a)", "may match nothing at all"),
        ("", "may match nothing at all"),
        ("^a", "for lines, write (?m) before it"),
        ("a$", "for lines, write (?m) before it"),
        (r"\Aa", "a stream does not know"),
        (r"a\Z", "a stream does not know"),
        ("(?m:^)a|^b", "for lines, write (?m) before it"),
        (r"a(?=b$)", "for lines, write (?m) before it"),
        (r"(a)\1", "refers back to a group"),
        (r"(?P<q>a)?(?(q)b|c)", "refers back to a group"),
        (r"(?<=a(?=b))b", "a look ahead inside a look behind"),
        (r"(?<=^a)b", "for lines, write (?m) before it"),
        ("(", "is no regular expression"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_refused(pattern: str, remedy: str) -> None:
    """What may match nothing, or asks for what a stream has not, is refused with the reason."""
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        Separator(pattern)
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("pattern", [b"a", re.compile(b"a"), None, 3])
def test_a_pattern_is_for_text(pattern: object) -> None:
    """Anything but a pattern for text is a type error."""
    with pytest.raises(TypeError, match="pattern must be"):
        Separator(pattern)


def test_a_separator_that_goes_on_and_on_is_looked_at_now_and_then() -> None:
    """From 256 characters on, a separator is looked at again when it has grown by a quarter."""
    splitter = RegexSplitter(Separator(r"-+"))
    assert splitter.feed("a" + "-" * 255) == []
    assert splitter.feed("b") == ["a"]
    assert splitter.feed("-" * 400) == ["b"][:0]
    assert splitter.feed("c" * 99) == []
    assert splitter.feed("c") == []
    assert splitter.feed("c") == ["b"]
    assert splitter.flush() == ["c" * 101]


@pytest.mark.parametrize(
    "pattern",
    [r"(?:-+\s*)+", r"(?:\s*-\s*)+", r"(?:-|\s|-\s?)+", r"(?:(?:-+)+\s*)+", r"(?:-\s*){2,}", r"(-*-*)*-"],
)  # fmt: skip
def test_a_long_separator_of_an_ambiguous_pattern_is_seen_at_once(pattern: str) -> None:
    """Nested repeats that divide a run in 2^400 ways cost no more than others; what follows ends them."""
    text = "Title" + "-" * 400 + "text"
    assert pieces(pattern, list(text)) == pieces(pattern, [text]) == ["Title", "text"]
    splitter = RegexSplitter(Separator(pattern))
    assert splitter.feed("Title---x") == ["Title"]


def test_counted_repeats_need_no_room_of_their_own() -> None:
    """Ever so many copies of a part are taken for any number, which costs a wait and changes no piece."""
    for pattern in (
        r"(?:(?:(?:a{30}){30}){30}){30}b",
        r"a{1000}",
        r"(?:a{0}b){3}",
        r"(?:ab?){2,70000}c",
    ):
        text = "x" + "a" * 1100 + "c.bbb." + "ab" * 300 + "c" + "b" * 9
        cut = [text[at : at + 7] for at in range(0, len(text), 7)]
        assert pieces(pattern, cut) == split(pattern, text)
    splitter = RegexSplitter(Separator(r"[^\n]{80}"))
    assert splitter.feed("ab\n" + "c" * 80) == ["ab"]


def test_only_what_may_go_on_is_waited_for() -> None:
    """A look ahead that has seen its text, and a part that takes none, keep nothing open."""
    assert RegexSplitter(Separator(r"ab(?=c)d?")).feed("xabc") == ["x"]
    assert RegexSplitter(Separator(r"ab(?:c{0})")).feed("xab") == ["x"]
    assert pieces(r"(?<=abc)-", list("abc-d-abcabc-x")) == ["abc", "d-abcabc", "x"]


@pytest.mark.parametrize(
    ("pattern", "run", "end"),
    [
        (r"(?:-+\s*)+#", "-", "#"),
        (r"(?:\n\s*){2,}(?=[A-Z])", "\n", "\nT"),
        (r"(?:\s*\n\s*)+(?:---|\*\*\*)", "\n", "---"),
        (r"-*-*-*-*-*-*-*-*#", "-", "#"),
    ],
)
def test_a_pattern_that_is_slow_to_fail_is_not_tried_on_the_beginning_of_a_match(
    pattern: str, run: str, end: str
) -> None:
    """What ``re.split`` finds at once in the whole text is not sought before its end is there."""
    text = "one" + run * 400 + end + "wo"
    cut = [text[at : at + 150] for at in range(0, len(text), 150)]
    assert pieces(pattern, [text]) == pieces(pattern, list(text)) == split(pattern, text)
    assert pieces(pattern, cut) == split(pattern, text)


def test_a_separator_inside_the_beginning_of_another_costs_no_second_look() -> None:
    """Where a match may begin is found once for all matches in a chunk, not anew after each."""
    text = "xa" * 30_000 + "b;c"
    assert pieces(r"xa|a.*z|;", [text]) == ["b", "c"]


def test_parts_without_text_are_not_copied() -> None:
    """Repeats of what takes no text are no larger than what is repeated."""
    pattern = r"x" + "(?:" * 5 + r"\b" + "){200}" * 5
    assert pieces(pattern, ["a ", "b"]) == ["a b"]


def test_flags_inside_a_group_are_its_own() -> None:
    """``(?u:…)`` is for all letters in a pattern for ASCII, and the other way round."""
    assert pieces(r"(?a)(?u:\w);|\w,", list("aé;bé,cd,")) == ["a", "bé,c"]
    assert pieces(r"(?a:\w)(?i:X)(?-i:y)|(?i:k+)\.", list("éxyaXyb\u212aK.")) == ["éxy", "b"]


NESTED = st.recursive(
    st.sampled_from(["a", "-", r"\s", r"\n", r"\s*", "-+", "[a-]", r"[^\n]", ".", "(?=a)", r"\b"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["+", "*", "?", "+?", "{2,}", "{0,3}", "{3}"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=9,
)


@given(NESTED, st.text(alphabet="aB-\n ", max_size=12), st.lists(st.integers(0, 12), max_size=5))
@example(r"(?:\s*\n\s*){2,}(?=a)", "B \n\n\n a-", [3, 7])
def test_nested_repeats_of_what_overlaps_change_no_piece(
    pattern: str, text: str, cuts: list[int]
) -> None:
    """However ambiguous the pattern is, pieces are those of ``re.split``, however the text is cut."""
    try:
        Separator(pattern)
    except ValueError:
        assume(False)
    expected = split(pattern, text)
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    chunks = [text[low:high] for low, high in itertools.pairwise(places)]
    assert pieces(pattern, chunks) == pieces(pattern, list(text)) == expected


@pytest.mark.parametrize(
    ("pattern", "marked"),
    [
        (r"(?:-+\s*)+", ["a--", "- ", "-", "b|"]),
        (r"(?:\n\s*){2,}", ["a\n", " ", "b\n", "\n ", "c|"]),
        (r"(?:-\s?){2,3}", ["a-", "-", "-", " |", "b"]),
        (r"(?:-|--)+;", ["a--", "-", ";|", "b-", "c", "-;|"]),
    ],
)
def test_nested_repeats_make_no_piece_late(pattern: str, marked: list[str]) -> None:
    """A match of nested repeats is certain with the character that cannot go on with it."""
    test_a_piece_comes_as_soon_as_the_match_after_it_is_certain(pattern, marked)
