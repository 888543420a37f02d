# ruff: noqa: D101  # the types that are asked for
from __future__ import annotations

import asyncio
import dataclasses
import enum
import gc
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import date
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto._current_call import Cleanup, current_call
from alto._llm.schema import TypedReader, schema_of
from alto.errors import (
    Closed,
    GenerationFailed,
    InvalidRequest,
    OutputError,
    OutputTruncated,
)
from alto.llm import LLM
from alto.model import Chunk, EngineStatistics, Origin, Usage
from alto.testing.scripted import Line, Scripted

msgspec = pytest.importorskip("msgspec")
ijson = pytest.importorskip("ijson")


@attrs.frozen
class Claim:
    text: str
    sure: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))


@dataclasses.dataclass
class Point:
    x: int
    y: int | None = None


class Record(msgspec.Struct):
    name: str
    points: list[Point] = msgspec.field(default_factory=list)


class Movie(TypedDict):
    title: str
    year: int


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Plain:
    def __init__(self, x: int):
        self.x = x


@attrs.frozen
class Broken:
    x: Missing  # noqa: F821  # what is tested


@attrs.define
class _Call:
    """Stand-in for a running stage call."""

    cleanup: Cleanup = attrs.Factory(Cleanup)
    cancelled: bool = False
    priority: int = 0
    deadline: float | None = None
    origin: Origin | None = None

    def generation_started(self, engine):
        return 1

    def generation_ended(self, number, engine, usage, error):
        pass


@contextmanager
def _inside_a_call():
    call = _Call()
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)


class Talker:
    """An engine that knows no constraints and says one text, in given pieces, a second each."""

    name = "talker"

    def __init__(self, *pieces, reason="stop"):
        self.pieces = pieces
        self.reason = reason
        self.said = 0
        self.closed = False

    async def generate(self, request):
        """Say it."""
        try:
            for number, piece in enumerate(self.pieces, 1):
                await asyncio.sleep(1)
                self.said = number
                reason = self.reason if number == len(self.pieces) else None
                usage = Usage(prompt_tokens=1, output_tokens=number) if reason else None
                yield Chunk(text=piece, finish_reason=reason, usage=usage)
        finally:
            self.closed = True


def _ask(engine, schema, **options):
    return LLM(engine).generate("p", schema=schema, **options)


async def _value(text, schema, **options):
    """The value of a text that comes letter by letter."""
    return await _ask(Talker(*(text or [""])), schema, **options).value()


async def _timed_items(generation):
    loop = asyncio.get_running_loop()
    return [(loop.time(), item) async for item in generation.items()]


class TestTypes:
    """Types that are accepted, and their values."""

    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            (Claim, '{"text": "a"}', Claim("a")),
            (list[Claim], '[{"text": "a", "sure": 0}]', [Claim("a", 0.0)]),
            (Point, '{"x": 1, "y": 2}', Point(1, 2)),
            (Record, '{"name": "n", "points": [{"x": 1}]}', Record("n", [Point(1)])),
            (Movie, '{"title": "t", "year": 1}', {"title": "t", "year": 1}),
            (Pair, '[1, "a"]', Pair(1, "a")),
            (Colour, '"red"', Colour.RED),
            (Literal["a", "b"], '"b"', "b"),
            (int, "12", 12),
            (float, "2", 2.0),
            (float, "-1.25e2", -125.0),
            (str, '"a\\"\\u00e9"', 'a"é'),
            (bool, "true", True),
            (type(None), "null", None),
            (Point | None, "null", None),
            (int | str, '"a"', "a"),
            (dict[str, int], '{"a": 1}', {"a": 1}),
            (dict[int, str], '{"1": "a"}', {1: "a"}),
            (dict[str, list[Claim]], '{"a": [{"text": "b"}]}', {"a": [Claim("b")]}),
            (list, '[1, "a"]', [1, "a"]),
            (list[list[int]], "[[1], [], [2, 3]]", [[1], [], [2, 3]]),
            (list[int], f"[{10**30}]", [10**30]),
            (list[Any], "[1e400, 0.1]", [float("inf"), 0.1]),
            (date, '"2024-02-29"', date(2024, 2, 29)),
            (Annotated[list[int], msgspec.Meta(max_length=2)], "[1, 2]", [1, 2]),
        ],
        ids=str,
    )
    async def test_a_value_of_every_kind(self, kind, text, value):
        """The JSON of a type becomes a value of it."""
        got = await _value(f" {text}\n", kind)
        assert got == value
        assert type(got) is type(value)

    async def test_the_engine_gets_the_types_json_schema(self):
        """The output is constrained by the type's schema, as a library makes it."""
        async with Scripted(lambda _: ["[1]"]) as engine:
            await _ask(engine, list[int]).value()
        assert engine.requests[0].json_schema == msgspec.json.schema(list[int])

    def test_a_model_may_write_no_other_members(self):
        """Every class is closed, at any depth, and types that are open stay open."""
        kind = attrs.make_class(
            "Kind", {"properties": attrs.field(type=dict[str, Movie], factory=dict)}
        )
        found = schema_of(list[kind]).json
        # Newer versions of msgspec say what a factory gives, older ones do not.
        found["$defs"]["Kind"]["properties"]["properties"].pop("default", None)
        assert found == {
            "type": "array",
            "items": {"$ref": "#/$defs/Kind"},
            "$defs": {
                "Kind": {
                    "title": "Kind",
                    "type": "object",
                    "properties": {
                        "properties": {
                            "type": "object",
                            "additionalProperties": {"$ref": "#/$defs/Movie"},
                        }
                    },
                    "required": [],
                    "additionalProperties": False,
                },
                "Movie": {
                    "title": "Movie",
                    "type": "object",
                    "properties": {"title": {"type": "string"}, "year": {"type": "integer"}},
                    "required": ["title", "year"],
                    "additionalProperties": False,
                },
            },
        }

    def test_a_default_is_no_schema(self):
        """A default is passed on unchanged."""
        kind = msgspec.defstruct("Kind", [("a", tuple, ({"properties": {}},))])
        found = schema_of(kind).json["$defs"]["Kind"]["properties"]["a"]
        assert found["default"] == ({"properties": {}},)

    @pytest.mark.parametrize(
        ("kind", "named"),
        [
            (Plain, "schema=Plain has no JSON schema: TypeError: type .* not supported"),
            (list[Plain], r"schema=list\[Plain\]"),
            (
                Claim | Point,
                r"schema=Claim \| Point has no .* Type unions may not contain more than one",
            ),
            (Broken, "schema=Broken .* NameError: name 'Missing' is not defined, at the top level"),
            (complex, "schema=complex"),
            (5, "schema=5"),
            ("Claim", "schema='Claim'"),
            ({"type": "string"}, "schema={'type': 'string'}"),
        ],
        ids=str,
    )
    def test_a_bad_type_is_refused_at_once(self, kind, named):
        """generate() itself names the type, the reason and what is accepted."""
        with pytest.raises(InvalidRequest, match=named + ".*; accepted are classes of attrs, data"):
            _ask(Scripted([]), kind)

    @pytest.mark.parametrize("options", [{"choice": ["a"]}, {"regex": "a"}, {"json_schema": {}}])
    def test_a_second_constraint_is_refused(self, options):
        """A type is a constraint, and there is one at most."""
        with pytest.raises(InvalidRequest, match="one constraint at most"):
            _ask(Scripted([]), int, **options)

    @pytest.mark.parametrize("library", ["msgspec", "ijson"])
    def test_a_missing_library_is_named(self, library, monkeypatch):
        """Without the extra, the error says how to install it."""
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(InvalidRequest, match=r"pip install 'alto-llm\[typed\]'"):
            _ask(Scripted([]), int)

    def test_an_unhashable_type_works(self):
        """A type with metadata that has no hash is built anew each time."""
        assert schema_of(Annotated[int, {"a": 1}]).name == "int"

    @pytest.mark.slow
    def test_importing_alto_imports_none_of_the_libraries(self):
        """They are imported at the first use of `schema=`."""
        program = (
            "import sys, alto; sys.exit(bool({'msgspec','ijson','pydantic'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestPydantic:
    """Types with something of pydantic in them."""

    @pytest.fixture(autouse=True)
    def pydantic(self):
        """Only where it is installed."""
        return pytest.importorskip("pydantic")

    async def test_models_are_read_by_pydantic(self, pydantic):
        """A model, a list of them, and one inside a dataclass: its own schema and rules."""

        class Person(pydantic.BaseModel):
            model_config = pydantic.ConfigDict(strict=True)
            born: date
            age: pydantic.PositiveInt = 1

        team = dataclasses.make_dataclass("Team", [("people", list[Person])])
        text = '{"born": "2000-01-02", "age": 3}'
        person = Person(born=date(2000, 1, 2), age=3)
        assert await _value(text, Person) == person
        assert await _value(f"[{text}]", list[Person]) == [person]
        assert await _value(f'{{"people": [{text}]}}', team) == team([person])
        schema = pydantic.TypeAdapter(list[Person]).json_schema()
        schema["$defs"]["Person"]["additionalProperties"] = False
        assert schema_of(list[Person]).json == schema
        with pytest.raises(OutputError, match=r"does not fit list\[Person\]: .* at `\$\[1\].age`"):
            await _value(f'[{text}, {{"born": "2000-01-02", "age": -3}}]', list[Person])

    async def test_its_fields_count_without_a_model(self, pydantic):
        """An annotation of pydantic's is enough, and so is a dataclass of its own."""
        kind = list[Annotated[int, pydantic.Field(gt=0)]]
        with pytest.raises(OutputError, match=r"at `\$\[1\]`"):
            await _value("[1, 0]", kind)

        @pydantic.dataclasses.dataclass
        class Box:
            size: pydantic.PositiveInt

        with pytest.raises(OutputError, match=r"at `\$.size`"):
            await _value('{"size": 0}', Box)

    async def test_a_model_in_an_attrs_class_is_refused(self, pydantic):
        """No library reads both."""

        class Person(pydantic.BaseModel):
            age: int

        team = attrs.make_class("Team", {"lead": attrs.field(type=Person)})
        with pytest.raises(InvalidRequest, match="schema=Team has no JSON schema"):
            _ask(Scripted([]), team)


class TestItems:
    """Each item the moment that it is whole."""

    async def test_an_item_comes_while_the_next_is_decoded(self):
        """Times are those of the chunks that close an object."""
        engine = Talker('[{"te', 'xt": "a"', '}, {"text": ', '"b"}', ', {"text": "c"}]', "\n")
        got = await _timed_items(_ask(engine, list[Claim]))
        assert got == [(3.0, Claim("a")), (4.0, Claim("b")), (5.0, Claim("c"))]
        assert asyncio.get_running_loop().time() == 6.0

    async def test_several_items_may_be_in_one_chunk(self):
        """They come at once and in order."""
        assert await _timed_items(_ask(Talker('["a", "b"', ', "c"]'), list[str])) == [
            (1.0, "a"),
            (1.0, "b"),
            (2.0, "c"),
        ]

    async def test_an_empty_list_has_no_items(self):
        """Its value is an empty list."""
        assert await _timed_items(_ask(Talker("[", "]"), list[Claim])) == []
        assert await _value("[]", list[Claim]) == []

    @pytest.mark.parametrize(
        ("kind", "name", "advice"),
        [
            (Claim, "Claim", "list[Claim]"),
            (dict[str, int], "dict[str, int]", "list[dict[str, int]]"),
            (str, "str", "list[str]"),
            (tuple[int, ...], "tuple[int, ...]", "list[int]"),
            (Sequence[int | str], "Sequence[int | str]", "list[int | str]"),
            (set[int], "set[int]", "list[int]"),
            (frozenset, "frozenset", "list"),
            (tuple[int, str], "tuple[int, str]", "list[tuple[int, str]]"),
            (Pair, "Pair", "list[Pair]"),
        ],
    )
    def test_only_lists_have_items(self, kind, name, advice):
        """Another type is refused at once, with the list to ask for."""
        said = f"this generation gives {name}; use value(), or ask for schema={advice}"
        with pytest.raises(InvalidRequest, match=f"{re.escape(said)}$"):
            _ask(Scripted([]), kind).items()

    def test_items_are_of_one_sample(self):
        """With several samples it is refused at once, and so is a value."""
        generation = _ask(Scripted([]), list[int], n=2, temperature=1.0)
        with pytest.raises(InvalidRequest, match=r"items\(\) is for one sample"):
            generation.items()

    async def test_a_value_is_of_one_sample(self):
        """With several samples the texts of all are to be had."""
        async with Scripted([Line("[1]", samples=["[2]"])]) as engine:
            generation = _ask(engine, list[int], n=2, temperature=1.0)
            with pytest.raises(InvalidRequest, match=r"value\(\) is for one sample"):
                await generation.value()
            assert [sample.text for sample in await generation.samples()] == ["[1]", "[2]"]

    @pytest.mark.parametrize("first", ["items", "value", "chunks", "aclose"])
    @pytest.mark.parametrize("then", ["items", "value", "text"])
    async def test_a_generation_is_used_once(self, first, then):
        """A second use raises."""
        generation = _ask(Talker("[]"), list[int])
        await _use(generation, first)
        with pytest.raises(Closed, match="used once"):
            await _use(generation, then)

    async def test_chunks_and_text_are_there_too(self):
        """A typed generation can be used as any other."""
        assert [c.text async for c in _ask(Talker("[1", "]"), list[int])] == ["[1", "]"]
        assert await _ask(Talker("[1", "]"), list[int]).text() == "[1]"

    @pytest.mark.parametrize("how", ["items", "value"])
    async def test_usage_is_there_at_the_end(self, how):
        """After the last item, or the value, the generation has its usage and its reason."""
        generation = _ask(Talker("[1", "]"), list[int])
        await _use(generation, how)
        assert generation.usage == Usage(prompt_tokens=1, output_tokens=2)
        assert generation.finish_reason == "stop"
        assert repr(generation) == "<TypedGeneration on 'talker', complete>"

    async def test_it_is_a_stage_like_any(self):
        """A stage yields items as they close, and the next stage works on the first meanwhile."""

        @alto.stage
        async def claims(question: str, *, llm: alto.LLM) -> alto.stream.AsyncIterator[Claim]:
            async for claim in llm.generate(question, schema=list[Claim]).items():
                yield claim

        @alto.stage
        async def judge(claim: Claim) -> tuple[float, str]:
            await asyncio.sleep(0.5)
            return asyncio.get_running_loop().time(), claim.text

        @alto.pipeline
        def check(question: alto.Stream[str]) -> alto.Stream[tuple[float, str]]:
            return judge(claims(question))

        script = ['[{"text": "a"}', ', {"text": "b"}', "]"]
        engine = Scripted(lambda _: script, delay=1.0)
        async with check.open(llm=engine) as app:
            assert [got async for got in app.stream("q")] == [(1.5, "a"), (2.5, "b")]
        assert engine.requests[0].origin.stage == "check.claims"


class TestLeaving:
    """Generations that are left end in the engine."""

    @pytest.mark.parametrize("delay", [0.0, 1.0])
    async def test_a_stage_that_takes_one_item_aborts_the_rest(self, delay):
        """After the call has ended nothing of it is left in the engine."""

        @alto.stage
        async def first(question: str, *, llm: alto.LLM) -> Claim:
            async for claim in llm.generate(question, schema=list[Claim]).items():
                return claim
            raise AssertionError

        @alto.pipeline
        def ask(question: alto.Stream[str]) -> alto.Stream[Claim]:
            return first(question)

        engine = Scripted(lambda _: ['[{"text": "a"}', ', {"text": "b"}', "]"], delay=delay)
        async with ask.open(llm=engine) as app:
            assert await app.run("q") == [Claim("a")]
            assert asyncio.get_running_loop().time() == delay
            assert engine.statistics() == EngineStatistics()
            assert engine.statistics().aborted == (delay > 0)

    async def test_break_aborts_at_the_next_checkpoint(self):
        """Inside of a call the engine's generator goes to the call's cleanup."""
        async with Scripted(lambda _: ["[1, ", "2, ", "3]"], delay=1.0) as engine:
            with _inside_a_call() as call:
                async for item in _ask(engine, list[int]).items():
                    assert item == 1
                    assert not call.cleanup.abandoned
                    break
                assert call.cleanup.abandoned
                assert engine.statistics().running == 1
                await call.cleanup.close_abandoned()
                assert not call.cleanup._live
                assert not call.cleanup.abandoned
            assert engine.statistics() == EngineStatistics()
            assert engine.statistics().aborted == 1

    async def test_a_loop_that_ends_leaves_nothing_to_clean(self):
        """Nor does one that fails."""
        with _inside_a_call() as call:
            await _use(_ask(Talker("[1]"), list[int]), "items")
            with pytest.raises(OutputError):
                await _use(_ask(Talker("[x", "]"), list[int]), "items")
            gc.collect()  # the error's traceback held the loop
            assert not call.cleanup._live
            assert not call.cleanup.abandoned

    async def test_a_with_block_closes(self):
        """On the way out of the block the engine is free."""
        async with Scripted(lambda _: ["[1, ", "2, ", "3]"], delay=1.0) as engine:
            async with _ask(engine, list[int]) as generation:
                async for _ in generation.items():
                    break
            assert engine.statistics() == EngineStatistics()

    @pytest.mark.parametrize("how", ["items", "value"])
    @pytest.mark.parametrize("moment", [0.5, 1.5, 2.5])
    async def test_cancelling_aborts(self, how, moment):
        """Nothing is left running, at whatever point the reader is cancelled."""
        async with Scripted(lambda _: ["[1, ", "2, ", "3]"], delay=1.0) as engine:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(_use(_ask(engine, list[int]), how))
                await asyncio.sleep(moment)
                task.cancel()
            del task  # it keeps the iterator, in its traceback
            await asyncio.sleep(0.1)
            assert engine.statistics() == EngineStatistics()
            assert engine.statistics().aborted == 1

    @pytest.mark.parametrize("backend", ["python", "yajl2_c"])
    async def test_a_parser_that_is_left_says_nothing(self, backend, monkeypatch):
        """None of ijson's parsers raises an unraisable error when it is dropped half-way."""
        try:
            found = ijson.get_backend(backend)
        except ImportError:
            pytest.skip("not built here")
        monkeypatch.setattr(ijson, "items_coro", found.items_coro)
        complaints = []
        monkeypatch.setattr(sys, "unraisablehook", complaints.append)
        async for item in _ask(Talker('["a"', ', "b', '"]'), list[str]).items():
            assert item == "a"
            break
        gc.collect()
        assert complaints == []
        assert await _value('["a"]', list[str]) == ["a"]

    async def test_items_have_one_reader_at_a_time(self):
        """A second task is refused, and the first gets everything."""
        items = _ask(Talker('["a"', ', "b"]'), list[str]).items()
        first = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task waits"):
            await anext(items)
        assert [await first, *[item async for item in items]] == ["a", "b"]


class TestFaults:
    """Output that is not what was asked for."""

    @pytest.mark.parametrize(
        ("kind", "text", "items"),
        [
            (list[Claim], '[{"text": "a"}, {"text": "b', (Claim("a"),)),
            (list[int], "[1, 23", (1,)),
            (list[int], "[1, 23,", (1, 23)),
            (list[str], '["a"', ("a",)),
            (list[str], "", ()),
            (list[str], " ", ()),
            (Claim, '{"text": "a"', ()),
            (int, "12", ()),
            (bool, "tru", ()),
        ],
        ids=str,
    )
    async def test_a_cut_output_carries_what_was_whole(self, kind, text, items):
        """The error has the text, the limit and the whole items; a number at the end is none."""
        engine = Talker(*text[:-1], text[-1:], reason="length")
        with pytest.raises(OutputTruncated, match=r"max_tokens=99 .* raise max_tokens") as caught:
            await _ask(engine, kind, max_tokens=99).value()
        assert (caught.value.text, caught.value.items) == (text, items)
        assert caught.value.max_tokens == 99

    async def test_items_come_before_the_error(self):
        """Complete items are given, then the error is raised, and then the iteration has ended."""
        generation = _ask(Talker('["a", ', '"b", "c', reason="length"), list[str])
        items, got = generation.items(), []
        with pytest.raises(OutputTruncated):
            async for item in items:
                got.append(item)
        assert got == ["a", "b"]
        assert [item async for item in items] == []
        assert generation.finish_reason == "length"

    @pytest.mark.parametrize("text", ["[1, 2]", '{"a": 1}', '"a"', "true"])
    async def test_what_is_whole_is_not_cut(self, text):
        """An output that ends with its last token is no fault."""
        kind = type(json.loads(text))
        assert await _ask(Talker(text, reason="length"), kind).value() == json.loads(text)

    @pytest.mark.parametrize(
        ("kind", "text", "message"),
        [
            (
                list[Claim],
                '[{"text": 1}]',
                r"does not fit list\[Claim\]: Expected `str`.*`\$\[0\].text`",
            ),
            (list[Claim], '[{"text": "a"}, {}]', r"missing required field `text` - at `\$\[1\]`"),
            (list[Claim], '[{"text": "a", "sure": -1}]', r"'sure' must be >= 0.*at `\$\[0\]`"),
            (list[Point], "[7]", r"Expected `object`, got `int` - at `\$\[0\]`"),
            (Record, '{"name": "n", "points": [{"x": "1"}]}', r"at `\$.points\[0\].x`"),
            (int, '"1"', r"does not fit int: Expected `int`, got `str` - at `\$`"),
            (list[int], "[1.5]", "Expected `int`, got `float`"),
            (list[int], '{"item": [1]}', "is no JSON list, it begins with"),
            (list[int], "Sure! [1]", "is no JSON list, it begins with 'S'"),
            (Claim, "Sure!", r"is no JSON \(.*\), in 'S'"),
            (list[int], "[1] and", "is no JSON .*trailing garbage.*"),
            (Claim, '{"text": "a"} {', "is no JSON"),
            (list[int], "[1, 2", r"ended before its JSON was complete, with '\[1, 2'"),
            (list[int], "", "ended before its JSON was complete"),
            (Claim, '{"text": "a', "ended before its JSON was complete"),
            (
                Annotated[list[int], msgspec.Meta(max_length=1)],
                "[1, 2]",
                "of length <= 1 - at `[$]`",
            ),
        ],
        ids=str,
    )
    async def test_the_error_says_what_is_wrong_and_where(self, kind, text, message):
        """An engine without constraints may say anything."""
        with pytest.raises(OutputError, match=message) as caught:
            await _value(text, kind)
        assert not isinstance(caught.value, OutputTruncated)
        assert text.startswith(caught.value.text)

    async def test_a_fault_ends_the_generation_where_it_shows(self):
        """Later text is not decoded, and the items before the fault were given."""
        engine = Talker("[1, ", '"a", ', "3, ", "4]")
        items, got = _ask(engine, list[int]).items(), []
        with pytest.raises(OutputError) as caught:
            async for item in items:
                got.append(item)
        assert (got, caught.value.items, caught.value.text) == ([1], (1,), '[1, "a", ')
        assert (engine.said, engine.closed) == (2, True)

    async def test_items_of_the_faulty_chunk_come_first(self):
        """An error waits for the items that were whole before it in the same chunk."""
        got = []
        with pytest.raises(OutputError):
            async for item in _ask(Talker('["a", "b", 3]'), list[str]).items():
                got.append(item)
        assert got == ["a", "b"]

    async def test_the_engines_error_arrives_as_it_is(self):
        """After the items that were there."""
        async with Scripted([Line(["[1,", "2", "]"], fail_at=1)]) as engine:
            got = []
            with pytest.raises(GenerationFailed, match="scripted failure"):
                async for item in _ask(engine, list[int]).items():
                    got.append(item)
            assert got == [1]

    async def test_an_end_without_a_reason_is_a_failure(self):
        """A missing finish reason is an error, also after complete JSON."""
        with pytest.raises(GenerationFailed, match="without a finish reason"):
            await _ask(Talker("[1]", reason=None), list[int]).value()

    async def test_a_class_that_fails_as_no_type_may_ends_the_generation(self):
        """Its error arrives as it is, and nothing runs on."""

        @attrs.frozen
        class Bomb:
            x: int

            def __attrs_post_init__(self):
                raise ZeroDivisionError

        engine = Talker('[{"x": 1}', ', {"x": 2}]')
        items = _ask(engine, list[Bomb]).items()
        with pytest.raises(ZeroDivisionError):
            await anext(items)
        assert (engine.said, engine.closed) == (1, True)
        assert [item async for item in items] == []


async def _use(generation, how):
    if how == "items":
        async for _ in generation.items():
            pass
    elif how == "chunks":
        async for _ in generation:
            pass
    else:
        await getattr(generation, how)()


# ------------------------------------------------------------------------------ in any chunking

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
SPACE = st.sampled_from(["", " ", "\n", "\t "])
KINDS = {
    list[Any]: VALUES,
    list[int]: st.integers(),
    list[float]: st.floats(allow_nan=False, allow_infinity=False),
    list[str]: TEXTS,
    list[bool | None]: st.booleans() | st.none(),
    list[list[str]]: st.lists(TEXTS, max_size=3),
    list[dict[str, int]]: st.dictionaries(TEXTS, st.integers(), max_size=3),
}


@st.composite
def outputs(draw):
    """A type, the JSON of a list of it, where each item is known, and the JSON in pieces."""
    kind = draw(st.sampled_from(list(KINDS)))
    values = draw(st.lists(KINDS[kind], max_size=5))
    escaped, text, known = draw(st.booleans()), draw(SPACE) + "[" + draw(SPACE), []
    for number, value in enumerate(values):
        text += draw(SPACE) + json.dumps(value, ensure_ascii=escaped)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        known.append(len(text) + is_number)  # how much text it takes to know this item
        text += draw(SPACE) + ("," if number < len(values) - 1 else "")
    text += "]" + draw(SPACE)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    return kind, values, known, pieces


@pytest.mark.slow
@given(outputs())
async def test_items_are_the_values_and_come_at_once_in_any_chunking(output):
    """items() gives the values for any chunks, each in the chunk that makes it known."""
    kind, values, known, pieces = output
    engine = Talker(*pieces)
    start = asyncio.get_running_loop().time()
    got = [(engine.said, item) async for item in _ask(engine, kind).items()]
    ends = list(itertools.accumulate(map(len, pieces)))
    when = [1 + next(i for i, end in enumerate(ends) if end >= place) for place in known]
    assert [item for _, item in got] == json.loads("".join(pieces)) == values
    assert [type(item) for _, item in got] == [type(value) for value in values]
    assert [number for number, _ in got] == when
    assert asyncio.get_running_loop().time() - start == pytest.approx(len(pieces))


@pytest.mark.slow
@given(outputs(), st.data())
async def test_a_cut_gives_the_items_known_before_it_in_any_chunking(output, data):
    """The error has exactly the items that were known when max_tokens was reached."""
    kind, values, known, pieces = output
    text = "".join(pieces)
    cut = data.draw(st.integers(0, text.rindex("]")))
    generation = _ask(Talker(text[:cut], "", reason="length"), kind)
    with pytest.raises(OutputTruncated) as caught:
        await generation.value()
    assert list(caught.value.items) == values[: sum(place <= cut for place in known)]
    assert caught.value.text == text[:cut]


@pytest.mark.slow
@given(outputs())
def test_a_reader_knows_no_less_after_a_fault(output):
    """The reader keeps its values, and text after a fault is not read."""
    kind, values, _, pieces = output
    reader = TypedReader(schema_of(kind))
    for piece in [*pieces, "x", "y"]:
        reader.feed(piece)
    reader.finish("stop", None)
    assert reader.values == values
    assert reader.error is not None
    assert reader.text == "".join(pieces) + "x"


@pytest.mark.parametrize("chunk", [1, 7, 5000])
@pytest.mark.parametrize("kind", [list[float], list[Any], Any])
@pytest.mark.parametrize(
    "text", ["[" + "1" * 6000 + "]", "[1e99999999999999999999]", "[" * 3000 + "]" * 3000]
)
def test_what_no_parser_can_read_is_an_output_error(text, kind, chunk):
    """Endless numbers and nesting, as models write them, are an error of the output and no more."""
    reader = TypedReader(schema_of(kind))
    for start in range(0, len(text), chunk):
        reader.feed(text[start : start + chunk])
    reader.finish("stop", 10_000)
    if not (text.startswith("[1e") and kind is not list[float]):
        assert isinstance(reader.error, OutputError)


def test_digits_in_several_numbers_are_no_endless_one():
    """Only a run of digits counts, and it is counted across chunks."""
    reader = TypedReader(schema_of(list[int]))
    for _ in range(40):
        reader.feed("[" if reader.text == "" else ",")
        for digit in "12345678901234567890123456789012345":
            reader.feed(digit)
    reader.feed("]")
    reader.finish("stop", None)
    assert reader.error is None
    assert len(reader.values) == 40
