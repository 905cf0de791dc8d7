"""Does to new bytes what a loader did, without the loader."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

import torch

from ckpt_transport.engine import LoadedBucket
from ckpt_transport.errors import RecordingError
from ckpt_transport.memory import (
    Along,
    DoubleBuffer,
    Landing,
    MemoryRun,
    Runs,
    Scratch,
    copy_views,
    copy_views_along,
    has_copy_tables,
    part_of,
    reads_in_place,
    starts_of,
)
from ckpt_transport.replay.arguments import decode, view
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlan, BucketCopyPlans, BucketPart
from ckpt_transport.replay.bucket_table import BucketTable
from ckpt_transport.replay.layout import OpGroup, OwnerKind, Ref
from ckpt_transport.replay.memory_map import begin_of
from ckpt_transport.replay.torch_copy import (
    BITS,
    MemoryViews,
    StridedView,
    TorchCopy,
    alignment_of,
    bits_of,
    torch_copy,
)


class Replay:
    """Replays one version, bucket by bucket.

    Args:
        plans: of the layout.
        tensors: what each target of the layout is now, by its index; only those that a bucket reaches are needed.
    """

    def __init__(self, plans: BucketCopyPlans, tensors: Mapping[int, torch.Tensor]) -> None:
        layout = plans.layout
        self._layout, self._plans, self._tensors = layout, plans, tensors
        self._whole: dict[int, torch.Tensor] = {}
        self._parts: dict[int, tuple[torch.Tensor, list[int]]] = {}
        self._waiting = {number: set(group.sources) for number, group in enumerate(layout.op_groups)}
        self._left = Counter(plans.expected)
        self._needed: dict[int, list[int]] = {}
        self._double_buffer: dict[torch.device, DoubleBuffer] = {}
        self._passing_memory, self._passing = Scratch(), list[MemoryRun]()
        for number, group in enumerate(layout.op_groups):
            for source in group.sources:
                self._needed.setdefault(source, []).append(number)

    def run(self, plan: BucketCopyPlan, bucket: LoadedBucket) -> set[int]:
        """Bring one bucket in, for which ``plan`` was made. Returns the targets that were written."""
        if plan.copies:
            self._bring(plan, bucket)
        return self._take_in(plan, bucket.runs, bucket.stable)

    def landing(self, plan: BucketCopyPlan) -> Landing:
        """Where the bytes of a bucket are to be in host memory. When they are there, :meth:`landed` does the rest.

        What is only copied lands where it is to be, and what something is made of in memory that is used again.
        """
        self._passing = self._passing_memory.runs(plan.passing)
        return plan.straight.landing(self._tensors).beside(Landing.of(self._passing))

    def landed(self, plan: BucketCopyPlan) -> set[int]:
        """The bytes of a bucket are where :meth:`landing` said. Returns the targets that were written."""
        runs, self._passing = self._passing, []
        if plan.straight.rest:
            copies = self._strided(plan, runs)
            self._copy([copies[number] for number in plan.straight.rest], runs)
        return self._take_in(plan, runs, stable=False)

    def _take_in(self, plan: BucketCopyPlan, runs: Runs, stable: bool) -> set[int]:
        """What is only copied of a bucket was: do the rest."""
        self._left.subtract(plan.copied)
        written = set(plan.copied)
        for part in plan.gathered:
            if self._take(part, runs):
                for copy in self._plans.copies_of(part.source):
                    self._left[copy.target] -= copy.nbytes
                    written.add(copy.target)
        for group in self._ready_op_groups():
            self._perform(group)
            self._left.subtract(group.targets)
            written.update(group.targets)
        self._tidy(runs, stable)
        return written

    def lacks(self, targets: Iterable[int]) -> bool:
        """Whether something has not come that goes into one of these targets."""
        return any(self._left[target] for target in targets)

    def fill(self, targets: Container[int]) -> None:
        """Set what is constant in these targets."""
        for fill in self._layout.fills:
            if fill.write.index in targets:
                self._find(fill.write, ()).fill_(fill.value)

    def misfits(self) -> list[str]:
        """Targets in which something is not the constant that :meth:`fill` would set."""
        places = ((fill, self._find(fill.write, ())) for fill in self._layout.fills)
        return [
            self._layout.targets[fill.write.index].name
            for fill, place in places
            if not torch.equal(place, torch.full_like(place, fill.value))
        ]

    def finish(self) -> None:
        """See that nothing is left to do.

        Raises:
            RecordingError: something waits for a tensor that did not come, or a target for bytes.
        """
        for number, missing in self._waiting.items():
            if missing and self._layout.op_groups[number].sources:
                name = self._layout.sources[min(missing)].name
                raise RecordingError(f"{name} did not come, which the loader needs")
        for target, left in self._left.items():
            if left:
                raise RecordingError(f"{self._layout.targets[target].name} has not got all of its weights")

    def writes(self, plan: BucketCopyPlan, runs: Runs) -> list[torch.Tensor]:
        """Everything that :meth:`run` would write now, as integers; different tensors share no memory."""
        places = []
        for strided in self._strided(plan, runs):
            tensor = self._tensors[strided.target]
            places.append(MemoryViews(tensor).at(bits_of(strided.write)))
        arriving = {part.source for part in plan.gathered if self._completes(part)}
        for number, missing in self._waiting.items():
            if missing and missing <= arriving:
                places += self._written(self._layout.op_groups[number])
        return places

    # -- copies --------------------------------------------------------------------------------------------------------

    def _bring(self, plan: BucketCopyPlan, bucket: LoadedBucket) -> None:
        device = self._tensors[plan.copies[0].target].device
        tabled = has_copy_tables(device)
        near = runs = bucket.runs
        if not tabled or not reads_in_place(device, runs):
            near = self._near(device).stage(runs, lambda: plan.part(device, starts_of(runs)))
        if near is not runs:
            bucket.brought(near, plan.part(device, starts_of(runs)))
        if not tabled:
            self._copy(self._strided(plan, near), near, bucket.along)
            return
        table = self._table(plan, device, starts_of(near))
        table.copy(near)
        if table.rest:
            copies = self._strided(plan, near)
            self._copy([copies[number] for number in table.rest], near)

    def _table(self, plan: BucketCopyPlan, device: torch.device, starts: tuple[int, ...]) -> BucketTable:
        known = plan.tables.get((device, starts))
        if known is None or not known.finds(self._tensors):
            known = plan.tables[device, starts] = BucketTable(device, plan.copies, starts, self._tensors)
        return known

    def _near(self, device: torch.device) -> DoubleBuffer:
        return self._double_buffer.setdefault(device, DoubleBuffer(device))

    def _strided(self, plan: BucketCopyPlan, runs: Runs) -> Sequence[TorchCopy]:
        targets = {copy.target for copy in plan.copies}
        begins = (begin_of(run.raw) - run.at for run in runs)
        alignment = alignment_of(*begins, *(begin_of(self._tensors[target]) for target in targets))
        known = plan.torch_copies.get(alignment)
        if known is None:
            known = plan.torch_copies[alignment] = [torch_copy(copy, alignment) for copy in plan.copies]
        return known

    def _copy(self, copies: Sequence[TorchCopy], runs: Runs, along: Along | None = None) -> None:
        memory = [(run.at, MemoryViews(run.raw, run.at)) for run in runs]
        targets = {target: MemoryViews(self._tensors[target]) for target in {copy.target for copy in copies}}
        reads = [_holding(memory, copy.read).at(copy.read) for copy in copies]
        writes = [targets[copy.target].at(copy.write) for copy in copies]
        if runs[0].raw.is_cpu and all(read.dtype == write.dtype for read, write in zip(reads, writes, strict=True)):
            if along is None:
                copy_views(writes, reads)
            else:
                starts = [copy.read.offset * copy.read.dtype.itemsize for copy in copies]
                copy_views_along(writes, reads, starts, along)
        elif reads:
            torch._foreach_copy_(writes, reads, non_blocking=writes[0].is_cuda)

    # -- groups of operations -----------------------------------------------------------------------------------------

    def _completes(self, part: BucketPart) -> bool:
        known = self._parts.get(part.source)
        missing = self._layout.sources[part.source].nbytes if known is None else known[1][0]
        return part.nbytes == missing

    def _take(self, part: BucketPart, runs: Runs) -> bool:
        """Keep a part until the rest of its tensor is there; return whether it is, and what is copied of it was."""
        nbytes = self._layout.sources[part.source].nbytes
        piece = part_of(runs, part.at, part.nbytes)
        if part.nbytes == nbytes:
            aligned = begin_of(piece) % WORD == 0
            self._whole[part.source] = piece if aligned else piece.clone()
        else:
            buffer, missing = self._parts.setdefault(
                part.source, (torch.empty(nbytes, dtype=torch.uint8, device=piece.device), [nbytes])
            )
            buffer[part.offset : part.offset + part.nbytes].copy_(piece, non_blocking=True)
            missing[0] -= part.nbytes
            if missing[0]:
                return False
            self._whole[part.source] = self._parts.pop(part.source)[0]
        if part.source in self._needed:
            for number in self._needed[part.source]:
                self._waiting[number].discard(part.source)
        for copy in self._plans.copies_of(part.source):
            self._find(copy.write, ()).copy_(self._find(copy.read, ()), non_blocking=True)
        return True

    def _ready_op_groups(self) -> list[OpGroup]:
        due = [number for number, missing in self._waiting.items() if not missing]
        for number in due:
            del self._waiting[number]
        return [self._layout.op_groups[number] for number in due]

    def _tidy(self, runs: Runs, stable: bool) -> None:
        """Drop tensors that nothing waits for any more, and copy those that will not last."""
        if not self._whole:
            return
        passing = set() if stable else {run.raw.untyped_storage()._cdata for run in runs}
        for source in list(self._whole):
            if not any(number in self._waiting for number in self._needed.get(source, ())):
                del self._whole[source]
            elif self._whole[source].untyped_storage()._cdata in passing:
                self._whole[source] = self._whole[source].clone()

    def _perform(self, group: OpGroup) -> None:
        results: list[torch.Tensor] = []
        device = self._tensors[group.targets[0]].device

        def find(ref: Ref) -> torch.Tensor:
            return self._find(ref, results)

        for operation in group.operations:
            args = [decode(value, find, device) for value in operation.args]
            kwargs = {name: decode(value, find, device) for name, value in operation.kwargs.items()}
            made = operation.op(*args, **kwargs)
            if operation.results:
                results += [made] if isinstance(made, torch.Tensor) else list(made)

    def _find(self, ref: Ref, results: Sequence[torch.Tensor]) -> torch.Tensor:
        if ref.kind is OwnerKind.SOURCE:
            return view(self._whole[ref.index], ref)
        return view(self._tensors[ref.index] if ref.kind is OwnerKind.TARGET else results[ref.index], ref)

    def _written(self, group: OpGroup) -> Iterator[torch.Tensor]:
        for ref in group.written:
            tensor = self._find(ref, ())
            yield tensor.view(BITS[tensor.itemsize])


def _holding(memory: Sequence[tuple[int, MemoryViews]], read: StridedView) -> MemoryViews:
    """The run that a view of the bucket lies in: the last that does not start behind it."""
    if len(memory) == 1:
        return memory[0][1]
    start = read.offset * read.dtype.itemsize
    return memory[bisect_right(memory, start, key=itemgetter(0)) - 1][1]


WORD = 16
"""Operations see tensors whose addresses are multiples of this."""
