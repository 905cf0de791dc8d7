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
        self._audiences: dict[tuple[int, frozenset[int]], Sequence[tuple[int, tuple[int, ...]]]] = {}

    def of(self, rank: int, number: int) -> Reads | None:
        """What ``rank`` reads of a bucket that comes to it; None for all of it, with what lies between tensors."""
        share = self._plan.topology.participants[rank].share
        return self.in_bucket(share if rank in self._plan.mapping[number] else EVERYTHING, number)

    def in_bucket(self, share: int, number: int) -> Reads | None:
        """The same for sinks that map the bucket and have this share."""
        if share == EVERYTHING:
            return None
        reads = self.of_share(share).get(number, ())
        return None if sum(each.total for each in reads) == self._plan.buckets[number].payload else reads

    def audiences(self, number: int) -> Sequence[tuple[int, tuple[int, ...]]]:
        """The sinks that a bucket comes to, by the share of which they read; EVERYTHING where they do not map it."""
        receiver_set, mapping = self._plan.buckets[number].receiver_set, self._plan.mapping[number]
        known = self._audiences.get((receiver_set, mapping))
        if known is None:
            found: defaultdict[int, list[int]] = defaultdict(list)
            for rank in self._plan.receiver_sets[receiver_set]:
                share = self._plan.topology.participants[rank].share if rank in mapping else EVERYTHING
                found[share].append(rank)
            known = self._audiences[receiver_set, mapping] = [(share, tuple(some)) for share, some in found.items()]
        return known

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
        found, buckets = dict.fromkeys(self._plan.topology.sinks, 0), self._plan.buckets
        alike: defaultdict[tuple[int, frozenset[int]], list[int]] = defaultdict(list)
        for number, bucket in enumerate(buckets):
            alike[bucket.receiver_set, self._plan.mapping[number]].append(number)
        for numbers in alike.values():
            for share, ranks in self.audiences(numbers[0]):
                of_share = {} if share == EVERYTHING else self.of_share(share)
                nbytes = sum(
                    buckets[number].payload
                    if share == EVERYTHING
                    else sum(each.total for each in of_share.get(number, ()))
                    for number in numbers
                )
                for rank in ranks:
                    found[rank] += nbytes
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
