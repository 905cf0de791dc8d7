"""A shadow is a second tensor for one that is served: on its device, or page-locked on the host where that is full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

import torch

from ckpt_transport.errors import BudgetError
from ckpt_transport.memory import SameForm, default_budget
from ckpt_transport.memory.dense import is_dense
from ckpt_transport.memory.page_locked import page_locked

ALIGNMENT = 256

MakeShadows = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
"""Makes a copy of each dense tensor, of its type, shape and strides.

Raises:
    BudgetError: the memory cannot be had.
"""


def on_device(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Shadows on the device of each tensor."""
    made = []
    for tensor in tensors:
        try:
            made.append(tensor.detach().clone(memory_format=torch.preserve_format))
        except (MemoryError, RuntimeError) as error:  # torch raises either, by the device
            raise BudgetError(f"no memory to stage {tensor.nbytes:,} bytes more: {error}") from error
    return made


def on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Shadows in one run of page-locked memory of the host, where a GPU reads and writes it."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    *starts, nbytes = accumulate(sizes, initial=0)
    raw = page_locked(nbytes)
    shadows = []
    for start, tensor in zip(starts, tensors, strict=True):
        memory = raw[start : start + tensor.nbytes].view(tensor.dtype)
        shadow = memory.as_strided(tensor.shape, tensor.stride())
        shadow.copy_(tensor.detach(), non_blocking=True)
        shadows.append(shadow)
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return shadows


@dataclass(frozen=True, slots=True)
class ShadowNeeds:
    """What shadows of some tensors take; found once, and the same until the tensors are others.

    Attributes:
        why_not: why they can have none; empty where they can.
        why_not_by_element: why their elements cannot be changed one by one, where shadows can be had; else empty.
        nbytes: of all.
        on_gpus: whether all of the tensors are on GPUs.
    """

    why_not: str
    why_not_by_element: str
    nbytes: int
    on_gpus: bool

    @classmethod
    def of(cls, served: Mapping[str, torch.Tensor]) -> Self:
        """Of these tensors, by name."""
        total = sum(nbytes for _, _, nbytes in _runs(served))
        on_gpus = all(tensor.is_cuda for tensor in served.values())
        return cls(why_not_apart(served), why_not_contiguous(served), total, on_gpus)

    def choose(self, budget: int) -> tuple[MakeShadows, str]:
        """How they are made within ``budget`` bytes of the device of each tensor; and why they cannot, or nothing.

        Where a GPU has no room, half of the host's free memory may be taken.
        """
        if self.why_not or self.nbytes <= budget:
            return on_device, self.why_not
        if self.on_gpus and self.nbytes <= default_budget():
            return on_host, ""
        where = f", and half of what is free on the host {default_budget():,}" if self.on_gpus else ""
        return on_device, (
            f"a staging area takes {self.nbytes:,} bytes, and staging_budget is {budget:,}{where}; raise it where "
            "memory is free"
        )


class KnownShadowNeeds:
    """Finds the needs of shadows once for tensors that lie where they did, in the form that they had. It keeps none."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._addresses: list[int] = []
        self._form: SameForm | None = None
        self._needs: ShadowNeeds | None = None

    def of(self, served: Mapping[str, torch.Tensor]) -> ShadowNeeds:
        """See :meth:`ShadowNeeds.of`; of plain tensors."""
        tensors = list(served.values())
        addresses = list(map(torch.Tensor.data_ptr, tensors))
        is_known = addresses == self._addresses and list(served) == self._names
        if self._needs is None or not is_known or self._form is None or not self._form.is_that_of(tensors):
            self._needs = ShadowNeeds.of(served)
            self._names, self._addresses, self._form = list(served), addresses, SameForm.of(tensors)
        return self._needs


def why_not_apart(served: Mapping[str, torch.Tensor]) -> str:
    """Which of these tensors is not a run of bytes apart from all others that are not tied to it; empty for none."""
    if name := next((name for name, each in served.items() if not is_dense(each) or _is_a_view(each)), ""):
        return (
            f"the memory of {name} holds other values than it has, or others between them; what has its place as a "
            "contiguous() clone() can be staged"
        )
    for ((device, start, nbytes), name), ((next_device, next_start, _), other) in pairwise(
        sorted(_runs(served).items())
    ):
        if device == next_device and next_start < start + nbytes:
            return f"{name} and {other} share a part of their memory"
    return ""


def why_not_contiguous(served: Mapping[str, torch.Tensor]) -> str:
    """Which of these tensors has its elements in another order than a version brings them; empty for none."""
    name = next((name for name, each in served.items() if not each.is_contiguous()), "")
    return name and f"{name} is not contiguous, so that no single elements of it can be changed"


def _runs(served: Mapping[str, torch.Tensor]) -> Mapping[tuple[str, int, int], str]:
    """Device, first byte and length of each, with the name of one of those that are there."""
    return {(str(each.device), each.data_ptr(), each.nbytes): name for name, each in served.items()}


def _is_a_view(tensor: torch.Tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg()
