"""What `alto._graph.plan` promises: ancestry compares as prefixes do."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alto._graph.plan import common_prefix, covers, is_prefix
from alto.model import Path

paths = st.lists(st.integers(0, 2), max_size=5).map(tuple)


def prefixes(path: Path) -> set[Path]:
    """Every path that *path* begins with, from the request to itself."""
    return {path[:n] for n in range(len(path) + 1)}


@given(ancestor=paths, path=paths)
def test_covers_when_the_path_begins_with_the_ancestor(ancestor: Path, path: Path) -> None:
    """An ancestor covers exactly the paths that begin with it, itself included."""
    assert covers(ancestor, path) == (ancestor in prefixes(path))


@given(path=paths)
def test_the_request_covers_everything(path: Path) -> None:
    """The empty path is the request, and every path descends from it."""
    assert covers((), path)


@given(shorter=paths, longer=paths)
def test_is_prefix_when_one_begins_the_other(shorter: Path, longer: Path) -> None:
    """One sequence is a prefix of another exactly when the other begins with it."""
    assert is_prefix(shorter, longer) == (shorter in prefixes(longer))


@pytest.mark.parametrize(("shorter", "longer"), [([1], (1, 2)), ((1,), [1, 2]), ([], [])])
def test_is_prefix_when_the_sequences_are_of_other_kinds(
    shorter: list[int], longer: list[int]
) -> None:
    """Only the indices count, not whether they come in a list or in a tuple."""
    assert is_prefix(shorter, longer)


@given(first=paths, second=paths)
def test_common_prefix_is_the_longest_shared_one(first: Path, second: Path) -> None:
    """The common prefix is the longest path that both begin with."""
    shared = prefixes(first) & prefixes(second)
    assert common_prefix(first, second) == max(shared, key=len)


def test_common_prefix_of_lists_is_a_path() -> None:
    """Sequences of any kind give a tuple, so that the answer can be used as a path."""
    assert common_prefix([1, 2, 3], [1, 2, 4]) == (1, 2)


@given(st.lists(paths, unique=True))
def test_paths_sort_in_ancestry_order(some: list[Path]) -> None:
    """Sorted paths have every ancestor before its descendants, and siblings by their index."""
    ordered = sorted(some)
    for before, after in pairwise(ordered):
        shared = len(common_prefix(before, after))
        assert not covers(after, before)
        assert covers(before, after) or before[shared] < after[shared]
