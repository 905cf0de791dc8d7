"""Does what one host does in :mod:`benchmarks.p2p_joiners`; lines on its standard input drive it."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from benchmarks._tcp import ADDRESS
from ckpt_transport import Config, Holder, Joiner
from ckpt_transport_torch import attach

TENSOR_BYTES = 256 << 10
VERSION = "step-42"


def tensors(nbytes: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(42)
    count = nbytes // TENSOR_BYTES
    return {
        f"w{n}": torch.randint(0, 255, (TENSOR_BYTES,), dtype=torch.uint8, generator=generator) for n in range(count)
    }


def digest(state: dict[str, torch.Tensor]) -> str:
    whole = hashlib.blake2b()
    for name in sorted(state):
        whole.update(state[name].numpy().data)
    return whole.hexdigest()


def hold(nbytes: int, metas: Path, config: Config) -> None:
    """Serve the version until the standard input ends."""
    with Holder(VERSION, tensors=tensors(nbytes), address=f"tcp://{os.environ[ADDRESS]}:0", config=config) as holder:
        holder.start()
        holder.address_file.save(metas, config)
        print("ready", flush=True)
        sys.stdin.read()


def serve(nbytes: int, config: Config) -> None:
    """Be an engine without weights; on every line say whether it has them all, and forget them."""
    module = torch.nn.Module()
    for name, tensor in tensors(nbytes).items():
        module.register_buffer(name, torch.zeros_like(tensor))
    wanted = digest(tensors(nbytes))
    with attach(module, f"tcp://{os.environ[ADDRESS]}:0", config=config) as attachment:
        print(attachment.address, flush=True)
        for _ in sys.stdin:
            state = module.state_dict()
            print(digest(state) == wanted, flush=True)
            for tensor in state.values():
                tensor.zero_()


def lead(metas: list[Path], sinks: list[str], config: Config) -> None:
    """Bring the version to the sinks; say how long it took."""
    report = Joiner(metas, config).update(VERSION, sinks)
    sys.stdout.buffer.write(msgspec.json.encode({"seconds": report.seconds, "run": report.phases["run"]}) + b"\n")


def in_lock_step(nbytes: int, bucket: int, rank: int, world: int, address: str) -> None:
    """Rank 0 holds; the others read a bucket each, then broadcast theirs in turn, and all wait for each other.

    The order of checkpoint_engine/ps.py, ParameterServer._update_per_bucket with ``ranks``, version 0.4.2: in every
    round each receiver fetches one bucket from its owner, then the buckets are broadcast one after the other. Written
    anew on gloo, since the original needs GPUs.
    """
    dist.init_process_group("gloo", init_method=f"tcp://{address}:29555", rank=rank, world_size=world)
    receivers = dist.new_group(list(range(1, world)))
    mine, buffer = torch.ones(bucket, dtype=torch.uint8), torch.empty(bucket, dtype=torch.uint8)
    dist.barrier()
    started = time.perf_counter()
    left = nbytes // bucket
    while left > 0:
        fetching = range(1, min(left, world - 1) + 1)
        if rank == 0:
            for work in [dist.isend(mine, receiver) for receiver in fetching]:
                assert work is not None
                work.wait()
        elif rank in fetching:
            dist.recv(mine, 0)
        if rank and world > 2:
            for receiver in fetching:
                dist.broadcast(mine if receiver == rank else buffer, receiver, group=receivers)
        left -= len(fetching)
    dist.barrier()
    print(time.perf_counter() - started, flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["hold", "serve", "lead", "lock-step"])
    parser.add_argument("--nbytes", type=int, default=0)
    parser.add_argument("--bucket", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=0)
    parser.add_argument("--address", default="")
    parser.add_argument("--metas", type=Path, action="append", default=[])
    parser.add_argument("--sink", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = Config.load()
    if given.part == "hold":
        hold(given.nbytes, given.metas[0], config)
    elif given.part == "serve":
        serve(given.nbytes, config)
    elif given.part == "lead":
        lead(given.metas, given.sink, config)
    else:
        in_lock_step(given.nbytes, given.bucket, given.rank, given.world, given.address)


if __name__ == "__main__":
    main()
