"""A staging area is a second memory for what an engine serves: a version is loaded there, and exchanged with it.

After the exchange it holds the version before, bit for bit. So exchanging once more takes a version back.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch

from ckpt_transport.errors import BudgetError, PlanMismatchError
from ckpt_transport.memory.exchange import Exchange, Pair

Place = tuple[int, torch.device]
"""Where a tensor's memory begins."""


class StagingArea:
    """Holds as many bytes as the tensors that it was made for, and starts with a copy of theirs.

    Args:
        served: the tensors, by name; contiguous. Two names of one tensor have one place here.

    Raises:
        BudgetError: the memory cannot be had.
    """

    def __init__(self, served: Mapping[str, torch.Tensor]) -> None:
        self._served = dict(served)
        self._staged: dict[str, torch.Tensor] = {}
        self._pairs: dict[Place, Pair] = {}
        made: dict[Place, torch.Tensor] = {}
        for name, tensor in served.items():
            place = _place(tensor)
            if place not in made:
                try:
                    made[place] = tensor.detach().clone(memory_format=torch.contiguous_format)
                except (MemoryError, RuntimeError) as error:  # torch raises either, by the device
                    raise BudgetError(f"no memory to stage {name}: {error}") from error
                if tensor.numel():
                    self._pairs[place] = _raw(tensor), _raw(made[place])
            self._staged[name] = made[place]
        self._exchange = Exchange(list(self._pairs.values()))

    @property
    def nbytes(self) -> int:
        return sum(staged.numel() for _, staged in self._pairs.values())

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Where the tensors of a version are loaded, by name: of the types and shapes of those that are served."""
        return self._staged

    def is_for(self, served: Mapping[str, torch.Tensor]) -> bool:
        """Whether it was made for these very tensors."""
        return served.keys() == self._served.keys() and all(
            _place(tensor) == _place(self._served[name]) and tensor.nbytes == self._served[name].nbytes
            for name, tensor in served.items()
        )

    def exchange(self, served: Mapping[str, torch.Tensor]) -> None:
        """Exchange what is here and what is served, all or nothing; no forward pass may run.

        Args:
            served: the tensors as they are now.

        Raises:
            PlanMismatchError: they are not those that it was made for; nothing was changed.
        """
        if not self.is_for(served):
            raise PlanMismatchError("what is served was replaced while a version was staged beside it; update it again")
        self._exchange.run()


def why_not_staged(served: Mapping[str, torch.Tensor], budget: int) -> str:
    """Why no staging area can be made for these tensors; empty when one can.

    Args:
        served: as for :class:`StagingArea`.
        budget: bytes that it may take.
    """
    if apart := next((name for name, each in served.items() if not each.is_contiguous() or _is_a_view(each)), ""):
        return f"{apart} is not contiguous, or its memory holds other values than it has"
    runs = sorted({(str(each.device), each.data_ptr(), each.nbytes): name for name, each in served.items()}.items())
    for ((device, start, nbytes), name), ((next_device, next_start, _), other) in pairwise(runs):
        if device == next_device and next_start < start + nbytes:
            return f"{name} and {other} share a part of their memory"
    total = sum(nbytes for (_, _, nbytes), _ in runs)
    if total > budget:
        return f"a staging area takes {total:,} bytes, and staging_budget is {budget:,}; raise it where memory is free"
    return ""


def _is_a_view(tensor: torch.Tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg()


def _place(tensor: torch.Tensor) -> Place:
    return tensor.data_ptr(), tensor.device


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1).view(torch.uint8)
