from __future__ import annotations

import json

import pytest

from alto.engines.tiny import build_tiny_llama

pytest.importorskip("numpy")
tokenizers = pytest.importorskip("tokenizers")


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_settings_give_equal_files(tmp_path):
    """The same seed gives the same model, another seed another one."""
    first = _files(build_tiny_llama(tmp_path / "a", seed=1))
    assert first == _files(build_tiny_llama(tmp_path / "b", seed=1))
    other = _files(build_tiny_llama(tmp_path / "c", seed=2))
    assert {name for name in first if first[name] != other[name]} == {
        "model.safetensors",
        "tiny_llama.json",
    }


def test_a_finished_folder_is_left_alone(tmp_path):
    """A second call with the same settings writes nothing."""
    folder = build_tiny_llama(tmp_path)
    (folder / "config.json").write_text("mine")
    assert build_tiny_llama(folder) == folder
    assert (folder / "config.json").read_text() == "mine"


def test_other_settings_build_anew(tmp_path):
    """The folder has what was asked for last."""
    build_tiny_llama(tmp_path)
    build_tiny_llama(tmp_path, layers=1, context=128, chat=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_hidden_layers"], config["max_position_embeddings"]) == (1, 128)
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_an_unfinished_folder_is_finished(tmp_path):
    """What an interrupted build has left is not taken for a model."""
    whole = _files(build_tiny_llama(tmp_path))
    (tmp_path / "tiny_llama.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"half")
    assert _files(build_tiny_llama(tmp_path)) == whole


def test_the_weights_are_as_the_header_says(tmp_path):
    """About half a million parameters of two bytes, and a header that safetensors can read."""
    data = (build_tiny_llama(tmp_path) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    sizes = [t["data_offsets"] for name, t in header.items() if name != "__metadata__"]
    assert length % 8 == 0
    assert max(end for _, end in sizes) == len(data) - 8 - length
    assert 400_000 < (len(data) - 8 - length) / 2 < 600_000


def test_every_text_survives_the_tokenizer(tmp_path):
    """One token a byte, after a beginning mark, and back again."""
    tokenizer = tokenizers.Tokenizer.from_file(str(build_tiny_llama(tmp_path) / "tokenizer.json"))
    text = "Ünï ↦ 🙂\n\ttext"
    ids = tokenizer.encode(text).ids
    assert (ids[0], len(ids)) == (0, 1 + len(text.encode()))
    assert tokenizer.decode(ids) == text
