"""The front door: open, run_sync, nested runs and the typed handle on an open pipeline."""

import importlib
import importlib.metadata
from collections.abc import AsyncIterator

import pytest

import alto


@alto.stage
async def words(text: str, *, upper: bool = False) -> AsyncIterator[str]:
    """Many from one."""
    for word in text.split():
        yield word.upper() if upper else word


@alto.pipeline
def split(text: alto.Stream[str]) -> alto.Stream[str]:
    """One stage."""
    return words(text)


@alto.stage
async def repeated(word: str, times: int) -> str:
    """One from two."""
    return word * times


@alto.pipeline
def repeat(text: alto.Stream[str], times: alto.Stream[int]) -> alto.Stream[str]:
    """Two inputs."""
    return repeated(words(text), times)


def test_run_sync_runs_to_the_end() -> None:
    """A script needs no event loop, and resources and a timeout are given by name."""
    assert split.run_sync("a b", timeout=5, upper=True) == ["A", "B"]


async def test_run_sync_in_a_running_loop_names_the_async_call() -> None:
    """A notebook is told what to write instead."""
    with pytest.raises(RuntimeError, match=r"split\.open\(.*await app\.run\("):
        split.run_sync("a b")


async def test_an_app_streams_runs_and_maps() -> None:
    """The handle passes everything on to the runtime."""
    async with split.open(upper=True) as app:
        assert [word async for word in app.stream("a b", order="ancestry")] == ["A", "B"]
        assert await app.run("a b") == ["A", "B"]
        assert [r.values async for r in app.map(["a", "b c"])] == [["A"], ["B", "C"]]
        assert app.statistics().open_requests == 0
        assert "'split'" in repr(app)


async def test_several_inputs_are_tuples_in_map() -> None:
    """A wrong tuple fails alone."""
    async with repeat.open() as app:
        assert await app.run("a b", 2) == ["aa", "bb"]
        results = [result async for result in app.map([("a", 2), ("b",), "cd", ("e", 1)])]
    assert [result.values for result in results] == [["aa"], None, None, ["e"]]
    assert "takes 2 inputs (text, times), but is given 1" in str(results[1].error)
    assert isinstance(results[2].error, alto.InputError)


async def test_wrong_inputs_are_refused_before_anything_starts() -> None:
    """Number and type of the inputs are checked at the call."""
    async with repeat.open() as app:
        with pytest.raises(alto.InputError, match="takes 2 inputs"):
            await app.run("a")
        with pytest.raises(alto.InputError, match="input 'times' must be int, not str"):
            app.stream("a", "b")
        assert app.statistics().open_requests == 0


async def test_a_single_text_is_no_list_of_inputs() -> None:
    """Mapping over the letters of a text is probably not meant."""
    async with split.open() as app:
        with pytest.raises(TypeError, match=r"app\.map\(\[x\]\)"):
            app.map("a b")


async def test_a_pipeline_runs_inside_a_stage() -> None:
    """Both as a stream and as a list, with the resources of the open pipeline."""

    @alto.stage
    async def outer(text: str) -> AsyncIterator[str]:
        async for word in split.stream(text, order="ancestry"):
            yield word
        for word in await split.run(text):
            yield word

    @alto.pipeline
    def twice(text: alto.Stream[str]) -> alto.Stream[str]:
        return outer(text)

    async with twice.open() as app:
        assert await app.run("a b") == ["a", "b", "a", "b"]


async def test_a_pipeline_outside_a_stage_needs_open() -> None:
    """There is nothing to run it in."""
    with pytest.raises(alto.Closed, match=r"split\.open\("):
        split.stream("a b")
    with pytest.raises(alto.Closed, match=r"split\.open\("):
        await split.run("a b")


async def test_wrong_inputs_of_a_nested_run_are_counted() -> None:
    """The number of inputs is checked before the runtime is asked."""
    with pytest.raises(alto.InputError, match="takes 1 input"):
        split.stream("a", "b")


def test_open_checks_at_once() -> None:
    """Resources and options are checked when open() is called, not when it is entered."""
    with pytest.raises(alto.ResourceError, match="did you mean 'upper'"):
        split.open(uper=True)
    with pytest.raises(ValueError, match="capacity"):
        split.open(capacity=0)


def test_an_app_is_made_by_open() -> None:
    """Its constructor says so."""
    with pytest.raises(TypeError, match=r"Pipeline\.open"):
        alto.App()


def test_the_version_is_that_of_the_installed_package() -> None:
    """It is looked up when asked for."""
    assert alto.__version__ == importlib.metadata.version("alto-llm")


def test_public_names_are_listed() -> None:
    """What is looked up late is in ``dir`` like the rest, and what is not there is an error."""
    assert set(alto.__all__) | {"__version__"} <= set(dir(alto))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alto.nothing


async def test_a_stage_may_open_and_close_an_app_of_its_own() -> None:
    """Only the app that a stage works for is none that it may close."""

    @alto.stage
    async def inside(text: str) -> list[str]:
        async with split.open() as own:
            return await own.run(text)

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[list[str]]:
        return inside(text)

    async with p.open() as app:
        assert await app.run("a b") == [["a", "b"]]


def test_a_name_that_has_moved_says_where() -> None:
    """The root holds what most programs use; an old name of it raises with the import to write."""
    with pytest.raises(AttributeError, match=r"from alto\.model import EngineCapacity"):
        _ = alto.EngineCapacity
    for module, names in alto._MOVED.items():
        for name in names:
            assert hasattr(importlib.import_module(f"alto.{module}"), name)
            assert not hasattr(alto, name)
