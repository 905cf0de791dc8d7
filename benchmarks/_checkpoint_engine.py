"""Runs checkpoint-engine's parameter server on several ranks of one host, with its process group kept."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple

import torch

from benchmarks._brought import Brought
from benchmarks._gpu_worker import GpuMemory, Peer, peers
from benchmarks._models import Shapes, tensors
from benchmarks._row import Row
from benchmarks._trainer import filled, milliseconds
from benchmarks._trainers import ask_all
from tests.support.ports import free_port

AGAINST = "checkpoint-engine, group kept"
VERSION = 99
BUCKET_GIB = (1, 8)
"""Its buckets, of which it is given the better."""


class Theirs(NamedTuple):
    """Seconds of taking weights in, of gathering metadata and of an update; extra GPU memory of one GPU in bytes."""

    registered: float
    metadata: float
    update: float
    extra: int

    def __str__(self) -> str:
        return (
            f"{AGAINST}: {milliseconds(self.update)}, {self.extra / (1 << 30):.2f} GiB of each GPU; metadata "
            f"{milliseconds(self.metadata)}; registered in {self.registered:.1f} s"
        )

    def row(self, name: str, ours: Brought, target: str) -> Row:
        """An update by us over one by it."""
        detail = f"{milliseconds(ours.wall)}, {milliseconds(self.update)} with {self.extra / (1 << 30):.2f} GiB a GPU"
        return Row(name, ours.wall / self.update, AGAINST, target, detail)


def run_rank(rank: int, size: int, port: int, pipe: Connection) -> None:
    """One rank on the GPU of its number; on ``update`` it says where its worker is to read, and then the seconds."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    from checkpoint_engine.ps import ParameterServer, _get_physical_gpu_id

    server = ParameterServer(auto_pg=False)
    server.init_process_group()
    own = _get_physical_gpu_id(server.device_manager, rank)
    while (order := pipe.recv())[0] != "stop":
        torch.distributed.barrier()
        began = time.perf_counter()
        match order:
            case ("register", shapes, version):
                server.register_checkpoint("weights", named_tensors=_part(shapes, version, rank, size))
                torch.cuda.empty_cache()
            case ("metadata",):
                server.gather_metas("weights")
            case ("bucket", gib):
                os.environ["PS_MAX_BUCKET_SIZE_GB"] = str(gib)
            case ("update",):
                server.update("weights", lambda handles: pipe.send({own: dict(handles)[own]}))
        pipe.send(time.perf_counter() - began)


def _part(shapes: Shapes, version: int, rank: int, size: int) -> dict[str, torch.Tensor]:
    """A rank's part of a version, on its GPU, from where it is copied to the pool: the host has it once."""
    return {
        name: filled(tensor, torch.device("cuda", rank))
        for index, (name, tensor) in enumerate(tensors(shapes, version).items())
        if index * size // len(shapes) == rank
    }


def missing() -> str:
    """What it needs that is not here; empty where it can run."""
    if not torch.cuda.is_available():
        return "it needs GPUs"
    return "" if importlib.util.find_spec("checkpoint_engine") else "it is not installed"


def measure(shapes: Shapes, workers: Sequence[Peer], rounds: int) -> Theirs:
    """Have it update the workers, of which rank ``n`` is on GPU ``n``, and compare what they hold then."""
    size, port = len(workers), free_port(neighbours=1)
    with peers([(run_rank, rank, size, port) for rank in range(size)]) as ranks:
        registered = max(ask_all(ranks, "register", shapes, VERSION))
        metadata = max(ask_all(ranks, "metadata"))
        found = [_updates(ranks, workers, gib, rounds) for gib in BUCKET_GIB]
    update, extra = min(found)
    for worker in workers:
        assert not worker.call("wrong", VERSION), "checkpoint-engine left wrong weights"
    return Theirs(registered, metadata, update, extra)


def _updates(ranks: Sequence[Peer], workers: Sequence[Peer], bucket_gib: int, rounds: int) -> tuple[float, int]:
    """Seconds of an update, the median of all but the first, and the most memory that one GPU had to spare."""
    ask_all(ranks, "bucket", bucket_gib)
    taken = []
    with GpuMemory() as memory:
        for _ in range(rounds + 1):
            for rank in ranks:
                rank.ask("update")
            for rank, worker in zip(ranks, workers, strict=True):
                worker.ask("checkpoint-engine", rank.answer())
            taken.append(max(float(rank.answer()) for rank in ranks))
            assert {worker.answer() for worker in workers} == {"done"}
    return median(taken[1:]), memory.extra // len(ranks)
