"""Lifetime of an item that is broadcast to the calls below it.

Theory of operation. An item at a path of length ``top`` serves every call below it. The calls form a
tree whose inner nodes' children are *counted*, as for a group (see completion.py). A call is *done*
when it has started, or when it will never start. Unlike the pieces of a group, calls may be dropped:
then an inner node is done as a whole, even if calls below it had started. So a node stores *which*
children are done, not how many, and a repeated event changes nothing. A node is done when it is
counted and all its children are done. When the node at ``top`` is done, the item is *spent*, and all
that is known below it is forgotten.
"""

from __future__ import annotations

from alto.model import Path

__all__ = ("Broadcast",)


class _InnerNode:
    __slots__ = ("children", "done")

    def __init__(self) -> None:
        self.children = -1  # -1 while unknown.
        self.done: set[int] = set()


class Broadcast:
    """Detect when the last call below an item is done.

    Args:
        top: Length of the item's path; calls are deeper.
    """

    __slots__ = ("_tops", "top")

    def __init__(self, top: int) -> None:
        self.top = top
        # Per item its inner nodes. Invariant: the node at the item itself is not done.
        self._tops: dict[Path, dict[Path, _InnerNode]] = {}

    def __len__(self) -> int:
        """Return the number of items with known calls that are not spent."""
        return len(self._tops)

    def done(self, path: Path, /) -> Path | None:
        """Record that the call or inner node at *path*, deeper than an item, is done.

        An event below an item that is already spent leaves an entry until the item is dropped.

        Returns:
            The item that is spent now, or None.
        """
        item = path[: self.top]
        nodes = self._tops.setdefault(item, {})
        while len(path) > self.top:
            parent = path[:-1]
            node = nodes.setdefault(parent, _InnerNode())
            node.done.add(path[-1])
            if len(node.done) != node.children:
                return None
            path = parent
        del self._tops[item]
        return item

    def counted(self, parent: Path, children: int, /) -> Path | None:
        """Record that the inner node at *parent*, an item or below one, has that many children (>= 0).

        Returns:
            The item that is spent now, or None.
        """
        item = parent[: self.top]
        node = self._tops.setdefault(item, {}).setdefault(parent, _InnerNode())
        node.children = children
        if len(node.done) != children:
            return None
        if len(parent) > self.top:
            return self.done(parent)
        del self._tops[item]
        return item

    def drop(self, ancestor: Path, /) -> None:
        """Forget the items at and below *ancestor*, which is no deeper than they are."""
        size = len(ancestor)
        for item in [p for p in self._tops if p[:size] == ancestor]:
            del self._tops[item]

    def check(self) -> None:
        """Raise `AssertionError` if the invariant is broken."""
        for item, nodes in self._tops.items():
            top = nodes.get(item)
            assert top is None or len(top.done) != top.children, item
            assert all(len(n.done) <= n.children for n in nodes.values() if n.children >= 0), item
