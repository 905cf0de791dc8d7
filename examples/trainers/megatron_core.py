"""megatron-core: its sharded state dict says where a rank's parts lie, and engines get them from there.

Usage: ``torchrun --nproc-per-node 2 -m examples.trainers.megatron_core SINK_ADDRESS...``
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig

from ckpt_transport import ParameterServer, TensorShard
from examples.trainers.model import WIDTH, loss_of


def main(sinks: list[str]) -> None:
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=dist.get_world_size())
    one: Any = {"num_layers": 1, "hidden_size": WIDTH, "num_attention_heads": 4, "use_cpu_initialization": True}
    how: Any = {"config": TransformerConfig(**one), "init_method": torch.nn.init.xavier_normal_, "bias": True}
    up = ColumnParallelLinear(WIDTH, WIDTH, gather_output=False, **how)
    down = RowParallelLinear(WIDTH, WIDTH, input_is_parallel=True, skip_bias_add=False, **how)
    torch.autograd.backward(loss_of(lambda inputs: down(torch.tanh(up(inputs)[0]))[0]))
    torch.optim.AdamW([*up.parameters(), *down.parameters()], lr=1e-3).step()
    about = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    state = up.sharded_state_dict("0.", metadata=about) | down.sharded_state_dict("2.", metadata=about)
    parts = [part for part in state.values() if isinstance(part, ShardedTensor) and is_main_replica(part.replica_id)]
    shards = {part.key: TensorShard(part.data, part.global_shape, part.global_offset) for part in parts}
    with ParameterServer() as server:
        report = server.publish("step-1", shards, sinks)
    loss = loss_of(lambda inputs: down(torch.tanh(up(inputs)[0]))[0])
    print(f"{report.version}: loss {float(loss.detach()):.6f}" if report else "", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
