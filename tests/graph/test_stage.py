"""What a stage may look like, and what is said of everything else."""

import functools
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from itertools import product
from typing import Annotated, Any, get_overloads

import pytest

import alto
from alto import GraphError
from alto.stage import StageDecorator


def refused(fn: object, *said: str, **options: object) -> None:
    """Expect that no stage can be made of *fn*, and that the message says all of *said*."""
    with pytest.raises(GraphError) as caught:
        alto.stage(**options)(fn)
    for text in said:
        assert text in str(caught.value), str(caught.value)


def spec_of(stage):
    """The record that a stage was read into."""
    return stage._spec.resolve()


def test_a_coroutine_function_gives_what_it_returns() -> None:
    """A coroutine's output type is its return annotation."""

    @alto.stage
    async def search(query: str, *, limit: int = 3) -> list[str]:
        return [query] * limit

    spec = spec_of(search)
    assert (spec.name, spec.generator, spec.output) == ("search", False, list[str])
    assert [(p.name, p.group, p.type) for p in spec.params] == [("query", False, str)]
    assert [(r.name, r.type, r.required) for r in spec.resources] == [("limit", int, False)]
    assert (spec.order, spec.concurrency) == ("ancestry", 32)


@pytest.mark.parametrize(
    "annotation", [AsyncIterator[int], AsyncGenerator[int, None], AsyncIterable[int]]
)
def test_a_generator_gives_what_is_inside_its_iterator(annotation: object) -> None:
    """Each way to annotate an async generator says the type of one item."""

    async def count(top: int):
        yield top

    count.__annotations__["return"] = annotation
    spec = spec_of(alto.stage(count))
    assert (spec.generator, spec.output) == (True, int)


def test_group_parameters_are_told_from_items() -> None:
    """``Group[T]`` is a group of T, also inside Annotated."""

    @alto.stage(concurrency=2, order="arrival", name="judge")
    async def appraise(
        claim: str, evidence: Annotated[alto.Group[list[str]], "gathered"], *, llm: int
    ) -> bool:
        return bool(claim)

    spec = spec_of(appraise)
    assert [(p.name, p.group, p.type) for p in spec.params] == [
        ("claim", False, str),
        ("evidence", True, list[str]),
    ]
    assert (spec.name, spec.order, spec.concurrency) == ("judge", "arrival", 2)
    assert spec.resources[0].required


async def test_the_plain_function_stays_reachable() -> None:
    """``fn`` is the function itself, and the stage looks like it."""

    async def plain(x: int) -> int:
        """Doubles."""
        return 2 * x

    stage = alto.stage(plain)
    assert stage.fn is plain
    assert await stage.fn(4) == 8
    assert stage.__doc__ == "Doubles."
    assert stage.__name__ == "plain"


def test_the_repr_shows_the_signature() -> None:
    """A stage's repr has its name, signature and bound resources; a decorator's its options."""

    @alto.stage
    async def f(x: alto.Group[int], *, k: int, llm: int = 1) -> str | None:
        return None

    assert repr(f) == "<Stage 'f' (x: Group[int], *, k: int, llm: int = ...) -> str | None>"
    assert repr(f.bind(k=3)).endswith("-> str | None, bound: k>")
    assert repr(alto.stage(name="n")) == "stage(concurrency=32, order='ancestry', name='n')"


def test_more_than_three_streams_are_allowed() -> None:
    """Only the typing stops at three."""

    @alto.stage
    async def four(a: int, b: int, c: int, d: int) -> int:
        return a + b + c + d

    assert len(spec_of(four).params) == 4


def test_a_wrapped_function_has_the_signature_of_what_it_wraps() -> None:
    """A decorator that uses functools.wraps, such as a retry, does not hide the declaration."""

    def retried(fn: Callable[..., Coroutine[Any, Any, int]]) -> Callable[..., Any]:
        @functools.wraps(fn)
        async def wrapper(*args: object, **kwargs: object) -> int:
            return await fn(*args, **kwargs)

        return wrapper

    @alto.stage
    @retried
    async def f(x: int, *, k: str) -> int:
        return x

    assert [p.name for p in spec_of(f).params] == ["x"]
    assert [r.name for r in spec_of(f).resources] == ["k"]


def test_every_choice_of_items_and_groups_has_a_type() -> None:
    """One overload each, up to six streams, those with more before those with fewer."""
    said = [o.__annotations__.get("fn", "") for o in get_overloads(StageDecorator.__call__)]
    taken = [re.findall(r"Group\[(\w)\]|(?<=[ \[])(\w)(?=,)", text) for text in said]
    shapes = ["".join("g" if group else "i" for group, _ in one) for one in taken]
    wanted = ["".join(shape) for n in range(6, 0, -1) for shape in product("gi", repeat=n)]
    assert [shape for shape in shapes if shape] == wanted
    gives = [o.__annotations__["return"] for o in get_overloads(StageDecorator.__call__)]
    letters = [", ".join("ABCDEF"[: len(shape)]) for shape in wanted]
    assert [g for g in gives if re.match(r"Stage\[[A-F],", g)] == [
        f"Stage[{one}, R]" for one in letters
    ]


def test_a_plain_function_is_refused() -> None:
    """A sync function is told to become async."""

    def f(x: int) -> int:
        return x

    refused(f, "stage 'f'", "plain function", "async def", 'runs_in="thread"')


def test_a_plain_generator_is_refused() -> None:
    """A sync generator is told to become an async one."""

    def f(x: int) -> AsyncIterator[int]:
        yield x

    refused(f, "stage 'f'", "plain generator", "async def", "AsyncIterator")


def test_what_is_no_function_is_refused() -> None:
    """Classes, partials, lambdas, methods and stages are named, each with its remedy."""

    class Searcher:
        async def find(self, query: str) -> str:
            return query

        @staticmethod
        async def look(query: str) -> str:
            return query

    async def f(x: int, *, k: int) -> int:
        return x

    refused(Searcher, "class", "Searcher", "resource")
    refused(functools.partial(f, k=1), "functools.partial", "'f'", "stage.bind")
    refused(lambda x: x, "lambda", "annotations")
    refused(
        Searcher().find, "not of the method", "Searcher.find", "async def find(query: str, *, s"
    )
    refused(Searcher.__dict__["look"], "staticmethod", "out of its class")
    refused(alto.stage(f), "<Stage 'f'", "declared already")
    refused(3, "not of 3", "async def")


def test_a_method_is_refused_with_the_form_that_works() -> None:
    """The message rewrites it: its object is a resource, beside those that it has."""

    class Searcher:
        async def find(self, query: str, n: "int", *, index: str, limit: int = 3) -> "list[str]":
            raise NotImplementedError

        async def spread(self: Any, query: str) -> AsyncIterator[str]:
            yield query

        @classmethod
        async def make(cls, query: str) -> str:
            raise NotImplementedError

        def block(self, query):
            raise NotImplementedError

    refused(Searcher.find, "stage 'find' is a method; move it out of its class", "`searcher.x`:",
            "    async def find(query: str, n: int, *, searcher: Searcher, index: str, "
            "limit: int = ...) -> list[str]: ...\n"
            "    async with pipeline.open(searcher=Searcher(...)) as app: ...")  # fmt: skip
    refused(
        Searcher.spread, "async def spread(query: str, *, searcher: Searcher) -> AsyncIterator["
    )
    refused(
        Searcher.make, "method", "async def make(query: str, *, searcher: Searcher) -> str: ..."
    )
    with pytest.raises(GraphError, match=r"  def block\(query, \*, searcher: Searcher\): \.\.\."):
        alto.stage(runs_in="thread")(Searcher.block)

    async def alone(self, query: str) -> str:
        raise NotImplementedError

    refused(alone, "stage 'alone' is a method; move it out of its class, and its state to a resou")


def test_a_stream_parameter_has_no_default() -> None:
    """The advice is the star, where that makes a resource of it and leaves a stream."""

    async def second(x: int, limit: int = 3) -> int:
        return x

    async def only(x: int = 3) -> int:
        return x

    async def gathers(x: int, xs: alto.Group[int] = ()) -> int:
        return x

    async def postponed(x: int, xs: "alto.Group[int]" = ()) -> int:
        return x

    refused(second, "stage 'second': parameter 'limit'", "put a `*` before it")
    for fn in (only, gathers, postponed):
        with pytest.raises(GraphError, match="can have no default; take the default away"):
            alto.stage(fn)


def test_missing_annotations_are_named() -> None:
    """A parameter or a result without annotation is refused."""

    async def no_parameter(x) -> int:
        return x

    async def no_resource(x: int, *, llm) -> int:
        return x

    async def no_result(x: int):
        return x

    refused(no_parameter, "stage 'no_parameter'", "parameter 'x'", "no annotation", "write")
    refused(no_resource, "stage 'no_resource'", "parameter 'llm'", "no annotation")
    refused(no_result, "stage 'no_result'", "no return annotation", "write")


def test_parameters_for_anything_are_refused() -> None:
    """``*args`` and ``**kwargs`` declare nothing."""

    async def stars(*xs: int) -> int:
        return 0

    async def two_stars(x: int, **options: int) -> int:
        return 0

    refused(stars, "stage 'stars'", "'*xs'", "name each one")
    refused(two_stars, "stage 'two_stars'", "'**options'", "name each one")


def test_a_stream_with_a_default_is_refused() -> None:
    """A positional default is probably meant to be a resource's."""

    async def f(x: int, k: int = 3) -> int:
        return x

    refused(f, "stage 'f'", "parameter 'k'", "no default", "`*`", "resource")


def test_a_stage_without_streams_is_refused() -> None:
    """A stage that takes nothing would never be called."""

    async def f(*, k: int) -> int:
        return k

    refused(f, "stage 'f'", "no stream parameter", "Group[T]")


def test_groups_and_streams_in_the_wrong_place_are_refused() -> None:
    """A group needs an argument, is never nested, and is no resource; a stage gets no streams."""

    async def bare(xs: alto.Group) -> int:
        return 0

    async def nested(xs: alto.Group[alto.Group[int]]) -> int:
        return 0

    async def inside(xs: list[alto.Group[int]]) -> int:
        return 0

    async def resource(x: int, *, xs: alto.Group[int]) -> int:
        return 0

    async def stream(x: alto.Stream[int]) -> int:
        return 0

    async def gives_group(x: int) -> alto.Group[int]:
        raise NotImplementedError

    refused(bare, "stage 'bare'", "parameter 'xs'", "Group without an item type", "Group[T]")
    refused(nested, "stage 'nested'", "parameter 'xs'", "Group inside", "by=")
    refused(inside, "stage 'inside'", "parameter 'xs'", "Group inside")
    refused(resource, "stage 'resource'", "parameter 'xs'", "keyword-only", "before the `*`")
    refused(stream, "stage 'stream'", "parameter 'x'", "Stream[int]", "Group[T]")
    refused(gives_group, "stage 'gives_group'", "Group[int]", "one item")


def test_a_result_that_is_not_what_the_function_does_is_refused() -> None:
    """A generator annotated as a coroutine, and the reverse, say which of the two to change."""

    async def generator(x: int) -> int:
        yield x

    async def coroutine(x: int) -> AsyncIterator[int]:
        raise NotImplementedError

    async def of_what(x: int) -> AsyncIterator:
        yield x

    refused(generator, "stage 'generator'", "yield", "AsyncIterator[int]")
    refused(coroutine, "stage 'coroutine'", "no `yield`", "`-> int`")
    refused(of_what, "stage 'of_what'", "without an item type", "AsyncIterator[T]")


def test_a_resource_named_like_an_option_is_refused() -> None:
    """``open(capacity=...)`` can mean only one thing."""
    for name in ("capacity", "max_held_items", "timeout"):
        namespace: dict[str, Any] = {}
        exec(f"async def f(x: int, *, {name}: int) -> int: ...", namespace)
        refused(namespace["f"], "stage 'f'", f"resource '{name}'", "option", "rename")


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, "4"])
def test_a_concurrency_below_one_is_refused(concurrency: object) -> None:
    """Concurrency is a whole number of calls, at least one."""
    with pytest.raises(GraphError, match=r"concurrency.*>= 1"):
        alto.stage(concurrency=concurrency)


def test_other_options_are_checked() -> None:
    """Order and name are checked where they are given, and options come before the function."""
    with pytest.raises(GraphError, match="'ancestry' or 'arrival'"):
        alto.stage(order="sorted")
    with pytest.raises(GraphError, match="non-empty text"):
        alto.stage(name="")
    with pytest.raises(TypeError, match="instances"):
        alto.stage(instances=4)
    with pytest.raises(GraphError, match=r"stage\(\.\.\.\)\(fn\)"):
        alto.stage(refused, name="x")
