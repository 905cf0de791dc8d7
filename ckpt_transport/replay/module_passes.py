"""Brings a version into a plain module in three ways: by its loader, by the replay, and by both, compared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

from ckpt_transport.engine import LoadedBucket
from ckpt_transport.memory import Landing
from ckpt_transport.planning import Share
from ckpt_transport.replay.bucket_copy_plan import BucketCopyPlan, UnknownTensorError
from ckpt_transport.replay.loading import LoadPass, RecordedLoader, by_loader_in_words, logger
from ckpt_transport.replay.record import Loader
from ckpt_transport.replay.replay import Replay
from ckpt_transport.replay.required_bytes import required_bytes

Memory = Mapping[str, torch.Tensor]
"""The tensors of the module, as plain memory, by name."""


class ModuleLoaderPass(LoadPass):
    """The loader loads.

    Args:
        loader: it is given the whole tensors of one bucket at a time.
        memory: what it loads into.
        refusal: why it has to load.
    """

    def __init__(self, loader: Loader, memory: Memory, refusal: str = "") -> None:
        self._loader, self._refusal = loader, refusal
        self._inference = any(map(torch.Tensor.is_inference, memory.values()))
        self._seconds = 0.0

    def load(self, bucket: LoadedBucket) -> None:
        with self._writing():
            self._by_loader(bucket)

    def finish(self) -> str:
        return by_loader_in_words(self._seconds, self._refusal)

    def _by_loader(self, bucket: LoadedBucket) -> None:
        began = time.perf_counter()
        self._loader((piece.spec.name, piece.tensor()) for piece in bucket)
        self._seconds += time.perf_counter() - began

    def _writing(self) -> AbstractContextManager[object]:
        """How torch lets the module's tensors be written: those made in inference mode only in it."""
        return torch.inference_mode() if self._inference else torch.no_grad()


class ModuleReplayPass(ModuleLoaderPass):
    """The replay loads. Where a bucket brings something else than was recorded, the loader loads it and all others.

    Args:
        loader: as for :class:`ModuleLoaderPass`.
        memory: what is written; nothing else of the module is needed.
        recorded: the loader's recording; its refusal is set when the loader has to load.
        share: what comes of the version; None for everything. The loader cannot load a share.
    """

    def __init__(self, loader: Loader, memory: Memory, recorded: RecordedLoader, share: Share | None) -> None:
        super().__init__(loader, memory)
        self._recorded, self._share = recorded, share
        targets = recorded.layout.targets
        written = {n: memory[target.name] for n, target in enumerate(targets) if target.name in memory}
        self._replay = Replay(recorded.plans, written)
        self._replaying = 0.0

    def load(self, bucket: LoadedBucket) -> None:
        with self._writing():
            plan = None if self._refusal else self._plan(bucket)
            if plan is None:
                self._by_loader(bucket)
            else:
                self._apply(plan, bucket)

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        plan = None if self._refusal else self._plan(bucket)
        return None if plan is None else self._replay.landing(plan)

    def landed(self, bucket: LoadedBucket) -> None:
        began = time.perf_counter()
        with self._writing():
            self._replay.landed(self._recorded.plans.of(bucket))
        self._replaying += time.perf_counter() - began

    def finish(self) -> str:
        if not self._refusal:
            with self._writing():
                self._replay.finish()
                self._fill()
        if self._refusal:
            return super().finish()
        self._recorded.plans.forget_unused()
        return self._in_words()

    def _plan(self, bucket: LoadedBucket) -> BucketCopyPlan | None:
        try:
            return self._recorded.plans.of(bucket)
        except UnknownTensorError as error:
            if self._share is not None:
                raise
            self._refuse(str(error))
            return None

    def _apply(self, plan: BucketCopyPlan, bucket: LoadedBucket) -> None:
        began = time.perf_counter()
        self._replay.run(plan, bucket)
        self._replaying += time.perf_counter() - began

    def _fill(self) -> None:
        self._replay.fill(range(len(self._recorded.layout.targets)))

    def _in_words(self) -> str:
        loader = f"the loader took {self._recorded.loader_seconds:.3f} s"
        return f"replayed in {self._replaying:.3f} s ({self._steps()}); {loader}"

    def _steps(self) -> str:
        layout = self._recorded.layout
        groups = f", {len(layout.op_groups)} groups of operations" if layout.op_groups else ""
        return f"{len(layout.copies)} copies in {self._recorded.plans.copy_count}{groups}"

    def _refuse(self, reason: str) -> None:
        self._refusal = self._recorded.refusal = reason
        logger.warning("weights are loaded by the loader and not replayed any more: %s", reason)


class ModuleComparedPass(ModuleReplayPass):
    """The loader loads each bucket, and the replay loads it over that. If one byte differs, the loader's stays."""

    def landing(self, bucket: LoadedBucket) -> Landing | None:
        return None

    def _apply(self, plan: BucketCopyPlan, bucket: LoadedBucket) -> None:
        """Load by the loader, spoil what the replay should write, replay, and see that it is as it was."""
        self._by_loader(bucket)
        places = self._replay.writes(plan, bucket.runs)
        expected = [place.clone() for place in places]
        for place in places:
            place.bitwise_not_()
        super()._apply(plan, bucket)
        wrong = [n for n, place in enumerate(places) if not torch.equal(place, expected[n])]
        if wrong:
            for place, value in zip(places, expected, strict=True):
                place.copy_(value)
            self._refuse("the replay did not leave the bytes that the loader leaves")

    def _fill(self) -> None:
        if misfits := self._replay.misfits():
            self._refuse(f"the loader fills {misfits[0]} with another number than when it was recorded")

    def _in_words(self) -> str:
        recorded = self._recorded
        recorded.verified, recorded.share = True, required_bytes(recorded.layout)
        recorded.loader_seconds = self._seconds
        return (
            f"recorded in {recorded.recording_seconds:.3f} s ({self._steps()}), loaded by the loader in "
            f"{self._seconds:.3f} s, replayed in {self._replaying:.3f} s and found to be the same"
        )
