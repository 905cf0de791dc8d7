"""A trainer whose ranks have columns of matrices publishes these to a plain module, however many rows they have."""

from __future__ import annotations

import os
from collections import abc
from multiprocessing.connection import Connection

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from ckpt_transport import Config, ParameterServer, TensorShard
from ckpt_transport_torch import attach
from tests.fleet import context
from tests.patience import DEADLINE, PATIENT

RANKS, STEPS = 2, 3
SHAPES = {"fine": (1 << 17, 6), "wide": (40, 1536), "experts": (5, 12, 100)}
"""The first has more rows than anybody should list; rows of the second are read straight from another process."""


def version(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}


def part_of(whole: torch.Tensor, rank: int, ranks: int) -> TensorShard:
    """An uneven part of the second dimension."""
    columns = whole.shape[1]
    first, last = (columns * each // ranks - (columns // 6) * (0 < each < ranks) for each in (rank, rank + 1))
    offsets = (0, first, *(0 for _ in whole.shape[2:]))
    return TensorShard(whole[:, first:last].contiguous(), whole.shape, offsets)


def run_rank(environ: abc.Mapping[str, str], transport: str, how: str, sink: str, pipe: Connection) -> None:
    """A trainer's rank; rank 0 says of how many parts of tensors each plan is."""
    os.environ.update(environ)
    with ParameterServer(Config.load(transport=transport, bucket_bytes="256KiB", **PATIENT)) as server:
        for step in range(STEPS):
            given = {name: part_of(each, server.rank, RANKS) for name, each in version(step).items()}
            if how == "publish":
                report = server.publish(f"v{step}", given, [sink])
            else:
                server.register(f"v{step}", tensors=given)
                report = server.update(f"v{step}", [sink])
                server.unregister(f"v{step}")
            pipe.send(None if report is None else len(report.plan.manifest.tensors))
            pipe.recv()


@pytest.mark.parametrize(("transport", "how"), [("shm", "publish"), ("shm", "register"), ("gloo", "publish")])
def test_given_columns_on_two_ranks_then_a_module_has_them_and_the_plan_is_short(transport: str, how: str) -> None:
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    known = {"WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    environ = {name: str(value) for name, value in known.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    module = torch.nn.ParameterDict({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    with attach(module, config=Config.load(**PATIENT)) as attachment:
        pipes, processes = [], []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            arguments = {**environ, "RANK": str(rank)}, transport, how, attachment.address, theirs
            processes.append(context.Process(target=run_rank, args=arguments, daemon=True))
            processes[-1].start()
            pipes.append(ours)
        for step in range(STEPS):
            assert pipes[0].poll(DEADLINE)
            assert pipes[0].recv() == RANKS * len(SHAPES)
            expected = version(step)
            assert all(torch.equal(module[name], expected[name]) for name in SHAPES)
            for pipe in pipes:
                pipe.send("go on")
        for process in processes:
            process.join(DEADLINE)
