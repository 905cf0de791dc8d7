"""On a GPU the digest of a bucket is a launch or two, by a table that is made once for each plan."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Protocol

import torch

from ckpt_transport.memory import Addresses, Part, Runs, StridedRange, addresses_of, part_of, starts_of
from ckpt_transport.memory.digest import digest
from ckpt_transport.memory.digest_table import DigestedRun, DigestTable
from ckpt_transport.memory.packed_digest import packs
from ckpt_transport.memory.packed_digest_table import PackedDigestTable, PlacedRange

KNOWN_PLANS = 4
"""So many are remembered: as many as there may be models that are updated in turns."""


def digest_of_runs(plan: Hashable, bucket: Hashable, runs: Runs, parts: Callable[[], Sequence[Part]]) -> torch.Tensor:
    """Enqueue the digest of parts of a bucket that lies in several runs on one GPU, on its current stream.

    Args:
        plan: with the name of the bucket it says what the parts are, and where runs start.
        bucket: its name.
        runs: where it lies now.
        parts: what the digest is of; asked once for a plan.
    """
    return _table_of_runs(plan, bucket, runs[0].raw.device, runs, parts).of(runs)


def foresee_runs(
    plan: Hashable, bucket: Hashable, device: torch.device, runs: Runs, parts: Callable[[], Sequence[Part]]
) -> None:
    """Make what :func:`digest_of_runs` needs, of runs that will be on that device."""
    _table_of_runs(plan, bucket, device, runs, parts)


def digest_of_slices(plan: Hashable, bucket: Hashable, runs: Runs, slices: Sequence[StridedRange]) -> torch.Tensor:
    """As :func:`digest_of_runs`, of strided ranges: what :mod:`ckpt_transport.memory.packed_digest` computes."""
    return _table_of_slices(plan, bucket, runs[0].raw.device, runs, slices).of(runs)


def foresee_slices(
    plan: Hashable, bucket: Hashable, device: torch.device, runs: Runs, slices: Sequence[StridedRange]
) -> None:
    """As :func:`foresee_runs`, for :func:`digest_of_slices`."""
    _table_of_slices(plan, bucket, device, runs, slices)


class _Digest(Protocol):
    def of(self, runs: Runs) -> torch.Tensor: ...


def _table_of_runs(
    plan: Hashable, bucket: Hashable, device: torch.device, runs: Runs, parts: Callable[[], Sequence[Part]]
) -> _Digest:
    return _known(plan, bucket, device, lambda: _RunDigest(device, starts_of(runs), parts()))


def _table_of_slices(
    plan: Hashable, bucket: Hashable, device: torch.device, runs: Runs, slices: Sequence[StridedRange]
) -> _Digest:
    return _known(plan, bucket, device, lambda: _SliceDigest(device, starts_of(runs), slices))


def _known(plan: Hashable, bucket: Hashable, device: torch.device, make: Callable[[], _Digest]) -> _Digest:
    known = _tables_of(plan, device)
    table = known.get(bucket)
    if table is None:
        table = known[bucket] = make()
    return table


class _RunDigest:
    """The table of one bucket, and where its runs were the last time."""

    def __init__(self, device: torch.device, starts: Sequence[int], parts: Sequence[Part]) -> None:
        self._device, self._parts = device, parts
        numbers = [bisect_right(starts, at) - 1 for at, _ in parts]
        self._table = DigestTable(
            self._device,
            [DigestedRun(n, at - starts[n], nbytes) for n, (at, nbytes) in zip(numbers, parts, strict=True)],
        )
        self._last = Addresses(self._device, ()), False
        """Where the runs were, and whether the kernel reads them there."""

    def of(self, runs: Runs) -> torch.Tensor:
        found = addresses_of(runs)
        addresses, reads = self._last
        if found != addresses.values:
            addresses = Addresses(self._device, found)
            reads = self._table.reads(addresses)
            self._last = addresses, reads
        if not reads:
            return digest([part_of(runs, at, nbytes) for at, nbytes in self._parts])
        with _current(self._device):
            sums = torch.zeros(2, dtype=torch.int64, device=self._device)
            self._table.add(sums, addresses)
        return sums


class _SliceDigest:
    """The same for slices, which a GPU packs first."""

    def __init__(self, device: torch.device, starts: Sequence[int], slices: Sequence[StridedRange]) -> None:
        self._device = device

        def placed(part: StridedRange) -> PlacedRange:
            number = bisect_right(starts, part.start) - 1
            return PlacedRange(number, part.shifted(-starts[number]))

        self._table = PackedDigestTable(self._device, ([placed(part) for part in pack] for pack in packs(slices)))
        self._last = Addresses(self._device, ())

    def of(self, runs: Runs) -> torch.Tensor:
        found = addresses_of(runs)
        if found != self._last.values:
            self._last = Addresses(self._device, found)
        with _current(self._device):
            sums = torch.zeros(2, dtype=torch.int64, device=self._device)
            self._table.add(sums, self._last)
        return sums


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache(KNOWN_PLANS)
def _tables_of(plan: Hashable, device: torch.device) -> dict[Hashable, _Digest]:
    return {}
