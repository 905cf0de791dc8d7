"""Measures updates of a vLLM from a trainer on another GPU, against vLLM's own engine, which broadcasts over NCCL.

Both bring the same weights from the same process into the same engine, in turns, and no request runs: vLLM's own engine
packs tensors into large buffers, as its documentation advises. At the end what both leave is compared.

vLLM's interface for trainers is that of 0.25. Usage, with two GPUs: ``python -m benchmarks.vllm_nccl``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks import _vllm_situation as engines
from benchmarks._gpu_worker import ParentPeer, Peer
from benchmarks._models import Shapes
from benchmarks._report import Row, report
from benchmarks._situation import console
from benchmarks._trainer import Timed, Trainer, milliseconds, wait_for

AGAINST = "vLLM's own nccl engine"
TARGET = "<=0.083"
"""A twelfth."""
WORLD_SIZE = 2


class NcclTrainer(Trainer):
    """A trainer that vLLM's own engine can also receive from."""

    def join_group(self, port: int) -> None:
        """Make the group with the engine, in which this is rank 0."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        at: dict[str, object] = {"master_address": "127.0.0.1", "master_port": port, "world_size": WORLD_SIZE}
        self._own: Any = NCCLWeightTransferEngine
        self._group = self._own.trainer_init(at)

    def send(self) -> None:
        """Broadcast all weights, as vLLM's own engine receives them."""
        self._own.trainer_send_weights(iter(self._held.items()), {"group": self._group, "packed": True})
        wait_for(self._device)


def run_nccl_trainer(pipe: Connection) -> None:
    """A process of it on the first GPU."""
    trainer = NcclTrainer(0, 1, torch.device("cuda", 0))
    while (order := pipe.recv())[0] != "stop":
        pipe.send(getattr(trainer, order[0])(*order[1:]))
    trainer.close()


def run_nccl_engine(layers: int | None, pipe: Connection) -> None:
    """A vLLM on the second GPU that its own engine can write to."""
    arguments = json.loads(os.environ.get("VLLM_ARGUMENTS", "{}"))
    os.environ["VLLM_ARGUMENTS"] = json.dumps({**arguments, "weight_transfer_config": {"backend": "nccl"}})
    engines.run_engine("mixture", (1,), layers, 1, pipe)


def expect(worker: Any, shapes: Shapes) -> None:
    """Know what vLLM's own engine is told of each update."""
    getattr(worker, "worker", worker).own_update = {
        "names": list(shapes),
        "dtype_names": ["bfloat16"] * len(shapes),
        "shapes": [list(shape) for shape in shapes.values()],
        "packed": True,
    }


def receive(worker: Any) -> None:
    """Take an update by vLLM's own engine."""
    within = getattr(worker, "worker", worker)  # in one process a call gets what is around the worker
    within.start_weight_update()
    within.update_weights(within.own_update)
    within.finish_weight_update()
    torch.cuda.synchronize()


@dataclass(frozen=True)
class Both:
    """A trainer and an engine between which both ways go.

    Attributes:
        trainer, engine: their processes.
        shapes: what the trainer has, by name.
        address: of the engine's sink.
    """

    trainer: Peer
    engine: ParentPeer
    shapes: Shapes
    address: str

    def by_own(self) -> float:
        """Seconds of an update by vLLM's own engine."""
        began = time.perf_counter()
        self.trainer.ask("send")
        self.engine.call(receive)
        self.trainer.answer()
        return time.perf_counter() - began

    def by_ours(self) -> Timed:
        """An update by this library."""
        timed: Timed = self.trainer.call("lend_and_update", [self.address])
        return timed

    def sums(self) -> Mapping[str, int]:
        """Of the engine's parameters, by name."""
        (found,) = self.engine.call(engines.sums)
        return dict(found)


@contextmanager
def both(layers: int | None) -> Iterator[Both]:
    """They have made their group when this is entered, and end with it."""
    engine = ParentPeer(run_nccl_engine, layers)
    try:
        shapes, (address,), (warmed,) = engine.answer()
        console.print(f"  {warmed}")
        trainer = Peer(run_nccl_trainer)
        try:
            trainer.call("have", shapes, 1, "device")
            port = _free_port()
            trainer.ask("join_group", port)
            at = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": WORLD_SIZE}
            engine.call("init_weight_transfer_engine", at)
            trainer.answer()
            engine.call(expect, shapes)
            yield Both(trainer, engine, shapes, address)
        finally:
            trainer.stop()
    finally:
        engine.stop()


def measure(rounds: int = 5, layers: int | None = None) -> list[Row]:
    """The row, where there are two GPUs. A version is taken in place, as both do by default."""
    if torch.cuda.device_count() < WORLD_SIZE:
        print("this needs two GPUs", file=sys.stderr)
        return []
    with both(layers) as pair, tempfile.TemporaryDirectory() as folder:
        first_own = pair.by_own()
        left = pair.sums()
        pair.trainer.call("open", "auto", f"ipc://{folder}/coordinator", "in_place")
        pair.trainer.call("have", pair.shapes, 1, "device")
        first = pair.by_ours()
        pair.by_ours()
        wrong = [name for name, each in pair.sums().items() if each != left[name]]
        assert not wrong, f"{len(wrong)} parameters differ from what vLLM's own engine leaves, the first {wrong[0]}"
        own, ours, links = [], [], []
        for _ in range(rounds):
            links.append(pair.trainer.call("link", 1))
            own.append(pair.by_own())
            ours.append(pair.by_ours())
    wall, theirs = median(timed.wall for timed in ours), median(own)
    detail = (
        f"{milliseconds(wall)}, held {milliseconds(median(timed.held for timed in ours))} ({ours[-1].said}), first "
        f"{milliseconds(first.wall)}; {AGAINST} {milliseconds(theirs)}, first {milliseconds(first_own)}; plain "
        f"peer copies {milliseconds(median(links))}"
    )
    return [Row("vLLM, mixture, lent on another GPU: auto, in place", wall / theirs, AGAINST, TARGET, detail)]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def main(
    rounds: Annotated[int, typer.Option(min=1, help="how often each way is timed; the median counts")] = 5,
    layers: Annotated[int | None, typer.Option(min=1, help="of the model; by default half of Qwen3-30B-A3B's")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="also write the table as JSON and Markdown")] = None,
) -> None:
    """Measure updates from another GPU against vLLM's own nccl engine."""
    report(measure(rounds, layers), json_path)


if __name__ == "__main__":
    typer.run(main)
