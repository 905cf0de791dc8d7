"""DeepSpeed ZeRO-3: each rank has a run of each flattened weight, and engines get these runs.

Usage: ``torchrun --nproc-per-node 2 -m examples.trainers.deepspeed_zero3 SINK_ADDRESS...``
"""

import sys

import deepspeed
import torch
import torch.distributed as dist

from ckpt_transport import ParameterServer, TensorShard
from examples.trainers.model import loss_of, model

CONFIG = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": 3}}


def shards(engine: deepspeed.DeepSpeedEngine) -> dict[str, list[TensorShard]]:
    """What this rank has; the last rank's run ends with padding."""
    return {
        name: TensorShard.of_run(weight.ds_tensor, weight.ds_shape, dist.get_rank() * weight.ds_tensor.numel())
        for name, weight in engine.module.named_parameters()
    }


def main(sinks: list[str], steps: int = 3) -> None:
    deepspeed.init_distributed("gloo")
    trained = model()
    engine, *_ = deepspeed.initialize(None, trained, torch.optim.AdamW(trained.parameters(), lr=1e-3), config=CONFIG)
    with ParameterServer() as server:
        for step in range(1, steps + 1):
            engine.backward(loss_of(engine))
            engine.step()
            report = server.publish(f"step-{step}", shards(engine), sinks)
            loss = float(loss_of(engine).detach())  # on all ranks
            print(f"{report.version}: loss {loss:.6f}" if report else "", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
