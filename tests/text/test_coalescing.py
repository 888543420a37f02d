"""`alto.text.joined` and `Coarsening`: pieces together, over sources, errors, cancellation and load."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alto
from alto.engines import Pool, Simulated
from alto.engines.profiles import A100_7B
from alto.testing import Scripted, group
from alto.text import Coarsening, joined

NEVER: Callable[[int, int], bool] = lambda held, given: False  # noqa: E731  # three in a row
ALWAYS: Callable[[int, int], bool] = lambda held, given: True  # noqa: E731
FIVE: Callable[[int, int], bool] = lambda held, given: held >= 5  # noqa: E731


class Source:
    """Pieces, seconds before them, an error; and what happened to them."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.ended = ""

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces()

    async def _pieces(self) -> AsyncGenerator[Any, None]:
        self.ended = "open"
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
            self.ended = "whole"
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.25)
            self.ended += ", cleaned"


async def collected(pieces: AsyncIterator[str]) -> list[str]:
    """All of them."""
    return [piece async for piece in pieces]


@pytest.mark.parametrize(
    ("ready", "options", "expected"),
    [
        (NEVER, {}, ["One. Two. Three."]),
        (ALWAYS, {}, ["One.", "Two.", "Three."]),
        (FIVE, {}, ["One. Two.", "Three."]),
        (lambda held, given: given == 0, {}, ["One.", "Two. Three."]),
        (NEVER, {"separator": "\n"}, ["One.\nTwo.\nThree."]),
        (NEVER, {"separator": ""}, ["One.Two.Three."]),
    ],
)
async def test_pieces_go_together(
    ready: Callable[[int, int], bool], options: dict[str, str], expected: list[str]
) -> None:
    """Pieces go together until `ready` is true, with the separator between them, and then the rest."""
    pieces = joined(group(["One.", "Two.", "Three."]), ready, **options)
    assert await collected(pieces) == expected


async def test_each_goes_as_soon_as_it_is_ready() -> None:
    """A piece that is worth a call leaves in the moment in which it comes."""
    clock = asyncio.get_running_loop().time
    pieces = joined(Source(1.0, "aaa", 1.0, "bb", 1.0, "c", 1.0), FIVE)
    assert [(clock(), piece) async for piece in pieces] == [(2.0, "aaa bb"), (4.25, "c")]


@given(
    st.lists(st.text("ab. ", max_size=6), max_size=12),
    st.lists(st.booleans(), min_size=40, max_size=40),
    st.lists(st.integers(0, 60), max_size=6),
)
async def test_nothing_is_lost_in_any_chunking(
    chunks: list[str], answers: list[bool], cuts: list[int]
) -> None:
    """The pieces are the same and in order, for any chunks and any `ready`."""
    text = "".join(chunks)
    others = [text[i:j] for i, j in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]
    expected = await collected(alto.text.sentences(group([text])))
    for source in (chunks, others):
        left = iter(answers)
        given_before = 0

        def ready(held: int, given: int, left: Any = left) -> bool:
            nonlocal given_before
            assert held >= 1
            assert given >= given_before
            given_before = given
            return next(left)

        got = await collected(joined(alto.text.sentences(group(source)), ready, separator="\n"))
        assert [piece for text in got for piece in text.split("\n")] == expected


async def test_an_error_comes_after_what_is_held() -> None:
    """The pieces before the error are certain, so they are given; then it comes through, once."""
    source = Source("a", "b", 1.0, ValueError("broken"))
    pieces = joined(source, NEVER)
    assert await anext(pieces) == "a b"
    assert source.ended == "open, cleaned"
    with pytest.raises(ValueError, match="broken"):
        await anext(pieces)
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)
    with pytest.raises(ValueError, match="at once"):
        await collected(joined(Source(ValueError("at once")), NEVER))


async def test_leaving_before_the_error_of_the_pieces_drops_it() -> None:
    """A reader that leaves with the last piece does not see the error after it."""
    source = Source("a", ValueError("broken"))
    async with aclosing(joined(source, NEVER)) as pieces:
        async for _ in pieces:
            break
    assert source.ended == "open, cleaned"


async def test_an_error_of_ready_comes_at_once() -> None:
    """An error of `ready` is raised, and the source is closed."""

    def ready(held: int, given: int) -> bool:
        raise ZeroDivisionError("mine")

    source = Source("a", "b")
    with pytest.raises(ZeroDivisionError, match="mine"):
        await collected(joined(source, ready))
    assert source.ended == "open, cleaned"


@pytest.mark.parametrize("piece", [b"a", None, alto.Chunk(text="a")])
async def test_a_piece_that_is_no_text_is_refused(piece: object) -> None:
    """A piece of another type is an error that names the type, and ends the source."""
    source = Source("a", piece)

    with pytest.raises(TypeError, match=f"takes pieces of str, not {type(piece).__name__}"):
        await collected(joined(source, NEVER))
    assert source.ended == "open, cleaned"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: joined("text", NEVER), TypeError, "async iterable of pieces.*not str"),
        (lambda: joined(["a"], NEVER), TypeError, "not list"),
        (lambda: joined(Source(), None), TypeError, "ready must be a function.*not None"),
        (lambda: joined(Source(), NEVER, separator=None), TypeError, "separator must be a str"),
        (lambda: Coarsening("engine"), TypeError, "takes an engine or an alto.LLM, not 'engine'"),
        (lambda: Coarsening(Scripted), TypeError, "takes an engine"),
        (lambda: Coarsening(Scripted({}), output=0), ValueError, "output must be finite and above 0"),
        (lambda: Coarsening(Scripted({}), uncached=-1), ValueError, "uncached must be .* at least 0"),
        (lambda: Coarsening(Scripted({}), uncached="1"), TypeError, "uncached must be a number"),
        (lambda: Coarsening(Scripted({}), step_tokens=float("inf")), ValueError, "step_tokens must be"),
        (lambda: Coarsening(Scripted({}), step_tokens=True), TypeError, "step_tokens must be a number"),
        (lambda: Coarsening(Scripted({}), call_tokens=-1), ValueError, "call_tokens must be .* at least 0"),
        (lambda: Coarsening(Scripted({})).learn(None, 0), ValueError, "size must be finite and above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_the_call(
    call: Callable[[], object], kind: type[Exception], message: str
) -> None:
    """Arguments are checked when a function is called."""
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("at", [round(0.25 * n, 2) for n in range(1, 26)])
async def test_cancellation_at_any_time_leaves_nothing_behind(at: float, native: bool) -> None:
    """The source is cleaned up to its end, also if the cancellation comes during the cleanup."""
    source = Source("aaaa", 1.1, "b", 2.1, "c", 1.1)
    done: list[str] = []

    async def work() -> None:
        async with aclosing(joined(source, FIVE)) as pieces:
            async for piece in pieces:
                done.append(piece)
                await asyncio.sleep(0.6)

    if native:
        task = asyncio.get_running_loop().create_task(work())
        await asyncio.sleep(at)
        task.cancel()
        await asyncio.wait([task])
    else:
        with anyio.move_on_after(at):
            await work()
    gc.collect()
    await asyncio.sleep(0.3)
    assert (
        source.ended.endswith(", cleaned") or source.ended == "whole"
    )  # struck while it cleaned up
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert done == ["aaaa b", "c"][: len(done)]


async def test_a_stage_that_leaves_early_closes_the_source() -> None:
    """In a stage, pieces that are left early are closed by the end of the call."""
    source = Source("a", "b", 10.0, "c")

    @alto.stage
    async def first(x: int) -> str:
        async for piece in joined(source, ALWAYS):
            return piece
        raise AssertionError

    @alto.pipeline
    def run(x: alto.Stream[int]) -> alto.Stream[str]:
        return first(x)

    async with run.open() as app:
        assert await app.run(1) == ["a"]
        assert source.ended == "open, cleaned"


class Busy:
    """An engine that says how busy it is, and does nothing."""

    name = "busy"

    def __init__(self, running: int, waiting: int) -> None:
        self.counts = alto.model.EngineStatistics(running=running, waiting=waiting)

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""

    def check_health(self) -> None:
        """Do nothing."""

    def statistics(self) -> alto.model.EngineStatistics:
        """Return the statistics that the engine was made with."""
        return self.counts

    def generate(self, request: alto.model.GenerateRequest) -> AsyncGenerator[alto.Chunk, None]:
        """Never."""
        raise NotImplementedError


def test_the_load_of_an_engine_is_what_runs_and_waits() -> None:
    """An engine that is no pool counts as the only one."""
    assert alto.LLM(Busy(3, 4)).load == 7
    assert alto.LLM(alto.VLLM("not started")).load == 0


async def test_the_load_of_a_pool_is_that_of_its_least_busy_engine() -> None:
    """A call more would be among the generations of the engine that has the fewest."""
    pool = Pool([Simulated(A100_7B, says=100, name=name) for name in "ab"])
    llm = alto.LLM(pool)
    assert llm.load == 0
    async with pool, anyio.create_task_group() as tasks:
        loads = []
        for number in range(5):
            tasks.start_soon(llm.text, f"{number}")
            await asyncio.sleep(0.01)
            loads.append(llm.load)
        assert loads == [0, 1, 1, 2, 2]
    assert llm.load == 0


async def test_the_load_of_a_pool_without_engines_is_what_waits() -> None:
    """While all engines are dead, everything that was asked for is before a call more."""
    engine = Simulated(A100_7B, name="a")
    async with Pool([engine], backoff=(50.0, 100.0)) as pool, anyio.create_task_group() as tasks:
        for prompt in "ab":
            tasks.start_soon(alto.LLM(pool).text, prompt)
        await asyncio.sleep(0)
        engine.kill()
        await asyncio.sleep(0)
        assert pool.load <= 2
    assert pool.load == 0


def test_it_hands_over_every_piece_on_an_idle_engine_and_less_often_on_a_busy_one() -> None:
    """The more generations there are, the more is held; a given cost is used until one is learned."""
    idle, some, full = (Coarsening(Busy(n, 0)) for n in (0, 8, 64))
    held = [next(k for k in range(1, 10**6) if size.ready(k, 0)) for size in (idle, some, full)]
    assert held == [1, 750, 6000]
    free = Coarsening(Busy(64, 0), uncached=0)
    assert free.ready(1, 1000)


def test_it_learns_from_usage() -> None:
    """Prompts that come from the cache make calls cheap; an aborted call teaches nothing."""
    size = Coarsening(Busy(8, 0))
    assert not size.ready(100, 0)
    size.learn(None, 100)
    assert not size.ready(100, 0)
    size.learn(alto.model.Usage(prompt_tokens=600, cached_tokens=590, output_tokens=20), 100)
    assert size.ready(100, 0)
    assert repr(size) == (
        "<Coarsening: a call computes 10 tokens beside its text and writes 0.2 per character>"
    )


async def test_a_pipeline_coarsens_while_its_engines_are_busy() -> None:
    """With many requests at a time texts go in few calls, alone in as many as there are pieces."""
    calls: list[str] = []

    @alto.stage
    async def cut(name: str, *, llm: alto.LLM, size: Coarsening) -> AsyncIterator[str]:
        text = (chunk.text async for chunk in llm.generate(name))
        async for piece in joined(alto.text.sentences(text), size.ready):
            yield piece

    @alto.stage
    async def check(piece: str, *, llm: alto.LLM, size: Coarsening) -> int:
        calls.append(piece)
        answer = llm.generate("instruction " * 400 + piece)
        await answer.text()
        size.learn(answer.usage, len(piece))
        return piece.count(".")

    @alto.pipeline
    def run(name: alto.Stream[str]) -> alto.Stream[int]:
        return check(cut(name))

    def says(request: alto.model.GenerateRequest) -> str | int:
        return 8 if len(request.prompt) > 10 else "A b c d. " * 6

    pool = Pool([Simulated(A100_7B, says)])
    size = Coarsening(pool, uncached=50)
    async with run.open(llm=pool, size=size) as app:
        assert sum(await app.run("x")) == 6
        assert 3 <= len(calls) <= 6
        calls.clear()
        for _ in range(40):  # as if the instruction were not in the cache
            size.learn(alto.model.Usage(prompt_tokens=400, output_tokens=8), 10)
        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(app.run, f"{number}")
    assert 40 <= len(calls) <= 60
    assert sum(piece.count(".") for piece in calls) == 240
