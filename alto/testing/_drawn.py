"""Drawn pipelines: what was drawn, as plain records, and the real stages built from them.

What a stage does follows from its record and from the items it gets, never from time or luck, so a
sequential run and a concurrent one must agree. Every item is a text that begins with its request
and says which stage made it of what (``r0:b1(a0(x))``); long ones are cut to a checksum.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar
from zlib import crc32

import anyio
import anyio.lowlevel
import attrs

from alto._aio import current_call
from alto._spec import GroupOrder
from alto._stage import stage
from alto.model import Path
from alto.pipeline import pipeline
from alto.stream import Group, Stream

__all__ = ("Broken", "InnerDraw", "NodeDraw", "PipelineDraw", "Probe", "StageDraw", "build")

T = TypeVar("T")

Reading: TypeAlias = Literal["sequential", "reversed", "alternate", "together", "through"]
"""How a stage reads its groups: one after another, last one first, a piece of each in turns, all at
once, or, with one group, giving outputs for each piece before it reads the next."""

_Words: TypeAlias = tuple[str, ...]
"""All that a call has been given, in a fixed order."""

_LONGEST = 48


class Broken(Exception):  # what a drawn stage raises, not an error of this kit
    """What a drawn stage raises where the drawing says that it fails."""


@attrs.frozen(kw_only=True)
class InnerDraw:
    """A pipeline that a stage calls, and how it takes the results."""

    pipeline: PipelineDraw
    how: Literal["run", "stream", "arrival"]
    """``run``, ``stream(order="ancestry")``, or ``stream()`` with the results sorted."""
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
    order: GroupOrder = "ancestry"
    reading: Reading = "sequential"
    take: int | None = None
    """Leave each group after so many pieces; None: read all; 0: do not even look."""
    inner: InnerDraw | None = None

    def chosen(self, table: Sequence[T], words: _Words) -> T:
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
        kind = "async generator" if self.generator else "coroutine"
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


class Probe:
    """What the stages of one drawn pipeline report to, and what tells one of them to fail."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, Path]] = Counter()
        """How often each stage was called at each path, over all requests."""
        self.heard: list[tuple[str, _Words]] = []
        """What each call was given, as far as it has read it."""
        self.barren = False
        """Whether a generator gave nothing at all; what it was to be joined with is then for
        nothing, and may be cancelled."""
        self.fuse: tuple[str, _Words] | None = None
        """The call that fails, by its stage and what it is given."""
        self.after = 0
        """How many outputs it gives before, as far as it has so many."""

    def reset(self) -> None:
        """Forget what was reported; the fuse stays."""
        self.calls.clear()
        self.heard.clear()
        self.barren = False

    def called(self, name: str) -> None:
        """A call has begun."""
        self.calls[name, getattr(current_call.get(), "path", ())] += 1

    def check(self, name: str, words: _Words, output: int | None) -> None:
        """A call is about to give output number *output*, or (None) to end.

        Raises:
            Broken: The fuse says so.
        """
        if output is None:
            self.heard.append((name, words))
        if self.fuse == (name, words) and (output is None or output == self.after):
            raise Broken(name, *words)


def build(draw: PipelineDraw, probe: Probe) -> Any:  # noqa: ANN401  # a Pipeline of unknown arity
    """The real pipeline, and with it all its stages and the pipelines that they call."""
    built: dict[int, Any] = {}
    for target in (*draw.targets(), draw):
        if isinstance(target, StageDraw):
            inner = None if target.inner is None else built[id(target.inner.pipeline)]
            built[id(target)] = _stage(target, probe, inner)
        else:
            built[id(target)] = _pipeline(target, built)
    return built[id(draw)]


def _pipeline(draw: PipelineDraw, built: dict[int, Any]) -> Any:  # noqa: ANN401
    def function(*inputs: Any) -> Any:  # noqa: ANN401
        streams = list(inputs)
        for node in draw.nodes:
            by = {} if node.by is None else {"by": streams[node.by]}
            streams.append(built[id(node.target)](*(streams[s] for s in node.sources), **by))
        return streams[draw.output]

    names = [f"x{number}" for number in range(draw.inputs)]
    _sign(function, draw.name, [(name, Stream[str]) for name in names], Stream[str])
    return pipeline(function)


def _stage(draw: StageDraw, probe: Probe, inner: Any) -> Any:  # noqa: ANN401
    function: Callable[..., Any] = _coroutine(draw, probe, inner)
    returns: Any = str
    if draw.generator:
        through = draw.reading == "through"
        function = _through(draw, probe) if through else _generator(draw, probe, inner)
        returns = AsyncIterator[str]
    types: list[Any] = [Group[str] if group else str for group in draw.groups]
    _sign(function, draw.name, [(f"p{k}", tp) for k, tp in enumerate(types)], returns)
    declare: Any = stage(concurrency=draw.concurrency, order=draw.order)
    return declare(function)


def _sign(
    function: Callable[..., Any],
    name: str,
    params: Sequence[tuple[str, Any]],
    returns: Any,  # noqa: ANN401
) -> None:
    function.__name__ = function.__qualname__ = name
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(param, kind, annotation=tp) for param, tp in params],
        return_annotation=returns,
    )
    function.__annotations__ = {**dict(params), "return": returns}


def _coroutine(draw: StageDraw, probe: Probe, inner: Any) -> Callable[..., Any]:  # noqa: ANN401
    async def body(*args: Any) -> str:  # noqa: ANN401
        probe.called(draw.name)
        words = await _read(draw, args)
        await _pause(draw, words)
        probe.check(draw.name, words, 0)
        results = words
        if inner is not None:
            results = (*words[:1], *await _inner(draw, inner, draw.mark(words, 0)))
        probe.check(draw.name, words, None)
        return draw.mark(results, 0)

    return body


def _generator(draw: StageDraw, probe: Probe, inner: Any) -> Callable[..., Any]:  # noqa: ANN401
    async def body(*args: Any) -> AsyncIterator[str]:  # noqa: ANN401
        probe.called(draw.name)
        words = await _read(draw, args)
        output = 0
        if draw.inner is not None and draw.inner.how == "stream" and draw.inner.take != 0:
            async for result in inner.stream(draw.mark(words, 0), order="ancestry"):
                probe.check(draw.name, words, output)
                yield draw.mark((result,), output)
                output += 1
                if output == draw.inner.take:
                    break
                await _pause(draw, (*words, result))
        else:
            results = [words] * draw.chosen(draw.fans, words)
            if draw.inner is not None:
                results = [(r,) for r in await _inner(draw, inner, draw.mark(words, 0))]
            for result in results:
                await _pause(draw, (*words, str(output)))
                probe.check(draw.name, words, output)
                yield draw.mark(result, output)
                output += 1
        probe.check(draw.name, words, None)
        probe.barren |= not output

    return body


def _through(draw: StageDraw, probe: Probe) -> Callable[..., Any]:
    async def body(*args: Any) -> AsyncIterator[str]:  # noqa: ANN401
        probe.called(draw.name)
        if draw.take == 0:
            probe.barren = True
            return
        items = tuple(arg for arg, group in zip(args, draw.groups, strict=True) if not group)
        seen = outputs = 0
        async for piece in args[draw.groups.index(True)]:
            words = (*items, piece)
            for output in range(draw.chosen(draw.fans, words)):
                await _pause(draw, (*words, str(output)))
                probe.check(draw.name, words, output)
                yield draw.mark(words, output)
                outputs += 1
            probe.check(draw.name, words, None)
            seen += 1
            if seen == draw.take:
                break
        probe.barren |= not outputs

    return body


async def _pause(draw: StageDraw, words: _Words) -> None:
    delay = draw.chosen(draw.delays, words)
    if delay == 0:
        await anyio.lowlevel.checkpoint()
    elif delay is not None:
        await anyio.sleep(delay)


async def _inner(draw: StageDraw, inner: Any, word: str) -> list[str]:  # noqa: ANN401
    how, take = (draw.inner.how, draw.inner.take) if draw.inner is not None else ("run", None)
    results: list[str] = []
    if take == 0:
        return results
    if how == "run":
        return list(await inner.run(word))
    if how == "arrival":
        return sorted([result async for result in inner.stream(word)])
    async for result in inner.stream(word, order="ancestry"):
        results.append(result)
        if len(results) == take:
            break
    return results


async def _read(draw: StageDraw, args: Sequence[Any]) -> _Words:
    """All that a call is given: its items, then the pieces of its groups."""
    items = [arg for arg, group in zip(args, draw.groups, strict=True) if not group]
    groups: list[Group[str]] = [arg for arg, group in zip(args, draw.groups, strict=True) if group]
    pieces: list[list[str]] = [[] for _ in groups]
    numbers = list(range(len(groups)))
    if draw.take == 0:
        pass
    elif draw.reading == "alternate":
        await _alternate(groups, pieces, draw.take)
    elif draw.reading == "together":
        async with anyio.create_task_group() as tasks:
            for number in numbers:
                tasks.start_soon(_list, groups[number], pieces[number], draw.take)
    else:
        for number in reversed(numbers) if draw.reading == "reversed" else numbers:
            await _list(groups[number], pieces[number], draw.take)
    if draw.order == "arrival":
        for one in pieces:
            one.sort()
    return (*items, *(piece for one in pieces for piece in one))


async def _list(group: Group[str], into: list[str], take: int | None) -> None:
    async for piece in group:
        into.append(piece)
        if len(into) == take:
            break


async def _alternate(
    groups: Sequence[Group[str]], pieces: Sequence[list[str]], take: int | None
) -> None:
    readers = [(aiter(group), into) for group, into in zip(groups, pieces, strict=True)]
    while readers:
        for reader in list(readers):
            try:
                reader[1].append(await anext(reader[0]))
            except StopAsyncIteration:
                readers.remove(reader)
            else:
                if len(reader[1]) == take:
                    readers.remove(reader)


def _checksum(text: str) -> int:
    return crc32(text.encode())


def _either(choices: Sequence[object]) -> str:
    return " or ".join("no" if choice is None else str(choice) for choice in dict.fromkeys(choices))
