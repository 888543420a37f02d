"""The tokenizer: byte-level BPE with single digits, trained on the training examples."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from examples.verification.model.data import MIX, training_source

SPECIAL = ("<s>", "</s>", "<pad>")
BOS, EOS, PAD = range(3)


def train_tokenizer(vocab: int, seed: int, examples: int = 12_000) -> Tokenizer:
    """A tokenizer of *vocab* tokens, trained on *examples* examples."""
    source = training_source(seed)
    source.invent = 0.5
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tasks = [task for task in MIX for _ in range(examples // len(MIX))]
    tokenizer.train_from_iterator(("".join(source.draw(t)) for t in tasks), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD],
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def pieces(tokenizer: Tokenizer) -> list[str]:
    """Text of every token that is a piece of a word."""
    return [tokenizer.decode([i]) for i in range(len(SPECIAL), tokenizer.get_vocab_size())]
