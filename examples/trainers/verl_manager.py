"""verl: its manager brings an actor group's weights to rollout workers, by the engine ``ckpt_transport``.

Usage: ``python -m examples.trainers.verl_manager``; manager, worker groups and rollout workers are verl's own, and what
they train and serve are small models.
"""

from collections.abc import AsyncIterator
from typing import Any

import ray
import torch
from verl.checkpoint_engine import CheckpointEngineManager, CheckpointEngineRegistry, CheckpointEngineWorker
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.workers.config import CheckpointEngineConfig, RolloutConfig

from examples.trainers.model import loss_of, model

ENGINE = CheckpointEngineConfig(
    backend="ckpt_transport",
    update_weights_bucket_megabytes=1,
    custom_backend_module="ckpt_transport_verl.checkpoint_engine",
    engine_kwargs={"ckpt_transport": {"rollout_dtype": "float32"}},
)


class Trainer(Worker):
    """A rank of the actor group, as verl's own: it is asked for weights, and for what its checkpoint engine does."""

    def __init__(self) -> None:
        import ckpt_transport_verl.checkpoint_engine  # noqa: F401

        super().__init__()
        torch.distributed.init_process_group("gloo")
        self.trained = model()
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=1e-3)
        options = ENGINE.engine_kwargs[ENGINE.backend]
        self.checkpoint_engine = CheckpointEngineRegistry.new(
            ENGINE.backend, bucket_size=1 << 20, is_master=self.rank == 0, **options
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def step(self) -> float:
        torch.autograd.backward(loss_of(self.trained))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss_of(self.trained).detach())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL, blocking=False)
    async def update_weights(self, global_steps: int | None = None, mode: str = "auto") -> Any:
        return await self.checkpoint_engine.send_weights(iter(self.trained.state_dict().items()), global_steps)

    @register(dispatch_mode=Dispatch.DP_COMPUTE, blocking=False)
    def execute_checkpoint_engine(self, method: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self.checkpoint_engine, method)(*arguments, **named)


class ServedModel:
    """What verl calls a server adapter: it brings tensors to an inference engine, here to a module."""

    def __init__(self) -> None:
        self.served = model()

    async def update_weights(self, weights: AsyncIterator[tuple[str, torch.Tensor]], **_: Any) -> None:
        state = self.served.state_dict()
        async for name, tensor in weights:
            state[name].copy_(tensor)


class Rollout(CheckpointEngineWorker):
    """verl's rollout worker, which can be asked how well its model does."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def loss(self) -> float:
        return float(loss_of(self.server_adapter.served).detach())


class Replica:
    """The rollout workers of one inference server, which has no requests to abort."""

    def __init__(self, workers: list[Any]) -> None:
        self.workers = workers

    async def nothing(self, **_: Any) -> None: ...

    abort_all_requests = release_kv_cache = resume_kv_cache = resume_generation = nothing


def group(kind: type, ranks: int, *arguments: Any) -> Any:
    made = RayClassWithInitArgs(ray.remote(kind), *arguments)
    pool = RayResourcePool([ranks], use_gpu=False, max_colocate_count=1)
    return RayWorkerGroup(pool, made, device_name="cpu")


def start() -> tuple[Any, Any, Any]:
    """An actor group and a group of rollouts, of two ranks each, and the manager between them."""
    actors = group(Trainer, 2)
    rollouts = group(Rollout, 2, RolloutConfig(name="vllm", checkpoint_engine=ENGINE), None, ServedModel())
    return actors, rollouts, CheckpointEngineManager(ENGINE, actors, [Replica([worker]) for worker in rollouts.workers])


def main(steps: int = 3) -> None:
    ray.init(num_cpus=4, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    actors, rollouts, manager = start()
    for step in range(1, steps + 1):
        loss = actors.step()[0]
        metrics = manager.update_weights(global_steps=step)
        served = " and ".join(f"{each:.6f}" for each in rollouts.loss())
        print(f"step-{step}: loss {loss:.6f}, served with {served}, {metrics}", flush=True)


if __name__ == "__main__":
    main()
