"""The ledger knows what of a schedule has been done, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ckpt_transport.execution.schedule import RankSchedule, RankStep
from ckpt_transport.execution.timeline import StageEvent, now
from ckpt_transport.memory import DistantRuns, Fence, MemoryRun, PlacedViews, Runs, RunTable
from ckpt_transport.transports.operations import Receipt


@dataclass(frozen=True)
class Received:
    """A bucket that is being received or has been.

    Attributes:
        receipt: of its transfer.
        starts: where each of the receipt's views starts in the bucket.
        sizes: of these, in bytes.
        landed: where it lies as one run, if it is put together in a slot; else None.
    """

    receipt: Receipt
    starts: Sequence[int]
    sizes: Sequence[int]
    landed: MemoryRun | None

    @cached_property
    def runs(self) -> Runs:
        """Its bytes, valid as long as the receipt's views. Asked for when these are there."""
        if self.landed is not None:
            return (self.landed,)
        distant = self.receipt.distant()
        if distant is not None:
            return DistantRuns(distant._replace(starts=self.starts))
        views = self.receipt.views()
        if len(views) == 1:
            return (MemoryRun(self.starts[0], views[0]),)
        placed = views if isinstance(views, PlacedViews) else PlacedViews(views)
        return RunTable(self.starts, placed.addresses, self.sizes, placed)


class Ledger:
    """Knows which steps of a schedule are left, and which of those a device has been given.

    Attributes:
        schedule: what is to be done.
        received: buckets, by number, from the post of their transfer until they have been applied.
        events: what has ended.
    """

    def __init__(self, schedule: RankSchedule) -> None:
        self.schedule = schedule
        self.received: dict[int, Received] = {}
        self.events: list[StageEvent] = []
        self._left = dict.fromkeys(schedule.needs, 0)
        for step in schedule.steps:
            self._left[step.stage] += 1
        self._marks: defaultdict[int, dict[RankStep, Fence]] = defaultdict(dict)

    @property
    def closed(self) -> bool:
        """Whether everything is done."""
        return not self._left

    def ready(self, step: RankStep, *, ordered: bool) -> Sequence[Fence] | None:
        """The fences that a device waits for before a step; None when the step may not even be enqueued.

        Args:
            step: the step.
            ordered: what the step does is ordered by a device.
        """
        fences: list[Fence] = []
        for earlier in self.schedule.needs[step.stage]:
            if earlier in self._left:
                marks = self._marks[earlier]
                if not ordered or len(marks) < self._left[earlier]:
                    return None
                fences += marks.values()
        return fences

    def mark(self, step: RankStep, end: Fence) -> None:
        """Note that a step is enqueued on a device, and ends there."""
        self._marks[step.stage][step] = end

    def ended(self, step: RankStep, started: float) -> None:
        """Note that a step is over, which started at ``started``, in seconds since the epoch."""
        self.events.append(StageEvent(self.schedule.rank, step.kind, step.bucket, started, now()))
        self._marks[step.stage].pop(step, None)
        self._left[step.stage] -= 1
        if not self._left[step.stage]:
            del self._left[step.stage]
