"""Plans: the depths, levels and groupings that follow from a declaration, and its errors.

A path is a plain tuple of indices, one per open level, below its request: ``()`` is the request
itself, ``(2,)`` the third child of the first fan-out, ``(2, 0)`` the first child of that one.
Tuples compare in ancestry order, hash in C, and cost nothing to share.

Theory of operation. A pipeline is declared as a list of nodes in call order, so every node's
sources come before it. Streams are numbered: the pipeline's inputs first, then one per node.

A stream has *levels*: the numbers of the generator nodes that opened its levels, outermost first;
their number is its depth. The common ancestry of two streams is the common prefix of their levels.
A node is
called once per path of its *call levels*:

==============================  =================================================================
its inputs                      its call levels
==============================  =================================================================
``x: T``                        those of the stream
``a: A, b: B``                  the deeper one's; the other's must begin it
``xs: Group[T]``                the stream's but the last
``xs: Group, ys: Group``        what the streams have in common, at least one less than each
``a: A, xs: Group[B]``          those of the items; each group's must go deeper
``by=s``                        those of ``s``; items must begin it, groups go deeper
==============================  =================================================================

A generator adds itself as a level, a coroutine adds none.

A consumer that must know when everything below an ancestor is complete gets the counts of every
level in between, directly from the node that opened the level.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from alto.errors import GraphError
from alto.model import Path

__all__ = (
    "InputPlan",
    "NodeDecl",
    "NodePlan",
    "ParamDecl",
    "Plan",
    "call_levels",
    "common_prefix",
    "covers",
    "is_prefix",
    "levels_in_words",
    "make_plan",
)


def covers(ancestor: Path, path: Path, /) -> bool:
    """Return whether *path* is *ancestor* or descends from it."""
    return path[: len(ancestor)] == ancestor


def is_prefix(shorter: Sequence[int], longer: Sequence[int], /) -> bool:
    """Return whether *longer* begins with *shorter* or equals it."""
    return tuple(longer[: len(shorter)]) == tuple(shorter)


def common_prefix(first: Sequence[int], second: Sequence[int], /) -> tuple[int, ...]:
    """Return the longest common prefix of *first* and *second*."""
    common = []
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        common.append(one)
    return tuple(common)


@attrs.frozen
class ParamDecl:
    """A stream parameter of a stage."""

    name: str
    """Its name in the signature."""
    group: bool
    """True where it takes a whole group."""


@attrs.frozen(kw_only=True)
class NodeDecl:
    """One call of a stage in a pipeline."""

    name: str
    """Name of the stage, for messages."""
    params: tuple[ParamDecl, ...]
    """Its stream parameters, in order."""
    generator: bool
    """True where a call may give any number of outputs."""
    sources: tuple[int, ...]
    """Number of the stream that each parameter is called with."""
    by: int | None = None
    """Number of the stream given as ``by=``."""


@attrs.frozen(kw_only=True)
class InputPlan:
    """One parameter of a node, and the stream that feeds it."""

    source: int
    """Number of the stream."""
    group: bool
    """True where it is gathered."""
    depth: int
    """Length of the paths of the stream's items."""
    rank: int
    """Position among the stream's consumers."""


@attrs.frozen(kw_only=True)
class NodePlan:
    """Plan of one call of a stage."""

    index: int
    """Position in ``Plan.nodes``."""
    name: str
    """Name of the stage; numbered where a stage is used more than once."""
    generator: bool
    """True where a call may give any number of outputs."""
    depth: int
    """Length of a call's path."""
    inputs: tuple[InputPlan, ...]
    """One for each parameter of the stage."""
    consumers: tuple[tuple[int, int], ...]
    """(node, parameter) of each consumer of its stream; (-1, 0) is the pipeline's result."""
    counts_to: tuple[tuple[int, int], ...]
    """(node, parameter) of each consumer that needs the number of a call's children."""


@attrs.frozen(kw_only=True)
class Plan:
    """Plan of a pipeline."""

    inputs: tuple[tuple[tuple[int, int], ...], ...]
    """Consumers of each input of the pipeline, as in ``NodePlan.consumers``."""
    nodes: tuple[NodePlan, ...]
    """Nodes in call order: each after those that feed it."""
    depth: int
    """Length of the paths of the pipeline's results."""
    output: int
    """Number of the stream that is the result."""


def make_plan(inputs: int, nodes: Sequence[NodeDecl], output: int, *, pipeline: str) -> Plan:
    """Make the plan of a declaration.

    Args:
        inputs: Number of input streams of the pipeline; they are numbered from 0.
        nodes: The stage calls in order; their streams are numbered from *inputs*.
        output: Number of the stream that the pipeline returns.
        pipeline: Its name, for messages.

    Raises:
        GraphError: The declaration has no meaning; the message names stage, parameter, remedy.
    """
    levels: list[tuple[int, ...]] = [()] * inputs
    calls: list[tuple[int, ...]] = []
    for index, node in enumerate(nodes):
        call = call_levels(node, levels, nodes)
        calls.append(call)
        levels.append((*call, index) if node.generator else call)
    consumers: list[list[tuple[int, int]]] = [[] for _ in levels]
    for index, node in enumerate(nodes):
        for slot, source in enumerate(node.sources):
            consumers[source].append((index, slot))
    consumers[output].append((-1, 0))
    for index, node in enumerate(nodes):
        if not consumers[inputs + index]:
            msg = (
                f"pipeline {pipeline!r}: nothing takes the result of stage {node.name!r}; "
                f"return it, pass it on, or leave the call out"
            )
            raise GraphError(msg)
    counts: list[list[tuple[int, int]]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        for slot, owner in _counts_wanted(node, calls[index], levels):
            counts[owner].append((index, slot))
    for owner in levels[output]:
        counts[owner].append((-1, 0))
    names = _names(nodes)
    plans = [
        NodePlan(
            index=index,
            name=names[index],
            generator=node.generator,
            depth=len(calls[index]),
            inputs=tuple(
                InputPlan(
                    source=source,
                    group=node.params[slot].group,
                    depth=len(levels[source]),
                    rank=consumers[source].index((index, slot)),
                )
                for slot, source in enumerate(node.sources)
            ),
            consumers=tuple(consumers[inputs + index]),
            counts_to=tuple(counts[index]),
        )
        for index, node in enumerate(nodes)
    ]
    return Plan(
        inputs=tuple(tuple(consumers[k]) for k in range(inputs)),
        nodes=tuple(plans),
        depth=len(levels[output]),
        output=output,
    )


def _names(nodes: Sequence[NodeDecl]) -> list[str]:
    # A stage used twice is two nodes: search, search#2.
    seen: dict[str, int] = {}
    names = []
    for node in nodes:
        seen[node.name] = seen.get(node.name, 0) + 1
        names.append(node.name if seen[node.name] == 1 else f"{node.name}#{seen[node.name]}")
    return names


def _counts_wanted(
    node: NodeDecl, call: tuple[int, ...], levels: Sequence[tuple[int, ...]]
) -> list[tuple[int, int]]:
    # (parameter, node that opened a level): the parameter needs the counts of that node.
    wanted = []
    for slot, source in enumerate(node.sources):
        own = levels[source]
        if node.params[slot].group:
            wanted += [(slot, owner) for owner in own[len(call) :]]
        else:  # A broadcast item is kept until all calls below it have started.
            wanted += [(slot, owner) for owner in call[len(own) :]]
    return wanted


def call_levels(  # noqa: C901, PLR0912  # a table of cases, each with its own error
    node: NodeDecl, levels: Sequence[tuple[int, ...]], nodes: Sequence[NodeDecl]
) -> tuple[int, ...]:
    """Return the levels of *node*'s calls, by the table at the head of this file.

    Args:
        node: The stage call.
        levels: Levels of every stream so far.
        nodes: The stage calls so far, for messages.

    Raises:
        GraphError: Its inputs do not fit together.
    """
    items = [(p.name, levels[s]) for p, s in zip(node.params, node.sources, strict=True)
             if not p.group]  # fmt: skip
    groups = [(p.name, levels[s]) for p, s in zip(node.params, node.sources, strict=True)
              if p.group]  # fmt: skip
    for name, own in groups:
        if not own:
            msg = (
                f"stage {node.name!r}: parameter {name!r} asks for a Group, but its stream has one "
                f"item per request and nothing to gather; declare it without Group[...]"
            )
            raise GraphError(msg)
    if node.by is not None:
        call = levels[node.by]
        if not groups:
            msg = (
                f"stage {node.name!r}: by= says what to gather by, but no parameter is a Group; "
                f"declare one as Group[...] or leave by= out"
            )
            raise GraphError(msg)
        what = "by="
    elif items:
        name, call = max(items, key=lambda item: len(item[1]))
        what = f"parameter {name!r}"
    elif len(groups) == 1:
        return groups[0][1][:-1]
    else:
        call = groups[0][1]
        for _, own in groups[1:]:
            call = common_prefix(call, own)
        return call[: min(len(own) for _, own in groups) - 1]
    for name, own in items:
        if len(own) > len(call) and is_prefix(call, own):
            raise GraphError(_below(node, name, own, what, call, nodes))
        if not is_prefix(own, call):
            raise GraphError(_unrelated(node, name, own, what, call, nodes))
    for name, own in groups:
        if not is_prefix(call, own) or own == call:
            raise GraphError(_not_below(node, name, own, what, call, nodes))
    return call


def _unrelated(
    node: NodeDecl, name: str, own: tuple[int, ...], what: str, call: tuple[int, ...],
    nodes: Sequence[NodeDecl],
) -> str:  # fmt: skip
    return (
        f"stage {node.name!r}: parameter {name!r} ({levels_in_words(own, nodes)}) and {what} "
        f"({levels_in_words(call, nodes)}) have no common ancestry, so there is nothing to match them by; "
        f"gather one of them first (Group[...]), or derive both from one stream"
    )


def _below(
    node: NodeDecl, name: str, own: tuple[int, ...], what: str, call: tuple[int, ...],
    nodes: Sequence[NodeDecl],
) -> str:  # fmt: skip
    return (
        f"stage {node.name!r}: parameter {name!r} ({levels_in_words(own, nodes)}) lies below {what} "
        f"({levels_in_words(call, nodes)}), so a call would have many of them; "
        f"declare it as Group[...], or name a deeper stream with by="
    )


def _not_below(
    node: NodeDecl, name: str, own: tuple[int, ...], what: str, call: tuple[int, ...],
    nodes: Sequence[NodeDecl],
) -> str:  # fmt: skip
    if what == "by=":  # The remedy is another by=, not another stream for the parameter.
        said = levels_in_words(own, nodes)
        if own == call:
            return (
                f"stage {node.name!r}: by= has the same level as parameter {name!r} ({said}), so "
                f"each group would hold exactly one item; name a stream further up"
            )
        return (
            f"stage {node.name!r}: by= ({levels_in_words(call, nodes)}) is no ancestor of "
            f"parameter {name!r} ({said}); name a stream that it is made from"
        )
    if own == call:
        return (
            f"stage {node.name!r}: parameter {name!r} asks for a Group of what descends from "
            f"{what}, but both have the same level ({levels_in_words(own, nodes)}): each group would hold "
            f"exactly one item; declare it without Group[...]"
        )
    return (
        f"stage {node.name!r}: parameter {name!r} ({levels_in_words(own, nodes)}) does not descend from "
        f"{what} ({levels_in_words(call, nodes)}), which is no ancestor of it; "
        f"pass a stream made from it, or name an ancestor with by="
    )


def levels_in_words(levels: tuple[int, ...], nodes: Sequence[NodeDecl], /) -> str:
    """Return the levels of a stream in words: ``one per item of claims > queries``."""
    if not levels:
        return "one per request"
    return "one per item of " + " > ".join(nodes[owner].name for owner in levels)
