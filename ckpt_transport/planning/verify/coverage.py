"""The part of the proof that is about bytes: who has them, where they lie in buckets, and that every sink gets its own.

Shares no code with the planner but the values; see :mod:`ckpt_transport.planning.verify.proof`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from ckpt_transport.errors import CoverageError, PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning.values.alignment import ALIGNMENT
from ckpt_transport.planning.values.manifest import PlacedTensor, TensorRange, TensorSpec
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Plan
from ckpt_transport.planning.values.share import digest_of


def alike(plan: Plan) -> dict[tuple[int, frozenset[int]], list[int]]:
    """Sinks by what they need and are sent: an index into the shares, and the receiver sets that they belong to."""
    mine: dict[int, set[int]] = {rank: set() for rank in plan.topology.sinks}
    for number, receiver_set in enumerate(plan.receiver_sets):
        for rank in receiver_set:
            mine[rank].add(number)
    found: defaultdict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
    for rank, receiver_sets in mine.items():
        found[plan.topology.participants[rank].share, frozenset(receiver_sets)].append(rank)
    return found


def check_ownership(plan: Plan) -> None:
    """Every byte of every tensor has one owner, or is present at every sink, and not both."""
    manifest = plan.manifest
    specs: dict[str, TensorSpec] = {}
    ranges: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    every: tuple[PlacedTensor | TensorRange, ...] = (*manifest.tensors, *manifest.present)
    for part in every:
        spec = part.spec
        name = spec.name
        known = specs.setdefault(name, spec)
        if known is not spec and known != spec:
            raise CoverageError(f"{name} is {spec} at one place and {known} at another")
        if isinstance(part, PlacedTensor) and part.runs != 1:
            raise PlanError(f"{name} lies in {part.runs} runs, which a plan numbers as one")
        if part.start < 0 or part.nbytes < 0:
            raise PlanError(f"a range of {name} begins at {part.start} and is {part.nbytes} bytes long")
        ranges[name].append((part.start, part.nbytes))
    sizes = dict(enumerate(extent.nbytes for extent in manifest.extents))
    for tensor in manifest.tensors:
        if not 0 <= tensor.offset <= sizes.get(tensor.extent, -1) - tensor.nbytes:
            raise PlanError(f"{tensor.spec.name} lies outside its extent")
    for name, found in ranges.items():
        nbytes = specs[name].nbytes
        if found != [(0, nbytes)] and (fault := _fault(found, nbytes)):
            raise CoverageError(f"{fault} of {name}: no owner, or more than one")
    if _whole_tensors(plan) and not all(tensor.whole for tensor in manifest.tensors):
        cut = next(tensor for tensor in manifest.tensors if not tensor.whole)
        raise CoverageError(f"{cut.spec.name} has several owners, and a sink takes tensors whole")


def _fault(ranges: list[tuple[int, int]], nbytes: int) -> str:
    """The first bytes, of ``nbytes`` in all, that ``ranges`` of (start, length) do not cover exactly once."""
    reached = 0
    for start, length in sorted(ranges):
        if start != reached:
            first, last = sorted((start, reached))
            return f"bytes {first} to {last}"
        reached += length
    if reached != nbytes or not ranges or (len(ranges) > 1 and not all(length for _, length in ranges)):
        return f"bytes {min(reached, nbytes)} to {max(reached, nbytes)}"
    return ""


def _whole_tensors(plan: Plan) -> bool:
    return any(plan.topology.participants[rank].whole_tensors for rank in plan.topology.sinks)


def check_pieces(plan: Plan, buckets: Iterable[tuple[int, Bucket]]) -> None:
    """Pieces lie where their bucket says. ``buckets``: those to look at, each with its number."""
    tensors, extents = plan.manifest.tensors, plan.manifest.extents
    for number, bucket in buckets:
        _check_ranges(number, bucket, extents[bucket.extent].nbytes)
        ranges = bucket.ranges
        if extents[bucket.extent].kind is MemoryKind.SCATTERED and bucket.fill_slot == IN_PLACE:
            raise CoverageError(f"bucket {number} is sent from where its tensors lie, and these lie apart")
        for piece in bucket.pieces:
            if not 0 <= piece.tensor < len(tensors):
                raise PlanError(f"bucket {number} names tensor {piece.tensor}, which is not there")
            tensor = tensors[piece.tensor]
            inside = 0 <= piece.tensor_offset <= piece.tensor_offset + piece.nbytes <= tensor.nbytes
            for part in ranges if inside and bucket.extent == tensor.extent else ():
                behind = piece.bucket_offset - part.bucket_offset
                at_home = part.offset + behind == tensor.offset + piece.tensor_offset
                if at_home and 0 <= behind <= part.nbytes - piece.nbytes:
                    break
            else:
                raise CoverageError(f"bucket {number} does not lie over tensor {tensor.spec.name} where it says")


def _check_ranges(number: int, bucket: Bucket, extent_bytes: int) -> None:
    """The ranges of a bucket lie in its extent, and one behind the other in the bucket."""
    if bucket.offset != bucket.ranges[0].offset or bucket.nbytes < 0:
        raise PlanError(f"bucket {number} does not start where its first range does")
    end = 0
    for part in bucket.ranges:
        if not 0 <= part.offset <= part.offset + part.nbytes <= extent_bytes:
            raise PlanError(f"bucket {number} lies outside its extent")
        if part.offset % ALIGNMENT or part.bucket_offset % ALIGNMENT:
            raise PlanError(f"bucket {number} has a range at {part.offset}, which is no multiple of {ALIGNMENT}")
        if not end <= part.bucket_offset <= part.bucket_offset + part.nbytes <= bucket.nbytes:
            raise PlanError(f"bucket {number} has ranges that lie over each other, or outside of it")
        end = part.bucket_offset + part.nbytes


def check_shares(plan: Plan) -> None:
    """Every byte that a sink needs lies in exactly one piece of what it applies."""
    digests = {share.specs for rank in plan.topology.sinks if (share := plan.topology.share_of(rank)) is not None}
    if digests and digests != {digest_of(plan.manifest.specs.values())}:
        raise PlanError("a sink says what it needs of a version with other tensors")
    needs = Needs(plan)
    for (_, receiver_sets), ranks in alike(plan).items():
        needs.check(ranks, receiver_sets)
    for number, bucket in enumerate(plan.buckets):
        if not bucket.pieces:
            raise PlanError(f"bucket {number} holds nothing")


class Needs:
    """Knows what the buckets of a plan hold for each receiver set, and proves that sinks get what they need."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._whole = plan, _whole_tensors(plan)
        self._moved: list[defaultdict[int, list[tuple[int, int]]]] = [defaultdict(list) for _ in plan.receiver_sets]
        """For each receiver set: by tensor, the ranges (start, length) that its buckets hold."""
        for bucket in plan.buckets:
            moved = self._moved[bucket.receiver_set]
            for piece in bucket.pieces:
                moved[piece.tensor].append((piece.tensor_offset, piece.nbytes))

    def check(self, ranks: Sequence[int], receiver_sets: frozenset[int]) -> None:
        """Every byte that these sinks need, which all need the same, lies in exactly one piece of what they apply.

        Args:
            ranks: the sinks.
            receiver_sets: which of the plan's receiver sets they belong to.
        """
        covered = self._moved_to(receiver_sets)
        needed, tensors = self._needed(ranks[0]), self._plan.manifest.tensors
        for number in range(len(tensors)) if needed is None else sorted(covered.keys() | needed.keys()):
            tensor, ranges = tensors[number], covered.get(number, [])
            if ranges == [(0, tensor.nbytes)]:
                continue
            ranges = sorted(ranges)
            wanted = [(0, tensor.nbytes)] if needed is None else needed.get(number, [])
            _check_once(tensor, ranges, wanted, f"sinks {ranks[:4]}")
            if len(ranges) > 1 and any(not nbytes for _, nbytes in ranges):
                raise CoverageError(f"{tensor.spec.name} moves in {len(ranges)} pieces, and one of them is empty")
            if self._whole and ranges and ranges != [(0, tensor.nbytes)]:
                raise CoverageError(f"{tensor.spec.name} moves in {len(ranges)} pieces, and a sink takes tensors whole")

    def _moved_to(self, receiver_sets: frozenset[int]) -> Mapping[int, list[tuple[int, int]]]:
        """By tensor, the ranges (start, length) that the buckets of these sets hold."""
        if len(receiver_sets) == 1:
            return self._moved[next(iter(receiver_sets))]
        covered: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for number in receiver_sets:
            for place, ranges in self._moved[number].items():
                covered[place] += ranges
        return covered

    @cached_property
    def _places(self) -> Mapping[str, Sequence[int]]:
        """Where the parts of each tensor are among the placed ones."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for number, tensor in enumerate(self._plan.manifest.tensors):
            places[tensor.spec.name].append(number)
        return places

    @cached_property
    def _empty(self) -> Sequence[int]:
        """Placed tensors without bytes."""
        return [number for number, tensor in enumerate(self._plan.manifest.tensors) if not tensor.nbytes]

    def _needed(self, rank: int) -> dict[int, list[tuple[int, int]]] | None:
        """Which ranges (start, length) a sink needs of placed tensors, by number; None for all of all."""
        share, tensors = self._plan.topology.share_of(rank), self._plan.manifest.tensors
        if share is None:
            return None
        needed = {number: [(0, 0)] for number in self._empty}
        for name, start, nbytes in share.ranges:
            for number in self._places.get(name, ()):
                low = max(start - tensors[number].start, 0)
                high = min(start + nbytes - tensors[number].start, tensors[number].nbytes)
                if low < high:
                    needed.setdefault(number, []).append((low, high - low))
        return needed


def _check_once(tensor: PlacedTensor, ranges: list[tuple[int, int]], needed: list[tuple[int, int]], who: str) -> None:
    """No byte lies in two of ``ranges``, which ascend, and every byte of ``needed`` in one."""
    joined: list[list[int]] = []
    for start, nbytes in ranges:
        if joined and start < joined[-1][1]:
            raise CoverageError(f"bytes {start} to {joined[-1][1]} of {tensor.spec.name} move twice to {who}")
        if joined and start == joined[-1][1]:
            joined[-1][1] += nbytes
        else:
            joined.append([start, start + nbytes])
    for start, nbytes in needed:
        if not any(low <= start and start + nbytes <= high for low, high in joined):
            raise CoverageError(f"bytes {start} to {start + nbytes} of {tensor.spec.name} are missed by {who}")
