"""Measures a trainer with FSDP2 that updates a real tensor-parallel vLLM on the same GPUs.

Both have the shapes of Qwen3-8B (16.4 GB in BF16), a rank of each on every GPU. Ranks publish their shards as they are.
Later in the same run they gather each tensor with ``full_tensor()``, and rank 0 lends what it has then. The limit is
measured between the updates, on all GPUs at the same time: plain peer copies of the bytes that a rank of the engine
needs from other GPUs, or plain copies on its own GPU of all bytes that it needs, whichever takes longer. At the end
vLLM's own loader is given the same versions whole, and every parameter is compared. With ``--seconds`` no row is begun
after that time.

Usage: ``python -m benchmarks.sharded_vllm``; small, on CPUs, with ``--device cpu --small``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer
from torch._C._distributed_c10d import TCPStore

from benchmarks._attempts import Attempts, Seconds, console
from benchmarks._brought import phases_of
from benchmarks._fsdp_trainer import Brought, run_fsdp_rank
from benchmarks._gpu_worker import ParentPeer, Peer, peers
from benchmarks._models import BF16_BYTES, Shapes, size
from benchmarks._placed_values import load_whole
from benchmarks._report import Row, report
from benchmarks._trainer import Timed, milliseconds
from benchmarks._trainers import ask_all
from benchmarks._vllm_situation import compare, run_engine, sums
from benchmarks.end_to_end import NARROW, Device

CUT_BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
"""What tensor-parallel ranks cut by columns; FSDP2 cuts everything by rows."""
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
    def counted(self) -> Sequence[Timed]:
        return self.timed[WARMING:]

    @property
    def wall(self) -> float:
        return median(self.walls[WARMING:])

    @property
    def held(self) -> float:
        return median(timed.held for timed in self.counted)

    @property
    def middle(self) -> Timed:
        """The counted update whose time is nearest to the median."""
        return min(self.counted, key=lambda timed: abs(timed.wall - self.wall))

    @property
    def phases(self) -> dict[str, dict[str, float]]:
        return {"first": phases_of(self.timed[0]), "median": phases_of(self.middle)}

    def __str__(self) -> str:
        middle, first = self.middle, self.timed[0]
        return (
            f"first {milliseconds(self.walls[0])}, median {milliseconds(self.wall)} of {len(self.counted)}; held "
            f"{milliseconds(self.held)}, first {milliseconds(first.held)}; first: {first.said}; median, "
            f"{', '.join(set(middle.ways))}: {middle.said}"
        )


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


def measure(
    gpus: int, device: Device, rounds: int, layers: int | None, narrow: int, attempts: Attempts
) -> Iterator[Row]:
    """Rows of one run.

    Args:
        gpus: with a rank of the trainer and of the engine on each; without GPUs, how many of each there are.
        device: where they are.
        rounds: updates of each kind that are counted.
        layers: of the model; None for all.
        narrow: by how much widths are divided.
        attempts: what there is time for.
    """
    console.print(f"vLLM with {gpus} ranks starts ...")
    engine = ParentPeer(run_engine, "dense", range(gpus), layers, narrow)
    try:
        shapes, addresses, warmed = engine.answer()
        console.print(f"  {len(shapes)} tensors, {size(shapes) / 1e9:.2f} GB; {'; '.join(warmed)}")
        needed = needs(shapes, gpus)
        title = f"FSDP2 on {gpus}, vLLM TP {gpus}"
        with fsdp_trainer(gpus, device, shapes) as trainers:
            link = Link(trainers, engine, addresses, needed)
            publish = Updates()
            yield from attempts.rows(f"{title}: publish", _published(title, link, rounds, publish))
            if publish.counted:
                yield from attempts.rows(f"{title}: full_tensor and update", _gathered(title, link, rounds, publish))
            yield from attempts.rows(f"{title}: what the loader makes", _compared(link, shapes))
            ask_all(trainers, "close")
    finally:
        engine.stop()


@dataclass
class Link:
    """A trainer and an engine, and the versions between them.

    Attributes:
        trainers: the ranks of FSDP2.
        engine: the vLLM.
        addresses: of its ranks.
        needed: what each of those takes.
        version: the last that was brought.
    """

    trainers: Sequence[Peer]
    engine: Peer
    addresses: Sequence[str]
    needed: Needs
    version: int = 0

    def bring(self, kind: str) -> list[Brought]:
        """Change the weights on all ranks, and bring them to the engine."""
        self.version += 1
        ask_all(self.trainers, "step", self.version)
        return ask_all(self.trainers, kind, self.version, self.addresses)

    def measure(self, kind: str, rounds: int, updates: Updates) -> Limits:
        """Bring versions, and measure what copies take before each that counts."""
        limits = Limits()
        for number in range(WARMING + rounds):
            if number >= WARMING:
                limits.measure(self.trainers, self.needed)
            brought = self.bring(kind)
            updates.add(brought)
            if number == 0:
                told = (f"first {kind}: {milliseconds(updates.walls[0])}", *brought[0].notes)
                console.print("  " + "\n    ".join(told))
        console.print(f"  {kind}: {updates}; {limits}")
        return limits


def _published(title: str, link: Link, rounds: int, publish: Updates) -> Iterator[Row]:
    """Shards as they are."""
    limits, needed = link.measure("publish", rounds, publish), link.needed
    each = f"{needed.total / 1e9:.2f} GB to each rank, {needed.remote / 1e9:.2f} GB of it from other GPUs"
    plain, first = "peer copies or copies on the device, the larger", publish.walls[0]
    ratio, detail = publish.wall / limits.seconds, f"{publish}; {limits}; {each}"
    yield Row(f"{title}: publish", ratio, plain, "<=1.6", detail, publish.phases)
    held = f"{milliseconds(publish.held)}, limit {milliseconds(limits.seconds)}"
    yield Row(f"{title}: held by publish", publish.held / limits.seconds, plain, "", held)
    once = f"{milliseconds(first)}, held {milliseconds(publish.timed[0].held)}; then {milliseconds(publish.wall)}"
    yield Row(f"{title}: first publish, engine warmed up", first / publish.wall, "later ones", "<=1.5", once)


def _gathered(title: str, link: Link, rounds: int, publish: Updates) -> Iterator[Row]:
    """What is gathered on rank 0 first."""
    gather = Updates()
    link.measure("gather", rounds, gather)
    ratio = gather.wall / publish.wall
    yield Row(f"{title}: full_tensor and update", ratio, "publish", "", str(gather), gather.phases)


def _compared(link: Link, shapes: Shapes) -> Iterator[Row]:
    """See that each rank of the engine has served what its loader makes of whole versions; there are no rows of it."""
    served = {}
    for _ in range(2):
        link.bring("publish")
        served[link.version] = link.engine.call(sums)
    one, other = served.values()
    assert one != other, "versions differ"
    for version, found in served.items():
        link.engine.call(load_whole, shapes, version)
        number = compare(link.engine.call(sums), found)
        console.print(f"  version {version}: wrong: 0 of {number} parameters of all ranks")
    yield from ()


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
    with peers(
        [(run_fsdp_rank, {**environ, "RANK": str(rank)}, device.value, shapes) for rank in range(ranks)]
    ) as found:
        yield found


def main(
    device: Annotated[Device, typer.Option(help="Where trainer and engine have their weights.")] = Device.CUDA,
    gpus: Annotated[int, typer.Option(min=1, help="With a rank of each; on CPUs, how many ranks.")] = 2,
    small: Annotated[bool, typer.Option("--small", help="One layer, and an eighth of all widths.")] = False,
    layers: Annotated[int | None, typer.Option(help="Of the model; by default all 36.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Updates of each kind that are counted.")] = 5,
    seconds: Seconds = inf,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
) -> None:
    """Time a trainer with FSDP2 that publishes its shards to a real vLLM, and one that gathers them first.

    Needs vLLM and, at full size, 100 GiB of each GPU's memory. VLLM_ARGUMENTS may hold more arguments of LLM as JSON.
    Links of this host are measured first, and kept, so that auto knows them.
    """
    if device is Device.CUDA and torch.cuda.device_count() < gpus:
        raise typer.BadParameter(f"there are {torch.cuda.device_count()}", param_hint="--gpus")
    subprocess.run([sys.executable, "-m", "ckpt_transport", "transports", "--measure"], check=False)
    attempts, narrow = Attempts(seconds), NARROW if small else 1
    report(measure(gpus, device, rounds, 1 if small and layers is None else layers, narrow, attempts), json)
    attempts.end()


if __name__ == "__main__":
    typer.run(main)
