"""Placed bytes are bytes of one tensor in a bucket: what an engine is told of what comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ckpt_transport.planning.values.manifest import TensorSpec


class PlacedBytes(NamedTuple):
    """Equally long runs of bytes of a tensor, one behind the other in a bucket.

    Attributes:
        spec: the tensor.
        start: where the first run starts in the tensor, in bytes.
        at: where it starts in the bucket.
        nbytes: the length of each.
        runs: how many there are.
        stride: how far apart they start in the tensor; of no meaning for one.
    """

    spec: TensorSpec
    start: int
    at: int
    nbytes: int
    runs: int = 1
    stride: int = 0

    @property
    def total(self) -> int:
        """How many bytes there are in all runs."""
        return self.nbytes * self.runs

    def each(self) -> Iterator[PlacedBytes]:
        """The runs, one by one."""
        if self.runs == 1:
            yield self
            return
        for number in range(self.runs):
            start, at = self.start + number * self.stride, self.at + number * self.nbytes
            yield PlacedBytes(self.spec, start, at, self.nbytes)
