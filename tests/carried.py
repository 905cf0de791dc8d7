"""The elements of a carrier, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.carried_blocks import CarriedBlocks
from ckpt_transport.planning import DeltaForm

Units = npt.NDArray[np.unsignedinteger[Any]]


def elements_of(
    raw: torch.Tensor, form: DeltaForm, unit: int, nbytes: int, count: int
) -> tuple[npt.NDArray[np.int64], Units]:
    """Which units of a range a carrier has, as all of its blocks are read on the host, and what they become."""
    blocks = CarriedBlocks(raw, form, unit, nbytes, count)
    some = [blocks.read(*group) for group in blocks.groups()]
    places = [np.empty(0, np.int64), *(each.places.astype(np.int64) + each.first for each in some)]
    return np.concatenate(places), np.concatenate([np.empty(0, f"u{unit}"), *(each.values for each in some)])
