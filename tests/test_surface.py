"""What alto shows to the world, and the budgets that keep it readable."""

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import alto

HOME = Path(alto.__file__).parent
ROOT = Path(__file__).parents[1]
HEAVY = {"vllm", "torch", "transformers"}
NEEDED = {"alto", "anyio", "attr", "attrs", "idna", "sniffio", "typing_extensions"}
"""Top-level modules that ``import alto`` may load: its requirements, and what those require."""


def _name(path: Path) -> str:
    parts = path.relative_to(HOME.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(HOME.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
MODULES = {_name(path): path for path in FILES}
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _docstring_lines(node: Function) -> int:
    first = node.body[0]
    text = ast.get_docstring(node)
    return 0 if text is None else (first.end_lineno or first.lineno) - first.lineno + 1


def _functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _long_lines(path: Path) -> set[int]:
    """Numbers of the lines that give a reason for being long."""
    lines = path.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if re.search(r"# long: \w", line)}


def _fresh_import(module: str) -> set[str]:
    """Top-level modules that importing *module* loads in a fresh interpreter."""
    code = (
        "import sys, json; before = set(sys.modules)\n"
        f"import {module}\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def _needs_heavy(name: str) -> bool:
    """Whether a module imports vllm, torch or transformers at its top."""
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for node in TREES[MODULES[name]].body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return bool(imported & HEAVY)


def _resolves(module: types.ModuleType, name: str) -> bool:
    """Whether a module has a name; one that needs a missing vllm says so by an ImportError."""
    try:
        return hasattr(module, name)
    except ImportError as error:
        return error.name in HEAVY


@pytest.fixture(params=PUBLIC)
def module(request: pytest.FixtureRequest) -> types.ModuleType:
    """Each public module in turn, but those of a vllm that is not installed."""
    if _needs_heavy(request.param):
        pytest.importorskip("vllm", exc_type=ImportError)
    return importlib.import_module(request.param)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at a module's top level, those under ``if TYPE_CHECKING`` among them."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _top_level([*node.body, *node.orelse])
        else:
            yield node


def _is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in {
        "ParamSpec",
        "TypeVar",
        "TypeVarTuple",
    }


def _defined(module: types.ModuleType) -> set[str]:
    """Public names that a module makes at its top level, and those it imports ``X as X``."""
    names: set[str] = set()
    for node in _top_level(TREES[Path(module.__file__)].body):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign() if not _is_type_variable(node.value):
                targets = [part for target in node.targets for part in ast.walk(target)]
                names.update(part.id for part in targets if isinstance(part, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Import() | ast.ImportFrom():
                names.update(a.name for a in node.names if a.asname == a.name)
            case _:
                pass
    return {name for name in names if not name.startswith("_")}


def _taken_from_private(module: types.ModuleType) -> set[str]:
    """Names that a module imports from alto's private modules, and may show as its own."""
    return {
        alias.asname or alias.name
        for node in _top_level(TREES[Path(module.__file__)].body)
        if isinstance(node, ast.ImportFrom) and re.match(r"alto\..*\b_[a-z]", f"{node.module}")
        for alias in node.names
    }


def test_all_is_a_sorted_tuple(module):
    """Every public module has `__all__`, a sorted tuple without doubles."""
    assert isinstance(module.__all__, tuple)
    assert list(module.__all__) == sorted(set(module.__all__))


def test_all_holds_what_the_module_defines(module):
    """`__all__` equals the module's public names, both ways, and each of them is there."""
    defined = _defined(module)
    assert defined - {"__version__"} <= set(module.__all__)
    assert set(module.__all__) - defined <= _taken_from_private(module) | {"__version__"}
    assert [name for name in module.__all__ if not _resolves(module, name)] == []


def test_importing_alto_is_light():
    """`import alto` loads anyio, attrs and the standard library only."""
    loaded = _fresh_import("alto")
    assert loaded - set(sys.stdlib_module_names) - NEEDED == set()


def test_importing_the_engines_loads_no_engine():
    """`import alto.engines` needs neither vllm nor torch nor transformers."""
    assert not _fresh_import("alto.engines") & HEAVY


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_module_imports_the_root(path):
    """Inside alto only the root and the test kit import from `alto` itself."""
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert (
        "alto" not in imported
        or path == HOME / "__init__.py"
        or path.is_relative_to(HOME / "testing")
    )


def test_one_version():
    """pyproject.toml, the installed metadata and the top of the change log agree."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[?v?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert importlib.metadata.version("alto-llm") == version
    assert headings[0] == version


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_function_is_over_60_lines(path):
    """A function stops at 60 lines, docstring apart, unless its head says `# long:` and why."""
    excused = _long_lines(path)
    over = {}
    for node in _functions(TREES[path]):
        lines = (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
        head = range(node.lineno, node.body[0].lineno + 1)
        if lines > 60 and not excused & set(head):
            over[node.name] = lines
    assert not over


def _undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    overloaded = re.compile(r"overload$")
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if any(overloaded.search(ast.unparse(mark)) for mark in node.decorator_list):
            continue
        if ast.get_docstring(node) is None:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_everything_public_has_a_docstring(path):
    """Every module, public class, function and method says what it is, in private files too."""
    assert ast.get_docstring(TREES[path]), "the module has none"
    assert list(_undocumented(TREES[path].body, "")) == []


@pytest.mark.parametrize(
    "path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix()
)
def test_every_test_says_what_it_tests(path):
    """Every test has a docstring of one sentence."""
    bad = {
        node.name: text
        for node in _functions(ast.parse(path.read_text()))
        if node.name.startswith("test")
        and not _is_one_sentence(text := ast.get_docstring(node) or "")
    }
    assert not bad


def _is_one_sentence(text: str) -> bool:
    """Whether a text has one full stop, at its end, not counting those inside code."""
    plain = re.sub(r"`+[^`]*`+", "code", text)
    return bool(plain) and plain.endswith(".") and not re.search(r"[.!?]\s+[A-Z]", plain[:-1])


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_docstring_opens_with_a_question_word(path):
    """A docstring opens with a verb or a noun, never with What, Which, Whether or their like."""
    opens = re.compile(r"(What|Which|Whether|How|Who|Whose|Whom|Where|When|Why)\b")
    kinds = ast.Module | ast.ClassDef | Function
    found = {
        getattr(node, "name", "module"): text.partition("\n")[0]
        for node in ast.walk(TREES[path])
        if isinstance(node, kinds) and opens.match(text := ast.get_docstring(node) or "")
    }
    assert not found


def test_no_two_public_classes_have_one_name():
    """A class's name is unique among the public modules; the same object may be shown twice."""
    classes: dict[str, set[type]] = {}
    for name in PUBLIC:
        if _needs_heavy(name):
            continue
        found = importlib.import_module(name)
        for shown in found.__all__:
            if _resolves(found, shown) and isinstance(one := getattr(found, shown), type):
                classes.setdefault(shown, set()).add(one)
    assert {name: ones for name, ones in classes.items() if len(ones) > 1} == {}
