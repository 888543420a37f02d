"""Seeded workloads: requests as small graphs of calls.

Lengths and fan-outs follow the study that the goals come from: a request has 4 to 12 calls that a
join waits for. Everything is drawn from the seed, and equal for all policies.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from alto._sched.prefix import chain

VOCABULARY = 32_000


@dataclass(kw_only=True, slots=True)
class Call:
    """One generation of a request."""

    template: str
    tokens: array[int]
    """The prompt."""
    prefix: int
    """Length of the template's head, in tokens."""
    output: int
    """Tokens that it generates."""
    after: tuple[tuple[int, int | None], ...] = ()
    """It starts when each of these calls has said so many tokens; None: has ended."""
    group: int = 0
    """Calls of a request with the same number are siblings."""
    depth: int = 0
    names: tuple[int, ...] = ()
    """The names of its blocks, for the engine."""


@dataclass(kw_only=True, slots=True)
class Request:
    """What a user waits for: all of its calls."""

    arrived: float
    calls: list[Call]


@dataclass(kw_only=True)
class Load:
    """How the requests of a workload are made, but for their rate."""

    name: str
    make: Callable[[random.Random, float], list[Call]]
    """Calls of one request, given the luck and the time, which matters where shares rotate."""
    bursty: bool = False
    extra: dict[str, object] = field(default_factory=dict)


def requests(load: Load, *, rate: float, count: int, seed: int, block_size: int) -> list[Request]:
    """The first *count* requests of a load at *rate* requests a second."""
    luck = random.Random(f"{load.name} {seed}")
    result = []
    for arrived in _arrivals(luck, rate, count, bursty=load.bursty):
        calls = load.make(luck, arrived)
        for call in calls:
            call.names = chain(call.tokens, block_size)
        result.append(Request(arrived=arrived, calls=calls))
    return result


BURST_SECONDS, PAUSE_SECONDS = 4.0, 8.0


def _arrivals(luck: random.Random, rate: float, count: int, *, bursty: bool) -> Iterator[float]:
    """Poisson arrivals; where bursty, only in bursts, with the same mean."""
    cycle = BURST_SECONDS + PAUSE_SECONDS
    if bursty:
        rate *= cycle / BURST_SECONDS
    busy = 0.0
    for _ in range(count):
        busy += luck.expovariate(rate)
        yield busy if not bursty else busy // BURST_SECONDS * cycle + busy % BURST_SECONDS


def _tokens(luck: random.Random, count: int) -> array[int]:
    return array("I", (luck.getrandbits(15) for _ in range(count)))


def _fixed(name: str, count: int) -> array[int]:
    return _tokens(random.Random(f"fixed {name}"), count)


def _length(luck: random.Random, mean: float, sigma: float, low: int, high: int) -> int:
    """Log-normal with that mean, cut."""
    value = luck.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
    return max(low, min(high, round(value)))


def _siblings(luck: random.Random) -> range:
    return range(luck.randint(4, 12))


def _output(luck: random.Random) -> int:
    return _length(luck, 100, 0.5, 8, 400)


def uniform(luck: random.Random, _now: float) -> list[Call]:
    """Nothing is shared but a short head."""
    return [
        Call(
            template="uniform", prefix=0, output=_output(luck),
            tokens=_tokens(luck, _length(luck, 500, 0.6, 60, 3000)),
        )
        for _ in _siblings(luck)
    ]  # fmt: skip


_HEADS = {name: _fixed(name, size) for name, size in (("a", 600), ("b", 1200), ("c", 1800))}
_SHARES = (0.7, 0.2, 0.1)
_ROTATION_SECONDS = 15.0


def templates(luck: random.Random, now: float) -> list[Call]:
    """Three heads; their shares are skewed, and rotate."""
    turn = int(now / _ROTATION_SECONDS)
    names = list(_HEADS)
    draw = luck.random()
    place = 0 if draw < _SHARES[0] else 1 if draw < _SHARES[0] + _SHARES[1] else 2
    name = names[(place + turn) % 3]
    head = _HEADS[name]
    return [
        Call(
            template=name, prefix=len(head), output=_output(luck),
            tokens=head + _tokens(luck, _length(luck, 200, 0.5, 20, 800)),
        )
        for _ in _siblings(luck)
    ]  # fmt: skip


_DOCUMENT = 2000
_CATALOGUE = [_fixed(f"document {k}", _DOCUMENT) for k in range(300)]
_ZIPF = list(accumulate(1 / (k + 1) for k in range(len(_CATALOGUE))))
_HEAD = _fixed("head", 120)


def _about(luck: random.Random, document: Sequence[int], template: str = "ask") -> list[Call]:
    shared = _HEAD + array("I", document)
    return [
        Call(
            template=template, prefix=len(_HEAD), output=_output(luck),
            tokens=shared + _tokens(luck, luck.randint(30, 120)),
        )
        for _ in _siblings(luck)
    ]  # fmt: skip


def documents(luck: random.Random, _now: float) -> list[Call]:
    """Siblings share a document of 2,000 tokens out of 300, whose popularity is Zipf's."""
    return _about(luck, luck.choices(_CATALOGUE, cum_weights=_ZIPF)[0])


def freshdocs(luck: random.Random, _now: float) -> list[Call]:
    """Siblings share a document that nobody has seen before."""
    return _about(luck, _tokens(luck, _DOCUMENT))


def conflict(luck: random.Random, now: float) -> list[Call]:
    """Most of the load is about one document, more than several engines can carry."""
    return _about(luck, _CATALOGUE[0]) if luck.random() < 0.6 else documents(luck, now)


def longtail(luck: random.Random, _now: float) -> list[Call]:
    """Outputs differ by two orders of magnitude."""
    shared = _tokens(luck, 300)
    return [
        Call(
            template="longtail", prefix=0, output=_length(luck, 150, 1.3, 4, 3000),
            tokens=shared + _tokens(luck, _length(luck, 200, 0.6, 20, 1000)),
        )
        for _ in _siblings(luck)
    ]  # fmt: skip


_ANSWER, _CLAIM, _JUDGE = _fixed("answer", 60), _fixed("claim", 400), _fixed("judge", 500)


def pipeline(luck: random.Random, _now: float) -> list[Call]:
    """An answer, a call per piece of it as it is written, a join, and a judge."""
    output = _length(luck, 220, 0.5, 60, 600)
    answer = Call(
        template="answer", prefix=len(_ANSWER), output=output, group=0,
        tokens=_ANSWER + _tokens(luck, luck.randint(10, 60)),
    )  # fmt: skip
    pieces = max(2, min(10, output // 35))
    calls = [answer]
    for k in range(pieces):
        at = output * (k + 1) // pieces
        calls.append(
            Call(
                template="claim", prefix=len(_CLAIM), output=_length(luck, 40, 0.5, 5, 150),
                tokens=_CLAIM + _tokens(luck, luck.randint(20, 60)), group=1, depth=1,
                after=((0, None if at == output else at),),
            )
        )  # fmt: skip
    calls.append(
        Call(
            template="judge", prefix=len(_JUDGE), output=_length(luck, 60, 0.5, 10, 200),
            tokens=_JUDGE + _tokens(luck, 120 * pieces), group=2, depth=2,
            after=tuple((k, None) for k in range(1, pieces + 1)),
        )
    )  # fmt: skip
    return calls


def mixed(luck: random.Random, now: float) -> list[Call]:
    """A little of everything."""
    kinds = (uniform, templates, documents, freshdocs, longtail, pipeline)
    return luck.choice(kinds)(luck, now)


LOADS = {
    load.name: load
    for load in (
        Load(name="uniform", make=uniform),
        Load(name="templates", make=templates),
        Load(name="documents", make=documents),
        Load(name="freshdocs", make=freshdocs),
        Load(name="conflict", make=conflict),
        Load(name="bursty", make=documents, bursty=True),
        Load(name="longtail", make=longtail),
        Load(name="pipeline", make=pipeline),
        Load(name="mixed", make=mixed),
    )
}
"""By name."""
