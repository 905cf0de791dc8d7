"""Says where the bytes of a version's tensors are in what an engine serves, so that single elements can be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ckpt_transport.memory import StridedBytes
from ckpt_transport.planning import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class ServedElements:
    """Says which byte of which tensor of a version is where in what is served.

    Attributes:
        specs: the tensors of a version.
        tensors: what is served, by name: plain memory, all of it on one device.
        copies: how a version gets there: from the number of a tensor in ``specs`` to one in ``tensors``, by bytes from
            the first of each. No byte of a tensor that is served is written by two of them, unless these are equal but
            for their sources, which are tied then. It is the same object as long as nothing but addresses changes.
        stays: looks whether all that is served is still where it was. It is asked while forward passes are held, so it
            should be quick. None where only asking the engine anew tells.
    """

    specs: Sequence[TensorSpec]
    tensors: Mapping[str, torch.Tensor]
    copies: StridedBytes
    stays: Callable[[], bool] | None = None

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the first byte of each served tensor is."""
        return tuple(map(torch.Tensor.data_ptr, self.tensors.values()))
