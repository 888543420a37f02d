"""What every test stands on: the loop, the profiles, and a watch for tasks left behind.

Async tests run on virtual time (`alto.testing.VirtualClockLoop`): seconds cost nothing and times are
asserted exactly. A test marked ``realtime`` or ``vllm`` has the ordinary loop, since threads and
other processes live in real time.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import settings

from alto.testing import VirtualClockLoop

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Give an async test the virtual loop, or the ordinary one where it is marked for it."""
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
