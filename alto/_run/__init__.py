"""The runtime: what an open pipeline does."""

from alto._run.app import App, MapOrder, make_app
from alto._run.handles import StreamHandle
from alto._run.map import Failed, MapHandle, Progress, Result, Succeeded
from alto._run.nested import nested_run, nested_stream
from alto._run.request import RequestUsage
from alto._run.statistics import AppStatistics, ReplicaStatistics, StageStatistics

__all__ = (
    "App",
    "AppStatistics",
    "Failed",
    "MapHandle",
    "MapOrder",
    "Progress",
    "ReplicaStatistics",
    "RequestUsage",
    "Result",
    "StageStatistics",
    "StreamHandle",
    "Succeeded",
    "make_app",
    "nested_run",
    "nested_stream",
)
