"""This rank's parts of a model whose parameters are DTensors, as tensor parallelism makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import accumulate, product
from typing import NamedTuple

import torch

from ckpt_transport import PlanMismatchError
from ckpt_transport.spi import is_dtensor, local_part

Runs = tuple[tuple[tuple[int, int], ...], ...]


class Part(NamedTuple):
    """What this rank has of one tensor.

    Attributes:
        tensor: its memory.
        shape: of the whole tensor.
        runs: of each dimension the indices that it has, as first ones and ends.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    runs: Runs

    def lies_in(self, other: torch.Tensor) -> bool:
        """Whether another tensor is the same memory in the same form."""
        mine = self.tensor
        return (mine.data_ptr(), mine.shape, mine.stride()) == (other.data_ptr(), other.shape, other.stride())


class LocalParts(torch.nn.Module):
    """Has the parts of a model's tensors as plain parameters of the same names, in the same memory.

    Args:
        model: whose tensors these are.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._of = [model]  # no module of this one
        self.parts: Mapping[str, Part] = {}
        self._left_out: frozenset[str] = frozenset()
        self.look_up()

    def look_up(self) -> None:
        """Find the model's tensors anew.

        Raises:
            CheckpointError: ranks have summands of a tensor; names it.
            PlanMismatchError: a tensor was in parts before, and is not now.
        """
        state = self._of[0].state_dict(keep_vars=True)
        parts = {name: self._part(name, value) for name, value in state.items() if isinstance(value, torch.Tensor)}
        if parts.keys() == self.parts.keys() and all(self.parts[name] is part for name, part in parts.items()):
            return
        self.parts = parts
        self._modules.clear()
        self._parameters.clear()
        for name, part in parts.items():
            *path, last = name.split(".")
            place: torch.nn.Module = self
            for step in path:
                if step not in place._modules:
                    place.add_module(step, torch.nn.Module())
                place = place.get_submodule(step)
            place.register_parameter(last, torch.nn.Parameter(part.tensor, requires_grad=False))

    def _part(self, name: str, value: torch.Tensor) -> Part:
        """That of before, where it is in the same memory. Some forward passes have it in place of the DTensor."""
        before = self.parts.get(name)
        if is_dtensor(value):
            found = local_part(name, value)
            if found is None:
                raise PlanMismatchError(f"this rank is not in the mesh of {name}, and serves nothing of it")
            part = Part(found.tensor, tuple(value.shape), tuple(tuple(runs) for runs in found.runs))
        else:
            local = value.detach()
            if before is not None and before.shape != tuple(local.shape) and not before.lies_in(local):
                raise PlanMismatchError(f"{name} was cut among ranks and is not any more: attach the model again")
            part = Part(local, tuple(local.shape), tuple(((0, size),) for size in local.shape))
        if before is not None and before.lies_in(part.tensor):
            return before
        return part

    def choose(self, brought: Set[str], ties: Iterable[Set[str]]) -> None:
        """Load one of tied tensors that are brought from now on: they have one memory, and one value."""
        self._left_out = frozenset(name for tied in ties for name in sorted(tied & brought)[1:])

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy this rank's part out of each whole tensor."""
        for name, whole in tensors:
            if name in self._left_out:
                continue
            target = self.get_parameter(name)
            for here, there in _boxes(self.parts[name].runs):
                target[here].copy_(whole[there])


Box = tuple[slice, ...]


def _boxes(runs: Runs) -> Iterable[tuple[Box, Box]]:
    """Where each box of a part lies in the part, and in the whole tensor."""
    if not all(runs):
        return
    placed = []
    for of_dimension in runs:
        ends = list(accumulate(end - start for start, end in of_dimension))
        begins = [0, *ends[:-1]]
        placed.append(list(zip(map(slice, begins, ends), (slice(*run) for run in of_dimension), strict=True)))
    for box in product(*placed):
        yield tuple(here for here, _ in box), tuple(there for _, there in box)
