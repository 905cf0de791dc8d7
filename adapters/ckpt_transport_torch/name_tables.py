"""On a GPU a bucket is copied into the tensors of a module in one launch, by a table that is made once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import (
    Addresses,
    CopyTable,
    ElementCopy,
    PlacedBytes,
    StridedBytes,
    addresses_of,
    dtypes,
    starts_of,
)

FindBound = Callable[[], Mapping[str, torch.Tensor]]
"""Finds the tensors that a bucket is copied into, by name."""


class NameTables:
    """Tables of all buckets, for tensors of one form.

    Args:
        device: where these are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[object, _BucketByName] = {}
        self._used: set[object] = set()
        self._numbers: dict[str, int] = {}
        self._bound: Sequence[int] = ()
        self._written = Addresses(device, ())

    def bind(self, names: Sequence[str], addresses: Sequence[int]) -> None:
        """Copy into the tensors at these addresses from now on, which have the names and the form of those before."""
        if addresses != self._bound:
            self._bound = addresses
            self._numbers = {name: number for number, name in enumerate(names)}
            self._written = Addresses(self._device, addresses)

    def foresee(self, bucket: LoadedBucket, find: FindBound) -> None:
        """Make the table of a bucket that will come; arguments as those of :meth:`copy`."""
        self._of(bucket, find).foresee(len(bucket.runs), self._written)

    def copy(self, bucket: LoadedBucket, find: FindBound) -> None:
        """Enqueue the copies of a bucket, which lies where the device can read it, to the bound tensors by their names.

        Args:
            bucket: what is copied.
            find: finds the bound tensors.
        """
        self._of(bucket, find).copy(bucket, find, self._written)

    def _of(self, bucket: LoadedBucket, find: FindBound) -> _BucketByName:
        key = bucket.key, starts_of(bucket.runs)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _BucketByName(self._device, bucket, find(), self._numbers)
        self._used.add(key)
        return known

    def forget_unused(self) -> None:
        """Drop the tables of buckets that have not come since this was called before."""
        for key in self._known.keys() - self._used:
            del self._known[key]
        self._used.clear()


class _BucketByName:
    """How one bucket is copied: by its table, and by torch where that resolves conjugate and negative views."""

    def __init__(
        self,
        device: torch.device,
        bucket: LoadedBucket,
        memory: Mapping[str, torch.Tensor],
        numbers: Mapping[str, int],
    ) -> None:
        self._device = device
        starts = starts_of(bucket.runs)
        self._rest: list[PlacedBytes] = []
        copies: list[ElementCopy] = []
        for each in bucket.places():
            name, tensor = each.spec.name, memory[each.spec.name]
            if _is_lazy(tensor):
                self._rest.append(each)
                continue
            run = bisect_right(starts, each.at) - 1
            shape, read, written = (each.runs, each.nbytes), (each.nbytes, 1), (each.stride, 1)
            place = ElementCopy(run, numbers[name], each.at - starts[run], each.start, 1, shape, read, written)
            copies.append(place if tensor.is_contiguous() else _in_form_of(tensor, place))
        self._table = CopyTable(device, StridedBytes.of(copies))
        self._read = Addresses(device, ())

    def foresee(self, runs: int, written: Addresses) -> None:
        """Get ready for the bucket in so many runs."""
        self._table.foresee(runs, written)

    def copy(self, bucket: LoadedBucket, find: FindBound, written: Addresses) -> None:
        found = addresses_of(bucket.runs)
        if found != self._read.values:
            self._read = Addresses(self._device, found)
        self._table.copy(self._read, written)
        for place in self._rest:
            spec = place.spec
            find()[spec.name].copy_(dtypes.as_tensor(bucket.bytes_of(place), spec.dtype, spec.shape))


def _is_lazy(tensor: torch.Tensor) -> bool:
    """Whether its memory holds other values than it has itself."""
    return tensor.is_conj() or tensor.is_neg()


def _in_form_of(tensor: torch.Tensor, whole: ElementCopy) -> ElementCopy:
    """The copy of a whole tensor to one that is not contiguous."""
    size = tensor.itemsize
    strides = [stride * size for stride in tensor.stride()]
    return whole._replace(size=size, shape=tensor.shape, read_strides=_dense(tensor.shape, size), write_strides=strides)


def _dense(shape: Sequence[int], size: int) -> list[int]:
    """The strides of a contiguous tensor, in bytes."""
    strides: list[int] = []
    for count in reversed(shape):
        strides.append(size)
        size *= count
    return strides[::-1]
