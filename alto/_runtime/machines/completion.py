"""Completion of groups, by counting.

Theory of operation. A :class:`CompletionCounter` watches one stream whose items have paths of length
``depth``, and groups them by their first ``top`` indices. The items below one ancestor form a
tree. Each of its inner nodes is one call of a generator stage, whose end tells the number of the
node's children. There are two events, in any order and interleaving:

* ``arrived(path)``: an item has arrived. It completes one child of its parent.
* ``counted(parent, n)``: the call at *parent* has ended after *n* children; 0 is legal.

A node is complete when it is counted and that many of its children are complete. Completion of a
node completes one child of *its* parent; completion of a node at length ``top`` closes the group.
Nothing is concluded from order, time or a last-flag. Each group closes exactly once; what is
known of it is dropped at that moment, so state is held for open groups only.

Sources: counted completion as in timely dataflow's progress tracking; ALTO v1 names no rule.
"""

from __future__ import annotations

from alto.model import Path

__all__ = ("CompletionCounter",)


class CompletionCounter:
    """Counter of the items below each ancestor, which detects when all have arrived.

    Args:
        top: Length of an ancestor's path, >= 0.
        depth: Length of an item's path, > top.

    Raises:
        ValueError: *depth* is not greater than *top*.
    """

    __slots__ = ("_nodes", "depth", "top")

    def __init__(self, top: int, depth: int) -> None:
        if not 0 <= top < depth:
            msg = f"need 0 <= top < depth, got top={top}, depth={depth}"
            raise ValueError(msg)
        self.top = top
        self.depth = depth
        # [children complete, children in all or -1 while unknown], per inner node that is open.
        # Invariant: no node here is complete.
        self._nodes: dict[Path, list[int]] = {}

    def __len__(self) -> int:
        """Return the number of known inner nodes that are not complete."""
        return len(self._nodes)

    def arrived(self, path: Path, /) -> Path | None:
        """Record the arrival of an item.

        Args:
            path: The item's ancestry, of length ``depth``. Each arrives once.

        Returns:
            The ancestor whose group this closes, or None.

        Cost: O(1); O(depth - top) when it completes inner nodes.
        """
        parent = path[:-1]
        node = self._nodes.get(parent)
        if node is None:
            self._nodes[parent] = [1, -1]
            return None
        node[0] += 1
        if node[0] != node[1]:
            return None
        del self._nodes[parent]
        return self._closed(parent)

    def counted(self, parent: Path, children: int, /) -> Path | None:
        """Record the end of the call at *parent*.

        Args:
            parent: Path of an inner node, ``top <= len(parent) < depth``. Each is counted once.
            children: How many children it has, >= 0.

        Returns:
            The ancestor whose group this closes, or None.

        Raises:
            ValueError: The node was counted before, or has more children than that already.
        """
        node = self._nodes.get(parent)
        if node is None:
            if children == 0:
                return self._closed(parent)
            self._nodes[parent] = [0, children]
            return None
        if node[1] >= 0 or node[0] > children:
            msg = f"{parent} has {node[0]} of {node[1]} children and is counted as {children}"
            raise ValueError(msg)
        if node[0] == children:
            del self._nodes[parent]
            return self._closed(parent)
        node[1] = children
        return None

    def drop(self, ancestor: Path, /) -> None:
        """Forget everything at and below *ancestor*. No event below it may follow."""
        size = len(ancestor)
        for path in [p for p in self._nodes if p[:size] == ancestor]:
            del self._nodes[path]

    def check(self) -> None:
        """Raise `AssertionError` if the invariant is broken."""
        for path, (done, expected) in self._nodes.items():
            assert self.top <= len(path) < self.depth, path
            assert expected < 0 or done < expected, (path, done, expected)
            assert done > 0 or expected > 0, path

    def _closed(self, path: Path) -> Path | None:
        return path if len(path) == self.top else self.arrived(path)
