"""Vectors and scores from engines that pool: run many prompts at once, compare two vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

import anyio

from alto._current_call import Account
from alto.errors import InvalidRequest
from alto.model import Embedding, EmbedRequest, Usage
from alto.protocols import Embedder, Engine

__all__ = ("Vector", "cosine", "embed_all", "pools")

Vector = tuple[float, ...]
"""One number for each dimension of the model."""


def pools(engine: Engine) -> Embedder:
    """Return *engine*, if it gives vectors or scores.

    Raises:
        InvalidRequest: It gives none.
    """
    if not isinstance(engine, Embedder):
        msg = (
            f"engine {engine.name!r} generates, and gives no vectors or scores; "
            f"start one that pools: alto.VLLM(model, runner='pooling')"
        )
        raise InvalidRequest(msg)
    return engine


async def embed_all(engine: Engine, requests: Sequence[EmbedRequest]) -> list[Embedding]:
    """Run all *requests* at once, and return the answers in their order.

    The first error is raised, and the other requests are aborted. Cancellation: all are aborted.
    """
    embedder = pools(engine)
    if len(requests) == 1:
        return [await _embed(embedder, engine.name, requests[0])]
    answers: dict[int, Embedding] = {}
    failed: list[Exception] = []

    async def run(index: int, request: EmbedRequest) -> None:
        try:
            answers[index] = await _embed(embedder, engine.name, request)
        except Exception as error:  # noqa: BLE001  # raised below, without a group around it
            failed.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, request in enumerate(requests):
            group.start_soon(run, index, request)
    if failed:
        raise failed[0]
    return [answers[index] for index in range(len(requests))]


async def _embed(embedder: Embedder, name: str, request: EmbedRequest) -> Embedding:
    account = Account(name)
    account.begin()
    try:
        answer = await embedder.embed(request)
    except BaseException as error:
        account.end(error)
        raise
    account.usage = Usage(prompt_tokens=answer.prompt_tokens)
    account.end(None)
    return answer


def cosine(one: Vector, other: Vector) -> float:
    """Return the cosine of the angle between two vectors, -1 to 1; 0 if one of them is all zeros."""
    size = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / size if size else 0.0
