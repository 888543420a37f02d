"""Which engine a call should run on: rules, each a small class with one method.

A policy gets the call and the engines that live, and returns one of them, whether or not it has
room now: a call then waits for it. It reads the books and changes nothing but its own state. What
a policy may carry besides ``choose``:

* ``rebinds``: ask again when the call's turn comes, and when another engine would stand idle;
* ``order``: ``"request"``, as :mod:`alto._sched.queue` says, or ``"arrival"``, first come first served;
* ``score(call, engine)``, or ``scores(call, engines)`` where they depend on each other: the numbers
  by which it chose, lower is better, for records.

Sources of the rules: ``docs/explanation/scheduling.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, TypeAlias, final, runtime_checkable

from alto._sched.state import EngineBook, Ticket

__all__ = (
    "CallOrder",
    "LeastLoaded",
    "Policy",
    "PrefixThreshold",
    "PromptAware",
    "RoundRobin",
)

CallOrder: TypeAlias = Literal["request", "arrival"]


@runtime_checkable
class Policy(Protocol):
    """Chooses an engine for a call."""

    def choose(self, call: Ticket, engines: Sequence[EngineBook], /) -> EngineBook:
        """Where *call* should run, now or when there is room.

        One of *engines*. Anything else, None too, is a fault: it is reported once, and the call is
        placed by `LeastLoaded`.

        Args:
            call: What is to be placed; ``call.hit_on(engine)`` tells what is cached where.
            engines: Those that may be chosen, at least one: all that live, and at the turn of a call
                only those that have room or hold more of it than the one that it waited for.
        """
        ...


@final
class PromptAware:
    """The engine where a call would finish first, counting the delay that it gives to others.

    For each engine, in seconds::

        p (Q + u) + ceil((Q + u) / budget) s + o s + slots + memory + w n p (u - least)

    where ``u`` is what the engine must compute of the prompt, ``least`` what the best must, ``Q``
    what it has to compute before that, ``p`` seconds per prompt token, ``s`` seconds per step, ``o``
    the expected output, ``slots`` and ``memory`` the wait for a place in the batch and in the KV
    cache, and ``n`` the generations that the prefill would hold up: the last term is the delay to
    others that could be avoided. The declared prefix counts as held by all; else the calls of a
    template would crowd where one of them has been (P99 on *pipeline* was 16 % worse). The engine
    that last served the same document or parent costs 3 % less, the homes of the call's template 1 %:
    enough to decide between equals. More made P99 worse (``bench.scheduling``).

    Args:
        inflicted: ``w``, how much a second of delay to another generation counts.
        affinity: Factor for the engine that last served the same document or parent.
        home: Factor for the template's homes.
        order: Who goes first.
    """

    rebinds: ClassVar[bool] = True

    def __init__(
        self,
        *,
        inflicted: float = 1.0,
        affinity: float = 0.97,
        home: float = 0.99,
        order: CallOrder = "request",
    ) -> None:
        if inflicted < 0 or not 0 < affinity <= 1 or not 0 < home <= 1:
            msg = (
                f"inflicted must be at least 0, affinity and home above 0 and at most 1, not "
                f"{inflicted!r}, {affinity!r} and {home!r}"
            )
            raise ValueError(msg)
        self.inflicted = inflicted
        self.affinity = affinity
        self.home = home
        self.order: CallOrder = _checked(order)

    def choose(self, call: Ticket, engines: Sequence[EngineBook], /) -> EngineBook:
        """The cheapest; of equals the least loaded."""
        costs = self.scores(call, engines)
        lowest = min(costs)
        if costs.count(lowest) == 1:
            return engines[costs.index(lowest)]
        equal = [e for e, cost in zip(engines, costs, strict=True) if cost == lowest]
        return min(equal, key=_load)

    def scores(self, call: Ticket, engines: Sequence[EngineBook], /) -> list[float]:
        """Seconds, weighted as the class says, for each engine beside the others."""
        # On the path of every call, once per engine: hence one loop and local names.
        hits, length, output = call.hits, call.prompt_tokens, call.expected_output
        known, samples, served, homes = len(hits), call.work.n, call.served, call.template.homes
        inflicted, due, costs = self.inflicted, call.key[0], []
        speed, capacity = engines[0].speed, None
        base, each, prefill = speed.base, speed.per_sequence, speed.prefill  # a pool's, for all
        slots = budget = 1
        limit: int | None = None
        # Every engine is taken to hold the head of the template, as each will after its first call.
        head = call.work.prefix_tokens
        least = length - max(_best_hit(hits, engines), head)
        for engine in engines:
            if engine.capacity is not capacity:
                capacity = engine.capacity
                slots, limit = capacity.max_num_seqs, capacity.kv_tokens
                budget = capacity.max_num_batched_tokens
            index, line = engine.index, engine.line
            hit = hits[index] if index < known else 0
            uncached = length - (hit if hit > head else head)  # noqa: FURB136
            queue: float = engine.prefill
            n: float = engine.outstanding
            outputs = engine.outputs
            if line.count:
                if due >= line.last:
                    queue += line.prefill
                    n += line.count
                    outputs += line.outputs
                elif due > line.begin:  # as `Line.ahead` guesses
                    ahead = (due - line.begin) / (line.last - line.begin)
                    queue += ahead * line.prefill
                    n += ahead * line.count
                    outputs += ahead * line.outputs
            running = n if n < slots else slots  # noqa: FURB136  # min() costs thrice
            step = base + each * (running + 1)
            work = queue + uncached
            cost = step * (work // budget + 1 + output)
            cost += prefill * (work + inflicted * running * (uncached - least))
            if n:
                over = n + samples - slots
                if over > 0:  # places come free at the rate at which those that are there end
                    cost += over * step * outputs / (n * slots)
                if limit is not None:
                    missing = engine.kv + uncached + output - limit
                    if missing > 0:  # and so does their memory
                        cost += missing * step * outputs / (n * limit)
            if index == served:
                cost *= self.affinity
            if homes and index in homes:
                cost *= self.home
            costs.append(cost)
        return costs


@final
class RoundRobin:
    """One engine after the other.

    Args:
        order: Who goes first.
    """

    def __init__(self, *, order: CallOrder = "arrival") -> None:
        self.order: CallOrder = _checked(order)
        self._last = -1

    def choose(self, call: Ticket, engines: Sequence[EngineBook], /) -> EngineBook:  # noqa: ARG002
        """The next by number."""
        following = [engine for engine in engines if engine.index > self._last]
        chosen = min(following or engines, key=_index)
        self._last = chosen.index
        return chosen


@final
class LeastLoaded:
    """The engine with the fewest generations, given or waiting; blind to prefixes.

    Args:
        order: Who goes first.
    """

    def __init__(self, *, order: CallOrder = "arrival") -> None:
        self.order: CallOrder = _checked(order)

    def choose(self, call: Ticket, engines: Sequence[EngineBook], /) -> EngineBook:  # noqa: ARG002
        """The least loaded; of equals the first."""
        return min(engines, key=_load)

    def score(self, call: Ticket, engine: EngineBook, /) -> float:  # noqa: ARG002
        """Its load, in generations."""
        return engine.load


@final
class PrefixThreshold:
    """The cache-aware rule of common gateways: the best match, if it is good and loads are even.

    Where loads differ by more than *most* and by more than a factor *ratio*, the least loaded
    engine. Else the engine that holds most of the prompt, if that is more than *match* of it; else
    the least loaded. The declared prefix is left out of the match.

    Args:
        match: Part of the prompt, 0 to 1.
        most: Difference of loads, in generations.
        ratio: Of the highest load to the lowest.
        order: Who goes first.
    """

    def __init__(
        self, *, match: float = 0.5, most: int = 32, ratio: float = 1.1,
        order: CallOrder = "arrival",
    ) -> None:  # fmt: skip
        if not 0 <= match <= 1:
            msg = f"match must be a part of the prompt, 0 to 1, not {match!r}"
            raise ValueError(msg)
        if most < 0 or ratio < 1:
            msg = f"most must be at least 0 and ratio at least 1, not {most!r} and {ratio!r}"
            raise ValueError(msg)
        self.match = match
        self.most = most
        self.ratio = ratio
        self.order: CallOrder = _checked(order)

    def choose(self, call: Ticket, engines: Sequence[EngineBook], /) -> EngineBook:
        """As the class says."""
        least = min(engines, key=_load)
        highest = max(engine.load for engine in engines)
        if highest - least.load > self.most and highest > self.ratio * least.load:
            return least
        own = call.prompt_tokens - call.work.prefix_tokens
        best = min(engines, key=lambda engine: (-call.own_hit_on(engine), engine.load))
        return best if own > 0 and call.own_hit_on(best) > self.match * own else least

    def score(self, call: Ticket, engine: EngineBook, /) -> float:
        """What the engine lacks of the prompt behind the prefix, in tokens."""
        return call.prompt_tokens - call.work.prefix_tokens - call.own_hit_on(engine)


def _checked(order: CallOrder) -> CallOrder:
    if order not in ("request", "arrival"):
        msg = f'order must be "request" or "arrival", not {order!r}'
        raise ValueError(msg)
    return order


def _index(engine: EngineBook) -> int:
    return engine.index


def _load(engine: EngineBook) -> int:
    return engine.load


def _best_hit(hits: Sequence[int], engines: Sequence[EngineBook]) -> int:
    """The most tokens that one of *engines* holds."""
    if len(hits) == len(engines):  # all that there are
        return max(hits)
    return max((hits[e.index] for e in engines if e.index < len(hits)), default=0)
