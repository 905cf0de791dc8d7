"""What sources have of a tensor are tiles: strided ranges that are equal or have no byte in common, and cover it."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.planning.values.manifest import TensorSpec


def ordered(spec: TensorSpec, parts: Iterable[StridedRange]) -> BlockOrder | None:
    """The order of a tensor whose blocks are these parts of it, ascending, each once.

    Returns: None where some of them have bytes in common and are not equal, or where bytes are missing, so that runs
        have to be looked at one by one.
    """
    tiles = sorted({part for part in parts if part.total})
    if sum(part.total for part in tiles) != spec.nbytes:
        return None
    near: list[StridedRange] = []
    for part in tiles:
        near = [other for other in near if other.end > part.start]
        if any(next(part.common(other), None) for other in near):
            return None
        near.append(part)
    return BlockOrder(spec.name, tuple(tiles))
