"""``app.using(...)``: other resources, for the requests that are started through it alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alto
from alto.testing import Scripted, reference_run, run_virtual


@attrs.frozen
class Index:
    """Something that stages look things up in."""

    name: str


@alto.stage
async def parts(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1."""
    for k in range(n):
        yield k


@alto.stage(concurrency=2)
async def looked(k: int, *, index: Index) -> str:
    """Which index it has, early and late."""
    before = index.name
    await asyncio.sleep(0.01 * (k % 3))
    assert index.name == before
    return f"{before}{k}"


@alto.stage
async def within(k: int, *, index: Index) -> str:
    """In a pipeline that a stage calls."""
    return f"in {index.name}"


@alto.pipeline
def inner(k: alto.Stream[int]) -> alto.Stream[str]:
    """Which index a stage of it has."""
    return within(k)


@alto.stage(replicas=2)
async def calls(text: str, *, index: Index) -> AsyncIterator[str]:
    """What a pipeline that it calls has, in both ways."""
    yield f"{text} {index.name}"
    for one in await inner.run(1):
        yield one
    async for one in inner.stream(1):
        yield one


@alto.stage(runs_in="thread", concurrency=2)
def threaded(text: str, *, index: Index) -> str:
    """The same, in a thread."""
    return f"{text} and {index.name}"


@alto.stage
async def whole(pieces: alto.Group[str], *, index: Index, sep: str = ",") -> str:
    """All of them, and which index it has."""
    return sep.join([index.name, *[piece async for piece in pieces]])


@alto.pipeline
def p(n: alto.Stream[int]) -> alto.Stream[str]:
    """An index everywhere."""
    return whole(threaded(calls(looked(parts(n)))))


def expected(name: str, n: int, sep: str = ",") -> list[str]:
    """What `p` gives with one index."""
    inside = f"in {name} and {name}"
    return [sep.join([name, f"{name}{k} {name} and {name}", inside, inside]) for k in range(n)]


async def test_a_value_is_for_the_requests_of_that_app_alone() -> None:
    """By run, stream and map; the app itself goes on with what it was opened with."""
    async with p.open(index=Index("open")) as app:
        mine = app.using(index=Index("mine"))
        assert await mine.run(2) == expected("mine", 2)
        assert await app.run(2) == expected("open", 2)
        assert [one async for one in mine.stream(1)] == expected("mine", 1)
        results = [one.unwrap() async for one in mine.map([1, 2])]
        assert results == [expected("mine", 1), expected("mine", 2)]
        assert await app.run(1) == expected("open", 1)
        assert repr(mine) == "<App of 'p': open, 0 requests>"
        assert mine.statistics() == app.statistics()


async def test_using_again_adds_to_what_is_used_already() -> None:
    """A later value replaces an earlier one of the same name; a default is replaced too."""
    async with p.open(index=Index("open")) as app:
        mine = app.using(index=Index("mine"))
        other = mine.using(sep=";")
        third = other.using(index=Index("third"))
        assert await other.run(1) == expected("mine", 1, ";")
        assert await third.run(1) == expected("third", 1, ";")
        assert await mine.run(1) == expected("mine", 1)
        assert await app.using(sep="-").run(1) == expected("open", 1, "-")
        assert await app.using().run(1) == expected("open", 1)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", None]), st.integers(0, 4), st.integers(0, 5),
            st.sampled_from(["run", "stream", "map"]),
        ),
        min_size=1, max_size=8,
    ),
    st.sampled_from([1, 32]),
)  # fmt: skip
def test_requests_at_once_have_each_their_own_values(
    requests: list[tuple[str | None, int, int, str]], capacity: int
) -> None:
    """Whatever runs at the same time, each request has its own value at every one of its calls."""

    async def main() -> None:
        async def ask(name: str | None, n: int, after: int, how: str) -> None:
            await asyncio.sleep(after / 100)
            mine = app if name is None else app.using(index=Index(name))
            if how == "run":
                results = await mine.run(n)
            elif how == "stream":
                results = await mine.stream(n, order="ancestry").list()
            else:
                [result] = [one async for one in mine.map([n])]
                results = result.unwrap()
            assert results == expected(name or "open", n)

        async with p.open(index=Index("open"), capacity=capacity) as app:
            fresh = app.statistics()
            async with asyncio.TaskGroup() as tasks:
                for request in requests:
                    tasks.create_task(ask(*request))
            after = app.statistics()
            assert after.open_requests == fresh.open_requests == 0

    run_virtual(main)


@alto.stage(runs_in="process")
def in_process(k: int, *, index: Index, sep: str = ",") -> str:
    """In a worker process."""
    return f"{k}{sep}{index.name}"


@alto.pipeline
def elsewhere(n: alto.Stream[int]) -> alto.Stream[str]:
    """Items through a worker process."""
    return in_process(parts(n))


@pytest.mark.realtime
@pytest.mark.slow
async def test_values_travel_to_worker_processes() -> None:
    """They are pickled with each call; one that cannot be says so."""
    async with elsewhere.open(index=Index("open")) as app:
        mine = app.using(index=Index("mine"))
        async with asyncio.TaskGroup() as tasks:
            one = tasks.create_task(mine.run(2))
            two = tasks.create_task(app.run(2))
            three = tasks.create_task(mine.using(sep=";").run(1))
        assert one.result() == ["0,mine", "1,mine"]
        assert two.result() == ["0,open", "1,open"]
        assert three.result() == ["0;mine"]
        local: Any = type("Local", (Index,), {})
        with pytest.raises(alto.StageError, match=r"'index'.*cannot be sent to the worker process"):
            await app.using(index=local("local")).run(1)
        assert await app.run(1) == ["0,open"]


# ---- models


@alto.stage
async def says(prompt: str, *, llm: alto.LLM) -> str:
    """What the model says."""
    return await llm.generate(prompt, max_tokens=9).text()


@alto.stage
async def best(prompt: str, *, models: Mapping[str, alto.LLM]) -> list[str]:
    """What each of them says."""
    return [await models[name].generate(prompt, max_tokens=9).text() for name in sorted(models)]


@alto.pipeline
def asked(prompt: alto.Stream[str]) -> alto.Stream[str]:
    """One model."""
    return says(prompt)


def engine(word: str) -> Scripted:
    """Always says one word."""
    return Scripted(lambda _: word, name=word)


async def test_an_engine_is_wrapped_as_open_does() -> None:
    """An engine is given where a stage asks for an LLM; so is an LLM itself."""
    async with engine("other") as other, engine("third") as third:
        async with asked.open(llm=engine("open")) as app:
            assert await app.using(llm=other).run("x") == ["other"]
            assert await app.using(llm=alto.LLM(third)).run("x") == ["third"]
            assert await app.run("x") == ["open"]
        # The app has not started them, so it does not stop them.
        other.check_health()
        third.check_health()


async def test_engines_in_containers_are_wrapped_too() -> None:
    """A mapping of models is replaced as a whole."""

    @alto.pipeline
    def several(prompt: alto.Stream[str]) -> alto.Stream[list[str]]:
        return best(prompt)

    async with engine("a") as a, engine("b") as b, several.open(models={"x": a}) as app:
        assert await app.using(models={"x": b, "y": a}).run("?") == [["b", "a"]]
        assert await app.run("?") == [["a"]]
        with pytest.raises(alto.ResourceError, match="engine 'c' is not running"):
            app.using(models={"x": a, "y": engine("c")})


async def test_what_bind_has_fixed_stays() -> None:
    """Of two stages that ask for the same name the bound one keeps its own."""

    @alto.pipeline
    def two(prompt: alto.Stream[str]) -> alto.Stream[str]:
        return says(says.bind(llm=engine("bound"))(prompt))

    heard: list[Any] = []
    opened = Scripted(lambda prompt: heard.append(prompt) or "open", name="open")
    async with (
        Scripted(lambda prompt: f"other, to {prompt}", name="other") as other,
        two.open(llm=opened) as app,
    ):
        assert await app.using(llm=other).run("x") == ["other, to bound"]
        assert await app.run("x") == ["open"]
    assert heard == ["bound"]


async def test_a_resource_of_each_replica_is_replaced_too() -> None:
    """A stage whose replicas have their own gets the request's, for that request."""
    made: list[int] = []

    def make(number: int) -> Index:
        made.append(number)
        return Index("replica")

    async with p.open(index=alto.per_replica(make)) as app:
        assert await app.using(index=Index("mine")).run(3) == expected("mine", 3)
        assert await app.run(3) == expected("replica", 3)
        assert len(made) == 6  # One for each replica of each stage, and none for a request.


async def test_a_pipeline_may_be_a_resource_of_a_request() -> None:
    """A stage calls whichever pipeline its request was given."""

    @alto.stage
    async def runs(k: int, *, tool: Any) -> str:
        return (await tool.run(k))[0]

    @alto.stage
    async def twice(k: int) -> str:
        return str(2 * k)

    @alto.pipeline
    def doubled(k: alto.Stream[int]) -> alto.Stream[str]:
        return twice(k)

    @alto.pipeline
    def outer(k: alto.Stream[int]) -> alto.Stream[str]:
        return runs(k)

    async with outer.open(tool=inner, index=Index("open")) as app:
        assert await app.run(4) == ["in open"]
        assert await app.using(tool=doubled).run(4) == ["8"]
        assert await app.using(index=Index("mine")).run(4) == ["in mine"]


async def test_values_go_on_to_pipelines_of_pipelines() -> None:
    """However deep a stage is called, and also where a pipeline on the way takes none of them."""

    @alto.stage
    async def middle(k: int) -> str:
        return (await inner.run(k))[0]

    @alto.pipeline
    def between(k: alto.Stream[int]) -> alto.Stream[str]:
        return middle(k)

    @alto.stage
    async def top(k: int) -> str:
        return (await between.run(k))[0]

    @alto.pipeline
    def outer(k: alto.Stream[int]) -> alto.Stream[str]:
        return top(k)

    async with outer.open(index=Index("open")) as app:
        assert await app.using(index=Index("mine")).run(1) == ["in mine"]
        assert await app.run(1) == ["in open"]


async def test_what_a_given_pipeline_takes_may_be_given_with_it() -> None:
    """Its names are known too, though the app had not seen it before."""

    @alto.stage
    async def runs(k: int, *, tool: Any) -> int:
        return (await tool.run(k))[0]

    @alto.stage
    async def times(k: int, *, factor: int = 2) -> int:
        return factor * k

    @alto.pipeline
    def product(k: alto.Stream[int]) -> alto.Stream[int]:
        return times(k)

    @alto.pipeline
    def outer(k: alto.Stream[int]) -> alto.Stream[int]:
        return runs(k)

    async with outer.open(tool=None) as app:
        assert await app.using(tool=product).run(4) == [8]
        assert await app.using(tool=product, factor=5).run(4) == [20]
        with pytest.raises(alto.ResourceError, match="no resource 'factor'"):
            app.using(factor=5)


# ---- what is refused


def _made_per_replica() -> Any:
    return alto.per_replica(lambda number: Index(str(number)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"indx": Index("x")}, r"pipeline 'p' has no resource 'indx'; did you mean 'index'\?"),
        ({"zzz": 1}, r"pipeline 'p' has no resource 'zzz'; it takes 'index', 'sep'"),
        ({"index": "x"}, r"resource 'index' must be .*Index, not str"),
        ({"index": None}, r"resource 'index' must be .*Index, not NoneType"),
        ({"sep": 3}, r"stage 'whole': resource 'sep' must be str, not int"),
        (
            {"index": _made_per_replica()},
            r"using\(index=...\): per_replica\(...\) makes a resource",
        ),
    ],
)
async def test_what_does_not_fit_is_refused_at_once(values: dict[str, Any], message: str) -> None:
    """Nothing is started, and the message names the remedy."""
    async with p.open(index=Index("open")) as app:
        with pytest.raises(alto.ResourceError, match=message):
            app.using(**values)
        assert app.statistics().open_requests == 0
        assert await app.run(1) == expected("open", 1)


async def test_a_value_that_only_an_inner_pipeline_takes_is_looked_at_too() -> None:
    """A wrong type is refused by using(), not in the middle of a request."""

    @alto.stage
    async def only_calls(k: int) -> str:
        return (await inner.run(k))[0]

    @alto.pipeline
    def outer(k: alto.Stream[int]) -> alto.Stream[str]:
        return only_calls(k)

    async with outer.open(index=Index("open")) as app:
        assert await app.using(index=Index("mine")).run(1) == ["in mine"]
        assert await app.run(1) == ["in open"]
        with pytest.raises(alto.ResourceError, match=r"stage 'within': resource 'index' must be"):
            app.using(index=5)


async def test_a_value_that_fits_one_of_two_inner_pipelines_is_taken() -> None:
    """Which of them will be called is not known before; the other one refuses it when it is."""

    @alto.stage
    async def other_kind(k: int, *, index: str) -> str:
        return index

    @alto.pipeline
    def other(k: alto.Stream[int]) -> alto.Stream[str]:
        return other_kind(k)

    @alto.stage
    async def either(k: int) -> str:
        return (await (inner if k else other).run(k))[0]

    @alto.pipeline
    def outer(k: alto.Stream[int]) -> alto.Stream[str]:
        return either(k)

    async with outer.open(index=Index("open")) as app:
        mine = app.using(index=Index("mine"))
        assert await mine.run(1) == ["in mine"]
        with pytest.raises(alto.StageError, match="'index' must be str, not Index"):
            await mine.run(0)
        assert await app.using(index=Index("mine")).run(1) == ["in mine"]


async def test_a_name_that_bind_has_fixed_everywhere_is_refused() -> None:
    """The message says that it is bound, not that there is no such thing."""

    @alto.pipeline
    def alone(n: alto.Stream[int]) -> alto.Stream[str]:
        return looked(n)

    bound = alone.bind(index=Index("bound"))
    async with bound.open() as app:
        message = r"using\(index=\.\.\.\).*bind\(index=\.\.\.\) has fixed it.*leave it out"
        with pytest.raises(alto.ResourceError, match=message):
            app.using(index=Index("mine"))
        assert await app.run(0) == ["bound0"]


async def test_an_engine_that_does_not_run_is_refused() -> None:
    """A request starts no engines."""
    async with asked.open(llm=engine("open")) as app:
        stopped = engine("stopped")
        message = r"using\(llm=...\): engine 'stopped' is not running.*`async with engine:`"
        with pytest.raises(alto.ResourceError, match=message):
            app.using(llm=stopped)
        with pytest.raises(alto.ResourceError, match=message):
            app.using(llm=alto.LLM(stopped))
        with pytest.raises(alto.ResourceError, match=r"'llm' must be LLM, not str"):
            app.using(llm="gpt")


async def test_an_app_that_is_not_open_is_refused() -> None:
    """Before it opens, while it drains, and when it is closed."""
    app = p.open(index=Index("open"))
    with pytest.raises(alto.Closed, match="open"):
        app.using(index=Index("mine"))
    async with app:
        mine = app.using(index=Index("mine"))
        assert await app.drain()
        for function in (app.using, mine.using):
            with pytest.raises(alto.Closed):
                function(index=Index("late"))
        with pytest.raises(alto.Closed):
            mine.stream(1)
    with pytest.raises(alto.Closed):
        app.using(index=Index("late"))
    with pytest.raises(alto.Closed):
        await mine.run(1)


async def test_an_app_with_other_values_is_no_other_app() -> None:
    """Dropping it closes nothing; closing it closes the app."""
    app = await p.open(index=Index("open"))
    mine = app.using(index=Index("mine"))
    assert await app.using(index=Index("dropped")).run(1) == expected("dropped", 1)
    assert await app.run(1) == expected("open", 1)
    await mine.aclose()
    with pytest.raises(alto.Closed):
        await app.run(1)
    await app.aclose()


async def test_an_app_that_is_kept_by_what_it_gives_stays_open() -> None:
    """`app = app.using(...)`: the first one is kept, or it would be closed for being dropped."""
    app = await p.open(index=Index("open"))
    app = app.using(index=Index("mine"))
    app = app.using(sep=";")
    await asyncio.sleep(0)
    assert await app.run(1) == expected("mine", 1, ";")
    await app.aclose()


async def test_the_reference_of_a_request_with_values_is_given_them() -> None:
    """The sequential interpreter runs one request: what that one uses is all that it is given."""
    reference = await reference_run(p, 2, index=Index("mine"))
    async with p.open(index=Index("open")) as app:
        assert await app.using(index=Index("mine")).run(2) == reference == expected("mine", 2)
