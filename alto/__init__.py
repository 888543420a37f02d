"""Pipelines of language models and plain code that stream partial results from stage to stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alto import events as events
from alto import executors as executors
from alto import routing as routing
from alto import text as text
from alto._graph.spec import PerReplica as PerReplica
from alto._graph.spec import per_replica as per_replica
from alto.app import App as App
from alto.app import AppStatistics as AppStatistics
from alto.app import Failed as Failed
from alto.app import MapHandle as MapHandle
from alto.app import Progress as Progress
from alto.app import ReplicaStatistics as ReplicaStatistics
from alto.app import RequestUsage as RequestUsage
from alto.app import Result as Result
from alto.app import StageStatistics as StageStatistics
from alto.app import StreamHandle as StreamHandle
from alto.app import Succeeded as Succeeded
from alto.errors import AltoError as AltoError
from alto.errors import BufferExceeded as BufferExceeded
from alto.errors import Closed as Closed
from alto.errors import DeadlineExceeded as DeadlineExceeded
from alto.errors import EngineDied as EngineDied
from alto.errors import EngineError as EngineError
from alto.errors import EngineStartError as EngineStartError
from alto.errors import GenerationFailed as GenerationFailed
from alto.errors import GraphError as GraphError
from alto.errors import InputError as InputError
from alto.errors import InvalidRequest as InvalidRequest
from alto.errors import OutputError as OutputError
from alto.errors import OutputTruncated as OutputTruncated
from alto.errors import Overloaded as Overloaded
from alto.errors import PromptTooLong as PromptTooLong
from alto.errors import RequestCancelled as RequestCancelled
from alto.errors import RequestError as RequestError
from alto.errors import ResourceError as ResourceError
from alto.errors import RoutingError as RoutingError
from alto.errors import StageError as StageError
from alto.errors import WorkerDied as WorkerDied
from alto.llm import LLM as LLM
from alto.llm import Generation as Generation
from alto.llm import TypedGeneration as TypedGeneration
from alto.model import Chunk as Chunk
from alto.model import Completion as Completion
from alto.model import Embedding as Embedding
from alto.model import EmbedRequest as EmbedRequest
from alto.model import EngineCapacity as EngineCapacity
from alto.model import EngineStatistics as EngineStatistics
from alto.model import FinishReason as FinishReason
from alto.model import GenerateRequest as GenerateRequest
from alto.model import Message as Message
from alto.model import Origin as Origin
from alto.model import Path as Path
from alto.model import Prompt as Prompt
from alto.model import StageInfo as StageInfo
from alto.model import StreamedPrompt as StreamedPrompt
from alto.model import TokenLogprob as TokenLogprob
from alto.model import Usage as Usage
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
from alto.protocols import CacheListener as CacheListener
from alto.protocols import Embedder as Embedder
from alto.protocols import Engine as Engine
from alto.protocols import Executor as Executor
from alto.protocols import Member as Member
from alto.protocols import Observer as Observer
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
    "AppStatistics",
    "BufferExceeded",
    "CacheListener",
    "Chunk",
    "Closed",
    "Completion",
    "DeadlineExceeded",
    "EmbedRequest",
    "Embedder",
    "Embedding",
    "Engine",
    "EngineCapacity",
    "EngineDied",
    "EngineError",
    "EngineStartError",
    "EngineStatistics",
    "Executor",
    "Failed",
    "FinishReason",
    "GenerateRequest",
    "Generation",
    "GenerationFailed",
    "GraphError",
    "Group",
    "InputError",
    "InvalidRequest",
    "LLM",
    "MapHandle",
    "Member",
    "Message",
    "Observer",
    "Origin",
    "Output",
    "OutputError",
    "OutputTruncated",
    "Overloaded",
    "Pane",
    "Path",
    "PerReplica",
    "Pipeline",
    "Progress",
    "Prompt",
    "PromptTooLong",
    "ReplicaStatistics",
    "RequestCancelled",
    "RequestError",
    "RequestUsage",
    "ResourceError",
    "Result",
    "RoutingError",
    "Stage",
    "StageError",
    "StageInfo",
    "StageStatistics",
    "Stream",
    "StreamHandle",
    "StreamedPrompt",
    "Succeeded",
    "TokenLogprob",
    "TypedGeneration",
    "Usage",
    "VLLM",
    "WorkerDied",
    "collect",
    "count",
    "events",
    "executors",
    "first",
    "merge",
    "outputs",
    "per_replica",
    "pipeline",
    "reduce",
    "routing",
    "stage",
    "switch",
    "text",
    "top_k",
    "total",
    "where",
)


def __getattr__(name: str) -> object:
    """What is dear to import, or to look up, at its first use."""
    if name == "VLLM":
        from alto.engines.vllm import VLLM  # noqa: PLC0415  # not for those who have an engine

        return VLLM
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # 10 ms that few need

        return version("alto-llm")
    msg = f"module 'alto' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
