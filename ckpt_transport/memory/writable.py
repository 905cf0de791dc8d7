"""Some tensors cannot be written in place. This says which, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parameter import is_lazy

from ckpt_transport.memory.mappings import mapped_read_only
from ckpt_transport.memory.same_form import any_nested

ARRAYS = frozenset({torch.Tensor, torch.nn.Parameter})
"""Classes that say nothing of their own about memory."""
_layout, _is_cpu, _nbytes = map(attrgetter, ("layout", "is_cpu", "nbytes"))


def why_not_plain(tensor: torch.Tensor) -> str:
    """Why ``tensor`` is not an array in memory of its own; empty when it is one."""
    if tensor.is_nested:
        return "it is nested, so that it has no shape: pass a loader that writes what it is made of"
    if type(tensor) in ARRAYS and tensor.layout is torch.strided:
        return ""
    if is_lazy(tensor):
        return "it has no shape before the module is first called: call the module once"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        kind = type(tensor).__name__
        return f"it is a {kind}, which has no memory of its own: pass a loader that writes what the {kind} is made of"
    if tensor.layout is not torch.strided:
        return f"its layout is {tensor.layout}: replace it by its to_dense()"
    return ""


def not_plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Find the tensors that are no arrays in memory of their own, each with the reason, in words."""
    values = tensors.values()
    if ARRAYS.issuperset(map(type, values)) and set(map(_layout, values)) <= {torch.strided} and not any_nested(values):
        return {}
    return {name: reason for name, tensor in tensors.items() if (reason := why_not_plain(tensor))}


def unwritable(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Find the tensors that cannot be written, each with the reason and the cure, in words."""
    found = {name: reason for name, tensor in tensors.items() if (reason := _why_not(tensor))}
    return found | read_only({name: tensor for name, tensor in tensors.items() if name not in found})


def read_only(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """As :meth:`HostRanges.read_only`."""
    return HostRanges.of(tensors).read_only()


class HostRanges(NamedTuple):
    """Which host memory tensors take, all :func:`plain <why_not_plain>`. It keeps none of them.

    Attributes:
        names: of those that lie there.
        begins, ends: the addresses of their first bytes, and of those behind their last.
    """

    names: Sequence[str]
    begins: npt.NDArray[np.uint64]
    ends: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Self:
        """That of these."""
        names, values = list(tensors), list(tensors.values())
        if not all(map(_is_cpu, values)):
            names = [name for name, tensor in tensors.items() if tensor.is_cpu]
            values = [tensors[name] for name in names]
        begins = np.array(list(map(torch.Tensor.data_ptr, values)), np.uint64)
        if all(map(torch.Tensor.is_contiguous, values)):
            reaches = np.array(list(map(_nbytes, values)), np.uint64)
        else:
            reaches = np.array(list(map(_reach, values)), np.uint64)
        return cls(names, begins, begins + reaches)

    def read_only(self) -> dict[str, str]:
        """Find the tensors that lie in memory which is mapped read-only, each with the reason and the cure, in words.

        To write there would end the process. Torch does not know of it: ``from_numpy`` takes an array of a file that is
        mapped read-only.
        """
        if not self.names:
            return {}
        return {
            self.names[index]: "its memory is mapped read-only, as that of a file may be: replace it by its clone()"
            for index in mapped_read_only(self.begins, self.ends)
        }


def _why_not(tensor: torch.Tensor) -> str:
    reason = why_not_plain(tensor)
    if reason or not tensor.numel():
        return reason
    if tensor.is_meta:
        return "it is on the meta device and has no memory: call to_empty(device=...), or bring back what was offloaded"
    if not tensor.data_ptr():
        return "its memory was freed: bring back what was offloaded before the update"
    if _overlaps(tensor):
        return (
            f"some of its elements share memory (shape {list(tensor.shape)}, strides {list(tensor.stride())}), as "
            "those of expand() do: replace it by its clone()"
        )
    return ""


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether two elements lie at one place."""
    if tensor.is_contiguous():
        return False
    reach, apart = 0, True
    for stride, count in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if count > 1:
            apart = apart and stride > reach
            reach += stride * (count - 1)
    if apart:
        return False
    if torch._debug_has_internal_overlap(tensor) == 1:
        return True
    places = torch.zeros(reach + 1, dtype=torch.bool)
    places.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return int(places.count_nonzero()) < tensor.numel()


def _reach(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    if not tensor.numel():
        return 0
    last = sum(stride * (count - 1) for stride, count in zip(tensor.stride(), tensor.shape, strict=True))
    return (last + 1) * tensor.itemsize
