"""Routers: rules that choose the replica of a stage for an item or a group.

A stage with several replicas has one, ``@stage(replicas=4, router=alto.routing.PowerOfTwo())``.
Items of a stage that gathers nothing are routed one by one, at the moment when a replica could
start one. A stage with a ``Group`` parameter is stateful: each of its groups is bound to one replica
when its first piece comes, and stays there until it closes; a router is asked once per group.

A router of your own is a class with one method, :meth:`Router.choose`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from alto._validate import is_whole
from alto.protocols import ReplicaLoad as ReplicaLoad
from alto.protocols import RoutedItem as RoutedItem
from alto.protocols import Router as Router

__all__ = (
    "LeastWork",
    "PowerOfTwo",
    "RendezvousHash",
    "ReplicaLoad",
    "RoundRobinRouter",
    "RoutedItem",
    "Router",
    "expected_work",
)


def expected_work(load: ReplicaLoad, /, *, seconds: float = 1.0) -> float:
    """Return the seconds until *load* would be done with the calls it has and one more.

    ``(unfinished + 1) * seconds / slots``: the calls that have not ended, at the speed at which it
    ended the last ones, as many at once as it can run.

    Args:
        load: A replica.
        seconds: Time to assume for a call if the replica has not ended any.
    """
    each = seconds if load.seconds is None else load.seconds
    return (load.unfinished + 1) * each / load.slots


class LeastWork:
    """A router that takes the replica that would be done first; the default.

    Replicas that could start a call now go before all others. Among those it takes the one with the
    least :func:`expected_work`; among equals the one that was given least so far. A replica that has
    ended nothing yet counts as being as fast as the others on average.
    """

    def __repr__(self) -> str:
        return "LeastWork()"

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:  # noqa: ARG002
        """Return the index of the replica that would be done first."""
        mean = _mean_seconds(replicas)
        best, best_key = 0, (True, float("inf"), 0)
        for index, load in enumerate(replicas):
            key = (load.free <= 0, expected_work(load, seconds=mean), load.placed)
            if key < best_key:
                best, best_key = index, key
        return best


class RoundRobinRouter:
    """A router that takes one replica after the other, whatever their load."""

    def __init__(self) -> None:
        self._last = -1

    def __repr__(self) -> str:
        return "RoundRobinRouter()"

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:  # noqa: ARG002
        """Return the index of the next replica by number after the last one, or the first again."""
        # By number, since indices shift when replicas are added or removed.
        index = next((k for k, r in enumerate(replicas) if r.number > self._last), 0)
        self._last = replicas[index].number
        return index


class PowerOfTwo:
    """A router that takes the better one of two replicas picked at random.

    This is nearly as even as comparing all, and items do not crowd on one replica
    (Mitzenmacher, "The power of two choices in randomized load balancing", 1996).

    Args:
        seed: Seed of the random choices; the same seed makes the same choices.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311  # not for secrets

    def __repr__(self) -> str:
        return f"PowerOfTwo(seed={self._seed})"

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:  # noqa: ARG002
        """Return the index of the better one of two replicas picked at random."""
        if len(replicas) == 1:
            return 0
        one = self._random.randrange(len(replicas))
        two = self._random.randrange(len(replicas) - 1)
        two += two >= one  # skips the first one, so that the two differ
        mean = _mean_seconds(replicas)
        first = expected_work(replicas[one], seconds=mean)
        return one if first <= expected_work(replicas[two], seconds=mean) else two


class RendezvousHash:
    """A router that hashes ancestry: the same call goes to the same replica.

    Every replica gives every call a pseudo-random weight; the heaviest wins. When a replica is
    removed, only its own calls move; when one is added, only those that move to it (Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998). It does not look at load,
    so a replica may have a queue while another is idle.

    Args:
        levels: How many indices of the path count. 0: all calls of a request go together; 1: all
            below the same outermost item; None: all indices, so siblings spread.

    Raises:
        ValueError: *levels* is neither None nor a whole number >= 0.
    """

    def __init__(self, *, levels: int | None = None) -> None:
        if levels is not None and not is_whole(levels, 0):
            msg = f"RendezvousHash(levels=...) must be None or a whole number >= 0, not {levels!r}"
            raise ValueError(msg)
        self._levels = levels

    def __repr__(self) -> str:
        return f"RendezvousHash(levels={self._levels})"

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """Return the index of the replica with the heaviest weight for the item's ancestry."""
        key = (item.request, *item.path[: self._levels])
        best, heaviest = 0, -1
        for index, load in enumerate(replicas):
            # The hash of a tuple of whole numbers is the same in every process.
            weight = _mixed(hash((load.number, key)))
            if weight > heaviest:
                best, heaviest = index, weight
        return best


def _mean_seconds(replicas: Sequence[ReplicaLoad]) -> float:
    # The time to assume for a call of a replica that has not ended any.
    known = [load.seconds for load in replicas if load.seconds is not None]
    return sum(known) / len(known) if known else 1.0


def _mixed(value: int) -> int:
    # The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on all others.
    value &= 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def __getattr__(name: str) -> object:
    # An ImportError, since the text of an AttributeError is lost in `from alto.routing import ...`.
    if name == "RequestHash":
        msg = (
            "alto.routing.RequestHash is not part of alto any more: RendezvousHash(levels=0) also "
            "keeps a request on one replica; the rule itself is in bench/_paper/configs.py"
        )
        raise ImportError(msg)
    if name == "RoundRobin":
        msg = (
            "alto.routing.RoundRobin is called RoundRobinRouter now: alto.sched.RoundRobin is a "
            "policy of a pool"
        )
        raise ImportError(msg)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
