"""Setup shared by all tests: event loops, Hypothesis profiles, groups, and a check for leaked tasks.

Async tests run on virtual time (`alto.testing.VirtualClockLoop`): seconds cost nothing and times are
asserted exactly. A test marked ``realtime`` or ``vllm`` has the ordinary loop, because threads and
other processes live in real time.

Tests are spread over all cores. Files with tests marked ``vllm`` run in one worker, so that they
share engines.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import settings

from alto.testing import VirtualClockLoop

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

VLLM_WARNINGS = (
    # raised in torch while vLLM is imported
    r"ignore:.*torch\.jit\.:DeprecationWarning",
    # vLLM leaves the context of its handshake with a new child to the garbage collector
    "ignore:Unclosed context <zmq:ResourceWarning",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Spread tests one by one, but for the files with tests that need vLLM, which stay together.

    ``--dist=loadgroup`` would do, but xdist 3.8 writes the group to a field that pytest 9.2 no longer
    reads.
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415  # only with xdist

    class OneWorkerForVllm(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "vllm" if _needs_vllm(config.rootpath / nodeid.partition("::")[0]) else nodeid

    return OneWorkerForVllm(config, log)


@functools.cache
def _needs_vllm(file: Path) -> bool:
    return "mark.vllm" in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow vLLM's warnings in tests that need it, and skip these where it is missing."""
    marks = [pytest.mark.filterwarnings(warning) for warning in VLLM_WARNINGS]
    if importlib.util.find_spec("vllm") is None:
        marks.append(pytest.mark.skip(reason="vllm is not installed"))
    for item in items:
        if item.get_closest_marker("vllm"):
            for mark in marks:
                item.add_marker(mark)


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the loop of an async test: virtual time, or the ordinary one where it is marked."""
    if item.get_closest_marker("realtime") or item.get_closest_marker("vllm"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualClockLoop}


@pytest.fixture(autouse=True)
def _no_task_is_left(request: pytest.FixtureRequest) -> None:
    """Fail an async test that ends while tasks it started are still running."""
    if inspect.iscoroutinefunction(getattr(request.function, "__wrapped__", request.function)):
        request.getfixturevalue("_task_watch")


@pytest.fixture
async def _task_watch() -> AsyncIterator[None]:
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        names = ", ".join(sorted(repr(task) for task in left))
        pytest.fail(f"{len(left)} task(s) outlived the test: {names}", pytrace=False)
