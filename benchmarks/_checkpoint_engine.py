"""Runs checkpoint-engine's parameter server on several ranks of one host, with its process group kept."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple

import torch

from benchmarks._gpu_worker import GpuMemory, Peer, free_port
from benchmarks._models import Shapes, tensors


class Theirs(NamedTuple):
    """Seconds of gathering metadata and of an update, and the extra GPU memory of one GPU in bytes."""

    metadata: float
    update: float
    extra: int


def run_rank(rank: int, size: int, port: int, shapes: Shapes, version: int, pipe: Connection) -> None:
    """One rank with its part of a version; on ``update`` it says where its worker is to read, and the seconds."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    from checkpoint_engine.ps import ParameterServer, _get_physical_gpu_id

    server = ParameterServer(auto_pg=False)
    server.init_process_group()
    own = _get_physical_gpu_id(server.device_manager, rank)
    named = {
        name: tensor.contiguous()
        for index, (name, tensor) in enumerate(tensors(shapes, version).items())
        if index * size // len(shapes) == rank
    }
    server.register_checkpoint("weights", named_tensors=named)
    while (order := pipe.recv())[0] != "stop":
        torch.distributed.barrier()
        began = time.perf_counter()
        if order[0] == "metadata":
            server.gather_metas("weights")
        else:
            server.update("weights", lambda handles: pipe.send({own: dict(handles)[own]}))
        pipe.send(time.perf_counter() - began)


def measure(shapes: Shapes, workers: Sequence[Peer], version: int, rounds: int) -> Theirs:
    """Have it update the workers, of which rank ``n`` is on GPU ``n``, and compare what they hold then."""
    size, port = len(workers), free_port()
    ranks = [Peer(run_rank, rank, size, port, shapes, version) for rank in range(size)]
    metadata = max(_all(ranks, "metadata"))
    taken = []
    with GpuMemory() as memory:
        for _ in range(rounds + 1):
            for rank in ranks:
                rank.ask("update")
            for rank, worker in zip(ranks, workers, strict=True):
                worker.ask("checkpoint-engine", rank.answer())
            taken.append(max(float(rank.answer()) for rank in ranks))
            assert {worker.answer() for worker in workers} == {"done"}
    for rank in ranks:
        rank.stop()
    assert not any(worker.call("wrong", version) for worker in workers), "checkpoint-engine left wrong weights"
    return Theirs(metadata, median(taken[1:]), memory.extra // size)


def _all(ranks: Sequence[Peer], order: str) -> list[float]:
    for rank in ranks:
        rank.ask(order)
    return [float(rank.answer()) for rank in ranks]
