"""Generations: their events, and what they cost, through every engine and every way to use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import attrs
import pytest

import alto
from alto.engines import EngineProfile, Pool, Simulated
from alto.events import EngineFailed, GenerationEnded, GenerationStarted
from alto.testing import Line, RecordedEvents, Scripted

PROFILE = EngineProfile(
    name="made up", source="made up", base_s=0.05, per_prefill_token_s=0.01, max_num_seqs=4,
    max_num_batched_tokens=64, kv_tokens=640, block_size=4, max_model_len=64,
)  # fmt: skip


def scripted() -> Scripted:
    """An engine of the test kit."""
    return Scripted(
        lambda prompt: Line(["one ", "two ", "three"]) if "bad" not in prompt
        else Line(["one ", "two"], fail_at=1),
        delay=0.1, name="engine", embeds=lambda prompt: (1.0, 0.0), scores=lambda a, b: 0.5,
    )  # fmt: skip


def simulated() -> Simulated:
    """One that takes its time."""
    return Simulated(PROFILE, "one two three", name="engine")


def pool() -> Pool:
    """Two behind a scheduler."""
    inside = [Scripted(lambda prompt: ["one ", "two ", "three"], delay=0.1, name=f"e{k}")
              for k in range(2)]  # fmt: skip
    return Pool(inside, name="engine")


ENGINES: dict[str, Callable[[], Any]] = {"scripted": scripted, "simulated": simulated, "pool": pool}


async def _text(llm: alto.LLM) -> None:
    assert (await llm.generate("p q", max_tokens=9).text()).split() == ["one", "two", "three"]


async def _chunks(llm: alto.LLM) -> None:
    async for _ in llm.generate("p q", max_tokens=9):
        pass


async def _samples(llm: alto.LLM) -> None:
    assert len(await llm.generate("p q", max_tokens=9, n=2, temperature=0.7).samples()) == 2


async def _left(llm: alto.LLM) -> None:
    async for _ in llm.generate("p q", max_tokens=9):
        break


async def _left_at_the_end(llm: alto.LLM) -> None:
    async for chunk in llm.generate("p q", max_tokens=9):
        if chunk.finish_reason is not None:
            break


async def _closed(llm: alto.LLM) -> None:
    async with llm.generate("p q", max_tokens=9) as chunks:
        async for _ in chunks:
            break


async def _cut(llm: alto.LLM) -> None:
    chunks = aiter(llm.generate("p q", max_tokens=9))
    cuts = 0
    while True:
        try:
            async with asyncio.timeout(0.03):
                await anext(chunks)
        except TimeoutError:
            cuts += 1
        except StopAsyncIteration:
            break
    assert cuts >= 3


async def _cut_text(llm: alto.LLM) -> None:
    with anyio.move_on_after(0.15):
        await llm.generate("p q", max_tokens=9).text()


async def _unused(llm: alto.LLM) -> None:
    llm.generate("p q", max_tokens=9)


async def _two(llm: alto.LLM) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_text, llm)
        tasks.start_soon(_chunks, llm)


WAYS: dict[str, tuple[Callable[[alto.LLM], Any], list[str]]] = {
    "text": (_text, ["done"]),
    "chunks": (_chunks, ["done"]),
    "samples": (_samples, ["done"]),
    "left": (_left, ["cancelled"]),
    "left at the end": (_left_at_the_end, ["done"]),
    "closed": (_closed, ["cancelled"]),
    "cut reads": (_cut, ["done"]),
    "cut text": (_cut_text, ["cancelled"]),
    "not used": (_unused, []),
    "two at once": (_two, ["done", "done"]),
}


def asking(way: Callable[[alto.LLM], Any]) -> Any:
    """A pipeline of one stage that uses the model in that way."""

    @alto.stage
    async def asks(k: int, *, llm: alto.LLM) -> int:
        await way(llm)
        return k

    @alto.pipeline
    def p(k: alto.Stream[int]) -> alto.Stream[int]:
        return asks(k)

    return p


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", WAYS)
async def test_a_generation_has_a_start_and_an_end(name: str, kind: str) -> None:
    """However it is used: one pair of events, an outcome, and a usage where it came to its end."""
    way, outcomes = WAYS[kind]
    recorded = RecordedEvents()
    async with asking(way).open(llm=ENGINES[name](), observers=[recorded]) as app:
        handle = app.stream(1)
        assert await handle.list() == [1]
    recorded.check()
    started, ended = recorded.of(GenerationStarted), recorded.of(GenerationEnded)
    assert [event.outcome for event in ended] == outcomes
    assert {event.generation for event in started} == {event.generation for event in ended}
    assert len(started) == len(ended)
    for event in (*started, *ended):
        assert (event.engine, event.request, event.stage, event.path) == (
            "engine", handle.id, "p.asks", ()
        )  # fmt: skip
    done = [event for event in ended if event.outcome == "done"]
    assert all(event.usage is not None for event in done)
    assert all(event.error is None for event in ended)
    assert handle.usage == total(recorded, handle.id)
    assert handle.usage.generations == len(done)
    assert (handle.usage.output_tokens > 0) == bool(done)
    assert (handle.usage.prompt_tokens > 0) == bool(done)


def total(recorded: RecordedEvents, *requests: str) -> alto.app.RequestUsage:
    """What the events say that these requests have cost."""
    usages = [event.usage for event in recorded.of(GenerationEnded)
              if event.usage is not None and event.request in requests]  # fmt: skip
    return alto.app.RequestUsage(
        generations=len(usages),
        prompt_tokens=sum(one.prompt_tokens for one in usages),
        cached_tokens=sum(one.cached_tokens for one in usages),
        output_tokens=sum(one.output_tokens for one in usages),
    )


@pytest.mark.parametrize("name", ENGINES)
async def test_a_cancelled_request_ends_its_generations(name: str) -> None:
    """Each is told as cancelled, in the call and in the request that it belongs to."""
    recorded = RecordedEvents()
    async with asking(_two).open(llm=ENGINES[name](), observers=[recorded]) as app:
        async with app.stream(1) as results:
            await asyncio.sleep(0.15)
            assert len(recorded.of(GenerationStarted)) == 2
            results.cancel()
        assert [event.outcome for event in recorded.of(GenerationEnded)] == ["cancelled"] * 2
        assert [event.error for event in recorded.of(GenerationEnded)] == [None, None]
        assert results.usage == alto.app.RequestUsage()
    recorded.check()


async def test_a_generation_that_fails_is_told_with_its_error() -> None:
    """The error is what the stage was given; nothing is counted for it."""
    recorded = RecordedEvents()

    async def bad(llm: alto.LLM) -> None:
        await llm.generate("bad", max_tokens=9).text()

    async with asking(bad).open(llm=scripted(), observers=[recorded]) as app:
        with pytest.raises(alto.StageError) as caught:
            await app.run(1)
    recorded.check()
    [ended] = recorded.of(GenerationEnded)
    assert (ended.outcome, ended.error, ended.usage) == ("failed", caught.value.cause, None)
    assert recorded.of(EngineFailed) == []


async def test_an_engine_that_dies_is_told() -> None:
    """Each generation that finds it dead says so."""
    engine, recorded = scripted(), RecordedEvents()
    async with asking(_chunks).open(llm=engine, observers=[recorded]) as app:
        handle = app.stream(1)
        await asyncio.sleep(0.15)
        engine.kill("pulled the plug")
        with pytest.raises(alto.StageError) as caught:
            await handle.list()
    [ended], [failed] = recorded.of(GenerationEnded), recorded.of(EngineFailed)
    assert isinstance(ended.error, alto.errors.EngineDied)
    assert ended.outcome == "failed"
    assert (failed.engine, failed.error) == ("engine", ended.error)
    assert caught.value.root_cause is ended.error
    recorded.check()


async def test_vectors_and_scores_are_told_and_counted() -> None:
    """Each prompt of ``embed`` and each pair of ``score`` is one."""
    recorded = RecordedEvents()

    async def pools(llm: alto.LLM) -> None:
        assert len(await llm.embed(["a b", "c"])) == 2
        await llm.score("a", ["b", "c d"])

    async with asking(pools).open(llm=scripted(), observers=[recorded]) as app:
        handle = app.stream(1)
        assert await handle.list() == [1]
    recorded.check()
    ended = recorded.of(GenerationEnded)
    assert [event.outcome for event in ended] == ["done"] * 4
    assert handle.usage == total(recorded, handle.id)
    assert handle.usage.generations == 4
    assert handle.usage.output_tokens == 0
    assert handle.usage.prompt_tokens > 4


async def test_what_inner_requests_cost_is_the_outer_one_s_too() -> None:
    """A handle's usage, a result's and the events' add up, and no request pays for another one."""
    inner = asking(_text)

    @alto.stage
    async def parts(n: int) -> AsyncIterator[int]:
        for k in range(n):
            yield k

    @alto.stage(concurrency=3)
    async def calls(k: int, *, llm: alto.LLM) -> int:
        await _chunks(llm)
        await inner.run(k)
        async for _ in inner.stream(k):
            pass
        return k

    @alto.pipeline
    def outer(n: alto.Stream[int]) -> alto.Stream[int]:
        return calls(parts(n))

    recorded = RecordedEvents()
    async with outer.open(llm=scripted(), observers=[recorded]) as app:
        one = app.stream(2)
        results = app.map([1, 3], order="input")
        assert one.usage == alto.app.RequestUsage()
        assert sorted(await one.list()) == [0, 1]
        first, second = [result async for result in results]
    recorded.check()
    roots = {one.id: one.usage, first.id: first.usage, second.id: second.usage}
    each = total(recorded, *{event.request for event in recorded.of(GenerationEnded)})
    assert each.generations == 3 * (2 + 1 + 3)
    assert {rid: usage.generations for rid, usage in roots.items()} == {
        one.id: 6, first.id: 3, second.id: 9
    }  # fmt: skip
    per = attrs.astuple(roots[first.id or ""])
    assert attrs.astuple(one.usage) == tuple(2 * number for number in per)
    assert attrs.astuple(second.usage) == tuple(3 * number for number in per)


async def test_a_failed_request_says_what_it_has_cost() -> None:
    """What had come to its end before the failure is counted."""

    async def half(llm: alto.LLM) -> None:
        await _text(llm)
        await llm.generate("bad", max_tokens=9).text()

    async with asking(half).open(llm=scripted()) as app:
        [result] = [one async for one in app.map([1])]
        assert isinstance(result, alto.Failed)
        assert result.usage.generations == 1
        assert result.usage.output_tokens > 0
        assert result.seconds == pytest.approx(0.3 + 0.2)
