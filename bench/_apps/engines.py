"""The engines: simulated ones, vLLM's on this machine's CPU, and idle ones for the bound."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Final, cast, final

import attrs

import alto
from alto.engines import Pool, PoolEngine, Simulated
from alto.engines.profiles import EngineProfile
from alto.model import EngineStatistics, GenerateRequest
from alto.sched import LeastLoaded, Policy, PromptAware
from bench._apps.common import Application, Desk, Search
from examples.verification.engines import ONE_PROCESS, choose, quiet
from examples.verification.model import prompts as forms

FIND_S: Final = 0.026
"""Of a query, simulated: 8 ms of BM25, 3 ms of an encoder, 15 ms of a reranker (bench/_paper)."""

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    "prompt_aware": PromptAware,
    "least_loaded": LeastLoaded,
}
"""Of the pool, for both sides; the first is the one that it has by itself."""

Says = Callable[[str], Sequence[str]]


@final
class Simulation:
    """A pool of simulated engines, new and empty, which are asked in text.

    A pool gives its engines token ids; what is to be said is looked up by the text that they were.

    Args:
        profile: Of the engines.
        says: What they say.
        policy: Chooses an engine for a call.
        engines: How many.
    """

    name = "simulation"

    def __init__(
        self, profile: EngineProfile, says: Says, policy: Policy, engines: int = 2
    ) -> None:
        self._says = says
        self._texts: dict[tuple[int, ...], str] = {}
        self._pool = Pool([
            Simulated(profile, self._said, name=f"lm-{number}") for number in range(engines)
        ], policy=policy)  # fmt: skip

    def _said(self, request: GenerateRequest) -> Sequence[str]:
        return self._says(self._texts[tuple(cast("Sequence[int]", request.prompt))])

    @property
    def engines(self) -> tuple[PoolEngine, ...]:
        """Those of the pool."""
        return self._pool.engines

    async def start(self) -> None:
        """Start the pool."""
        await self._pool.start()

    async def stop(self) -> None:
        """Stop it."""
        await self._pool.stop()

    def statistics(self) -> EngineStatistics:
        """Those of the pool."""
        return self._pool.statistics()

    def check_health(self) -> None:
        """As the pool."""
        self._pool.check_health()

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[alto.Chunk, None]:
        """Run one generation on the pool."""
        text = str(request.prompt)
        self._texts[tuple(await self._pool.encode(text))] = text
        chunks = self._pool.generate(request)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()


@final
class Idle:
    """An engine that is always idle: every call has one of its own, and prompts cost nothing.

    A pipeline on it, on a clock that no code moves, takes the time of its longest chain of calls,
    each of which begins with the piece that it needs. Nobody is faster on the same engines.

    Args:
        profile: Of the engines.
        says: What they say.
    """

    name = "idle"

    def __init__(self, profile: EngineProfile, says: Says) -> None:
        self._profile = attrs.evolve(
            profile, per_prefill_token_s=0.0, per_prefill_step_s=0.0, per_prefill_s=0.0,
            per_prefill_pair_s=0.0,
        )  # fmt: skip
        self._says = says

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def statistics(self) -> EngineStatistics:
        """Nothing that anybody asks for."""
        return EngineStatistics()

    def check_health(self) -> None:
        """It is well."""

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[alto.Chunk, None]:
        """Run one generation alone."""
        engine = Simulated(self._profile, lambda asked: self._says(str(asked.prompt)))
        await engine.start()
        chunks = engine.generate(request)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()
            await engine.stop()


@final
class Recorded:
    """An engine that notes what another one says, token by token.

    Args:
        engine: The other one; it runs already.
    """

    def __init__(self, engine: alto.Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.said: dict[str, list[str]] = {}
        self.first_s: list[float] = []
        """Until the first token, of every call."""
        self.token_s: list[float] = []
        """For a further token, the mean of every call."""

    async def start(self) -> None:
        """It runs."""

    async def stop(self) -> None:
        """It goes on."""

    def statistics(self) -> EngineStatistics:
        """Those of the other one."""
        return self._engine.statistics()

    def check_health(self) -> None:
        """As the other one."""
        self._engine.check_health()

    async def generate(self, request: GenerateRequest, /) -> AsyncGenerator[alto.Chunk, None]:
        """Run one generation on the other one."""
        texts: list[str] = []
        begun = 0
        began = first = perf_counter()
        chunks = self._engine.generate(request)
        try:
            async for chunk in chunks:
                if not texts:
                    first, begun = perf_counter(), len(chunk.token_ids)
                texts += ["" for _ in chunk.token_ids[1:]] + [chunk.text]
                yield chunk
        finally:
            await chunks.aclose()
        self.said[str(request.prompt)] = texts
        self.first_s.append(first - began)
        if len(texts) > begun:
            self.token_s.append((perf_counter() - first) / (len(texts) - begun))


def running(pool: alto.VLLM | Simulation) -> list[int]:
    """Generations of each engine."""
    return [engine.statistics.running for engine in pool.engines]


@attrs.frozen
class Real:
    """vLLM's engines, or a test's, running, with what is needed to ask them."""

    llm: alto.VLLM | Simulation
    find: Search

    def desk(self, application: Application, engine: alto.Engine | None = None) -> Desk:
        """The desk of an application; on another handle on these engines where that is given."""
        return Desk(
            llm=alto.LLM(engine or self.llm),
            find=self.find,
            pinned=application.says if application.pinned else None,
        )

    def running(self) -> list[int]:
        """Generations of each engine."""
        return running(self.llm)


@asynccontextmanager
async def vllm(policy: Policy, engines: int) -> AsyncIterator[Real]:
    """Engines with the verification example's model, and its sentence encoder.

    Without prefix caches: who asks a thing second would else find it there.
    """
    chosen = choose(None, "auto")
    for name, value in chosen.environment.items():
        os.environ.setdefault(name, value)
    llm = alto.VLLM(
        forms.WEIGHTS, name="apps", replicas=engines, max_model_len=512, enforce_eager=True,
        kv_cache_memory_bytes=128 << 20, enable_prefix_caching=False, policy=policy, **ONE_PROCESS,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        with quiet():
            await stack.enter_async_context(llm)
            if chosen.encoder is not None:
                await chosen.encoder.start()
                stack.push_async_callback(chosen.encoder.stop)
        encoder = None if chosen.encoder is None else alto.LLM(chosen.encoder)
        yield Real(llm, Search(encoder=encoder, seconds=FIND_S))


@attrs.frozen
class Look:
    """What engines run at a moment."""

    busy: float
    """Part of them that runs anything."""
    batch: float | None
    """Generations per engine of those."""


async def look(engines: Callable[[], Sequence[int]], period: float, seen: list[Look]) -> None:
    """Note again and again what the engines run; until it is cancelled."""
    while True:
        running = engines()
        busy = sum(number > 0 for number in running)
        seen.append(Look(busy / len(running), sum(running) / busy if busy else None))
        await asyncio.sleep(period)
