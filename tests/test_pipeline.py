"""The programming model, end to end: what calls happen, and what they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import alto
from alto.testing import Scripted, run_virtual


@alto.stage
async def letters(word: str) -> AsyncIterator[str]:
    """One item per letter, a second apart."""
    for letter in word:
        await asyncio.sleep(1)
        yield letter


@alto.stage
async def upper(letter: str) -> str:
    """A coroutine stage."""
    return letter.upper()


@alto.stage
async def copies(letter: str) -> AsyncIterator[str]:
    """As many copies as the letter's place in the alphabet; none for ``a``."""
    for k in range(ord(letter.lower()) - ord("a")):
        yield f"{letter}{k}"


@alto.stage
async def joined(pieces: alto.Group[str]) -> str:
    """A whole group."""
    return "+".join([piece async for piece in pieces])


@alto.stage
async def respelled(pieces: alto.Group[str]) -> AsyncIterator[str]:
    """A group in, a stream out, piece by piece."""
    async for piece in pieces:
        yield f"<{piece}>"


@alto.stage
async def pair(one: str, other: str) -> str:
    """Two items."""
    return f"{one}|{other}"


@alto.stage
async def triple(one: str, other: str, third: str) -> str:
    """Three items."""
    return f"{one}|{other}|{third}"


@alto.stage
async def head(one: str, pieces: alto.Group[str]) -> str:
    """An item and what descends from it."""
    return f"{one}:{'+'.join([piece async for piece in pieces])}"


@alto.stage
async def both(first: alto.Group[str], second: alto.Group[str]) -> str:
    """Two groups of one parent."""
    return f"{'+'.join(await first.list())}/{'+'.join(await second.list())}"


async def results(pipeline: alto.Pipeline[str, str], word: str) -> list[str]:
    """What a pipeline gives for a word."""
    async with pipeline.open() as app:
        return await app.run(word)


async def test_coroutine_over_items() -> None:
    """`x: T -> R` is called once per item and keeps the level."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(letters(word))

    assert await results(p, "abc") == ["A", "B", "C"]


async def test_generator_over_items() -> None:
    """`x: T -> AsyncIterator[R]` opens a level; results come in ancestry order."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return copies(letters(word))

    assert await results(p, "cab") == ["c0", "c1", "b0"]


async def test_group_is_called_once_per_parent_and_empty_ones_fire() -> None:
    """`xs: Group[T]` is called once per parent, also for a parent without children."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return joined(copies(letters(word)))

    assert await results(p, "cab") == ["c0+c1", "", "b0"]


async def test_empty_request() -> None:
    """A request without any children still has one, empty, group."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return joined(letters(word))

    assert await results(p, "") == [""]


async def test_group_to_stream() -> None:
    """A generator over a group gives its pieces while the group still grows."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return respelled(letters(word))

    loop = asyncio.get_running_loop()
    async with p.open() as app:
        times = [(loop.time(), piece) async for piece in app.stream("ab")]
    start = times[0][0] - 1
    assert [(t - start, piece) for t, piece in times] == [(1, "<a>"), (2, "<b>")]


async def test_broadcast() -> None:
    """`a: A, b: B` is called once per item of the deeper one, with the shallower repeated."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return pair(word, letters(word))

    assert await results(p, "ab") == ["ab|a", "ab|b"]


async def test_join_of_equal_depth() -> None:
    """Two streams of one level are matched by ancestry, not by order of arrival."""

    @alto.stage
    async def slow_first(letter: str) -> str:
        await asyncio.sleep(10 if letter == "a" else 0)
        return letter

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        spelled = letters(word)
        return pair(slow_first(spelled), upper(spelled))

    assert await results(p, "abc") == ["a|A", "b|B", "c|C"]


async def test_three_parameters_of_three_depths() -> None:
    """Three parameters: every shallower value is repeated for its own descendants."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        spelled = letters(word)
        return triple(word, spelled, copies(spelled))

    assert await results(p, "cb") == ["cb|c|c0", "cb|c|c1", "cb|b|b0"]


async def test_item_with_its_group() -> None:
    """`a: A, xs: Group[B]` is called once per `a`, with what descends from it."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        spelled = letters(word)
        return head(spelled, copies(spelled))

    assert await results(p, "cab") == ["c:c0+c1", "a:", "b:b0"]


async def test_two_groups_of_one_parent() -> None:
    """Two groups are gathered at what their streams have in common."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        spelled = letters(word)
        return both(copies(spelled), copies(upper(spelled)))

    assert await results(p, "ba") == ["b0/B0", "/"]


async def test_by_gathers_over_several_levels() -> None:
    """`by=` pops several levels at once, in ancestry order."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return joined(copies(letters(word)), by=word)

    assert await results(p, "cab") == ["c0+c1+b0"]
    assert await results(p, "a") == [""]
    assert await results(p, "") == [""]


async def test_stage_used_twice_is_two_nodes() -> None:
    """A stage that is called twice has two rows in the statistics."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(upper(letters(word)))

    async with p.open() as app:
        assert await app.run("ab") == ["A", "B"]
        assert list(app.statistics().stages) == ["letters", "upper", "upper#2"]


async def test_pipeline_inside_a_pipeline_is_inlined() -> None:
    """A pipeline called on a stream becomes part of the calling one."""

    @alto.pipeline
    def inner(letter: alto.Stream[str]) -> alto.Stream[str]:
        return joined(copies(letter))

    @alto.pipeline
    def outer(word: alto.Stream[str]) -> alto.Stream[str]:
        return joined(inner(letters(word)))

    assert await results(outer, "cb") == ["c0+c1+b0"]


async def test_identity_pipeline() -> None:
    """A pipeline may return its input."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return word

    assert await results(p, "x") == ["x"]


async def test_two_inputs() -> None:
    """A pipeline of two inputs takes two per request, and pairs of them in map."""

    @alto.pipeline
    def p(one: alto.Stream[str], other: alto.Stream[str]) -> alto.Stream[str]:
        return pair(letters(one), other)

    async with p.open() as app:
        assert await app.run("ab", "z") == ["a|z", "b|z"]
        got = [r.unwrap() async for r in app.map([("a", "y"), ("b", "z")])]
    assert got == [["a|y"], ["b|z"]]


async def test_group_order_arrival_gives_pieces_as_they_come() -> None:
    """`order="arrival"` hands pieces out when they arrive; the default keeps ancestry order."""

    @alto.stage
    async def late(letter: str) -> str:
        await asyncio.sleep({"a": 30, "b": 20, "c": 10}[letter])
        return letter

    @alto.stage(order="arrival")
    async def as_they_come(pieces: alto.Group[str]) -> str:
        return "+".join([piece async for piece in pieces])

    @alto.pipeline
    def arrival(word: alto.Stream[str]) -> alto.Stream[str]:
        return as_they_come(late(letters(word)))

    @alto.pipeline
    def ancestry(word: alto.Stream[str]) -> alto.Stream[str]:
        return joined(late(letters(word)))

    assert await results(arrival, "abc") == ["c+b+a"]
    assert await results(ancestry, "abc") == ["a+b+c"]


async def test_stream_order() -> None:
    """`stream` gives arrival order, or ancestry order where it is asked for; `run` the latter."""

    @alto.stage
    async def late(letter: str) -> str:
        await asyncio.sleep({"a": 30, "b": 20, "c": 10}[letter])
        return letter

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return late(letters(word))

    async with p.open() as app:
        assert [x async for x in app.stream("abc")] == ["c", "b", "a"]
        assert [x async for x in app.stream("abc", order="ancestry")] == ["a", "b", "c"]
        assert await app.run("abc") == ["a", "b", "c"]


async def test_plain_function_stays_reachable() -> None:
    """`stage.fn` is the function as written, for unit tests."""
    assert await upper.fn("x") == "X"


async def test_resources_are_bound_once_in_open() -> None:
    """Keyword-only parameters get their values in open(), or with bind, or by default."""

    @alto.stage
    async def tagged(letter: str, *, tag: str, end: str = ".") -> str:
        return f"{letter}{tag}{end}"

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return tagged(tagged.bind(tag="!", end="")(letters(word)))

    async with p.open(tag="?") as app:
        assert await app.run("a") == ["a!?."]


async def test_nested_pipeline_inherits_and_loops() -> None:
    """A stage may call a pipeline, also the one it is part of, on one permit."""

    @alto.stage(concurrency=1)
    async def halve(n: int) -> int:
        if n <= 1:
            return 0
        [below] = await halving.run(n // 2)
        return below + 1

    @alto.pipeline
    def halving(n: alto.Stream[int]) -> alto.Stream[int]:
        return halve(n)

    async with halving.open() as app:
        fresh = app.statistics()
        assert await app.run(1000) == [9]
        assert app.statistics() == fresh


async def test_nested_stream_overlaps_and_is_cancelled_with_its_call() -> None:
    """An inner stream is read while it runs, and dies with the outer request."""
    seen: list[str] = []

    @alto.pipeline
    def inner(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(letters(word))

    @alto.stage
    async def outer_stage(word: str) -> AsyncIterator[str]:
        async for letter in inner.stream(word):
            seen.append(letter)
            yield letter

    @alto.pipeline
    def outer(word: alto.Stream[str]) -> alto.Stream[str]:
        return outer_stage(word)

    async with outer.open() as app:
        fresh = app.statistics()
        async with app.stream("abcdef") as handle:
            async for letter in handle:
                if letter == "B":
                    break
        assert seen == ["A", "B"]
        assert app.statistics() == fresh
        with pytest.raises(alto.DeadlineExceeded):
            await app.run("abcdef", timeout=2.5)
        assert app.statistics() == fresh


async def test_nested_runs_in_a_task_group_share_one_permit() -> None:
    """Inner runs started side by side inside a call do not wait for the permit of that call."""
    import anyio  # noqa: PLC0415

    @alto.stage(concurrency=1)
    async def work(n: int) -> int:
        if n == 0:
            await asyncio.sleep(1)
            return 1
        got: list[int] = []

        async def one() -> None:
            got.extend(await tree.run(n - 1))
            await asyncio.sleep(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
        return sum(got)

    @alto.pipeline
    def tree(n: alto.Stream[int]) -> alto.Stream[int]:
        return work(n)

    async with tree.open() as app:
        fresh = app.statistics()
        assert await app.run(4) == [16]
        assert app.statistics() == fresh


async def test_pipeline_outside_of_everything_is_refused() -> None:
    """Calling a pipeline's run outside any stage names open()."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return letters(word)

    with pytest.raises(alto.Closed, match=r"p\.open"):
        await p.run("x")


async def test_map_keeps_input_order_and_isolates_failures() -> None:
    """A failed input becomes a result with an error; the others are there, in input order."""

    @alto.stage
    async def inverse(n: int) -> float:
        await asyncio.sleep(10 - n)
        return 1 / n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[float]:
        return inverse(n)

    async with p.open() as app:
        fresh = app.statistics()
        got = [r async for r in app.map([2, 0, 4], concurrency=2)]
        assert [r.values for r in got] == [[0.5], None, [0.25]]
        assert isinstance(got[1].error, alto.StageError)
        with pytest.raises(alto.StageError, match="inverse"):
            got[1].unwrap()
        done = [r.input async for r in app.map([1, 5, 9], order="completed")]
        assert done == [9, 5, 1]
        assert app.statistics() == fresh


async def test_map_is_bounded_for_an_endless_input() -> None:
    """An endless input is read as far as the window goes, and no further."""
    pulled: list[int] = []

    @alto.stage
    async def same(n: int) -> int:
        return n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return same(n)

    def naturals():  # type: ignore[no-untyped-def]
        n = 0
        while True:
            pulled.append(n)
            yield n
            n += 1

    async with p.open() as app:
        fresh = app.statistics()
        async for result in app.map(naturals(), concurrency=3):
            if result.index == 10:
                break
        await asyncio.sleep(1)
        assert len(pulled) <= 10 + 1 + 2 * 3
        assert app.statistics() == fresh


async def test_map_over_an_async_iterable() -> None:
    """Inputs may come from an async iterable; results do not wait for the next input."""

    @alto.stage
    async def same(n: int) -> int:
        return n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[int]:
        return same(n)

    async def slow() -> AsyncIterator[int]:
        for n in range(3):
            await asyncio.sleep(10)
            yield n
        message = "no more"
        raise OSError(message)

    loop = asyncio.get_running_loop()
    async with p.open() as app:
        start, times = loop.time(), []
        with pytest.raises(OSError, match="no more"):
            async for result in app.map(slow()):
                times.append((loop.time() - start, result.unwrap()))
        assert times == [(10, [0]), (20, [1]), (30, [2])]


async def test_wrong_input_in_map_is_a_result() -> None:
    """An input of the wrong type fails alone."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(word)

    async with p.open() as app:
        got = [r async for r in app.map(["a", 1, "b"])]  # type: ignore[list-item]
    assert [r.values for r in got] == [["A"], None, ["B"]]
    assert isinstance(got[1].error, alto.InputError)


async def test_progress_is_reported() -> None:
    """`progress=` is told how many requests were started, succeeded and failed."""

    @alto.stage
    async def inverse(n: int) -> float:
        return 1 / n

    @alto.pipeline
    def p(n: alto.Stream[int]) -> alto.Stream[float]:
        return inverse(n)

    told = []
    async with p.open() as app:
        _ = [r async for r in app.map([1, 0, 2], concurrency=1, progress=told.append)]
    assert [(t.started, t.succeeded, t.failed) for t in told] == [(1, 1, 0), (2, 1, 1), (3, 2, 1)]


def test_run_sync() -> None:
    """`run_sync` opens, runs and closes on a loop of its own."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(word)

    assert p.run_sync("a") == ["A"]


async def test_run_sync_in_a_running_loop_names_the_way() -> None:
    """In a notebook `run_sync` says that a loop runs and what to await."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(word)

    with pytest.raises(RuntimeError, match="await"):
        p.run_sync("a")


async def test_stage_error_names_stage_path_and_cause() -> None:
    """A stage that raises fails its request with stage, path and cause; others go on."""

    @alto.stage
    async def picky(letter: str) -> str:
        if letter == "x":
            message = "no x here"
            raise ValueError(message)
        return letter

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return picky(letters(word))

    async with p.open() as app:
        fresh = app.statistics()
        other = asyncio.ensure_future(app.run("abc"))
        got = []
        with pytest.raises(alto.StageError) as caught:
            async for letter in app.stream("axb"):
                got.append(letter)
        assert got == ["a"]
        assert (caught.value.stage, caught.value.path) == ("picky", (1,))
        assert isinstance(caught.value.__cause__, ValueError)
        assert await other == ["a", "b", "c"]
        assert app.statistics() == fresh


async def test_generator_that_raises_late() -> None:
    """A generator that raises after some items fails the request, and its group does not fire."""
    fired = []

    @alto.stage
    async def two_then_raise(word: str) -> AsyncIterator[str]:
        yield word
        yield word
        message = "late"
        raise RuntimeError(message)

    @alto.stage
    async def whole(pieces: alto.Group[str]) -> str:
        got = await pieces.list()
        fired.append(got)
        return str(got)

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return whole(two_then_raise(word))

    async with p.open() as app:
        with pytest.raises(alto.StageError, match="late"):
            await app.run("a")
    assert not fired


async def test_closed_app_refuses() -> None:
    """A closed app, and one that is not open yet, say so."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(word)

    opening = p.open()
    async with opening as app:
        handle = app.stream("a")
    with pytest.raises(alto.Closed, match="closed"):
        app.stream("a")
    with pytest.raises(alto.Closed, match="closed"):
        await app.run("a")
    with pytest.raises(alto.Closed):
        await anext(handle)


async def test_dropped_handle_cancels_its_request() -> None:
    """Leaving `async for` over an unnamed stream cancels the request, down to its stages."""
    cancelled = []

    @alto.stage
    async def slow(letter: str) -> str:
        try:
            await asyncio.sleep(100 if letter != "a" else 0)
        except asyncio.CancelledError:
            cancelled.append(letter)
            raise
        return letter

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return slow(letters(word))

    async with p.open() as app:
        fresh = app.statistics()
        async for _ in app.stream("abc"):
            await asyncio.sleep(5)
            break
        await asyncio.sleep(0.1)
        assert cancelled == ["b", "c"] or sorted(cancelled) == ["b", "c"]
        assert app.statistics() == fresh


async def test_leaving_a_group_cancels_only_what_it_alone_waited_for() -> None:
    """A stage that takes the first piece cancels that group's siblings and nothing else."""
    cancelled: list[str] = []

    @alto.stage
    async def slow(piece: str) -> str:
        try:
            await asyncio.sleep(100 if not piece.endswith("0") else 1)
        except asyncio.CancelledError:
            cancelled.append(piece)
            raise
        return piece

    @alto.stage
    async def first(letter: str, pieces: alto.Group[str]) -> str:
        found = ""
        async for piece in pieces:
            found = piece
            break
        await asyncio.sleep(0.1)
        return letter + found

    @alto.pipeline
    def alone(word: alto.Stream[str]) -> alto.Stream[str]:
        spelled = letters(word)
        return first(spelled, slow(copies(spelled)))

    @alto.pipeline
    def shared(word: alto.Stream[str]) -> alto.Stream[str]:
        spelled = letters(word)
        found = slow(copies(spelled))
        return pair(first(spelled, found), joined(found))

    loop = asyncio.get_running_loop()
    async with alone.open() as app:
        start = loop.time()
        assert await app.run("cd") == ["cc0", "dd0"]
        assert loop.time() - start < 10
        assert sorted(cancelled) == ["c1", "d1", "d2"]
    cancelled.clear()
    async with shared.open() as app2:
        assert await app2.run("cd") == ["cc0|c0+c1", "dd0|d0+d1+d2"]
        assert not cancelled


def test_everything_works_on_a_loop_of_its_own() -> None:
    """Two loops, one after another, use one declaration."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return upper(letters(word))

    assert run_virtual(results, p, "ab") == ["A", "B"]
    assert run_virtual(results, p, "ab") == ["A", "B"]


async def test_what_the_caller_raises_leaves_the_app_as_it_is() -> None:
    """An exception of the `async with` body is not wrapped, and open requests are cancelled."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return letters(word)

    with pytest.raises(KeyError):
        async with p.open() as app:
            handle = app.stream("abc")
            await asyncio.sleep(1.5)
            raise KeyError
    with pytest.raises(alto.Closed):
        _ = [x async for x in handle][5:]


async def test_an_app_is_opened_once() -> None:
    """Opening the same app object twice says to call open() again."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return letters(word)

    app = p.open()
    with pytest.raises(alto.Closed, match="not open"):
        app.stream("a")
    async with app:
        pass
    with pytest.raises(alto.Closed, match="open"):
        async with app:
            pass


@alto.stage
async def marked(letter: str, *, mark: str) -> str:
    """Needs a resource."""
    return letter + mark


@alto.pipeline
def marking(letter: alto.Stream[str]) -> alto.Stream[str]:
    """Needs a resource that the pipeline which calls it does not."""
    return marked(letter)


@alto.stage
async def calls_marking(letter: str) -> str:
    """Calls another pipeline."""
    [result] = await marking.run(letter)
    return result


async def test_open_takes_the_resources_of_pipelines_that_stages_call() -> None:
    """A resource that only a nested pipeline needs is given to open(); a wrong name is refused."""

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return calls_marking(letters(word))

    async with p.open(mark="!") as app:
        assert await app.run("ab") == ["a!", "b!"]
    with pytest.raises(alto.ResourceError, match="mrak"):
        p.open(mrak="!")
    async with p.open() as app:
        with pytest.raises(alto.StageError, match="mark"):
            await app.run("ab")


async def mark_it(letter: str) -> str:
    """A plain function that runs a pipeline."""
    [result] = await marking.run(letter)
    return result


async def test_pipelines_are_found_through_helpers_and_resources() -> None:
    """A nested pipeline may be called by a helper, or be a resource; its engines are started."""

    @alto.stage
    async def by_helper(letter: str) -> str:
        return await mark_it(letter)

    @alto.stage
    async def by_resource(letter: str, *, inner: alto.Pipeline[str, str]) -> str:
        [result] = await inner.run(letter)
        return result

    @alto.stage
    async def say(letter: str, *, llm: alto.LLM) -> str:
        return await llm.text(letter)

    engine = Scripted({"a": ["A"]})

    @alto.pipeline
    def speaking(letter: alto.Stream[str]) -> alto.Stream[str]:
        return say.bind(llm=engine)(letter)

    @alto.pipeline
    def p(word: alto.Stream[str]) -> alto.Stream[str]:
        return by_helper(word)

    @alto.pipeline
    def q(word: alto.Stream[str]) -> alto.Stream[str]:
        return by_resource(word)

    async with p.open(mark="!") as app:
        assert await app.run("a") == ["a!"]
    async with q.open(mark="?", inner=marking) as other:
        assert await other.run("a") == ["a?"]
    async with q.open(inner=speaking) as third:
        assert await third.run("a") == ["A"]
    with pytest.raises(alto.Closed):
        engine.check_health()
