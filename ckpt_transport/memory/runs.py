"""A bucket lies in runs of memory: in one where it passes through a slot, in several where it is read in place."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple, overload

import torch


class MemoryRun(NamedTuple):
    """Contiguous memory that holds a part of a bucket.

    Attributes:
        at: where the part starts in the bucket, in bytes.
        raw: uint8, one-dimensional.
    """

    at: int
    raw: torch.Tensor


Runs = Sequence[MemoryRun]
"""The memory of a bucket: ascending, and not overlapping. Nothing that is of use lies between two of them."""

_at = attrgetter("at")
_device = attrgetter("device")


class RunPlace(NamedTuple):
    """Where a run lies.

    Attributes:
        at: where it starts in the bucket or extent, in bytes.
        address: of its first byte.
        nbytes: its length.
    """

    at: int
    address: int
    nbytes: int


class PlacedRuns(Sequence[MemoryRun]):
    """Runs of which it is known where they start in the bucket, without looking at one.

    Attributes:
        starts: of each, in bytes.
    """

    starts: tuple[int, ...]


class RunTable(PlacedRuns):
    """Many runs, of which it is known where they lie, and few are looked at.

    Args:
        starts, addresses, sizes: as those of :class:`RunPlace`, of each.
        views: the bytes of each, as :attr:`MemoryRun.raw`.
    """

    def __init__(
        self, starts: Sequence[int], addresses: Sequence[int], sizes: Sequence[int], views: Sequence[torch.Tensor]
    ) -> None:
        self.starts, self.addresses, self.sizes, self.views = tuple(starts), tuple(addresses), sizes, views

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> MemoryRun: ...
    @overload
    def __getitem__(self, index: slice) -> RunTable: ...
    def __getitem__(self, index: int | slice) -> MemoryRun | RunTable:
        if isinstance(index, int):
            return MemoryRun(self.starts[index], self.views[index])
        return RunTable(self.starts[index], self.addresses[index], self.sizes[index], self.views[index])


class ExpectedRuns(PlacedRuns):
    """Runs that are not there yet, of which it is known where they will start in the bucket.

    Args:
        starts: of each, in bytes.
    """

    def __init__(self, starts: tuple[int, ...]) -> None:
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> MemoryRun: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> MemoryRun | Runs:
        raise LookupError("these bytes have not come yet")


class PlacedViews(list[torch.Tensor]):
    """Views of memory that stays where it is: each is asked once where it lies."""

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where each begins."""
        return tuple(map(torch.Tensor.data_ptr, self))

    @cached_property
    def devices(self) -> frozenset[torch.device]:
        """On which they lie."""
        return frozenset(map(_device, self))


def devices_of(runs: Runs) -> frozenset[torch.device]:
    """The devices on which runs lie."""
    views = views_of(runs)
    return views.devices if isinstance(views, PlacedViews) else frozenset(map(_device, views))


def places_of(runs: Runs) -> list[RunPlace]:
    """Where each of some runs lies."""
    if isinstance(runs, RunTable):
        return list(map(RunPlace, runs.starts, runs.addresses, runs.sizes))
    return [RunPlace(run.at, run.raw.data_ptr(), run.raw.numel()) for run in runs]


def number_at(runs: Runs, at: int) -> int:
    """Which run holds a byte of the bucket: the last that does not begin behind it; -1 for none."""
    if isinstance(runs, RunTable):
        return bisect_right(runs.starts, at) - 1
    return bisect_right(runs, at, key=_at) - 1


def part_of(runs: Runs, at: int, nbytes: int) -> torch.Tensor:
    """The bytes from ``at`` on in the bucket, which lie within one run, without a copy."""
    run = runs[0] if len(runs) == 1 else runs[number_at(runs, at)]
    start = at - run.at
    return run.raw[start : start + nbytes]


def lies_within(runs: Runs, at: int, nbytes: int) -> bool:
    """Whether one run holds these bytes of the bucket."""
    number = number_at(runs, at)
    if number < 0 or nbytes < 0:
        return False
    if isinstance(runs, RunTable):
        return at + nbytes <= runs.starts[number] + runs.sizes[number]
    return at + nbytes <= runs[number].at + runs[number].raw.numel()


def end_of(runs: Runs) -> int:
    """How many bytes of a bucket its runs reach over."""
    return runs[-1].at + runs[-1].raw.numel()


def starts_of(runs: Runs) -> tuple[int, ...]:
    """Where each run starts in the bucket."""
    return runs.starts if isinstance(runs, PlacedRuns) else tuple([run.at for run in runs])


def views_of(runs: Runs) -> Sequence[torch.Tensor]:
    """The bytes of each run."""
    return runs.views if isinstance(runs, RunTable) else [run.raw for run in runs]


def addresses_of(runs: Runs) -> tuple[int, ...]:
    """The address of each run."""
    return runs.addresses if isinstance(runs, RunTable) else tuple([run.raw.data_ptr() for run in runs])


def reads_in_place(device: torch.device, runs: Runs) -> bool:
    """Whether a bucket lies in several runs which a GPU reads where they are: on itself, or page-locked on the host.

    One run on the host comes sooner by a copy engine.
    """
    if len(runs) == 1:
        return False
    if devices_of(runs) == {device}:
        return True
    memories = {raw.untyped_storage().data_ptr(): raw for raw in views_of(runs)}
    return all(raw.device == device or (raw.is_cpu and raw.is_pinned()) for raw in memories.values())
