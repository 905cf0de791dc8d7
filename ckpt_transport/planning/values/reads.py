"""Reads say which bytes of the buckets that it maps a sink reads: those of its share, where they lie."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ckpt_transport.memory import StridedRange, joined
from ckpt_transport.planning.values.topology import EVERYTHING

if TYPE_CHECKING:
    from ckpt_transport.planning.values.plan import Bucket, Piece, Plan

Reads = tuple[StridedRange, ...]
"""Bytes of a bucket, each in one piece of it."""


class _Placed(NamedTuple):
    """A piece, the number of its bucket, and where it starts in the tensor as the checkpoint has it."""

    bucket: int
    start: int
    piece: Piece


class SinkReads:
    """What sinks read of the buckets of a plan. It is found out once for each share.

    Args:
        plan: what is done.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._of_shares: dict[int, Mapping[int, Reads]] = {}

    def of(self, rank: int, number: int) -> Reads | None:
        """What ``rank`` reads of a bucket that comes to it; None for all of it, with what lies between tensors."""
        share = self._plan.topology.participants[rank].share
        if share == EVERYTHING or rank not in self._plan.mapping[number]:
            return None
        reads = self.of_share(share).get(number, ())
        return None if sum(each.total for each in reads) == self._plan.buckets[number].payload else reads

    def of_share(self, share: int) -> Mapping[int, Reads]:
        """What a sink with this share reads of each bucket that it maps; of those that are missing, nothing."""
        known = self._of_shares.get(share)
        if known is None:
            found: defaultdict[int, list[StridedRange]] = defaultdict(list)
            for name, part in self._plan.topology.shares[share].reads():
                for bucket, start, piece in self._pieces.get(name, ()):
                    for each in part.clip(start, start + piece.nbytes):
                        found[bucket].append(each.shifted(piece.bucket_offset - start))
            known = self._of_shares[share] = {number: tuple(sorted(each)) for number, each in found.items()}
        return known

    @property
    def bytes_to(self) -> dict[int, int]:
        """How many bytes of tensors every sink is sent, or reads of what it maps."""
        plan = self._plan
        alike: defaultdict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
        for number, bucket in enumerate(plan.buckets):
            alike[bucket.receiver_set, plan.mapping[number]].append(number)
        payloads = {key: sum(plan.buckets[number].payload for number in numbers) for key, numbers in alike.items()}
        read: dict[tuple[int, int, frozenset[int]], int] = {}
        found = dict.fromkeys(plan.topology.sinks, 0)
        for (receiver_set, mapping), numbers in alike.items():
            for rank in plan.receiver_sets[receiver_set]:
                share = plan.topology.participants[rank].share
                if share == EVERYTHING or rank not in mapping:
                    found[rank] += payloads[receiver_set, mapping]
                    continue
                key = share, receiver_set, mapping
                if key not in read:
                    of_share = self.of_share(share)
                    read[key] = sum(each.total for number in numbers for each in of_share.get(number, ()))
                found[rank] += read[key]
        return found

    @cached_property
    def _pieces(self) -> Mapping[str, Sequence[_Placed]]:
        """All pieces, by the names of their tensors."""
        tensors = self._plan.manifest.tensors
        found: defaultdict[str, list[_Placed]] = defaultdict(list)
        for number, bucket in enumerate(self._plan.buckets):
            for piece in bucket.pieces:
                tensor = tensors[piece.tensor]
                found[tensor.spec.name].append(_Placed(number, tensor.start + piece.tensor_offset, piece))
        return found


def in_runs(bucket: Bucket, reads: Reads) -> Reads:
    """The same bytes in as few ranges as possible, none of which goes on from one range of the bucket to the next."""
    if not bucket.gathered:
        return tuple(joined(reads))
    starts = [part.bucket_offset for part in bucket.gathered]
    by_range: defaultdict[int, list[StridedRange]] = defaultdict(list)
    for each in reads:
        by_range[bisect_right(starts, each.start)].append(each)
    return tuple(each for number in sorted(by_range) for each in joined(by_range[number]))
