"""The runtime: the task tree of an open pipeline."""

from alto._run.app import App
from alto._run.handles import StreamHandle
from alto._run.map import MapHandle, Progress, Result
from alto._run.nested import nested_run, nested_stream
from alto._run.statistics import AppStatistics, ReplicaStatistics, StageStatistics

__all__ = (
    "App",
    "AppStatistics",
    "MapHandle",
    "Progress",
    "ReplicaStatistics",
    "Result",
    "StageStatistics",
    "StreamHandle",
    "nested_run",
    "nested_stream",
)
