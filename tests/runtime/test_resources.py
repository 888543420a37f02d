"""Resources of an open pipeline: defaults, and models in containers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import pytest

import alto
from alto import GraphError, ResourceError
from alto.testing import Line, Scripted, reference_run


def engine(says: str) -> Scripted:
    """It says one thing, whatever it is asked."""
    return Scripted(lambda _: Line([says]))


def one_stage(stage: Any) -> Any:
    """A pipeline of one stage."""

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[Any]:
        return stage(text)

    return p


@alto.stage
async def ask_list(text: str, *, models: list[alto.LLM]) -> list[str]:
    """Ask each."""
    return [await model.text(text) for model in models]


@alto.stage
async def ask_sequence(text: str, *, models: Sequence[alto.LLM]) -> list[str]:
    """Ask each."""
    return [await model.text(text) for model in models]


@alto.stage
async def ask_tuple(text: str, *, models: tuple[alto.LLM, ...]) -> list[str]:
    """Ask each."""
    return [await model.text(text) for model in models]


@alto.stage
async def ask_dict(text: str, *, models: dict[str, alto.LLM]) -> list[str]:
    """Ask each."""
    return [await model.text(text) for model in models.values()]


@alto.stage
async def ask_mapping(text: str, *, models: Mapping[str, alto.LLM] | None = None) -> list[str]:
    """Ask each."""
    return [await model.text(text) for model in (models or {}).values()]


@alto.stage
async def ask_iterable(text: str, *, models: Iterable[alto.LLM]) -> list[str]:
    """Ask each."""
    return [await model.text(text) for model in models]


@pytest.mark.parametrize(
    ("stage", "make"),
    [
        (ask_list, list),
        (ask_sequence, list),
        (ask_tuple, tuple),
        (ask_dict, lambda engines: dict(zip("abc", engines, strict=False))),
        (ask_mapping, lambda engines: dict(zip("abc", engines, strict=False))),
        (ask_iterable, tuple),
    ],
)
@pytest.mark.parametrize("how", ["open", "bind", "per_replica"])
async def test_models_in_a_container_are_started_and_stopped(
    stage: Any, make: Any, how: str
) -> None:
    """As a plain one is: by the app, which also wraps them."""
    engines = [engine("one"), engine("two")]
    value = make([engines[0], alto.LLM(engines[1])])
    if how == "per_replica":
        value = alto.per_replica(lambda: make(engines))
    pipeline = one_stage(stage.bind(models=value) if how == "bind" else stage)
    given = {} if how == "bind" else {"models": value}
    async with pipeline.open(**given) as app:
        assert await app.run("?") == [["one", "two"]]
    for each in engines:
        with pytest.raises(alto.Closed):
            each.check_health()
    assert await reference_run(pipeline, "?", **given) == [["one", "two"]]
    for each in engines:
        with pytest.raises(alto.Closed):
            each.check_health()


async def test_a_model_that_runs_is_left_running() -> None:
    """In a container as by itself."""
    mine = engine("mine")
    await mine.start()
    async with one_stage(ask_list).open(models=[mine]) as app:
        assert await app.run("?") == [["mine"]]
    mine.check_health()
    await mine.stop()


@pytest.mark.parametrize(
    ("stage", "value", "said"),
    [
        (ask_list, [engine("a"), "gpt"], r"'models' must be list\[LLM\], but \[1\] in it is no LLM: "),
        (ask_list, [Scripted], "no LLM: it is the class Scripted"),
        (ask_dict, {"a": None}, r"must be dict\[str, LLM\], but \['a'\] in it is no LLM: it is Non"),
        (ask_dict, [engine("a")], r"must be dict\[str, LLM\], not list"),
        (ask_iterable, iter([engine("a")]), "more than once, such as a list, not list_iterator"),
        (ask_list, [alto.per_replica(list)], "it is PerReplica"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_when_it_is_given(stage: Any, value: Any, said: str) -> None:
    """In open() and bind(), before anything starts."""
    with pytest.raises(ResourceError, match=said):
        one_stage(stage).open(models=value)
    with pytest.raises(ResourceError, match=said):
        stage.bind(models=value)


async def test_an_engine_that_nobody_asks_for_is_left_alone() -> None:
    """A container whose annotation says nothing of models is the stage's own business."""

    @alto.stage
    async def look(text: str, *, models: list[object], more: dict[str, Any]) -> bool:
        return models[0] is given and more["a"] is given

    given = engine("x")
    async with one_stage(look).open(models=[given], more={"a": given}) as app:
        assert await app.run("?") == [True]
        with pytest.raises(alto.Closed):
            given.check_health()


# ---------------------------------------------------------------------------------------- defaults


DEFAULT = engine("default")


@alto.stage
async def ask(
    text: str, *, llm: alto.LLM = DEFAULT, mark: str = "!", judge: alto.LLM | None = None
) -> str:
    """Ask, and mark the answer."""
    judged = "" if judge is None else await judge.text(text)
    return await llm.text(text) + mark + judged


async def test_a_resource_with_a_default_is_optional() -> None:
    """Each may be given, bound or left out; an engine as a default is started and wrapped."""
    pipeline = one_stage(ask)
    async with pipeline.open() as app:
        assert await app.run("?") == ["default!"]
        DEFAULT.check_health()
    with pytest.raises(alto.Closed):
        DEFAULT.check_health()
    assert await reference_run(pipeline, "?") == ["default!"]
    async with pipeline.open(mark="?", llm=engine("x"), judge=engine("y")) as app:
        assert await app.run("?") == ["x?y"]
        with pytest.raises(alto.Closed):
            DEFAULT.check_health()
    async with one_stage(ask.bind(mark=".")).open() as app:
        assert await app.run("?") == ["default."]


async def test_a_default_may_be_made_by_each_replica() -> None:
    """A factory as the default is called, and what it made is left."""
    made: list[str] = []

    def numbered(number: int) -> str:
        made.append(f"r{number}")
        return made[-1]

    @alto.stage(replicas=2)
    async def named(text: str, *, tag: str = alto.per_replica(numbered)) -> str:  # type: ignore[assignment]
        return tag

    async with one_stage(named).open() as app:
        assert made == ["r0", "r1"]
        assert set(await app.run("?")) <= {"r0", "r1"}
    assert await reference_run(one_stage(named), "?") == ["r0"]
    with pytest.raises(ResourceError, match="replica 0 must be str, not async_generator"):
        async with one_stage(named).open(tag=alto.per_replica(factory_of_generator)):
            pass


async def factory_of_generator() -> AsyncIterator[str]:
    """Forgets its decorator."""
    yield "x"


def test_a_default_of_the_wrong_type_is_refused_at_the_declaration() -> None:
    """Stage, resource, annotation and default are named."""

    async def wrong(text: str, *, temperature: float = "warm") -> str:  # type: ignore[assignment]
        raise NotImplementedError

    async def none(text: str, *, llm: alto.LLM = None) -> str:  # type: ignore[assignment]
        raise NotImplementedError

    async def parts(text: str, *, llms: list[alto.LLM] = (3,)) -> str:  # type: ignore[assignment]
        raise NotImplementedError

    async def whole(text: str, *, temperature: float = 0, k: int | None = None) -> str:
        raise NotImplementedError

    with pytest.raises(
        GraphError, match="'wrong': the default of resource 'temperature' must be fl"
    ):
        alto.stage(wrong)
    with pytest.raises(GraphError, match=r"not NoneType; correct .*, or annotate it LLM \| None"):
        alto.stage(none)
    with pytest.raises(GraphError, match=r"'llms' must be list\[LLM\], not tuple"):
        alto.stage(parts)
    alto.stage(whole)
