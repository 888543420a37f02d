"""Calls over many engines, many open requests, and text chunks as fast as one process passes them on."""

from __future__ import annotations

import asyncio
import cProfile
import io
import pstats
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import alto
from alto.engines import Pool, Simulated
from alto.engines.profiles import A100_7B
from alto.testing import Scripted, run_virtual

TOKENS = 16
"""That a simulated generation has."""
ITEMS = 10
"""That a request has."""
SENTENCE = ("The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " dog", ". ")
"""Chunks of four characters or so, as engines give them."""


@alto.stage(concurrency=100_000)
async def ask(k: int, *, llm: alto.LLM) -> int:
    """One generation."""
    return len(await llm.text(f"question {k}", max_tokens=TOKENS))


@alto.stage
async def numbers(n: int) -> AsyncIterator[int]:
    """0, 1, ... n - 1."""
    for k in range(n):
        yield k


@alto.pipeline
def asking(n: alto.Stream[int]) -> alto.Stream[int]:
    """*n* generations."""
    return ask(numbers(n))


def engines(count: int, calls: int) -> float:
    """CPU microseconds per call, simulated engine included, with *count* engines."""
    return run_virtual(_engines, count, calls)


async def _engines(count: int, calls: int) -> float:
    made = [Simulated(A100_7B, TOKENS, name=f"engine-{k}") for k in range(count)]
    async with asking.open(llm=Pool(made)) as app:
        await app.run(count)
        began = time.process_time()
        assert len(await app.run(calls)) == calls
        return (time.process_time() - began) / calls * 1e6


@alto.stage(concurrency=100_000)
async def later(k: int) -> int:
    """After a moment, so that all requests are open at once."""
    await asyncio.sleep(1)
    return k


@alto.stage
async def add(group: alto.Group[int]) -> int:
    """The sum."""
    return sum(await group.list())


@alto.pipeline
def summing(n: alto.Stream[int]) -> alto.Stream[int]:
    """A fan-out and its aggregate."""
    return add(later(numbers(n)))


def requests(count: int, rounds: int) -> float:
    """CPU microseconds per item, with *count* requests open at a time, *rounds* times."""
    return run_virtual(_requests, count, rounds)


async def _requests(count: int, rounds: int) -> float:
    async with summing.open() as app:
        return await _timed(app.run, count, rounds)


async def _timed(
    run: Callable[[int], Coroutine[Any, Any, list[int]]], count: int, rounds: int
) -> float:
    spent = 0.0
    for number in range(rounds + 1):
        began = time.process_time()
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(run(ITEMS)) for _ in range(count)]
        assert {tuple(one.result()) for one in asked} == {(sum(range(ITEMS)),)}
        if number:  # the first is not counted
            spent += time.process_time() - began
    return spent / (count * ITEMS * rounds) * 1e6


async def _later(k: int) -> int:
    await asyncio.sleep(1)
    return k


async def _summing(n: int) -> list[int]:
    return [sum(await asyncio.gather(*[_later(k) for k in range(n)]))]  # noqa: TID251  # the cheapest


def bare_requests(count: int, rounds: int) -> float:
    """The same work as bare tasks of asyncio: no ancestry, no order, no bounds, no cancellation."""
    return run_virtual(_timed, _summing, count, rounds)


@alto.stage
async def say(prompt: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    """The text of a generation, chunk by chunk."""
    async for chunk in llm.generate(prompt, max_tokens=None):
        yield chunk.text


@alto.stage
async def split(text: alto.Group[str]) -> AsyncIterator[str]:
    """Sentences, each when it has ended."""
    async for sentence in alto.text.sentences(text):
        yield sentence


@alto.stage
async def length(sentence: str) -> int:
    """Of a sentence."""
    return len(sentence)


@alto.pipeline
def speaking(prompt: alto.Stream[str]) -> alto.Stream[int]:
    """From an engine to what is made of sentences."""
    return length(split(say(prompt)))


def chunks(count: int, at_once: int) -> dict[str, float]:
    """Chunks per CPU second, from the engine through a splitter, with and without the engine's part."""
    return asyncio.run(_chunks(count, at_once))


async def _chunks(count: int, at_once: int) -> dict[str, float]:
    said = [SENTENCE[k % len(SENTENCE)] for k in range(count)]
    engine = Scripted({"Speak.": said})
    async with speaking.open(llm=engine) as app:
        spent = []
        for _ in range(3):
            began = time.process_time()
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(app.run("Speak.")) for _ in range(at_once)]
            spent.append(time.process_time() - began)
            assert all(len(one.result()) == count // len(SENTENCE) for one in asked)
        began = time.process_time()
        for _ in range(at_once):
            async for _ in engine.generate(
                alto.model.GenerateRequest(prompt="Speak.", max_tokens=None)
            ):
                pass
        alone = time.process_time() - began
    passed = count * at_once
    whole = min(spent[1:])
    return {"per_s": passed / whole, "without_engine_per_s": passed / max(whole - alone, 1e-9)}


def profile(count: int, at_once: int, rows: int = 25) -> str:
    """Where the time of the chunks goes, by function."""
    profiler = cProfile.Profile()
    profiler.enable()
    chunks(count, at_once)
    profiler.disable()
    out = io.StringIO()
    pstats.Stats(profiler, stream=out).sort_stats("tottime").print_stats(rows)
    return out.getvalue()
