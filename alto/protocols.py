"""Protocols of the parts that a program may bring: engines, executors, routers, observers.

The protocol of a policy is `alto.sched.Policy`, beside the scheduler's records that it reads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

import attrs

from alto.events import Event
from alto.model import (
    Chunk,
    Embedding,
    EmbedRequest,
    EngineCapacity,
    EngineStatistics,
    GenerateRequest,
    Path,
    Prompt,
    StageInfo,
)

__all__ = (
    "CacheListener",
    "Embedder",
    "Engine",
    "Executor",
    "HasCapacity",
    "HasLoad",
    "Member",
    "Observer",
    "ReplicaLoad",
    "RoutedItem",
    "Router",
    "Scorer",
    "StreamsPrompts",
)


@runtime_checkable
class Engine(Protocol):
    """A source of generations: it turns prompts into streams of chunks.

    ``alto.testing.check_engine`` runs the whole contract against an implementation.
    An engine belongs to the event loop that started it.

    What only some engines can do is in protocols of its own: :class:`alto.protocols.Embedder`,
    :class:`alto.protocols.Scorer`, :class:`alto.protocols.StreamsPrompts`,
    :class:`alto.protocols.HasCapacity`, :class:`alto.protocols.HasLoad` and :class:`alto.protocols.Member`. An
    engine has an ability when it has the members of that protocol; there is no class to inherit from.
    """

    @property
    def name(self) -> str:
        """Short name for messages and statistics."""
        ...

    async def start(self) -> None:
        """Make the engine ready. Starting a running engine does nothing.

        Raises:
            EngineStartError: It could not be started; nothing is left behind.

        Cancellation: nothing is left behind; the engine can be started again.
        """
        ...

    def generate(self, request: GenerateRequest, /) -> AsyncGenerator[Chunk, None]:
        """Run one generation.

        The last chunk, and only the last, has a ``finish_reason`` and a ``usage``. Closing the
        generator (``aclose``) aborts the generation in the engine; so does cancelling the task
        that iterates it. The engine may run ahead of the reader; its slot is free again when
        *it* is done, read or not.

        Raises:
            InvalidRequest: At the first iteration; the engine cannot serve this request.
            Closed: The engine is not running.
            EngineDied: The engine died; every generation on it gets this.
            GenerationFailed: The engine gave up on this generation only.
        """
        ...

    def statistics(self) -> EngineStatistics:
        """Return what the engine is doing now.

        ``running`` and ``waiting`` are 0 when all generations have ended.
        """
        ...

    def check_health(self) -> None:
        """Return if the engine can serve.

        Raises:
            Closed: It has not been started, or was stopped.
            EngineDied: It was started and has died.
        """
        ...

    async def stop(self) -> None:
        """Abort all generations and free all resources. Stopping a stopped engine does nothing.

        Generations that still run end with ``Closed``. A stopped engine can be started again.

        Cancellation: shielded; the engine is stopped when this returns or raises.
        """
        ...


@runtime_checkable
class Embedder(Protocol):
    """An engine that pools: it turns prompts into vectors, or pairs of texts into scores."""

    async def embed(self, request: EmbedRequest, /) -> Embedding:
        """Run one prompt.

        Raises:
            InvalidRequest: The engine cannot serve this request, or cannot pool at all.
            Closed: The engine is not running.
            EngineDied: The engine died.

        Cancellation: the prompt is aborted in the engine.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """An embedder that may score a pair of texts at once.

    Without this ability, :meth:`alto.LLM.score` compares vectors.
    """

    @property
    def scores_pairs(self) -> bool:
        """True if the model reads both texts together, as a cross-encoder does.

        Read while the engine runs; False where it is not known yet. Never raises.
        """
        ...


@runtime_checkable
class StreamsPrompts(Protocol):
    """An engine that may take a :class:`alto.model.StreamedPrompt` as it is.

    A pool reads the prompt to its end for an engine without this ability.
    """

    @property
    def streams_prompts(self) -> bool:
        """True if the engine computes a prompt while its end is still being written.

        Read after each start. Never raises.
        """
        ...


@runtime_checkable
class HasCapacity(Protocol):
    """An engine that knows its limits.

    A pool places any number of calls at once on an engine without this ability.
    """

    @property
    def capacity(self) -> EngineCapacity:
        """Limits of the engine: sequences, tokens per step, KV cache, context.

        Raises:
            Closed: The engine is not running, so they are not known.
        """
        ...


@runtime_checkable
class HasLoad(Protocol):
    """An engine that queues calls itself, in front of several engines.

    The load of an engine without this ability is the number of its generations, running or waiting.
    """

    @property
    def load(self) -> int:
        """Number of generations, running or waiting, that a new one would share an engine with.

        0 while it is stopped. Never raises.
        """
        ...


class CacheListener(Protocol):
    """A consumer of the events of a prefix cache. Called in the engine's loop; must not raise."""

    def stored(
        self, parent: int | None, token_ids: Sequence[int], keys: Sequence[int], salt: int = 0, /
    ) -> None:
        """Take note of new full blocks, each of which follows the one before it.

        Args:
            parent: The engine's own name for the block before the first; None: the first block
                begins a prompt.
            token_ids: Tokens of all the blocks, in order.
            keys: The engine's own name for each of the blocks, in order.
            salt: Stands for what else the blocks depend on, such as an adapter; see
                ``alto/_sched/prefix.py``.
        """
        ...

    def removed(self, keys: Sequence[int], /) -> None:
        """Take note that blocks were evicted."""
        ...

    def cleared(self) -> None:
        """Forget all blocks: the cache was emptied, or events were lost."""
        ...


@runtime_checkable
class Member(Engine, HasCapacity, Protocol):
    """An engine that reports its limits, its prefix cache and its death to a pool.

    A pool takes any :class:`Engine`; it places calls best on those that are members.
    """

    async def encode(self, prompt: Prompt, /) -> Sequence[int]:
        """Return the token ids of a prompt, as :meth:`generate` would make them.

        Raises:
            InvalidRequest: It cannot be tokenised.
            Closed: The engine is not running.
            EngineDied: The engine died.
        """
        ...

    def listen(self, listener: CacheListener, /) -> bool:
        """Report to *listener* from now on what the prefix cache holds.

        Returns:
            Whether the engine can; if not, the listener is never called.
        """
        ...

    async def wait_died(self) -> None:
        """Wait until the engine has died; for ever, if it is stopped instead.

        Cancellation: the engine is not affected.
        """
        ...


@runtime_checkable
class Observer(Protocol):
    """A receiver of the events of an open pipeline; ``open(observers=[...])``.

    Its attribute ``wants``, where it has one, names the kinds of events that it gets, as classes of
    :mod:`alto.events`; without it, it gets all but ``ItemProduced``. A pair of kinds, such as
    ``CallStarted`` and ``CallEnded``, of which no observer wants either is not even built.
    """

    def notify(self, event: Event, /) -> None:
        """Take an event.

        Called on the event loop, within the step that the event is about, so it must be quick and
        must not block; in the context of the call or request where there is one. What it raises goes
        to the loop's exception handler, the first time, and nowhere else.
        """
        ...


@runtime_checkable
class Executor(Protocol):
    """A place where the calls of a stage run: ``@alto.stage(runs_in=MyExecutor())``.

    One executor may serve many stages, replicas and apps. ``alto.executors`` has those of alto.
    """

    def replica(
        self, stage: StageInfo, number: int, resources: Mapping[str, object], /
    ) -> AbstractAsyncContextManager[Callable[..., Any]]:
        """Make a replica of a stage, which is there as long as the context manager is entered.

        It is entered when an app opens or is scaled up, in a task of the app's own, and left in the
        same task when no call of the replica runs any more. It gives the *call*: a callable that
        takes the items or groups of one call by position, and by keyword the resources that replace
        the replica's for this call alone (none, as a rule). What it returns is awaited for the one
        result; for a stage that is an async generator it is iterated, and should be an async
        generator, which is closed when its results are no longer needed. Up to ``stage.concurrency``
        calls run at once.

        A call is cancelled as any coroutine is, with ``asyncio.CancelledError`` where it waits, and
        returns at once; the executor decides whether work elsewhere is stopped or left behind. A
        generator is closed. What a call raises fails its request, as the cause of an
        :class:`alto.StageError`.

        Args:
            stage: The stage to run.
            number: Number of the replica: 0, 1, ..., never used again.
            resources: The keyword arguments of the stage, as they were given. The executor makes
                those that are an :class:`alto.PerReplica`, where its calls run:
                ``value.make(number)``.

        Raises:
            Exception: The replica cannot be made; ``open()`` or ``scale()`` raises a
                :class:`alto.ResourceError` with it as the cause.

        Cancellation: of entering; nothing is left behind.
        """
        ...


@attrs.frozen(kw_only=True)
class RoutedItem:
    """An item or a group to be routed."""

    stage: str
    """Name of the stage."""
    request: int
    """Number of the request, unique in this process."""
    path: Path
    """Ancestry of the call: of the item, or of the group's parent."""
    group: bool
    """True for a group, which stays at its replica until it closes."""
    value: object
    """The first input of the call: the item, or the group's first piece; None for an empty group."""


@attrs.define(kw_only=True, eq=False)
class ReplicaLoad:
    """Load of a replica, for routers. Read only; it changes while the stage works."""

    number: int
    """Number of the replica. No other replica gets it later."""
    slots: int
    """Calls that it can run at once."""
    free: int = 0
    """Calls that it could start now."""
    unfinished: int = 0
    """Items and groups that it has and that have not ended."""
    bound: int = 0
    """Groups among them."""
    placed: int = 0
    """Items and groups that it was ever given."""
    seconds: float | None = None
    """Time it needs for a call, in seconds, on average; None: nothing has ended yet."""


@runtime_checkable
class Router(Protocol):
    """A rule that chooses the replica of a stage for an item or a group.

    A router belongs to one stage of one open pipeline: every app makes a copy of what
    ``@stage(router=...)`` was given, so it may keep what it likes between calls.
    """

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """Pick a replica.

        Args:
            item: The item or group to place.
            replicas: Those that take something new, in order of their numbers; at least one.
                The load of the chosen one is updated before the router is asked again.

        Returns:
            An index into *replicas*. If that replica has no free slot, the item waits for it, even if
            another has one.
        """
        ...
