"""Has a loader and its replay load the same invented tensors, and compares what both leave."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set

import msgspec
import torch

from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlans
from ckpt_transport.replay.compared_tensors import PIECE_BYTES, inverted_copy, is_replayed_as_loaded
from ckpt_transport.replay.invented_tensors import InventedTensors
from ckpt_transport.replay.layout import Layout
from ckpt_transport.replay.record import Loader
from ckpt_transport.replay.replay import Replay
from ckpt_transport.replay.writable_memory import WritesApart

BUCKET_BYTES = 64 << 20


class Rehearsal:
    """A rehearsal is about some targets of a layout.

    Args:
        layout: what the loader does, and nothing that does not go into these targets; see :func:`of_targets`.
        targets: what the loader is to load into, by index.
        device: where they are.

    Attributes:
        differing: the targets that were not replayed as they were loaded, once all steps are done.
    """

    def __init__(self, layout: Layout, targets: Collection[int], device: torch.device) -> None:
        self._layout, self._targets = layout, targets
        self.differing: list[int] = []
        sources = {copy.source for copy in layout.copies}.union(*(group.sources for group in layout.op_groups))
        specs = [layout.sources[number] for number in sorted(sources)]
        self._invented = InventedTensors(specs, BUCKET_BYTES, device)

    def nbytes(self, target_nbytes: int) -> int:
        """Bytes of memory that it takes in all, where the targets have so many."""
        return 2 * target_nbytes + self._invented.nbytes + 2 * min(target_nbytes, PIECE_BYTES)

    def steps(
        self, loaded: Mapping[int, torch.Tensor], elsewhere: Iterable[torch.Tensor], load: Loader
    ) -> Iterator[None]:
        """Carry it out, step by step.

        Args:
            loaded: the targets, in memory that nothing else uses.
            elsewhere: what the loader may write beside, without memory.
            load: the loader.

        Raises:
            RecordingError: the replay waits for what the loader does not need.
            SeenByPassesError: the loader was about to write to other memory.
        """
        with torch.no_grad():
            replayed = {number: inverted_copy(tensor) for number, tensor in loaded.items()}
        plans = BucketCopyPlans(self._layout)
        replay = Replay(plans, replayed)
        writable = [*loaded.values(), *elsewhere]
        for bucket in self._invented:
            with torch.no_grad():
                with WritesApart([*writable, *(run.raw for run in bucket.runs)]):
                    load([(piece.spec.name, piece.tensor()) for piece in bucket])
                replay.run(plans.of(bucket), bucket)
            del bucket  # before the next one takes memory
            yield
        gaps = {gap.target: gap.nbytes for gap in self._layout.gaps}
        with torch.no_grad():
            replay.fill(self._targets)
            replay.finish()
            self.differing = [
                number
                for number, tensor in loaded.items()
                if not is_replayed_as_loaded(tensor, replayed[number], gaps.get(number, 0))
            ]


def of_targets(plans: BucketCopyPlans, sources: Iterable[int], targets: Set[int]) -> Layout:
    """What of a layout goes into some of its targets.

    Args:
        plans: of the layout.
        sources: all that goes into these targets.
        targets: these; of a group of operations all or none.
    """
    copies = (copy for number in sources for copy in plans.copies_of(number))
    return msgspec.structs.replace(
        plans.layout,
        copies=tuple(copy for copy in copies if copy.target in targets),
        fills=tuple(fill for fill in plans.layout.fills if fill.write.index in targets),
        op_groups=tuple(group for group in plans.layout.op_groups if not targets.isdisjoint(group.targets)),
    )
