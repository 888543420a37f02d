"""A request has an id: handles, results, errors, engines and events all say the same one."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

import alto
from alto.events import (
    CallEnded,
    CallStarted,
    GenerationEnded,
    GenerationStarted,
    GroupCompleted,
    ItemProduced,
    RequestEnded,
    RequestStarted,
)
from alto.testing import RecordedEvents, Scripted

OF_REQUESTS = (
    RequestStarted, RequestEnded, CallStarted, CallEnded, ItemProduced, GroupCompleted,
    GenerationStarted, GenerationEnded,
)  # fmt: skip


@alto.stage
async def words(text: str) -> AsyncIterator[str]:
    """The words of a text."""
    for word in text.split():
        await asyncio.sleep(0.01)
        yield word


@alto.stage
async def says(word: str, *, llm: alto.LLM) -> str:
    """What the model says to it."""
    if word == "bad":
        message = "a bad word"
        raise ValueError(message)
    return await llm.generate(word, max_tokens=9).text()


@alto.pipeline
def deepest(word: alto.Stream[str]) -> alto.Stream[str]:
    """Asks the model."""
    return says(word)


@alto.stage
async def calls_deepest(word: str, *, llm: alto.LLM) -> str:
    """Runs the pipeline, and asks the model itself."""
    await llm.generate(f"{word} of deep", max_tokens=9).text()
    return (await deepest.run(word))[0]


@alto.pipeline
def deep(word: alto.Stream[str]) -> alto.Stream[str]:
    """Calls `deepest`."""
    return calls_deepest(word)


@alto.stage
async def calls_deep(word: str) -> AsyncIterator[str]:
    """Streams `deep`."""
    async for one in deep.stream(word):
        yield one


@alto.stage
async def joined(pieces: alto.Group[str]) -> str:
    """All of them."""
    return " ".join([piece async for piece in pieces])


@alto.pipeline
def p(text: alto.Stream[str]) -> alto.Stream[str]:
    """Three pipelines deep."""
    return joined(calls_deep(words(text)))


def engine() -> Scripted:
    """Says what it hears."""
    return Scripted(lambda prompt: prompt)


def everything() -> RecordedEvents:
    """An observer of all kinds."""
    return RecordedEvents(OF_REQUESTS)


async def test_everything_that_names_a_request_says_the_same() -> None:
    """Handle, events and the engine's `Origin` agree; inner requests lead up to the outermost one."""
    model, recorded = engine(), everything()
    async with p.open(llm=model, observers=[recorded]) as app:
        one, two = app.stream("a b"), app.stream("c")
        ids = {"a": one.id, "b": one.id, "c": two.id}
        assert one.id != two.id
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.list())
            tasks.create_task(two.list())
        assert (one.id, two.id) == (ids["a"], ids["c"])
    for request in model.requests:
        assert isinstance(request.prompt, str)
        assert request.origin is not None
        assert request.origin.id == ids[request.prompt[0]]
    assert len(model.requests) == 6
    started = recorded.of(RequestStarted)
    roots = {event.request for event in started if event.parent is None}
    assert roots == {one.id, two.id}
    assert {event.parent for event in started} - {None} <= {event.request for event in started}
    assert [event.pipeline for event in started if event.parent is None] == ["p", "p"]
    inner = [event for event in started if event.parent in roots]
    assert [(event.pipeline, event.parent_stage) for event in inner] == [
        ("deep", "p.calls_deep")
    ] * 3
    assert {event.parent_path for event in inner} == {(0,), (1,)}
    known = {event.request for event in started}
    assert len(known) == len(started) == 2 + 3 + 3
    for kind in OF_REQUESTS:
        events: list[Any] = recorded.of(kind)
        assert events, kind
        assert {event.request for event in events} <= known
    assert {event.request for event in recorded.of(GroupCompleted)} == roots


async def test_results_of_a_map_have_the_ids_of_their_requests() -> None:
    """So has a request that failed; one that was refused has none."""
    recorded = everything()
    async with p.open(llm=engine(), observers=[recorded]) as app:
        inputs: Any = ["a", "bad", 3, "b"]
        a, bad, refused, b = [result async for result in app.map(inputs, concurrency=2)]
    assert isinstance(a, alto.Succeeded)
    assert isinstance(b, alto.Succeeded)
    assert isinstance(bad, alto.Failed)
    assert isinstance(refused, alto.Failed)
    assert refused.id is None
    assert isinstance(refused.error, alto.InputError)
    roots = [event for event in recorded.of(RequestStarted) if event.parent is None]
    assert {a.id, b.id, bad.id} == {event.request for event in roots}
    ended = {event.request: event for event in recorded.of(RequestEnded)}
    assert ended[a.id].outcome == ended[b.id].outcome == "done"
    assert isinstance(bad.error, alto.RequestError)
    assert bad.error.request_id == bad.id
    assert bad.id is not None
    assert ended[bad.id].error is bad.error


@pytest.mark.parametrize("way", ["stream", "run", "map"])
async def test_an_error_says_whose_it_is(way: str) -> None:
    """At each level that of the request that failed there: the outermost first."""
    recorded = everything()
    async with p.open(llm=engine(), observers=[recorded]) as app:
        caught: alto.RequestError
        if way == "map":
            [result] = [one async for one in app.map(["a bad"])]
            assert isinstance(result.error, alto.RequestError)
            caught = result.error
        else:
            with pytest.raises(alto.StageError) as raised:
                await (app.run("a bad") if way == "run" else app.stream("a bad").list())
            caught = raised.value
    pipelines = {event.request: event.pipeline for event in recorded.of(RequestStarted)}
    found, error = [], caught
    while isinstance(error, alto.StageError):
        assert error.request_id is not None
        found.append(pipelines[error.request_id])
        error = error.cause
    assert found == ["p", "deep", "deepest"]
    assert isinstance(caught.root_cause, ValueError)
    assert pickle.loads(pickle.dumps(caught)).request_id == caught.request_id
    failed = {e.request: e.error for e in recorded.of(RequestEnded) if e.outcome == "failed"}
    assert [pipelines[one] for one in failed] == ["deepest", "deep", "p"]
    assert failed[caught.request_id or ""] is caught


async def test_other_ends_say_whose_they_are_too() -> None:
    """A deadline, a cancellation, a buffer that is too small."""
    async with p.open(llm=engine()) as app:
        handle = app.stream("a b c", timeout=0.02)
        with pytest.raises(alto.DeadlineExceeded) as late:
            await handle.list()
        assert late.value.request_id == handle.id
        closed = app.stream("a b")
    with pytest.raises(alto.RequestCancelled) as cancelled:
        await closed.list()
    assert cancelled.value.request_id == closed.id


async def test_ids_are_unique_in_a_process_and_cost_nothing_where_unused() -> None:
    """A thousand requests have a thousand ids, of one form; an id does not change."""
    async with deepest.open(llm=engine()) as app:
        results = [one async for one in app.map(["x"] * 500, concurrency=50)]
        handles = [app.stream("x") for _ in range(500)]
        ids = [*(one.id for one in results), *(one.id for one in handles)]
        assert ids[500:] == [one.id for one in handles]
        for handle in handles:
            await handle.list()
    assert len(set(ids)) == 1000


@pytest.mark.realtime
@pytest.mark.slow
def test_ids_are_unique_among_processes() -> None:
    """Another process has other ids, also for its first request."""
    program = (
        "import asyncio, alto\n"
        "@alto.stage\n"
        "async def same(x: int) -> int:\n    return x\n"
        "@alto.pipeline\n"
        "def p(x: alto.Stream[int]) -> alto.Stream[int]:\n    return same(x)\n"
        "async def main():\n"
        "    async with p.open() as app:\n"
        "        handle = app.stream(1)\n"
        "        await handle.list()\n"
        "        print(handle.id)\n"
        "asyncio.run(main())\n"
    )
    ids = {
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert len(ids) == 2
