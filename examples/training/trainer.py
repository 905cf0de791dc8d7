"""The trainer: FSDP2 under torchrun; rank 0 prints a line of JSON for each step.

It trains in FP32 and publishes in BF16, of which a step at a usual learning rate changes one element in twenty: each
rank sends what has changed in its part.

Usage: ``torchrun --nproc-per-node 2 -m examples.training.trainer STEPS LEARNING_RATE SINK_ADDRESS``
"""

from __future__ import annotations

import sys

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ckpt_transport import Config, Mapping, ParameterServer, Report, rules
from examples.trainers.model import model
from examples.training.task import loss_of


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step.

    Attributes:
        version: its name.
        loss: of the weights that it has brought.
        seconds: that the update took.
        paused: for how many of them the server held its forward passes.
        nbytes: that reached it.
        all_nbytes: that all of the version has.
        changed: which part of the elements was sent.
    """

    version: str
    loss: float
    seconds: float
    paused: float
    nbytes: int
    all_nbytes: int
    changed: float


def loss_as_served(trained: torch.nn.Module) -> float:
    """The loss of what a step brings: weights as BF16 has them. Only this gathers them; the update does not."""
    served = model()
    state = {name: tensor.full_tensor().to(torch.bfloat16) for name, tensor in trained.state_dict().items()}
    served.load_state_dict(state)
    return float(loss_of(served).detach())


def main(steps: int, rate: float, sink: str) -> None:
    dist.init_process_group("gloo")
    trained = model()
    fully_shard(trained, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate)
    in_bfloat16 = Mapping.of(rules.Cast("BF16"))
    with ParameterServer(Config.load(delta="on", commit="auto")) as server:
        for number in range(1, steps + 1):
            torch.autograd.backward(loss_of(trained))
            optimizer.step()
            optimizer.zero_grad()
            report = server.publish(f"step-{number}", trained.state_dict(), [sink], mapping=in_bfloat16)
            loss = loss_as_served(trained)
            if report is not None:
                print(msgspec.json.encode(_step(report, loss)).decode(), flush=True)
    dist.destroy_process_group()


def _step(report: Report, loss: float) -> Step:
    nbytes = sum(bucket.nbytes for bucket in report.plan.buckets)
    by_delta = report.delta if report.delta is not None and report.delta.base else None
    return Step(
        version=report.version,
        loss=loss,
        seconds=report.seconds,
        paused=max(report.paused.values()),
        nbytes=nbytes,
        all_nbytes=nbytes if by_delta is None else by_delta.version_nbytes,
        changed=1.0 if by_delta is None else by_delta.changed / by_delta.elements,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
