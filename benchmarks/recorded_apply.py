"""Measures replaying a loader against copying the same bytes, and recording it against running it once.

The loader is that of a mixture of experts, as inference engines write it: one Python step per tensor, which finds the
parameter by name and copies gate, up and down projections of each expert into two fused ones. Buckets lie in one slot,
as they do in an update. ``python -m benchmarks.recorded_apply [--device cuda]``; by default small enough for a laptop,
with ``--device cuda`` 24 layers of 128 experts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport import LoadedBucket, dtypes
from ckpt_transport.planning import PlacedBytes, TensorSpec
from ckpt_transport.planning.values.alignment import align_up
from ckpt_transport.replay import BucketCopyPlans, Replay, record

BUCKET_BYTES = 64 << 20
EXPERT = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
TWICE = 2.0
TEN_TIMES = 10.0


class Experts(torch.nn.Module):
    """Layers of fused experts, in bfloat16, and the loader that fills them."""

    def __init__(self, layers: int, experts: int, hidden: int, inner: int, device: torch.device) -> None:
        super().__init__()
        self.inner = inner
        for layer in range(layers):
            for name, shape in (("w13", (experts, 2 * inner, hidden)), ("w2", (experts, hidden, inner))):
                weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
                self.register_parameter(f"{name}_{layer}", torch.nn.Parameter(weight, requires_grad=False))

    def load_weights(self, pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in pairs:
            found = EXPERT.fullmatch(name)
            assert found is not None
            layer, expert, projection = found.groups()
            if projection == "down":
                parameters[f"w2_{layer}"].data[int(expert)].copy_(tensor)
            else:
                start = self.inner * (projection == "up")
                parameters[f"w13_{layer}"].data[int(expert)].narrow(0, start, self.inner).copy_(tensor)


def specs_of(layers: int, experts: int, hidden: int, inner: int) -> list[TensorSpec]:
    """The tensors of the checkpoint, in the order of a file: sorted by name."""
    specs = []
    for layer in range(layers):
        for expert in range(experts):
            for projection in ("gate", "up", "down"):
                name = f"layers.{layer}.experts.{expert}.{projection}_proj.weight"
                specs.append(TensorSpec(name, "BF16", (hidden, inner) if projection == "down" else (inner, hidden)))
    return sorted(specs, key=lambda spec: spec.name)


def cut(specs: Sequence[TensorSpec]) -> list[list[tuple[TensorSpec, int]]]:
    """Buckets: tensors, and where each begins."""
    buckets: list[list[tuple[TensorSpec, int]]] = [[]]
    end = 0
    for spec in specs:
        if buckets[-1] and end + spec.nbytes > BUCKET_BYTES:
            buckets.append([])
            end = 0
        buckets[-1].append((spec, end))
        end = align_up(end + spec.nbytes)
    return buckets


def measure(
    layers: int = 4, experts: int = 128, hidden: int = 512, inner: int = 256, device: str = "cpu", rounds: int = 7
) -> list[Row]:
    """One row for the replay, one for recording."""
    at = torch.device(device)
    module = Experts(layers, experts, hidden, inner, at)
    specs = specs_of(layers, experts, hidden, inner)
    buckets = cut(specs)
    slot = torch.randint(256, (BUCKET_BYTES,), dtype=torch.uint8, device=at)
    into = torch.empty_like(slot)
    nbytes = sum(spec.nbytes for spec in specs)

    def load() -> None:
        for bucket in buckets:
            module.load_weights(
                (spec.name, dtypes.as_tensor(slot[start : start + spec.nbytes], spec.dtype, spec.shape))
                for spec, start in bucket
            )

    small = Experts(1, 1, 8, 8, torch.device("cpu"))
    record(small, small.load_weights, specs_of(1, 1, 8, 8))  # torch imports what a dispatch mode needs
    began = time.perf_counter()
    recording = record(module, module.load_weights, specs)
    recorded = time.perf_counter() - began
    began = time.perf_counter()
    plans = BucketCopyPlans(recording.layout)
    loaded = [_loaded(number, slot, bucket) for number, bucket in enumerate(buckets)]
    prepared = [plans.of(bucket) for bucket in loaded]
    made = time.perf_counter() - began
    parameters = dict(module.named_parameters())
    bound = {number: parameters[target.name].detach() for number, target in enumerate(recording.layout.targets)}

    def replay() -> None:
        run = Replay(plans, bound)
        for plan, bucket in zip(prepared, loaded, strict=True):
            run.run(plan, bucket)
        run.finish()

    def copy() -> None:
        left = nbytes
        while left > 0:
            length = min(left, BUCKET_BYTES)
            into[:length].copy_(slot[:length])
            left -= length

    load()
    expected = {name: parameter.view(torch.int16).clone() for name, parameter in list(parameters.items())[:2]}
    for parameter in parameters.values():
        parameter.zero_()
    replay()
    same = (torch.equal(parameters[name].view(torch.int16), bits) for name, bits in expected.items())
    assert all(same), "the replay is wrong"
    loads, replays, copies = [], [], []
    for _ in range(rounds):
        loads.append(_timed(load, at))
        replays.append(_timed(replay, at))
        copies.append(_timed(copy, at))
    loading, replaying, copying = median(loads), median(replays), median(copies)
    what = f"{len(specs)} tensors, {nbytes / (1 << 30):.2f} GiB, {device}"
    return [
        Row(
            f"replay, {what}",
            replaying / copying,
            "a plain copy of the bytes",
            f"<={TWICE}",
            f"{len(recording.layout.copies)} copies in {plans.copy_count}: {replaying * 1e3:.1f} ms, "
            f"copy {copying * 1e3:.1f} ms, loader {loading * 1e3:.1f} ms",
        ),
        Row(
            f"recording, {what}",
            recorded / loading,
            "one run of the loader",
            f"<={TEN_TIMES}",
            f"twice in {recorded * 1e3:.0f} ms, plans of {len(buckets)} buckets in {made * 1e3:.0f} ms",
        ),
    ]


def _loaded(number: int, slot: torch.Tensor, bucket: Sequence[tuple[TensorSpec, int]]) -> LoadedBucket:
    return LoadedBucket(number, slot, lambda: [PlacedBytes(spec, 0, start, spec.nbytes) for spec, start in bucket])


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that ``work`` takes, to the end of what it enqueues."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    with torch.no_grad():
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main(
    device: Annotated[str, typer.Option(help="Where weights and slot are: cpu or cuda.")] = "cpu",
    layers: Annotated[int, typer.Option(help="0 for 4, and on a GPU 24.")] = 0,
    experts: Annotated[int, typer.Option(help="Of each layer.")] = 128,
    hidden: Annotated[int, typer.Option(help="Width of the model; 0 for 512, and on a GPU 2048.")] = 0,
    inner: Annotated[int, typer.Option(help="Width of an expert; 0 for 256, and on a GPU 768.")] = 0,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure recording and replay of a loader."""
    large = device != "cpu"
    sizes = (
        layers or (24 if large else 4),
        experts,
        hidden or (2048 if large else 512),
        inner or (768 if large else 256),
    )
    report(measure(*sizes, device, rounds), json)


if __name__ == "__main__":
    typer.run(main)
