"""Runs the ranks of a trainer with FSDP2, one on each GPU, which publish their shards, or gather them first."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from benchmarks._models import Shapes
from benchmarks._placed_values import placed
from benchmarks._trainer import Timed, between, timed_of, wait_for
from ckpt_transport import Config, ParameterServer


class Brought(NamedTuple):
    """What one rank says of a version that it has brought.

    Attributes:
        wall: seconds of its call.
        timed: what the report says; None on ranks above 0.
        notes: of the plan, and how the version was taken in.
    """

    wall: float
    timed: Timed | None
    notes: tuple[str, ...]


def run_fsdp_rank(environ: Mapping[str, str], kind: str, shapes: Shapes, pipe: Connection) -> None:
    """One rank, which does as it is told.

    Args:
        environ: as torchrun sets it; the rank has the GPU of its number.
        kind: of the device, ``cuda`` or ``cpu``.
        shapes: of the model, by the names that a checkpoint has.
        pipe: brings orders, methods of :class:`FsdpRank`, and takes what they return.
    """
    os.environ.update(environ)
    rank = FsdpRank(kind, shapes)
    while (order := pipe.recv())[0] != "stop":
        pipe.send(getattr(rank, order[0])(*order[1:]))


class FsdpRank:
    """A rank of FSDP2, with its shards and a parameter server."""

    def __init__(self, kind: str, shapes: Shapes) -> None:
        number = int(os.environ["RANK"])
        self._device = torch.device(kind, number) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(self._device)
            dist.init_process_group("nccl", device_id=self._device)
        else:
            torch.set_num_threads(1)
            dist.init_process_group("gloo")
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        model = on_meta(shapes)
        fully_shard(model, mesh=mesh)
        model.to_empty(device=self._device)
        state: Mapping[str, DTensor] = model.state_dict()
        self._weights = {name: state[name] for name in shapes}
        self._server = ParameterServer(Config.load())

    def step(self, version: int) -> None:
        """Change all weights where they lie, as an optimizer does; returns when they are changed."""
        for index, weight in enumerate(self._weights.values()):
            local = weight.to_local()
            first = -(-weight.shape[0] // dist.get_world_size()) * dist.get_rank()
            local.copy_(placed(index, version, local.shape, self._device, first))
        wait_for(self._device)

    def publish(self, version: int, sinks: Sequence[str]) -> Brought:
        """Bring the shards as they are."""
        began = self._together()
        report = self._server.publish(f"v{version}", self._weights, sinks)
        wall = time.perf_counter() - began
        notes = () if report is None else (report.intake, *report.plan.notes)
        return Brought(wall, timed_of(wall, report), notes)

    def gather(self, version: int, sinks: Sequence[str]) -> Brought:
        """Gather every tensor, and have rank 0 lend them whole."""
        began = self._together()
        whole: dict[str, torch.Tensor] = {}
        for name, weight in self._weights.items():
            full = weight.full_tensor()
            if dist.get_rank() == 0:
                whole[name] = full
        wait_for(self._device)
        self._server.lend(f"v{version}", whole)
        report = self._server.update(f"v{version}", sinks)
        wall = time.perf_counter() - began
        self._server.unregister(f"v{version}")
        return Brought(wall, timed_of(wall, report), () if report is None else report.plan.notes)

    def copy_to_next(self, nbytes: int) -> float:
        """Seconds of plain copies of so many bytes to the GPU of the next rank."""
        following = (dist.get_rank() + 1) % dist.get_world_size()
        there = torch.device("cuda", following) if self._device.type == "cuda" else self._device
        return between(self._device, there, nbytes)

    def copy_here(self, nbytes: int) -> float:
        """Seconds of plain copies of so many bytes on this rank's own device."""
        return between(self._device, self._device, nbytes)

    def close(self) -> None:
        """Leave the others; all ranks do it at the same time."""
        self._server.close()
        dist.destroy_process_group()

    def _together(self) -> float:
        """When all ranks were here, and nothing was left to do on their devices."""
        dist.barrier()
        wait_for(self._device)
        return time.perf_counter()


def on_meta(shapes: Shapes) -> torch.nn.Module:
    """Nested modules that have a parameter of each name, and no memory."""
    root = torch.nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        empty = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        module.register_parameter(last, torch.nn.Parameter(empty, requires_grad=False))
    return root
