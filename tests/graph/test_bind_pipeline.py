"""Pipelines with some resources given: in other pipelines, when opened, inside stages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import alto
from alto import ResourceError
from alto.testing import Line, Scripted, reference_run


def engine(says: str) -> Scripted:
    """It says one thing, whatever it is asked."""
    return Scripted(lambda _: Line([says]))


@alto.stage
async def ask(text: str, *, llm: alto.LLM, mark: str = "!") -> str:
    """Ask the model."""
    return f"{text} {await llm.text(text)}{mark}"


@alto.stage
async def tell(text: str, *, mark: str) -> str:
    """Takes one of the resources of `ask`."""
    return text + mark


@alto.pipeline
def answer(text: alto.Stream[str]) -> alto.Stream[str]:
    """One stage."""
    return ask(text)


@alto.pipeline
def both(text: alto.Stream[str]) -> alto.Stream[str]:
    """Two stages and an inner pipeline."""
    return tell(answer(text))


async def seen(pipeline: Any, **resources: object) -> list[Any]:
    """What a pipeline gives, which is what the interpreter gives."""
    async with pipeline.open(**resources) as app:
        found = await app.run("Q")
    assert found == await reference_run(pipeline, "Q", **resources)
    return found


def stopped(*engines: Scripted) -> bool:
    """Whether none of them runs."""
    for each in engines:
        with pytest.raises(alto.Closed):
            each.check_health()
    return True


async def test_a_bound_resource_is_not_given_to_open() -> None:
    """Its engine is started with the app and stopped with it; the pipeline itself is as it was."""
    model = engine("yes")
    bound = answer.bind(llm=model)
    async with bound.open() as app:
        model.check_health()
        assert await app.run("Q") == ["Q yes!"]
    assert stopped(model)
    assert await seen(bound.bind(mark="?")) == ["Q yes?"]
    assert await seen(answer, llm=engine("no")) == ["Q no!"]
    assert answer.declaration.nodes[0].bound == {}
    assert repr(bound).endswith("-> alto.Stream[str], bound: llm>")
    assert bound.name == "answer"


async def test_two_parts_of_a_pipeline_have_different_models() -> None:
    """Though both say `llm`, also where one pipeline is used twice."""
    small, large = engine("small"), engine("large")
    first, second = answer.bind(llm=small), answer.bind(llm=large)

    @alto.pipeline
    def twice(text: alto.Stream[str]) -> alto.Stream[str]:
        return second(first(text))

    @alto.pipeline
    def thrice(text: alto.Stream[str]) -> alto.Stream[str]:
        return answer(twice(text))

    assert await seen(twice) == ["Q small! large!"]
    assert await seen(thrice, llm=engine("given"), mark=".") == ["Q small. large. given."]
    assert stopped(small, large)


async def test_what_is_bound_inside_stays() -> None:
    """The innermost bind wins, and one further out goes to the rest."""
    inner = answer.bind(llm=engine("inner"))

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[str]:
        return answer(inner(ask.bind(mark=".")(text)))

    assert await seen(outer.bind(llm=engine("outer"), mark="?")) == ["Q outer. inner? outer?"]
    assert await seen(both.bind(mark="?"), llm=engine("a")) == ["Q a??"]


async def test_a_bound_pipeline_is_called_by_a_stage() -> None:
    """Its engine is started with the app, and open() gives the rest, to the others the same name."""
    model = engine("bound")
    bound = answer.bind(llm=model)

    @alto.stage
    async def calls(text: str) -> AsyncIterator[str]:
        async for result in bound.stream(text):
            yield result
        for result in await answer.run(text):
            yield result

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[str]:
        return calls(text)

    assert await seen(outer, llm=engine("given"), mark=".") == ["Q bound.", "Q given."]
    assert stopped(model)


async def test_an_inner_pipeline_gets_what_a_bound_one_leaves_to_open() -> None:
    """A name that is bound for all stages may be given for the pipelines that they call."""

    @alto.stage
    async def calls(text: str, *, llm: alto.LLM) -> str:
        [result] = await answer.run(text)
        return await llm.text(text) + " " + result

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[str]:
        return calls(text)

    assert await seen(outer.bind(llm=engine("own")), llm=engine("given")) == ["own Q given!"]


def test_a_resource_bound_twice_is_refused() -> None:
    """In bind() after bind(), in open() after bind(), and where every stage has it bound."""
    model = engine("x")
    with pytest.raises(
        ResourceError, match="'answer': resource 'llm' is bound already; bind it on"
    ):
        answer.bind(llm=model).bind(llm=model)
    with pytest.raises(ResourceError, match=r"'llm' is bound twice: open\(llm=.*stage 'ask'"):
        answer.bind(llm=model).open(llm=model)

    @alto.pipeline
    def fixed(text: alto.Stream[str]) -> alto.Stream[str]:
        return ask.bind(llm=model)(text)

    with pytest.raises(ResourceError, match="'llm' is bound already, for stage 'ask'; leave one"):
        fixed.bind(llm=model)


def test_an_unknown_resource_is_refused() -> None:
    """With the name that was meant, or the inner pipeline that has it."""
    with pytest.raises(ResourceError, match="'both' has no resource 'marc'; did you mean 'mark'"):
        both.bind(marc="!")

    @alto.stage
    async def calls(text: str) -> str:
        return (await answer.run(text))[0]

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[str]:
        return calls(text)

    with pytest.raises(
        ResourceError, match=r"pipeline 'answer', which.*or give it to open\(llm=\.\.\.\)"
    ):
        outer.bind(llm=engine("x"))


def test_a_resource_of_the_wrong_type_is_refused() -> None:
    """When it is bound, and where a bound pipeline is made a part of another."""
    with pytest.raises(ResourceError, match="stage 'ask': resource 'mark' must be str, not int"):
        answer.bind(mark=3)
    with pytest.raises(alto.GraphError, match=r"no keyword 'mark'; .*answer\.bind\(mark=\.\.\.\)"):

        @alto.pipeline
        def outer(text: alto.Stream[str]) -> alto.Stream[str]:
            return answer(text, mark="!")  # type: ignore[call-overload, no-any-return]


def test_bind_before_the_stages_are_defined() -> None:
    """What cannot be checked yet is checked at the first use."""

    @alto.pipeline
    def early(text: alto.Stream[str]) -> alto.Stream[str]:
        return later(text)

    good, wrong = early.bind(mark="."), early.bind(nothing=3)
    later = tell
    assert good.declaration.nodes[0].bound == {"mark": "."}
    with pytest.raises(ResourceError, match="no resource 'nothing'"):
        wrong.open()


def test_binding_reads_the_pipeline_function_once() -> None:
    """A bound pipeline is made of the declaration that there is."""
    calls = 0

    @alto.pipeline
    def counted(text: alto.Stream[str]) -> alto.Stream[str]:
        nonlocal calls
        calls += 1
        return ask(text)

    counted.bind(mark=".").bind(llm=engine("x")).open()
    assert calls == 1
