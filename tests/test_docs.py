"""The documentation is run: every Python block of every page, and what the page says it prints.

The blocks of a page share one namespace and run in order, on virtual time, so that a page which
says ``2.0 s`` is checked exactly and takes none. Two comments in a page, which readers do not see,
say what is special about the block that follows:

* ``<!-- output -->``: what the Python block before it prints;
* ``<!-- compiled only: why -->``: a Python block that is compiled and not run;
* ``<!-- needs: module -->``: one that is only compiled where that module is not installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

import alto
import alto.errors
import alto.testing
from alto.testing import VirtualClockLoop

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not any(part.startswith("_") for part in page.relative_to(ROOT).parts)
    ),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

COMMENT = re.compile(r"<!-- (output|compiled only|needs)(?:: ([^\n]+?))? -->\n+\Z")
"""The comment right before a block."""
NOT_RUN = re.compile(r"^ *(`{3,}|~{3,}) *(py|python3|pycon|\{code-block\} *python|\{code\} *python)\b",
                     re.MULTILINE)  # fmt: skip
"""Ways to show Python that nobody would run."""


def blocks(document: Document) -> Iterator[Region]:
    """The blocks that are run, compiled or compared; a Sybil parser."""
    for region in FencedCodeBlockLexer("python|text")(document):
        comment = COMMENT.search(document.text, 0, region.start)
        what, why = comment.groups() if comment else (None, None)
        source = region.lexemes["source"]
        if region.lexemes["language"] == "text":
            if what == "output":
                yield Region(region.start, region.end, source, compare)
        elif what is not None:
            assert why, f"{document.path}: a block is not run and does not say why"
            runs = what == "needs" and importlib.util.find_spec(why) is not None
            yield Region(region.start, region.end, source, run if runs else compile_block)
        else:
            yield Region(region.start, region.end, source, run)


def compile_block(example: Example) -> None:
    """See that a block is Python."""
    example.namespace["__ran__"] = False
    lines = "\n" * (example.line + example.parsed.line_offset)
    example.document.code = compile(lines + example.parsed, example.path, "exec", dont_inherit=True)


def run(example: Example) -> None:
    """Run a block after those before it."""
    compile_block(example)
    example.namespace["__capture__"].readouterr()
    exec(example.document.code, example.namespace)
    example.namespace["__ran__"] = True


def compare(example: Example) -> None:
    """See that a page shows what its last block printed, if that was run."""
    if not example.namespace["__ran__"]:
        return
    printed = example.namespace["__capture__"].readouterr().out
    assert printed == str(example.parsed), f"{example.path}, line {example.line}"


SYBIL = Sybil([blocks])


@pytest.fixture
def virtual_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``asyncio.run`` use a loop on virtual time."""

    def run(main: Coroutine[Any, Any, T], **options: bool) -> T:
        with asyncio.Runner(loop_factory=VirtualClockLoop, **options) as runner:
            return runner.run(main)

    monkeypatch.setattr(asyncio, "run", run)


@pytest.mark.usefixtures("virtual_run")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "<!-- needs:" in text else [])
        for name, text in TEXTS.items()
        if "```python" in text
    ],
)
def test_the_code_of_a_page_runs_and_prints_what_it_says(name, capsys, monkeypatch):
    """Every Python block of a page runs, in order, and prints what the page shows."""
    document = SYBIL.parse(ROOT / name)
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # where a class of the page says it is from
    document.namespace = vars(page)
    document.namespace["__capture__"] = capsys
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("name", TEXTS)
def test_no_python_hides_in_another_kind_of_block(name):
    """Python is shown in ```` ```python ```` blocks only, which are run."""
    assert NOT_RUN.search(TEXTS[name]) is None


@pytest.mark.parametrize("name", [name for name in TEXTS if not name.startswith("docs/")])
def test_links_of_a_page_outside_docs_lead_somewhere(name):
    """A relative link names a file of the repository; Sphinx looks after those inside docs."""
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", TEXTS[name])
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", TEXTS)
def test_files_and_tests_that_a_page_names_exist(name):
    """What a page names as ``tests/...::test_...`` or as a file of the repository is there."""
    named = re.findall(r"`((?:alto|bench|docs|examples|scripts|tests)/[\w/.-]+)(?:::(\w+))?`",
                       TEXTS[name])  # fmt: skip
    missing = [path for path, _ in named if not (ROOT / path).exists()]
    missing += [
        f"{path}::{function}"
        for path, function in named
        if function and path not in missing
        and not re.search(rf"^ *(async )?def {function}\b", (ROOT / path).read_text(), re.MULTILINE)
    ]  # fmt: skip
    assert missing == []


def test_the_reference_lists_every_public_name():
    """Every name of `alto` and `alto.testing` has an entry in the reference."""
    reference = "".join(text for name, text in TEXTS.items() if name.startswith("docs/reference/"))
    names = [f"alto.{name}" for name in alto.__all__]
    names += [f"alto.testing.{name}" for name in alto.testing.__all__]
    assert [name for name in names if not re.search(rf"{re.escape(name)}\b", reference)] == []


def test_the_table_of_errors_is_whole():
    """The page on errors has a row for every error of alto."""
    table = TEXTS["docs/reference/errors.md"]
    assert [name for name in alto.errors.__all__ if f"| `{name}`" not in table] == []
