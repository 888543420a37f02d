"""Declarations: decorated functions, read into the records that the runtime works with."""

from alto._graph.resources import bind_resources as bind_resources
from alto._graph.resources import check_input as check_input
from alto._graph.resources import check_input_count as check_input_count
from alto._graph.resources import check_resource as check_resource

__all__ = ("bind_resources", "check_input", "check_input_count", "check_resource")
