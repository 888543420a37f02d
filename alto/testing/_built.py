"""Drawn pipelines, built: real stages that do what their record says."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from alto import routing
from alto._current_call import current_call
from alto.model import Path
from alto.pipeline import pipeline
from alto.stage import stage
from alto.stream import Group, Stream
from alto.testing._sketch import PipelineDraw, StageDraw, Words

__all__ = ("Broken", "StageProbe", "build")


class Broken(Exception):  # what a drawn stage raises, not an error of this kit
    """The exception of a drawn stage that is to fail."""


class StageProbe:
    """A recorder for one drawn pipeline: stages report to it, and it makes one of them fail."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, Path]] = Counter()
        """Number of calls of each stage at each path, over all requests."""
        self.heard: list[tuple[str, Words]] = []
        """Arguments that each call has read so far."""
        self.barren: bool = False
        """True if a generator yielded nothing: then calls it would be joined with may be cancelled."""
        self.fuse: tuple[str, Words] | None = None
        """The call that fails, by its stage and arguments."""
        self.after: int = 0
        """Number of outputs before the failure, at most those that the call has."""
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Forget all reports; the call that is to fail stays."""
        self.calls.clear()
        self.heard.clear()
        self.barren = False

    def called(self, name: str, path: Path | None = None) -> None:
        """Record the begin of a call at *path*, by default that of the current call."""
        with self._lock:  # Some stages run in threads.
            self.calls[name, getattr(current_call.get(), "path", ()) if path is None else path] += 1

    def check(self, name: str, words: Words, output: int | None) -> None:
        """Record that a call is about to yield output number *output* or, if None, to end.

        Raises:
            Broken: This is the call and output chosen to fail.
        """
        if output is None:
            self.heard.append((name, words))
        if self.fuse == (name, words) and (output is None or output == self.after):
            raise Broken(name, *words)


def build(draw: PipelineDraw, probe: StageProbe) -> Any:  # noqa: ANN401  # a Pipeline of unknown arity
    """Build the pipeline, all its stages and the pipelines that they call."""
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


def _stage(draw: StageDraw, probe: StageProbe, inner: Any) -> Any:  # noqa: ANN401
    function: Callable[..., Any] = _coroutine(draw, probe, inner)
    returns: Any = str
    if draw.runs_in == "thread":
        function = _plain(draw, probe)
    if draw.generator:
        through = draw.reading == "through"
        function = _through(draw, probe) if through else _generator(draw, probe, inner)
        returns = AsyncIterator[str]
    types: list[Any] = [Group[str] if group else str for group in draw.groups]
    _sign(function, draw.name, [(f"p{k}", tp) for k, tp in enumerate(types)], returns)
    router = getattr(routing, draw.router)()
    options: Any = stage  # Any: where it runs is not known before.
    declare = options(
        concurrency=draw.concurrency, order=draw.order, replicas=draw.replicas, router=router,
        runs_in=draw.runs_in,
    )  # fmt: skip
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


def _plain(draw: StageDraw, probe: StageProbe) -> Callable[..., Any]:
    def body(*args: str) -> str:
        probe.called(draw.name, ())  # A thread has no current call.
        probe.check(draw.name, args, 0)
        probe.check(draw.name, args, None)
        return draw.mark(args, 0)

    return body


def _coroutine(draw: StageDraw, probe: StageProbe, inner: Any) -> Callable[..., Any]:  # noqa: ANN401
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


def _generator(draw: StageDraw, probe: StageProbe, inner: Any) -> Callable[..., Any]:  # noqa: ANN401
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


def _through(draw: StageDraw, probe: StageProbe) -> Callable[..., Any]:
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


async def _pause(draw: StageDraw, words: Words) -> None:
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


async def _read(draw: StageDraw, args: Sequence[Any]) -> Words:
    """Return all arguments of a call: its items, then the pieces of its groups."""
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
