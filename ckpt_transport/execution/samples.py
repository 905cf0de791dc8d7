"""A sample is the bytes of a bucket that its owner and some sinks compare: all of it, or what those sinks read.

A sink that maps a bucket reads its share where it lies. To digest all of the bucket it would have to read what it does
not need. So the owner makes a digest of each set of bytes that some sinks read, and these compare that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import Generic, TypeVar

import torch

from ckpt_transport.execution.run_digests import digest_of_runs, digest_of_slices, foresee_runs, foresee_slices
from ckpt_transport.memory import (
    CPU,
    DividedDigest,
    Part,
    Parts,
    Runs,
    StridedRange,
    has_copy_tables,
    number_at,
    part_of,
)
from ckpt_transport.memory.digest import digest
from ckpt_transport.memory.digest_pages import ALIGNMENT, PAGE_BYTES
from ckpt_transport.memory.packed_digest import packed_digest
from ckpt_transport.memory.placed_digest import are_short, digest_of_places, places_in
from ckpt_transport.planning import EVERYTHING, Bucket, Plan
from ckpt_transport.planning.values.plan import ExtentRange
from ckpt_transport.planning.values.reads import Reads, in_runs

END_BYTES = 4096
"""So many bytes at each end of a piece are compared where tensors lie apart."""

Places = TypeVar("Places")


class _Key:
    """Names what a sample is of. It is looked up at each update, and its value is long: its hash is computed once."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Hashable) -> None:
        self._value, self._hash = value, hash(value)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash


class Sample(ABC, Generic[Places]):
    """What is compared of one bucket.

    Args:
        plan: whose bucket it is.
        name: tells it from others of the plan.
        key: of its digest, among those that are kept with the memory of the bucket's extent.
        in_bucket, in_extent: where its bytes lie in the bucket, and in the extent.
    """

    def __init__(self, plan: Plan, name: Hashable, key: Hashable, in_bucket: Places, in_extent: Places) -> None:
        self.key: Hashable = _Key(key)
        self._shape, self._name, self._in_bucket, self._in_extent = plan.shape, name, in_bucket, in_extent

    def of_bucket(self, runs: Runs) -> torch.Tensor:
        """The digest where the bucket lies in ``runs``: two sums, on a GPU in the order of its current stream."""
        return self._digest(("bucket", self._shape), self._name, runs, self._in_bucket)

    def foresee(self, device: torch.device, runs: Runs) -> None:
        """Make what a GPU needs for :meth:`of_bucket` of a bucket that will lie there, in such runs."""
        if has_copy_tables(device):
            self._foresee(("bucket", self._shape), self._name, device, runs, self._in_bucket)

    def of_extent(self, runs: Runs) -> torch.Tensor:
        """The same where the extent lies in ``runs``."""
        return self._digest(("extent", self._shape), self._name, self._near(runs), self._in_extent)

    def page_in(self, extent: Runs) -> torch.Tensor | None:
        """Its bytes where the extent lies in these runs, if they are one run of a page at most on the host."""
        return None

    def divided(self, bucket: Runs) -> DividedDigest | None:
        """:meth:`of_bucket` in parts, if the bucket lies on the host and its bytes are not packed."""
        return None

    def _near(self, runs: Runs) -> Runs:
        """Those runs of an extent in which its bytes lie."""
        first, last = (number_at(runs, at) for at in self._ends(self._in_extent))
        return runs[first : last + 1]

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """Where what is compared starts in the bucket, and its bytes: as few parts as hold all of it, ascending."""

    @cached_property
    def nbytes(self) -> int:
        """How many bytes all parts have."""
        return sum(nbytes for _, nbytes in self.parts)

    @property
    @abstractmethod
    def ranges(self) -> Sequence[StridedRange]:
        """The bytes of the bucket that are compared. The same object each time."""

    @staticmethod
    @abstractmethod
    def _ends(places: Places) -> tuple[int, int]:
        """Where the first place starts, and the last."""

    @staticmethod
    @abstractmethod
    def _digest(plan: Hashable, name: Hashable, runs: Runs, places: Places) -> torch.Tensor: ...

    @staticmethod
    @abstractmethod
    def _foresee(plan: Hashable, name: Hashable, device: torch.device, runs: Runs, places: Places) -> None: ...


class RunSample(Sample[Parts]):
    """Runs of bytes, each of which begins a page of the digest."""

    @property
    def parts(self) -> Parts:
        return self._in_bucket

    @cached_property
    def ranges(self) -> Sequence[StridedRange]:
        return [StridedRange(start, nbytes) for start, nbytes in self._in_bucket]

    def page_in(self, extent: Runs) -> torch.Tensor | None:
        if len(self._in_extent) > 1 or not 0 < self._in_extent[0][1] <= PAGE_BYTES or not extent[0].raw.is_cpu:
            return None
        return part_of(self._near(extent), *self._in_extent[0])

    def divided(self, bucket: Runs) -> DividedDigest | None:
        if not bucket[0].raw.is_cpu or not all(nbytes for _, nbytes in self._in_bucket):
            return None
        return DividedDigest((at, part_of(bucket, at, nbytes)) for at, nbytes in self._in_bucket)

    @staticmethod
    def _ends(places: Parts) -> tuple[int, int]:
        return places[0][0], places[-1][0]

    @staticmethod
    def _digest(plan: Hashable, name: Hashable, runs: Runs, places: Parts) -> torch.Tensor:
        device = runs[0].raw.device
        if len(runs) > 1 and has_copy_tables(device):
            return digest_of_runs(plan, name, runs, lambda: places)
        if device == CPU and are_short(places):
            return digest_of_places(places_in(runs, places), places.sizes)
        return digest([part_of(runs, *place) for place in (joined(places) if len(runs) == 1 else places)])

    @staticmethod
    def _foresee(plan: Hashable, name: Hashable, device: torch.device, runs: Runs, places: Parts) -> None:
        if len(runs) > 1:
            foresee_runs(plan, name, device, runs, lambda: places)


class SliceSample(Sample[Sequence[StridedRange]]):
    """Slices, which are packed."""

    @cached_property
    def parts(self) -> Parts:
        return Parts((each.start, each.end - each.start) for each in self._in_bucket)

    @property
    def ranges(self) -> Sequence[StridedRange]:
        return self._in_bucket

    @staticmethod
    def _ends(places: Sequence[StridedRange]) -> tuple[int, int]:
        return places[0].start, places[-1].start

    @staticmethod
    def _digest(plan: Hashable, name: Hashable, runs: Runs, places: Sequence[StridedRange]) -> torch.Tensor:
        if has_copy_tables(runs[0].raw.device):
            return digest_of_slices(plan, name, runs, places)
        return packed_digest(places, partial(part_of, runs))

    @staticmethod
    def _foresee(
        plan: Hashable, name: Hashable, device: torch.device, runs: Runs, places: Sequence[StridedRange]
    ) -> None:
        foresee_slices(plan, name, device, runs, places)


AnySample = RunSample | SliceSample


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same bytes as fewer runs, with the same digest: the next run begins a page of its own where one ends with it.

    Tensors of a model mostly are whole pages.
    """
    found: list[Part] = []
    for at, nbytes in parts:
        start, before = found[-1] if found else (0, 1)
        if start + before == at and before % PAGE_BYTES == 0:
            found[-1] = start, before + nbytes
        else:
            found.append((at, nbytes))
    return found


class Samples:
    """The samples of a plan. Each is found out once.

    Args:
        plan: what is done.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._whole: dict[int, RunSample] = {}
        self._slices: dict[tuple[int, int], SliceSample] = {}
        self._compared: dict[int, Sequence[tuple[AnySample, tuple[int, ...]]]] = {}

    def compared(self, number: int) -> Sequence[tuple[AnySample, tuple[int, ...]]]:
        """All samples of a bucket, each with the sinks that compare it. Those that read nothing compare nothing."""
        known = self._compared.get(number)
        if known is None:
            reads, apart = self._plan.reads, self._plan.lies_apart(self._plan.buckets[number])
            ranks: dict[Reads | None, list[int]] = {}
            shares: dict[Reads | None, int] = {None: EVERYTHING}
            for share, some in reads.audiences(number):
                what = None if apart else reads.in_bucket(share, number)
                ranks.setdefault(what, []).extend(some)
                shares.setdefault(what, share)
            known = self._compared[number] = [
                (self._sample(number, shares[what], what), tuple(sorted(some)))
                for what, some in ranks.items()
                if what is None or what
            ]
        return known

    def of(self, rank: int, number: int) -> AnySample | None:
        """What a sink compares of a bucket; None where it reads nothing of it."""
        return next((sample for sample, ranks in self.compared(number) if rank in ranks), None)

    def _sample(self, number: int, share: int, reads: Reads | None) -> AnySample:
        bucket = self._plan.buckets[number]
        if reads is None:
            parts = compared_of(self._plan, bucket)
            in_bucket = Parts((part.bucket_offset, part.nbytes) for part in parts)
            in_extent = Parts((part.offset, part.nbytes) for part in parts)
            return RunSample(self._plan, (number, share), parts, in_bucket, in_extent)
        slices = in_runs(bucket, reads)
        home = tuple(part.shifted(_home(bucket, part.start)) for part in slices)
        return SliceSample(self._plan, (number, share), home, slices, home)


def _home(bucket: Bucket, at: int) -> int:
    """How much further on a byte of the bucket lies in its extent."""
    ranges = bucket.ranges
    part = ranges[bisect_right(ranges, at, key=attrgetter("bucket_offset")) - 1]
    return part.offset - part.bucket_offset


def compared_of(plan: Plan, bucket: Bucket) -> tuple[ExtentRange, ...]:
    """The ranges of a bucket that its digest is of where all of it is compared; each lies within a run.

    Of tensors that receivers map where they lie apart, both ends of each piece: nothing copies their bytes on the way,
    so what can be wrong is which memory a receiver sees, and what it holds. To read all of it once more would take as
    long as the update, where another GPU maps it.
    """
    if not plan.lies_apart(bucket):
        return bucket.ranges
    found: list[ExtentRange] = []
    for piece in bucket.pieces:
        start, at = plan.manifest.tensors[piece.tensor].offset + piece.tensor_offset, piece.bucket_offset
        if piece.nbytes <= 2 * END_BYTES:
            found.append(ExtentRange(start, at, piece.nbytes))
            continue
        last = (piece.nbytes - END_BYTES) // ALIGNMENT * ALIGNMENT
        found.append(ExtentRange(start, at, END_BYTES))
        found.append(ExtentRange(start + last, at + last, piece.nbytes - last))
    return tuple(found)
