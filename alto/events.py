"""What observers see: frozen records of what an open pipeline does.

An observer is an object with a method ``notify(event)``; see :class:`alto.protocols.Observer`. It is
given to ``open(observers=[...])``. Each kind of event is a class of this module:

================================  ==========================================================
:class:`RequestStarted`           a request was accepted; nothing of it has run
:class:`RequestEnded`             nothing of it runs any more
:class:`CallStarted`              a stage call has a permit and begins
:class:`CallEnded`                it has ended, its clean-up included
:class:`ItemProduced`             a call handed an item over; only for observers that ask for it
:class:`GroupCompleted`           all pieces of a group have arrived
:class:`GenerationStarted`        a stage call asked an engine for something
:class:`GenerationEnded`          the engine is done with it, or it was left
:class:`EngineStarted`            an app has started an engine
:class:`EngineStopped`            an app has stopped it
:class:`EngineFailed`             a generation found that its engine has died
================================  ==========================================================

Order: a request's start comes before everything of it and its end after everything; the same holds
for a call and what it does, and for an inner request and the call that started it. Every start has
exactly one end, whatever fails or is cancelled, as long as the event loop runs.

Times are seconds on the event loop's clock (``loop.time()``).

They are named tuples, since a frozen class of attrs takes three times as long to build and there may be
two for each item. Use their fields by name: later versions may add some.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from alto.model import Path, Usage

__all__ = (
    "CallEnded",
    "CallStarted",
    "EngineFailed",
    "EngineStarted",
    "EngineStopped",
    "Event",
    "GenerationEnded",
    "GenerationStarted",
    "GroupCompleted",
    "ItemProduced",
    "Outcome",
    "RequestEnded",
    "RequestStarted",
)

Outcome: TypeAlias = Literal["done", "failed", "cancelled"]
"""How something ended: by itself, with an error, or because nothing needed it any more."""


class RequestStarted(NamedTuple):
    """A request was accepted. Of an inner request ``parent`` names the call that started it."""

    request: str
    """Its id: ``handle.id``."""
    pipeline: str
    """Name of the pipeline."""
    time: float
    """When, in seconds on the loop's clock."""
    root: str
    """Id of the outermost request: its own, unless a stage called a pipeline."""
    parent: str | None = None
    """Id of the request whose stage started it; None: the program did."""
    parent_stage: str | None = None
    """Name of that stage, with its pipeline's: ``verify.check``."""
    parent_path: Path | None = None
    """Ancestry of the call that started it."""
    priority: int = 0
    """Lower runs earlier."""
    deadline: float | None = None
    """When its time is over, in seconds on the loop's clock; None: never."""


class RequestEnded(NamedTuple):
    """Nothing of a request runs any more."""

    request: str
    """Its id."""
    pipeline: str
    """Name of the pipeline."""
    time: float
    """When, in seconds on the loop's clock."""
    outcome: Outcome
    """How it ended."""
    error: BaseException | None = None
    """With what it failed."""


class CallStarted(NamedTuple):
    """A stage call has a permit and begins. ``(request, stage, path)`` names it."""

    request: str
    """Id of its request."""
    stage: str
    """Name of the stage, with its pipeline's: ``verify.check``."""
    replica: int
    """Number of the replica that runs it."""
    path: Path
    """Ancestry of the call within its request."""
    time: float
    """When, in seconds on the loop's clock."""


class CallEnded(NamedTuple):
    """A stage call has ended, its clean-up included. It has the fields of its ``CallStarted``."""

    request: str
    """Id of its request."""
    stage: str
    """Name of the stage, with its pipeline's."""
    replica: int
    """Number of the replica that ran it."""
    path: Path
    """Ancestry of the call within its request."""
    time: float
    """When, in seconds on the loop's clock."""
    seconds: float
    """How long it took from its start, waits included."""
    outputs: int
    """Items that it handed over."""
    outcome: Outcome
    """How it ended."""
    error: BaseException | None = None
    """What it raised."""


class ItemProduced(NamedTuple):
    """A call handed an item over. Made only where an observer names this class in ``wants``."""

    request: str
    """Id of its request."""
    stage: str
    """Name of the stage, with its pipeline's."""
    path: Path
    """Ancestry of the item."""
    time: float
    """When, in seconds on the loop's clock."""
    value: Any
    """The item itself. An observer that keeps it keeps it alive."""


class GroupCompleted(NamedTuple):
    """All pieces of a group have arrived; they may not have been read yet."""

    request: str
    """Id of its request."""
    stage: str
    """Name of the stage that gathers, with its pipeline's."""
    path: Path
    """Ancestry of the group's parent, which is that of the call."""
    parameter: str
    """Name of the stage's parameter."""
    time: float
    """When, in seconds on the loop's clock."""


class GenerationStarted(NamedTuple):
    """A stage call asked an engine for a generation, a vector or a score."""

    generation: int
    """Number of the pair of events, unique in this process."""
    engine: str
    """Name of the engine."""
    request: str
    """Id of the call's request."""
    root: str
    """Id of the outermost request, to which the cost belongs."""
    stage: str
    """Name of the call's stage, with its pipeline's."""
    path: Path
    """Ancestry of the call within its request."""
    time: float
    """When, in seconds on the loop's clock."""


class GenerationEnded(NamedTuple):
    """An engine is done with what a stage call asked for, or the call has left it."""

    generation: int
    """Number of the pair of events."""
    engine: str
    """Name of the engine."""
    request: str
    """Id of the call's request."""
    root: str
    """Id of the outermost request, to which the cost belongs."""
    stage: str
    """Name of the call's stage, with its pipeline's."""
    path: Path
    """Ancestry of the call within its request."""
    time: float
    """When, in seconds on the loop's clock."""
    outcome: Outcome
    """How it ended; ``cancelled`` where the call left it."""
    usage: Usage | None = None
    """What it cost, as far as the engine said."""
    error: BaseException | None = None
    """With what it failed."""


class EngineStarted(NamedTuple):
    """An app has started an engine."""

    engine: str
    """Its name."""
    time: float
    """When, in seconds on the loop's clock."""


class EngineStopped(NamedTuple):
    """An app has stopped an engine that it, or another app, had started."""

    engine: str
    """Its name."""
    time: float
    """When, in seconds on the loop's clock."""


class EngineFailed(NamedTuple):
    """A generation found that its engine has died."""

    engine: str
    """Its name."""
    time: float
    """When, in seconds on the loop's clock."""
    error: BaseException
    """What the generation raised."""


Event: TypeAlias = (
    RequestStarted
    | RequestEnded
    | CallStarted
    | CallEnded
    | ItemProduced
    | GroupCompleted
    | GenerationStarted
    | GenerationEnded
    | EngineStarted
    | EngineStopped
    | EngineFailed
)
"""Everything that ``notify`` may be given."""
