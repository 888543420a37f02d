"""Hypothesis strategies: whole pipelines, with what runs through them.

Needs Hypothesis, which alto itself does not.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol, TypeVar

import attrs
from hypothesis import strategies as st

from alto._spec import GroupOrder
from alto.testing._drawn import InnerDraw, NodeDraw, PipelineDraw, Probe, Reading, StageDraw, build

__all__ = ("DrawnPipeline", "Failing", "pipelines")

T = TypeVar("T")

_DEEPEST: Final = 4
_MOST_ITEMS: Final = 120
"""Items on one edge in one request, at most."""
_MOST_CALLS: Final = 400
"""Calls of pipelines inside one stage in one request, at most."""


@attrs.frozen(kw_only=True)
class Failing:
    """One call that fails: which of them is decided among those that a sequential run makes."""

    request: int
    """Index of the request in ``DrawnPipeline.inputs``."""
    pick: int
    """Which of its calls, counted round and round."""
    after: int
    """How many outputs the call gives before, as far as it has so many."""


class _Printer(Protocol):
    def text(self, text: str) -> None: ...


@attrs.frozen(kw_only=True, eq=False, repr=False)
class DrawnPipeline:
    """A pipeline, requests for it, and how to open it. Its repr is the whole of it, as code."""

    pipeline: Any
    """A real pipeline of one or two ``str`` inputs and ``str`` results."""
    inputs: tuple[tuple[str, ...], ...]
    """Per request its inputs."""
    capacity: int
    """For ``open(capacity=...)``."""
    failing: Failing | None
    """None: nothing fails. The stages fail only once it is armed."""
    early: bool
    """Whether a stage leaves a group or a pipeline early; calls above it may then be cancelled."""
    probe: Probe
    """What the stages report to."""
    describe: str
    """The pipeline as people would write it."""

    def __repr__(self) -> str:
        requests = ", ".join(f"({', '.join(map(repr, one))})" for one in self.inputs)
        failing = "" if self.failing is None else f"\n{self.failing}"
        return f"\n{self.describe}\ncapacity {self.capacity}, requests {requests}{failing}\n"

    def _repr_pretty_(self, printer: _Printer, cycle: bool) -> None:  # noqa: FBT001  # as IPython's
        """Hypothesis prints it as it is."""
        del cycle
        printer.text(repr(self))

    def arm(self, heard: list[tuple[str, tuple[str, ...]]]) -> bool:
        """Make one call fail.

        Args:
            heard: ``probe.heard`` after a run of nothing but the request that shall fail.

        Returns:
            False where no call of that request can be told from those of others; nothing is armed.
        """
        assert self.failing is not None
        tag = f"r{self.failing.request}:"
        own = [one for one in heard if any(word.startswith(tag) for word in one[1])]
        if own:
            self.probe.fuse = own[self.failing.pick % len(own)]
            self.probe.after = self.failing.after
        return bool(own)


@st.composite
def pipelines(draw: st.DrawFn, *, failing: bool = False, max_nodes: int = 7) -> DrawnPipeline:
    """Pipelines of real stages, from one coroutine to nested pipelines with joins of joins.

    What may occur: levels up to 4 deep with 0 to 5 children, one to three parameters, items
    repeated for the descendants of others, groups beside items, several groups in one stage,
    ``by=``, streams with several consumers that meet again, a stage used twice, pipelines inlined
    or called from a stage, groups and inner streams that are left early, groups in order of
    arrival, delays on the loop's clock, ``concurrency`` and ``capacity`` from 1.

    Results are deterministic: where pieces come in order of arrival the stage sorts them.

    Args:
        draw: Given by Hypothesis.
        failing: Also choose a call that fails; see :meth:`DrawnPipeline.arm`.
        max_nodes: Most stage calls, before those that join what is left over.
    """
    chooser = _Chooser(draw)
    requests = draw(st.integers(1, 3))
    drawn = chooser.pipeline(inputs=draw(st.integers(1, 2)), most=max_nodes, inner=False)
    fails = None
    if failing:
        fails = Failing(
            request=draw(st.integers(0, requests - 1)),
            pick=draw(st.integers(0, 99)),
            after=draw(st.integers(0, 2)),
        )
    probe = Probe()
    return DrawnPipeline(
        pipeline=build(drawn, probe),
        inputs=tuple(
            tuple(f"r{number}:{'xy'[k]}" for k in range(drawn.inputs)) for number in range(requests)
        ),
        capacity=draw(st.sampled_from([1, 2, 3, 32])),
        failing=fails,
        early=any(_leaves(stage) for stage in drawn.stages()),
        probe=probe,
        describe=str(drawn),
    )


def _leaves(stage: StageDraw) -> bool:
    return stage.take is not None or (stage.inner is not None and stage.inner.take is not None)


_CALLS: Final[tuple[Literal["run", "stream", "arrival"], ...]] = ("run", "stream", "arrival")
# Tables that calls choose from; each is drawn whole, which is much quicker than by its entries.
_FANS: Final = (
    (2,), (1,), (0, 1), (2, 0), (3, 1), (1, 2, 0), (3,), (0, 0, 3), (4, 0, 1), (5, 2), (5,), (0,),
)  # fmt: skip
_DELAYS: Final[tuple[tuple[float | None, ...], ...]] = (
    (None,), (0.0,), (0.01,), (None, 0.01), (0.1, 0.0), (None, 0.1), (0.03,), (0.1, 0.03, 0.01),
    (0.1,), (None, None, 0.1), (0.03, None), (0.0, None),
)  # fmt: skip


class _Chooser:
    """Draws stages and pipelines with names of their own."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._stages = 0
        self.inner: list[PipelineDraw] = []

    def one_of(self, *choices: T) -> T:
        """One of *choices*; failures are shrunk towards the first."""
        return self._draw(st.sampled_from(choices))

    def integer(self, least: int, most: int) -> int:
        """A number."""
        return self._draw(st.integers(least, most))

    def inner_pipeline(self) -> PipelineDraw:
        """A small pipeline, to be inlined or called; one of those before or a new one."""
        known = self._draw(st.sampled_from([*self.inner, None]))
        if known is None:
            known = self.pipeline(inputs=1, most=3, inner=True)
            self.inner.append(known)
        return known

    def pipeline(self, *, inputs: int, most: int, inner: bool) -> PipelineDraw:
        """A pipeline; an *inner* one is small and has none in it."""
        sketch = _Sketch(self, inputs, inner=inner)
        for _ in range(self.one_of(*range(3 if inner else 5))):
            sketch.open_level()
        for _ in range(self.integer(1, most)):
            sketch.add()
        return sketch.finish("inner" + str(len(self.inner)) if inner else "drawn")

    def fan_out(self, fan: int) -> StageDraw:
        """A generator over items."""
        return StageDraw(
            name=self._name(),
            groups=(False,),
            generator=True,
            fans=self._fans(fan),
            delays=self._delays(),
            concurrency=self.one_of(1, 2, 3, 8),
        )

    def _name(self) -> str:
        self._stages += 1
        laps, letter = divmod(self._stages - 1, 26)
        return "abcdefghijklmnopqrstuvwxyz"[letter] * (1 + laps)

    def _fans(self, most: int) -> tuple[int, ...]:
        return self.one_of(*(fans for fans in _FANS if max(fans) <= most))

    def _delays(self) -> tuple[float | None, ...]:
        return self.one_of(*_DELAYS)

    def stage(self, *, groups: tuple[bool, ...], fan: int, calls: int, inner: bool) -> StageDraw:
        """A stage with these parameters, giving at most *fan* outputs, called *calls* times."""
        generator = fan > 1 and self.integer(0, 2) > 0
        order: GroupOrder = "ancestry"
        reading: Reading = "sequential"
        take = None
        if any(groups):
            order = self.one_of("ancestry", "arrival")
            readings: list[Reading] = ["sequential"]
            if groups.count(True) > 1:
                readings += ["reversed", "alternate", "together"]
            elif generator and order == "ancestry":
                readings += ["through", "through"]
            reading = self._draw(st.sampled_from(readings))
            if order == "ancestry":
                take = self.one_of(None, None, None, 1, 2, 0)
        called = None
        if not inner and reading != "through" and self.integer(0, 4) == 4:
            called = self._called(calls, fan if generator else _MOST_ITEMS)
        return StageDraw(
            name=self._name(),
            groups=groups,
            generator=generator,
            fans=self._fans(fan) if generator else (1,),
            delays=self._delays(),
            concurrency=self.one_of(1, 2, 3, 8),
            order=order,
            reading=reading,
            take=take,
            inner=called,
        )

    def _called(self, calls: int, fan: int) -> InnerDraw | None:
        pipeline = self.inner_pipeline()
        width = pipeline.widths[-1] if pipeline.widths else 1
        if width > fan or calls * pipeline.cost > _MOST_CALLS:
            return None
        how = self.one_of(*_CALLS)
        take = self.one_of(None, None, 1, 2, 0) if how == "stream" else None
        return InnerDraw(pipeline=pipeline, how=how, take=take)


class _Sketch:
    """A pipeline that is being drawn: like the declaration, it knows what levels streams have."""

    def __init__(self, chooser: _Chooser, inputs: int, *, inner: bool) -> None:
        self._chooser = chooser
        self._inputs = inputs
        self._inner = inner
        self._deepest = 2 if inner else _DEEPEST
        self._most = 6 if inner else _MOST_ITEMS
        self._nodes: list[NodeDraw] = []
        self._levels: list[tuple[int, ...]] = [()] * inputs
        self._open = list(range(inputs))  # Streams that nobody takes yet.
        self._width: dict[int, int] = {}  # Per level at most how many items.
        self._cost = 0

    def open_level(self) -> None:
        """One more generator, on the stream that is the deepest so far."""
        levels = self._levels[-1]
        fan = min(5, self._most // self._items(levels))
        if fan > 1 and len(levels) < self._deepest:
            self._add((len(self._levels) - 1,), self._chooser.fan_out(fan), None, levels)

    def add(self) -> None:
        """One more call, of a stage or an inlined pipeline."""
        chooser = self._chooser
        if not self._inner and chooser.integer(0, 7) == 7 and self._inlined():
            return
        count = chooser.one_of(1, 1, 1, 2, 2, 3)
        self._call(tuple(self._source() for _ in range(count)))

    def _source(self) -> int:
        if self._chooser.integer(0, 1):  # Straight on, which makes it deep.
            return self._open[-1]
        streams = self._open + [s for s in range(len(self._levels)) if s not in self._open]
        return self._chooser.one_of(*streams)

    def finish(self, name: str) -> PipelineDraw:
        """The whole pipeline; what is left over is joined."""
        while len(self._open) > 1:
            self._call(tuple(self._open[:2]))
        levels = self._levels[self._open[0]]
        return PipelineDraw(
            name=name,
            inputs=self._inputs,
            nodes=tuple(self._nodes),
            output=self._open[0],
            widths=tuple(self._width[level] for level in levels),
            cost=self._cost,
        )

    def _call(self, sources: tuple[int, ...]) -> None:
        chooser = self._chooser
        readings = self._readings(sources)
        plain = [one for one in readings if not any(one[0])]
        grouped = [one for one in readings if any(one[0])]
        if not grouped or (plain and chooser.integer(0, 2)):
            grouped = plain
        groups, by, levels = chooser.one_of(*grouped)
        calls = self._items(levels)
        fan = min(5, self._most // calls) if len(levels) < self._deepest else 1
        known = [
            node.target
            for node in self._nodes
            if isinstance(node.target, StageDraw)
            and node.target.groups == groups
            and self._fits(node.target, sources, levels)
        ]
        stage = None
        if known and chooser.integer(0, 3) == 3:  # one in four
            stage = chooser.one_of(*known)
        if stage is None:
            stage = chooser.stage(groups=groups, fan=fan, calls=calls, inner=self._inner)
            if not self._fits(stage, sources, levels):
                stage = attrs.evolve(stage, fans=(0, 1), inner=None)
        self._add(sources, stage, by, levels)

    def _add(
        self, sources: tuple[int, ...], stage: StageDraw, by: int | None, levels: tuple[int, ...]
    ) -> None:
        calls = self._items(levels)
        self._cost += calls * (1 if stage.inner is None else 1 + stage.inner.pipeline.cost)
        self._nodes.append(NodeDraw(target=stage, sources=sources, by=by))
        if stage.generator:
            self._width[len(self._levels)] = max(1, self._outputs(stage, sources, levels))
            levels = (*levels, len(self._levels))
        self._note(sources, levels)

    def _inlined(self) -> bool:
        source = self._chooser.one_of(*self._open)
        inner = self._chooser.inner_pipeline()
        base = self._levels[source]
        calls = self._items(base)
        width = calls * (inner.widths[-1] if inner.widths else 1)
        if len(base) + 2 > self._deepest or width > self._most:
            return False
        opened = [1000 * len(self._levels) + k for k in range(len(inner.widths))]
        self._width |= {n: calls * one for n, one in zip(opened, inner.widths, strict=True)}
        self._cost += calls * inner.cost
        self._nodes.append(NodeDraw(target=inner, sources=(source,)))
        self._note((source,), (*base, *opened))
        return True

    def _note(self, sources: tuple[int, ...], levels: tuple[int, ...]) -> None:
        self._open = [stream for stream in self._open if stream not in sources]
        self._open.append(len(self._levels))
        self._levels.append(levels)

    def _items(self, levels: tuple[int, ...]) -> int:
        return self._width[levels[-1]] if levels else 1

    def _fits(self, stage: StageDraw, sources: tuple[int, ...], levels: tuple[int, ...]) -> bool:
        if (
            stage.inner is not None
            and self._items(levels) * stage.inner.pipeline.cost > _MOST_CALLS
        ):
            return False
        if not stage.generator:
            return True
        return len(levels) < self._deepest and (self._outputs(stage, sources, levels) <= self._most)

    def _outputs(self, stage: StageDraw, sources: tuple[int, ...], levels: tuple[int, ...]) -> int:
        """At most how many outputs a generator gives in one request."""
        most = max(stage.fans)
        if stage.inner is not None:
            widths = stage.inner.pipeline.widths
            most = max(most, widths[-1] if widths else 1)
        if stage.reading == "through":
            return most * self._items(self._levels[sources[stage.groups.index(True)]])
        return most * self._items(levels)

    def _readings(
        self, sources: tuple[int, ...]
    ) -> list[tuple[tuple[bool, ...], int | None, tuple[int, ...]]]:
        """Every way to declare a stage over *sources*: which are groups, by=, levels of a call."""
        found: list[tuple[tuple[bool, ...], int | None, tuple[int, ...]]] = []
        own = [self._levels[source] for source in sources]
        anchors = dict.fromkeys([None, *(self._levels.index(one) for one in self._levels)])
        for number in range(2 ** len(sources)):
            groups = tuple(bool(number >> k & 1) for k in range(len(sources)))
            items = [one for one, group in zip(own, groups, strict=True) if not group]
            pieces = [one for one, group in zip(own, groups, strict=True) if group]
            for by in anchors if pieces else [None]:
                if by is not None:
                    levels = self._levels[by]
                elif items:
                    levels = max(items, key=len)
                else:
                    levels = _common(pieces)
                if all(levels[: len(one)] == one for one in items) and all(
                    len(one) > len(levels) and one[: len(levels)] == levels for one in pieces
                ):
                    found.append((groups, by, levels))
        return found


def _common(pieces: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The levels at which groups alone are gathered: what they share, one less than each."""
    shortest = min(map(len, pieces))
    if not shortest:
        return ()
    size = 0
    while size < shortest - 1 and len({one[size] for one in pieces}) == 1:
        size += 1
    return pieces[0][:size]
