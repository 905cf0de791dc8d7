"""FSDP2 over tensor parallelism: parts of parts go to engines as they are.

Usage: ``torchrun --nproc-per-node 4 -m examples.trainers.fsdp2_tensor_parallel SINK_ADDRESS...``
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ckpt_transport import ParameterServer
from examples.trainers.model import loss_of, model


def main(sinks: list[str], steps: int = 3) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    trained = model()
    parallelize_module(trained, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(trained, mesh=mesh["data"])
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
