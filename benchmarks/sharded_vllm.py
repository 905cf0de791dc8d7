"""Measures a trainer with FSDP2 that updates a real tensor-parallel vLLM on the same GPUs.

Both have the shapes of Qwen3-8B (16.4 GB in BF16), a rank of each on every GPU. Ranks publish their shards as they are.
Later in the same run they gather each tensor with ``full_tensor()``, and rank 0 lends what it has then. The limit is
measured between the updates, on all GPUs at the same time: plain peer copies of the bytes that a rank of the engine
needs from other GPUs, or plain copies on its own GPU of all bytes that it needs, whichever takes longer. At the end
vLLM's own loader is given the same versions whole, and every tensor is compared.

Usage: ``python -m benchmarks.sharded_vllm``; small, on CPUs, with ``--device cpu --small``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch._C._distributed_c10d import TCPStore

from benchmarks._fsdp_trainer import Brought, run_fsdp_rank
from benchmarks._gpu_worker import ParentPeer, Peer
from benchmarks._models import BF16_BYTES, Shapes, size
from benchmarks._placed_values import load_whole
from benchmarks._report import Row, report
from benchmarks._situation import ask_all, console
from benchmarks._trainer import Timed, milliseconds
from benchmarks._vllm_situation import run_engine
from benchmarks.end_to_end import NARROW, Device

CUT_BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
"""What tensor-parallel ranks cut by columns; FSDP2 cuts everything by rows."""
CHECKSUMS = "ckpt_transport_checksums"
Checksums = Sequence[dict[str, str]]
"""Of each rank's tensors, by name."""
WARMING = 2
"""Updates of each kind that are not counted."""


class Needs(NamedTuple):
    """The bytes that one rank of the engine takes: all of them, and those that lie on other GPUs."""

    total: int
    remote: int


def needs(shapes: Shapes, gpus: int) -> Needs:
    """What a rank needs, when trainer and engine have a rank on each of so many GPUs.

    Where the engine cuts by rows, as FSDP2 does, a rank's part lies on its own GPU. Of what it cuts by columns, and of
    what every rank has whole, its GPU has one part.
    """
    total = remote = 0
    for name, shape in shapes.items():
        share = prod(shape) * BF16_BYTES // (gpus if len(shape) > 1 else 1)
        total += share
        if len(shape) == 1 or name.endswith(CUT_BY_COLUMNS):
            remote += share * (gpus - 1) // gpus
    return Needs(total, remote)


@dataclass
class Updates:
    """Updates of one kind, in order: by the clock of the slowest rank, and as rank 0 has reported them."""

    walls: list[float] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)

    def add(self, brought: Sequence[Brought]) -> None:
        led = brought[0].timed
        assert led is not None, "rank 0 has the report"
        self.walls.append(max(each.wall for each in brought))
        self.timed.append(led)

    @property
    def wall(self) -> float:
        return median(self.walls[WARMING:])

    @property
    def held(self) -> float:
        return median(timed.held for timed in self.timed[WARMING:])

    def __str__(self) -> str:
        last = self.timed[-1]
        return f"{milliseconds(self.wall)}, held {milliseconds(self.held)}; {', '.join(set(last.ways))}: {last.said}"


@dataclass
class Limits:
    """What plain copies of the slowest GPU took, each time that they were measured."""

    peer: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)

    def measure(self, trainers: Sequence[Peer], needed: Needs) -> None:
        if needed.remote:
            self.peer.append(max(ask_all(trainers, "copy_to_next", needed.remote)))
        self.device.append(max(ask_all(trainers, "copy_here", needed.total)))

    @property
    def seconds(self) -> float:
        return max(median(each) for each in (self.peer, self.device) if each)

    def __str__(self) -> str:
        peer = milliseconds(median(self.peer)) if self.peer else "none"
        return f"peer copies {peer}, copies on the device {milliseconds(median(self.device))}"


def measure(gpus: int, device: Device, rounds: int, layers: int | None, narrow: int) -> list[Row]:
    """Rows of one run.

    Args:
        gpus: with a rank of the trainer and of the engine on each; without GPUs, how many of each there are.
        device: where they are.
        rounds: updates of each kind that are counted.
        layers: of the model; None for all.
        narrow: by how much widths are divided.
    """
    console.print(f"vLLM with {gpus} ranks starts ...")
    engine = ParentPeer(run_engine, "dense", range(gpus), layers, narrow)
    try:
        shapes, addresses, warmed = engine.answer()
        console.print(f"  {len(shapes)} tensors, {size(shapes) / 1e9:.2f} GB; {'; '.join(warmed)}")
        needed, limits, version = needs(shapes, gpus), Limits(), 0
        before: Checksums = engine.call(CHECKSUMS)
        kinds = {"publish": Updates(), "gather": Updates()}
        with fsdp_trainer(gpus, device, shapes) as trainers:
            for kind, updates in kinds.items():
                for number in range(WARMING + rounds):
                    if number >= WARMING:
                        limits.measure(trainers, needed)
                    version += 1
                    brought = bring(trainers, kind, version, addresses)
                    updates.add(brought)
                    if number == 0:
                        told = (f"first {kind}: {milliseconds(updates.walls[0])}", *brought[0].notes)
                        console.print("  " + "\n    ".join(told))
                console.print(f"  {kind}: {updates}; {limits}")
            served = {version: engine.call(CHECKSUMS)}
            bring(trainers, "publish", version + 1, addresses)
            served[version + 1] = engine.call(CHECKSUMS)
            ask_all(trainers, "close")
        check(engine, shapes, before, served)
    finally:
        engine.stop()
    return rows_of(gpus, kinds["publish"], kinds["gather"], limits, needed)


def bring(trainers: Sequence[Peer], kind: str, version: int, addresses: Sequence[str]) -> list[Brought]:
    """Change the weights on all ranks, and bring them to the engine."""
    ask_all(trainers, "step", version)
    return ask_all(trainers, kind, version, addresses)


def check(engine: Peer, shapes: Shapes, before: Checksums, served: dict[int, Checksums]) -> None:
    """See that each rank of the engine has served what its loader makes of whole versions.

    No version has a model's buffers, and vLLM's loader may make them anew: they are to be as before all updates.

    Args:
        before: the checksums of every rank before the first update.
        served: those of each version.
    """
    one, other = served.values()
    assert one != other, "versions differ"
    buffers: Sequence[Sequence[str]] = engine.call(buffer_names)
    for version, ranks in served.items():
        engine.call(load_whole, shapes, version)
        made = engine.call(CHECKSUMS)
        for number, (kept, was, found, loaded) in enumerate(zip(buffers, before, ranks, made, strict=True)):
            assert not (error := found.get("error", loaded.get("error"))), error
            expected = loaded | {name: was[name] for name in kept if name in was}
            wrong = [name for name in expected if found.get(name) != expected[name]]
            assert not wrong, f"version {version}, rank {number}: {len(wrong)} tensors are wrong, the first {wrong[0]}"
        console.print(f"  version {version}: all {len(ranks[0])} tensors of each rank are what vLLM's loader makes")


def buffer_names(worker: Any) -> list[str]:
    """Of the model of a worker of vLLM."""
    return [name for name, _ in worker.model_runner.get_model().named_buffers(remove_duplicate=False)]


@contextlib.contextmanager
def fsdp_trainer(ranks: int, device: Device, shapes: Shapes) -> Iterator[list[Peer]]:
    """The ranks of a trainer, which find each other at a store of this process."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    environ = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    trainers = [Peer(run_fsdp_rank, {**environ, "RANK": str(rank)}, device.value, shapes) for rank in range(ranks)]
    try:
        yield trainers
    finally:
        for trainer in trainers:
            with contextlib.suppress(OSError):
                trainer.stop()


def rows_of(gpus: int, publish: Updates, gather: Updates, limits: Limits, needed: Needs) -> list[Row]:
    """What was measured, as ratios."""
    title = f"FSDP2 on {gpus}, vLLM TP {gpus}"
    each = f"{needed.total / 1e9:.2f} GB to each rank, {needed.remote / 1e9:.2f} GB of it from other GPUs"
    plain, first = "peer copies or copies on the device, the larger", publish.walls[0]
    held = f"{milliseconds(publish.held)}, limit {milliseconds(limits.seconds)}"
    once = f"{milliseconds(first)}, held {milliseconds(publish.timed[0].held)}; then {milliseconds(publish.wall)}"
    return [
        Row(f"{title}: publish", publish.wall / limits.seconds, plain, "<=1.6", f"{publish}; {limits}; {each}"),
        Row(f"{title}: full_tensor and update", gather.wall / publish.wall, "publish", "", str(gather)),
        Row(f"{title}: held by publish", publish.held / limits.seconds, plain, "", held),
        Row(f"{title}: first publish after warming up", first / publish.wall, "steady state", "<=1.5", once),
    ]


def main(
    device: Annotated[Device, typer.Option(help="Where trainer and engine have their weights.")] = Device.CUDA,
    gpus: Annotated[int, typer.Option(min=1, help="With a rank of each; on CPUs, how many ranks.")] = 2,
    small: Annotated[bool, typer.Option("--small", help="One layer, and an eighth of all widths.")] = False,
    layers: Annotated[int | None, typer.Option(help="Of the model; by default all 36.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Updates of each kind that are counted.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
) -> None:
    """Time a trainer with FSDP2 that publishes its shards to a real vLLM, and one that gathers them first.

    Needs vLLM and, at full size, 100 GiB of each GPU's memory. VLLM_ARGUMENTS may hold more arguments of LLM as JSON.
    Links of this host are measured first, and kept, so that auto knows them.
    """
    if device is Device.CUDA and torch.cuda.device_count() < gpus:
        raise typer.BadParameter(f"there are {torch.cuda.device_count()}", param_hint="--gpus")
    subprocess.run([sys.executable, "-m", "ckpt_transport", "transports", "--measure"], check=False)
    rows = measure(gpus, device, rounds, 1 if small and layers is None else layers, NARROW if small else 1)
    report(rows, json)


if __name__ == "__main__":
    typer.run(main)
