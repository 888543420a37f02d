"""`alto.text`: streams of text cut into pieces, over real sources, rests, cancellation and errors."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto.errors import OutputError
from alto.testing import Scripted, group

Splitting = Callable[..., AsyncGenerator[Any, None]]

SPLITTINGS: dict[str, Splitting] = {
    "sentences": alto.text.sentences,
    "lines": alto.text.lines,
    "words": alto.text.words,
    "split": lambda text, **options: alto.text.split(text, "\n", "; ", **options),
}


class Source:
    """Chunks with the seconds before each, and what happened to them."""

    def __init__(self, *steps: str | float | Exception) -> None:
        self.steps = steps
        self.read = 0
        self.ended = ""
        self.tasks: set[object] = set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[str, None]:
        self.ended = "open"
        try:
            for step in self.steps:
                self.tasks.add(asyncio.current_task())
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, str):
                    self.read += 1
                    yield step
                else:
                    await asyncio.sleep(step)
            self.ended = "whole"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        except GeneratorExit:
            self.ended = "closed"
            raise
        finally:
            self.tasks.add(asyncio.current_task())
            await asyncio.sleep(0.25)
            self.ended += ", cleaned"


async def timed(pieces: AsyncGenerator[Any, None]) -> list[tuple[float, Any]]:
    """Return every piece with its time in seconds."""
    clock = asyncio.get_running_loop().time
    start = clock()
    return [(round(clock() - start, 3), piece) async for piece in pieces]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (alto.text.sentences(group(["One. Tw", "o. T"])), ["One.", "Two.", "T"]),
        (alto.text.sentences(group(["One two three."]), max_chars=8), ["One two", "three."]),
        (alto.text.lines(group(["a\n\n", "b\r"])), ["a", "b"]),
        (alto.text.lines(group(["a\n\nb", "c"]), keep_empty=True, max_chars=1), ["a", "", "b", "c"]),
        (alto.text.words(group(["a b", " c d"])), ["a", "b", "c", "d"]),
        (alto.text.words(group(["a b", " c d"]), size=3), ["a b c", "d"]),
        (alto.text.words(group(["abc d"]), max_chars=2), ["ab", "c", "d"]),
        (alto.text.split(group(["a,", " b,c"]), ","), ["a", "b", "c"]),
        (alto.text.split(group(["aXbxcc"]), "x", "X", max_chars=1), ["a", "b", "c", "c"]),
        (alto.text.json_items(group(['Sure: [1, {"a"', ":2}]."])), [1, {"a": 2}]),
        (alto.text.json_items(group(['{"a":1}\n', '{"a":2}\n']), max_chars=7), [{"a": 1}, {"a": 2}]),
        (alto.text.json_items(group(["[0]</th", "ink>[1]"]), after="</think>"), [1]),
        (alto.text.json_items(group(["[0]\n``", "`json\n[1]\n```"]), fenced=True), [1]),
        (alto.text.json_items(group(['{"a": {"b": [1]}}']), field="a.b"), [1]),
        (alto.text.json_items(group(['{"a.b": [1]}']), field=("a.b",)), [1]),
        (alto.text.json_items(group(["[1] [2]"]), first=True), [1]),
        (alto.text.json_items(group(["[1,] // 2"]), lenient=True), [1]),
    ],
)  # fmt: skip
async def test_pieces(pieces: AsyncGenerator[Any, None], expected: list[Any]) -> None:
    """Every function passes its options on and also gives the last piece."""
    assert [piece async for piece in pieces] == expected


def test_an_old_name_says_the_new_one() -> None:
    """The error for an old name has the new one."""
    with pytest.raises(AttributeError, match=r"no attribute 'tokens'; it is now alto\.text\.words"):
        _ = alto.text.tokens  # type: ignore[attr-defined]
    with pytest.raises(
        AttributeError, match=r"it is now alto\.text\.split, which takes separators"
    ):
        _ = alto.text.regex  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        _ = alto.text.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda t: alto.text.sentences("text"), TypeError, "takes an async iterable of text"),
        (lambda t: alto.text.lines(["a"]), TypeError, r"Group\[str\].*, not list"),
        (lambda t: alto.text.json_items(None), TypeError, "not NoneType"),
        (lambda t: alto.text.sentences(t, max_chars=0), ValueError, "max_chars must be at least 1, not 0"),
        (lambda t: alto.text.json_items(t, max_chars=-1), ValueError, "max_chars must be at least 1"),
        (lambda t: alto.text.json_items(t, after=""), ValueError, "after must be a text such as '</think>', and not be empty"),
        (lambda t: alto.text.json_items(t, after=b"a"), TypeError, "after must be a text such as '</think>', not b'a'"),
        (lambda t: alto.text.json_items(t, field=""), ValueError, "field must be a name, .*, and not be empty"),
        (lambda t: alto.text.json_items(t, field="a..b"), ValueError, "field must be a name, .*, and not be empty"),
        (lambda t: alto.text.json_items(t, field=()), ValueError, "field must be a name, .*, and not be empty"),
        (lambda t: alto.text.json_items(t, field=("a", 1)), TypeError, "field must be a name, .*, not 1"),
        (lambda t: alto.text.json_items(t, field=1), TypeError, "field must be a name, .*, not 1"),
        (lambda t: alto.text.lines(t, max_chars=1.5), TypeError, "max_chars must be a whole number"),
        (lambda t: alto.text.lines(t, max_chars=True), TypeError, "max_chars must be a whole number"),
        (lambda t: alto.text.words(t, size=0), ValueError, "size must be at least 1, not 0"),
        (lambda t: alto.text.words(t, idle=0), ValueError, "idle must be more than 0 seconds"),
        (lambda t: alto.text.split(t, "a", idle=float("nan")), ValueError, "idle must be more than 0"),
        (lambda t: alto.text.split(t, "a", idle=float("inf")), ValueError, "and finite"),
        (lambda t: alto.text.sentences(t, idle="1"), TypeError, "idle must be a number of seconds"),
        (lambda t: alto.text.sentences(t, idle=True), TypeError, "idle must be a number of seconds"),
        (alto.text.split, TypeError, "needs at least one separator, as in"),
        (lambda t: alto.text.split(t, "a", ""), ValueError, "must not be empty; .* use max_chars"),
        (lambda t: alto.text.split(t, b"a"), TypeError, "a separator must be a str, .*, not b'a'"),
        (lambda t: alto.text.split(t, ["a"]), TypeError, r"a separator must be a str, .*, not \['a'\]"),
        (lambda t: alto.text.split(t, re.compile("a+")), TypeError, r"not the pattern 'a\+'; give each text"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_the_call(
    call: Callable[[Any], object], kind: type[Exception], message: str
) -> None:
    """Options and sources are checked when the function is called, and the source is not touched."""
    source = Source("a")
    with pytest.raises(kind, match=message):
        call(source)
    assert not source.ended


@pytest.mark.parametrize("name", [*SPLITTINGS, "json_items"])
@pytest.mark.parametrize(
    ("chunk", "remedy"),
    [
        (b"bytes", "not bytes; decode it first"),
        (None, "not NoneType; give one text at a time"),
        (["a"], "not list; give one text at a time"),
        (alto.Chunk(text="a"), r"not Chunk; give its text: `\(chunk.text async for chunk"),
    ],
)
async def test_a_chunk_that_is_no_text_is_refused(name: str, chunk: object, remedy: str) -> None:
    """A chunk of another type is an error that says what to do, and ends the source."""
    splitting = SPLITTINGS.get(name, alto.text.json_items)
    for idle in (None, 1.0) if name in SPLITTINGS else (None,):
        options = {} if idle is None else {"idle": idle}
        closed: list[str] = []

        async def chunks(closed: list[str] = closed) -> AsyncIterator[Any]:
            try:
                yield "["
                yield chunk
            finally:
                closed.append("closed")

        with pytest.raises(TypeError, match=f"alto.text.{name}.. takes chunks of str, {remedy}"):
            await timed(splitting(chunks(), **options))
        assert closed == ["closed"]


async def test_a_rest_hands_over_what_is_there() -> None:
    """If no chunk comes for `idle` seconds, the text so far is a piece, and nothing is lost."""
    source = Source("One. Tw", 0.9, "o thr", 5.0, "ee. Four", 1.0, " five.", 3.0)
    pieces = await timed(alto.text.sentences(source, idle=2.0))
    assert pieces == [(0.0, "One."), (2.9, "Two thr"), (5.9, "ee."), (8.9, "Four five.")]
    assert source.ended == "whole, cleaned"
    assert len(source.tasks) == 1


async def test_a_rest_is_measured_from_the_last_chunk_and_comes_once() -> None:
    """Nothing is given before the first chunk, and only once per pause."""
    source = Source(10.0, "a", 10.0, "b", 0.5, "c", 10.0)
    pieces = await timed(alto.text.lines(source, keep_empty=True, idle=1.0))
    assert pieces == [(11.0, "a"), (21.5, "bc")]


async def test_a_line_break_in_two_halves_around_a_rest_is_one() -> None:
    r"""The ``\n`` that comes after a rest behind an ``\r`` makes no empty line."""
    source = Source("a\r", 2.0, "\nb\n")
    assert await timed(alto.text.lines(source, keep_empty=True, idle=1.0)) == [
        (0.0, "a"),
        (2.0, "b"),
    ]


async def test_a_chunk_and_the_end_of_a_rest_at_one_time_lose_nothing() -> None:
    """A chunk that comes in the very moment in which time is up is there, before or after it."""
    source = Source("a", 1.0, "b", 1.0, "c", 1.0)
    pieces = await timed(alto.text.lines(source, idle=1.0))
    assert "".join(piece for _, piece in pieces) == "abc"


@given(
    st.lists(st.sampled_from(["a", "b. ", "\n", 0.5, 1.0, 1.5]), max_size=10),
    st.sampled_from(sorted(SPLITTINGS)),
)
async def test_rests_lose_nothing(steps: list[str | float], name: str) -> None:
    """The pieces together are the text without white space, for any timing of the chunks."""
    source = Source(*steps)
    pieces = await timed(SPLITTINGS[name](source, idle=1.0))
    text = "".join(step for step in steps if isinstance(step, str))
    assert "".join("".join(piece.split()) for _, piece in pieces) == "".join(text.split())
    assert source.ended == "whole, cleaned"


async def test_a_source_is_not_read_ahead() -> None:
    """A chunk is read when a piece is asked for, with a rest and without."""
    for options in ({}, {"idle": 5.0}):
        source = Source("a\n", "b\n", "c\n")
        pieces = alto.text.lines(source, **options)
        assert source.read == 0
        assert await anext(pieces) == "a"
        await asyncio.sleep(20)
        assert source.read == 1
        assert [piece async for piece in pieces] == ["b", "c"]


async def test_the_read_goes_on_while_a_piece_is_worked_on() -> None:
    """After a rest the read that waits takes its chunk, but no other, however long the piece takes."""
    source = Source("a", 3.0, "b\n", "c\n", "d\n")
    pieces = alto.text.lines(source, idle=1.0)
    assert await anext(pieces) == "a"
    await asyncio.sleep(20)
    assert source.read == 2
    assert await anext(pieces) == "b"
    assert source.read == 2
    assert [piece async for piece in pieces] == ["c", "d"]


@pytest.mark.parametrize("options", [{}, {"idle": 100.0}])
@pytest.mark.parametrize("name", SPLITTINGS)
async def test_an_error_comes_after_the_pieces_before_it(
    name: str, options: dict[str, float]
) -> None:
    """The pieces that were certain are given, then the error of the source; the tail is not."""
    source = Source("a\n\n b", 1.0, ValueError("broken"))
    pieces = SPLITTINGS[name](source, **options)
    got = []
    with pytest.raises(ValueError, match="broken"):
        async for piece in pieces:
            got.append(piece)
    assert got == ["a"]
    assert source.ended == "open, cleaned"
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_another_list_ends_the_source_and_the_iteration() -> None:
    """A second list is an error at its bracket, after the items of the first, and the source is closed."""
    source = Source("See [1]: ", 1.0, "[2", 1.0, "]")
    items = []
    with pytest.raises(OutputError, match=r"'\[' follows the end of the list, .* first=True"):
        async for item in alto.text.json_items(source):
            items.append(item)
    assert (items, source.read, source.ended) == ([1], 2, "closed, cleaned")


async def test_an_error_of_the_json_comes_after_the_items_before_it() -> None:
    """Malformed JSON is an error of the output, after the items before it, and ends the source."""
    source = Source("[1, 2,", " 3, x", 1.0, "]", 1.0, "never read")
    got = []
    with pytest.raises(OutputError, match=r"item 3 is no JSON .*; character 10 of the text"):
        async for item in alto.text.json_items(source):
            got.append(item)
    assert got == [1, 2, 3]
    assert source.ended == "closed, cleaned"
    with pytest.raises(OutputError, match="ended inside item 0"):
        await timed(alto.text.json_items(group(["[1"])))


@pytest.mark.parametrize("options", [{}, {"idle": 100.0}])
async def test_leaving_early_closes_the_source(options: dict[str, float]) -> None:
    """`aclose` waits until the source has cleaned up, wherever it was, and may be called twice."""
    source = Source("a\n", 5.0, "b\n")
    pieces = alto.text.lines(source, **options)
    async with aclosing(pieces):
        async for _ in pieces:
            break
    assert source.ended == "closed, cleaned" if not options else source.ended.endswith("cleaned")
    await pieces.aclose()
    assert len(source.tasks) == 1
    unopened = alto.text.lines(Source("a"), **options)
    await unopened.aclose()
    assert [piece async for piece in unopened] == []


@pytest.mark.parametrize("options", [{}, {"idle": 100.0}])
async def test_closing_while_it_rests_cancels_the_read(options: dict[str, float]) -> None:
    """Cancelling the task that waits for a piece cancels the read, and waits for its cleaning up."""
    source = Source("a\n", 5.0, "b\n")
    clock = asyncio.get_running_loop().time
    start = clock()
    with anyio.move_on_after(2) as scope:
        await timed(alto.text.lines(source, **options))
    assert scope.cancelled_caught
    gc.collect()
    await asyncio.sleep(1)
    assert source.ended == "cancelled, cleaned" if options else source.ended.startswith("cancelled")
    assert clock() - start < 4


async def test_time_is_up_while_the_read_waits_and_it_is_closed_then() -> None:
    """A piece that a rest has given is not the last thing that can be done: the read is ended."""
    source = Source("a", 50.0, "b")
    pieces = alto.text.lines(source, idle=1.0)
    assert await anext(pieces) == "a"
    await pieces.aclose()
    assert source.ended == "cancelled, cleaned"
    assert asyncio.get_running_loop().time() == 1.25


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("at", [round(0.25 * n, 2) for n in range(1, 24)])
async def test_cancellation_at_any_time_leaves_nothing_behind(at: float, native: bool) -> None:
    """The source is cleaned up to its end, also if the cancellation comes during the cleanup."""
    source = Source("a", 2.1, "b\n", 1.1, "c")
    done: list[str] = []

    async def work() -> None:
        async with aclosing(alto.text.lines(source, idle=0.7)) as pieces:
            async for piece in pieces:
                done.append(piece)
                await asyncio.sleep(0.3)

    if native:
        task = asyncio.get_running_loop().create_task(work())
        await asyncio.sleep(at)
        task.cancel()
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
    else:
        with anyio.move_on_after(at):
            await work()
    assert (
        source.ended.endswith(", cleaned") or source.ended == "whole"
    )  # struck while it cleaned up
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert done == ["a", "b", "c"][: len(done)]


ASKED: ContextVar[str] = ContextVar("ASKED", default="none")


async def test_the_source_has_the_context_of_its_reader() -> None:
    """A source that is read by a task of its own sees the same context variables."""

    async def chunks() -> AsyncIterator[str]:
        yield ASKED.get()

    token = ASKED.set("me")
    try:
        assert await timed(alto.text.lines(chunks(), idle=1.0)) == [(0.0, "me")]
    finally:
        ASKED.reset(token)


async def test_a_source_that_cancels_itself_does_so_with_a_rest_too() -> None:
    """A cancellation that the source itself raises comes through, and nothing hangs."""

    async def chunks() -> AsyncIterator[str]:
        yield "a\n"
        raise asyncio.CancelledError

    for options in ({}, {"idle": 1.0}):
        got = []
        with pytest.raises(asyncio.CancelledError):
            async for piece in alto.text.lines(chunks(), **options):
                got.append(piece)
        assert got == ["a"]


@pytest.mark.parametrize("options", [{}, {"idle": 1.0}])
async def test_an_error_while_the_source_is_closed_comes_through(options: dict[str, float]) -> None:
    """An error of the source's closing is raised by `aclose`."""

    async def chunks() -> AsyncIterator[str]:
        try:
            yield "a\n"
            yield "b\n"
        finally:
            raise LookupError("stuck")

    pieces = alto.text.lines(chunks(), **options)
    assert await anext(pieces) == "a"
    with pytest.raises(LookupError, match="stuck"):
        await pieces.aclose()


@pytest.mark.parametrize("options", [{}, {"idle": 1.0}])
async def test_a_source_without_aclose_will_do(options: dict[str, float]) -> None:
    """An async iterator needs no `aclose`."""

    class Count:
        left = 2

        def __aiter__(self) -> Count:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return f"{self.left}\n"

    assert [piece async for piece in alto.text.lines(Count(), **options)] == ["1", "0"]


async def test_the_pieces_are_an_async_generator() -> None:
    """`asend` and `athrow` do what they do on any async generator."""
    pieces = alto.text.lines(group(["a\nb\n"]))
    assert await pieces.asend(None) == "a"
    with pytest.raises(KeyError):
        await pieces.athrow(KeyError("x"))
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


# ------------------------------------------------------------------------------ inside a stage


@alto.stage
async def answer(question: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """Chunks of the answer."""
    async for chunk in llm.generate(question):
        yield chunk.text


@alto.stage
async def rested(text: alto.Group[str]) -> AsyncIterator[str]:
    """Sentences, and after three seconds what is there."""
    async for sentence in alto.text.sentences(text, idle=3.0):
        yield sentence


@alto.stage
async def first(text: alto.Group[str]) -> AsyncIterator[str]:
    """The first sentence only; the iterator is dropped, not closed."""
    async for sentence in alto.text.sentences(text, idle=3.0):
        yield sentence
        break
    await asyncio.sleep(0)
    yield "done"


@alto.stage
async def leaving(question: str, *, source: Source) -> AsyncIterator[str]:
    """One sentence of a source, which is then dropped long before the end."""
    async for sentence in alto.text.sentences(source):
        yield sentence
        break
    yield question
    await asyncio.sleep(20)
    yield source.ended


@alto.pipeline
def left(question: alto.Stream[str]) -> alto.Stream[str]:
    """A sentence, and what became of its source."""
    return leaving(question)


@alto.pipeline
def resting(question: alto.Stream[str]) -> alto.Stream[str]:
    """Sentences with rests."""
    return rested(answer(question))


@alto.pipeline
def one(question: alto.Stream[str]) -> alto.Stream[str]:
    """The first sentence."""
    return first(answer(question))


async def test_a_group_is_read_in_a_stage_with_rests() -> None:
    """A rest in a stage over a group hands over what is there, and the group loses nothing."""

    def say(prompt: str) -> list[str]:
        return ["One. Two thr", "ee. Fo", "ur."]

    async with resting.open(llm=Scripted(say, delay=5.0)) as app:
        clock = asyncio.get_running_loop().time
        got = [(clock(), piece) async for piece in app.stream("?")]
        assert got == [(5.0, "One."), (8.0, "Two thr"), (10.0, "ee."), (13.0, "Fo"), (15.0, "ur.")]
        assert await app.run("again") == ["One.", "Two thr", "ee.", "Fo", "ur."]


async def test_leaving_early_in_a_stage_ends_the_generation_it_was_waiting_for() -> None:
    """Dropped pieces are closed in the call's own task, and their generation is aborted."""
    engine = Scripted(lambda _: ["One. ", "Two. ", "Three."], delay=5.0)
    async with one.open(llm=engine) as app:
        assert await app.run("?") == ["One.", "done"]
        assert asyncio.get_running_loop().time() < 10.0


async def test_what_a_stage_drops_is_closed_at_its_next_checkpoint() -> None:
    """Pieces that a stage leaves early are closed in the stage's own task, and not at its end."""
    source = Source("One. Two. ", "Three.")
    async with left.open(source=source) as app:
        assert await app.run("?") == ["One.", "?", "closed, cleaned"]
    assert len(source.tasks) == 1


async def test_closing_a_stream_in_a_rest_leaves_nothing_behind() -> None:
    """A request that is left while its stage rests ends with the stage's reader."""
    engine = Scripted(lambda _: ["One. Tw", "o."], delay=5.0)
    async with resting.open(llm=engine) as app:
        async with app.stream("?") as stream:
            assert await anext(stream) == "One."
            assert await anext(stream) == "Tw"
        assert asyncio.get_running_loop().time() == 8.0
