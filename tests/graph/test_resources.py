"""What open() and a request are given, against what the signatures ask for."""

import pytest

import alto
from alto import InputError, ResourceError
from alto._graph import bind_resources, check_input, check_input_count, check_resource


@alto.stage
async def search(query: str, *, index: dict[str, str], limit: int = 3) -> str:
    """One required, one optional."""
    return index[query][:limit]


@alto.stage
async def rate(text: str, *, llm: str, limit: int) -> float:
    """Shares a name with the other stage."""
    return len(text) / limit


@alto.pipeline
def rated(query: alto.Stream[str]) -> alto.Stream[float]:
    """Both stages, unbound."""
    return rate(search(query))


@alto.pipeline
def bound(query: alto.Stream[str]) -> alto.Stream[float]:
    """Both stages, partly bound."""
    return rate.bind(llm="small", limit=1)(search(query))


def refused(pipeline, resources: dict[str, object], *said: str) -> None:
    """Expect that the resources are refused, and that the message says all of *said*."""
    with pytest.raises(ResourceError) as caught:
        bind_resources(pipeline.declaration, resources)
    for text in said:
        assert text in str(caught.value), str(caught.value)


def test_resources_go_to_every_stage_that_names_them() -> None:
    """One value serves all stages with a parameter of its name."""
    kwargs = bind_resources(rated.declaration, {"index": {}, "llm": "m", "limit": 2})
    assert kwargs == ({"index": {}, "limit": 2}, {"llm": "m", "limit": 2})


def test_what_is_bound_stays_bound() -> None:
    """A bound stage keeps its value; the open one goes to the others, or their default stays."""
    assert bind_resources(bound.declaration, {"index": {}}) == (
        {"index": {}},
        {"llm": "small", "limit": 1},
    )
    assert bind_resources(bound.declaration, {"index": {}, "limit": 9})[0]["limit"] == 9


def test_missing_resources_are_all_named() -> None:
    """One message lists every missing resource with type and stages."""
    refused(rated, {}, "pipeline 'rated'", "'index' (dict[str, str]), for stage 'search'",
            "'llm' (str), for stage 'rate'", "open(index=..., llm=..., limit=...)")  # fmt: skip


def test_an_unknown_resource_is_named_with_the_known_ones() -> None:
    """A near miss is guessed, others are listed, and a pipeline without any says so."""
    refused(rated, {"indx": {}}, "no resource 'indx'", "did you mean 'index'?")
    refused(rated, {"zzz": {}}, "no resource 'zzz'", "'index', 'limit', 'llm'")

    @alto.stage
    async def plain(query: str) -> str:
        return query

    @alto.pipeline
    def none(query: alto.Stream[str]) -> alto.Stream[str]:
        return plain(query)

    refused(none, {"llm": 3}, "no resource 'llm'", "keyword-only")


def test_a_resource_bound_twice_is_refused() -> None:
    """In open() after bind(), and in bind() after bind()."""
    refused(bound, {"index": {}, "llm": "m"}, "'llm' is bound twice", "stage 'rate'", "leave one")
    with pytest.raises(ResourceError, match="stage 'rate': resource 'llm' is bound already"):
        rate.bind(llm="a").bind(llm="b")


def test_a_resource_of_the_wrong_type_is_refused() -> None:
    """Stage, resource, expected and got are named, in open() and in bind()."""
    refused(rated, {"index": {}, "llm": 3, "limit": 1}, "stage 'rate': resource 'llm'",
            "must be str, not int")  # fmt: skip
    with pytest.raises(ResourceError, match="stage 'search': resource 'limit' must be int, not st"):
        search.bind(limit="3")
    with pytest.raises(ResourceError, match=r"resource 'index' must be dict\[str, str\], not list"):
        check_resource("search", search._spec.resolve().resources[0], [])


def test_an_unknown_resource_in_bind_is_refused() -> None:
    """bind() knows the stage's resources."""
    with pytest.raises(ResourceError, match="stage 'rate' has no resource 'lmm'; did you mean"):
        rate.bind(lmm="a")
    with pytest.raises(ResourceError, match="stage 'rate' has no resource 'text'"):
        rate.bind(text="a")


def test_an_input_of_the_wrong_type_is_refused() -> None:
    """Pipeline, input, expected and got are named."""
    declaration = rated.declaration
    check_input(declaration, declaration.inputs[0], "text")
    with pytest.raises(InputError, match="pipeline 'rated': input 'query' must be str, not int"):
        check_input(declaration, declaration.inputs[0], 3)


def test_a_wrong_number_of_inputs_is_refused() -> None:
    """The inputs are named; for several a tuple is asked for."""
    assert check_input_count(rated.declaration, ("a",)) == ("a",)
    with pytest.raises(InputError, match=r"'rated' takes 1 input \(query\), but is given 2"):
        check_input_count(rated.declaration, ("a", "b"))

    @alto.pipeline
    def two(a: alto.Stream[str], b: alto.Stream[str]) -> alto.Stream[str]:
        return joined(a, b)

    @alto.stage
    async def joined(a: str, b: str) -> str:
        return a + b

    with pytest.raises(InputError, match=r"takes a tuple of 2 inputs \(a, b\), but is given str"):
        check_input_count(two.declaration, "ab")
