"""A given tensor is a tensor as one source gives it, whole or in part, before anything says where its bytes lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.given import same_tensors
from ckpt_transport.checkpoint.low_rank import LowRank, Sum
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.values.manifest import TensorSpec


class GivenTensor(NamedTuple):
    """A tensor as one source gives it: whole, or a part.

    Attributes:
        spec: name, dtype and shape of the whole tensor, as it is to be sent.
        tensor: what this source has of it; where it has another dtype, it is cast on the way.
        ranges: of the whole tensor's bytes, in the order in which ``tensor`` has them.
        replicated: other sources give the same bytes.
        added: is added to its elements on the way.
    """

    spec: TensorSpec
    tensor: torch.Tensor
    ranges: Sequence[StridedRange]
    replicated: bool
    added: tuple[LowRank, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(part.total for part in self.ranges)

    @property
    def cast(self) -> bool:
        """Whether it is sent in another dtype than it has."""
        return self.tensor.dtype is not dtypes.TORCH[self.spec.dtype]

    @property
    def computed(self) -> bool:
        """Whether other bytes are sent than ``tensor`` has."""
        return self.cast or bool(self.added)

    def elements(self) -> Iterator[torch.Tensor]:
        """The elements that are sent, before they are cast: all at once, or in blocks where they are computed."""
        if not self.added:
            yield self.tensor.detach()
            return
        yield from (block for _, block in Sum(self.tensor, self.added).blocks(0, self.tensor.numel()))


def labels_of(tensors: Sequence[GivenTensor]) -> list[str]:
    """What people call each: by the name of its tensor, and a part that does not begin it also by its first byte."""
    return [
        f"{tensor.spec.name}[{tensor.ranges[0].start}:]" if tensor.ranges[0].start else tensor.spec.name
        for tensor in tensors
    ]


def replicated_names(tensors: Sequence[GivenTensor]) -> tuple[str, ...]:
    """Names of those that other sources give, too."""
    return tuple(dict.fromkeys(tensor.spec.name for tensor in tensors if tensor.replicated))


def same_names(tensors: Sequence[GivenTensor]) -> tuple[tuple[str, ...], ...]:
    """Names under which the same elements were given, as tied weights are by ``state_dict()``."""
    ranges = {tensor.spec.name: (tensor.spec.dtype, tensor.ranges) for tensor in tensors}
    single = len(ranges) == len(tensors)
    plain = {tensor.spec.name: tensor.tensor for tensor in tensors if not tensor.added}
    found = same_tensors(plain) if single else ()
    return tuple(names for names in found if all(ranges[name] == ranges[names[0]] for name in names))
