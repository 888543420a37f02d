"""`alto._text.json`: each value is given when its last character is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._text.json import JsonSplitter
from alto.errors import OutputError
from tests.text import json_reference

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet='ab"\\[]{},: \né日\U0001f600', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"]}\\', max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
SPACE = st.sampled_from(["", " ", "\n", "\r\n\t"])


CLAIMS = '[{"c": "a"}]'


def pieces(chunks: list[str], **options: Any) -> tuple[list[object], str]:
    """Return every value for these chunks, and the error."""
    splitter = JsonSplitter(**options)
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
    after = draw(st.sampled_from(["", "\n```", "] and } so on"]))
    return values, f"{before}[{','.join(texts) or draw(SPACE)}]{after}"


@given(lists(), st.integers(1, 7))
def test_the_items_of_a_list_are_found_in_every_chunking(
    case: tuple[list[object], str], size: int
) -> None:
    """The values are those of the list, with anything around it and however it is cut."""
    values, text = case
    assert pieces([text]) == (values, "None")
    assert pieces([text[at : at + size] for at in range(0, len(text), size)]) == (values, "None")


@given(st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5),
       st.sampled_from(["", "\n", " , ", "\n```\nand then\n```json\n"]))  # fmt: skip
def test_objects_behind_an_object_are_values(behind: list[object], between: str) -> None:
    """Behind an object every other is a value, whatever is between them."""
    text = between.join(map(json.dumps, [{"a": 1}, *behind]))
    assert pieces([text]) == pieces(list(text)) == ([{"a": 1}, *behind], "None")


BITS = [*'[]{},:"\\/*\n 01-', "//", "/*", "*/", ".5", "e9", "1e999", "true", "nul", "NaN", "a", "b", "u00e9", "'", '"a"',
        '{"a":', '{"a": {"b": [', "[1,", "\\u00e9", '"\\H', "\n```", "json", "]/"]  # fmt: skip
TEXTS = st.sampled_from(["", "[", '{"a":']).flatmap(
    lambda start: st.lists(st.sampled_from(BITS), max_size=25).map(
        lambda bits: start + "".join(bits)
    )
)


@st.composite
def chunked(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text with some JSON in it, and a way to cut it."""
    text = draw(TEXTS)
    edges = [0, *sorted(draw(st.lists(st.integers(0, len(text)), max_size=12))), len(text)]
    return text, [text[a:b] for a, b in pairwise(edges)]


@given(
    chunked(),
    st.fixed_dictionaries(
        {},
        optional={
            "lenient": st.booleans(),
            "first": st.booleans(),
            "after": st.sampled_from(["a", "]/", "[1,[1", "//"]),
            "fenced": st.booleans(),
            "field": st.sampled_from([("a",), ("a", "b"), ("",)]),
            "max_chars": st.integers(1, 6),
        },
    ),
)
def test_values_and_error_depend_on_the_text_alone(
    case: tuple[str, list[str]], options: dict[str, Any]
) -> None:
    """All chunkings give the same values and error, with any options, and no text makes the splitter raise."""
    text, chunks = case
    assert pieces(chunks, **options) == pieces([text], **options) == pieces(list(text), **options)


@given(
    TEXTS,
    st.booleans(),
    st.booleans(),
    st.none() | st.sampled_from(["a", "]/", "[1,[1", "//"]),
)
def test_values_are_those_of_the_reference(
    text: str, lenient: bool, first: bool, after: str | None
) -> None:
    """A text gives the values, and is at fault, exactly as the standard library reads it."""
    values, error = pieces(list(text), lenient=lenient, first=first, after=after)
    expected = json_reference.values(text, lenient=lenient, first=first, after=after)
    assert (values, error == "None") == expected


class Pairs(list[tuple[str, Any]]):
    """An object of the outermost two, with every field that was there."""


@given(TEXTS, st.sampled_from([("a",), ("a", "b")]))
def test_the_list_in_a_field_is_that_of_the_reference(text: str, field: tuple[str, ...]) -> None:
    """A field is read exactly where the text is one object that has it once, with a list in it."""
    values, error = pieces(list(text), field=field)
    at = next((at for at, this in enumerate(text) if this in "[{"), len(text))
    decoder = json.JSONDecoder(
        object_pairs_hook=Pairs,
        parse_constant=json_reference.STRICT.parse_constant,
        parse_float=json_reference.STRICT.parse_float,
    )
    try:
        found, end = decoder.raw_decode(text, at)
    except ValueError:
        assert error != "None"
        return
    valid = not any(this in "[{" for this in text[end:])
    for name in field:
        named = [value for key, value in found if key == name] if isinstance(found, Pairs) else []
        valid = valid and len(named) == 1
        found = named[0] if named else None
    if valid and isinstance(found, list) and not isinstance(found, Pairs):
        assert error == "None"
        assert json.dumps(values) == json.dumps(found)
    else:
        assert error != "None"


@given(TEXTS)
def test_lenient_accepts_whatever_strict_does(text: str) -> None:
    """Valid JSON has the same values in both modes."""
    values, error = pieces([text])
    if error == "None":
        assert pieces([text], lenient=True) == (values, error)


@pytest.mark.parametrize(
    ("text", "given_before", "found"),
    [
        (f"As said in [1], the claims are: {CLAIMS}", [1], "'[' follows the end of the list"),
        (f"- [ ] find claims\n{CLAIMS}", [], "'[' follows the end of the list"),
        (f"Not [] but {CLAIMS}", [], "'[' follows the end of the list"),
        ("[1, 2]\n[3, 4]\n", [1, 2], "'[' follows the end of the list"),
        ("[1, 2]\nas {you} said", [1, 2], "'{' follows the end of the list"),
        ('{"a": 1}\n[2]', [{"a": 1}], "'[' follows the end of the object"),
    ],
)
def test_another_list_is_an_error_that_says_what_to_do(
    text: str, given_before: list[object], found: str
) -> None:
    """If the list may be the wrong one, reading to the end raises an error."""
    values, error = pieces([text])
    assert values == given_before
    assert error.startswith(
        f"{found}, which may not be the one that was meant; skip what precedes the right one with "
        "after='</think>' or fenced=True, or ignore what follows with first=True; character "
    )
    assert pieces([text], first=True) == (given_before, "None")


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (f"<think>like [x, y]?</think>\n{CLAIMS}", {"after": "</think>"}, [{"c": "a"}]),
        (f"<think>[1]</think>\n{CLAIMS}\n</think>", {"after": "</think>"}, [{"c": "a"}]),
        (f"See [1] and [x].\n```json\n{CLAIMS}\n```\nSo [2] says.", {"fenced": True}, [{"c": "a"}]),
        (f"```python\nx = [3]\n```\n  ```JSON\n{CLAIMS}", {"fenced": True}, [{"c": "a"}]),
        ('[1]\n```\n{"a": 1}\n```\n{x}\n```jsonl\n{"a": 2}\n{"a": 3}```', {"fenced": True}, [{"a": n} for n in (1, 2, 3)]),
        ("<think>\n```\n[1]\n```\n</think>[2]\n```\n[3]\n```", {"after": "</think>", "fenced": True}, [3]),
        ('So: {"claims": [1, {"a": 2}]}.', {"field": ("claims",)}, [1, {"a": 2}]),
        ('{"n": [{"claims": [0]}], "x": {"claims": 1, "y.z": [2]}}', {"field": ("x", "y.z")}, [2]),
        ('[1] {"claims": [1]}', {"field": ("claims",), "after": "] "}, [1]),
        ('{"\\u0061": [1]} {', {"field": ("a",), "first": True}, [1]),
        ('{"a": 1} {"a": 2}', {"first": True}, [{"a": 1}]),
    ],
)  # fmt: skip
def test_options_say_where_the_json_is(
    text: str, options: dict[str, Any], expected: list[object]
) -> None:
    """The requested JSON is found after and between other brackets."""
    assert pieces([text], **options) == pieces(list(text), **options) == (expected, "None")


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        ("[1]", {"after": "</think>"}, "there is no '</think>' in the text, as after= says; character 3 of the text"),
        ("", {"after": "a"}, "there is no 'a' in the text, as after= says; character 0 of the text"),
        ("[1] a", {"after": "a"}, "there is no '[' and no '{' in the text behind 'a'; character 5 of the text"),
        ("[1]", {"fenced": True}, "there is no '[' and no '{' in a fenced block of JSON in the text; character 3 of the text"),
        (" ", {"fenced": True}, "there is no '[' and no '{' in a fenced block of JSON in the text; character 1 of the text"),
        ("", {"field": ("a",)}, "there is no '{' in the text; character 0 of the text"),
        ("x [1]", {"field": ("a", "b")}, "expected an object with the field 'a.b' and found a list; if this bracket belongs to the words before the JSON, use after='</think>' or fenced=True; character 2 of the text"),
        ('{"x": 1, "y": {"a": []}}', {"field": ("a",)}, "there is no field 'a'; its object has 'x', 'y'; character 23 of the text"),
        ('{"a": {}}', {"field": ("a", "b")}, "there is no field 'a.b'; its object has none; character 7 of the text"),
        ('{"a": {"b": []}}', {"field": ("a",)}, "expected a list in the field 'a' and found an object; character 6 of the text"),
        ('{"a": "[]"}', {"field": ("a", "b")}, "expected an object in the field 'a' and found a string; character 6 of the text"),
        ('{"a": null}', {"field": ("a",)}, "expected a list in the field 'a' and found a number or a word; character 6 of the text"),
        ('{"a": [], "a": []}', {"field": ("a",)}, "the field 'a' is there twice; character 15 of the text"),
        ('{"a": []', {"field": ("a",)}, "the text ended before its object was closed; character 8 of the text"),
        ('{"b": [1', {"field": ("a",)}, "the text ended inside the field 'b'; character 6 of the text"),
        ('{"b', {"field": ("a",)}, "the text ended inside the name of a field; character 1 of the text"),
        ('{"b": x}', {"field": ("a",)}, "the field 'b' is no JSON (Expecting value), near 'x'; character 6 of the text"),
        ('{"b" 1}', {"field": ("a",)}, "expected ':' and found '1' after '\"b\"'; character 5 of the text"),
        ('{"b":}', {"field": ("a",)}, "expected a value and found '}' after ':'; character 5 of the text"),
        ("{1: 2}", {"field": ("a",)}, "expected the name of a field and found '1' after '{'; character 1 of the text"),
        ('{"a": [] ]', {"field": ("a",)}, "expected ',' or '}' and found ']' after ']'; character 9 of the text"),
        ('{"a": [], }', {"field": ("a",)}, "expected the name of a field and found '}' after ','; lenient=True accepts it; character 10 of the text"),
    ],
)  # fmt: skip
def test_what_an_option_asks_for_must_be_there(
    text: str, options: dict[str, Any], error: str
) -> None:
    """Options that find nothing, or something else, are errors that say what there is."""
    assert pieces([text], **options) == pieces(list(text), **options) == ([], error)


def test_an_object_with_the_list_is_the_only_one() -> None:
    """A second object is an error there too, and what is dropped from the first has no limit."""
    text = '{"b": "long enough", "a": [1], }'
    options: dict[str, Any] = {"field": ("a",), "lenient": True, "max_chars": 1}
    assert pieces([text], **options) == ([1], "None")
    values, error = pieces([text + ' {"a": [2]}'], **options)
    assert values == [1]
    assert error.startswith("'{' follows the end of the object, which may not be the one")


@pytest.mark.parametrize("before", [r'"\H\H", "it\'s",', "/* * */ //\n", r'"\'\'\'\'\'",'])
@pytest.mark.parametrize("fault", ["2 3", "x"])
def test_lenient_says_where_a_fault_is(before: str, fault: str) -> None:
    """A fault behind others that are accepted is found at its own place in the text."""
    text = f"[[{before} {fault}]]"
    at = text.index(fault) + (2 if fault == "2 3" else 0)
    _, error = pieces([text], lenient=True)
    assert error.endswith(f"; character {at} of the text")
    assert pieces(list(text), lenient=True)[1] == error


def test_a_message_has_some_names_of_many() -> None:
    """An object with many fields does not make a message of many lines."""
    text = json.dumps({f"f{number}": number for number in range(1000)})
    _, error = pieces([text], field=("a",))
    assert "its object has 'f0', 'f1', " in error
    assert "'f9', …; character" in error


def test_items_of_a_field_leave_as_they_close() -> None:
    """The list in a field is streamed as one that stands by itself."""
    splitter = JsonSplitter(field=("a", "b"))
    chunks = ['{"x": [1], "a": {"b": [1', ", ", '"', 'y"', "]", ', "c": [3]}', "}"]
    assert [splitter.feed(chunk) for chunk in chunks] == [[], [1], [], ["y"], [], [], []]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["line1\nline2\t\r"]', ["line1\nline2\t\r"]),
        ('[{"a": "x\ny"}]', [{"a": "x\ny"}]),
        (r'["App\Http", {"a": "C:\users"}]', ["App\\Http", {"a": "C:\\users"}]),
        (r'["It\'s", "\x41\u00e9\u00"]', ["It's", "\\x41é\\u00"]),
        ('[1, [2, 3, ], {"a": 1,\n},]', [1, [2, 3], {"a": 1}]),
        ("[ // the first, isn't it? [\n 1, /* { */ 2 /**/] // end", [1, 2]),
        ('[{"a": 1, // "so\n "b": "http://x"}]', [{"a": 1, "b": "http://x"}]),
        ('[{"a": [1, /* it\'s ] */ 2 /*,*/, ], "b": "/*" /**/}]', [{"a": [1, 2], "b": "/*"}]),
    ],
)  # fmt: skip
def test_lenient_accepts_what_models_write(text: str, expected: list[object]) -> None:
    """Each fault is accepted if it is asked for, and where it is not the message says how."""
    assert pieces([text], lenient=True) == pieces(list(text), lenient=True) == (expected, "None")
    assert "; lenient=True accepts it; character" in pieces([text])[1]


@pytest.mark.parametrize("text", ["[,]", "[1,,]", "[[,]]", "[{,}]", "[[1,,]]", "[1 2]", "['a']", "[{a: 1}]", "[NaN]",
                                  "[1e999]", "[[-1e999]]", "[1 / 2]", "[1 /, 2]", "[/ 1]", "[1 /* 2]", "[01]", "[+1]", "[TRUE]"])  # fmt: skip
def test_lenient_is_strict_otherwise(text: str) -> None:
    """Nothing else is accepted, and no message suggests it."""
    assert pieces([text], lenient=True)[1] != "None"
    error = pieces([text])[1]
    assert error != "None"
    assert "lenient" not in error or "/" in text


@pytest.mark.parametrize(
    ("text", "items", "error"),
    [
        ("[1, 2 3]", [1, 2], "expected ',' or ']' and found '3' after '2', at item 2; character 6 of the text"),
        ("[1,]", [1], "expected a value and found ']' after ',', at item 1; lenient=True accepts it; character 3 of the text"),
        ("[,1]", [], "expected a value and found ',' after '[', at item 0; character 1 of the text"),
        ("x[,1]", [], "expected a value and found ',' after '[', at item 0; if this bracket belongs to the words before the JSON, use after='</think>' or fenced=True; character 2 of the text"),
        ("x[y]", [], "item 0 is no JSON (Expecting value), near 'y'; if this bracket belongs to the words before the JSON, use after='</think>' or fenced=True; character 2 of the text"),
        ("x[1,]y", [1], "expected a value and found ']' after ',', at item 1; lenient=True accepts it; character 4 of the text"),
        ("x[1,:]", [1], "expected a value and found ':' after ',', at item 1; character 4 of the text"),
        ('["a\nb"]', [], "item 0 is no JSON (Invalid control character at), near '\"a\\nb\"'; lenient=True accepts it; character 3 of the text"),
        ("[1, 1e999]", [1], "item 1 is no JSON (1e999 is too large for a float), near '1e999'; character 4 of the text"),
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
    assert splitter.error.text == '{"a":1'  # the text that was read when it became too long


@pytest.mark.parametrize(
    "text", ["[", '"', "\\", '"a\\\\', "1", "{}", '{"a":[]}', " ", "]", ",", "x", "/", "/*", "*", "//\n", "`",
             "```\n", '"a":1,', "\n"]
)  # fmt: skip
@pytest.mark.parametrize(
    "options", [{}, {"lenient": True}, {"fenced": True}, {"field": ("a",)}, {"after": "[1"}]
)
def test_no_character_is_read_twice(text: str, options: dict[str, Any]) -> None:
    """All steps together go over the text once, in however small chunks it comes."""
    read: list[int] = []

    def counted(name: str) -> Callable[..., int]:
        step = getattr(JsonSplitter, name)

        def count(self: JsonSplitter, text: str, pos: int, *out: object) -> int:
            read.append(step(self, text, pos, *out) - pos)
            return pos + read[-1]

        return count

    steps = {name: counted(name) for name in ("_nested", "_scalar", "_outside", "_between")}
    splitting = type("Counted", (JsonSplitter,), steps)
    for start in ("", "[", '["', '{"a":[', "```[", "[//", '[{"/*', "[1,", "[1]"):
        for size in (1, 1000):
            read.clear()
            whole = start + text * 1000
            splitter = splitting(**options)
            for at in range(0, len(whole), size):
                splitter.feed(whole[at : at + size])
            assert sum(read) <= len(whole)
            assert len(read) <= 2 * len(whole)
