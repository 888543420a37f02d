"""`alto._text.sentences`: where sentences end, and when that is certain."""
# ruff: noqa: RUF001  # letters and marks of several scripts

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._text.sentences import SentenceSplitter

CASES = [
    # Plain marks.
    "One. | Two! | Three?",
    "What?! | Never!!! | So be it.",
    "No end here",
    "The first.   | The second.",
    "The first.\n| The second\nline of it. | The third.",
    "ONE. | TWO. | THE END.",
    "one. | two. | three.",
    "Wait. | . . . Then go.",
    "?! | What is that?",
    ". Then a word.",
    # Numbers, addresses, names of files.
    "It is 3.5 km long. | It costs $1.50. | Or more.",
    "See example.org now. | Or https://example.org/a.html?q=1&r=2. | Or me@example.org.",
    "Open split.py and run it. | Then read README.md.",
    "Version 2.0.1 is out. | It is fast.",
    "In 1984. | Then came 1985.",
    "He scored 10. | Then 12.",
    # Titles and initials.
    "Dr. No met Mr. Smith and Mrs. Jones. | They left.",
    "J. R. R. Tolkien wrote it. | C. S. Lewis read it.",
    "W. A. Mozart and N. Bohr and J. I. Smith never met. | Prof. Ho agrees.",
    "I met George W. Bush. | It rained.",
    "So did I. | Then we ate. | So did I. | Bob ate too.",
    "You can find it at N°. 1026.253. | That is where it is.",
    "Is it I? | No, it is A. Smith.",
    "Hepatitis B. | The next one is C. | The last.",
    "Sen. Bob Ray spoke to Lt. Col. Adams. | Both left.",
    "M. Dupont and St. Peter sat on Mt. Sinai. | They sang.",
    "King Jr. was there. | Ray Jr. | He left.",
    # Abbreviations inside a sentence, and at its end.
    "Fruit, e.g. Apples, i.e. Good food. | Eat.",
    "Apples, pears, etc. are good. | Apples, pears, etc. | The list goes on.",
    "Buy etc. 5 of them. | Buy etc. | Bob did.",
    "In the U.S. Ⓐ and so on. | Yes.",
    "The U.S. Army came. | It is in the U.S. | The army left.",
    "He lives in the U.K. | However, she does not.",
    "He has a Ph.D. in law. | She has a Ph.D. | They met.",
    "At 5 p.m. we left. | At 6 p.m. | We came back.",
    "Apple Inc. Magazine sold well. | It belongs to Apple Inc. | It grew.",
    "Acme Co., Ltd. | But not Smith & Co. and so on.",
    "No. 5 is alive. | I said no. | Then I left. | No. | I won't. | No. | Never say no. 7.",
    "See p. 12, pp. 3-4, Fig. 3, Vol. 2 and Sec. 4. | Then stop.",
    "Cf. Smith et al. (2020) and Lee et al. 2021. | By Lee et al. | We agree.",
    "On Jan. 5 it snowed. | It will in Dec. | Bob says so.",
    "It is 5 km. | Bob ran it in 2 hr. and 5 min. | Then he sat.",
    "Coke vs. Pepsi. | Both won.",
    "He works for the dept. of health. | Approx. 5 left.",
    "Maj.-Gen. Smith spoke. | And/or etc. | Bob.",
    "An antidisestablishmentarianist.com.x.co. | Bob left.",
    # Quotes and brackets.
    'He said "no." | She left.',
    'I said "no." and left. | "No." | Then "no. 5."',
    '"Stop!" she said. | "Why?" | He ran.',
    "“Go.” | “Where?” | ‘There.’ | «Là.» | »Dort.« | Ende.",
    "(He left.) | She stayed (in bed). | Good.",
    "It was (really!) good. | He (who?) said so.",
    "He was old (approx. 90). | (See above.) | [Or not.] | Then.",
    "“Dr. No,” he said. | “etc.” | The end.",
    '"Yes." - he said. | "Yes.", he said.',
    "**Note.** | Use *this.* | Then `that.` | End.",
    # Ellipses.
    "Wait... what? | Yes... | The end.",
    "Well… maybe. | Well… | Maybe.",
    "... and so on. | And on.",
    "He left .... | She did not . . . leave.",
    "Really...? | Yes...! | Fine.",
    'And then... "he left." | And then... | "He left."',
    # Enumerations and lists.
    "1. First | 2. Second".replace(" |", "\n|"),
    "Buy:\n| 1. Apples.\n| 2. Pears\n| 10) Plums",
    "To do:\n| - eat\n| * sleep\n| • work",
    "a. First one. | Then more.",
    "iv. Fourth. | 1.2. A heading. | 2024. | Then.",
    "- 3. Third. | \n- Fourth.",
    "A sum of\n42 and a range of\n10-20. | Done -\nor not.",
    # Empty lines.
    "A heading\n\n| A text\n \t\n| Another",
    "A heading\r\n\r\n| A text\r\rA\rB".replace("\r\rA", "\r\r| A"),
    "By Dr.\n\n| No",
    "Unfinished etc.\n\n| another \n x",
    # Other scripts.
    "好。| 「好。」| 再见！| 真的吗？！| 好",
    "他说：“你好。”| 然后走了。| （完。）| 他买了3.5公斤。",
    "これはペンです。| 本当？| はい！",
    "한국어 문장입니다. | 다음 문장입니다. | 끝",
    "كيف حالك؟ | أنا بخير. | شكرا!",
    "یہ ایک جملہ ہے۔ | دوسرا جملہ۔",
    "यह एक वाक्य है। | दूसरा वाक्य॥ | तीसरा",
    "שלום עולם. | מה שלומך? | טוב!",
    "ภาษาไทยไม่มีจุดจบประโยค แต่มีช่องว่าง",
    "Это дом. | А. С. Пушкин жил в нём. | Да!",
    "¿Qué? | ¡Hola! | ¿Y tú... | ¿Dónde?",
    "Αυτό είναι. | Ναι.",
    "ဒါက စာကြောင်း။| နောက်တစ်ခု။",
    "នេះជាប្រយោគ។ | មួយទៀត។",
    "ይህ ነው።| ሌላ።",
    "Սա է։ | Երկրորդը։",
]  # fmt: skip


def pieces(chunks: list[str]) -> list[str]:
    """Return all pieces for these chunks."""
    splitter = SentenceSplitter()
    return [p for chunk in chunks for p in splitter.feed(chunk)] + splitter.flush()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_sentences_end_where_a_reader_would_end_them(case: str, size: int) -> None:
    """A sentence ends where the table has a bar, whatever the chunks."""
    text = case.replace("| ", "").replace("|", "")
    expected = [piece.strip() for piece in case.split("|") if piece.strip()]
    assert pieces([text[at : at + size] for at in range(0, len(text), size)]) == expected


EARLY = [
    # Chunks; a bar after a chunk: with it a sentence is given.
    ["One", ".", " |", "Two", "!", "\n|", "Three"],
    ["One.", " Two.|", " |"],
    ["A heading", "\n", "\n|", "A text"],
    ["A heading", "\r", "\n", " ", "\r|", "\nA text"],
    ["好", "。", "」", "再|", "见", "！", " |"],
    ["क्या", "।", " |"],
    ["See 3", ".", "5 by Dr", ".", " ", "Who", ". |"],
    ["Wait", "...", " ", "w", "hat", "? |"],
    ["Wait", "...", " ", "“", "W|", "hat"],
    ['"No', '."', " ", "S|", "he"],
    ['"No', '."', " ", "s", "he. |"],
    ["apples etc", ".", " ", "(", "T|", "he"],
    ["apples etc", ".", " ", "a", "nd. |"],
    ["the U.S", ".", " ", "T", "h", "e", " |", "army"],
    ["the U.S", ".", " ", "T", "h", "ey", "'|", "ll"],
    ["the U.S", ".", " ", "A", "rmy", " came", ". |"],
    ["the U.S", ".", " ", "a", "rmy. |"],
    ["said no", ".", " ", "5", " or no", ".", " ", "f|"],
    ["by J", ".", " ", "I", ".", " Smith. |"],
    ["by J", ".", " ", "I", " |", "left"],
    ["Buy", "\n", "1", "0", ".", " |", "Apples", "\n", "-", "\t|", "Pears"],
    ["Buy", "\n", "1", "0", "0", "0", ". |", "Apples"],
    ["1", ".", " ", "First", ". |"],
    ["Why (really", "?)", " ", "W|", "hy"],
    ["What", "?", "!", '"', "\n", "W|"],
]


@pytest.mark.parametrize("marked", EARLY, ids="".join)
def test_a_sentence_comes_as_soon_as_it_is_certain(marked: list[str]) -> None:
    """A sentence is given with the chunk that makes it certain, no earlier and no later."""
    splitter = SentenceSplitter()
    given_at = [
        chunk + "|" * len(splitter.feed(chunk)) for chunk in (m.rstrip("|") for m in marked)
    ]
    assert given_at == marked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in the U.S. The", ["in the U.S.", "The"]),
        ("in the U.S. Th", ["in the U.S. Th"]),
        ("apples etc. ", ["apples etc."]),
        ("apples etc. (", ["apples etc. ("]),
        ("apples etc.\n2.", ["apples etc.\n2."]),
        ("apples\n2) ", ["apples", "2)"]),
        ("one.", ["one."]),
        ("好。", ["好。"]),
        ("  \n ", []),
        ("", []),
    ],
)
def test_the_end_of_the_text_decides_what_is_left(text: str, expected: list[str]) -> None:
    """At the end of the text the last word is whole, and what waits for more is decided."""
    assert pieces([text]) == expected
    assert pieces(list(text)) == expected


@pytest.mark.parametrize("gap", [255, 256, 257, 600])
def test_a_long_gap_ends_a_sentence_whatever_is_before_it(gap: int) -> None:
    """White space of 256 characters or more ends a sentence, so nothing is held back for ever."""
    text = "by Dr." + " " * gap + "No"
    assert pieces([text]) == pieces(list(text)) == ([text] if gap < 256 else ["by Dr.", "No"])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("char", list('.!…。")('))
def test_long_runs_of_marks_do_not_depend_on_chunks(char: str, count: int) -> None:
    """Chunks change nothing, however many marks, quotes or brackets follow each other."""
    for text in (f"a{char * count} B c", f"a.{char * count} b. C", f"a etc. {char * count}The b"):
        assert pieces([text]) == pieces(list(text))
        assert "".join("".join(pieces([text])).split()) == "".join(text.split())


WORDS = st.sampled_from(
    ["cat", "Dogs", "3.5", "x.org", "U.S. Army", "Dr. No", "don't", "(so)", "e.g. 5"]
)


@given(
    st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(".!?")), max_size=6)
)
def test_sentences_put_together_come_apart_again(written: list[tuple[list[str], str]]) -> None:
    """Sentences of plain words, numbers and abbreviations are found again."""
    sentences = [" ".join(["We", *words, "ran"]) + mark for words, mark in written]
    assert pieces(list(" ".join(sentences))) == sentences
