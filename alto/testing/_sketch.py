"""Drawn pipelines: the records that a strategy draws, and how it draws them.

The behaviour of a stage follows from its record and its items, never from time or randomness, so a
sequential run and a concurrent one must agree. Every item is a text that begins with its request
and says which stage made it of what (``r0:b1(a0(x))``); long ones are cut to a checksum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, TypeVar
from zlib import crc32

import attrs
from hypothesis import strategies as st

from alto._graph.spec import GroupOrder

__all__ = (
    "Calling",
    "Chooser",
    "InnerDraw",
    "NodeDraw",
    "PipelineDraw",
    "Reading",
    "StageDraw",
    "Words",
)

T = TypeVar("T")

Reading: TypeAlias = Literal["sequential", "reversed", "alternate", "together", "through"]
"""Order in which a stage reads its groups.

One after another, last one first, a piece of each in turn, all concurrently, or, with one group,
yielding outputs for each piece before it reads the next.
"""

Calling: TypeAlias = Literal["run", "stream", "arrival"]
"""Way in which a stage calls a pipeline.

``run``, ``stream(order="ancestry")``, or ``stream()`` with the results sorted.
"""

Words: TypeAlias = tuple[str, ...]
"""All arguments of a call, in a fixed order."""

_LONGEST = 48


@attrs.frozen(kw_only=True)
class InnerDraw:
    """A pipeline that a stage calls, and the way in which it takes the results."""

    pipeline: PipelineDraw
    how: Calling
    take: int | None
    """Number of results after which the stream is left; None: read all."""


@attrs.frozen(kw_only=True)
class StageDraw:
    """The record of a stage: its signature and its behaviour."""

    name: str
    groups: tuple[bool, ...]
    """For each parameter, True if it is a Group."""
    generator: bool
    fans: tuple[int, ...] = (1,)
    """Numbers of outputs of a call; its arguments choose one."""
    delays: tuple[float | None, ...] = (None,)
    """Seconds before an output, chosen likewise; 0 yields to the loop, None does not suspend."""
    concurrency: int = 1
    replicas: int = 1
    router: str = "LeastWork"
    """Name of a class of `alto.routing`."""
    runs_in: Literal["loop", "thread"] = "loop"
    order: GroupOrder = "ancestry"
    reading: Reading = "sequential"
    take: int | None = None
    """Number of pieces after which each group is left; None: read all; 0: do not read it at all."""
    inner: InnerDraw | None = None

    def chosen(self, table: Sequence[T], words: Words) -> T:
        """Return the entry of *table* for a call with the arguments *words*."""
        return table[_checksum("|".join((self.name, *words))) % len(table)]

    def mark(self, words: Sequence[str], output: int) -> str:
        """Return output number *output* of a call with the arguments *words*."""
        tags = [tag for tag in (word.partition(":")[0] for word in words) if tag != "-"]
        inside = "+".join(word.partition(":")[2] for word in words)
        if len(inside) > _LONGEST:
            inside = f"~{_checksum(inside):08x}"
        return f"{tags[0] if tags else '-'}:{self.name}{output}({inside})"

    def __str__(self) -> str:
        """Return the source code of its function."""
        params = ", ".join("Group" if group else "item" for group in self.groups)
        said = [f"{self.name}({params})"]
        if self.inner is not None:
            take = "" if self.inner.take is None else f"[:{self.inner.take}]"
            said.append(f"calls {self.inner.pipeline.name}.{self.inner.how}{take}")
        elif self.generator:
            said.append(f"yields {_either(self.fans)}")
        if any(self.groups):
            said.append(f"reads {self.reading} in {self.order} order")
        if self.take is not None:
            said.append(f"leaves after {self.take}")
        if self.delays != (None,):
            said.append(f"delay {_either(self.delays)} s")
        if self.replicas > 1:
            said.append(f"{self.replicas} replicas by {self.router}")
        kind = "async generator" if self.generator else "coroutine"
        if self.runs_in == "thread":
            kind = "function in a thread"
        return f"{kind} {', '.join(said)}, concurrency {self.concurrency}"


@attrs.frozen(kw_only=True)
class NodeDraw:
    """One call in a pipeline function."""

    target: StageDraw | PipelineDraw
    """The stage or pipeline that is called; a pipeline is inlined."""
    sources: tuple[int, ...]
    """Numbers of the streams it is called with: the inputs first, then one per node."""
    by: int | None = None
    """The stream given as ``by=``."""


@attrs.frozen(kw_only=True)
class PipelineDraw:
    """A drawn pipeline function: its stages and how they are connected."""

    name: str
    inputs: int
    nodes: tuple[NodeDraw, ...]
    output: int
    widths: tuple[int, ...]
    """Maximum number of items in one request, for each level of the result."""
    cost: int
    """Maximum number of calls of one request, including those of pipelines it calls."""

    def targets(self) -> list[StageDraw | PipelineDraw]:
        """Return every stage and pipeline that is called, once each, inner ones first."""
        found: dict[int, StageDraw | PipelineDraw] = {}
        for node in self.nodes:
            target = node.target
            inner = target if isinstance(target, PipelineDraw) else None
            if isinstance(target, StageDraw) and target.inner is not None:
                inner = target.inner.pipeline
            if inner is not None:
                found |= {id(one): one for one in (*inner.targets(), inner)}
            found[id(target)] = target
        return list(found.values())

    def stages(self) -> list[StageDraw]:
        """Return all stages, including those of its pipelines."""
        return [target for target in self.targets() if isinstance(target, StageDraw)]

    def __str__(self) -> str:
        """Return its source code, and lines that describe its stages."""
        inside = self.targets()
        lines = [str(one) if isinstance(one, StageDraw) else one.code() for one in inside]
        return "\n".join([*lines, self.code()])

    def code(self) -> str:
        """Return the source code of its function."""
        streams = [f"x{number}" for number in range(self.inputs)]
        lines = [f"def {self.name}({', '.join(streams)}):"]
        for number, node in enumerate(self.nodes):
            said = [streams[source] for source in node.sources]
            if node.by is not None:
                said.append(f"by={streams[node.by]}")
            lines.append(f"    s{number} = {node.target.name}({', '.join(said)})")
            streams.append(f"s{number}")
        lines.append(f"    return {streams[self.output]}")
        return "\n".join(lines)


def _checksum(text: str) -> int:
    return crc32(text.encode())


def _either(choices: Sequence[object]) -> str:
    return " or ".join("no" if choice is None else str(choice) for choice in dict.fromkeys(choices))


_DEEPEST: Final = 4
_MOST_ITEMS: Final = 120
"""Maximum number of items on one edge in one request."""
_MOST_CALLS: Final = 400
"""Maximum number of calls of pipelines inside one stage in one request."""
_READINGS: Final[tuple[Reading, ...]] = (
    "sequential", "reversed", "alternate", "together", "through",
)  # fmt: skip
_CALLS: Final[tuple[Calling, ...]] = ("run", "stream", "arrival")
# Tables that calls choose from; each is drawn whole, which is much quicker than by its entries.
_FANS: Final = (
    (2,), (1,), (0, 1), (2, 0), (3, 1), (1, 2, 0), (3,), (0, 0, 3), (4, 0, 1), (5, 2), (5,), (0,),
)  # fmt: skip
_REPLICAS: Final = (1, 1, 1, 2, 3)
_ROUTERS: Final = ("LeastWork", "RoundRobinRouter", "PowerOfTwo", "RendezvousHash")
_DELAYS: Final[tuple[tuple[float | None, ...], ...]] = (
    (None,), (0.0,), (0.01,), (None, 0.01), (0.1, 0.0), (None, 0.1), (0.03,), (0.1, 0.03, 0.01),
    (0.1,), (None, None, 0.1), (0.03, None), (0.0, None),
)  # fmt: skip


class Chooser:
    """Draws stages and pipelines with unique names."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self.sparse = draw(st.booleans())
        """True if generators may yield nothing and groups may be left early; otherwise all is needed."""
        self._stages = 0
        self.inner: list[PipelineDraw] = []

    def one_of(self, *choices: T) -> T:
        """Draw one of *choices*; failures are shrunk towards the first."""
        return self._draw(st.sampled_from(choices))

    def integer(self, least: int, most: int) -> int:
        """Draw a number."""
        return self._draw(st.integers(least, most))

    def inner_pipeline(self) -> PipelineDraw:
        """Draw a small pipeline, to be inlined or called: an earlier one or a new one."""
        known = self._draw(st.sampled_from([*self.inner, None]))
        if known is None:
            known = self.pipeline(inputs=1, most=3, inner=True)
            self.inner.append(known)
        return known

    def pipeline(self, *, inputs: int, most: int, inner: bool) -> PipelineDraw:
        """Draw a pipeline; an *inner* one is small and contains none."""
        sketch = _Sketch(self, inputs, inner=inner)
        for _ in range(self.one_of(*range(3 if inner else 5))):
            sketch.open_level()
        for _ in range(self.integer(1, most)):
            sketch.add()
        return sketch.finish("inner" + str(len(self.inner)) if inner else "drawn")

    def fan_out(self, fan: int) -> StageDraw:
        """Draw a generator over items."""
        return StageDraw(
            name=self._name(),
            groups=(False,),
            generator=True,
            fans=self._fans(fan),
            delays=self._delays(),
            concurrency=self.one_of(1, 2, 3, 8),
            replicas=self.one_of(*_REPLICAS),
            router=self.one_of(*_ROUTERS),
        )

    def _name(self) -> str:
        self._stages += 1
        laps, letter = divmod(self._stages - 1, 26)
        return "abcdefghijklmnopqrstuvwxyz"[letter] * (1 + laps)

    def _fans(self, most: int) -> tuple[int, ...]:
        return self.one_of(
            *(fans for fans in _FANS if max(fans) <= most and (self.sparse or min(fans)))
        )

    def _delays(self) -> tuple[float | None, ...]:
        return self.one_of(*_DELAYS)

    def stage(self, *, groups: tuple[bool, ...], fan: int, calls: int, inner: bool) -> StageDraw:
        """Draw a stage with these parameters and at most *fan* outputs, called *calls* times."""
        generator = fan > 1 and self.integer(0, 2) > 0
        order: GroupOrder = "ancestry"
        reading: Reading = "sequential"
        take = None
        if any(groups):
            order = self.one_of("ancestry", "arrival")
            readings = _READINGS[:1]
            if groups.count(True) > 1:
                readings = _READINGS[:-1]
            elif generator and order == "ancestry":
                readings = (_READINGS[0], _READINGS[-1])
            reading = self._draw(st.sampled_from(readings))
            if order == "ancestry" and self.sparse:
                take = self.one_of(None, None, None, 1, 2, 0)
        called = None
        if not inner and reading != "through" and self.integer(0, 4) == 4:
            called = self._called(calls, fan if generator else _MOST_ITEMS)
        plain = not (any(groups) or generator or called) and self.integer(0, 7) == 7
        return StageDraw(
            name=self._name(),
            groups=groups,
            generator=generator,
            fans=self._fans(fan) if generator else (1,),
            delays=(None,) if plain else self._delays(),
            concurrency=self.one_of(1, 2, 3, 8),
            replicas=self.one_of(*_REPLICAS),
            router=self.one_of(*_ROUTERS),
            runs_in="thread" if plain else "loop",
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
        how = self._draw(st.sampled_from(_CALLS))
        take = self.one_of(None, None, 1, 2, 0) if how == "stream" and self.sparse else None
        return InnerDraw(pipeline=pipeline, how=how, take=take)


class _Sketch:
    """A pipeline that is being drawn. Like the declaration, it knows the levels of its streams."""

    def __init__(self, chooser: Chooser, inputs: int, *, inner: bool) -> None:
        self._chooser = chooser
        self._inputs = inputs
        self._inner = inner
        self._deepest = 2 if inner else _DEEPEST
        self._most = 6 if inner else _MOST_ITEMS
        self._nodes: list[NodeDraw] = []
        self._levels: list[tuple[int, ...]] = [()] * inputs
        self._open = list(range(inputs))  # Streams without a consumer.
        self._width: dict[int, int] = {}  # Per level at most how many items.
        self._cost = 0

    def open_level(self) -> None:
        """Add a generator on the deepest stream."""
        levels = self._levels[-1]
        fan = min(5, self._most // self._items(levels))
        if fan > 1 and len(levels) < self._deepest:
            self._add((len(self._levels) - 1,), self._chooser.fan_out(fan), None, levels)

    def add(self) -> None:
        """Add a call of a stage or an inlined pipeline."""
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
        """Return the whole pipeline; streams without a consumer are joined."""
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
                fans = (0, 1) if chooser.sparse else (1,)
                stage = attrs.evolve(stage, fans=fans, inner=None)
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
        """Return the maximum number of outputs of a generator in one request."""
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
        """Return all ways to declare a stage over *sources*: the groups, ``by=``, levels of a call."""
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
    """Return the levels of a call with groups only: those that all share, without the last of each."""
    shortest = min(map(len, pieces))
    if not shortest:
        return ()
    size = 0
    while size < shortest - 1 and len({one[size] for one in pieces}) == 1:
        size += 1
    return pieces[0][:size]
