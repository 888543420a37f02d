"""Fail if modules of alto import one another in a circle of more than three files.

    python scripts/import_cycles.py

Every import counts, also those under ``if TYPE_CHECKING:`` and inside functions: a circle is hard to
read, no matter when it closes. A package stands for its ``__init__``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MOST = 3
"""Files in a circle, at most."""


def modules(root: Path) -> dict[str, Path]:
    """Return every module below *root*, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, names: set[str]) -> Iterator[str]:
    """Yield the modules among *names* that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    yield inner
                elif node.module in names:
                    yield node.module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Find the strongly connected components of more than one module, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            at = stack.index(module)
            circle = stack[at:]
            del stack[at:]
            if len(circle) > 1:
                found.append(sorted(circle))

    sys.setrecursionlimit(10_000)
    for module in sorted(graph):
        if module not in order:
            visit(module)
    return sorted(found, key=len, reverse=True)


def main() -> int:
    """Print every circle that is too large."""
    root = Path(__file__).parent.parent / "alto"
    files = modules(root)
    graph = {
        name: {other for other in imported(path, set(files)) if other != name}
        for name, path in files.items()
    }
    found = circles(graph)
    too_large = [circle for circle in found if len(circle) > MOST]
    for circle in too_large:
        print(f"a circle of {len(circle)} files, and {MOST} are allowed: {', '.join(circle)}")
    print(f"{len(files)} files, largest circle {max(map(len, found), default=1)}")
    return bool(too_large)


if __name__ == "__main__":
    sys.exit(main())
