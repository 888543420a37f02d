"""An app over the cells of a notebook, in a real kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel")
jupyter_client = pytest.importorskip("jupyter_client")

pytestmark = [pytest.mark.realtime, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

DEFINED = """
import asyncio, warnings
from collections.abc import AsyncIterator

import alto
from alto.testing import Scripted

engine = Scripted(lambda prompt: [prompt] * 20_000, delay=0.02)

@alto.stage
async def speak(word: str, *, llm: alto.LLM) -> AsyncIterator[str]:
    async for chunk in llm.generate(word, max_tokens=10**6):
        yield chunk.text

@alto.stage
async def shout(word: str) -> str:
    return word.upper()

@alto.pipeline
def say(word: alto.Stream[str]) -> alto.Stream[str]:
    return shout(speak(word))
"""


class Notebook:
    """A kernel, cell by cell."""

    def __init__(self, manager: Any, client: Any) -> None:
        """Of a kernel that runs already."""
        self.manager = manager
        self.client = client

    def begin(self, cell: str) -> str:
        """Run a cell, and do not wait."""
        return str(self.client.execute(cell))

    def until(self, cell: str, seen: Callable[[str], bool] | None = None) -> tuple[str, str]:
        """Read what a cell prints, until it is *seen* or the cell has ended; its error, if any."""
        printed, error = "", ""
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    printed += content["text"]
                case "execute_result":
                    printed += content["data"]["text/plain"]
                case "error":
                    error = f"{content['ename']}: {content['evalue']}"
                case "status" if content["execution_state"] == "idle":
                    return printed, error
                case _:
                    pass
            if seen is not None and seen(printed):
                return printed, error

    def run(self, cell: str) -> str:
        """Run a cell that must not fail."""
        printed, error = self.until(self.begin(cell))
        assert error == "", error
        return printed

    def settle(self) -> None:
        """Wait until nothing runs in it; the loop of a kernel runs between cells too."""
        end = time.monotonic() + 120
        while self.run("(app.statistics().open_requests, engine.statistics().running)") != "(0, 0)":
            assert time.monotonic() < end, "a request goes on"


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    """A kernel with the pipeline defined."""
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT), env={**os.environ, "PYTHONPATH": str(ROOT)})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        notebook = Notebook(manager, client)
        notebook.run(DEFINED)
        yield notebook
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_one_app_over_several_cells(notebook: Notebook) -> None:
    """It is opened in one cell, used in two, and closed in another."""
    notebook.run("app = await say.open(llm=engine)")
    first = "async with app.stream('a') as words:\n    print(await anext(words))"
    assert notebook.run(first) == "A\n"
    second = "async for word in app.stream('b'):\n    print(word)\n    break"
    assert notebook.run(second) == "B\n"
    notebook.settle()
    notebook.run("await app.aclose()")
    assert "closed" in notebook.run("app")
    _, error = notebook.until(notebook.begin("await app.run('a')"))
    assert error.startswith("Closed: this app of 'say' is closed")


@pytest.mark.parametrize(
    "cell",
    [
        "async for word in app.stream('a'):\n    print(word)",
        "words = app.stream('a')\nasync for word in words:\n    print(word)",
        "async with app.stream('a') as words:\n    async for word in words:\n        print(word)",
        "async for word in app.stream('a'):\n    print(word)\n    await asyncio.sleep(1000)",
        "print('A')\nawait app.run('a')",
    ],
    ids=["loop", "named", "block", "body", "run"],
)
def test_an_interrupted_cell(notebook: Notebook, cell: str) -> None:
    """It takes its requests with it, with the app open, and the next cell works."""
    # IPython keeps the traceback, and with it the frame of the cell; the collector is off.
    notebook.run("import gc; gc.disable(); app = await say.open(llm=engine)")
    begun = notebook.begin(cell)
    notebook.until(begun, lambda printed: "A" in printed)
    notebook.manager.interrupt_kernel()
    _, error = notebook.until(begun)
    assert error.partition(":")[0] in ("KeyboardInterrupt", "CancelledError")
    notebook.settle()
    again = "async with app.stream('b') as words:\n    print(await anext(words))"
    assert notebook.run(again) == "B\n"
    notebook.run("await app.aclose()")
    assert notebook.run("engine.statistics().running") == "0"


def test_a_redefined_stage_counts_when_its_pipeline_is_defined_again(notebook: Notebook) -> None:
    """A pipeline has the stages it was declared with; an open app has those of its pipeline."""
    read = "async with app.stream('a') as words:\n    print(await anext(words))"
    notebook.run("app = await say.open(llm=engine)")
    notebook.run("@alto.stage\nasync def shout(word: str) -> str:\n    return word + '!'")
    assert notebook.run(read) == "A\n"
    notebook.run(
        "@alto.pipeline\n"
        "def say(word: alto.Stream[str]) -> alto.Stream[str]:\n    return shout(speak(word))"
    )
    assert notebook.run(read) == "A\n"
    notebook.run("old, app = app, await say.open(llm=engine)\nawait old.aclose()")
    assert notebook.run(read) == "a!\n"
    notebook.run("await app.aclose()")


def test_run_sync_is_refused_and_says_what_to_write(notebook: Notebook) -> None:
    """A cell runs in an event loop already."""
    _, error = notebook.until(notebook.begin("say.run_sync('a', llm=engine)"))
    assert error.startswith("RuntimeError")
    assert "await" in error


def test_an_app_that_was_never_closed_warns(notebook: Notebook) -> None:
    """Its name is bound again: it warns, and is closed; nothing of it runs on."""
    notebook.run("warnings.simplefilter('always')")
    notebook.run(
        "app = await say.open(llm=engine)\nwords = app.stream('a'); await anext(words); None"
    )
    notebook.run("del words; import sys")
    begun = notebook.begin("import gc\napp = None\nfor _ in range(20): await asyncio.sleep(0.01)")
    printed, error = notebook.until(begun)
    assert error == ""
    assert "ResourceWarning: an app of 'say' was never closed" in printed
    assert notebook.run("engine.statistics().running") == "0"


def test_a_kernel_ends_with_an_app_open(notebook: Notebook) -> None:
    """Shutting it down, with an app and a request open, hangs on nothing."""
    notebook.run(
        "app = await say.open(llm=engine)\nwords = app.stream('a')\nprint(await anext(words))"
    )
    notebook.client.shutdown()
    notebook.manager.shutting_down = True
    end = time.monotonic() + 120
    while notebook.manager.is_alive():
        assert time.monotonic() < end, "the kernel hangs"
        time.sleep(0.05)
