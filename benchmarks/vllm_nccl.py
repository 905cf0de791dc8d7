"""Measures updates of a vLLM from a trainer on another GPU, against vLLM's own engine, which broadcasts over NCCL.

Both bring the same weights from the same process into the same engine, in turns, and no request runs: vLLM's own engine
packs tensors into large buffers, as its documentation advises. Versions are written in place, as it does, and staged.
Of each version what both leave is compared, with another version brought in between.

vLLM's interface for trainers is that of 0.25. Usage, with two GPUs: ``python -m benchmarks.vllm_nccl``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks import _vllm_situation as engines
from benchmarks._attempts import Attempts, Seconds, console
from benchmarks._brought import AUTO, Brought, Variant
from benchmarks._gpu_worker import ParentPeer, Peer
from benchmarks._models import Shapes
from benchmarks._report import Row, report
from benchmarks._trainer import Timed, Trainer, milliseconds, wait_for
from benchmarks._trainers import opened
from benchmarks.end_to_end import Commit
from tests.support.ports import free_port

AGAINST = "vLLM's own nccl engine"
TARGET = "<=0.083"
"""A twelfth."""
WORLD_SIZE = 2
VERSIONS = (1, 2)


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

    def have(self, version: int) -> None:
        """Have the trainer hold a version, on its GPU."""
        self.trainer.call("have", self.shapes, version, "device")

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
            port = free_port()
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


def measure(rounds: int, layers: int | None, attempts: Attempts) -> Iterator[Row]:
    """A row for each way to take a version, where there are two GPUs."""
    if torch.cuda.device_count() < WORLD_SIZE:
        console.print("this needs two GPUs")
        return
    with both(layers) as pair:
        left = []
        for version in VERSIONS:
            pair.have(version)
            pair.by_own()
            left.append(pair.sums())
        assert left[0] != left[1], "versions differ"
        for commit in Commit:
            variant = Variant(AUTO, commit.value)
            rows = _variant(pair, variant, left, rounds)
            yield from attempts.rows(f"vLLM, lent on another GPU: {variant}", rows)


def _variant(pair: Both, variant: Variant, left: Sequence[Mapping[str, int]], rounds: int) -> Iterator[Row]:
    """Both ways in turns. The trainer has the second of the versions, and its own engine has just brought the other.

    Args:
        left: the sums that vLLM's own engine leaves of each version.
    """
    pair.have(VERSIONS[0])
    pair.by_own()
    own, then, limits = [], [], []
    with opened([pair.trainer], variant):
        pair.have(VERSIONS[1])
        warmed: Timed = pair.trainer.call("lend_and_warm_up", [pair.address])
        first = pair.by_ours()
        wrong = [name for name, each in pair.sums().items() if each != left[1][name]]
        assert not wrong, f"{len(wrong)} parameters differ from what vLLM's own engine leaves, the first {wrong[0]}"
        pair.by_ours()
        for _ in range(rounds):
            limits.append(pair.trainer.call("copy_held", 1))
            own.append(pair.by_own())
            then.append(pair.by_ours())
    brought = Brought(warmed, first, then, limits, len(left[1]))
    detail = f"{AGAINST} {milliseconds(median(own))}; {brought.says}"
    console.print(f"  {variant}: {detail}")
    ratio = brought.wall / median(own)
    yield Row(f"vLLM, lent on another GPU: {variant}", ratio, AGAINST, TARGET, detail, brought.phases)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="how often each way is timed; the median counts")] = 5,
    layers: Annotated[int | None, typer.Option(min=1, help="of the model; by default half of Qwen3-30B-A3B's")] = None,
    seconds: Seconds = inf,
    json_path: Annotated[Path | None, typer.Option("--json", help="also write the table as JSON and Markdown")] = None,
) -> None:
    """Measure updates from another GPU against vLLM's own nccl engine."""
    attempts = Attempts(seconds)
    report(measure(rounds, layers, attempts), json_path)
    attempts.end()


if __name__ == "__main__":
    typer.run(main)
