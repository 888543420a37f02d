"""The events of an app, recorded, and whether they tell a story that can be."""

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

_Call = tuple[str, str, Path]


@final
class RecordedEvents:
    """An observer that keeps every event, in order.

    ``async with p.open(observers=[recorded := RecordedEvents()]) as app: ...``

    Args:
        wants: Kinds of events, as classes of :mod:`alto.events`; by default all but
            ``ItemProduced``.
    """

    def __init__(self, wants: Iterable[type] | None = None) -> None:
        self.wants = None if wants is None else tuple(wants)
        """The kinds that it gets; None: all but ``ItemProduced``."""
        self.events: list[Event] = []
        """What it has got, oldest first."""

    def __repr__(self) -> str:
        return f"<RecordedEvents: {len(self.events)}>"

    def notify(self, event: Event, /) -> None:
        """Keep *event*."""
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Give the events of one kind, oldest first."""
        return [cast("E", event) for event in self.events if isinstance(event, kind)]

    def check(self) -> None:
        """Assert that every start has exactly one end, and that everything ends within its parent.

        For an app without open requests, recorded from its opening with all default kinds.

        Raises:
            AssertionError: It does not hold; the message says of what.
        """
        requests: dict[str, RequestStarted] = {}
        calls: dict[_Call, CallStarted] = {}
        generations: dict[int, _Call] = {}
        ended: set[object] = set()
        now = float("-inf")
        for event in self.events:
            assert event.time >= now, f"{event} is earlier than the event before it"
            now = event.time
            match event:
                case RequestStarted():
                    assert event.request not in requests, f"{event} started twice"
                    assert event.request not in ended, f"{event} started after its end"
                    if event.parent is not None:
                        key = (event.parent, cast("str", event.parent_stage),
                               cast("Path", event.parent_path))  # fmt: skip
                        assert key in calls, f"{event} is outside of the call that started it"
                    requests[event.request] = event
                case RequestEnded():
                    assert event.request in requests, f"{event} did not start, or ended before"
                    inside = [call for call in calls if call[0] == event.request]
                    assert not inside, f"{event}, while {inside} go on"
                    del requests[event.request]
                    ended.add(event.request)
                case CallStarted():
                    call = (event.request, event.stage, event.path)
                    assert event.request in requests, f"{event} is outside of its request"
                    assert call not in calls, f"{event} started twice"
                    assert call not in ended, f"{event} started after its end"
                    calls[call] = event
                case CallEnded():
                    call = (event.request, event.stage, event.path)
                    assert call in calls, f"{event} did not start, or ended before"
                    started = calls.pop(call)
                    assert started.replica == event.replica, f"{event} moved to another replica"
                    assert event.seconds == event.time - started.time, f"{event} took another time"
                    assert (event.error is not None) == (event.outcome == "failed"), event
                    left = [number for number, of in generations.items() if of == call]
                    assert not left, f"{event}, while generations {left} go on"
                    inner = [one for one in requests.values()
                             if (one.parent, one.parent_stage, one.parent_path) == call]  # fmt: skip
                    assert not inner, f"{event}, while {inner} go on"
                    ended.add(call)
                case GenerationStarted():
                    call = (event.request, event.stage, event.path)
                    assert call in calls, f"{event} is outside of its call"
                    assert event.generation not in generations, f"{event} started twice"
                    generations[event.generation] = call
                case GenerationEnded():
                    call = (event.request, event.stage, event.path)
                    assert generations.pop(event.generation, None) == call, f"{event} did not start"
                case _:
                    pass
        open_ones = (*requests, *calls, *generations)
        assert not open_ones, f"these have no end: {open_ones}"
