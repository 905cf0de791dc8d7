"""FSDP2: weights go to engines in the shards that ranks have, and nothing is gathered.

Usage: ``torchrun --nproc-per-node 2 -m examples.trainers.fsdp2 SINK_ADDRESS...``
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ckpt_transport import ParameterServer
from examples.trainers.model import loss_of, model


def main(sinks: list[str], steps: int = 3) -> None:
    dist.init_process_group("gloo")
    trained = model()
    fully_shard(trained, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    with ParameterServer() as server:
        for step in range(1, steps + 1):
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
