"""Events for observers: frozen records of the activity of an open pipeline.

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
:class:`GenerationEnded`          the engine has finished it, or the call left it
:class:`EngineStarted`            an app has started an engine
:class:`EngineStopped`            an app has stopped it
:class:`EngineFailed`             a generation found that its engine has died
================================  ==========================================================

Order: a request's start comes before everything of it and its end after everything; the same holds
for a call and what it does, and for an inner request and the call that started it. Every start has
exactly one end, whatever fails or is cancelled, as long as the event loop runs.

Times are seconds on the event loop's clock (``loop.time()``).

Events are named tuples, since a frozen attrs class takes three times as long to build, and an item may
cause two of them. Use their fields by name: later versions may add some.
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
"""Outcome: ended by itself, failed with an error, or cancelled because it was no longer needed."""


class RequestStarted(NamedTuple):
    """A request was accepted. Of an inner request ``parent`` names the call that started it."""

    request: str
    """Id of the request, as in ``handle.id``."""
    pipeline: str
    """Name of the pipeline."""
    time: float
    """Time of the event, in seconds on the loop's clock."""
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
    """Time at which it times out, in seconds on the loop's clock; None: never."""


class RequestEnded(NamedTuple):
    """Nothing of a request runs any more."""

    request: str
    """Id of the request."""
    pipeline: str
    """Name of the pipeline."""
    time: float
    """Time of the event, in seconds on the loop's clock."""
    outcome: Outcome
    """Outcome: done, failed or cancelled."""
    error: BaseException | None = None
    """Exception with which it failed; None: it did not fail."""


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
    """Time of the event, in seconds on the loop's clock."""


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
    """Time of the event, in seconds on the loop's clock."""
    seconds: float
    """Seconds from its start to its end, waits included."""
    outputs: int
    """Items that it handed over."""
    outcome: Outcome
    """Outcome: done, failed or cancelled."""
    error: BaseException | None = None
    """Exception that it raised; None: it raised none."""


class ItemProduced(NamedTuple):
    """A call handed an item over. Made only where an observer names this class in ``wants``."""

    request: str
    """Id of its request."""
    stage: str
    """Name of the stage, with its pipeline's."""
    path: Path
    """Ancestry of the item."""
    time: float
    """Time of the event, in seconds on the loop's clock."""
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
    """Time of the event, in seconds on the loop's clock."""


class GenerationStarted(NamedTuple):
    """A stage call asked an engine for a generation, a vector or a score."""

    generation: int
    """Number that this event shares with its ``GenerationEnded``; unique in this process."""
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
    """Time of the event, in seconds on the loop's clock."""


class GenerationEnded(NamedTuple):
    """An engine has finished what a stage call asked for, or the call has left it."""

    generation: int
    """Number that this event shares with its ``GenerationStarted``."""
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
    """Time of the event, in seconds on the loop's clock."""
    outcome: Outcome
    """Outcome; ``cancelled`` if the call left it."""
    usage: Usage | None = None
    """Tokens and times that the engine reported; None: it reported none."""
    error: BaseException | None = None
    """Exception with which it failed; None: it did not fail."""


class EngineStarted(NamedTuple):
    """An app has started an engine."""

    engine: str
    """Name of the engine."""
    time: float
    """Time of the event, in seconds on the loop's clock."""


class EngineStopped(NamedTuple):
    """An app has stopped an engine that it, or another app, had started."""

    engine: str
    """Name of the engine."""
    time: float
    """Time of the event, in seconds on the loop's clock."""


class EngineFailed(NamedTuple):
    """A generation found that its engine has died."""

    engine: str
    """Name of the engine."""
    time: float
    """Time of the event, in seconds on the loop's clock."""
    error: BaseException
    """Exception that the generation raised."""


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
