"""Loads new weights into a plain PyTorch module through a loader of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence

import torch

from ckpt_transport import DeltaRefusedError, LoadedBucket
from ckpt_transport.spi import (
    Fence,
    KnownShadowNeeds,
    Landing,
    Loader,
    ModuleLoading,
    ServedElements,
    ShadowNeeds,
    Share,
    StagedTensors,
    TensorSpec,
)
from ckpt_transport_torch.module_engine import ModuleEngine
from ckpt_transport_torch.writes import written_past_torch


class LoaderEngine(ModuleEngine):
    """Loads through a loader of the engine's own, which slices its shard out of whole tensors.

    What it does is recorded at the first update, and replayed without it from then on, where that is proved to leave
    the same bytes; see :class:`~ckpt_transport.spi.ModuleLoading`.

    Args:
        module: what is loaded.
        loader: its loader.
        group, label: see :class:`~ckpt_transport.Engine`.
        verify_always: compare each replay with the loader.
    """

    whole_tensors = reads_along = True

    def __init__(
        self,
        module: torch.nn.Module,
        loader: Loader,
        group: str = "",
        label: str = "",
        *,
        verify_always: bool = False,
    ) -> None:
        super().__init__(module, group, label)
        self._known_needs = KnownShadowNeeds()
        self._loading = ModuleLoading(module, loader, label or "the module", verify_always=verify_always)
        self.begin()
        self._release()

    def warm_up(self, specs: Sequence[TensorSpec]) -> Generator[str]:
        yield from super().warm_up(specs)
        try:
            self.begin()
            self._loading.prepare(specs)
        finally:
            self._release()
        yield self._loading.recording_summary

    def begin(self) -> None:
        self._find_devices(self._loading.begin())
        self.unread = self._loading.unread if self.device.type == "cpu" else "its tensors are on a GPU"

    def share(self) -> Share | None:
        return self._loading.share()

    def prepare(self, specs: Sequence[TensorSpec], share: Share | None) -> None:
        self._loading.prepare(specs, share)

    def foresee(self, buckets: Iterable[LoadedBucket]) -> None:
        self._loading.foresee(buckets)

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """Only the loader knows: its names and shapes are the checkpoint's, not the module's."""
        return None

    def confirm(self) -> None:
        if not self._staging:
            self._loading.start()

    def can_stage(self, budget: int) -> str:
        return self._labelled(self._loading.why_not_staged()) or super().can_stage(budget)

    def stage(self) -> None:
        super().stage()
        self._loading.stage(self._written)

    def served_elements(self) -> ServedElements:
        try:
            found = self._loading.served_elements()
        except DeltaRefusedError as error:
            raise DeltaRefusedError(self._labelled(str(error))) from error
        return self._apart(found)

    def stage_whole(self) -> StagedTensors:
        return self._loading.stage_whole()

    def _served(self) -> Mapping[str, torch.Tensor]:
        return self._loading.written()

    def _needs_of(self, tensors: Mapping[str, torch.Tensor]) -> ShadowNeeds:
        return self._known_needs.of(tensors)

    @property
    def spoiled(self) -> bool:
        return self._loading.spoiled

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self._loading.load(pieces)
        return self._reads_end()

    def landing(self, pieces: LoadedBucket) -> Landing | None:
        return None if self.unread else self._loading.landing(pieces)

    def landed(self, pieces: LoadedBucket) -> None:
        self._loading.landed(pieces)

    def finish(self) -> None:
        self._loading.finish()
        self.apply_summary = self._loading.apply_summary

    def certify(self) -> None:
        self._loading.certify()
        written_past_torch(self._loading.tensors.values())

    def taint(self, reason: str) -> None:
        self._loading.abandon()
        super().taint(reason)

    def _release(self) -> None:
        super()._release()
        self._loading.release()
