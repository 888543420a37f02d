"""Scheduling of a pool's calls: the scheduler, its policies, and records of its decisions.

A :class:`Scheduler` decides which engine runs a call, and when. It is synchronous and has no clock:
its caller reports events with their times, and asks which calls may start. A pool of engines
(:class:`alto.engines.Pool`, :class:`alto.VLLM`) does that. A :class:`Policy` chooses the engine;
`PromptAware` is the default. Every choice can be recorded with the state that it was made on, kept in
a file, and asked again of another policy::

    decisions = []
    pool = Pool(engines, recorder=decisions.append)
    ...
    for replayed in replay(decisions, LeastLoaded()):
        print(replayed.decision.chosen, replayed.chosen)
"""

from __future__ import annotations

from alto._sched.decisions import Decision as Decision
from alto._sched.decisions import Recorder as Recorder
from alto._sched.decisions import Replayed as Replayed
from alto._sched.decisions import dump_decisions as dump_decisions
from alto._sched.decisions import load_decisions as load_decisions
from alto._sched.decisions import replay as replay
from alto._sched.policies import CallOrder as CallOrder
from alto._sched.policies import LeastLoaded as LeastLoaded
from alto._sched.policies import Policy as Policy
from alto._sched.policies import PrefixThreshold as PrefixThreshold
from alto._sched.policies import PromptAware as PromptAware
from alto._sched.policies import RoundRobin as RoundRobin
from alto._sched.scheduler import Scheduler as Scheduler
from alto._sched.state import CallInfo as CallInfo
from alto._sched.state import EngineLoad as EngineLoad
from alto._sched.state import Ticket as Ticket

__all__ = (
    "CallInfo",
    "CallOrder",
    "Decision",
    "EngineLoad",
    "LeastLoaded",
    "Policy",
    "PrefixThreshold",
    "PromptAware",
    "Recorder",
    "Replayed",
    "RoundRobin",
    "Scheduler",
    "Ticket",
    "dump_decisions",
    "load_decisions",
    "replay",
)

_RENAMED = {"EngineBook": "EngineLoad", "Work": "CallInfo"}
_BASELINES = ("BoundedLoadHash", "LMetric", "StaticPartition")


def __getattr__(name: str) -> object:
    # An ImportError, since the text of an AttributeError is lost in `from alto.sched import ...`.
    if name in _RENAMED:
        msg = f"alto.sched.{name} is called {_RENAMED[name]} now: from alto.sched import {_RENAMED[name]}"
        raise ImportError(msg)
    if name in _BASELINES:
        msg = (
            f"alto.sched.{name} is not part of alto any more: it is a baseline of the benchmarks, in "
            f"bench/_scheduling/baselines.py; copy it from there"
        )
        raise ImportError(msg)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
