"""Makes one rank of a vLLM of many, alone: a model with its shapes, and groups whose other members are not there.

``python -m benchmarks._lone_rank FOLDER RANK SIZE [--expert-parallel]`` records the loader of that rank's model and
writes what it needs to FOLDER/RANK.share. Nothing is loaded and nothing runs forward; memory that is not touched costs
nothing. It replaces a few functions of vLLM in its own process, so that no group waits for its members.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import torch.distributed as dist
import typer

from benchmarks._vllm_engine import names_of
from ckpt_transport.planning import Share, TensorSpec
from ckpt_transport.replay import record, required_bytes

COMMUNICATOR = "vllm.distributed.device_communicators.base_device_communicator.DeviceCommunicatorBase"


def pretend(rank: int, size: int) -> None:
    """Be one of ``size`` ranks."""
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
    from vllm.platforms import current_platform

    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    new_group: Any = dist.new_group
    replaced: dict[tuple[Any, str], Any] = {
        (dist, "new_group"): lambda ranks=None, **_: new_group(ranks, backend="fake"),
        (MessageQueue, "create_from_process_group"): lambda *_, **__: None,
        (parallel_state, "in_the_same_node_as"): lambda *_, **__: [True] * size,
        (current_platform, "get_device_communicator_cls"): lambda: COMMUNICATOR,
    }
    for (owner, name), value in replaced.items():
        setattr(owner, name, value)


def model_of(folder: Path, rank: int, size: int, *, expert_parallel: bool) -> torch.nn.Module:
    """The model of that rank, without weights."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    config = EngineArgs(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        dtype="bfloat16",
        tensor_parallel_size=size,
        enable_expert_parallel=expert_parallel,
        distributed_executor_backend="external_launcher",
    ).create_engine_config()
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(size, rank, "fake://", rank, "fake")
        parallel_state.initialize_model_parallel(size)
        torch.set_default_dtype(torch.bfloat16)
        model: torch.nn.Module = initialize_model(config)
        torch.set_default_dtype(torch.float32)
    return model


def specs_of(folder: Path) -> list[TensorSpec]:
    """The tensors of the checkpoint."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    return [TensorSpec(name, "BF16", shape) for name, shape in names_of(config)]


def share_of(model: Any, specs: list[TensorSpec]) -> Share | None:
    """What the model's loader takes of them; None for everything."""
    return required_bytes(record(model, model.load_weights, specs).layout)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the model's configuration is.")],
    rank: Annotated[int, typer.Argument(help="Which rank to be.")],
    size: Annotated[int, typer.Argument(help="Of how many.")],
    expert_parallel: Annotated[bool, typer.Option(help="Whole experts on each rank.")] = False,
) -> None:
    """Record the loader of one rank."""
    pretend(rank, size)
    model = model_of(folder, rank, size, expert_parallel=expert_parallel)
    share = share_of(model, specs_of(folder))
    (folder / f"{rank}.share").write_bytes(msgspec.msgpack.encode(share))


if __name__ == "__main__":
    typer.run(main)
