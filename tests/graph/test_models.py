"""Models in resources: which are found, what is wrapped, what is refused."""

import collections
from collections.abc import (
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto._graph.resources import engines_in, find_misfit, is_read_once, with_handles
from alto._graph.spec import NodeSpec
from alto.testing import Scripted

A, B, C = (Scripted({}) for _ in range(3))
MINE = alto.LLM(C)


class Team(TypedDict, total=False):
    """Models by role."""

    lead: alto.LLM
    others: "list[alto.LLM]"
    size: int


class Tree(TypedDict):
    """Contains itself."""

    model: alto.LLM
    below: "list[Tree]"


class Outline(TypedDict):
    """Contains itself, and no model."""

    below: "list[Outline]"


class Pair(NamedTuple):
    """A tuple with names."""

    one: Any
    other: Any


def handed(value: object, annotation: object) -> Any:
    """What a stage gets that asks for *annotation*."""

    async def ask(text: str, *, model: object) -> str:
        raise NotImplementedError

    ask.__annotations__["model"] = annotation
    spec = alto.stage(ask)._spec.resolve()
    return with_handles(NodeSpec(name="ask", stage=spec, bound={}), {"model": value})["model"]


def plain(value: Any) -> Any:
    """*value* with ``LLM(engine)`` written as a tuple, which can be compared."""
    if isinstance(value, alto.LLM):
        return ("LLM", value.engine)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset | collections.deque):
        return [plain(one) for one in value]
    return value


@pytest.mark.parametrize(
    ("annotation", "value", "kind"),
    [
        (list[alto.LLM], [A, MINE], list),
        (tuple[alto.LLM, ...], (A, B), tuple),
        (tuple[alto.LLM, str], (A, "x"), tuple),
        (tuple[alto.LLM, alto.LLM], Pair(A, B), Pair),
        (dict[str, alto.LLM], {"a": A, "b": MINE}, dict),
        (Mapping[str, alto.LLM], MappingProxyType({"a": A}), dict),
        (MutableMapping[str, alto.LLM], collections.OrderedDict(a=A), collections.OrderedDict),
        (Sequence[alto.LLM], (A, B), tuple),
        (Sequence[alto.LLM], collections.deque([A]), collections.deque),
        (MutableSequence[alto.LLM], [A, B], list),
        (AbstractSet[alto.LLM], {A}, set),
        (frozenset[alto.LLM], frozenset([A]), frozenset),
        (Iterable[alto.LLM], {"a": A}.values(), list),
        (list[alto.LLM] | None, [A], list),
        (alto.LLM | list[alto.LLM], [A], list),
        (Annotated[dict[str, list[alto.LLM | None]], "x"], {"a": [A, None]}, dict),
        (Team, {"lead": A, "others": [B], "size": 2}, dict),
        (Tree, {"model": A, "below": [{"model": B, "below": []}]}, dict),
    ],
)
def test_models_in_containers_are_wrapped(annotation: Any, value: Any, kind: type) -> None:
    """In a container of the same kind, and what is given stays as it was."""
    before = plain(value)
    made = handed(value, annotation)
    assert type(made) is kind
    assert not list(_raw(made))
    assert {id(e) for e in engines_in(made, annotation)} == {
        id(e) for e in engines_in(value, annotation)
    }
    assert plain(value) == before
    assert find_misfit(value, annotation) is None
    assert handed(made, annotation) is made


def _raw(value: Any) -> Iterator[object]:
    if isinstance(value, Scripted):
        yield value
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        return
    for part in parts:
        yield from _raw(part)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (object, A),
        (Any, [A]),
        (list, [A]),
        (list[Any], [A]),
        (dict[str, object], {"a": A}),
        (list[str], [A]),
        (list[Pair], [Pair(A, B)]),
        (Outline, {"below": [{"below": []}]}),
        (dict[alto.LLM, str], {MINE: "x"}),
        (alto.Engine, A),
        (list[alto.Engine], [A]),
        (list[Scripted], [A]),
        (alto.LLM | None, None),
        (list[alto.LLM], []),
    ],
)
def test_what_is_no_model_to_the_annotation_is_left_alone(annotation: Any, value: Any) -> None:
    """The very object that was given reaches the stage."""
    assert handed(value, annotation) is value
    assert find_misfit(value, annotation) is None


@pytest.mark.parametrize(
    ("annotation", "value", "found"),
    [
        (list[alto.Engine], [A, B], [A, B]),
        (list[Scripted], [A], [A]),
        (dict[str, alto.LLM], {"a": A, "b": MINE}, [A, C]),
        (list[list[alto.LLM]], [[A], [], [B]], [A, B]),
        (list[Any], [A], []),
        (list[Pair], [Pair(A, B)], []),
        (alto.LLM | None, A, [A]),
        (object, A, [A]),
        (list[alto.LLM], alto.per_replica(list), []),
    ],
)
def test_engines_are_found_where_the_annotation_asks_for_them(
    annotation: Any, value: Any, found: list[Any]
) -> None:
    """Those are what an app starts and stops."""
    assert list(engines_in(value, annotation)) == found


@pytest.mark.parametrize(
    ("annotation", "value", "where"),
    [
        (list[alto.LLM], [A, "x"], "[1]"),
        (list[alto.LLM], [A, Scripted], "[1]"),
        (dict[str, alto.LLM], {"a": None}, "['a']"),
        (dict[str, list[alto.LLM]], {"a": [A, 3]}, "['a'][1]"),
        (Team, {"lead": A, "others": [3]}, "['others'][0]"),
        (Sequence[alto.LLM], {"a": A}, "[0]"),
    ],
)
def test_a_part_that_is_no_model_is_found(annotation: Any, value: Any, where: str) -> None:
    """With the place where it is."""
    misfit = find_misfit(value, annotation)
    assert misfit is not None
    assert misfit[0] == where


def test_an_iterator_of_models_would_be_used_up() -> None:
    """Only where the annotation asks for models."""
    assert is_read_once(iter([A]), Iterable[alto.LLM])
    assert not is_read_once([A], Iterable[alto.LLM])
    assert not is_read_once(iter([A]), Iterable[str])


ENGINES = [Scripted({}) for _ in range(4)]
LEAVES = st.sampled_from([(alto.LLM, e) for e in ENGINES] + [(alto.LLM, MINE)])
LEAVES |= st.sampled_from([(int, 3), (str, "x"), (alto.LLM | None, None)])


def _nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        children.map(lambda c: (list[c[0]], [c[1], c[1]])),
        children.map(lambda c: (tuple[c[0], ...], (c[1],))),
        children.map(lambda c: (dict[str, c[0]], {"a": c[1], "b": c[1]})),
        children.map(lambda c: (Mapping[str, c[0]], MappingProxyType({"a": c[1]}))),
        children.map(lambda c: (c[0] | None, c[1])),
        st.tuples(children, children).map(
            lambda c: (tuple[c[0][0], c[1][0]], (c[0][1], c[1][1]))
        ),
    )  # fmt: skip


@given(st.recursive(LEAVES, _nested, max_leaves=6))
def test_any_nesting_of_containers(drawn: tuple[Any, Any]) -> None:
    """Every engine is found in order, and every one is wrapped, nothing else changes."""
    annotation, value = drawn
    made = handed(value, annotation)
    assert not list(_raw(made))
    assert (
        list(engines_in(value, annotation))
        == list(engines_in(made, annotation))
        == [*_all_engines(value)]
    )
    assert _unwrapped(made) == _unwrapped(value)
    assert find_misfit(value, annotation) is None


def _all_engines(value: Any) -> Iterator[Any]:
    if isinstance(value, alto.LLM | Scripted):
        yield value.engine if isinstance(value, alto.LLM) else value
    elif not isinstance(value, str) and isinstance(value, Iterable):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _all_engines(part)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, alto.LLM):
        return value.engine
    if isinstance(value, Mapping):
        return {key: _unwrapped(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_unwrapped, value))
    return value
