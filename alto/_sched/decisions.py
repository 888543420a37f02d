"""Decisions of a scheduler as records: made, written to a file, read, and asked of another policy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeAlias

import attrs

from alto._sched.estimate import Speed, Template
from alto._sched.policies import Policy
from alto._sched.queue import WaitQueue
from alto._sched.state import CallInfo, EngineLoad, Ticket
from alto.model import EngineCapacity

__all__ = (
    "Decision",
    "Recorder",
    "Replayed",
    "decision_of",
    "dump_decisions",
    "load_decisions",
    "replay",
)


@attrs.frozen(kw_only=True)
class Decision:
    """One choice of a policy, and the state that it was made on."""

    time: float
    """Time in seconds, on the scheduler's clock."""
    call: int
    """The call's number."""
    branch: str
    """Reason for asking the policy: the call was ``submitted``, its ``turn`` came, another engine was
    ``idle``, its engine was removed (``moved``, ``again``); or ``fallback``: the policy failed."""
    chosen: str
    """Name of the engine."""
    scores: Mapping[str, float]
    """By engine, lower is better; empty where the policy gives none."""
    facts: Mapping[str, Any]
    """The call: template, tokens, expected output, how much of it each engine holds."""
    engines: Sequence[Mapping[str, Any]]
    """The engines: their limits and counters, in the order in which the policy saw them."""


Recorder: TypeAlias = Callable[[Decision], object]
"""A callable that gets every decision, in the step that makes it; ``list.append`` will do."""


@attrs.frozen(kw_only=True)
class Replayed:
    """The answer of another policy to a recorded decision."""

    decision: Decision
    """The decision that was recorded."""
    chosen: str | None
    """Name of the engine that the policy would have chosen; None: it gave none."""
    scores: Mapping[str, float]
    """By engine; empty where the policy gives none."""

    @property
    def agrees(self) -> bool:
        """True if it chose the same engine."""
        return self.chosen == self.decision.chosen


def decision_of(  # the parts of a choice
    policy: Policy,
    now: float,
    ticket: Ticket,
    engines: Sequence[EngineLoad],
    chosen: EngineLoad,
    branch: str,
    /,
) -> Decision:
    """Make the record of a choice."""
    return Decision(
        time=now,
        call=ticket.number,
        branch=branch,
        chosen=chosen.name,
        scores=_scores(policy, ticket, engines),
        facts=_call_facts(ticket),
        engines=tuple(map(_engine_facts, engines)),
    )


def replay(decisions: Iterable[Decision], policy: Policy, /) -> Iterator[Replayed]:
    """Ask another policy about recorded decisions, one after the other.

    It sees the engines as they were at each decision, not as they would have become under *policy*. A
    policy that keeps state of its own, such as `RoundRobin`, keeps it from one decision to the next.
    """
    for decision in decisions:
        speed = Speed(**decision.engines[0]["speed"]) if decision.engines else Speed()
        engines = [_engine_of(facts, speed) for facts in decision.engines]
        ticket = _ticket_of(decision)
        chosen: EngineLoad | None = policy.choose(ticket, engines)  # None: a fault of a user's
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
    """Read decisions that :func:`dump_decisions` has written.

    Raises:
        ValueError: A line is no decision; the message says which line.
    """
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield Decision(**json.loads(line))
        except (ValueError, TypeError) as error:
            msg = f"line {number} is no decision, as dump_decisions() writes them: {error}"
            raise ValueError(msg) from error


def _scores(policy: Policy, ticket: Ticket, engines: Sequence[EngineLoad]) -> Mapping[str, float]:
    scores, score = getattr(policy, "scores", None), getattr(policy, "score", None)
    try:
        if scores is not None:
            numbers = list(scores(ticket, engines))
        elif score is not None:
            numbers = [score(ticket, engine) for engine in engines]
        else:
            return {}
        return {e.name: float(number) for e, number in zip(engines, numbers, strict=True)}
    except Exception:  # noqa: BLE001  # a user's policy; its choice is recorded all the same
        return {}


def _call_facts(ticket: Ticket) -> Mapping[str, Any]:
    info = ticket.info
    key = info.template
    return {
        "template": list(key) if isinstance(key, tuple) else key,
        "prompt_tokens": ticket.prompt_tokens,
        "prefix_tokens": info.prefix_tokens,
        "max_tokens": info.max_tokens,
        "n": info.n,
        "expected_output": ticket.expected_output,
        "hits": list(ticket.hits),
        "beginning": ticket.beginning,
        "served": ticket.served,
        "preferred": list(ticket.template.preferred),
        "key": list(ticket.key),
    }


def _engine_facts(engine: EngineLoad) -> Mapping[str, Any]:
    queue, first, speed = engine.queue, engine.queue.first(), engine.speed
    return {
        "index": engine.index,
        "name": engine.name,
        "capacity": attrs.asdict(engine.capacity),
        "speed": {
            "prefill": speed.prefill, "base": speed.base, "per_sequence": speed.per_sequence,
        },
        **{name: getattr(engine, name) for name in _COUNTERS},
        "queue": [queue.count, queue.prefill, queue.outputs],
        "queue_keys": [] if first is None else [list(first.key), queue.earliest, queue.latest],
    }  # fmt: skip


_COUNTERS = ("max_outstanding", "max_prefill", "outstanding", "prefill", "kv", "outputs")


def _engine_of(facts: Mapping[str, Any], speed: Speed) -> EngineLoad:
    engine = EngineLoad(
        index=facts["index"],
        name=facts["name"],
        capacity=EngineCapacity(**facts["capacity"]),
        speed=copy.copy(speed),
        **{name: facts[name] for name in _COUNTERS},
    )
    if facts["queue_keys"]:
        key, earliest, latest = facts["queue_keys"]
        engine.queue = WaitQueue.snapshot(
            *facts["queue"], first=_ticket(key), earliest=earliest, latest=latest
        )
    return engine


def _ticket(key: Sequence[Any], **facts: Any) -> Ticket:  # noqa: ANN401  # a ticket's own fields
    info = CallInfo(template=None, prompt_tokens=0)
    number = int(key[2])
    rest = {"info": info, "template": Template(None), "prompt_tokens": 0, "expected_output": 0.0}
    return Ticket(number=number, key=(float(key[0]), int(key[1]), number), **{**rest, **facts})


def _ticket_of(decision: Decision) -> Ticket:
    facts, key = decision.facts, decision.facts["template"]
    template = Template(tuple(key) if isinstance(key, list) else key)
    template.preferred = tuple(facts["preferred"])
    info = CallInfo(
        template=template.key,
        prompt_tokens=facts["prompt_tokens"],
        prefix_tokens=facts["prefix_tokens"],
        max_tokens=facts["max_tokens"],
        n=facts["n"],
    )
    names = ("prompt_tokens", "expected_output", "hits", "beginning", "served")
    rest = {name: facts[name] for name in names}
    return _ticket(facts["key"], info=info, template=template, **rest)
