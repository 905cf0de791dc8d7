"""What an engine has received in all rounds of an update, and what it lacks."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from ckpt_transport.memory.byte_ranges import EqualRanges, union
from ckpt_transport.planning import Bucket, ByteRangeSet, PlacedBytes, Plan, Share


class ReceivedBytes:
    """Counts what an engine was given. A round adds to what earlier ones have brought when it ends.

    Attributes:
        has: what the rounds before this one have brought, and what the engine does not need.
        needed: what the engine needs; None for everything.
    """

    def __init__(self) -> None:
        self.has = ByteRangeSet()
        self.needed: Share | None = None
        self._given: list[Bucket] = []

    def add(self, bucket: Bucket) -> None:
        """The engine was given this bucket in the round that runs."""
        self._given.append(bucket)

    def lacking(self, plan: Plan, bucket: Bucket) -> list[PlacedBytes]:
        """What no earlier round has brought of a bucket."""
        places = [place for piece in bucket.pieces for place in plan.places(piece)]
        if not self.has:
            return places
        return [
            PlacedBytes(run.spec, low, run.at + low - run.start, high - low)
            for place in places
            for run in place.each()
            for low, high in self.has.missing(run.spec.name, run.start, run.nbytes)
        ]

    def end_round(self, plan: Plan) -> bool:
        """Add what the round of ``plan`` has brought; return whether the engine has everything now."""
        runs: defaultdict[str, list[EqualRanges]] = defaultdict(list)
        for place in (place for bucket in self._given for piece in bucket.pieces for place in plan.places(piece)):
            starts = place.start + np.arange(place.runs, dtype=np.int64) * place.stride
            runs[place.spec.name].append(EqualRanges(starts, place.nbytes))
        for name, found in runs.items():
            for start, end in zip(*(side.tolist() for side in union(found)), strict=True):
                self.has.add(name, start, end - start)
        self._given.clear()
        if self.needed is not None:
            self._add_unneeded(plan, ByteRangeSet(self.needed.ranges))
        return self.has.covers({name: spec.nbytes for name, spec in plan.manifest.specs.items()})

    def _add_unneeded(self, plan: Plan, needed: ByteRangeSet) -> None:
        """What the engine does not need counts as had; where tensors are sent whole, only whole tensors."""
        for name, spec in plan.manifest.specs.items():
            unneeded = needed.missing(name, 0, spec.nbytes)
            if not plan.topology.whole_tensors or unneeded == [(0, spec.nbytes)]:
                for low, high in unneeded:
                    self.has.add(name, low, high - low)
