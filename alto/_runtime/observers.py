"""The observers of an app, and the kinds of events that they want.

The observers of a kind are looked up once, when an app opens or a replica is made. If there are none,
no event is built.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, get_args

from alto._safe_text import shown
from alto.events import Event, ItemProduced
from alto.protocols import Observer

__all__ = ("Notifiers", "Notify", "Observers", "check_observers")

Notify = Callable[[Event], None]
"""Function that passes an event to the observers that want its kind."""

_KINDS: Final[frozenset[type]] = frozenset(get_args(Event))
_BY_DEFAULT: Final = _KINDS - {ItemProduced}


class Notifiers(Protocol):
    """An object with the functions that notify observers of calls."""

    @property
    def notify_call(self) -> Notify | None:
        """Function that notifies observers of calls; None: no observer wants them."""
        ...

    @property
    def notify_item(self) -> Notify | None:
        """Function that notifies observers of items; None: no observer wants them."""
        ...

    @property
    def notify_generation(self) -> Notify | None:
        """Function that notifies observers of generations; None: no observer wants them."""
        ...


class Observers:
    """The observers of one app.

    Args:
        observers: Those of ``open(observers=...)``, checked.
    """

    __slots__ = ("_observers", "_reported")

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = [(observer, _wanted(observer)) for observer in observers]
        self._reported: set[int] = set()

    def notifier(self, *kinds: type) -> Notify | None:
        """Return the function that notifies observers of events of *kinds*; None: no observer wants any."""
        takers = [one for one, wanted in self._observers if not wanted.isdisjoint(kinds)]
        if not takers:
            return None
        if len(takers) == 1 and all(
            wanted.issuperset(kinds) for one, wanted in self._observers if one is takers[0]
        ):
            return self._only(takers[0])
        wanted = {kind: [one for one, kinds_of in self._observers if kind in kinds_of]
                  for kind in kinds}  # fmt: skip

        def notify(event: Event) -> None:
            for observer in wanted[type(event)]:
                try:
                    observer.notify(event)
                except Exception as error:  # noqa: BLE001  # an observer must not fail a request
                    self._report(observer, error)

        return notify

    def _only(self, observer: Observer) -> Notify:
        # The common case: the kind of event need not be looked at.
        take = observer.notify

        def notify(event: Event) -> None:
            try:
                take(event)
            except Exception as error:  # noqa: BLE001  # an observer must not fail a request
                self._report(observer, error)

        return notify

    def _report(self, observer: Observer, error: Exception) -> None:
        if id(observer) in self._reported:
            return
        self._reported.add(id(observer))
        message = (
            f"observer {shown(observer)} raised {shown(error)}; the request continues, the observer "
            f"still gets events, and its later errors are not reported"
        )
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


def check_observers(observers: object) -> tuple[Observer, ...]:
    """Return the observers, checked.

    Raises:
        TypeError: An observer has no method ``notify``, or its ``wants`` contains something other than
            event classes.
    """
    if isinstance(observers, Observer) or not isinstance(observers, Iterable):
        msg = f"open(observers=...) takes a list of observers, not {shown(observers)}"
        raise TypeError(msg)
    checked = tuple(observers)
    for observer in checked:
        if isinstance(observer, type) or not callable(getattr(observer, "notify", None)):
            msg = (
                f"open(observers=...): {shown(observer)} is no observer; it needs a method "
                f"notify(event)"
            )
            raise TypeError(msg)
        if inspect.iscoroutinefunction(observer.notify):
            msg = (
                f"open(observers=...): {type(observer).__name__}.notify() must be a plain function, "
                f"not an async one; let it put events into a queue that a task of yours reads"
            )
            raise TypeError(msg)
        _wanted(observer)
    return checked


def _wanted(observer: Observer) -> frozenset[type]:
    wants = getattr(observer, "wants", None)
    if wants is None:
        return _BY_DEFAULT
    kinds: frozenset[type] = frozenset(wants)
    if unknown := kinds - _KINDS:
        msg = (
            f"open(observers=...): {type(observer).__name__}.wants names {shown(next(iter(unknown)))}, "
            f"which is no event; events are the classes of alto.events"
        )
        raise TypeError(msg)
    return kinds
