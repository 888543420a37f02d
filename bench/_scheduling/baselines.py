"""Policies that exist to be compared with: rules of papers and of gateways."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import final

from alto.sched import CallOrder, EngineLoad, Ticket

__all__ = ("BoundedLoadHash", "LMetric", "StaticPartition")


@final
class StaticPartition:
    """Each template has engines of its own, which take its calls in turn: the paper's set-up (§2).

    Args:
        shares: Engines per stage, in order: ``{"answer": 2, "claims": 2, "queries": 3}``. Names are
            those of stages, with or without their pipeline's. None: the engines are dealt out evenly
            to the templates, in the order in which they are seen.
        order: Who goes first.
    """

    def __init__(
        self, shares: Mapping[str, int] | None = None, *, order: CallOrder = "arrival"
    ) -> None:
        if shares is not None and not (shares and all(count >= 1 for count in shares.values())):
            msg = f"every stage needs at least one engine: {shares!r}"
            raise ValueError(msg)
        self.order: CallOrder = _checked(order)
        self._shares = None if shares is None else dict(shares)
        self._seen: dict[object, int] = {}
        self._turns: dict[object, int] = {}

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """The next of its template's own engines."""
        key = call.template.key
        own = self._own(key, sorted(engines, key=_index))
        turn = self._turns.get(key, 0)
        self._turns[key] = turn + 1
        return own[turn % len(own)]

    def _own(self, key: object, engines: Sequence[EngineLoad]) -> Sequence[EngineLoad]:
        if self._shares is not None:
            start, name = 0, key[0] if isinstance(key, tuple) else key
            total = sum(self._shares.values())
            for stage, count in self._shares.items():
                if isinstance(name, str) and (name == stage or name.endswith(f".{stage}")):
                    return _slice(engines, start / total, (start + count) / total)
                start += count
            return engines
        place = self._seen.setdefault(key, len(self._seen))
        return _slice(engines, place / len(self._seen), (place + 1) / len(self._seen))


@final
class BoundedLoadHash:
    """Consistent hashing of the prompt's beginning, passing over engines that are too full.

    What is hashed is the first 256 tokens *behind* the declared prefix, or calls of one stage would
    all have the same owner. The owner is the next point on a ring of 64 per engine; an engine with
    more than *bound* times the mean load is passed over (Mirrokni, Thorup, Zadimoghaddam 2018).

    Args:
        bound: Load over mean load, above which an engine takes no more.
        order: Who goes first.
    """

    _POINTS = 64

    def __init__(self, *, bound: float = 1.25, order: CallOrder = "arrival") -> None:
        if bound <= 1:
            msg = f"bound must be above 1, not {bound}"
            raise ValueError(msg)
        self.bound = bound
        self.order: CallOrder = _checked(order)
        self._ring: list[tuple[int, int]] = []
        self._members: frozenset[tuple[int, str]] = frozenset()

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """The owner, or the next that is not too full."""
        self._refresh(engines)
        by_index = {engine.index: engine for engine in engines}
        limit = self.bound * (sum(engine.load for engine in engines) + 1) / len(engines)
        start = bisect_left(self._ring, (_ring_point(_beginning(call)), -1))
        for step in range(len(self._ring)):
            engine = by_index[self._ring[(start + step) % len(self._ring)][1]]
            if engine.load + 1 <= limit:
                return engine
        return min(engines, key=_load)

    def _refresh(self, engines: Sequence[EngineLoad]) -> None:
        members = frozenset((engine.index, engine.name) for engine in engines)
        if members != self._members:
            self._members = members
            self._ring = sorted(
                (_ring_point((name, point)), index)
                for index, name in members
                for point in range(self._POINTS)
            )


@final
class LMetric:
    """Least product of what is to be computed of the prompt and the load; no threshold at all.

    Args:
        order: Who goes first.
    """

    def __init__(self, *, order: CallOrder = "arrival") -> None:
        self.order: CallOrder = _checked(order)

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """The least product; of equals the least loaded."""
        return min(engines, key=lambda engine: (self.score(call, engine), engine.load))

    def score(self, call: Ticket, engine: EngineLoad, /) -> float:
        """Uncached tokens times (load + 1)."""
        return (call.prompt_tokens - call.hit_on(engine)) * (engine.load + 1)


def _checked(order: CallOrder) -> CallOrder:
    if order not in ("request", "arrival"):
        msg = f'order must be "request" or "arrival", not {order!r}'
        raise ValueError(msg)
    return order


def _index(engine: EngineLoad) -> int:
    return engine.index


def _load(engine: EngineLoad) -> int:
    return engine.load


def _slice(engines: Sequence[EngineLoad], begin: float, end: float) -> Sequence[EngineLoad]:
    first = min(int(begin * len(engines)), len(engines) - 1)
    return engines[first : max(first + 1, int(end * len(engines)))]


def _ring_point(key: Hashable) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def _beginning(call: Ticket) -> Hashable:
    """What names the first 256 tokens behind the declared prefix."""
    return call.beginning if call.beginning is not None else call.number
