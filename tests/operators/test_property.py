"""Any chain of operators, any schedule: what a sequential interpreter gives, and plain Python.

A drawn plan is a list of steps on one stream. Each step is declared with alto, and done a second
time on a dict from path to value, in a few lines without streams, groups or levels.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import reduce
from typing import Any
from zlib import crc32

import anyio
import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import alto
from alto.testing import reference_run, run_virtual

Path = tuple[int, ...]
DELAYS = (None, 0.0, 0.1, 0.35)


def mixed(*parts: object) -> int:
    """A number below 1000 that follows from *parts*."""
    return crc32(repr(parts).encode()) % 1000


async def wait(salt: int, value: object) -> None:
    """As long as follows from the arguments."""
    delay = DELAYS[mixed(salt, value, "delay") % 4]
    if delay is not None:
        await anyio.sleep(delay)


def fanning(salt: int) -> Any:
    """A stage that gives 0 to 3 children."""

    @alto.stage(concurrency=1 + salt % 3)
    async def fan(value: int) -> AsyncIterator[int]:
        for child in children(salt, value):
            await wait(salt, child)
            yield child

    return fan


def children(salt: int, value: int) -> list[int]:
    """What `fanning` gives."""
    return [mixed(salt, value, k) for k in range(mixed(salt, value) % 4)]


def slowing(salt: int) -> Any:
    """A stage that takes its time and makes a number of anything."""

    @alto.stage(concurrency=1 + salt % 5)
    async def slow(value: Any) -> int:
        await wait(salt, value)
        return mixed(salt, value)

    return slow


@attrs.frozen
class Step:
    """One operator, or a stage, on the stream so far."""

    kind: str
    salt: int
    by: int | None = None
    """At which depth to gather; None: by the parent."""
    size: int = 1
    emit: str = "final"
    order: str = "ancestry"
    keyed: bool = False


@attrs.frozen
class Flow:
    """The stream so far, and per level above it a stream of that depth."""

    stream: Any
    anchors: tuple[Any, ...]


@attrs.frozen
class Model:
    """The same without alto: per depth all paths, and the items at the deepest."""

    levels: tuple[list[Path], ...]
    items: dict[Path, Any]

    def groups(self, depth: int) -> dict[Path, list[Any]]:
        """Per path at *depth* the items below it."""
        return {
            top: [item for path, item in sorted(self.items.items()) if path[:depth] == top]
            for top in self.levels[depth]
        }

    def gathered(self, depth: int, make: Callable[[list[Any]], Any]) -> Model:
        """One item for each group."""
        items = {top: make(group) for top, group in self.groups(depth).items()}
        return Model(self.levels[: depth + 1], items)

    def spread(self, depth: int, groups: dict[Path, list[Any]]) -> Model:
        """Some items for each path at *depth*."""
        items = {(*top, k): x for top, group in groups.items() for k, x in enumerate(group)}
        return Model((*self.levels[: depth + 1], sorted(items)), items)

    def mapped(self, make: Callable[[Any], Any]) -> Model:
        """One item for each item."""
        return Model(self.levels, {path: make(item) for path, item in self.items.items()})


def folded(step: Step, state: int, item: int) -> int:
    """The function of a `reduce`: the order matters, if it is kept."""
    return state + item if step.order == "arrival" else (state * 31 + item) % 10_007


def digest(step: Step, value: Any) -> int:
    """A number for a result of any kind."""
    if isinstance(value, alto.Pane):
        value = (value.value, value.revision, value.final)
    if isinstance(value, list) and (step.order == "arrival" or step.kind == "collect"):
        value = sorted(value) if step.order == "arrival" else value
    return mixed(step.salt, value)


def digesting(step: Step) -> Any:
    """`digest` as a stage."""

    @alto.stage
    async def digested(value: Any) -> int:
        return digest(step, value)

    return digested


def keep(step: Step) -> Any:
    """A predicate, sync or async."""

    def wanted(value: int) -> bool:
        return mixed(step.salt, value) % 3 > 0

    async def slowly(value: int) -> bool:
        await wait(step.salt, value)
        return wanted(value)

    return slowly if step.keyed else wanted


def ranks(step: Step) -> Any:
    """A key with many ties, or None."""
    return (lambda value: value % 4) if step.keyed else None


def declared(step: Step, flow: Flow) -> Flow:  # noqa: C901  # a table
    """The step with alto."""
    stream, anchors = flow.stream, flow.anchors
    by = None if step.by is None else anchors[step.by]
    options: dict[str, Any] = {"by": by}
    depth = len(anchors) - 1
    at = depth - 1 if step.by is None else step.by
    match step.kind:
        case "fan":
            made = fanning(step.salt)(stream)
            return Flow(made, (*anchors, made))
        case "slow":
            made = slowing(step.salt)(stream)
            return Flow(made, (*anchors[:-1], made))
        case "where":
            made = alto.where(stream, keep(step))
            return Flow(made, (*anchors, made))
        case "switch":
            one, two, rest = alto.switch(
                stream, lambda x: mixed(step.salt, x) % 4, 0, 1, otherwise=True
            )
            at = depth if step.by is None else step.by
            made = alto.merge(slowing(step.salt)(two), slowing(step.salt + 1)(one), rest,
                              order=step.order, **options)  # fmt: skip
            return Flow(made, (*anchors[: at + 1], made))
        case "merge":
            made = alto.merge(stream, slowing(step.salt)(stream), order=step.order, **options)
            return Flow(made, (*anchors[: max(at, 0) + 1], made))
        case "uneven":
            made = alto.merge(stream, fanning(step.salt)(slowing(step.salt)(stream)),
                              fanning(step.salt + 1)(fanning(step.salt)(stream)), order="arrival",
                              **options)  # fmt: skip
            return Flow(made, (*anchors[: max(at, 0) + 1], made))
        case "first":
            made = alto.first(stream, step.size, **options)
            return Flow(made, (*anchors[: at + 1], made))
        case "collect":
            made = alto.collect(stream, order=step.order, **options)
        case "count":
            made = alto.count(stream, emit=step.emit, **options)
        case "total":
            key = (lambda x: x / 2) if step.keyed else None
            made = alto.total(stream, key=key, emit=step.emit, **options)
        case "top_k":
            made = alto.top_k(stream, step.size, key=ranks(step), emit=step.emit, **options)
        case "reduce":
            made = alto.reduce(stream, lambda s, x: folded(step, s, x), 7, order=step.order,
                               emit=step.emit, **options)  # fmt: skip
    made = digesting(step)(made)
    return Flow(
        made, (*anchors[: at + 1], made) if step.emit == "partial" else (*anchors[:at], made)
    )


def plain(step: Step, model: Model) -> Model:
    """The step without alto."""
    depth = len(model.levels) - 1
    at = depth - 1 if step.by is None else step.by
    makes: dict[str, Callable[[list[Any]], Any]] = {
        "collect": list,
        "count": len,
        "total": lambda group: sum(x / 2 if step.keyed else x for x in group),
        "top_k": lambda group: sorted(group, key=ranks(step), reverse=True)[: step.size],
        "reduce": lambda group: reduce(lambda s, x: folded(step, s, x), group, 7),
    }
    match step.kind:
        case "fan":
            return model.spread(depth, {p: children(step.salt, x) for p, x in model.items.items()})
        case "slow":
            return model.mapped(lambda x: mixed(step.salt, x))
        case "where":
            wanted = keep(attrs.evolve(step, keyed=False))
            return model.spread(depth, {p: [x] * wanted(x) for p, x in model.items.items()})
        case "switch":
            case = {p: mixed(step.salt, x) % 4 for p, x in model.items.items()}
            branches = [
                {p: mixed(step.salt, x) for p, x in model.items.items() if case[p] == 1},
                {p: mixed(step.salt + 1, x) for p, x in model.items.items() if case[p] == 0},
                {p: x for p, x in model.items.items() if case[p] > 1},
            ]
            return merged(model, branches, depth if step.by is None else step.by)
        case "merge":
            other = model.mapped(lambda x: mixed(step.salt, x)).items
            return merged(model, [model.items, other], max(at, 0))
        case "uneven":
            slow = model.mapped(lambda x: mixed(step.salt, x))
            once = plain(attrs.evolve(step, kind="fan"), slow)
            twice = plain(attrs.evolve(step, kind="fan"), model)
            twice = plain(Step("fan", step.salt + 1), twice)
            return merged(model, [model.items, once.items, twice.items], max(at, 0))
        case "first":
            return model.spread(at, {p: g[: step.size] for p, g in model.groups(at).items()})
        case kind if step.emit == "partial":
            panes = {
                top: [
                    alto.Pane(value=makes[kind](group[: k + 1]), revision=k, final=k == len(group))
                    for k in range(len(group) + 1)
                ]
                for top, group in model.groups(at).items()
            }
            return model.spread(at, panes).mapped(lambda pane: digest(step, pane))
        case kind:
            return model.gathered(at, makes[kind]).mapped(lambda value: digest(step, value))


def merged(model: Model, streams: list[dict[Path, Any]], at: int) -> Model:
    """All of the first below each path at depth *at*, then all of the next."""
    groups = {
        top: [x for items in streams for path, x in sorted(items.items()) if path[:at] == top]
        for top in model.levels[at]
    }
    return model.spread(at, groups)


GATHER = ("collect", "count", "total", "top_k", "reduce", "first")
IN_ANY_ORDER = ("slow", "where", "switch", "merge", "uneven", "collect", "count", "total", "top_k",
                "reduce")  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Step], bool]:
    """Steps that fit each other, and whether the order of the results is certain."""
    steps = [Step("fan", draw(st.integers(0, 99))) for _ in range(draw(st.integers(1, 3)))]
    depth, ordered = len(steps), True
    for _ in range(draw(st.integers(1, 5))):
        kinds = (
            ("fan", "slow", "where", "switch", "merge", "uneven", *GATHER)
            if ordered
            else IN_ANY_ORDER
        )
        kind = draw(st.sampled_from(kinds))
        if (kind in GATHER and not depth) or (kind in ("fan", "where", "switch") and depth > 3):
            continue
        arrival = (
            not ordered
            or kind == "uneven"
            or (kind in ("collect", "reduce", "switch", "merge") and draw(st.integers(0, 3)) == 3)
        )
        above = depth if kind == "switch" else depth - 1
        by = None
        if kind in ("switch", "merge", "uneven", *GATHER) and above >= 0:
            by = draw(st.sampled_from([None, *range(above + 1)]))
        emit = "final"
        if kind in ("count", "total", "top_k", "reduce") and ordered and not arrival:
            emit = draw(st.sampled_from(["final", "partial"]))
        at = max(above, 0) if by is None else by
        steps.append(
            Step(
                kind, draw(st.integers(0, 99)), by=by, size=draw(st.integers(1, 4)), emit=emit,
                order="arrival" if arrival else "ancestry",
                keyed=draw(st.booleans()) and (ordered or kind == "where"),
            )
        )  # fmt: skip
        if kind in ("fan", "where"):
            depth += 1
        elif kind in ("switch", "merge", "uneven", "first") or emit == "partial":
            depth = at + 1
        elif kind != "slow":
            depth = at
        ordered = ordered and not (arrival and kind in ("switch", "merge", "uneven"))
    return steps, ordered


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.sampled_from([1, 2, 32]))
def test_a_chain_of_operators_equals_plain_python(
    plan: tuple[list[Step], bool], capacity: int
) -> None:
    """run() gives the interpreter's list and that of plain Python, and leaves nothing behind."""
    steps, ordered = plan

    @alto.pipeline
    def chain(value: alto.Stream[int]) -> alto.Stream[int]:
        flow = Flow(value, (value,))
        for step in steps:
            flow = declared(step, flow)
        return flow.stream

    def expected(value: int) -> list[int]:
        model = Model(([()],), {(): value})
        for step in steps:
            model = plain(step, model)
        found = [item for _, item in sorted(model.items.items())]
        return found if ordered else sorted(found)

    def seen(results: list[int]) -> list[int]:
        return results if ordered else sorted(results)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(complain)
        async with chain.open(capacity=capacity) as app:
            fresh = app.statistics()
            async with anyio.create_task_group() as tasks:
                for value in (3, 4):
                    tasks.start_soon(one, app, value)
            assert app.statistics() == fresh
        assert seen(await reference_run(chain, 3)) == expected(3)

    async def one(app: Any, value: int) -> None:
        assert seen(await app.run(value)) == expected(value)

    reported: list[dict[str, Any]] = []

    def complain(_loop: object, context: dict[str, Any]) -> None:
        reported.append(context)

    run_virtual(main)
    assert not reported
