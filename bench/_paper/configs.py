"""What is compared: the configurations, their engines' policies, and the studies they run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from alto.protocols import ReplicaLoad, RoutedItem
from alto.routing import LeastWork, Router
from alto.sched import EngineLoad, LeastLoaded, Policy, PromptAware, RoundRobin, Ticket

SHARES = {"answer": 2, "extract": 2, "queries": 3}
"""LM engines per prompt where they are partitioned (Table 1)."""
ENGINES = sum(SHARES.values())

Pieces = Literal["answer", "sentence", "adaptive"]


class HashedPartition:
    """The paper's rule: each prompt has engines of its own, and ``hash(request) % n`` is taken.

    Calls of the first stage do not tell their request; requests are numbered as they come, so
    taking turns is the same.

    Args:
        order: ``"arrival"``: first come, first served; ``"request"``: alto's order.
    """

    def __init__(self, *, order: Literal["arrival", "request"] = "arrival") -> None:
        self.order = order
        self._turn = 0

    def choose(self, call: Ticket, engines: Sequence[EngineLoad], /) -> EngineLoad:
        """As the class says."""
        template = call.info.template
        name = template[0].rsplit(".", 1)[-1]  # type: ignore[index]  # as a pool makes them
        begin = 0
        for stage, share in SHARES.items():
            if stage == name:
                break
            begin += share
        parent = call.info.parent
        request = self._turn if parent is None else parent[0]  # type: ignore[index]  # the same
        self._turn += parent is None
        index = begin + hash(request) % SHARES[name]
        return next(engine for engine in engines if engine.index == index)


class RequestHash:
    """The paper's router: ``hash(request) % replicas`` (section 2).

    All calls of a request go to one replica of each stage, whatever its load, and most of them move
    when a replica comes or goes.
    """

    def choose(self, item: RoutedItem, replicas: Sequence[ReplicaLoad], /) -> int:
        """Return the index that the request's number hashes to."""
        return _mixed(item.request) % len(replicas)


def _mixed(value: int) -> int:
    # The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on all others.
    value &= 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One way of running the pipeline."""

    name: str
    about: str
    streaming: bool
    """Whether claims, queries and the words of queries leave while they are decoded."""
    pieces: Pieces = "answer"
    """What claims are extracted from: the whole answer, each sentence, or as many sentences as
    the load of the engines suggests."""
    barrier: bool = False
    """Whether all of a request waits for all of it after every stage."""
    policy: Callable[[], Policy]
    router: Callable[[], Router]
    slots: int | None = None
    """Generations that an engine runs at once; None: as many as its profile says."""


STATIC = Config(
    name="static",
    about="(a) the paper's baseline: no streaming, engines partitioned 2/2/3, hash(request)",
    streaming=False, policy=HashedPartition, router=RequestHash,
)  # fmt: skip
PAPER = replace(
    STATIC, name="paper_alto", about="(b) the paper's ALTO: the same with streaming", streaming=True
)
POOLED = Config(
    name="pooled",
    about="(c) no streaming, engines pooled, least work, work-conserving",
    streaming=False, policy=LeastLoaded, router=LeastWork,
)  # fmt: skip
BARRIER = replace(
    POOLED, name="barrier", about="(d) LangGraph-like: (c) with a barrier after every stage",
    barrier=True,
)  # fmt: skip
ALTO = Config(
    name="alto",
    about="(e) alto: streaming, PromptAware, LeastWork, pieces that coarsen under load",
    streaming=True, pieces="adaptive", policy=PromptAware, router=LeastWork,
)  # fmt: skip
SLOTS = replace(
    STATIC, name="static_4_slots", about="(a) with 4 slots per engine: how the paper's may collapse",
    slots=4,
)  # fmt: skip

MAIN = (STATIC, PAPER, POOLED, BARRIER, ALTO)

ABLATIONS = (
    replace(
        ALTO, name="no_streaming", about="alto without streaming", streaming=False, pieces="answer"
    ),
    replace(
        ALTO, name="no_pooling", about="alto on the paper's partition of engines and its hash",
        policy=lambda: HashedPartition(order="request"), router=RequestHash,
    ),
    replace(
        ALTO, name="blind_placement", about="alto with RoundRobin for PromptAware",
        policy=lambda: RoundRobin(order="request"),
    ),
    replace(
        ALTO, name="arrival_order", about="alto, first come first served",
        policy=lambda: PromptAware(order="arrival"),
    ),
    replace(ALTO, name="whole_answer", about="alto, claims of whole answers", pieces="answer"),
    replace(ALTO, name="each_sentence", about="alto, claims of each sentence", pieces="sentence"),
)  # fmt: skip

CONFIGS = {config.name: config for config in (*MAIN, SLOTS, *ABLATIONS)}


@dataclass(frozen=True)
class Study:
    """Settings that are equal for all configurations."""

    name: str
    cached: bool
    """Whether engines have a prefix cache."""
    run_on: bool
    """Whether generations of claims run on, see ``workload.py``."""


STUDIES = {
    study.name: study
    for study in (
        Study("no_prefix_cache", cached=False, run_on=False),
        Study("prefix_cache", cached=True, run_on=False),
        Study("run_on", cached=False, run_on=True),
    )
}
