"""Vectors and scores from a vLLM engine that pools."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast, final

from alto.engines._vllm.tokens import Tokens
from alto.errors import InvalidRequest
from alto.model import Embedding, EmbedRequest

__all__ = ("Pooling", "pools")


def pools(config: Any, /) -> bool:  # noqa: ANN401  # vLLM is not typed here
    """Return whether an engine of this configuration was started to pool."""
    return getattr(config.model_config, "runner_type", "generate") == "pooling"


@final
class Pooling:
    """Translation of requests and answers for an engine that pools. Needs vllm.

    Args:
        name: Of the engine, for messages.
        engine: vLLM's.
        tokens: Its tokenizer.
    """

    def __init__(self, name: str, engine: Any, tokens: Tokens, /) -> None:  # noqa: ANN401  # as above
        from vllm import PoolingParams

        self._params = PoolingParams
        self._name = name
        self._engine = engine
        self._tokens = tokens
        config = engine.vllm_config.model_config
        kind = getattr(config, "score_type", None)
        self.scores_pairs = kind == "cross-encoder" or bool(
            getattr(config, "is_cross_encoder", False)
        )
        """True if the model reads a pair at once and scores it."""

    async def prepare(self, request: EmbedRequest, /) -> tuple[list[int], Any]:
        """Return the tokens of *request*, and vLLM's parameters for it.

        Raises:
            InvalidRequest: The model does not support this task.
        """
        if request.pair is not None:
            if not self.scores_pairs:
                msg = (
                    f"the model of engine {self._name!r} does not score pairs; compare vectors "
                    f"of the two texts, or start a cross-encoder (convert='classify')"
                )
                raise InvalidRequest(msg)
            await self._check_task("classify", "scores")
            assert isinstance(request.prompt, str)
            make = partial(self._pair, request.prompt, request.pair)
            token_ids, extra = await self._tokens.in_thread(make)
            return token_ids, self._params(task="classify", **extra)
        task = "token_embed" if request.tokens else "embed"
        await self._check_task(task, "a vector per token" if request.tokens else "vectors")
        return await self._tokens.of(request.prompt), self._params(task=task)

    def embedding(self, request: EmbedRequest, data: Any, prompt_tokens: int, /) -> Embedding:  # noqa: ANN401  # as above
        """Return the tensor *data* as an embedding."""
        rows = data.tolist()
        if request.pair is not None:
            score = rows[0] if isinstance(rows, list) else rows
            return Embedding(vectors=((float(score),),), prompt_tokens=prompt_tokens)
        vectors = rows if request.tokens else [rows]
        return Embedding(vectors=tuple(map(tuple, vectors)), prompt_tokens=prompt_tokens)

    async def _check_task(self, task: str, what: str) -> None:
        tasks = await self._engine.get_supported_tasks()
        if task not in tasks:
            msg = (
                f"the model of engine {self._name!r} does not give {what}; "
                f"it can {', '.join(sorted(tasks))}; see the engine argument convert"
            )
            raise InvalidRequest(msg)

    def _pair(self, first: str, second: str) -> tuple[list[int], dict[str, Any]]:
        """Return the tokens of a pair, joined as the model was trained."""
        tokenizer, config = self._tokens.tokenizer, self._engine.vllm_config.model_config
        template = _score_template(config)
        if template is not None:
            encoded = tokenizer(text=template(first, second))
        elif getattr(config, "use_sep_token", True):
            encoded = tokenizer(text=first, text_pair=second)
        else:
            encoded = tokenizer(text=first + second)
        kinds = encoded.get("token_type_ids")
        extra = {}
        if kinds and 1 in kinds:  # vLLM wants where the second text begins
            extra["extra_kwargs"] = {"compressed_token_type_ids": kinds.index(1)}
        return list(encoded["input_ids"]), extra


def _score_template(config: Any) -> Callable[[str, str], str] | None:  # noqa: ANN401  # as above
    """Return the function of the model's own code that joins a pair into one text; None: it has none."""
    try:
        from vllm.model_executor.model_loader import get_model_cls
        from vllm.model_executor.models.interfaces import supports_score_template
    except ImportError:
        return None
    model = get_model_cls(config)
    template: Any = model.get_score_template if supports_score_template(model) else None
    return cast("Callable[[str, str], str] | None", template)
