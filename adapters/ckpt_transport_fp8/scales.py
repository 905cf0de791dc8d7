"""The scales of a version are computed all of one kind in one go, and lie in memory as they are sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ckpt_transport import CheckpointError
from ckpt_transport.spi import ALIGNMENT, TensorSpec, align_up, dtypes
from ckpt_transport_fp8.numerics import factors_for, scales_for
from ckpt_transport_fp8.row_scatter import RowScatter, row_scatter_on
from ckpt_transport_fp8.scheme import Scheme


@dataclass(frozen=True, slots=True)
class ScaleTensor:
    """A tensor that holds the scales of one weight.

    Attributes:
        source: the weight, before it is quantized.
        scheme: how the weight is quantized.
        spec: of the scales.
        offset: of the scales in the extent, in bytes.
    """

    source: TensorSpec
    scheme: Scheme
    spec: TensorSpec
    offset: int


class VersionScales(NamedTuple):
    """All scales of one version.

    Attributes:
        rows: the scales as rows of bytes, and what puts these where they belong; behind the last scale of a tensor, 0.
        factors: what elements are multiplied by, float32, one for each group.
    """

    rows: Sequence[tuple[RowScatter, torch.Tensor]]
    factors: torch.Tensor

    @property
    def repeatable(self) -> bool:
        """They have been computed."""
        return True

    def fill(self, bucket: torch.Tensor, offset: int) -> None:
        """Write to ``bucket`` the bytes of scales that lie in it; ``offset`` is its own in the extent."""
        for scatter, rows in self.rows:
            scatter.fill(rows, bucket, offset)


class ScaleLayout:
    """Where the scales of an extent lie, in any version. Each scale has a number: that of its group.

    Scales of one scheme and dtype have numbers one behind the other, and are computed together. They are the rows of
    256 bytes that are sent; where a tensor does not fill a row, the rest of it are groups without elements.

    Args:
        scales: ascending in the extent.
        device: where they are computed.
    """

    def __init__(self, scales: Sequence[ScaleTensor], device: torch.device) -> None:
        alike: defaultdict[tuple[Scheme, str], list[ScaleTensor]] = defaultdict(list)
        for scale in scales:
            alike[scale.scheme, scale.spec.dtype].append(scale)
        self._alike: list[_AlikeScales] = []
        self.groups = 0
        """How many groups there are."""
        for (scheme, dtype), tensors in alike.items():
            self._alike.append(_AlikeScales(scheme, dtype, tensors, self.groups, device))
            self.groups = self._alike[-1].last
        self.first_groups = {name: first for each in self._alike for name, first in each.first_groups.items()}
        """The number of a tensor's first scale, by the tensor's name."""

    def scales_of(self, amax: torch.Tensor) -> VersionScales:
        """Return the scales of a version; they are complete when this returns.

        Args:
            amax: the largest magnitude in each group, float32.

        Raises:
            CheckpointError: a weight holds NaN or infinity, or its scales are too large for their dtype; names it.
        """
        made = [each.scales(amax) for each in self._alike]
        factors = torch.cat([amax[:0], *(factors_for(scales) for scales in made)])
        finite = [values.isfinite().all() for values in (amax, *made)]
        if not all(torch.stack(finite).tolist()):  # the one wait for the device, after all that is enqueued on it
            for each, scales in zip(self._alike, made, strict=True):
                each.refuse(amax, scales)
        for each, scales in zip(self._alike, made, strict=True):
            each.clear_padding(scales)
        return VersionScales(
            [
                (each.scatter, scales.view(torch.uint8).view(-1, ALIGNMENT))
                for each, scales in zip(self._alike, made, strict=True)
            ],
            factors,
        )


class _AlikeScales:
    """Scales of one scheme and dtype: the first has the number ``first``, the last one comes before ``last``."""

    def __init__(
        self, scheme: Scheme, dtype: str, tensors: Sequence[ScaleTensor], first: int, device: torch.device
    ) -> None:
        self._scheme, self._dtype, self._tensors, self._first = scheme, dtype, tensors, first
        self.first_groups: dict[str, int] = {}
        self._size = dtypes.TORCH[dtype].itemsize
        offsets: list[int] = []
        padding: list[int] = []
        for scale in tensors:
            self.first_groups[scale.spec.name] = first
            padded = align_up(scale.spec.nbytes)
            offsets += range(scale.offset, scale.offset + padded, ALIGNMENT)
            begin = first - self._first
            padding += range(begin + scale.spec.nbytes // self._size, begin + padded // self._size)
            first += padded // self._size
        self.last = first
        self._padding = torch.tensor(padding, dtype=torch.int64, device=device)
        """Groups without elements."""
        self.scatter = row_scatter_on(device, offsets)

    def scales(self, amax: torch.Tensor) -> torch.Tensor:
        return scales_for(amax[self._first : self.last], self._scheme, dtypes.TORCH[self._dtype])

    def clear_padding(self, scales: torch.Tensor) -> None:
        """Make 0 of what belongs to groups without elements."""
        scales.index_fill_(0, self._padding, 0)

    def refuse(self, amax: torch.Tensor, scales: torch.Tensor) -> None:
        """Raise an error that names the first weight of which something is not finite, if there is one."""
        for scale in self._not_finite(amax[self._first : self.last]):
            raise CheckpointError(f"tensor {scale.source} holds NaN or infinity, and cannot be quantized")
        for scale in self._not_finite(scales):
            raise CheckpointError(f"tensor {scale.source} has scales too large for {self._dtype}")

    def _not_finite(self, values: torch.Tensor) -> Iterator[ScaleTensor]:
        wrong = set(values.isfinite().logical_not().nonzero().view(-1).tolist())
        for scale in self._tensors:
            first = self.first_groups[scale.spec.name] - self._first
            count = scale.spec.nbytes // self._size
            if not wrong.isdisjoint(range(first, first + count)):
                yield scale
