"""Ray: a trainer and two engines are actors, and the engines' handles are where weights go.

Usage: ``python -m examples.trainers.ray_actors``; with ``RAY_ADDRESS``, on a cluster that runs.
"""

from typing import Any

import ray
import torch

from ckpt_transport import ParameterServer
from ckpt_transport_torch import attach
from examples.trainers.model import loss_of, model


class Rollout:
    def __init__(self) -> None:
        self.served = model()
        self.attachment = attach(self.served)  # several hosts: attach(self.served, node_address(), config=...)

    def address(self) -> str:
        return self.attachment.address

    def loss(self) -> float:
        return float(loss_of(self.served).detach())


class Trainer:
    def __init__(self) -> None:
        self.trained = model()
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=1e-3)
        self.server = ParameterServer(rank=0, world_size=1)

    def step(self, version: str, rollouts: list[Any]) -> float:
        torch.autograd.backward(loss_of(self.trained))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.server.publish(version, self.trained.state_dict(), rollouts)
        return float(loss_of(self.trained).detach())


def main(steps: int = 3) -> None:
    ray.init(log_to_driver=False)
    rollouts = [ray.remote(Rollout).options(num_cpus=0).remote() for _ in range(2)]
    trainer = ray.remote(Trainer).options(num_cpus=0).remote()
    for step in range(1, steps + 1):
        loss = ray.get(trainer.step.remote(f"step-{step}", rollouts), timeout=120)
        served = [f"{each:.6f}" for each in ray.get([rollout.loss.remote() for rollout in rollouts], timeout=60)]
        print(f"step-{step}: loss {loss:.6f}, served with {' and '.join(served)}", flush=True)


if __name__ == "__main__":
    main()
