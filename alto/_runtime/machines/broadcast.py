"""How long an item that is repeated for its descendants is of use.

Theory of operation. An item at a path of length ``top`` serves every call below it. The calls form
a tree; how many children its inner nodes have is *counted*, as for a group (see ``closure.py``). A
call is *done* when it has started, or when it is known that it never will. Unlike the pieces of a
group, calls may be given up: an inner node is done as a whole when it is dropped, whatever had
started below it. So a node remembers *which* children are done, not how many, and being told twice
changes nothing. A node is done when it is counted and all its children are; when the node at ``top``
is, the item is of no more use, and everything known below it is forgotten.
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
    """Say when the last call below an item is done.

    Args:
        top: Length of the item's path; calls are deeper.
    """

    __slots__ = ("_tops", "top")

    def __init__(self, top: int) -> None:
        self.top = top
        # Per item its inner nodes. Invariant: the node at the item itself is not done.
        self._tops: dict[Path, dict[Path, _InnerNode]] = {}

    def __len__(self) -> int:
        """Items that something is known of, and that may still be of use."""
        return len(self._tops)

    def done(self, path: Path, /) -> Path | None:
        """The call or inner node at *path*, deeper than an item, is done.

        Told so of an item that is of no more use already, it keeps a note until the item is dropped.

        Returns:
            The item that is of no more use now, or None.
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
        """The inner node at *parent*, an item or below one, has that many children; 0 is legal.

        Returns:
            The item that is of no more use now, or None.
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
        """Assert the invariant."""
        for item, nodes in self._tops.items():
            top = nodes.get(item)
            assert top is None or len(top.done) != top.children, item
            assert all(len(n.done) <= n.children for n in nodes.values() if n.children >= 0), item
