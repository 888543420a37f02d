"""Policies: rules that choose the engine of a call, each a small class with one method.

A policy gets the call and the engines, and returns one of them, with or without room; the call then
waits for it. It reads their state and changes nothing but its own. Besides ``choose`` a policy may
have:

* ``rebinds``: True to be asked again when the call's turn comes, and when an engine would be idle;
* ``order``: ``"request"``, the order of :mod:`alto._sched.queue`, or ``"arrival"``, first come, first
  served;
* ``score(call, engine)``, or ``scores(call, engines)`` where they depend on each other: the numbers
  by which it chose, lower is better, for records.

Sources of the rules: ``docs/explanation/scheduling.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, TypeAlias, final, runtime_checkable

from alto._sched.state import EngineLoad, Ticket

__all__ = (
    "CallOrder",
    "LeastLoaded",
    "Policy",
    "PrefixThreshold",
    "PromptAware",
    "RoundRobin",
)

CallOrder: TypeAlias = Literal["request", "arrival"]
"""Order in which waiting calls start: by the age of their request, or first come, first served."""


@runtime_checkable
class Policy(Protocol):
    """Chooses an engine for a call."""

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """Return the engine where *call* should run, now or when there is room.

        Args:
            call: The call to place; ``call.hit_on(engine)`` is the number of tokens that an engine
                has cached.
            engines: Those that may be chosen, at least one: all that are not silent, and at the turn
                of a call only those that have room or hold more of it than the one that it waited for.

        Returns:
            One of *engines*. Anything else, such as None, is a fault: it is reported once, and the
            call is placed by `LeastLoaded`.
        """
        ...


@final
class PromptAware:
    """A policy that takes the engine where a call ends first, counting the delay it gives to others.

    For each engine, in seconds::

        p (Q + u) + ceil((Q + u) / budget) s + o s + slots + memory + w n p (u - least)

    where ``u`` is what the engine must compute of the prompt, ``least`` what the best must, ``Q``
    what it has to compute before that, ``p`` seconds per prompt token, ``s`` seconds per step, ``o``
    the expected output, ``slots`` and ``memory`` the wait for a slot in the batch and for KV memory,
    and ``n`` the generations that the prefill would hold up: the last term is the delay to others
    that could be avoided. The declared prefix counts as held by all; otherwise the calls of a
    template would crowd on the engine that ran one of them (P99 on *pipeline* was 16 % worse). The
    engine that last served the same document or parent costs 3 % less, the engines that the call's
    template prefers 1 % less: enough to decide between equals. Larger factors made P99 worse
    (``bench.scheduling``).

    Args:
        inflicted: ``w``, how much a second of delay to another generation counts.
        affinity: Factor for the engine that last served the same document or parent.
        preferred: Factor for the engines that the template prefers.
        order: Order in which waiting calls start.

    Raises:
        ValueError: A factor is out of range.
    """

    rebinds: ClassVar[bool] = True

    def __init__(
        self,
        *,
        inflicted: float = 1.0,
        affinity: float = 0.97,
        preferred: float = 0.99,
        order: CallOrder = "request",
    ) -> None:
        if inflicted < 0 or not 0 < affinity <= 1 or not 0 < preferred <= 1:
            msg = (
                f"inflicted must be at least 0, affinity and preferred above 0 and at most 1, not "
                f"{inflicted!r}, {affinity!r} and {preferred!r}"
            )
            raise ValueError(msg)
        self.inflicted = inflicted
        self.affinity = affinity
        self.preferred = preferred
        self.order: CallOrder = _checked(order)

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """Return the engine of least cost; among equals the least loaded."""
        costs = self.scores(call, engines)
        lowest = min(costs)
        if costs.count(lowest) == 1:
            return engines[costs.index(lowest)]
        equal = [e for e, cost in zip(engines, costs, strict=True) if cost == lowest]
        return min(equal, key=_load)

    def scores(self, call: Ticket, engines: Sequence[EngineLoad], /) -> list[float]:
        """Return the cost of each engine, in weighted seconds: the formula of the class."""
        # This runs for every call and engine: hence one loop, local names and no min() or max().
        hits, length, output = call.hits, call.prompt_tokens, call.expected_output
        known, samples, served, preferred = (
            len(hits),
            call.info.n,
            call.served,
            call.template.preferred,
        )
        inflicted, due, costs = self.inflicted, call.key[0], []
        speed, capacity = engines[0].speed, None  # all engines of a pool share one speed
        base, each, prefill = speed.base, speed.per_sequence, speed.prefill
        slots = budget = 1
        limit: int | None = None
        # Every engine counts as holding the template's prefix, as each will after its first call.
        head = call.info.prefix_tokens
        least = length - max(_best_hit(hits, engines), head)
        for engine in engines:
            if engine.capacity is not capacity:
                capacity = engine.capacity
                slots, limit = capacity.max_num_seqs, capacity.kv_tokens
                budget = capacity.max_num_batched_tokens
            index, waiting = engine.index, engine.queue
            hit = hits[index] if index < known else 0
            uncached = length - (hit if hit > head else head)  # noqa: FURB136
            ahead_tokens: float = engine.prefill
            n: float = engine.outstanding
            outputs = engine.outputs
            if waiting.count:
                if due >= waiting.latest:
                    ahead_tokens += waiting.prefill
                    n += waiting.count
                    outputs += waiting.outputs
                elif due > waiting.earliest:
                    # The part of the queue that goes first, if its keys are spread evenly.
                    part = (due - waiting.earliest) / (waiting.latest - waiting.earliest)
                    ahead_tokens += part * waiting.prefill
                    n += part * waiting.count
                    outputs += part * waiting.outputs
            running = n if n < slots else slots  # noqa: FURB136  # min() takes three times as long
            step = base + each * (running + 1)
            to_compute = ahead_tokens + uncached
            cost = step * (to_compute // budget + 1 + output)
            cost += prefill * (to_compute + inflicted * running * (uncached - least))
            if n:
                over = n + samples - slots
                if over > 0:  # slots become free at the rate at which running generations end
                    cost += over * step * outputs / (n * slots)
                if limit is not None:
                    missing = engine.kv + uncached + output - limit
                    if missing > 0:  # and so does memory
                        cost += missing * step * outputs / (n * limit)
            if index == served:
                cost *= self.affinity
            if preferred and index in preferred:
                cost *= self.preferred
            costs.append(cost)
        return costs


@final
class RoundRobin:
    """A policy that takes one engine after the other.

    Args:
        order: Order in which waiting calls start.
    """

    def __init__(self, *, order: CallOrder = "arrival") -> None:
        self.order: CallOrder = _checked(order)
        self._last = -1

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:  # noqa: ARG002
        """Return the next engine by number, or the first again."""
        following = [engine for engine in engines if engine.index > self._last]
        chosen = min(following or engines, key=_index)
        self._last = chosen.index
        return chosen


@final
class LeastLoaded:
    """A policy that takes the engine with the fewest generations, given or waiting.

    It does not look at prefixes.

    Args:
        order: Order in which waiting calls start.
    """

    def __init__(self, *, order: CallOrder = "arrival") -> None:
        self.order: CallOrder = _checked(order)

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:  # noqa: ARG002
        """Return the least loaded engine; among equals the first."""
        return min(engines, key=_load)

    def score(self, call: Ticket, engine: EngineLoad, /) -> float:  # noqa: ARG002
        """Return the load of an engine, in generations."""
        return engine.load


@final
class PrefixThreshold:
    """The cache-aware rule of common gateways: the best match, if it is good and loads are even.

    If loads differ by more than *most* and by more than a factor *ratio*, it takes the least loaded
    engine; otherwise the engine that holds most of the prompt, if that is more than *match* of it;
    otherwise the least loaded. The declared prefix is left out of the match.

    Args:
        match: Part of the prompt, 0 to 1.
        most: Difference of loads, in generations.
        ratio: Ratio of the highest load to the lowest.
        order: Order in which waiting calls start.
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

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """Return the engine with the best match, or the least loaded one."""
        least = min(engines, key=_load)
        highest = max(engine.load for engine in engines)
        if highest - least.load > self.most and highest > self.ratio * least.load:
            return least
        own = call.prompt_tokens - call.info.prefix_tokens
        best = min(engines, key=lambda engine: (-call.own_hit_on(engine), engine.load))
        return best if own > 0 and call.own_hit_on(best) > self.match * own else least

    def score(self, call: Ticket, engine: EngineLoad, /) -> float:
        """Return how much of the prompt behind the prefix the engine lacks, in tokens."""
        return call.prompt_tokens - call.info.prefix_tokens - call.own_hit_on(engine)


def _checked(order: CallOrder) -> CallOrder:
    if order not in ("request", "arrival"):
        msg = f'order must be "request" or "arrival", not {order!r}'
        raise ValueError(msg)
    return order


def _index(engine: EngineLoad) -> int:
    return engine.index


def _load(engine: EngineLoad) -> int:
    return engine.load


def _best_hit(hits: Sequence[int], engines: Sequence[EngineLoad]) -> int:
    """Return the most tokens of the prompt that one of *engines* holds."""
    if len(hits) == len(engines):  # every engine may be chosen
        return max(hits)
    return max((hits[e.index] for e in engines if e.index < len(hits)), default=0)
