# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Every public signature of stages, pipelines and apps, for the type checkers; never run.

A line with an ignore is an error in both checkers. An ignore that is not needed is one as well.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Literal, TypedDict, assert_type

import attrs

import alto
from alto.testing.group import group
from alto.testing.scripted import Scripted


@attrs.frozen
class Passage:
    text: str


@attrs.frozen
class Verdict:
    claim: str
    holds: bool


class Index: ...


# ------------------------------------------------------------------------- stages: what is inferred


@alto.stage
async def answer(question: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    async for chunk in llm.generate(question, max_tokens=8):
        yield chunk.text


@alto.stage
async def sentences(text: alto.Group[str]) -> AsyncGenerator[str, None]:
    async for piece in text:
        yield piece


@alto.stage(concurrency=4, order="arrival", name="find")
async def search(query: str, *, index: Index, limit: int = 3) -> list[Passage]:
    return [Passage(query)] * limit


@alto.stage()
async def best(found: alto.Group[list[Passage]]) -> Passage:
    return (await found.list())[0][0]


@alto.stage
async def appraise(claim: str, evidence: alto.Group[list[Passage]], *, llm: alto.LLM) -> Verdict:
    return Verdict(claim, holds=bool(await evidence.list()))


@alto.stage
async def zipped(first: alto.Group[str], second: alto.Group[int]) -> AsyncIterable[bool]:
    yield bool([*await first.list(), *await second.list()])


@alto.stage
async def headed(pieces: alto.Group[str], title: str) -> str:
    return title + "".join(await pieces.list())


@alto.stage
async def pair(left: str, right: int) -> tuple[str, int]:
    return left, right


@alto.stage
async def iii(a: str, b: int, c: bytes) -> float:
    return len(a) + b + len(c)


@alto.stage
async def iig(a: str, b: int, c: alto.Group[bytes], *, index: Index) -> float:
    return len(a) + b + len(await c.list())


@alto.stage
async def igi(a: str, b: alto.Group[int], c: bytes) -> AsyncIterator[float]:
    yield len(a) + len(await b.list()) + len(c)


@alto.stage
async def igg(a: str, b: alto.Group[int], c: alto.Group[bytes]) -> float:
    return len(a) + len(await b.list()) + len(await c.list())


@alto.stage
async def gii(a: alto.Group[str], b: int, c: bytes) -> float:
    return len(await a.list()) + b + len(c)


@alto.stage
async def gig(a: alto.Group[str], b: int, c: alto.Group[bytes]) -> float:
    return len(await a.list()) + b + len(await c.list())


@alto.stage
async def ggi(a: alto.Group[str], b: alto.Group[int], c: bytes) -> float:
    return len(await a.list()) + len(await b.list()) + len(c)


@alto.stage
async def ggg(a: alto.Group[str], b: alto.Group[int], c: alto.Group[bytes]) -> float:
    return len(await a.list()) + len(await b.list()) + len(await c.list())


@alto.stage
async def four(a: str, b: int, c: bytes, d: alto.Group[str], *, index: Index) -> float:
    return len(a) + b + len(c) + len(await d.list())


@alto.stage
async def five(
    a: str, b: alto.Group[int], c: bytes, d: alto.Group[bool], e: alto.Group[float], *, k: int = 3
) -> AsyncIterator[Passage]:
    yield Passage(a)


@alto.stage(concurrency=2)
async def six(
    a: alto.Group[str], b: int, c: alto.Group[bytes], d: bool, e: float, f: alto.Group[Passage], *,
    index: Index,
) -> Verdict:  # fmt: skip
    return Verdict("", holds=d)


@alto.stage
async def seven(  # noqa: PLR0917
    a: str, b: int, c: bytes, d: bool, e: float, f: Passage, g: str
) -> Verdict:
    return Verdict("", holds=d)


@alto.stage(runs_in="thread")
def blocking(a: str, b: int, c: bytes, d: bool, e: float, f: Passage, *, k: int = 3) -> Verdict:
    return Verdict("", holds=d)


assert_type(four, alto.Stage[str, int, bytes, str, float])
assert_type(five, alto.Stage[str, int, bytes, bool, float, Passage])
assert_type(six, alto.Stage[str, int, bytes, bool, float, Passage, Verdict])
assert_type(blocking, alto.Stage[str, int, bytes, bool, float, Passage, Verdict])
assert_type(answer, alto.Stage[str, str])
assert_type(sentences, alto.Stage[str, str])
assert_type(search, alto.Stage[str, list[Passage]])
assert_type(best, alto.Stage[list[Passage], Passage])
assert_type(appraise, alto.Stage[str, list[Passage], Verdict])
assert_type(zipped, alto.Stage[str, int, bool])
assert_type(headed, alto.Stage[str, str, str])
assert_type(pair, alto.Stage[str, int, tuple[str, int]])
assert_type(iii, alto.Stage[str, int, bytes, float])
assert_type(iig, alto.Stage[str, int, bytes, float])
assert_type(igi, alto.Stage[str, int, bytes, float])
assert_type(igg, alto.Stage[str, int, bytes, float])
assert_type(gii, alto.Stage[str, int, bytes, float])
assert_type(gig, alto.Stage[str, int, bytes, float])
assert_type(ggi, alto.Stage[str, int, bytes, float])
assert_type(ggg, alto.Stage[str, int, bytes, float])

assert_type(search.name, str)
assert_type(search.bind(index=Index()), alto.Stage[str, list[Passage]])


# ---------------------------------------------------------------------- pipelines: what is inferred


@alto.pipeline
def verify(question: alto.Stream[str]) -> alto.Stream[Verdict]:
    claims = sentences(answer(question))
    assert_type(claims, alto.Stream[str])
    found = search(claims)
    assert_type(found, alto.Stream[list[Passage]])
    verdicts = appraise(claims, found)
    assert_type(verdicts, alto.Stream[Verdict])
    return verdicts


@alto.pipeline(name="choose")
def choose(question: alto.Stream[str], number: alto.Stream[int]) -> alto.Stream[float]:
    claims = answer(question)
    assert_type(pair(claims, number), alto.Stream[tuple[str, int]])
    assert_type(best(search(claims), by=question), alto.Stream[Passage])
    raw = encode(claims)
    assert_type(four(question, number, raw, claims), alto.Stream[float])
    return iii(claims, number, raw)


@alto.stage
async def encode(text: str) -> bytes:
    return text.encode()


@alto.pipeline
def nested(
    question: alto.Stream[str], number: alto.Stream[int], raw: alto.Stream[bytes]
) -> alto.Stream[Verdict]:
    assert_type(choose(question, number), alto.Stream[float])
    assert_type(verify(question), alto.Stream[Verdict])
    return verify(question)


@alto.pipeline
def p4(
    a: alto.Stream[str], b: alto.Stream[int], c: alto.Stream[bytes], d: alto.Stream[str]
) -> alto.Stream[float]:
    return four(a, b, c, d)


@alto.pipeline
def p5(
    a: alto.Stream[str], b: alto.Stream[int], c: alto.Stream[bytes], d: alto.Stream[bool],
    e: alto.Stream[float],
) -> alto.Stream[Passage]:  # fmt: skip
    return five(a, b, c, d, e)


@alto.pipeline
def p6(
    a: alto.Stream[str], b: alto.Stream[int], c: alto.Stream[bytes], d: alto.Stream[bool],
    e: alto.Stream[float], f: alto.Stream[Passage],
) -> alto.Stream[Verdict]:  # fmt: skip
    return blocking(a, b, c, d, e, f)


@alto.pipeline
def p7(  # noqa: PLR0917
    a: alto.Stream[str], b: alto.Stream[int], c: alto.Stream[bytes], d: alto.Stream[bool],
    e: alto.Stream[float], f: alto.Stream[Passage], g: alto.Stream[str],
) -> alto.Stream[Verdict]:  # fmt: skip
    return seven(a, b, c, d, e, f, g)


assert_type(p4, alto.Pipeline[str, int, bytes, str, float])
assert_type(p5, alto.Pipeline[str, int, bytes, bool, float, Passage])
assert_type(p6, alto.Pipeline[str, int, bytes, bool, float, Passage, Verdict])
assert_type(verify, alto.Pipeline[str, Verdict])
assert_type(choose, alto.Pipeline[str, int, float])
assert_type(nested, alto.Pipeline[str, int, bytes, Verdict])
assert_type(verify.bind(llm=object()), alto.Pipeline[str, Verdict])
assert_type(choose.bind(index=Index()).name, str)


def apply(
    stage: alto.Stage[str, int], pipeline: alto.Pipeline[str, int], text: alto.Stream[str]
) -> None:
    assert_type(stage(text), alto.Stream[int])
    assert_type(pipeline(text), alto.Stream[int])


def covariant(stage: alto.Stage[str, bool], app: alto.App[str, bool]) -> None:
    _stage: alto.Stage[str, int] = stage
    _app: alto.App[str, int] = app


def wider(stream: alto.Stream[bool]) -> alto.Stream[int]:
    return stream


# ---------------------------------------------------------------------------- apps: what is inferred


async def use(questions: list[str], pairs: AsyncIterator[tuple[str, int]]) -> None:
    async with verify.open(llm=object(), index=Index(), capacity=4, max_held_items=9) as app:
        assert_type(app, alto.App[str, Verdict])
        handle = app.stream("Who?", timeout=3, order="ancestry", priority=1)
        assert_type(handle, alto.app.StreamHandle[Verdict])
        async for verdict in handle:
            assert_type(verdict, Verdict)
        assert_type(await app.run("Who?", timeout=2.5, priority=-1), list[Verdict])
        results = app.map(questions, concurrency=3, order="completed", timeout=1, progress=True)
        assert_type(results, alto.app.MapHandle[str, Verdict])
        async for result in results:
            assert_type(result, alto.Result[str, Verdict])
            assert_type(result.input, str)
            assert_type(result.index, int)
            assert_type(result.seconds, float)
            assert_type(result.usage.output_tokens, int)
            assert_type(result.unwrap(), list[Verdict])
            told_apart(result)
        assert_type(app.statistics(), alto.app.AppStatistics)
    async with choose.open(index=Index()) as second:
        assert_type(second, alto.App[str, int, float])
        assert_type(await second.run("Who?", 3), list[float])
        assert_type(second.map(pairs), alto.app.MapHandle[tuple[str, int], float])
    async with nested.open() as third:
        assert_type(third.map([("a", 1, b"")]), alto.app.MapHandle[tuple[str, int, bytes], Verdict])


def told_apart(result: alto.Result[str, Verdict]) -> None:
    if isinstance(result, alto.Succeeded):
        assert_type(result.values, list[Verdict])
    else:
        assert_type(result, alto.Failed[str])
    match result:
        case alto.Succeeded(values=values):
            assert_type(values, list[Verdict])
        case alto.Failed(error=error):
            assert_type(error, alto.AltoError)
    if result.ok is True:  # pyright does not narrow by a bare `if result.ok:`, as mypy does.
        assert_type(result.values, list[Verdict])
    else:
        assert_type(result.error, alto.AltoError)
    if result.error is None:
        assert_type(result.values, list[Verdict])
    else:
        assert_type(result.error, alto.AltoError)
    if result.values is not None:
        assert_type(result.values, list[Verdict])
        assert_type(result.error, None)
    else:
        assert_type(result.error, alto.AltoError)


async def read_by_hand(words: alto.Group[str], app: alto.App[str, Verdict]) -> None:
    assert_type(await anext(words), str)
    assert_type(await anext(app.stream("Who?")), Verdict)
    assert_type(await anext(aiter(app.stream("Who?"))), Verdict)
    assert_type(await anext(app.map(["Who?"])), alto.Result[str, Verdict])
    assert_type([one async for one in app.map(["Who?"])], list[alto.Result[str, Verdict]])


@alto.stage
async def retry(question: str) -> AsyncIterator[Verdict]:
    assert_type(await verify.run(question, timeout=1), list[Verdict])
    async for verdict in verify.stream(question, order="ancestry"):
        assert_type(verdict, Verdict)
        yield verdict


def script() -> None:
    assert_type(verify.run_sync("Who?", timeout=3, llm=object(), index=Index()), list[Verdict])
    verify.check()
    assert_type(verify.name, str)


async def unit_test() -> None:
    assert_type(group([1, 2]), alto.Group[int])
    assert_type(await group(["a"]).list(), list[str])
    async for piece in group([b""]):
        assert_type(piece, bytes)


@attrs.frozen
class Claim:
    text: str


class Movie(TypedDict):
    title: str


async def generate(llm: alto.LLM, words: alto.Group[str]) -> None:
    plain = llm.generate("p", max_tokens=None, n=2, temperature=1.0, logprobs=3, lora="a")
    assert_type(plain, alto.Generation)
    assert_type(await plain.samples(), list[alto.model.Completion])
    assert_type(await plain.text(), str)
    assert_type(plain.usage, alto.model.Usage | None)
    assert_type(llm.generate("p", schema=None, prefix="p", resume=True), alto.Generation)
    assert_type(await llm.text(alto.model.StreamedPrompt("Say: ", words), stop="x"), str)
    async for chunk in llm.generate([1, 2]):
        assert_type(chunk, alto.Chunk)
        assert_type(chunk.logprobs, tuple[alto.model.TokenLogprob, ...] | None)

    claims = llm.generate("p", schema=list[Claim], max_tokens=9)
    assert_type(claims, alto.TypedGeneration[list[Claim]])
    assert_type(await claims.value(), list[Claim])
    assert_type(claims.items(), AsyncIterator[Claim])
    async for claim in claims.items():
        assert_type(claim, Claim)
    async for chunk in claims:
        assert_type(chunk, alto.Chunk)
    async with llm.generate("p", schema=list[list[int]]) as rows:
        async for row in rows.items():
            assert_type(row, list[int])
    assert_type(await llm.generate("p", schema=Claim).value(), Claim)
    assert_type(await llm.generate("p", schema=Movie).value(), Movie)
    assert_type(await llm.generate("p", schema=int).value(), int)
    assert_type(await llm.generate("p", schema=dict[str, Claim]).value(), dict[str, Claim])
    takes_letter(await llm.generate("p", schema=Literal["a", "b"]).value())
    takes_claim(await llm.generate("p", schema=Claim | None).value())


async def pool(llm: alto.LLM) -> None:
    assert_type(await llm.embed("p"), tuple[float, ...])
    assert_type(await llm.embed([1, 2]), tuple[float, ...])
    assert_type(await llm.embed(["a", "b"], priority=1), list[tuple[float, ...]])
    assert_type(await llm.embed_tokens("p"), tuple[tuple[float, ...], ...])
    assert_type(await llm.embed_tokens(["a"]), list[tuple[tuple[float, ...], ...]])
    assert_type(await llm.score("q", ["a", "b"], by="pair"), list[float])


def takes_letter(letter: Literal["a", "b"]) -> None: ...


def takes_claim(claim: Claim | None) -> None: ...


def takes_engines(engine: alto.Engine, embedder: alto.protocols.Embedder) -> None: ...


def engines(engine: Scripted) -> None:
    takes_engines(engine, engine)


# ------------------------------------------------------------------------------ what is refused


@alto.stage
async def ask(number: int) -> AsyncIterator[int]:
    yield number


@alto.stage
async def tell(text: str) -> str:
    return text


def edges(text: alto.Stream[str], number: alto.Stream[int]) -> None:
    tell(number)  # type: ignore[arg-type]
    tell(ask(number))  # type: ignore[arg-type]
    appraise(text, text)  # type: ignore[arg-type]
    appraise(search(text), text)  # type: ignore[arg-type]
    iii(text, text, text)  # type: ignore[arg-type]
    best(text)  # type: ignore[arg-type]
    tell("a constant")  # type: ignore[arg-type]
    tell()  # type: ignore[call-arg]
    tell(text, text)  # type: ignore[call-arg]
    pair(text)  # type: ignore[call-arg]
    four(text)  # type: ignore[call-arg]
    tell(text=text)  # type: ignore[call-arg]
    search(text, index=Index())  # type: ignore[call-arg]
    best(search(text), by="text")  # type: ignore[arg-type]
    verify(number)  # type: ignore[arg-type]
    verify(text, text)  # type: ignore[call-arg]
    choose(text, text)  # type: ignore[arg-type]


def many_edges(
    a: alto.Stream[str], b: alto.Stream[int], c: alto.Stream[bytes], d: alto.Stream[bool],
    e: alto.Stream[float], f: alto.Stream[Passage],
) -> None:  # fmt: skip
    assert_type(six(a, b, c, d, e, f, by=a), alto.Stream[Verdict])
    assert_type(p6(a, b, c, d, e, f), alto.Stream[Verdict])
    assert_type(seven(a, b, c, d, e, f, a), alto.Stream[Verdict])
    four(a, b, c, c)  # type: ignore[arg-type]
    five(a, b, c, a, e)  # type: ignore[arg-type]
    five(a, b, c, d, f)  # type: ignore[arg-type]
    six(a, b, c, a, e, f)  # type: ignore[arg-type]
    six(a, b, c, d, a, f)  # type: ignore[arg-type]
    six(a, b, c, d, e, a)  # type: ignore[arg-type]
    six(a, b, c, d, e)  # type: ignore[call-arg]
    blocking(a, b, c, d, e, a)  # type: ignore[arg-type]
    p4(a, b, c, b)  # type: ignore[arg-type]
    p5(a, b, c, d, f)  # type: ignore[arg-type]
    p6(a, b, c, d, e, a)  # type: ignore[arg-type]
    p6(a, b, c, d, e)  # type: ignore[call-arg]


async def many_inputs() -> None:
    async with p6.open() as app:
        assert_type(await app.run("", 1, b"", True, 0.5, Passage("")), list[Verdict])
        await app.run("", 1, b"", True, 0.5, "")  # type: ignore[arg-type]


async def misuse(stream: alto.Stream[str], other: alto.Stream[str]) -> None:
    for _ in stream:  # type: ignore[attr-defined]
        pass
    async for _ in stream:  # type: ignore[attr-defined]
        pass
    await stream  # type: ignore[misc]
    stream[0]  # type: ignore[index]
    len(stream)  # type: ignore[arg-type]
    stream.text  # type: ignore[attr-defined]
    _ = stream < other  # type: ignore[operator]
    for _ in group(["a"]):  # type: ignore[attr-defined]
        pass


def plain(text: str) -> str:
    return text


def options() -> None:
    alto.stage(plain)  # type: ignore[arg-type]
    alto.stage(concurrency="4")  # type: ignore[call-overload]
    alto.stage(order="sorted")  # type: ignore[call-overload]
    alto.stage(replica=4)  # type: ignore[call-overload]
    alto.pipeline(label="x")  # type: ignore[call-overload]


def not_a_stream(text: str) -> alto.Stream[str]:
    raise NotImplementedError


def no_stream(text: alto.Stream[str]) -> str:
    raise NotImplementedError


def no_input() -> alto.Stream[str]:
    raise NotImplementedError


def with_resource(text: alto.Stream[str], *, llm: alto.LLM) -> alto.Stream[str]:
    raise NotImplementedError


async def asynchronous(text: alto.Stream[str]) -> alto.Stream[str]:
    raise NotImplementedError


def pipelines() -> None:
    alto.pipeline(not_a_stream)  # type: ignore[arg-type]
    alto.pipeline(no_stream)  # type: ignore[arg-type]
    alto.pipeline(no_input)  # type: ignore[arg-type]
    alto.pipeline(with_resource)  # type: ignore[arg-type]
    alto.pipeline(asynchronous)  # type: ignore[arg-type]


@alto.pipeline
def wrong_result(text: alto.Stream[str]) -> alto.Stream[int]:
    return tell(text)  # type: ignore[return-value]


def tightened(stream: alto.Stream[int]) -> alto.Stream[bool]:
    return stream  # type: ignore[return-value]


async def requests(app: alto.App[str, Verdict], second: alto.App[str, int, float]) -> None:
    assert_type(app.using(), alto.App[str, Verdict])
    assert_type(second.using(index=Index()).using(limit=3), alto.App[str, int, float])
    assert_type(await app.using(index=Index()).run("x"), list[Verdict])
    assert_type(app.using(index=Index()).stream("x"), alto.app.StreamHandle[Verdict])
    assert_type(app.using(index=Index()).map(["x"]), alto.app.MapHandle[str, Verdict])
    app.using(Index())  # type: ignore[call-arg]
    app.using(index=Index()).stream(1)  # type: ignore[arg-type]
    app.stream(3)  # type: ignore[arg-type]
    app.stream()  # type: ignore[call-arg]
    app.stream("a", order="sorted")  # type: ignore[arg-type]
    app.stream("a", timout=3)  # type: ignore[call-arg]
    await app.run(b"")  # type: ignore[arg-type]
    app.map([3])  # type: ignore[list-item]
    app.map(["a"], order="arrival")  # type: ignore[arg-type]
    second.stream("a")  # type: ignore[call-arg]
    second.stream("a", "b")  # type: ignore[arg-type]
    second.map(["a"])  # type: ignore[list-item]
    verify.run_sync(3)  # type: ignore[arg-type]
    verify.bind("a")  # type: ignore[call-arg]
    verify.open("a")  # type: ignore[arg-type, call-arg]
    verify.open(capacity="4")  # type: ignore[arg-type]
    await verify.run(3)  # type: ignore[arg-type]


async def generations(llm: alto.LLM) -> None:
    llm.generate("p", max_token=3)  # type: ignore[call-overload]
    llm.generate("p", n="2")  # type: ignore[call-overload]
    llm.generate(3)  # type: ignore[call-overload]
    llm.generate("p", schema=Claim).items()  # type: ignore[misc]
    llm.generate("p").value()  # type: ignore[attr-defined]
    llm.generate("p").items()  # type: ignore[attr-defined]
    wrong: list[str] = await llm.generate("p", schema=list[Claim]).value()  # type: ignore[assignment]
    await llm.text("p", schema=Claim)  # type: ignore[call-arg]
    await llm.score("q", "a", by="cosine")  # type: ignore[arg-type]
    await llm.embed(3)  # type: ignore[call-overload]


# ---------------------------------------------------------------------- what a replica has of its own


@asynccontextmanager
async def opened(number: int) -> AsyncGenerator[Index, None]:
    yield Index()


@contextmanager
def opened_at_once() -> Generator[Index, None, None]:
    yield Index()


async def loaded(number: int) -> Index:
    return Index()


def resources() -> None:
    assert_type(alto.per_replica(opened), alto.PerReplica[Index])
    assert_type(alto.per_replica(opened_at_once), alto.PerReplica[Index])
    assert_type(alto.per_replica(loaded), alto.PerReplica[Index])
    assert_type(alto.per_replica(Index), alto.PerReplica[Index])
    alto.per_replica(3)  # type: ignore[call-overload]


class Cluster:
    def replica(
        self, stage: alto.model.StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AbstractAsyncContextManager[Callable[..., Any]]:
        raise NotImplementedError


@alto.stage(runs_in=Cluster(), concurrency=4)
def remote_plain(claim: str, *, index: Index) -> int:
    return 0


@alto.stage(runs_in=Cluster())
async def remote(claim: str, k: int) -> float:
    return 0.0


@alto.stage(runs_in=Cluster(), order="arrival")
async def remote_many(claims: alto.Group[str]) -> AsyncIterator[int]:
    yield 0


@alto.stage(runs_in=alto.executors.Process())
def in_process(claim: str) -> int:
    return 0


def executors() -> None:
    assert_type(remote_plain, alto.Stage[str, int])
    assert_type(remote, alto.Stage[str, int, float])
    assert_type(remote_many, alto.Stage[str, int])
    assert_type(in_process, alto.Stage[str, int])
    executor: alto.protocols.Executor = Cluster()
    executor = alto.executors.Thread()
    executor = alto.executors.Loop()
    alto.stage(runs_in=3)  # type: ignore[call-overload]
    alto.stage(runs_in=executor)
