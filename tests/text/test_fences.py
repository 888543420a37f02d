"""`alto._text.json`: brackets are found in blocks of JSON, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._text.json import Fences

WORDS = st.text(alphabet="ab[]{}` \t", max_size=8).filter(
    lambda line: not line.lstrip().startswith("```")
)
JSON = st.sampled_from(["", "json", "JSON", " jsonl", "json5"])
OTHER = st.sampled_from(["python", "js", " text x", "c++"])


def found(chunks: list[str]) -> list[int]:
    """Return the places of brackets that are found in the whole text."""
    fences, places, seen = Fences(), [], 0
    for chunk in chunks:
        pos = 0
        while (pos := fences.find(chunk, pos)) < len(chunk):
            places.append(seen + pos)
            pos += 1
        seen += len(chunk)
    return places


@st.composite
def pages(draw: st.DrawFn) -> tuple[str, list[int]]:
    """Lines and blocks of code, and where the brackets in blocks of JSON are."""
    text, places = "", []
    for _ in range(draw(st.integers(0, 4))):
        text += "".join(f"{line}\n" for line in draw(st.lists(WORDS, max_size=3)))
        is_json = draw(st.booleans())
        fence = draw(st.sampled_from(["```", "````", "  ```"]))
        text += f"{fence}{draw(JSON if is_json else OTHER)}{draw(st.sampled_from(['', ' ']))}\n"
        for line in draw(st.lists(WORDS, max_size=3)):
            inside = line.replace("`", "") if is_json else line  # see the test behind this one
            places += [len(text) + at for at, this in enumerate(inside) if is_json and this in "[{"]
            text += f"{inside}\n"
        text += f"{fence}\n"
    return text, places


@given(pages(), st.integers(1, 5))
def test_brackets_are_those_in_blocks_of_json(case: tuple[str, list[int]], size: int) -> None:
    """Lines outside, and blocks of other languages, have none, however the text is cut."""
    text, places = case
    assert found([text]) == places
    assert found([text[at : at + size] for at in range(0, len(text), size)]) == places


@given(st.text(alphabet="`\n a[{json", max_size=40), st.integers(1, 4))
def test_chunks_do_not_matter(text: str, size: int) -> None:
    """The places depend only on the text, not on its chunks."""
    assert found([text[at : at + size] for at in range(0, len(text), size)]) == found([text])


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("```[", [3]),
        ("```json[", [7]),
        ("```[```[", [3]),  # in one line
        ("```\n[ ```\n[", [4]),
        ("```\n[ `` ` [", [4, 11]),  # no fence
        ("x ```\n[", []),  # a fence begins its line
        ("`` ```\n[", []),
        ("` ```\n[", []),
        ("\t```\r\n[\r\n```\r\n[", [6]),
        ("```py\n```json\n[", [14]),  # a fence with a word begins a block, though one is open
        ("```py\nx = '```'[\n```\n[", []),
        ("```py\n[\n```\n```\n[", [16]),
        ("````\n[\n````\n[", [5]),
        ("``` json\n[\n``` as [1] says\n[", [9]),  # a word behind the end is none of its own
        ("``` py\n[", []),
        ("```\n[\n``` so\n```\n[", [4, 17]),
        ("```json``` [", []),
        ("``` [", [4]),
        ("```" + "x" * 30 + "json\n[", []),  # no language has such a name
    ],
)
def test_fences(text: str, places: list[int]) -> None:
    """Blocks begin and end as models write them."""
    assert found([text]) == found(list(text)) == places
