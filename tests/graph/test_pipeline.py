"""Which functions can be pipelines, when they are read, and what is said of the rest."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import alto
from alto import GraphError


@alto.stage
async def split(text: str) -> AsyncIterator[str]:
    """Many from one."""
    yield text


@alto.stage
async def length(text: str) -> int:
    """One from one."""
    return len(text)


def refused(fn: Callable[..., Any], *said: str) -> None:
    """Expect that no pipeline can be made of *fn*, and that the message says all of *said*."""
    with pytest.raises(GraphError) as caught:
        alto.pipeline(fn)
    for text in said:
        assert text in str(caught.value), str(caught.value)


def test_a_pipeline_is_read_once() -> None:
    """The function is called at the decoration, and not again."""
    calls: list[int] = []

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        calls.append(1)
        return length(text)

    assert calls == [1]
    p.check()
    p.open()
    assert calls == [1]


def test_recursion_is_refused_with_its_remedy() -> None:
    """A pipeline that calls itself would never be read to its end."""

    @alto.pipeline
    def loop(text: alto.Stream[str]) -> alto.Stream[str]:
        return loop(split(text))

    with pytest.raises(GraphError, match=r"'loop'.*calls itself.*async for y in loop\.stream\(x\)"):
        loop.check()


def test_mutual_recursion_is_refused() -> None:
    """Also through another pipeline."""

    @alto.pipeline
    def ping(text: alto.Stream[str]) -> alto.Stream[str]:
        return pong(text)

    def pong(text: alto.Stream[str]) -> alto.Stream[str]:
        return ping(text)

    with pytest.raises(GraphError, match=r"'pong' > 'ping': pipeline 'ping' calls itself"):
        alto.pipeline(pong)


def test_a_pipeline_must_return_a_stream_of_its_type() -> None:
    """Nothing, something else, several streams and the wrong type are each said."""

    def nothing(text: alto.Stream[str]) -> alto.Stream[str]:
        split(text)

    def other(text: alto.Stream[str]) -> alto.Stream[str]:
        return "text"

    def several(text: alto.Stream[str]) -> alto.Stream[str]:
        return split(text), split(text)

    def wrong(text: alto.Stream[str]) -> alto.Stream[str]:
        return length(text)

    refused(nothing, "pipeline 'nothing' returns nothing", "`return`")
    refused(other, "pipeline 'other': its result must be a Stream", "str ('text')")
    refused(several, "returns a tuple", "alto.outputs(a=..., b=...)", "alto.merge")
    refused(wrong, "pipeline 'wrong'", "Stream[str]", "stage 'length', a Stream[int]")


def test_a_pipeline_of_the_wrong_form_is_refused() -> None:
    """Async functions, generators, classes, resources, defaults and missing inputs."""

    async def asynchronous(text: alto.Stream[str]) -> alto.Stream[str]:
        return text

    async def agen(text: alto.Stream[str]) -> alto.Stream[str]:
        yield text

    def gen(text: alto.Stream[str]) -> alto.Stream[str]:
        yield text

    def resource(text: alto.Stream[str], *, llm: int) -> alto.Stream[str]:
        return text

    def default(text: alto.Stream[str] = None) -> alto.Stream[str]:
        return text

    def no_input() -> alto.Stream[str]:
        raise NotImplementedError

    def unannotated(text) -> alto.Stream[str]:
        return text

    refused(asynchronous, "pipeline 'asynchronous' is async", "plain `def`")
    refused(agen, "pipeline 'agen' is async")
    refused(gen, "pipeline 'gen' is a generator", "`return`")
    refused(resource, "pipeline 'resource': parameter 'llm'", "keyword-only", "open()")
    refused(default, "pipeline 'default': parameter 'text'", "no default", "with each request")
    refused(no_input, "pipeline 'no_input' has no input", "Stream[T]")
    refused(unannotated, "pipeline 'unannotated': parameter 'text'", "no annotation")
    refused(str, "a pipeline is made of a function", "class 'str'")
    refused(length, "<Stage 'length'", "declared already")


def test_a_pipeline_is_annotated_with_streams() -> None:
    """An input or result that is no ``Stream[T]`` is named."""

    def item(text: str) -> alto.Stream[str]:
        raise NotImplementedError

    def bare(text: alto.Stream) -> alto.Stream[str]:
        raise NotImplementedError

    def result(text: alto.Stream[str]) -> list[str]:
        raise NotImplementedError

    refused(item, "pipeline 'item': parameter 'text' is annotated str", "Stream[str]")
    refused(bare, "pipeline 'bare': parameter 'text'", "Stream without an item type")
    refused(result, "pipeline 'result': its result", "list[str]", "Stream[list[str]]")


def test_several_results_are_refused_with_what_works() -> None:
    """A tuple of streams is no result: the message names `outputs` and its annotation."""

    def pair(text: alto.Stream[str]) -> tuple[alto.Stream[str], alto.Stream[int]]:
        raise NotImplementedError

    def named(text: alto.Stream[str]) -> dict[str, alto.Stream[str]]:
        raise NotImplementedError

    def maybe(text: alto.Stream[str]) -> alto.Stream[str] | None:
        raise NotImplementedError

    refused(pair, "gives one stream", "`return alto.outputs(a=..., b=...)`",
            "`-> Stream[alto.Output[str | int]]`")  # fmt: skip
    refused(named, "gives one stream", "alto.outputs", "Output[str]")
    refused(maybe, "handles streams")


def test_the_advice_of_the_message_about_several_results_works() -> None:
    """What it says is a pipeline."""

    @alto.pipeline
    def pair(text: alto.Stream[str]) -> alto.Stream[alto.Output[str | int]]:
        words = split(text)
        return alto.outputs(a=words, b=length(words))

    assert pair.declaration.output == alto.Output[str | int]


def test_an_input_that_nothing_takes_is_refused() -> None:
    """As the result of a stage; the message names it."""

    def spare(text: alto.Stream[str], number: alto.Stream[int]) -> alto.Stream[str]:
        return split(text)

    def by_only(text: alto.Stream[str], number: alto.Stream[int]) -> alto.Stream[int]:
        return alto.count(split(text), by=number)

    def returned(text: alto.Stream[str]) -> alto.Stream[str]:
        return text

    refused(spare, "pipeline 'spare': nothing takes input 'number'", "leave the parameter out")
    refused(by_only, "pipeline 'by_only': nothing takes input 'number'")
    assert alto.pipeline(returned).declaration.nodes == ()


def test_an_error_of_the_function_itself_comes_through() -> None:
    """What a pipeline function raises is the user's own, at the decoration."""

    def fails(text: alto.Stream[str]) -> alto.Stream[str]:
        return {}["missing"]

    def attribute(text: alto.Stream[str]) -> alto.Stream[str]:
        return text.upper()

    with pytest.raises(KeyError):
        alto.pipeline(fails)
    with pytest.raises(AttributeError, match="inside a stage"):
        alto.pipeline(attribute)


def test_a_half_imported_module_puts_the_reading_off() -> None:
    """A circular import is no mistake of the pipeline."""

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[str]:
        return alto.not_there_yet(text)

    with pytest.raises(AttributeError, match="not_there_yet"):
        p.check()


def test_options_of_pipeline_are_checked() -> None:
    """A name is a text; options come before the function; the repr says them."""
    with pytest.raises(GraphError, match="non-empty text"):
        alto.pipeline(name="")
    with pytest.raises(GraphError, match=r"pipeline\(\.\.\.\)\(fn\)"):
        alto.pipeline(refused, name="x")
    assert repr(alto.pipeline(name="x")) == "pipeline(name='x')"
    assert repr(alto.pipeline()) == "pipeline"


def test_the_repr_of_a_pipeline_shows_its_signature() -> None:
    """A pipeline's repr has its name and signature."""

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        """Reads."""
        return length(text)

    assert repr(p) == "<Pipeline 'p' (text: Stream[str]) -> Stream[int]>"
    assert (p.name, p.__doc__) == ("p", "Reads.")
    assert p.fn.__name__ == "p"
