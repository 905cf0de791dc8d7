"""A backend finds the largest magnitudes of weights and casts their elements, on one device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

FIRST_CAPABILITY = (8, 9)
"""The compute capability of the first GPUs that round to e4m3 themselves."""


class Computation(NamedTuple):
    """What a backend computes for one version.

    Attributes:
        find_amax: writes the largest magnitude of each group, exactly, and infinity or NaN where a group has one. The
            argument has a number for each group of the version, float32, on the backend's device; it is 0 for the
            groups of the backend's own tensors, and only these change.
        fill: computes those bytes of its tensors that lie in a bucket. The arguments are the bucket, uint8, on the
            backend's device; its offset in the extent; and the factors of all groups, float32, on that device. See
            :meth:`ckpt_transport.memory.Backing.fill` for when it is complete.
    """

    find_amax: Callable[[torch.Tensor], None]
    fill: Callable[[torch.Tensor, int, torch.Tensor], None]


class ScaledElements(NamedTuple):
    """The elements that a backend computes for one version: they are multiplied by these factors."""

    computation: Computation
    factors: torch.Tensor

    @property
    def repeatable(self) -> bool:
        """Each element is one product, rounded."""
        return True

    def fill(self, bucket: torch.Tensor, offset: int) -> None:
        self.computation.fill(bucket, offset, self.factors)


class Backend(Protocol):
    """Computes some tensors of an extent on one device, in any version."""

    def bind(self, sources: Sequence[torch.Tensor]) -> Computation:
        """Return the computation for the version that has these tensors, contiguous."""


def has_triton(device: torch.device) -> bool:
    """Whether the Triton kernels run on ``device``."""
    return (
        device.type == "cuda"
        and importlib.util.find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY
    )
