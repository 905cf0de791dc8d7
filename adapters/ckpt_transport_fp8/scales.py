"""The scales of a version: computed from maxima, all of one kind in one go, and laid out as they are sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ckpt_transport import CheckpointError
from ckpt_transport.spi import ALIGNMENT, TensorSpec, align_up, dtypes
from ckpt_transport_fp8.devices import places_on
from ckpt_transport_fp8.numerics import factors_for, scales_for
from ckpt_transport_fp8.rows import Rows
from ckpt_transport_fp8.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Scale:
    """One tensor of scales.

    Attributes:
        source: the weight that it belongs to, before it is quantized.
        scheme: how that is quantized.
        spec: of the scales.
        offset: in the extent, in bytes.
    """

    source: TensorSpec
    scheme: Scheme
    spec: TensorSpec
    offset: int


class Scaled(NamedTuple):
    """
    Attributes:
        rows: with all scales.
        factors: of all groups, float32.
    """

    rows: Sequence[Rows]
    factors: torch.Tensor


class Scales:
    """All scales of an extent, in whatever version. Each has a number, its group.

    Groups are numbered so that scales of one scheme and dtype, one behind the other, are the rows of 256 bytes that are
    sent; a row that a tensor does not fill has groups without elements.

    Args:
        scales: ascending in the extent.
        device: where they are computed.
    """

    def __init__(self, scales: Sequence[Scale], device: torch.device) -> None:
        alike: defaultdict[tuple[Scheme, str], list[Scale]] = defaultdict(list)
        for scale in scales:
            alike[scale.scheme, scale.spec.dtype].append(scale)
        self._families: list[_Family] = []
        self.groups = 0
        """How many there are."""
        for (scheme, dtype), family in alike.items():
            self._families.append(_Family(scheme, dtype, family, self.groups, device))
            self.groups = self._families[-1].last
        self.first_groups = {name: first for family in self._families for name, first in family.first_groups.items()}
        """By the name of the scales, the number of the first."""

    def of(self, largest: torch.Tensor) -> Scaled:
        """The scales of a version; complete when this returns.

        Args:
            largest: magnitude in each group, float32.

        Raises:
            CheckpointError: a weight holds NaN or infinity, or its scales are too large for their dtype; names it.
        """
        made = [family.scales(largest) for family in self._families]
        factors = torch.cat([largest[:0], *(factors_for(scales) for scales in made)])
        finite = [values.isfinite().all() for values in (largest, *made)]
        if not all(torch.stack(finite).tolist()):  # the one wait for the device, after all that is enqueued on it
            for family, scales in zip(self._families, made, strict=True):
                family.refuse(largest, scales)
        rows = [family.rows(scales) for family, scales in zip(self._families, made, strict=True)]
        return Scaled(rows, factors)


class _Family:
    """Scales of one scheme and dtype, the first of them with the number ``first``, the last before ``last``."""

    def __init__(self, scheme: Scheme, dtype: str, scales: Sequence[Scale], first: int, device: torch.device) -> None:
        self._scheme, self._dtype, self._scales, self._first = scheme, dtype, scales, first
        self.first_groups: dict[str, int] = {}
        self._size = dtypes.TORCH[dtype].itemsize
        offsets: list[int] = []
        for scale in scales:
            self.first_groups[scale.spec.name] = first
            padded = align_up(scale.spec.nbytes)
            offsets += range(scale.offset, scale.offset + padded, ALIGNMENT)
            first += padded // self._size
        self.last = first
        self._places = places_on(device, offsets)

    def scales(self, largest: torch.Tensor) -> torch.Tensor:
        return scales_for(largest[self._first : self.last], self._scheme, dtypes.TORCH[self._dtype])

    def rows(self, scales: torch.Tensor) -> Rows:
        return Rows(self._places, scales.view(torch.uint8).view(-1, ALIGNMENT))

    def refuse(self, largest: torch.Tensor, scales: torch.Tensor) -> None:
        """Name the first weight of which something is not finite, if there is one."""
        for scale in self._not_finite(largest[self._first : self.last]):
            raise CheckpointError(f"tensor {scale.source} holds NaN or infinity, and cannot be quantized")
        for scale in self._not_finite(scales):
            raise CheckpointError(f"tensor {scale.source} has scales too large for {self._dtype}")

    def _not_finite(self, values: torch.Tensor) -> Iterator[Scale]:
        wrong = set(values.isfinite().logical_not().nonzero().view(-1).tolist())
        for scale in self._scales:
            first = self.first_groups[scale.spec.name] - self._first
            count = scale.spec.nbytes // self._size
            if not wrong.isdisjoint(range(first, first + count)):
                yield scale
