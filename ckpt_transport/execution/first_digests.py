"""Digests may be compared before an engine is given a bucket.

In an update that goes on after a failure a bucket that differs comes again, and an engine may be given nothing twice.
"""

from __future__ import annotations

from ckpt_transport.execution.digests import OwnerDigests, SinkDigests
from ckpt_transport.memory import Fence, PartialCopy, Runs
from ckpt_transport.planning import Bucket


class PromptOwnerDigests(OwnerDigests):
    """For sinks that wait for each: said at once, not in batches."""

    def turn(self) -> None:
        super().turn()
        if self._made or self._coming or self._computing:
            self.advance()


class FirstSinkDigests(SinkDigests):
    """Compares before the engine is given a bucket."""

    def look(self, bucket: Bucket, runs: Runs, part: PartialCopy | None = None) -> None:
        """Do nothing: the bucket was compared before."""

    def landed(self, bucket: Bucket, parts: Runs) -> None:
        """The same."""

    def read(self, bucket: Bucket, runs: Runs, end: Fence | None) -> Fence | None:
        return end

    def admits(self, number: int, runs: Runs) -> bool:
        if number not in self._begun:
            self._begun.add(number)
            sample = self._schedule.samples.of(self._schedule.rank, number)
            if sample is None:
                self._agreed.add(number)
            else:
                self._compute(number, sample, runs)
        self.advance()
        return number in self._agreed
