from __future__ import annotations

import json

import pytest

from alto.engines._vllm.arguments import (
    check_model_folder,
    engine_arguments,
    lora_arguments,
    memory_remedy,
    unknown_arguments,
)

KNOWN = frozenset(
    {
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "scheduling_policy",
        "disable_log_stats",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
    }
)
GIB = 1 << 30


def _arguments(*, known=KNOWN, cpu=True, memory=16 * GIB, cache_chosen=False, **given):
    return engine_arguments(
        "m", given, known=known, cpu=cpu, memory=memory, cache_chosen=cache_chosen
    )


def test_defaults_are_said_in_full_on_a_cpu():
    """What vLLM would choose by itself depends on too much, so it is chosen here."""
    assert _arguments() == {
        "model": "m",
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        "kv_cache_memory_bytes": 2 * GIB,
    }


def test_a_gpu_sizes_its_own_cache():
    """On a GPU the share of its memory is vLLM's business."""
    arguments = _arguments(cpu=False)
    assert "kv_cache_memory_bytes" not in arguments
    assert (arguments["max_num_seqs"], arguments["max_num_batched_tokens"]) == (256, 8192)


def test_what_is_given_wins():
    """Every default can be overridden, and anything else passes through."""
    given = {"max_num_seqs": 2, "scheduling_policy": "fcfs", "kv_cache_memory_bytes": 5, "other": 1}
    arguments = _arguments(**given)
    assert {name: arguments[name] for name in given} == given


def test_a_large_batch_gets_tokens_enough():
    """The tokens of a step are at least one for each sequence."""
    assert _arguments(max_num_seqs=5000)["max_num_batched_tokens"] == 5000


@pytest.mark.parametrize(
    "options", [{"cache_chosen": True}, {"gpu_memory_utilization": 0.5}, {"memory": 0}]
)
def test_a_cache_size_that_is_set_otherwise_is_left_alone(options):
    """By the environment or by another argument."""
    assert not _arguments(**options).get("kv_cache_memory_bytes")


def test_the_cache_is_at_most_four_gib():
    """A large machine does not make a large cache."""
    assert _arguments(memory=1024 * GIB)["kv_cache_memory_bytes"] == 4 * GIB


def test_defaults_that_an_engine_lacks_are_left_out():
    """An older vLLM without an argument is not given it."""
    assert _arguments(known={"max_num_seqs"}) == {"model": "m", "max_num_seqs": 64}


def test_unknown_arguments_are_named_with_their_neighbours():
    """All of them, each with what it may have meant."""
    assert unknown_arguments(["max_num_seqs"], KNOWN) is None
    assert unknown_arguments(["max_modle_len", "zzz"], KNOWN) == (
        "this version of vLLM has no engine argument 'max_modle_len' (did you mean max_model_len?), 'zzz'"
    )


def test_a_folder_is_told_from_a_name(tmp_path):
    """What looks like a path must be there; a hub's name is for vLLM to judge."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.gguf").write_text("x")
    assert check_model_folder(str(tmp_path)) is None
    assert check_model_folder(str(tmp_path / "file.gguf")) is None
    assert check_model_folder("org/model") is None
    assert check_model_folder("model") is None
    assert "is empty" in check_model_folder(str(tmp_path / "empty"))
    for missing in (str(tmp_path / "gone"), "./gone", "../gone", "~/gone", "a/b/c"):
        assert "there is no model folder" in check_model_folder(missing)


def _adapter(folder, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_room_is_made_for_adapters(tmp_path):
    """The highest rank of all is rounded up to one that vLLM knows; without adapters nothing is said."""
    adapters = {"law": _adapter(tmp_path / "law", r=4), "med": _adapter(tmp_path / "med", r=33)}
    assert lora_arguments(adapters) == {
        "enable_lora": True,
        "max_loras": 2,
        "max_cpu_loras": 2,
        "max_lora_rank": 64,
    }
    assert lora_arguments({}) == {}


def test_many_adapters_take_turns(tmp_path):
    """Memory of the device is taken for eight at most, and all of them stay in the machine's."""
    folder = _adapter(tmp_path / "one", r=8)
    arguments = lora_arguments({str(n): folder for n in range(20)})
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (8, 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no"),
        ("{}", "gives no rank"),
        ("[1]", "gives no rank"),
        ("not json", "gives no rank"),
        ('{"r": 0}', "has rank 0"),
        ('{"r": 1000}', "takes ranks up to 512"),
        ('{"r": "8"}', "has rank '8'"),
    ],
)
def test_what_is_no_adapter_is_named(tmp_path, text, message):
    """A wrong folder is found before an engine is started, by the adapter's name."""
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"adapter 'law'.*{message}"):
        lora_arguments({"law": str(tmp_path)})


@pytest.mark.parametrize(
    "cause",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "ValueError: No available memory for the cache blocks. Try increasing it",
        "ValueError: To serve at least one request, 4.0 GiB KV cache is needed",
        "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired",
        "MemoryError",
        "RuntimeError: ...; they may have been killed, for instance for want of memory",
    ],
)
def test_an_error_about_memory_has_its_remedy(cause):
    """What to set is said where the model does not fit, in words that fit the machine."""
    gpu, cpu = memory_remedy(cause, cpu=False), memory_remedy(cause, cpu=True)
    for name in ("max_model_len", "kv_cache_memory_bytes"):
        assert name in gpu
        assert name in cpu
    assert "tensor_parallel_size" in gpu
    assert "fewer replicas" in cpu


def test_another_error_has_none():
    """An error about anything else is left as it is."""
    assert memory_remedy("SafetensorError: header too large", cpu=True) == ""
    assert memory_remedy("ValueError: no such architecture", cpu=False) == ""
