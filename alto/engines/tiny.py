"""A Llama of half a million random weights, for tests and demonstrations of real engines.

It is built locally, so nothing is downloaded. A vLLM engine serves it with text in and text out.
Its output is meaningless printable characters. Greedy decoding never generates an end token, so
``max_tokens``, a stop text or a constraint ends a generation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ("build_tiny_llama",)

_SPECIAL = ("<s>", "</s>", "<pad>")
_RECIPE = 2
"""Version of the files; increment it when they change for equal settings, to rebuild old folders."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_tiny_llama(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    layers: int = 2,
    context: int = 2048,
    chat: bool = True,
) -> Path:
    """Write a tiny random Llama and its byte-level tokenizer into *folder*.

    Needs ``numpy`` and ``tokenizers``, which vLLM brings.

    Args:
        folder: Folder for the model; created if missing.
        seed: Seed of the weights. Equal settings give equal files.
        layers: Depth of the model.
        context: Longest sequence, in tokens (bytes of text, here).
        chat: Whether the tokenizer has a chat template.

    Returns:
        The folder, to pass to :class:`alto.engines.vllm.VLLM`. It is left unchanged if it already
        holds this model.
    """
    target = Path(folder)
    settings = {
        "recipe": _RECIPE,
        "seed": seed,
        "layers": layers,
        "context": context,
        "chat": chat,
    }
    done = target / "tiny_llama.json"
    if done.is_file() and json.loads(done.read_text()) == settings:
        return target
    target.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    vocabulary = _write_tokenizer(target, context=context, chat=chat)
    config = _config(vocabulary=len(vocabulary), layers=layers, context=context)
    _write_json(target / "config.json", config)
    _write_weights(target, config, vocabulary, seed)
    _write_json(done, settings)  # last: a half-built folder is never taken for a whole one
    return target


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _config(*, vocabulary: int, layers: int, context: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }


def _write_tokenizer(target: Path, *, context: int, chat: bool) -> dict[str, int]:
    """Write a tokenizer with one token per byte, after the special ones; return text to id."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in _SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if chat:
        described["chat_template"] = _CHAT_TEMPLATE
    _write_json(target / "tokenizer_config.json", described)
    return vocabulary


def _write_weights(
    target: Path, config: dict[str, Any], vocabulary: dict[str, int], seed: int
) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)

    def weight(rows: int, columns: int) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) * 0.02).astype(np.float32)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    ones = np.ones(hidden, dtype=np.float32)
    tensors = {"model.embed_tokens.weight": weight(len(vocabulary), hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = ones
        tensors[f"{layer}.self_attn.q_proj.weight"] = weight(queries, hidden)
        tensors[f"{layer}.self_attn.k_proj.weight"] = weight(keys, hidden)
        tensors[f"{layer}.self_attn.v_proj.weight"] = weight(keys, hidden)
        tensors[f"{layer}.self_attn.o_proj.weight"] = weight(hidden, queries)
        tensors[f"{layer}.post_attention_layernorm.weight"] = ones
        tensors[f"{layer}.mlp.gate_proj.weight"] = weight(inner, hidden)
        tensors[f"{layer}.mlp.up_proj.weight"] = weight(inner, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = weight(hidden, inner)
    tensors["model.norm.weight"] = ones
    head = weight(len(vocabulary), hidden)
    silent = [i for text, i in vocabulary.items() if not (len(text) == 1 and " " < text <= "~")]
    head[silent] = 0.0  # a logit of 0 never wins against the best of a hundred random ones
    tensors["lm_head.weight"] = head
    _write_safetensors(target / "model.safetensors", tensors)


def _write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write *tensors* as bfloat16, which numpy lacks: length of a JSON header, header, data."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    size = 0
    for name, tensor in tensors.items():
        data = (tensor.view(np.uint32) >> 16).astype("<u2").tobytes()
        place = [size, size + len(data)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": place}
        parts.append(data)
        size += len(data)
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)
    path.write_bytes(len(described).to_bytes(8, "little") + described + b"".join(parts))
