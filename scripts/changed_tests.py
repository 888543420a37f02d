"""Print the test files that belong to the files changed since another commit, one a line.

    python scripts/changed_tests.py           since the branch left main, committed or not
    python scripts/changed_tests.py HEAD~3    since that commit

A changed test stands for itself. A module stands for the tests of its name in the folder of its
subject (``alto/_text/json.py``: ``tests/text/test_json*.py``), or for that folder where there are none.
Tests that read the whole repository are always printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TESTS = Path("tests")
BORDER = {"events": "observers"}
"""Tests in tests/border that are named after another module of the same subject."""
ALWAYS = (TESTS / "test_docs.py", TESTS / "test_surface.py")


def git(*arguments: str) -> list[str]:
    """Run git, and return the lines it prints."""
    command = ["git", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # git
    return done.stdout.splitlines()


def changed(base: str) -> list[Path]:
    """Return the files that differ from *base*, untracked ones included."""
    since = (
        git("merge-base", base, "HEAD") or git("merge-base", f"origin/{base}", "HEAD") or ["HEAD"]
    )
    names = git("diff", "--name-only", *since)
    return [Path(name) for name in names + git("ls-files", "--others", "--exclude-standard")]


def tests_of(path: Path) -> Iterable[Path]:
    """Return the tests of a changed file."""
    if path.suffix != ".py":
        return []
    place, *folders = path.parent.parts or ("",)
    if place == "tests":
        return [path] if path.name.startswith("test_") else users_of(path)
    if place == "examples":
        names = ("verification*",) if folders[:1] == ["verification"] else ("examples", "dynamic*")
        return [test for name in names for test in TESTS.glob(f"test_{name}.py")]
    if place == "bench":
        return list(TESTS.glob(f"bench/test_{path.stem}.py")) or TESTS.glob("bench/test_*.py")
    return tests_of_module(path) if place == "alto" else []


def users_of(helper: Path) -> list[Path]:
    """Return the tests that import a helper, or those beside and below a conftest.py."""
    if helper.name == "conftest.py":
        return list(helper.parent.rglob("test_*.py"))
    line = re.compile(rf"\b{helper.stem} import\b|\bimport .*\b{helper.stem}\b")
    return [test for test in TESTS.rglob("test_*.py") if line.search(test.read_text("utf-8"))]


def tests_of_module(path: Path) -> list[Path]:
    """Return the tests of a module of alto."""
    *subject, name = (part.strip("_") for part in path.with_suffix("").parts[1:])
    if name == "init":
        name = subject.pop() if subject else "front"
    folder = TESTS.joinpath(*subject)
    while not folder.is_dir():
        folder = folder.parent
    # A public module has the folder of its private package: alto/text.py, alto/_text, tests/text.
    found = [*folder.rglob(f"test_{name}*.py"), *(folder / name).rglob("test_*.py")]
    found += (TESTS / "border").glob(f"test_{BORDER.get(name, name)}*.py")
    return found or list(folder.glob("test_*.py" if folder == TESTS else "**/test_*.py"))


def main() -> None:
    """Print the tests."""
    base = sys.argv[1] if len(sys.argv) > 1 else "main"
    found = {*ALWAYS, *(test for path in changed(base) for test in tests_of(path))}
    print(*sorted(str(test) for test in found if test.exists()), sep="\n")


if __name__ == "__main__":
    main()
