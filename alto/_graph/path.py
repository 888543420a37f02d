"""Push, pop and compare ancestries.

A path is a plain tuple of indices, one per open level, below its request: ``()`` is the request
itself, ``(2,)`` the third child of the first fan-out, ``(2, 0)`` the first child of that one.
Tuples compare in ancestry order, hash in C, and cost nothing to share.
"""

from __future__ import annotations

from collections.abc import Sequence

from alto.model import Path

__all__ = ("common_prefix", "covers", "is_prefix")


def covers(ancestor: Path, path: Path, /) -> bool:
    """Whether *path* is *ancestor* or descends from it."""
    return path[: len(ancestor)] == ancestor


def is_prefix(shorter: Sequence[int], longer: Sequence[int], /) -> bool:
    """Whether *shorter* is where *longer* begins; equal ones are."""
    return tuple(longer[: len(shorter)]) == tuple(shorter)


def common_prefix(first: Sequence[int], second: Sequence[int], /) -> tuple[int, ...]:
    """What *first* and *second* begin with alike."""
    common = []
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        common.append(one)
    return tuple(common)
