"""The sequential interpreter against results written by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import alto
from alto.testing import Scripted, group, reference_run


@alto.stage
async def letters(text: str) -> AsyncIterator[str]:
    """One by one."""
    for letter in text:
        yield letter


@alto.stage
async def joined(pieces: alto.Group[str]) -> str:
    """In brackets."""
    return f"({''.join(await pieces.list())})"


@alto.stage
async def beside(whole: str, piece: str) -> str:
    """Both."""
    return f"{whole}/{piece}"


@alto.stage
async def under(whole: str, pieces: alto.Group[str]) -> str:
    """All."""
    return f"{whole}:{'+'.join(await pieces.list())}"


@alto.pipeline
def words(text: alto.Stream[str]) -> alto.Stream[str]:
    """A broadcast, and a group beside an item."""
    pieces = letters(text)
    return under(text, beside(text, pieces))


async def test_items_are_repeated_for_their_descendants_and_groups_gathered() -> None:
    """A broadcast and a group of the same request."""
    assert await reference_run(words, "ab") == ["ab:ab/a+ab/b"]


async def test_empty_groups_fire_once_per_parent() -> None:
    """One call per parent, in ancestry order, with or without pieces."""

    @alto.stage
    async def split(text: str) -> AsyncIterator[str]:
        for word in text.split(","):
            yield word

    @alto.pipeline
    def nested(text: alto.Stream[str]) -> alto.Stream[str]:
        return joined(joined(letters(split(text))))

    assert await reference_run(nested, "ab,,c") == ["((ab)()(c))"]

    @alto.pipeline
    def gathered(text: alto.Stream[str]) -> alto.Stream[str]:
        return joined(letters(split(text)), by=text)

    assert await reference_run(gathered, "ab,,c") == ["(abc)"]


async def test_stages_that_call_pipelines_are_interpreted_too() -> None:
    """``run``, and ``stream`` with its ways to read and to leave it."""

    @alto.stage
    async def calls(text: str) -> AsyncIterator[str]:
        for result in await words.run(text):
            yield result
        async for result in words.stream(text):
            yield result
        async with words.stream(text) as results:
            left = await results.list()
        yield str(left)
        with pytest.raises(alto.Closed):
            await anext(results)

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[str]:
        return calls(text)

    expected = ["a:a/a", "a:a/a", "['a:a/a']"]
    assert await reference_run(outer, "a") == expected
    async with outer.open() as app:
        assert await app.run("a") == expected


async def test_resources_and_engines() -> None:
    """Resources reach the stages, also of pipelines that they call; an engine is a handle there."""

    @alto.stage
    async def says(text: str, *, llm: alto.LLM, mark: str = "!") -> str:
        async for chunk in llm.generate(text):
            return chunk.text + mark
        return ""

    @alto.pipeline
    def inner(text: alto.Stream[str]) -> alto.Stream[str]:
        return says(text)

    @alto.stage
    async def asks(text: str, *, llm: alto.LLM) -> str:
        assert await llm.text(text) == "one two"
        return (await inner.run(text))[0]

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[str]:
        return asks(text)

    engine = Scripted({"say": ["one", " two"]})
    assert await reference_run(outer, "say", llm=engine, mark="?") == ["one?"]
    with pytest.raises(alto.Closed):
        engine.check_health()
    async with engine:
        assert await reference_run(outer, "say", llm=alto.LLM(engine)) == ["one!"]
        engine.check_health()
    with pytest.raises(alto.ResourceError, match="llm"):
        await reference_run(outer, "say")
    with pytest.raises(alto.ResourceError, match="nobody"):
        await reference_run(outer, "say", llm=engine, nobody=1)


async def test_the_first_error_in_sequential_order_counts() -> None:
    """Of several stages that raise it is the first stage's, at the first path."""

    @alto.stage
    async def fails(text: str) -> str:
        raise ValueError(text)

    @alto.pipeline
    def failing(text: alto.Stream[str]) -> alto.Stream[str]:
        pieces = letters(text)
        return joined(beside(fails(pieces), fails(pieces)))

    with pytest.raises(alto.StageError) as caught:
        await reference_run(failing, "ab")
    assert (caught.value.stage, caught.value.path) == ("fails", (0,))
    assert caught.value.__cause__ is caught.value.cause
    assert str(caught.value.cause) == "a"


async def test_a_group_that_is_left_early_leaves_no_task() -> None:
    """Nothing has to be closed behind it."""

    @alto.stage
    async def first(pieces: alto.Group[str]) -> str:
        async for piece in pieces:
            return piece
        return ""

    @alto.pipeline
    def left(text: alto.Stream[str]) -> alto.Stream[str]:
        return first(letters(text))

    assert await reference_run(left, "ab") == ["a"]
    assert await reference_run(left, "") == [""]


async def test_wrong_inputs_are_refused() -> None:
    """As ``app.run`` does."""
    with pytest.raises(alto.InputError):
        await reference_run(words, 1)  # type: ignore[misc]


async def test_a_plain_function_takes_a_group_made_by_hand() -> None:
    """What the interpreter gives to a stage is what a unit test gives."""
    assert await joined.fn(group(["x", "y"])) == "(xy)"
