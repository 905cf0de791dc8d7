"""The part of the proof that is about what sinks read of the buckets that they map: their shares, each byte once.

A run of bytes that a sink needs of a tensor is numbered from its first byte on, without the gaps of a strided range. In
these numbers each read is one range, and all reads together must lie one behind the other, from the first number that
the buckets hold to the last.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from ckpt_transport.errors import CoverageError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning.values.plan import Bucket, Plan
from ckpt_transport.planning.values.reads import Reads
from ckpt_transport.planning.values.topology import EVERYTHING
from ckpt_transport.planning.verify.coverage import alike
from ckpt_transport.planning.verify.orders import meet


def check_reads(plan: Plan, ranks: Iterable[int]) -> None:
    """What these sinks read of mapped buckets is all that they need of them, and nothing else, and no byte twice.

    Raises:
        CoverageError: it is not; names the tensor.
    """
    looked_at = frozenset[int]().union(*set(plan.mapping)).intersection(ranks)
    check: _Check | None = None
    for (share, mine), members in alike(plan).items():
        rank = next(filter(looked_at.__contains__, members), None)
        if share != EVERYTHING and rank is not None:
            check = check or _Check(plan)
            check.run(share, mine, f"sink {rank}")


class _Check:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pieces: defaultdict[str, list[tuple[Bucket, int, int]]] = defaultdict(list)
        """By tensor: the buckets of its pieces, and where these start and end in the tensor."""
        for bucket in plan.buckets:
            for piece in bucket.pieces:
                tensor = plan.manifest.tensors[piece.tensor]
                start = tensor.start + piece.tensor_offset
                self._pieces[tensor.spec.name].append((bucket, start, start + piece.nbytes))

    def run(self, share: int, receiver_sets: frozenset[int], who: str) -> None:
        needs: defaultdict[str, list[StridedRange]] = defaultdict(list)
        for name, part in self._plan.topology.shares[share].reads():
            needs[name].append(part)
        expected: dict[tuple[str, int], int] = {}
        for name, parts in needs.items():
            _check_apart(name, parts)
            mine = [(low, high) for bucket, low, high in self._pieces[name] if bucket.receiver_set in receiver_sets]
            for which, need in enumerate(parts):
                expected[name, which] = sum(_below(need, high) - _below(need, low) for low, high in mine)
        numbered: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for number, reads in self._plan.reads.of_share(share).items():
            bucket = self._plan.buckets[number]
            if bucket.receiver_set in receiver_sets:
                for name, at in self._in_tensors(bucket, reads, who):
                    which, first, last = _numbers(needs[name], at, name, who)
                    numbered[name, which].append((first, last))
        for key in numbered.keys() | expected.keys():
            if _apart(numbered.get(key, [])) != expected[key]:
                raise CoverageError(f"{who} does not read each byte once that it needs of {key[0]}")

    def _in_tensors(self, bucket: Bucket, reads: Reads, who: str) -> Iterator[tuple[str, StridedRange]]:
        """What is read of a bucket, as bytes of tensors."""
        starts = [piece.bucket_offset for piece in bucket.pieces]
        for read in reads:
            piece = bucket.pieces[max(bisect_right(starts, read.start) - 1, 0)]
            if not piece.bucket_offset <= read.start <= read.end <= piece.bucket_offset + piece.nbytes:
                raise CoverageError(f"{who} reads bytes of a bucket that are of no tensor, or of two")
            tensor = self._plan.manifest.tensors[piece.tensor]
            name, moved = tensor.spec.name, tensor.start + piece.tensor_offset - piece.bucket_offset
            yield name, read.shifted(moved) if moved else read


def _apart(ranges: list[tuple[int, int]]) -> int | None:
    """How many numbers lie in ranges of (first, behind the last); None where one lies in two of them."""
    total = reached = 0
    for first, last in sorted(ranges):
        if first < reached:
            return None
        total, reached = total + last - first, last
    return total


def _numbers(needs: Sequence[StridedRange], at: StridedRange, name: str, who: str) -> tuple[int, int, int]:
    """Which of the needs of a tensor a read is of, and the numbers of its first byte there, and of the one behind."""
    for which, need in enumerate(needs):
        if need.runs == at.runs == 1:
            if need.start <= at.start and at.end <= need.end:
                return which, at.start - need.start, at.end - need.start
            continue
        first, last = _below(need, at.start), _below(need, at.end)
        alike = at.runs == 1 or (at.stride, at.nbytes) == (need.stride, need.nbytes)
        if alike and last - first == at.total and _below(need, at.start + at.nbytes) - first == at.nbytes:
            return which, first, last
    raise CoverageError(f"{who} reads bytes {at.start} to {at.end} of {name}, and does not need all of these")


def _below(need: StridedRange, byte: int) -> int:
    """How many bytes of a need lie before a byte of the tensor."""
    behind = byte - need.start
    if behind <= 0:
        return 0
    if need.runs == 1:
        return min(behind, need.nbytes)
    runs, rest = divmod(behind, need.stride)
    return need.total if runs >= need.runs else runs * need.nbytes + min(rest, need.nbytes)


def _check_apart(name: str, parts: list[StridedRange]) -> None:
    """No byte of a tensor is needed twice.

    Raises:
        CoverageError: one is, or a range is none.
    """
    for part in parts:
        if part.start < 0 or part.nbytes <= 0 or part.runs <= 0 or (part.runs > 1 and part.stride < part.nbytes):
            raise CoverageError(f"{part} is no range of bytes of {name}")
    if len(parts) == 1:
        return
    reach: list[StridedRange] = []
    for part in sorted(parts):
        reach = [other for other in reach if other.end > part.start]
        for other in reach:
            if meet(other, part):
                raise CoverageError(f"bytes of {name} are needed twice: {other} and {part}")
        reach.append(part)
