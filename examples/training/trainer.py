"""The trainer: FSDP2 under torchrun; rank 0 prints a line of JSON for each step.

Usage: ``torchrun --nproc-per-node 2 -m examples.training.trainer STEPS SINK_ADDRESS``
"""

from __future__ import annotations

import sys

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ckpt_transport import ParameterServer
from examples.trainers.model import loss_of, model


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    Attributes:
        version: its name.
        loss: of the weights that it has brought.
        seconds: that the update took.
        paused: for how many of them the server held its forward passes.
        nbytes: that reached it.
    """

    version: str
    loss: float
    seconds: float
    paused: float
    nbytes: int


def main(steps: int, sink: str) -> None:
    dist.init_process_group("gloo")
    trained = model()
    fully_shard(trained, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    with ParameterServer() as server:
        for number in range(1, steps + 1):
            torch.autograd.backward(loss_of(trained))
            optimizer.step()
            optimizer.zero_grad()
            report = server.publish(f"step-{number}", trained.state_dict(), [sink])
            loss = float(loss_of(trained).detach())
            if report is not None:
                nbytes = sum(bucket.nbytes for bucket in report.plan.buckets)
                paused = max(report.paused.values())
                step = Step(version=report.version, loss=loss, seconds=report.seconds, paused=paused, nbytes=nbytes)
                print(msgspec.json.encode(step).decode(), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
