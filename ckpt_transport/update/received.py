"""What an engine has received in all rounds of an update, and what it lacks."""

from __future__ import annotations

from ckpt_transport.planning import Bucket, ByteRangeSet, Plan, Share, TensorSpec


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

    def lacking(self, plan: Plan, bucket: Bucket) -> list[tuple[TensorSpec, int, int, int]]:
        """What no earlier round has brought of a bucket: tensor, first byte, where in the bucket, and length."""
        found = []
        for spec, start, at, nbytes in (place for piece in bucket.pieces for place in plan.places(piece)):
            if not self.has:
                found.append((spec, start, at, nbytes))
                continue
            for low, high in self.has.missing(spec.name, start, nbytes):
                found.append((spec, low, at + low - start, high - low))
        return found

    def end_round(self, plan: Plan) -> bool:
        """Add what the round of ``plan`` has brought; return whether the engine has everything now."""
        for bucket in self._given:
            for piece in bucket.pieces:
                for spec, start, _, nbytes in plan.places(piece):
                    self.has.add(spec.name, start, nbytes)
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
