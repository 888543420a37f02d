"""Which engine of a pool runs a call, and when: the scheduler, its policies, and its records.

A :class:`Scheduler` is synchronous and has no clock: tell it what happened and when, and ask it what
may start. A pool of engines (:class:`alto.engines.Pool`, :class:`alto.VLLM`) does that. What chooses
an engine is a :class:`Policy`; `PromptAware` is the default. Every choice can be recorded with what
it was made on, kept in a file, and asked again of another policy::

    decisions = []
    pool = Pool(engines, recorder=decisions.append)
    ...
    for replayed in replay(decisions, LeastLoaded()):
        print(replayed.decision.chosen, replayed.chosen)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeAlias, final

import attrs

from alto._sched.estimate import Speed, Template
from alto._sched.policies import CallOrder as CallOrder
from alto._sched.policies import LeastLoaded as LeastLoaded
from alto._sched.policies import Policy as Policy
from alto._sched.policies import PrefixThreshold as PrefixThreshold
from alto._sched.policies import PromptAware as PromptAware
from alto._sched.policies import RoundRobin as RoundRobin
from alto._sched.queue import Line
from alto._sched.scheduler import Admission
from alto._sched.state import EngineBook as EngineBook
from alto._sched.state import Ticket as Ticket
from alto._sched.state import Work as Work
from alto.model import EngineCapacity
from alto.protocols import CacheListener

__all__ = (
    "CallOrder",
    "Decision",
    "EngineBook",
    "LeastLoaded",
    "Policy",
    "PrefixThreshold",
    "PromptAware",
    "Recorder",
    "Replayed",
    "RoundRobin",
    "Scheduler",
    "Ticket",
    "Work",
    "dump_decisions",
    "load_decisions",
    "replay",
)


@attrs.frozen(kw_only=True)
class Decision:
    """One choice of a policy, and all that it was made on."""

    time: float
    """When, in seconds of the scheduler's clock."""
    call: int
    """The call's number."""
    branch: str
    """Why the policy was asked: the call was ``submitted``, its ``turn`` came, another engine was
    ``idle``, its engine went (``moved``, ``again``); or ``fallback``: the policy failed."""
    chosen: str
    """Name of the engine."""
    scores: Mapping[str, float]
    """By engine, lower is better; empty where the policy gives none."""
    facts: Mapping[str, Any]
    """The call: template, tokens, expected output, what each engine holds of it."""
    engines: Sequence[Mapping[str, Any]]
    """The engines: their limits and counters, in the order in which the policy saw them."""


Recorder: TypeAlias = Callable[[Decision], object]
"""Gets every decision, in the step that makes it; ``list.append`` will do."""


@attrs.frozen(kw_only=True)
class Replayed:
    """What another policy says to a recorded decision."""

    decision: Decision
    chosen: str | None
    """Name of the engine that it would have chosen; None: it gave none."""
    scores: Mapping[str, float]
    """By engine; empty where the policy gives none."""

    @property
    def agrees(self) -> bool:
        """Whether it chose the same engine."""
        return self.chosen == self.decision.chosen


@final
class Scheduler(Admission):
    """The books of a pool: calls that wait, engines, and who goes where.

    Every method is a step: it takes no time and calls nobody but the policy, *recorder* and
    *on_fault*. Times are in seconds of any clock that does not go back.

    Args:
        policy: Chooses engines; None: a new `PromptAware`. One policy serves one scheduler.
        on_fault: Told once when the policy raises, or names an engine that is not there; the call
            is then placed by `LeastLoaded`. None: nobody is told.
        recorder: Gets every decision.
        stall: Seconds after which an engine that has work and says nothing gets no more.

    Raises:
        TypeError: *policy* is no policy.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        on_fault: Callable[[BaseException], None] | None = None,
        recorder: Recorder | None = None,
        stall: float = 5.0,
    ) -> None:
        chosen = PromptAware() if policy is None else policy
        if isinstance(chosen, type) or not isinstance(chosen, Policy):
            msg = (
                f"policy must be an object with choose(call, engines), such as LeastLoaded(), "
                f"not {chosen!r}"
            )
            raise TypeError(msg)
        if not stall > 0:
            msg = f"stall must be above 0 seconds, not {stall!r}"
            raise ValueError(msg)
        watcher = None if recorder is None else _Recording(chosen, recorder)
        super().__init__(chosen, on_fault=on_fault, watcher=watcher, stall=stall)

    def __repr__(self) -> str:
        """Its policy, and how many wait."""
        return (
            f"<Scheduler {type(self.policy).__name__}, {len(self.engines)} engines, "
            f"{self.waiting} waiting>"
        )

    def listener(self, book: EngineBook, /) -> CacheListener:
        """What to give to :meth:`alto.Member.listen`, so that cached prefixes are known exactly."""
        return _Listener(self, book)


@final
@attrs.frozen
class _Listener:
    """Hands the events of one engine to its scheduler."""

    scheduler: Scheduler
    book: EngineBook

    def stored(
        self, parent: int | None, token_ids: Sequence[int], keys: Sequence[int], salt: int = 0, /
    ) -> None:
        self.scheduler.ledger.stored(self.book, parent, token_ids, keys, salt)

    def removed(self, keys: Sequence[int], /) -> None:
        self.scheduler.ledger.removed(self.book, keys)

    def cleared(self) -> None:
        self.scheduler.ledger.cleared(self.book)


@final
@attrs.frozen
class _Recording:
    """Makes decisions of what a scheduler watches."""

    policy: Policy
    recorder: Recorder

    def __call__(
        self, now: float, ticket: Ticket, engines: Sequence[EngineBook],
        chosen: EngineBook | None, branch: str, /,
    ) -> None:  # fmt: skip
        self.recorder(
            Decision(
                time=now,
                call=ticket.number,
                branch=branch,
                chosen="" if chosen is None else chosen.name,
                scores=_scores(self.policy, ticket, engines),
                facts=_call_facts(ticket),
                engines=tuple(map(_engine_facts, engines)),
            )
        )


def replay(decisions: Iterable[Decision], policy: Policy, /) -> Iterator[Replayed]:
    """Ask another policy about recorded decisions, one after the other.

    Each is asked with the books as they were, not as they would have become under *policy*. A
    policy that keeps something of its own, such as `RoundRobin`, keeps it from one to the next.
    """
    for decision in decisions:
        speed = Speed(**decision.engines[0]["speed"]) if decision.engines else Speed()
        engines = [_engine_of(facts, speed) for facts in decision.engines]
        ticket = _ticket_of(decision)
        chosen: EngineBook | None = policy.choose(ticket, engines)  # None: a fault of a user's
        yield Replayed(
            decision=decision,
            chosen=None if chosen is None else chosen.name,
            scores=_scores(policy, ticket, engines),
        )


def dump_decisions(decisions: Iterable[Decision], file: IO[str], /) -> None:
    """Write decisions to a text file, one line of JSON each."""
    for decision in decisions:
        file.write(json.dumps(attrs.asdict(decision), default=str) + "\n")


def load_decisions(file: IO[str], /) -> Iterator[Decision]:
    """Read what :func:`dump_decisions` has written.

    Raises:
        ValueError: A line is no decision; it says which line.
    """
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield Decision(**json.loads(line))
        except (ValueError, TypeError) as error:
            msg = f"line {number} is no decision, as dump_decisions() writes them: {error}"
            raise ValueError(msg) from error


def _scores(policy: Policy, ticket: Ticket, engines: Sequence[EngineBook]) -> Mapping[str, float]:
    scores, score = getattr(policy, "scores", None), getattr(policy, "score", None)
    try:
        if scores is not None:
            numbers = list(scores(ticket, engines))
        elif score is not None:
            numbers = [score(ticket, engine) for engine in engines]
        else:
            return {}
        return {e.name: float(number) for e, number in zip(engines, numbers, strict=True)}
    except Exception:  # noqa: BLE001  # a user's; what it chose is recorded all the same
        return {}


def _call_facts(ticket: Ticket) -> Mapping[str, Any]:
    work = ticket.work
    key = work.template
    return {
        "template": list(key) if isinstance(key, tuple) else key,
        "prompt_tokens": ticket.prompt_tokens,
        "prefix_tokens": work.prefix_tokens,
        "max_tokens": work.max_tokens,
        "n": work.n,
        "expected_output": ticket.expected_output,
        "hits": list(ticket.hits),
        "beginning": ticket.beginning,
        "served": ticket.served,
        "homes": list(ticket.template.homes),
        "key": list(ticket.key),
    }


def _engine_facts(book: EngineBook) -> Mapping[str, Any]:
    line, first, speed = book.line, book.line.first(), book.speed
    return {
        "index": book.index,
        "name": book.name,
        "capacity": attrs.asdict(book.capacity),
        "most": book.most,
        "most_prefill": book.most_prefill,
        "speed": {
            "prefill": speed.prefill, "base": speed.base, "per_sequence": speed.per_sequence,
        },
        **{name: getattr(book, name) for name in _COUNTERS},
        "line": [line.count, line.prefill, line.outputs],
        "line_keys": [] if first is None else [list(first.key), line.begin, line.last],
    }  # fmt: skip


_COUNTERS = ("outstanding", "prefill", "kv", "outputs")


def _engine_of(facts: Mapping[str, Any], speed: Speed) -> EngineBook:
    book = EngineBook(
        index=facts["index"],
        name=facts["name"],
        capacity=EngineCapacity(**facts["capacity"]),
        speed=copy.copy(speed),
        most=facts["most"],
        most_prefill=facts["most_prefill"],
        **{name: facts[name] for name in _COUNTERS},
    )
    if facts["line_keys"]:
        key, begin, last = facts["line_keys"]
        book.line = Line.of(*facts["line"], first=_ticket(key), begin=begin, last=last)
    return book


def _ticket(key: Sequence[Any], **facts: Any) -> Ticket:  # noqa: ANN401  # a ticket's own fields
    work = Work(template=None, prompt_tokens=0)
    number = int(key[2])
    rest = {"work": work, "template": Template(None), "prompt_tokens": 0, "expected_output": 0.0}
    return Ticket(number=number, key=(float(key[0]), int(key[1]), number), **{**rest, **facts})


def _ticket_of(decision: Decision) -> Ticket:
    facts, key = decision.facts, decision.facts["template"]
    template = Template(tuple(key) if isinstance(key, list) else key)
    template.homes = tuple(facts["homes"])
    work = Work(
        template=template.key,
        prompt_tokens=facts["prompt_tokens"],
        prefix_tokens=facts["prefix_tokens"],
        max_tokens=facts["max_tokens"],
        n=facts["n"],
    )
    names = ("prompt_tokens", "expected_output", "hits", "beginning", "served")
    rest = {name: facts[name] for name in names}
    return _ticket(facts["key"], work=work, template=template, **rest)


def __getattr__(name: str) -> object:
    if name in ("BoundedLoadHash", "LMetric", "StaticPartition"):
        # An AttributeError would be replaced by one without this text in `from ... import`.
        msg = (
            f"alto.sched.{name} is not part of alto any more: it is a baseline of the benchmarks, in "
            f"bench/_scheduling/baselines.py; copy it from there"
        )
        raise ImportError(msg)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
