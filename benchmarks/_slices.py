"""A worker of a tensor-parallel engine takes the slices that vLLM's ranks take, and fuses what vLLM fuses.

Rows of queries, keys and values, which are one parameter; rows of gates and ups, which are one for all experts of a
layer; columns of outputs and downs; all of norms and routers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from benchmarks._models import Shapes, value
from ckpt_transport_torch import attach

EXPERT = re.compile(r"(.*)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
FUSED = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.weight")
BY_COLUMNS = re.compile(r"o_proj|down_proj")
WHOLE = re.compile(r"norm|\.gate\.weight")


class Place(NamedTuple):
    """Where a slice lies in the engine.

    Attributes:
        parameter: its name.
        expert: the index of the expert's part; -1 for all of it.
        part, parts: which rows of that, of so many equal blocks.
    """

    parameter: str
    expert: int = -1
    part: int = 0
    parts: int = 1

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """That place in the parameter."""
        own = whole if self.expert < 0 else whole[self.expert]
        return own.chunk(self.parts)[self.part]


class Slices(torch.nn.Module):
    """One rank's part of a mixture of experts.

    Args:
        shapes: of the whole weights, named as :class:`ckpt_transport.simulator.Model` names them.
        rank, size: of the engine; widths are multiples of its size.
        device: where the part is.
    """

    def __init__(self, shapes: Shapes, rank: int, size: int, device: torch.device) -> None:
        super().__init__()
        self._rank, self._size = rank, size
        self._places = {name: _place(name) for name in shapes}
        experts = 1 + max((place.expert for place in self._places.values()), default=-1)
        for name, place in self._places.items():
            if place.parameter not in self._parameters:
                rows, *columns = self._slice(name, torch.empty(shapes[name], device="meta")).shape
                several = (experts,) if place.expert >= 0 else ()
                empty = torch.zeros((*several, place.parts * rows, *columns), dtype=torch.bfloat16, device=device)
                self.register_parameter(place.parameter, torch.nn.Parameter(empty, requires_grad=False))

    def load(self, pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy the slices of these tensors; a loader as engines have it."""
        for name, tensor in pairs:
            self._own(name).copy_(self._slice(name, tensor))

    def wrong(self, version: int) -> list[str]:
        """Names of weights of which the slice is not that version's, bit by bit."""
        names = enumerate(self._places)
        return [name for index, name in names if not bool((self._own(name) == value(index, version)).all())]

    def _own(self, name: str) -> torch.Tensor:
        place = self._places[name]
        return place.of(self.get_parameter(place.parameter).data)

    def _slice(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What this rank takes of a whole weight."""
        if WHOLE.search(name):
            return tensor
        return tensor.chunk(self._size, dim=1 if BY_COLUMNS.search(name) else 0)[self._rank]


def _place(name: str) -> Place:
    if found := FUSED.fullmatch(name):
        return Place(_plain(f"{found[1]}.self_attn.qkv_proj.weight"), part="qkv".index(found[2]), parts=3)
    if found := EXPERT.fullmatch(name):
        if found[3] == "down":
            return Place(_plain(f"{found[1]}.mlp.experts.w2_weight"), int(found[2]))
        return Place(_plain(f"{found[1]}.mlp.experts.w13_weight"), int(found[2]), int(found[3] == "up"), 2)
    return Place(_plain(name))


def _plain(name: str) -> str:
    return name.replace(".", "_")


def run_rank(rank: int, size: int, engine: str, shapes: Shapes, device: str, pipe: Connection) -> None:
    """A worker of an engine of ``size`` ranks; takes the orders of :func:`benchmarks._gpu_worker.run_worker`."""
    from benchmarks._gpu_worker import serve_orders

    if device != "cpu":
        torch.cuda.set_device(device)
    module = Slices(shapes, rank, size, torch.device(device))
    with attach(module, loader=module.load, engine=engine, label=f"{engine} {rank}") as attachment:
        pipe.send(attachment.address)
        serve_orders(pipe, module.wrong, module.load)
