"""The test kit: what alto's own tests stand on, for tests of code that is built on alto.

Nothing else in alto imports it. `pipelines` needs Hypothesis, the rest nothing beyond alto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alto.testing.checks import check_engine as check_engine
from alto.testing.clock import Deadlock as Deadlock
from alto.testing.clock import TaskLeak as TaskLeak
from alto.testing.clock import VirtualClockLoop as VirtualClockLoop
from alto.testing.clock import run_virtual as run_virtual
from alto.testing.events import RecordedEvents as RecordedEvents
from alto.testing.group import group as group
from alto.testing.reference import reference_run as reference_run
from alto.testing.scripted import Line as Line
from alto.testing.scripted import Scripted as Scripted
from alto.testing.scripted import ScriptError as ScriptError

if TYPE_CHECKING:
    from alto.testing.strategies import DrawnPipeline as DrawnPipeline
    from alto.testing.strategies import Failing as Failing
    from alto.testing.strategies import Scaling as Scaling
    from alto.testing.strategies import pipelines as pipelines

__all__ = (
    "Deadlock",
    "DrawnPipeline",
    "Failing",
    "Line",
    "RecordedEvents",
    "Scaling",
    "ScriptError",
    "Scripted",
    "TaskLeak",
    "VirtualClockLoop",
    "check_engine",
    "group",
    "pipelines",
    "reference_run",
    "run_virtual",
)


def __getattr__(name: str) -> object:
    if name in ("DrawnPipeline", "Failing", "Scaling", "pipelines"):
        from alto.testing import strategies  # noqa: PLC0415  # Hypothesis is not a dependency

        return getattr(strategies, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
