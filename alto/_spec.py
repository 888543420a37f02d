"""What a declaration is, once understood: the records between declaring and running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import attrs

from alto._core.graph import Plan

__all__ = ("Declaration", "GroupOrder", "InputSpec", "NodeSpec", "ParamSpec", "ResourceSpec",
           "StageSpec")  # fmt: skip

GroupOrder: TypeAlias = Literal["ancestry", "arrival"]
"""How pieces of a group, or results of a request, are handed out."""


@attrs.frozen
class ParamSpec:
    """A stream parameter: positional in the stage's signature."""

    name: str
    group: bool
    """Whether it is annotated ``Group[...]``."""
    type: Any
    """The annotation; for a group what is inside the brackets."""


@attrs.frozen
class ResourceSpec:
    """A resource parameter: keyword-only in the stage's signature."""

    name: str
    type: Any
    """The annotation."""
    required: bool
    """False where the signature has a default."""


@attrs.frozen(kw_only=True, eq=False)
class StageSpec:
    """A stage, read from its signature."""

    name: str
    fn: Callable[..., Any]
    """The plain function."""
    generator: bool
    """Whether it is an async generator function."""
    params: tuple[ParamSpec, ...]
    resources: tuple[ResourceSpec, ...]
    output: Any
    """Type of one output."""
    concurrency: int
    """Most calls that run at once."""
    order: GroupOrder
    """How its groups hand out their pieces."""


@attrs.frozen(kw_only=True, eq=False)
class NodeSpec:
    """One call of a stage in a pipeline."""

    name: str
    """The stage's name, numbered where it is used more than once."""
    stage: StageSpec
    bound: Mapping[str, object]
    """Resources given with ``stage.bind``."""


@attrs.frozen(kw_only=True)
class InputSpec:
    """An input of a pipeline."""

    name: str
    type: Any
    """What is inside ``Stream[...]``."""


@attrs.frozen(kw_only=True, eq=False)
class Declaration:
    """A pipeline, read from its function."""

    name: str
    inputs: tuple[InputSpec, ...]
    nodes: tuple[NodeSpec, ...]
    """In the order of ``plan.nodes``."""
    plan: Plan
    output: Any
    """Type of one result."""
