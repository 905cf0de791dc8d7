"""Owners of buckets say their digests, and those who apply them compare.

Owners say theirs straight to the sinks that get a bucket. Sinks compute theirs of the bytes that the engine is given,
beside the engine, and compare when both are there. At the end each waits for what is left, and before that nobody waits
for a digest. In an update that goes on after a failure a bucket that differs comes again, and an engine may be given
nothing twice: there a bucket waits until its digests agree.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import cast

import msgspec
import torch

from ckpt_transport.errors import MessageError, TransferError
from ckpt_transport.execution.run_digests import digest_of_runs
from ckpt_transport.execution.schedule import RankSchedule
from ckpt_transport.memory import (
    Backing,
    Fence,
    Lendable,
    MemoryKind,
    MemoryRun,
    Runs,
    fence,
    fence_on,
    has_copy_tables,
    part_of,
    stream_for,
    usable_cores,
)
from ckpt_transport.memory.digest import ALIGNMENT, Digest, as_bytes, digest
from ckpt_transport.planning import IN_PLACE, Bucket, Plan, StageKind
from ckpt_transport.planning.values.plan import ExtentRange
from ckpt_transport.transports.interface import Control

PATIENCE_SECONDS = 0.05
END_BYTES = 4096
"""So many bytes at each end of a piece are compared where tensors lie apart."""
NAMED = 3
"""So many tensors of a bucket are named in an error."""

Ranges = tuple[ExtentRange, ...]
Said = list[tuple[int, Digest]]
"""The message: numbers of buckets, and their digests."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Said).decode


class Digests:
    """What one rank does about the digests of one round: nothing, where nobody compares them.

    Driven by the pump, but for what says otherwise.
    """

    def filled(self, bucket: int, slot: torch.Tensor) -> Fence | None:
        """A bucket of this rank's has been put into ``slot``, or will have been in the order of the current stream.

        Called by any thread. Returns the end of reading it, if that goes on beside the current stream.
        """
        return None

    def look(self, bucket: Bucket, runs: Runs) -> None:
        """The engine is given these bytes, now or in the order of the current stream. Only the first call counts.

        Called by the thread that applies.
        """

    def read(self, bucket: Bucket, runs: Runs, end: Fence | None) -> Fence | None:
        """The end of reading a bucket, here and by the engine, which has read it by ``end``."""
        return end

    def admits(self, number: int, runs: Runs) -> bool:
        """Whether a bucket that has arrived may be given to the engine. Asked again until it may.

        Raises: as :meth:`advance`.
        """
        return True

    def turn(self) -> None:
        """The pump has gone round: do what cannot wait for :meth:`advance`."""

    def advance(self) -> None:
        """Say what there is to say, compare what there is to compare. Called now and then.

        Raises:
            TransferError: the bytes of a bucket are not the owner's.
        """

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        """Do all that is left.

        Args:
            watch: called often; raises to end the wait.
            idle: waits up to that many seconds, or until a message arrives.

        Raises: as :meth:`advance` and ``watch``.
        """

    def close(self) -> None:
        """Stop. No bytes are read any more when this returns. Idempotent."""


class _Working(Digests):
    """With threads that compute."""

    def __init__(self, schedule: RankSchedule, channel: Control) -> None:
        self._schedule, self._plan, self._channel = schedule, schedule.plan, channel
        self._workers = ThreadPoolExecutor(usable_cores(), "ckpt-transport-digest")

    @property
    @abstractmethod
    def _left(self) -> bool:
        """Whether something is left to do."""

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        self.advance()
        while self._left:
            watch()
            idle(PATIENCE_SECONDS)
            self.advance()
        self.close()

    def close(self) -> None:
        self._workers.shutdown(cancel_futures=True)


class OwnerDigests(_Working):
    """Says the digests of a source's buckets.

    Those of bytes that are sent from where they lie are known for as long as nobody writes there
    (:attr:`~ckpt_transport.memory.Buffer.digests`); what is not known is computed from now on, beside everything else.

    Args:
        schedule: of this rank.
        channel: to the sinks.
        extents: of this rank, by number.
        wake: ends the wait in ``idle``, from any thread.
    """

    def __init__(
        self, schedule: RankSchedule, channel: Control, extents: Mapping[int, Backing], wake: Callable[[], None]
    ) -> None:
        super().__init__(schedule, channel)
        self._unsaid = {
            number for number, bucket in enumerate(self._plan.buckets) if self._plan.owner(bucket) == schedule.rank
        }
        self._made: deque[tuple[int, Digest]] = deque()
        self._coming: deque[tuple[int, torch.Tensor, Fence]] = deque()
        """On their way from a device."""
        self._computing: deque[Future[None]] = deque()
        for extent, in_place in self._in_place().items():
            memory = extents[extent]
            assert memory.kind is not MemoryKind.SCATTERED
            self._start(cast(Lendable, memory), in_place, wake)

    def _in_place(self) -> Mapping[int, Mapping[int, Ranges]]:
        """For each extent, what is compared of the buckets that are sent from where they lie, in their extent."""
        found: defaultdict[int, dict[int, Ranges]] = defaultdict(dict)
        for number in sorted(self._unsaid):
            bucket = self._plan.buckets[number]
            if bucket.fill_slot == IN_PLACE:
                found[bucket.extent][number] = _compared(self._plan, bucket)
        return found

    def _start(self, memory: Lendable, in_place: Mapping[int, Ranges], wake: Callable[[], None]) -> None:
        known = memory.digests
        kept: dict[Hashable, Digest] = {ranges: known[ranges] for ranges in in_place.values() if ranges in known}
        known.clear()
        known.update(kept)
        self._made.extend((number, kept[ranges]) for number, ranges in in_place.items() if ranges in kept)
        unknown = [(number, ranges) for number, ranges in in_place.items() if ranges not in kept]
        by_thread = [[each] for each in unknown]
        if unknown and memory.runs[0].raw.is_cuda:
            by_thread = [unknown]  # several threads would not help a GPU
        for some in by_thread:
            self._computing.append(self._workers.submit(self._compute_each, memory, some, wake))

    def _compute_each(self, memory: Lendable, some: Sequence[tuple[int, Ranges]], wake: Callable[[], None]) -> None:
        for number, ranges in some:
            try:
                self._compute(memory, number, ranges)
            finally:
                wake()

    def _compute(self, memory: Lendable, number: int, ranges: Ranges) -> None:
        runs = _holding(memory.runs, ranges)
        if len(runs) > 1 and has_copy_tables(runs[0].raw.device):
            with _beside(runs[0].raw.device):
                found = as_bytes(
                    digest_of_runs(
                        ("extent", self._plan.shape),
                        number,
                        runs,
                        lambda: [(part.offset, part.nbytes) for part in ranges],
                    )
                )
        else:
            found = _computed([part_of(runs, part.offset, part.nbytes) for part in ranges])
        memory.digests[ranges] = found
        self._made.append((number, found))

    def filled(self, bucket: int, slot: torch.Tensor) -> Fence | None:
        """On a device the next slot is filled while this one is read."""
        read = _in_bucket(self._plan, self._plan.buckets[bucket], (MemoryRun(0, slot),))
        complete = fence(slot.device)
        if complete is None:
            self._made.append((bucket, as_bytes(digest(read))))
            return None
        beside = stream_for("digests of slots", slot.device)
        complete.wait(beside)
        with torch.cuda.stream(beside):
            sums = digest(read)
            on_host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            on_host.copy_(sums, non_blocking=True)
            end = fence_on(beside)
        self._coming.append((bucket, on_host, end))
        return end

    @property
    def _left(self) -> bool:
        return bool(self._unsaid)

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        for _, _, end in self._coming:
            end.synchronize()
        super().finish(watch, idle)

    def advance(self) -> None:
        while self._computing and self._computing[0].done():
            self._computing.popleft().result()
        while self._coming and self._coming[0][2].query():
            number, sums, _ = self._coming.popleft()
            self._made.append((number, as_bytes(sums)))
        by_receiver_set: defaultdict[int, Said] = defaultdict(list)
        while self._made:
            number, found = self._made.popleft()
            by_receiver_set[self._plan.buckets[number].receiver_set].append((number, found))
            self._unsaid.discard(number)
        for receiver_set, said in by_receiver_set.items():
            for rank in self._plan.receiver_sets[receiver_set]:
                self._channel.send(rank, _encode(said))


class PromptOwnerDigests(OwnerDigests):
    """For sinks that wait for each: said at once, not in batches."""

    def turn(self) -> None:
        if self._made or self._coming or self._computing:
            self.advance()


class SinkDigests(_Working):
    """Compares what a sink's engine is given with what the owners say.

    Args:
        schedule: of this rank.
        channel: from the owners.
        label: what people call this sink.
        wake: ends the wait in ``idle``, from any thread.
    """

    def __init__(self, schedule: RankSchedule, channel: Control, label: str, wake: Callable[[], None]) -> None:
        super().__init__(schedule, channel)
        self._label, self._wake = label, wake
        self._said: dict[int, Digest] = {}
        self._on_host: dict[int, Future[Digest]] = {}
        self._on_device: dict[int, torch.Tensor] = {}
        self._begun: set[int] = set()
        self._agreed: set[int] = set()

    def look(self, bucket: Bucket, runs: Runs) -> None:
        number = self._schedule.numbers[bucket.first]
        if number in self._begun:
            return
        if len(runs) > 1 and has_copy_tables(runs[0].raw.device):
            self._on_device[number] = digest_of_runs(
                ("bucket", self._plan.shape),
                number,
                runs,
                lambda: [(part.bucket_offset, part.nbytes) for part in _compared(self._plan, bucket)],
            )
        elif runs[0].raw.is_cuda:
            self._on_device[number] = digest(_in_bucket(self._plan, bucket, runs))
        else:
            self._compute(number, _in_bucket(self._plan, bucket, runs))
        self._begun.add(number)

    def _compute(self, number: int, parts: Sequence[torch.Tensor]) -> None:
        computing = self._on_host[number] = self._workers.submit(_computed, parts)
        computing.add_done_callback(lambda _: self._wake())

    def read(self, bucket: Bucket, runs: Runs, end: Fence | None) -> Fence | None:
        computing = self._on_host.get(self._schedule.numbers[bucket.first])
        if computing is not None:
            return _ReadTwice(end, computing)
        return fence(runs[0].raw.device) if end is None else end

    @property
    def _left(self) -> bool:
        return len(self._agreed) < len(self._begun)

    def advance(self) -> None:
        self._take_in()
        for number, computed in list(self._on_host.items()):
            if number in self._said and computed.done():
                del self._on_host[number]
                self._compare(number, computed.result())

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        if unseen := self._schedule.applied - self._begun:
            raise TransferError(
                f"{self._label} has applied bucket {min(unseen)} and not computed its digest, so nobody knows whether "
                "its bytes are right; report this as a fault of ckpt-transport"
            )
        self._fetch()
        super().finish(watch, idle)

    def _fetch(self) -> None:
        """Bring what devices have computed, all at once."""
        if not self._on_device:
            return
        by_device: defaultdict[torch.device, list[int]] = defaultdict(list)
        for number, sums in self._on_device.items():
            by_device[sums.device].append(number)
        for numbers in by_device.values():
            brought = torch.stack([self._on_device[number] for number in numbers]).cpu()
            for number, sums in zip(numbers, brought, strict=True):
                computed: Future[Digest] = Future()
                computed.set_result(as_bytes(sums))
                self._on_host[number] = computed
        self._on_device.clear()

    def _take_in(self) -> None:
        while (message := self._channel.receive()) is not None:
            rank, payload = message
            try:
                said = _decode(payload)
            except msgspec.DecodeError as error:
                raise MessageError(f"rank {rank} says digests that cannot be read: {error}") from error
            for number, found in said:
                if number in self._schedule.applied and self._plan.owner(self._plan.buckets[number]) == rank:
                    self._said.setdefault(number, found)

    def _compare(self, number: int, found: Digest) -> None:
        if found != self._said[number]:
            raise TransferError(f"{self._label} got {_differing(self._plan, number, self._schedule.rank)}")
        self._agreed.add(number)


class FirstSinkDigests(SinkDigests):
    """Compares before the engine is given a bucket."""

    def look(self, bucket: Bucket, runs: Runs) -> None:
        """Do nothing: the bucket was compared before."""

    def read(self, bucket: Bucket, runs: Runs, end: Fence | None) -> Fence | None:
        return end

    def admits(self, number: int, runs: Runs) -> bool:
        if number not in self._begun:
            self._begun.add(number)
            self._compute(number, _in_bucket(self._plan, self._plan.buckets[number], runs))
        self.advance()
        return number in self._agreed


class _ReadTwice:
    """The end of what an engine reads and of a digest that is computed on the host beside it."""

    def __init__(self, end: Fence | None, computing: Future[Digest]) -> None:
        self._end, self._computing = end, computing

    def synchronize(self) -> None:
        if self._end is not None:
            self._end.synchronize()
        self._computing.result()

    def query(self) -> bool:
        return (self._end is None or self._end.query()) and self._computing.done()

    def wait(self, stream: torch.cuda.Stream) -> None:
        if self._end is not None:
            self._end.wait(stream)
        self._computing.result()


def _computed(parts: Sequence[torch.Tensor]) -> Digest:
    """The digest of bytes that nobody writes to; waits for it."""
    with _beside(parts[0].device):
        return as_bytes(digest(parts))


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """Where digests are computed of what nobody writes to: on a GPU on a stream of their own."""
    return torch.cuda.stream(stream_for("digests", device)) if device.type == "cuda" else nullcontext()


def _in_bucket(plan: Plan, bucket: Bucket, runs: Runs) -> list[torch.Tensor]:
    """What is compared of a bucket. Nobody owns what lies between its ranges."""
    return [part_of(runs, part.bucket_offset, part.nbytes) for part in _compared(plan, bucket)]


def _holding(runs: Runs, ranges: Ranges) -> Runs:
    """Those of an extent's runs that hold these ranges, and what lies between them."""
    starts = attrgetter("at")
    first = bisect_right(runs, ranges[0].offset, key=starts) - 1
    return runs[first : bisect_right(runs, ranges[-1].offset, key=starts)]


def _compared(plan: Plan, bucket: Bucket) -> Ranges:
    """The ranges of a bucket that its digest is of; each lies within a run.

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


def _differing(plan: Plan, number: int, rank: int) -> str:
    """What is wrong when the digest of a bucket differs at ``rank``."""
    bucket = plan.buckets[number]
    names = list(dict.fromkeys(plan.manifest.tensors[piece.tensor].spec.name for piece in bucket.pieces))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    way: list[str] = []
    at, owner = rank, plan.owner(bucket)
    while at != owner:
        leg = next(
            leg
            for stage in plan.stages.block(number)
            if stage.kind is StageKind.TRANSFER
            for leg in plan.hops[stage.hop].legs
            if at in leg.receivers
        )
        way.insert(0, f"by '{plan.routes[leg.route].transport}' from rank {leg.sender} to rank {at}")
        at = leg.sender
    return (
        f"bytes of {', '.join(names[:NAMED])}{more} (bucket {number}) that are not those of source rank {owner}: "
        f"their digests differ. They came {', then '.join(way)}. Either that transport gives wrong bytes "
        "(python -m ckpt_transport.testing tries it), or the version's memory or files were changed during the update"
    )
