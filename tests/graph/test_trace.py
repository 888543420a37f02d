"""Reading a pipeline function: what it may do with its streams, and what is said of the rest."""

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


@alto.stage
async def spread(text: str) -> list[str]:
    """A list at once."""
    return [text]


@alto.stage
async def total(numbers: alto.Group[int]) -> int:
    """One from many."""
    return sum(await numbers.list())


@alto.stage
async def label(text: str, number: int, *, sign: str = ":") -> str:
    """One from two."""
    return f"{text}{sign}{number}"


def refused(fn: Callable[..., Any], *said: str) -> None:
    """Expect that no pipeline can be made of *fn*, and that the message says all of *said*."""
    with pytest.raises(GraphError) as caught:
        alto.pipeline(fn)
    for text in said:
        assert text in str(caught.value), str(caught.value)


def test_a_pipeline_is_read_into_nodes() -> None:
    """Nodes stand in call order, with the plan's names and the stage's records."""

    @alto.pipeline(name="count")
    def lengths(text: alto.Stream[str]) -> alto.Stream[int]:
        return total(length(split(text)))

    declaration = lengths.declaration
    assert (declaration.name, declaration.output) == ("count", int)
    assert [(i.name, i.type) for i in declaration.inputs] == [("text", str)]
    assert [node.name for node in declaration.nodes] == ["split", "length", "total"]
    assert [plan.depth for plan in declaration.plan.nodes] == [0, 1, 0]
    assert declaration.plan.output == 3
    assert lengths.declaration is declaration


def test_a_stage_used_twice_is_two_nodes() -> None:
    """Each call is a node of its own, with a name of its own."""

    @alto.pipeline
    def twice(text: alto.Stream[str]) -> alto.Stream[str]:
        return split(split(text))

    assert [node.name for node in twice.declaration.nodes] == ["split", "split#2"]


def test_a_stage_may_be_used_in_two_pipelines() -> None:
    """Readings do not disturb each other."""

    @alto.pipeline
    def one(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(text)

    @alto.pipeline
    def other(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(text)

    assert one.declaration.nodes[0].stage is other.declaration.nodes[0].stage


def test_a_pipeline_called_in_another_is_inlined() -> None:
    """Its nodes become nodes of the outer one, and its declared types hold at its borders."""

    @alto.pipeline
    def inner(text: alto.Stream[str]) -> alto.Stream[object]:
        return length(split(text))

    seen = []

    @alto.pipeline
    def outer(text: alto.Stream[str]) -> alto.Stream[object]:
        seen.append(inner(text))
        return seen[0]

    assert [node.name for node in outer.declaration.nodes] == ["split", "length"]
    assert repr(seen[0]) == "<Stream[object] from pipeline 'inner' of pipeline 'outer'>"


def test_by_names_an_ancestor() -> None:
    """``by=`` gathers over several levels at once."""

    @alto.pipeline
    def whole(text: alto.Stream[str]) -> alto.Stream[int]:
        return total(length(split(split(text))), by=text)

    assert whole.declaration.plan.nodes[-1].depth == 0


def test_bound_resources_travel_with_the_node() -> None:
    """Two differently bound stages are two nodes of one stage."""

    @alto.pipeline
    def signed(text: alto.Stream[str]) -> alto.Stream[str]:
        return label.bind(sign="=")(text, length(text))

    assert dict(signed.declaration.nodes[1].bound) == {"sign": "="}


def test_an_edge_of_the_wrong_type_is_refused() -> None:
    """The message names pipeline, stage, parameter, both types and where the stream is from."""

    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(length(text))

    refused(p, "pipeline 'p': stage 'length': parameter 'text'", "takes str",
            "stage 'length' gives int", "annotation")  # fmt: skip

    def q(number: alto.Stream[int]) -> alto.Stream[int]:
        return length(number)

    refused(q, "takes str", "input 'number' gives int")

    def r(text: alto.Stream[str]) -> alto.Stream[int]:
        return total(split(text))

    refused(r, "parameter 'numbers' takes Group[int]", "gives str")


def test_a_list_where_items_are_taken_is_refused_with_its_remedy() -> None:
    """Who returns a list probably means to yield; who takes one probably means to gather."""

    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(spread(text))

    refused(p, "takes str", "gives list[str]", "yield their elements one by one")

    @alto.stage
    async def gather(texts: list[str]) -> int:
        return 0

    def q(text: alto.Stream[str]) -> alto.Stream[int]:
        return gather(split(text))

    refused(q, "takes list[str]", "gives str", "Group[str]")


def test_what_is_no_stream_is_refused() -> None:
    """Constants, lists, stages and nothing at all are each told apart."""

    def constant(text: alto.Stream[str]) -> alto.Stream[str]:
        return label(text, 3)

    refused(constant, "stage 'label': parameter 'number'", "must be a Stream", "int (3)", "bind()")

    def listed(text: alto.Stream[str]) -> alto.Stream[int]:
        return total([length(text)])

    refused(listed, "parameter 'numbers'", "not a list", "one stream for each")

    def uncalled(text: alto.Stream[str]) -> alto.Stream[str]:
        return label(text, length)

    refused(uncalled, "parameter 'number'", "<Stage 'length'", "itself; call it")

    def by(text: alto.Stream[str]) -> alto.Stream[int]:
        return total(length(split(text)), by="text")

    refused(by, "stage 'total': by=", "must be a Stream", "'text'")

    def long(text: alto.Stream[str]) -> alto.Stream[int]:
        return length("x" * 1000)

    refused(long, "str ('xxx", "...)")


def test_a_wrong_call_is_refused() -> None:
    """The number of streams and every keyword are checked, with a remedy for each."""

    def few(text: alto.Stream[str]) -> alto.Stream[str]:
        return label(text)

    refused(few, "stage 'label' takes 2 streams (text, number)", "called with 1")

    def resource(text: alto.Stream[str]) -> alto.Stream[str]:
        return label(text, length(text), sign="=")

    refused(resource, "stage 'label': 'sign' is a resource", "open(sign=...)", "label.bind(sign=")

    def keyword(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(text=text)

    refused(keyword, "stage 'length': parameter 'text' is a stream", "by position")

    def unknown(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(text, retries=3)

    refused(unknown, "stage 'length' has no parameter 'retries'")


def test_streams_without_common_ancestry_are_refused() -> None:
    """What the plan refuses is said with the pipeline's name."""

    def p(text: alto.Stream[str]) -> alto.Stream[str]:
        return label(split(text), length(split(text)))

    refused(p, "pipeline 'p': stage 'label'", "no common ancestry", "Group[...]")


def test_by_that_is_no_ancestor_is_refused() -> None:
    """A stream from elsewhere gathers nothing."""

    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        return total(length(split(text)), by=split(text))

    refused(p, "pipeline 'p': stage 'total': by=", "no ancestor of parameter 'numbers'")


def test_a_result_that_nobody_takes_is_refused() -> None:
    """A stage call without a consumer is probably a mistake."""

    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        split(text)
        return length(text)

    refused(p, "pipeline 'p': nothing takes", "stage 'split'")


def test_a_stream_of_another_pipeline_is_refused() -> None:
    """A stream kept from one reading is good for nothing in the next."""
    kept: list[alto.Stream[str]] = []

    @alto.pipeline
    def first(text: alto.Stream[str]) -> alto.Stream[str]:
        kept.append(text)
        return split(text)

    def second(text: alto.Stream[str]) -> alto.Stream[str]:
        return label(kept[0], length(text))

    refused(second, "pipeline 'second': stage 'label': parameter 'text'",
            "input 'text' of pipeline 'first'", "pass the stream")  # fmt: skip

    def third(text: alto.Stream[str]) -> alto.Stream[str]:
        return kept[0]

    refused(third, "pipeline 'third': its result", "pipeline 'first'")


def test_a_stage_called_outside_a_pipeline_is_refused() -> None:
    """The message says where to call it, and how to call the plain function."""
    with pytest.raises(GraphError, match=r"stage 'length'.*outside.*@alto.pipeline.*length\.fn\("):
        length("text")


def test_a_pipeline_called_outside_a_pipeline_is_refused() -> None:
    """The message says how to run it."""

    @alto.pipeline
    def p(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(text)

    with pytest.raises(GraphError, match=r"pipeline 'p'.*outside.*p\.open\(.*p\.stream\("):
        p("text")


def test_the_streams_of_an_inlined_pipeline_are_checked() -> None:
    """Messages inside an inlined pipeline name both pipelines."""

    @alto.pipeline
    def inner(number: alto.Stream[float]) -> alto.Stream[str]:
        return shown(number)

    @alto.stage
    async def shown(number: float) -> str:
        return str(number)

    def wrong(text: alto.Stream[str]) -> alto.Stream[str]:
        return inner(text)

    refused(wrong, "pipeline 'wrong': pipeline 'inner': input 'number' takes float", "gives str")

    def many(text: alto.Stream[str]) -> alto.Stream[str]:
        return inner(length(text), text)

    refused(many, "pipeline 'inner' takes 1 stream (number)", "called with 2")

    def keyword(text: alto.Stream[str]) -> alto.Stream[str]:
        return inner(number=length(text))

    refused(keyword, "pipeline 'inner' takes streams only", "'number'")


def test_a_mistake_inside_an_inlined_pipeline_names_both() -> None:
    """The chain of pipelines says where the reading was."""
    wrong: list[Any] = []

    @alto.pipeline
    def inner(text: alto.Stream[str]) -> alto.Stream[int]:
        return length(wrong[0](text)) if wrong else length(text)

    wrong.append(length)

    def outer(text: alto.Stream[str]) -> alto.Stream[int]:
        return inner(text)

    refused(outer, "pipeline 'outer' > 'inner': stage 'length': parameter 'text'")
