"""Trains the model from scratch on a CPU, or goes on from weights that are there.

    python -m examples.verification.model.train                     # writes weights/
    python -m examples.verification.model.train --start 800  # from a checkpoint

The number of steps decides, not the clock, and the seed fixes tokenizer, data and initial weights.
Each worker is a process with one core, which takes its share of every batch: processes that meet once
a step lose less to other work on the machine than threads that meet at every operation.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.verification.model.data import Example, Source, training_source
from examples.verification.model.llama import Llama, Shape, load, save
from examples.verification.model.prompts import WEIGHTS
from examples.verification.model.tokens import (
    BOS,
    EOS,
    PAD,
    pieces,
    save_tokenizer,
    train_tokenizer,
)

BATCH_TOKENS = 4096
FLAT = 0.4  # share of the run before the learning rate falls
CURRICULUM = 0.5  # share of the run in which easy examples fade out

Row: TypeAlias = tuple[list[int], list[float]]  # tokens of an example, their weights in the loss


def encode(tokenizer: Tokenizer, example: Example, rng: random.Random) -> Row:
    """Tokens of an example, and the weight of each in the loss."""
    prompt, completion = example
    asked = tokenizer.encode(prompt, add_special_tokens=False).ids
    head, mark, verdict = completion.partition("\nVerdict:")
    wrote = tokenizer.encode(head + mark, add_special_tokens=False).ids
    judged = tokenizer.encode(verdict, add_special_tokens=False).ids if mark else []
    weights = [0.5 if rng.random() < 0.1 else 0.0 for _ in asked]
    weights = [0.0, *weights, *[1.0] * len(wrote), *[4.0] * len(judged), 1.0]
    return [BOS, *asked, *wrote, *judged, EOS], weights


def batches(
    source: Source, tokenizer: Tokenizer, steps: range, total: int, most: int
) -> Iterator[list[Row]]:
    """Batches of rows of about one length, *most* tokens each; *steps* are some of *total*.

    Examples are not packed: each starts at position 0 and sees nothing of another. A batch of a
    length has always the same number of rows, since every new shape costs a compilation.
    """
    waiting: dict[int, list[Row]] = {}
    done = 0
    while done < len(steps):
        left = max(0.0, 1 - steps[done] / (CURRICULUM * total))
        source.easy = 0.15 + 0.75 * left
        copying = source.copying and source.rng.random() < 0.35 * left
        row = encode(tokenizer, source.draw("copy" if copying else None), source.rng)
        width = -(-len(row[0]) // 16) * 16
        rows = waiting.setdefault(width, [])
        rows.append(row)
        if len(rows) == most // width:
            yield waiting.pop(width)
            done += 1


def tensors(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, the positions that have a weight, their targets, and the weights.

    The positions are filled up to a multiple of 256 with some of weight 0.
    """
    width = -(-max(len(ids) for ids, _ in rows) // 16) * 16
    ids = torch.tensor([i + [PAD] * (width + 1 - len(i)) for i, _ in rows])
    weights = torch.tensor([w + [0.0] * (width + 1 - len(w)) for _, w in rows])
    targets, wanted = ids[:, 1:].flatten(), weights[:, 1:].flatten()
    at = wanted.nonzero().flatten()
    at = functional.pad(at, (0, -len(at) % 256))
    used = wanted[at]
    used[wanted.count_nonzero() :] = 0
    return ids[:, :-1], at, targets[at], used


def optimisers(model: Llama, rate: float, rank: int, workers: int) -> list[torch.optim.Optimizer]:
    """Muon for this worker's share of the matrices inside the layers, AdamW for all the rest."""
    inner = inner_matrices(model)
    chosen = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(inner[rank::workers], lr=0.02 * rate, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=3e-3 * rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def inner_matrices(model: Llama) -> list[Tensor]:
    """Weights that Muon updates."""
    return [p for p in model.layers.parameters() if p.dim() == 2]


def average_gradients(model: Llama, workers: int) -> None:
    """Give every worker the mean of all workers' gradients."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients]) / workers
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def exchange_matrices(model: Llama, rank: int, workers: int) -> None:
    """Give every worker the matrices that the others have updated."""
    inner = inner_matrices(model)
    mine = [p if i % workers == rank else torch.zeros_like(p) for i, p in enumerate(inner)]
    flat = torch.cat([p.flatten() for p in mine])
    dist.all_reduce(flat)
    for p, part in zip(inner, flat.split([p.numel() for p in inner]), strict=True):
        p.copy_(part.view_as(p))


def schedule(step: int, options: argparse.Namespace) -> float:
    """Factor of the learning rate: warm-up, flat, then linear to 2 %."""
    decay = 1 - 0.98 * max(0.0, (step / options.steps - FLAT) / (1 - FLAT))
    return min(1.0, (step - options.start + 1) / 60) * decay


def prepare(options: argparse.Namespace) -> tuple[Llama, Tokenizer]:
    """Model and tokenizer, new or read from the folder of the weights."""
    folder: Path = options.out
    if options.start or options.again:
        return load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = train_tokenizer(Shape.vocab, options.seed)
    return Llama(Shape(vocab=tokenizer.get_vocab_size())), tokenizer


def train(rank: int, options: argparse.Namespace) -> None:
    """Be worker *rank* of the training that *options* describe; worker 0 writes checkpoints."""
    workers = options.workers
    store = f"file://{options.store}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    model, tokenizer = prepare(options)
    if rank == 0 and not (options.start or options.again):
        save_tokenizer(tokenizer, options.out, model.shape.positions)
    source = training_source(options.seed + 10 * options.start + rank + 1, pieces(tokenizer))
    chosen = optimisers(model, options.rate, rank, workers)
    rates = [o.param_groups[0]["lr"] for o in chosen]

    def loss_of(ids: Tensor, at: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        each = functional.cross_entropy(model(ids, at).float(), targets, reduction="none")
        return (each * weights).sum() / weights.sum()

    began, seen, mean = time.perf_counter(), 0, 0.0
    steps = range(options.start, options.steps)
    source.copying = not options.again
    stream = batches(source, tokenizer, steps, options.steps, BATCH_TOKENS // workers)
    for step, rows in zip(steps, stream, strict=True):
        factor = schedule(step, options)
        for optimiser, rate in zip(chosen, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(*tensors(rows))
        loss.backward()
        average_gradients(model, workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in chosen:
            optimiser.step()
        exchange_matrices(model, rank, workers)
        seen += sum(len(ids) for ids, _ in rows) * workers
        mean += (loss.item() - mean) * max(0.02, 1 / (step - options.start + 1))
        last = step + 1 == options.steps
        if rank == 0 and ((step + 1) % 50 == 0 or last):
            clock = f"{time.perf_counter() - began:7.1f} s ({time.process_time():.1f} s of CPU)"
            print(f"{step + 1:6d} {clock} {seen / 1e6:6.2f} M tokens  loss {mean:.4f}", flush=True)
        if rank == 0 and ((step + 1) % options.every == 0 or last):
            save(model, options.out)
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=7400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--start", type=int, default=0, help="go on at this step from --out")
    parser.add_argument("--again", action="store_true", help="begin with the weights in --out")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        options.store = Path(folder) / "store"
        torch.multiprocessing.spawn(train, (options,), nprocs=options.workers)


if __name__ == "__main__":
    main()
