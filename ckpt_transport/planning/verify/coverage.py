"""The part of the proof that is about bytes: who has them, where they lie in buckets, and that every sink gets its own.

Shares no code with the planner but the values; see :mod:`ckpt_transport.planning.verify.proof`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ckpt_transport.errors import CoverageError, PlanError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning.values.alignment import ALIGNMENT
from ckpt_transport.planning.values.manifest import PlacedTensor, TensorRange, TensorSpec
from ckpt_transport.planning.values.plan import IN_PLACE, Bucket, Plan
from ckpt_transport.planning.values.share import digest_of


def alike(plan: Plan) -> dict[tuple[int, frozenset[int]], list[int]]:
    """Sinks by what they need and are sent: an index into the shares, and the receiver sets that they belong to."""
    found: defaultdict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
    for rank in plan.topology.sinks:
        mine = frozenset(number for number, receiver_set in enumerate(plan.receiver_sets) if rank in receiver_set)
        found[plan.topology.participants[rank].share, mine].append(rank)
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
        if part.start < 0 or part.nbytes < 0:
            raise PlanError(f"a range of {name} begins at {part.start} and is {part.nbytes} bytes long")
        ranges[name].append((part.start, part.nbytes))
    sizes = dict(enumerate(extent.nbytes for extent in manifest.extents))
    for tensor in manifest.tensors:
        if not 0 <= tensor.offset <= sizes.get(tensor.extent, -1) - tensor.nbytes:
            raise PlanError(f"{tensor.spec.name} lies outside its extent")
    for name, spec in specs.items():
        nbytes = spec.nbytes
        if ranges[name] != [(0, nbytes)] and (fault := _fault(ranges[name], nbytes)):
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
    for (_, receiver_sets), ranks in alike(plan).items():
        check_needs(plan, ranks, receiver_sets)
    for number, bucket in enumerate(plan.buckets):
        if not bucket.pieces:
            raise PlanError(f"bucket {number} holds nothing")


def check_needs(plan: Plan, ranks: Sequence[int], receiver_sets: frozenset[int]) -> None:
    """Every byte that these sinks need, which all need the same, lies in exactly one piece of what they apply.

    Args:
        plan: what is done.
        ranks: the sinks.
        receiver_sets: which of the plan's receiver sets they belong to.
    """
    whole, tensors = _whole_tensors(plan), plan.manifest.tensors
    covered: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for bucket in plan.buckets:
        if bucket.receiver_set in receiver_sets:
            for piece in bucket.pieces:
                covered[piece.tensor].append((piece.tensor_offset, piece.nbytes))
    needed = _needed(plan, ranks[0])
    for number, tensor in enumerate(tensors):
        ranges = covered.get(number, [])
        if ranges == [(0, tensor.nbytes)]:
            continue
        ranges.sort()
        wanted = [(0, tensor.nbytes)] if needed is None else needed.get(number, [])
        _check_once(tensor, ranges, wanted, f"sinks {ranks[:4]}")
        if len(ranges) > 1 and any(not nbytes for _, nbytes in ranges):
            raise CoverageError(f"{tensor.spec.name} moves in {len(ranges)} pieces, and one of them is empty")
        if whole and ranges and ranges != [(0, tensor.nbytes)]:
            raise CoverageError(f"{tensor.spec.name} moves in {len(ranges)} pieces, and a sink takes tensors whole")


def _needed(plan: Plan, rank: int) -> dict[int, list[tuple[int, int]]] | None:
    """Which ranges (start, length) a sink needs of placed tensors, by number; None for all of all."""
    share, tensors = plan.topology.share_of(rank), plan.manifest.tensors
    if share is None:
        return None
    named: defaultdict[str, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        named[tensor.spec.name].append(number)
    needed = {number: [(0, 0)] for number, tensor in enumerate(tensors) if not tensor.nbytes}
    for name, start, nbytes in share.ranges:
        for number in named.get(name, ()):
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
