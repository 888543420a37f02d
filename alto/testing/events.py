"""Recorded events of an app, and a check of their consistency."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast, final

from alto.events import (
    CallEnded,
    CallStarted,
    Event,
    GenerationEnded,
    GenerationStarted,
    RequestEnded,
    RequestStarted,
)
from alto.model import Path

__all__ = ("RecordedEvents",)

E = TypeVar("E")

_CallKey = tuple[str, str, Path]


@final
class RecordedEvents:
    """An observer that keeps every event, in order.

    ``async with p.open(observers=[recorded := RecordedEvents()]) as app: ...``

    Args:
        wants: Kinds of events, as classes of :mod:`alto.events`; by default all but
            ``ItemProduced``.
    """

    def __init__(self, wants: Iterable[type] | None = None) -> None:
        self.wants: tuple[type, ...] | None = None if wants is None else tuple(wants)
        """The kinds that it receives; None: all but ``ItemProduced``."""
        self.events: list[Event] = []
        """The events so far, oldest first."""

    def __repr__(self) -> str:
        return f"<RecordedEvents: {len(self.events)}>"

    def notify(self, event: Event, /) -> None:
        """Append *event* to the list."""
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind, oldest first."""
        return [cast("E", event) for event in self.events if isinstance(event, kind)]

    def check(self) -> None:
        """Assert that every start has exactly one end, and that everything ends within its parent.

        The app must have no open requests, and its events must have been recorded since it was opened,
        with all default kinds.

        Raises:
            AssertionError: It does not hold; the message names the event.
        """
        open_now = _Open()
        for event in self.events:
            open_now.take(event)
        open_now.check_ended()


class _Open:
    """The open requests, calls and generations after the events so far."""

    def __init__(self) -> None:
        self.requests: dict[str, RequestStarted] = {}
        self.calls: dict[_CallKey, CallStarted] = {}
        self.generations: dict[int, _CallKey] = {}
        self.ended: set[object] = set()
        self.now = float("-inf")

    def take(self, event: Event) -> None:
        """Check one event and record it."""
        assert event.time >= self.now, f"{event} is earlier than the event before it"
        self.now = event.time
        match event:
            case RequestStarted():
                self._request_started(event)
            case RequestEnded():
                self._request_ended(event)
            case CallStarted():
                self._call_started(event)
            case CallEnded():
                self._call_ended(event)
            case GenerationStarted():
                call = (event.request, event.stage, event.path)
                assert call in self.calls, f"{event} is outside of its call"
                assert event.generation not in self.generations, f"{event} started twice"
                self.generations[event.generation] = call
            case GenerationEnded():
                call = (event.request, event.stage, event.path)
                assert self.generations.pop(event.generation, None) == call, f"{event} has no start"
            case _:
                pass

    def _request_started(self, event: RequestStarted) -> None:
        assert event.request not in self.requests, f"{event} started twice"
        assert event.request not in self.ended, f"{event} started after its end"
        if event.parent is not None:
            assert _parent(event) in self.calls, f"{event} is outside of the call that started it"
        self.requests[event.request] = event

    def _request_ended(self, event: RequestEnded) -> None:
        assert event.request in self.requests, f"{event} has no start, or ended before"
        inside = [call for call in self.calls if call[0] == event.request]
        assert not inside, f"{event}, while {inside} are still open"
        assert (event.error is not None) == (event.outcome == "failed"), event
        del self.requests[event.request]
        self.ended.add(event.request)

    def _call_started(self, event: CallStarted) -> None:
        call = (event.request, event.stage, event.path)
        assert event.request in self.requests, f"{event} is outside of its request"
        assert call not in self.calls, f"{event} started twice"
        assert call not in self.ended, f"{event} started after its end"
        self.calls[call] = event

    def _call_ended(self, event: CallEnded) -> None:
        call = (event.request, event.stage, event.path)
        assert call in self.calls, f"{event} has no start, or ended before"
        started = self.calls.pop(call)
        assert started.replica == event.replica, f"{event} moved to another replica"
        assert event.seconds == event.time - started.time, f"{event} took another time"
        assert (event.error is not None) == (event.outcome == "failed"), event
        still_open = [number for number, of in self.generations.items() if of == call]
        assert not still_open, f"{event}, while generations {still_open} are still open"
        inner = [one for one in self.requests.values() if _parent(one) == call]
        assert not inner, f"{event}, while {inner} are still open"
        self.ended.add(call)

    def check_ended(self) -> None:
        """Assert that nothing is open."""
        open_ones = (*self.requests, *self.calls, *self.generations)
        assert not open_ones, f"these have no end: {open_ones}"


def _parent(event: RequestStarted) -> _CallKey | None:
    if event.parent is None or event.parent_stage is None or event.parent_path is None:
        return None
    return (event.parent, event.parent_stage, event.parent_path)
