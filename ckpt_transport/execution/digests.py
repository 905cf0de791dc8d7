"""Owners of buckets say their digests, and those who apply them compare.

Owners say theirs straight to the sinks that get a bucket. Sinks compute theirs of the bytes that the engine is given,
beside the engine, and compare when both are there. At the end each waits for what is left, and before that nobody waits
for a digest. In an update that goes on after a failure a bucket waits until its digests agree: see
:mod:`ckpt_transport.execution.first_digests`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import msgspec
import torch

from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.errors import MessageError, TransferError
from ckpt_transport.execution.applies import HANDED_OVER_BYTES
from ckpt_transport.execution.computing import ReadTwice, in_tasks, known
from ckpt_transport.execution.differing import differing
from ckpt_transport.execution.digest_steps import Digests
from ckpt_transport.execution.samples import AnySample
from ckpt_transport.execution.schedule import RankSchedule
from ckpt_transport.memory import (
    NO_PARTS,
    Along,
    Backing,
    DividedDigest,
    Fence,
    Lendable,
    MemoryKind,
    MemoryRun,
    PartialCopy,
    Parts,
    Runs,
    fence,
    fence_on,
    has_copy_tables,
    stream_for,
    usable_cores,
)
from ckpt_transport.memory.digest import as_bytes
from ckpt_transport.memory.digest_pages import Digest
from ckpt_transport.memory.host_digest import digests_of_pages
from ckpt_transport.planning import IN_PLACE, Bucket
from ckpt_transport.transports.interface import Control

PATIENCE_SECONDS = 0.05
SHORT_BYTES = 1 << 20
"""What an owner compares of less it computes itself: threads for it would keep it from agreeing to the plan."""

Unsaid = tuple[int, tuple[int, ...]]
"""The number of a bucket, and the sinks that have yet to hear a digest of it."""
Due = tuple[Unsaid, AnySample]
"""The same, and what is compared of it."""
Said = list[tuple[int, Digest]]
"""The message: numbers of buckets, and their digests."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Said).decode


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
        self._workers.shutdown(wait=False)  # nothing is read any more

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
        self._compared = {
            number: schedule.samples.compared(number)
            for number, bucket in enumerate(self._plan.buckets)
            if self._plan.owner(bucket) == schedule.rank
        }
        self._unsaid = {(number, ranks) for number, compared in self._compared.items() for _, ranks in compared}
        self._made: deque[tuple[Unsaid, Digest]] = deque()
        self._coming: deque[tuple[Unsaid, torch.Tensor, Fence]] = deque()
        """On their way from a device."""
        self._computing: deque[Future[None]] = deque()
        self._short: deque[tuple[Lendable, Sequence[Due]]] = deque()
        """To be computed when the first transfers are posted."""
        for extent, in_place in self._in_place().items():
            memory = extents[extent]
            assert memory.kind is not MemoryKind.SCATTERED
            self._start(cast(Lendable, memory), in_place, wake)

    def _in_place(self) -> Mapping[int, Sequence[Due]]:
        """For each extent, what is compared of the buckets that are sent from where they lie, in their extent."""
        found: defaultdict[int, list[Due]] = defaultdict(list)
        for number, compared in self._compared.items():
            bucket = self._plan.buckets[number]
            if bucket.fill_slot == IN_PLACE:
                found[bucket.extent] += (((number, ranks), sample) for sample, ranks in compared)
        return found

    def _start(self, memory: Lendable, in_place: Sequence[Due], wake: Callable[[], None]) -> None:
        known = memory.digests
        kept = {sample.key: known[sample.key] for _, sample in in_place if sample.key in known} if known else {}
        known.clear()
        known.update(kept)
        self._made.extend((unsaid, kept[sample.key]) for unsaid, sample in in_place if sample.key in kept)
        unknown = [each for each in in_place if each[1].key not in kept]
        on_gpu = bool(unknown) and memory.runs[0].raw.is_cuda  # several threads would not help it
        if not on_gpu and sum(map(_nbytes, unknown)) <= SHORT_BYTES:
            self._short.append((memory, unknown))
            return
        for some in [unknown] if on_gpu else in_tasks(unknown, _nbytes):
            self._computing.append(self._workers.submit(self._compute_each, memory, some, wake))

    def turn(self) -> None:
        if self._short:
            self._compute_short()
            self.advance()

    def _compute_short(self) -> None:
        while self._short:
            self._compute_each(*self._short.popleft(), lambda: None)

    def _compute_each(self, memory: Lendable, some: Sequence[Due], wake: Callable[[], None]) -> None:
        """Short ones are made and said together: to wake whoever says one takes longer than it does."""
        pages: list[tuple[Due, torch.Tensor]] = []
        try:
            for each in some:
                page = each[1].page_in(memory.runs)
                if page is not None:
                    pages.append((each, page))
                    continue
                with _beside(memory.runs[0].raw.device):
                    self._note(memory, each, as_bytes(each[1].of_extent(memory.runs)))
                wake()
            made = digests_of_pages([page for _, page in pages])
            for (each, _), found in zip(pages, made, strict=True):
                self._note(memory, each, found)
        finally:
            wake()

    def _note(self, memory: Lendable, due: Due, found: Digest) -> None:
        memory.digests[due[1].key] = found
        self._made.append((due[0], found))

    def filled(self, bucket: int, slot: torch.Tensor) -> Fence | None:
        """On a device the next slot is filled while this one is read."""
        runs, compared = (MemoryRun(0, slot),), self._compared[bucket]
        complete = fence(slot.device)
        if complete is None:
            self._made.extend(((bucket, ranks), as_bytes(sample.of_bucket(runs))) for sample, ranks in compared)
            return None
        beside = stream_for("digests of slots", slot.device)
        complete.wait(beside)
        with torch.cuda.stream(beside):
            brought: list[tuple[Unsaid, torch.Tensor]] = []
            for sample, ranks in compared:
                sums = sample.of_bucket(runs)
                on_host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
                on_host.copy_(sums, non_blocking=True)
                brought.append(((bucket, ranks), on_host))
            end = fence_on(beside)
        self._coming.extend((unsaid, on_host, end) for unsaid, on_host in brought)
        return end

    @property
    def _left(self) -> bool:
        return bool(self._unsaid)

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        self._compute_short()
        for _, _, end in self._coming:
            end.synchronize()
        super().finish(watch, idle)

    def advance(self) -> None:
        while self._computing and self._computing[0].done():
            self._computing.popleft().result()
        while self._coming and self._coming[0][2].query():
            unsaid, sums, _ = self._coming.popleft()
            self._made.append((unsaid, as_bytes(sums)))
        by_audience: defaultdict[tuple[int, ...], Said] = defaultdict(list)
        while self._made:
            (number, ranks), found = self._made.popleft()
            by_audience[ranks].append((number, found))
            self._unsaid.discard((number, ranks))
        for ranks, said in by_audience.items():
            message = _encode(said)
            self._channel.send_each(ranks, message)


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
        self._divided: dict[int, DividedDigest] = {}
        """Computed by whoever reads the bucket. What an engine has not read when it returns is left to workers."""
        self._on_device: dict[int, torch.Tensor] = {}
        self._begun: set[int] = set()
        self._agreed: set[int] = set()

    def look(self, bucket: Bucket, runs: Runs, part: PartialCopy | None = None) -> None:
        number = self._schedule.numbers[bucket.first]
        if number not in self._begun:
            self._begin(number, runs, part)

    def along(self, bucket: Bucket, runs: Runs) -> Along | None:
        number = self._schedule.numbers[bucket.first]
        sample = self._schedule.samples.of(self._schedule.rank, number)
        divided = None if sample is None or number in self._begun or _is_short(sample) else sample.divided(runs)
        if divided is None:
            return super().along(bucket, runs)
        self._begun.add(number)
        self._divided[number], self._on_host[number] = divided, divided.result
        divided.result.add_done_callback(lambda _: self._wake())
        return divided.compute

    def compared(self, bucket: Bucket) -> Parts:
        sample = self._schedule.samples.of(self._schedule.rank, self._schedule.numbers[bucket.first])
        return NO_PARTS if sample is None else sample.parts

    def landed(self, bucket: Bucket, parts: Runs) -> None:
        number = self._schedule.numbers[bucket.first]
        sample = self._schedule.samples.of(self._schedule.rank, number)
        self._begun.add(number)
        if sample is None:
            self._agreed.add(number)
        else:
            self._on_host[number] = known(as_bytes(sample.of_bucket(parts)))

    def _begin(self, number: int, runs: Runs, part: PartialCopy | None) -> None:
        """Compute the digest of what this sink reads of a bucket, if it reads anything and that is there."""
        sample = self._schedule.samples.of(self._schedule.rank, number)
        if part is not None and sample is not None and not part.covers(sample.ranges):
            return
        self._begun.add(number)
        if sample is None:
            self._agreed.add(number)
        elif runs[0].raw.is_cuda or has_copy_tables(runs[0].raw.device):
            self._on_device[number] = sample.of_bucket(runs)
        else:
            self._compute(number, sample, runs)

    def _compute(self, number: int, sample: AnySample, runs: Runs) -> None:
        if _is_short(sample) and not runs[0].raw.is_cuda:
            self._on_host[number] = known(_computed(sample, runs))
            return
        computing = self._on_host[number] = self._workers.submit(_computed, sample, runs)
        computing.add_done_callback(lambda _: self._wake())

    def read(self, bucket: Bucket, runs: Runs, end: Fence | None) -> Fence | None:
        number = self._schedule.numbers[bucket.first]
        computing, divided = self._on_host.get(number), self._divided.get(number)
        if divided is not None and not divided.result.done():
            for _ in range(usable_cores()):
                self._workers.submit(divided.compute)
        if computing is not None and not computing.done():
            return ReadTwice(end, computing)
        return fence(runs[0].raw.device) if end is None else end

    @property
    def _left(self) -> bool:
        return len(self._agreed) < len(self._begun)

    def advance(self) -> None:
        self._take_in()
        for number, computed in list(self._on_host.items()):
            if number in self._said and computed.done():
                del self._on_host[number]
                self._divided.pop(number, None)
                self._compare(number, computed.result())

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        if unseen := self._schedule.applied - self._begun:
            raise TransferError(
                f"{self._label} has applied bucket {min(unseen)} and not computed its digest, so nobody knows whether "
                "its bytes are right; report this as a fault of ckpt-transport"
            )
        self._fetch()
        super().finish(watch, idle)

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        for divided in list(self._divided.values()):
            divided.cancel()
        super().close()

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
                self._on_host[number] = known(as_bytes(sums))
        self._on_device.clear()

    def _take_in(self) -> None:
        while (message := self._channel.receive()) is not None:
            rank, payload = message
            try:
                said = _decode(payload)
            except UNREADABLE as error:
                raise MessageError(f"rank {rank} says digests that cannot be read: {error}") from error
            for number, found in said:
                if number in self._schedule.applied and self._plan.owner(self._plan.buckets[number]) == rank:
                    self._said.setdefault(number, found)

    def _compare(self, number: int, found: Digest) -> None:
        if found != self._said[number]:
            raise TransferError(f"{self._label} got {differing(self._plan, number, self._schedule.rank)}")
        self._agreed.add(number)


def _nbytes(due: Due) -> int:
    """How many bytes are compared."""
    return due[1].nbytes


def _is_short(sample: AnySample) -> bool:
    """Whether its digest takes less long than handing it to another thread, however long its bucket is."""
    return sample.nbytes < HANDED_OVER_BYTES


def _computed(sample: AnySample, runs: Runs) -> Digest:
    """The digest of bytes that nobody writes to; waits for it."""
    with _beside(runs[0].raw.device):
        return as_bytes(sample.of_bucket(runs))


def _beside(device: torch.device) -> AbstractContextManager[object]:
    """Where digests are computed of what nobody writes to: on a GPU on a stream of their own."""
    return torch.cuda.stream(stream_for("digests", device)) if device.type == "cuda" else nullcontext()
