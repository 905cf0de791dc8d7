"""Says where the bytes of a version's tensors are in what an engine serves, so that single elements can be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ckpt_transport.memory import StridedBytes
from ckpt_transport.planning import TensorSpec, WholeModule


@dataclass(frozen=True, slots=True, eq=False)
class ServedElements:
    """Says which byte of which tensor of a version is where in what is served.

    Attributes:
        specs: the tensors of a version.
        tensors: what is served, by name: plain memory, all of it on one device; without what only modules of ``whole``
            are loaded to.
        copies: how a version gets there: from the number of a tensor in ``specs`` to one in ``tensors``, by bytes from
            the first of each. No byte of a tensor that is served is written by two of them, unless these are equal but
            for their sources, which are tied then. It is the same object as long as nothing but addresses changes.
        stays: looks whether all that is served is still where it was. It is asked while forward passes are held, so it
            should be quick. None where only asking the engine anew tells.
        whole: modules of which single elements cannot be followed. What they are loaded from is loaded beside them, see
            :meth:`~ckpt_transport.Engine.stage_whole`.
        whole_nbytes: bytes that this takes.
        whole_served: what these modules are loaded to, by name, as far as it is plain memory. The next delta brings all
            of it; it is looked at so that nobody goes back to what somebody else has written.
    """

    specs: Sequence[TensorSpec]
    tensors: Mapping[str, torch.Tensor]
    copies: StridedBytes
    stays: Callable[[], bool] | None = None
    whole: Sequence[WholeModule] = ()
    whole_nbytes: int = 0
    whole_served: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the first byte of each served tensor is."""
        return tuple(map(torch.Tensor.data_ptr, self.tensors.values()))

    @property
    def whole_names(self) -> frozenset[str]:
        """Names of the tensors of a version that modules take whole."""
        return frozenset(name for module in self.whole for name in module.tensors)
