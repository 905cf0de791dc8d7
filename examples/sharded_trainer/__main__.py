"""Train by FSDP2, and bring the weights to engines as they are: in shards, with nothing gathered.

Usage: ``torchrun --nproc-per-node 2 -m examples.sharded_trainer SINK_ADDRESS...``
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ckpt_transport import ParameterServer

WIDTH, STEPS = 256, 3


def model() -> torch.nn.Module:
    """The model that is trained here and served elsewhere."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, WIDTH))


def loss_of(module: torch.nn.Module) -> torch.Tensor:
    """How far the model is from giving back what it is given."""
    inputs = torch.eye(WIDTH)
    return torch.nn.functional.mse_loss(module(inputs), inputs)


def main(sinks: list[str]) -> None:
    dist.init_process_group("gloo")
    trained = model()
    fully_shard(trained, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    with ParameterServer() as server:
        for step in range(1, STEPS + 1):
            torch.autograd.backward(loss_of(trained))
            optimizer.step()
            optimizer.zero_grad()
            report = server.publish(f"step-{step}", trained.state_dict(), sinks)
            loss = float(loss_of(trained).detach())
            if report is not None:  # on rank 0
                print(f"{report.version}: loss {loss:.6f}, updated in {report.seconds * 1e3:.0f} ms", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
