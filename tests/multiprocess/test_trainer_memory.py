"""A trainer's rank that publishes needs two buckets of memory beside its shards, however much it publishes."""

from __future__ import annotations

import os
from collections import abc
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from ckpt_transport import Config, Mapping, ParameterServer, rules
from ckpt_transport_torch import attach
from tests.fleet import context
from tests.patience import DEADLINE, PATIENT

RANKS, LAYERS = 2, 24
LAYER_SHAPE = torch.Size([2048, 2048])
BUCKET_BYTES = 32 << 20
PYTHON_BYTES = 16 << 20
"""What modules that are imported late, threads and messages take: 10 to 11 MB, and half of a bucket here."""


def run_rank(
    environ: abc.Mapping[str, str], transport: str, mapping: Mapping | None, sink: str, pipe: Connection
) -> None:
    os.environ.update(environ)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (RANKS,))
    rows = LAYER_SHAPE[0] // RANKS
    shards = {
        f"{layer}.weight": DTensor.from_local(
            torch.full((rows, LAYER_SHAPE[1]), float(layer)), mesh, [Shard(0)], run_check=False
        )
        for layer in range(LAYERS)
    }
    config = Config.load(transport=transport, bucket_bytes=BUCKET_BYTES, **PATIENT)
    with ParameterServer(config) as server:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        for step in range(2):
            server.publish(f"step-{step}", shards, [sink] if server.rank == 0 else None, mapping=mapping)
        pipe.send(resident("VmHWM") - before)
    dist.destroy_process_group()


def resident(field: str) -> int:
    """Bytes of memory that this process has, ``VmRSS``, or has had at most, ``VmHWM``."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) << 10


@pytest.mark.parametrize(
    ("transport", "mapping", "dtype"),
    [
        ("shm", None, torch.float32),
        ("gloo", None, torch.float32),
        ("shm", Mapping.of(rules.Cast("BF16")), torch.bfloat16),
    ],
    ids=["shm", "gloo", "shm, cast"],
)
def test_given_shards_of_three_buckets_and_more_when_they_are_published_then_a_rank_takes_two_buckets_of_memory(
    transport: str, mapping: Mapping | None, dtype: torch.dtype
) -> None:
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    known = {"WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    environ = {name: str(value) for name, value in known.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    model = torch.nn.Sequential(*(torch.nn.Linear(LAYER_SHAPE[1], LAYER_SHAPE[0], bias=False) for _ in range(LAYERS)))
    model.to(dtype)
    pipes = []
    with attach(model) as served:
        processes = []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            arguments = {**environ, "RANK": str(rank)}, transport, mapping, served.address, theirs
            processes.append(context.Process(target=run_rank, args=arguments, daemon=True))
            processes[-1].start()
            pipes.append(ours)
        taken = [pipe.recv() for pipe in pipes if pipe.poll(DEADLINE)]
        for process in processes:
            process.join(DEADLINE)
    for number, weight in enumerate(model.parameters()):
        assert torch.equal(weight.data, torch.full(LAYER_SHAPE, float(number), dtype=dtype))
    assert len(taken) == RANKS
    assert max(taken) <= 2 * BUCKET_BYTES + PYTHON_BYTES
