"""What a stream refuses, and what a group made by hand gives."""

import operator
from collections.abc import AsyncIterator, Callable

import pytest

import alto
from alto.stream import Symbol
from alto.testing.group import group

STREAM: alto.Stream[str] = alto.Stream(
    Symbol(tracer=None, pipeline="p", number=0, type=str, shown="str", label="input 'text'")
)


@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (list, "in a stage"),
        (aiter, "Group inside a stage"),
        (lambda s: s.__await__(), "await app.run()"),
        (bool, "test its items inside a stage"),
        (len, "over a Group"),
        (lambda s: "x" in s, "inside a stage"),
        (lambda s: s[0], "inside a stage"),
        (lambda s: s == "x", "compare its items"),
        (lambda s: s != "x", "compare its items"),
        (lambda s: s < 3, "compare its items"),
        (lambda s: s(3), "stage(stream)"),
    ],
)
def test_a_stream_is_no_value(use: Callable[[object], object], remedy: str) -> None:
    """Every use that needs an item raises a TypeError that says what to do."""
    with pytest.raises(TypeError, match="<Stream\\[str\\] from input 'text' of pipeline 'p'>") as e:
        use(STREAM)
    assert remedy in str(e.value)


def test_a_stream_has_no_attributes_of_its_items() -> None:
    """An attribute of an item is an AttributeError with its remedy."""
    with pytest.raises(AttributeError, match=r"'text'.*inside a stage"):
        operator.attrgetter("text")(STREAM)


def test_a_stream_can_be_hashed_and_compared_by_identity() -> None:
    """Streams go into dictionaries and are told apart with ``is``."""
    assert {STREAM: 1}[STREAM] == 1


@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (list, "cannot be iterated over with `for`.*`async for x in xs`"),
        (len, "cannot be counted.*`len\\(await xs.list\\(\\)\\)`"),
        (bool, "cannot be tested for truth.*is empty"),
        (lambda xs: xs[0], r"cannot be indexed.*\(await xs.list\(\)\)\[...\]"),
        (lambda xs: 3 in xs, r"cannot be searched.*`x in await xs.list\(\)`"),
        (lambda xs: xs.__await__(), r"cannot be awaited.*`await xs.list\(\)`"),
    ],
)
async def test_a_group_is_no_list(use: Callable[[object], object], remedy: str) -> None:
    """Every use that needs all pieces raises a TypeError that says what to write."""

    @alto.stage
    async def misused(pieces: alto.Group[str]) -> str:
        return str(use(pieces))

    @alto.stage
    async def split(text: str) -> AsyncIterator[str]:
        yield text

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[str]:
        return misused(split(text))

    with pytest.raises(TypeError, match=remedy):
        use(group([1]))
    async with p.open() as app:
        with pytest.raises(alto.StageError, match=remedy):
            await app.run("a")


async def test_a_group_made_by_hand_gives_its_pieces() -> None:
    """From an iterable or an async one, piece by piece or as a list."""

    async def pieces() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert [piece async for piece in group([1, 2])] == [1, 2]
    assert await group(pieces()).list() == [1, 2]
    assert isinstance(group([]), alto.Group)


async def test_a_group_made_by_hand_is_iterated_once() -> None:
    """As in a pipeline, the second iteration raises Closed."""
    pieces = group([1])
    assert await pieces.list() == [1]
    with pytest.raises(alto.Closed, match="once"):
        await pieces.list()


def test_a_group_cannot_be_made_without_its_iteration() -> None:
    """Group itself is abstract."""
    with pytest.raises(TypeError, match="__aiter__"):
        alto.Group()
