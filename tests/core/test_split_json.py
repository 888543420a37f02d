"""`alto._core.split_json`: each value is given when its last character is there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._core.split_json import JsonSplitter
from alto.errors import OutputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet='ab"\\[]{},: \né日\U0001f600', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"]}\\', max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
SPACE = st.sampled_from(["", " ", "\n", "\r\n\t"])


def pieces(chunks: list[str]) -> tuple[list[object], str]:
    """Every value for these chunks, and the error."""
    splitter = JsonSplitter()
    values = [value for chunk in chunks for value in splitter.feed(chunk)] + splitter.flush()
    return values, str(splitter.error)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[object], str]:
    """A list, and a text with it somewhere."""
    values = draw(st.lists(VALUES, max_size=5))
    texts = [
        draw(SPACE) + json.dumps(value, ensure_ascii=draw(st.booleans())) + draw(SPACE)
        for value in values
    ]
    before = draw(st.sampled_from(["", "Here it is:\n```json\n", "\ufeff"]))
    after = draw(st.sampled_from(["", "\n```", "] and } so on", "[1"]))
    return values, f"{before}[{','.join(texts) or draw(SPACE)}]{after}"


@given(lists(), st.integers(1, 7))
def test_the_items_of_a_list_are_found_in_every_chunking(
    case: tuple[list[object], str], size: int
) -> None:
    """The values are those of the list, with anything around it and however it is cut."""
    values, text = case
    assert pieces([text]) == (values, "None")
    assert pieces([text[at : at + size] for at in range(0, len(text), size)]) == (values, "None")


@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3) | st.lists(VALUES, max_size=3), max_size=5),
       st.sampled_from(["", "\n", " , ", "\n```\nand then\n```json\n"]))  # fmt: skip
def test_objects_and_lists_behind_an_object_are_values(behind: list[object], between: str) -> None:
    """Behind an object everything in brackets is a value, whatever is between them."""
    text = between.join(map(json.dumps, [{"a": 1}, *behind]))
    assert pieces([text]) == pieces(list(text)) == ([{"a": 1}, *behind], "None")


@given(st.text(alphabet='[]{}",:\\ \n01e.-trunfalsN', max_size=25), st.integers(1, 4))
def test_what_is_no_json_fails_alike_in_every_chunking(text: str, size: int) -> None:
    """Values and error depend on the text alone, and no text makes it raise."""
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert pieces(chunks) == pieces([text])


@given(st.text(alphabet='[]{}",: 01e.-truen', max_size=20))
def test_a_list_is_accepted_where_python_accepts_it(text: str) -> None:
    """A text that begins with a bracket has an error exactly where the JSON of Python has one."""
    values, error = pieces([f"[{text}"])
    try:
        expected, _ = json.JSONDecoder().raw_decode(f"[{text}")
    except ValueError:
        assert error != "None"
    else:
        assert (values, error) == (expected, "None")


@pytest.mark.parametrize(
    ("text", "items", "error"),
    [
        ("[1, 2 3]", [1, 2], "expected ',' or ']' and found '3' after '2', at item 2; character 6 of the text"),
        ("[1,]", [1], "expected a value and found ']' after ',', at item 1; character 3 of the text"),
        ("x[,1]", [], "expected a value and found ',' after '[', at item 0; character 2 of the text"),
        ("[1:2]", [1], "expected ',' or ']' and found ':' after '1', at item 1; character 2 of the text"),
        ('[{"a":1}, {"b" 2}]', [{"a": 1}], "item 1 is no JSON (Expecting ':' delimiter), near '{\"b\" 2}'; character 15 of the text"),
        ("[1, NaN]", [1], "item 1 is no JSON (NaN is no JSON), near 'NaN'; character 4 of the text"),
        ("[see here]", [], "item 0 is no JSON (Expecting value), near 'see'; character 1 of the text"),
        ("{[}]", [], "item 0 is no JSON (Expecting property name enclosed in double quotes), near '{[}]'; character 1 of the text"),
        ('[1, "two', [1], "the text ended inside item 1; character 4 of the text"),
        ("[1, 2", [1], "the text ended inside item 1; character 4 of the text"),
        ("[1, ", [1], "the text ended before its list was closed, at item 1; character 4 of the text"),
        ("[", [], "the text ended before its list was closed, at item 0; character 1 of the text"),
        ("sorry, no", [], "there is no '[' and no '{' in the text; character 9 of the text"),
        ('{"a": 1} {"b"', [{"a": 1}], "the text ended inside item 1; character 9 of the text"),
        (" \n", [], "None"),
        ("", [], "None"),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(text: str, items: list[object], error: str) -> None:
    """A fault comes after the values before it, and says what was found, and where."""
    assert pieces([text]) == pieces(list(text)) == (items, error)


@pytest.mark.parametrize(
    ("item", "why"),
    [("[" * 200_000 + "]" * 200_000, "nested too deep"), ("9" * 5000, "Exceeds the limit")],
)
def test_what_python_cannot_parse_is_an_error(item: str, why: str) -> None:
    """Nesting and numbers beyond what Python takes are errors of the text."""
    items, error = pieces([f"[1, {item}]"])
    assert items == [1]
    assert why in error


def test_an_error_has_the_text_of_its_item_and_its_cause() -> None:
    """The error carries the item that is at fault, and nothing that comes later is read."""
    splitter = JsonSplitter()
    assert splitter.feed('[1, {"a"') == [1]
    assert splitter.error is None
    assert splitter.feed("}, 3]") == []
    error = splitter.error
    assert isinstance(error, OutputError)
    assert error.text == '{"a"}'
    assert isinstance(error.__cause__, json.JSONDecodeError)
    assert splitter.feed("[4]") == []
    assert splitter.flush() == []
    assert splitter.error is error


def test_a_value_comes_with_the_character_that_makes_it_certain() -> None:
    """A bracket or a quote closes a value at once; a number waits for the character behind it."""
    splitter = JsonSplitter()
    given_at = [
        (chunk, splitter.feed(chunk))
        for chunk in ["So: ", "[", '"a', "\\", '"', '"', ",", "{", '"b":[1', "]", "}", ",1", "2", " ",
                      ",tru", "e", "]", "[5]"]
    ]  # fmt: skip
    assert [(chunk, values) for chunk, values in given_at if values] == [
        ('"', ['a"']),
        ("}", [{"b": [1]}]),
        (" ", [12]),
        ("]", [True]),
    ]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_item_longer_than_the_limit_is_an_error(size: int) -> None:
    """The limit is one for each item, and the first that is longer ends it all, before it is whole."""
    text = '[12345, "abc", [1,2], {"a":10'
    splitter = JsonSplitter(5)
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    assert [value for part in parts for value in splitter.feed(part)] == [12345, "abc", [1, 2]]
    assert str(splitter.error).startswith("item 3 is longer than max_chars=5; ")
    assert splitter.error is not None
    assert splitter.error.text == '{"a":1'  # as far as it was read when it was too long


@pytest.mark.parametrize(
    "text", ["[", '"', "\\", '"a\\\\', "1", "{}", '{"a":[]}', " ", "]", ",", "x"]
)
def test_no_character_is_read_twice(text: str) -> None:
    """All steps together go over the text once, in however small chunks it comes."""
    read: list[int] = []

    class Counted(JsonSplitter):
        def _nested(self, text: str, pos: int, out: list[object]) -> int:
            read.append(super()._nested(text, pos, out) - pos)
            return pos + read[-1]

        def _scalar(self, text: str, pos: int, out: list[object]) -> int:
            read.append(super()._scalar(text, pos, out) - pos)
            return pos + read[-1]

        def _outside(self, text: str, pos: int) -> int:
            read.append(super()._outside(text, pos) - pos)
            return pos + read[-1]

        def _between(self, text: str, pos: int) -> int:
            read.append(super()._between(text, pos) - pos)
            return pos + read[-1]

    for start in ("", "[", '["', '{"a":['):
        read.clear()
        whole = start + text * 1000
        splitter = Counted()
        for chunk in whole:
            splitter.feed(chunk)
        assert sum(read) <= len(whole)
        assert len(read) <= 2 * len(whole)
