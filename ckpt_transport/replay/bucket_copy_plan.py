"""Plans what is copied out of one bucket, when it comes for the first time."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from ckpt_transport.engine import LoadedBucket
from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import PartialCopy, starts_of
from ckpt_transport.planning import PlacedBytes, TensorSpec
from ckpt_transport.replay.bucket_table import BucketTable
from ckpt_transport.replay.bytes_read import bytes_read
from ckpt_transport.replay.layout import Copy, Layout, OwnerKind
from ckpt_transport.replay.straight_copies import StraightCopies
from ckpt_transport.replay.strided_copy import PackedRows, StridedCopy, clip, merge, out_of_rows
from ckpt_transport.replay.torch_copy import TorchCopy


class UnknownTensorError(RecordingError):
    """A bucket brings a tensor that the layout does not know."""


class BucketPart(NamedTuple):
    """Bytes of one tensor in a bucket: equally long runs of the tensor, one behind the other.

    Attributes:
        source: index into the layout's sources.
        offset: where the first run starts in the tensor, in bytes.
        at: where it starts in the bucket, in bytes.
        nbytes: the length of each.
        runs: how many there are.
        stride: how far apart they start in the tensor; of no meaning for one.
    """

    source: int
    offset: int
    at: int
    nbytes: int
    runs: int = 1
    stride: int = 0

    @property
    def total(self) -> int:
        """How many bytes there are in all runs."""
        return self.nbytes * self.runs

    def each(self) -> Iterator[BucketPart]:
        """The runs, one by one."""
        for number in range(self.runs):
            offset, at = self.offset + number * self.stride, self.at + number * self.nbytes
            yield BucketPart(self.source, offset, at, self.nbytes)


OnDevice = tuple[torch.device, tuple[int, ...]]
"""A device, and where the runs of a bucket start."""


@dataclass(frozen=True)
class BucketCopyPlan:
    """What is done with one bucket.

    Attributes:
        copies: straight from the bucket to targets.
        direct: parts that they read.
        gathered: parts that must wait for the rest of what they are needed with.
        loaded: parts of tensors that only the loader itself can load.
        copied: bytes that ``copies`` write, by target.
        targets: all that is written once the bucket is in, and with it what ``gathered`` waits for.
        torch_copies: ``copies`` as torch does them, by the alignment of memory; made when first needed.
        tables: ``copies`` as a GPU does them, by the GPU and where the bucket's runs start; made when first needed.
        partial_copies: what ``copies`` read, as it is brought to a device; by the same, made when first needed.
    """

    copies: tuple[StridedCopy, ...]
    direct: tuple[BucketPart, ...]
    gathered: tuple[BucketPart, ...]
    loaded: tuple[BucketPart, ...]
    copied: Mapping[int, int]
    targets: frozenset[int]
    torch_copies: dict[int, Sequence[TorchCopy]] = field(default_factory=dict, compare=False)
    tables: dict[OnDevice, BucketTable] = field(default_factory=dict, compare=False)
    partial_copies: dict[OnDevice, PartialCopy | None] = field(default_factory=dict, compare=False)

    @cached_property
    def straight(self) -> StraightCopies:
        """What of ``copies`` can be read straight to where it is to be."""
        return StraightCopies.of(self.copies, [(part.at, part.total) for part in self.direct])

    @cached_property
    def passing(self) -> Sequence[tuple[int, int]]:
        """What comes another way where the straight copies are read: where it starts in the bucket, and its bytes."""
        copied = (self.direct[number] for number in self.straight.passing)
        return sorted((part.at, part.total) for part in (*copied, *self.gathered))

    def part(self, device: torch.device, starts: tuple[int, ...]) -> PartialCopy | None:
        """What ``copies`` read of a bucket whose runs start there; None where all of it is to be brought."""
        key = device, starts
        if key not in self.partial_copies:
            pieces = [(part.at, part.total) for part in self.direct]
            parts = bytes_read(self.copies, pieces, starts)
            self.partial_copies[key] = None if parts is None else PartialCopy(device, parts)
        return self.partial_copies[key]


class BucketCopyPlans:
    """The plans of all buckets of one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._index: Mapping[str, tuple[int, TensorSpec]] = {
            spec.name: (number, spec) for number, spec in enumerate(layout.sources)
        }
        self._copies: defaultdict[int, list[Copy]] = defaultdict(list)
        self.expected: Counter[int] = Counter()
        """For each target the bytes that are copied to it, and one for each group of operations that it is in."""
        for copy in layout.copies:
            self._copies[copy.source].append(copy)
            self.expected[copy.target] += copy.nbytes
        self._together: defaultdict[int, set[int]] = defaultdict(set)
        for group in layout.op_groups:
            self.expected.update(group.targets)
            for source in group.sources:
                self._together[source].update(group.targets)
        self._refused = layout.refused_of(OwnerKind.SOURCE)
        self._known: dict[object, BucketCopyPlan] = {}
        self._used: set[object] = set()

    def of(self, bucket: LoadedBucket) -> BucketCopyPlan:
        """The plan for this bucket, and for all of the same key.

        Raises:
            UnknownTensorError: it brings a tensor that the layout does not know; names it.
        """
        self._used.add(bucket.key)
        plan = self._known.get(bucket.key)
        if plan is None:
            starts = starts_of(bucket.runs)
            plan = self._known[bucket.key] = self._plan([self._part(place) for place in bucket.places()], starts)
        return plan

    def forget_unused(self) -> None:
        """Drop the plans of buckets that have not come since this was called before."""
        for key in self._known.keys() - self._used:
            del self._known[key]
        self._used.clear()

    @property
    def copy_count(self) -> int:
        """How many strided copies all buckets take together."""
        return sum(len(plan.copies) for plan in self._known.values())

    def copies_of(self, source: int) -> Sequence[Copy]:
        """All that is copied of one tensor."""
        return self._copies[source]

    def _part(self, place: PlacedBytes) -> BucketPart:
        number, known = self._index.get(place.spec.name, (-1, None))
        if known != place.spec:
            raise UnknownTensorError(f"{place.spec} comes, which the version was not said to have")
        return BucketPart(number, place.start, place.at, place.nbytes, place.runs, place.stride)

    def _plan(self, parts: Sequence[BucketPart], starts: Sequence[int]) -> BucketCopyPlan:
        """What is done with these parts, in memory whose runs start there: no copy reads out of two of them."""
        copies: defaultdict[int, list[StridedCopy]] = defaultdict(list)
        gathered: list[BucketPart] = []
        loaded: list[BucketPart] = []
        direct: list[BucketPart] = []
        for part in parts:
            if part.source in self._refused:
                loaded.append(part)
            elif part.source in self._together or self._cuts_an_element(part):
                gathered += part.each()
            else:
                direct.append(part)
        direct = list(_in_rows(direct))
        for part in direct:
            for copy in self._copies_of_part(part):
                copies[bisect_right(starts, copy.read)].append(copy)
        merged = tuple(copy for run in sorted(copies) for copy in merge(copies[run]))
        copied: Counter[int] = Counter()
        for each in merged:
            copied[each.target] += each.nbytes
        targets = set(copied)
        for part in gathered:
            targets.update(copy.target for copy in self._copies[part.source])
            targets.update(self._together.get(part.source, ()))
        return BucketCopyPlan(merged, tuple(direct), tuple(gathered), tuple(loaded), dict(copied), frozenset(targets))

    def _copies_of_part(self, part: BucketPart) -> Iterator[StridedCopy]:
        """What is copied of a part."""
        source, offset, at, nbytes, runs, stride = part
        if nbytes == self.layout.sources[source].nbytes:
            yield from (_strided(copy, at - offset) for copy in self._copies[source])
            return
        for copy in self._copies[source]:
            found = None
            if runs > 1:
                found = out_of_rows(_strided(copy, 0), PackedRows(offset, at, nbytes, runs, stride))
            if found is None:
                each = ((run, _strided(copy, run.at - run.offset)) for run in part.each())
                found = [piece for run, placed in each for piece in clip(placed, run.at, run.at + run.nbytes)]
            yield from found

    def _cuts_an_element(self, part: BucketPart) -> bool:
        """Whether the part begins or ends within an element. Then all parts of that tensor do: see ``bucketing``."""
        size = max((copy.read.itemsize for copy in self._copies[part.source]), default=1)
        return part.nbytes != self.layout.sources[part.source].nbytes and bool(
            part.offset % size or (part.offset + part.nbytes) % size or part.stride % size
        )


def _in_rows(parts: Sequence[BucketPart]) -> Iterator[BucketPart]:
    """The same parts; runs that follow one another as rows of columns do are one."""
    last: BucketPart | None = None
    for part in parts:
        if last is not None and _goes_on(last, part):
            stride = part.offset - last.offset if last.runs == 1 else last.stride
            last = last._replace(runs=last.runs + 1, stride=stride)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


def _goes_on(last: BucketPart, part: BucketPart) -> bool:
    """Whether a run is packed behind another part of the same tensor, and is the next one at its distance."""
    if part.runs > 1 or (part.source, part.nbytes, part.at) != (last.source, last.nbytes, last.at + last.total):
        return False
    stride = part.offset - last.offset if last.runs == 1 else last.stride
    return stride > last.nbytes and part.offset == last.offset + last.runs * stride


def _strided(copy: Copy, at: int) -> StridedCopy:
    """The same copy out of a bucket, of a tensor that starts at byte ``at`` there."""
    read, write = copy.read, copy.write
    places = at + read.offset, write.offset, read.strides, write.strides, read.dtype, write.dtype
    return StridedCopy(write.index, write.shape, *places)
