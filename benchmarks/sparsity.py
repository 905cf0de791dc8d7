"""Trains a small transformer and prints which share of its published weights a step changes.

Master weights are FP32, AdamW changes them, and BF16 is published after each step, and FP8 with its scales as well. The
task is the next byte of text: the model learns Python's documentation first, and then code of its standard library,
from there on at each learning rate. That is what happens to a model that was pretrained. The seed is fixed, and one
thread works.

Shares are of elements, in the median over steps; bytes are those of the encoded deltas, a range for each tensor, of all
that is published. Usage: ``python -m benchmarks.sparsity``.
"""

from __future__ import annotations

import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

from benchmarks._results import here
from ckpt_transport.deltas import encode
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse

TEXTS = Path(sysconfig.get_paths()["stdlib"])
WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 3, 4, 64, 8
RATES = (1e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3)
PRETRAINING_RATE = 1e-3
SKIPPED = 4
"""First steps at a rate; Adam's averages are young, and steps larger than later."""
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
KINDS = {"norm": "norm", "embed": "embedding", "attention": "attention", "mlp": "MLP", "head": "head"}
"""What tensors are, by the first of these parts that is in their names."""

Weights = Mapping[str, torch.Tensor]
Shares = defaultdict[str, list[float]]
"""By what was looked at, one for each step."""


class Block(nn.Module):
    """A layer: attention and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp_gate_up = nn.Linear(WIDTH, 8 * WIDTH, bias=False)
        self.mlp_down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows, length, _ = hidden.shape
        mixed = self.attention_qkv(self.attention_norm(hidden)).view(rows, length, 3, HEADS, -1)
        queries, keys, values = mixed.transpose(1, 3).unbind(2)
        seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.attention_out(seen.transpose(1, 2).reshape(rows, length, WIDTH))
        gate, up = self.mlp_gate_up(self.mlp_norm(hidden)).chunk(2, -1)
        more: torch.Tensor = self.mlp_down(silu(gate) * up)
        return hidden + more


class Model(nn.Module):
    """Predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.places_embed = nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(text) + self.places_embed.weight
        for layer in self.layers:
            hidden = layer(hidden)
        predicted: torch.Tensor = self.head(self.norm(hidden))
        return predicted


def batches(pattern: str, seed: int) -> Iterator[torch.Tensor]:
    """Random pieces of Python's own files, one byte longer than the model's context."""
    text = b"".join(file.read_bytes() for file in sorted(TEXTS.glob(pattern)))
    raw = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(raw) - CONTEXT, (BATCH,), generator=generator)
        yield torch.stack([raw[start : start + CONTEXT + 1] for start in starts])


def train(model: Model, rate: float, text: Iterator[torch.Tensor], steps: int) -> Iterator[float]:
    """The loss of each step, after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    for _ in range(steps):
        piece = next(text)
        loss = cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


def in_bf16(model: Model) -> Weights:
    return {name: each.detach().to(torch.bfloat16) for name, each in model.named_parameters()}


def in_fp8(weights: Weights, target: Target) -> Weights:
    """As an update would bring them, scales and what stays in BF16 included."""
    loan = quantized(weights, target, torch.device("cpu"))
    assert loan.backing is not None
    raw = torch.empty(loan.backing.nbytes, dtype=torch.uint8)
    loan.backing.fill(raw, 0)
    sizes = {"F8_E4M3": torch.uint8, "F32": torch.float32, "BF16": torch.bfloat16}
    return {each.spec.name: raw[each.offset :][: each.nbytes].view(sizes[each.spec.dtype]) for each in loan.tensors}


def compare(shares: Shares, base: Weights, new: Weights, precision: str) -> None:
    """Add the shares of what differs between two versions, and of bytes."""
    changed: defaultdict[str, int] = defaultdict(int)
    elements: defaultdict[str, int] = defaultdict(int)
    sent = 0
    for name, tensor in new.items():
        before, after = (each.flatten().view(torch.uint8) for each in (base[name], tensor))
        encoded = encode(before, after, tensor.element_size())
        sent += encoded.raw.numel()
        differ = int((before.view(-1, tensor.element_size()) != after.view(-1, tensor.element_size())).any(1).sum())
        for of in groups(name):
            changed[of] += differ
            elements[of] += tensor.numel()
    for of, count in changed.items():
        shares[f"{precision} {of}"].append(count / elements[of])
    shares[f"{precision} bytes sent"].append(sent / sum(each.nbytes for each in new.values()))


def groups(name: str) -> Iterator[str]:
    """What a tensor is counted with."""
    yield "all"
    if "scale" in name:
        yield "scales"
        return
    yield next(kind for part, kind in KINDS.items() if part in name)
    if number := re.match(r"layers\.(\d+)", name):
        yield f"layer {number[1]}"


def measure(rates: tuple[float, ...], pretraining: int, steps: int) -> tuple[dict[float, Shares], dict[float, str]]:
    """The shares at each learning rate, and how the loss went."""
    torch.set_num_threads(1)  # so that sums are made in one order
    torch.manual_seed(0)
    model = Model()
    target = Target("FP8", parse(FP8, "FP8"))
    losses = list(train(model, PRETRAINING_RATE, batches("pydoc_data/topics.py", 1), pretraining))
    Console(stderr=True).print(f"pretraining: loss {losses[0]:.2f} to {mean(losses[-10:]):.2f}")
    trained = {name: each.clone() for name, each in model.state_dict().items()}
    found: dict[float, Shares] = {}
    went: dict[float, str] = {}
    for rate in rates:
        Console(stderr=True).print(f"learning rate {rate:g} ...")
        model.load_state_dict(trained)
        shares: Shares = defaultdict(list)
        served = in_bf16(model)
        served_fp8 = in_fp8(served, target)
        losses = []
        for number, loss in enumerate(train(model, rate, batches("asyncio/*.py", 2), steps)):
            losses.append(loss)
            published = in_bf16(model)
            published_fp8 = in_fp8(published, target)
            if number >= SKIPPED:
                compare(shares, served, published, "BF16")
                compare(shares, served_fp8, published_fp8, "FP8")
            served, served_fp8 = published, published_fp8
        found[rate] = shares
        went[rate] = f"{mean(losses[:5]):.2f} to {mean(losses[-5:]):.2f}"
    return found, went


def show(found: Mapping[float, Shares], went: Mapping[float, str]) -> None:
    table = Table("learning rate", *(f"{rate:g}" for rate in found))
    for of in sorted(next(iter(found.values())), key=_order):
        table.add_row(of, *(f"{median(shares[of]):.2%}" for shares in found.values()))
    table.add_row("loss", *went.values())
    Console(width=120).print(table)


def _order(of: str) -> tuple[str, bool, bool, str]:
    """All first, then kinds, layers, and bytes."""
    precision, _, what = of.partition(" ")
    return precision, what == "bytes sent", what.startswith("layer"), "" if what == "all" else what


def main(
    pretraining: Annotated[int, typer.Option(help="Steps before anything is compared.")] = 150,
    steps: Annotated[int, typer.Option(help="Steps at each learning rate.")] = 14,
) -> None:
    """Train at several learning rates and print what each step changes."""
    show(*measure(RATES, pretraining, steps))
    Console(stderr=True).print(here())


if __name__ == "__main__":
    typer.run(main)
