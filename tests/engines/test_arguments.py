from __future__ import annotations

import pytest

from alto.engines._arguments import check_model_folder, engine_arguments, unknown_arguments

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
        "this vLLM knows no engine argument 'max_modle_len' (did you mean max_model_len?), 'zzz'"
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
