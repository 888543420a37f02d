"""Pipelines of language models and plain code that stream partial results from stage to stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alto import app as app
from alto import errors as errors
from alto import events as events
from alto import executors as executors
from alto import model as model
from alto import protocols as protocols
from alto import routing as routing
from alto import text as text
from alto._graph.spec import PerReplica as PerReplica
from alto._graph.spec import per_replica as per_replica
from alto.app import App as App
from alto.app import Failed as Failed
from alto.app import Result as Result
from alto.app import Succeeded as Succeeded
from alto.errors import AltoError as AltoError
from alto.errors import Closed as Closed
from alto.errors import DeadlineExceeded as DeadlineExceeded
from alto.errors import EngineError as EngineError
from alto.errors import GraphError as GraphError
from alto.errors import InputError as InputError
from alto.errors import InvalidRequest as InvalidRequest
from alto.errors import OutputError as OutputError
from alto.errors import Overloaded as Overloaded
from alto.errors import RequestCancelled as RequestCancelled
from alto.errors import RequestError as RequestError
from alto.errors import ResourceError as ResourceError
from alto.errors import StageError as StageError
from alto.llm import LLM as LLM
from alto.llm import Generation as Generation
from alto.llm import TypedGeneration as TypedGeneration
from alto.model import Chunk as Chunk
from alto.model import Message as Message
from alto.operators import Output as Output
from alto.operators import Pane as Pane
from alto.operators import collect as collect
from alto.operators import count as count
from alto.operators import first as first
from alto.operators import merge as merge
from alto.operators import outputs as outputs
from alto.operators import reduce as reduce
from alto.operators import switch as switch
from alto.operators import top_k as top_k
from alto.operators import total as total
from alto.operators import where as where
from alto.pipeline import Pipeline as Pipeline
from alto.pipeline import pipeline as pipeline
from alto.protocols import Engine as Engine
from alto.stage import Stage as Stage
from alto.stage import stage as stage
from alto.stream import Group as Group
from alto.stream import Stream as Stream

if TYPE_CHECKING:
    from alto.engines.vllm import VLLM as VLLM

    __version__: str

__all__ = (
    "AltoError",
    "App",
    "Chunk",
    "Closed",
    "DeadlineExceeded",
    "Engine",
    "EngineError",
    "Failed",
    "Generation",
    "GraphError",
    "Group",
    "InputError",
    "InvalidRequest",
    "LLM",
    "Message",
    "Output",
    "OutputError",
    "Overloaded",
    "Pane",
    "PerReplica",
    "Pipeline",
    "RequestCancelled",
    "RequestError",
    "ResourceError",
    "Result",
    "Stage",
    "StageError",
    "Stream",
    "Succeeded",
    "TypedGeneration",
    "VLLM",
    "app",
    "collect",
    "count",
    "errors",
    "events",
    "executors",
    "first",
    "merge",
    "model",
    "outputs",
    "per_replica",
    "pipeline",
    "protocols",
    "reduce",
    "routing",
    "stage",
    "switch",
    "text",
    "top_k",
    "total",
    "where",
)


_MOVED = {
    "app": (
        "AppStatistics",
        "MapHandle",
        "Progress",
        "ReplicaStatistics",
        "RequestUsage",
        "StageStatistics",
        "StreamHandle",
    ),
    "errors": (
        "BufferExceeded",
        "EngineDied",
        "EngineStartError",
        "GenerationFailed",
        "OutputTruncated",
        "PromptTooLong",
        "RoutingError",
        "WorkerDied",
    ),
    "model": (
        "Completion",
        "EmbedRequest",
        "Embedding",
        "EngineCapacity",
        "EngineStatistics",
        "FinishReason",
        "GenerateRequest",
        "Origin",
        "Path",
        "Prompt",
        "StageInfo",
        "StreamedPrompt",
        "TokenLogprob",
        "Usage",
    ),
    "protocols": (
        "CacheListener",
        "Embedder",
        "Executor",
        "Member",
        "Observer",
    ),
}
"""Names that were here, by the module in which they are now."""


def __getattr__(name: str) -> object:
    """Import what is slow to import or to look up at its first use."""
    if name == "VLLM":
        from alto.engines.vllm import VLLM  # noqa: PLC0415  # only for programs that use it

        return VLLM
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # 10 ms that few programs need

        return version("alto-llm")
    for module, names in _MOVED.items():
        if name in names:
            msg = f"alto.{name} is in alto.{module} now: from alto.{module} import {name}"
            raise AttributeError(msg)
    msg = f"module 'alto' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
