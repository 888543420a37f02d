"""Fixtures that yield an app, in a pytest run of their own: of pytest-asyncio, and of anyio."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.realtime, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

PIPELINE = """
import asyncio, contextlib, contextvars
from collections.abc import AsyncIterator

import pytest

import alto
from alto.testing import Scripted


@alto.stage
async def letters(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    async for chunk in llm.generate(word):
        yield chunk.text


@alto.pipeline
def spell(word: alto.Stream[str]) -> alto.Stream[str]:
    return letters(word)


ENGINE = Scripted({"ab": ["a", "b"]}, delay=0.01)
"""

USES = """
async def test_runs(app):
    assert await app.run("ab") == ["a", "b"]


async def test_leaves(app):
    async for letter in app.stream("ab"):
        break


async def test_leaves_a_stream_open(app):
    stream = app.stream("ab")
    assert await anext(stream) == "a"
    await stream.aclose()
    assert app.statistics().open_requests == 0


async def test_is_cut(app):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await app.run("ab")
    assert app.statistics().open_requests == 0
"""

FIXTURE = """
@pytest_asyncio.fixture(loop_scope="{scope}", scope="{scope}")
async def app():
    async with spell.open(llm=ENGINE) as app:
        yield app
    assert ENGINE.statistics().running == 0


pytestmark = pytest.mark.asyncio(loop_scope="{scope}")
"""

NO_BLOCK = """
@pytest_asyncio.fixture(loop_scope="{scope}", scope="{scope}")
async def app():
    app = await spell.open(llm=ENGINE)
    yield app
    await app.drain(timeout=10)
    await app.aclose()


pytestmark = pytest.mark.asyncio(loop_scope="{scope}")
"""

ANYIO = """
@pytest.fixture(scope="{scope}")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="{scope}")
async def app(anyio_backend):
    async with spell.open(llm=ENGINE) as app:
        yield app


pytestmark = pytest.mark.anyio
"""

TRIO = """
@pytest.fixture
def anyio_backend():
    return "trio"


@pytest.fixture
async def app(anyio_backend):
    with pytest.raises(RuntimeError, match="needs asyncio.*trio") as caught:
        async with spell.open(llm=ENGINE) as app:
            pass
    yield caught.value


@pytest.mark.anyio
async def test_says_what_to_do(app):
    assert "anyio_backend" in str(app)
    with pytest.raises(RuntimeError, match="needs asyncio.*trio"):
        await spell.open(llm=ENGINE)
"""


def inner_run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run it as a test file of its own. Warnings are errors."""
    (folder / "test_inner.py").write_text(PIPELINE + text)
    own = "" if "no:asyncio" in options else "asyncio_default_fixture_loop_scope = function\n"
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{own}")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "-p", "no:langsmith_plugin", *options, "test_inner.py"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("scope", ["function", "module", "session"])
@pytest.mark.parametrize("fixture", [FIXTURE, NO_BLOCK], ids=["block", "no-block"])
def test_pytest_asyncio(tmp_path: Path, fixture: str, scope: str) -> None:
    """A fixture of pytest-asyncio yields an app, in every scope of loop and fixture."""
    text = "import pytest_asyncio\n" + fixture.replace("{scope}", scope) + USES
    done = inner_run(tmp_path, text)
    assert "4 passed" in done.stdout, done.stdout
    assert "error" not in done.stdout


@pytest.mark.parametrize("scope", ["function", "module", "session"])
def test_anyio(tmp_path: Path, scope: str) -> None:
    """So does one of anyio's plugin."""
    done = inner_run(tmp_path, ANYIO.replace("{scope}", scope) + USES, "-p", "no:asyncio")
    assert "4 passed" in done.stdout, done.stdout
    assert "error" not in done.stdout


def test_a_failing_test_does_not_hide_behind_its_fixture(tmp_path: Path) -> None:
    """A test that fails with requests open fails, and the fixture is torn down as ever."""
    text = "import pytest_asyncio\n" + FIXTURE.replace("{scope}", "function") + USES
    text += """

async def test_fails(app):
    kept = app.stream("ab")
    await anext(kept)
    assert kept is None, "this one"
"""
    done = inner_run(tmp_path, text)
    assert "1 failed, 4 passed" in done.stdout, done.stdout
    assert "this one" in done.stdout


def test_trio_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Under trio, opening says that alto needs asyncio, and what to do."""
    pytest.importorskip("trio")
    done = inner_run(tmp_path, TRIO, "-p", "no:asyncio")
    assert "1 passed" in done.stdout, done.stdout
