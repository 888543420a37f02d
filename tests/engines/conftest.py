"""A real engine, shared by the tests that need one, because a start takes tens of seconds."""

from __future__ import annotations

import os

import pytest
import pytest_asyncio

from alto.engines._vllm.engine import VLLMEngine
from alto.engines.tiny import build_tiny_llama

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture
def _no_task_is_left() -> None:
    """Allow tasks that outlive a test: an engine's own run until it stops, on the session's loop."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with a tiny model of random weights."""
    return str(build_tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def small() -> dict[str, object]:
    """Engine arguments for the tiny model."""
    return {
        "max_model_len": 512,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 512,
        "block_size": 32,
        "kv_cache_memory_bytes": 64 << 20,
        "enforce_eager": True,
    }


@pytest.fixture(scope="session")
def vllm_environment():
    """Keep vLLM quiet and offline."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_engine(tiny_model, small, vllm_environment):
    """One engine for all tests, not necessarily running; stopped after the last of them."""
    engine = VLLMEngine(tiny_model, **small)
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def engine(shared_engine):
    """The shared engine, running; started again if a test has stopped or killed it."""
    await shared_engine.start()
    return shared_engine
