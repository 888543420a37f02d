"""Drawn pipelines: what was drawn, as plain records that read like the code they stand for.

What a stage does follows from its record and from the items it gets, never from time or luck, so a
sequential run and a concurrent one must agree. Every item is a text that begins with its request
and says which stage made it of what (``r0:b1(a0(x))``); long ones are cut to a checksum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypeVar
from zlib import crc32

import attrs

from alto._graph.spec import GroupOrder

__all__ = ("Calling", "InnerDraw", "NodeDraw", "PipelineDraw", "Reading", "StageDraw", "Words")

T = TypeVar("T")

Reading: TypeAlias = Literal["sequential", "reversed", "alternate", "together", "through"]
"""How a stage reads its groups: one after another, last one first, a piece of each in turns, all at
once, or, with one group, giving outputs for each piece before it reads the next."""

Calling: TypeAlias = Literal["run", "stream", "arrival"]
"""How a stage calls a pipeline: ``run``, ``stream(order="ancestry")``, or ``stream()`` with the
results sorted."""

Words: TypeAlias = tuple[str, ...]
"""All that a call has been given, in a fixed order."""

_LONGEST = 48


@attrs.frozen(kw_only=True)
class InnerDraw:
    """A pipeline that a stage calls, and how it takes the results."""

    pipeline: PipelineDraw
    how: Calling
    take: int | None
    """Leave the stream after so many results; None: read all."""


@attrs.frozen(kw_only=True)
class StageDraw:
    """What a stage looks like, and what it does."""

    name: str
    groups: tuple[bool, ...]
    """Per parameter whether it is a Group."""
    generator: bool
    fans: tuple[int, ...] = (1,)
    """How many outputs a call gives, chosen by what it is given."""
    delays: tuple[float | None, ...] = (None,)
    """Seconds before an output, chosen likewise; 0 lets others run, None does not suspend."""
    concurrency: int = 1
    replicas: int = 1
    router: str = "LeastWork"
    """Name of a class of `alto.routing`."""
    runs_in: Literal["loop", "thread"] = "loop"
    order: GroupOrder = "ancestry"
    reading: Reading = "sequential"
    take: int | None = None
    """Leave each group after so many pieces; None: read all; 0: do not even look."""
    inner: InnerDraw | None = None

    def chosen(self, table: Sequence[T], words: Words) -> T:
        """What *table* says for a call that is given *words*."""
        return table[_checksum("|".join((self.name, *words))) % len(table)]

    def mark(self, words: Sequence[str], output: int) -> str:
        """Output number *output* of a call that is given *words*."""
        tags = [tag for tag in (word.partition(":")[0] for word in words) if tag != "-"]
        inside = "+".join(word.partition(":")[2] for word in words)
        if len(inside) > _LONGEST:
            inside = f"~{_checksum(inside):08x}"
        return f"{tags[0] if tags else '-'}:{self.name}{output}({inside})"

    def __str__(self) -> str:
        """As people would write it."""
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
    """What is called; a pipeline is inlined."""
    sources: tuple[int, ...]
    """The streams it is called with: the inputs first, then one per node."""
    by: int | None = None
    """The stream given as ``by=``."""


@attrs.frozen(kw_only=True)
class PipelineDraw:
    """A pipeline function."""

    name: str
    inputs: int
    nodes: tuple[NodeDraw, ...]
    output: int
    widths: tuple[int, ...]
    """Per level of the result at most how many items there are in one request."""
    cost: int
    """At most how many calls one request makes, those of pipelines it calls included."""

    def targets(self) -> list[StageDraw | PipelineDraw]:
        """Everything that is called in here, once each, what is inside of it before it."""
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
        """All stages, those of pipelines in here included."""
        return [target for target in self.targets() if isinstance(target, StageDraw)]

    def __str__(self) -> str:
        """Its function, and the lines that say what its stages do."""
        inside = self.targets()
        lines = [str(one) if isinstance(one, StageDraw) else one.code() for one in inside]
        return "\n".join([*lines, self.code()])

    def code(self) -> str:
        """Its function, as people would write it."""
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
