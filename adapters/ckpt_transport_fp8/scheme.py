"""A scheme says how a weight is quantized: which of its elements share a scale, and where that scale is found."""

from __future__ import annotations

import enum
from dataclasses import dataclass

E4M3 = "F8_E4M3"
WEIGHT = "weight"


class Granularity(enum.StrEnum):
    """Which elements of a weight share a scale."""

    BLOCK = "block"
    CHANNEL = "channel"
    TENSOR = "tensor"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to quantize a weight of shape ``(rows, columns)`` to e4m3.

    Attributes:
        granularity: which elements share a scale: a block, a row (an output channel), or all.
        scale: last part of the scale's name, in the place of ``weight``.
        block: rows and columns of a block; of no account for the others.
        powers_of_two: scales are rounded up to powers of two (``scale_fmt`` ``ue8m0``).
    """

    granularity: Granularity
    scale: str
    block: tuple[int, int] = (128, 128)
    powers_of_two: bool = False

    def group(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many rows and columns share a scale."""
        rows, columns = shape
        match self.granularity:
            case Granularity.BLOCK:
                return self.block
            case Granularity.CHANNEL:
                return 1, max(columns, 1)
            case Granularity.TENSOR:
                return max(rows, 1), max(columns, 1)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many groups there are, down and across; those at the edges may be smaller."""
        if self.granularity is Granularity.TENSOR:
            return 1, 1
        (rows, columns), (high, wide) = shape, self.group(shape)
        return -(-rows // high), -(-columns // wide)

    def scale_shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that a checkpoint may give the scale of such a weight, the usual one first."""
        return ((), (1,)) if self.granularity is Granularity.TENSOR else (self.grid(shape),)

    def scale_name(self, weight: str) -> str:
        """Return the name of the scale of the tensor called ``weight``."""
        return weight.removesuffix(WEIGHT) + self.scale

    def __str__(self) -> str:
        size = " of {} x {}".format(*self.block) if self.granularity is Granularity.BLOCK else ""
        power = ", a power of two," if self.powers_of_two else ""
        return f"{E4M3} with a scale{power} for each {self.granularity}{size} in {self.scale}"
