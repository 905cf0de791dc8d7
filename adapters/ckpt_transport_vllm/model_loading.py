"""Loads a model of vLLM: by replay, module by module, where that is proved to be the same, else by its loader."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch

from ckpt_transport import DeltaRefusedError, PlanMismatchError, RecordingError
from ckpt_transport.spi import (
    LoadPass,
    MakeShadows,
    RecordedLoading,
    ReplayedTensors,
    SeenByPassesError,
    ServedElements,
    ShadowNeeds,
    StagedTensors,
    StagingPlace,
    TensorSpec,
    on_device,
    place_of,
    why_not_apart,
    why_not_contiguous,
)
from ckpt_transport_vllm.compared_pass import ModelComparedPass
from ckpt_transport_vllm.layerwise import LayerwisePass
from ckpt_transport_vllm.recorded_model import RecordedModel
from ckpt_transport_vllm.rehearsal import rehearse
from ckpt_transport_vllm.replay_pass import ModelReplayPass
from ckpt_transport_vllm.staged_pass import ModelStagedPass
from ckpt_transport_vllm.staged_version import StagedVersion
from ckpt_transport_vllm.updated_model import UpdatedModel

NOT_YET = "its loader was not replayed yet, so the next version is loaded in place"


class NotAheadError(Exception):
    """A loader cannot be recorded while forward passes run. It may be when none does."""


class ModelLoading(RecordedLoading[RecordedModel]):
    """Brings versions into a model of vLLM.

    vLLM's loaders take any subset of tensors, so single modules are left to them where these cannot be replayed.

    Args:
        find_target: the model that the next version goes into.
        expects: the tensors of the checkpoint that the model came from; None when that is not known.
        label, verify_always: see :class:`~ckpt_transport.spi.RecordedLoading`.
    """

    def __init__(
        self,
        find_target: Callable[[], UpdatedModel],
        expects: Callable[[], tuple[TensorSpec, ...] | None],
        label: str,
        *,
        verify_always: bool = False,
    ) -> None:
        super().__init__(label, verify_always=verify_always)
        self._find_target, self._expects = find_target, expects
        self._staged: StagedVersion | None = None
        self._make: MakeShadows = on_device
        self._staging = False
        self._was_current: bool | None = None
        """What :meth:`begin` has found; None where it is to be looked for when it matters."""

    def begin(self) -> None:
        """Look at the model, because an update begins. Questions are answered from that until forward passes stand
        still, or the first bucket comes."""
        self._was_current = super()._is_current()

    def stand_still(self) -> None:
        """No forward pass runs: what is asked from now on is about the model as it is now."""
        self._was_current = None

    def start(self) -> None:
        self.stand_still()
        super().start()

    def _is_current(self) -> bool:
        return super()._is_current() if self._was_current is None else self._was_current

    def can_stage(self, budget: int) -> str:
        """Why the next version cannot be loaded beside what is served; empty when it can.

        Args:
            budget: bytes that it may take beside what is there for it already.
        """
        recorded, why = self._replayed()
        if recorded is None:
            return why
        if self._staged is not None and not self._staged.is_for(recorded):
            self.drop_staged()
        if self._staged is not None:
            return ""
        self._make, why = ShadowNeeds.of(recorded.served()).choose(budget - recorded.processed_nbytes)
        if not why and self._make is not on_device and recorded.computes:
            return "its device computes some of the weights, and has no room to stage them; lower vLLM's share of it"
        return why

    def staging_place(self) -> StagingPlace:
        """Where the next version is loaded, when :meth:`can_stage` gave no reason."""
        if self._staged is not None:
            return self._staged.area.place
        recorded = self.recorded
        assert recorded is not None, "can_stage() gave no reason"
        return place_of(recorded.served(), self._make)

    def _replayed(self) -> tuple[RecordedModel | None, str]:
        """The recording, where all of a version is replayed by it; else None, and why it is not."""
        if self._verify_always:
            return None, "each replay is compared with the loader, which loads in place"
        if self._attempt is None or not self._is_current():
            return None, NOT_YET
        if self._attempt.refusal:
            return None, f"its loader has to load, which it does in place: {self._attempt.refusal}"
        recorded = self.recorded
        if recorded is None or not recorded.verified:
            return None, NOT_YET
        reason = recorded.why_not_staged
        return (None if reason else recorded), reason

    def served_elements(self) -> ServedElements:
        """Where the bytes of a version are in the model.

        Raises:
            DeltaRefusedError: single elements cannot be followed; names the module or tensor.
        """
        recorded, why = self._replayed()
        if recorded is None:
            raise DeltaRefusedError(why)
        divided, part = recorded.divided, recorded.whole_part
        served, whole = recorded.served(), part.served()
        apart = {name: served[name].detach() for name in (*divided.elements.targets, *served) if name not in whole}
        if why := divided.refusal or why_not_apart(served) or why_not_contiguous(apart):
            raise DeltaRefusedError(why)
        return ServedElements(
            recorded.layout.sources,
            apart,
            divided.elements.copies,
            whole=divided.modules,
            whole_nbytes=ShadowNeeds.of(whole).nbytes + part.processed_nbytes,
            whole_served={name: each.detach() for name, each in whole.items()},
        )

    def stage_whole(self) -> StagedTensors:
        """See :meth:`~ckpt_transport.Engine.stage_whole`; :meth:`served_elements` has named modules."""
        recorded, target = self.recorded, self._find_target()
        assert recorded is not None, "it was recorded"
        part = recorded.whole_part
        version = StagedVersion(part, on_device)
        version.renew()
        load = ModelStagedPass(target, part, version)
        return ReplayedTensors(load, version.nbytes + part.processed_nbytes, version.exchange, version.device)

    def stage(self) -> None:
        """Load the next version beside what is served.

        Raises:
            BudgetError: there is no memory for it.
        """
        recorded = self.recorded
        assert recorded is not None, "can_stage() gave no reason"
        if self._staged is None:
            self._staged = StagedVersion(recorded, self._make)
        self._staged.renew()
        self._staging = True

    def restore(self) -> None:
        """The next exchange is to bring back what was exchanged last.

        Raises:
            PlanMismatchError: it is not there any more.
        """
        if self._staged is None or not self._staged.is_for(self.recorded):
            raise PlanMismatchError(f"{self.label} keeps no version before, or what is served has moved")
        self._staging = True

    def exchange(self) -> None:
        """Exchange what is staged and what is served."""
        assert self._staged is not None, "nothing was staged"
        self._staged.exchange()

    @property
    def staging_nbytes(self) -> int:
        """Bytes of memory of the staged version."""
        return 0 if self._staged is None else self._staged.nbytes

    def drop_staged(self) -> None:
        """Give the memory of what is staged back."""
        self._staged = None

    def stages_on(self, device: torch.device) -> bool:
        """Whether what is staged lies on this device."""
        return self._staged is not None and self._staged.device == device

    @property
    def staging(self) -> bool:
        """Whether the version that comes goes beside what is served."""
        return self._staging

    def release(self) -> None:
        super().release()
        self._staging, self._was_current = False, None

    def record_ahead(self, specs: Sequence[TensorSpec]) -> str:
        """Record the loader while forward passes run. Returns what came of it, in words.

        Where that cannot be done so, the first version records it, when none runs.
        """
        try:
            self._attempted(tuple(specs), self._record_while_serving)
        except NotAheadError as error:
            return f"did not record the loader ({error}), which the first update does while requests are held"
        return self.recording_summary

    def rehearse(self) -> Generator[str]:
        """Find out while forward passes run what the first version would find out of a recording; see ``rehearsal.py``.

        Yields: each step in words, which only the last one has.
        """
        recorded = self.recorded
        if recorded is None or recorded.refusal or recorded.verified or self._verify_always:
            return
        yield from rehearse(self._find_target(), recorded)

    def finish(self) -> None:
        """See :meth:`~ckpt_transport.spi.RecordedLoading.finish`.

        Raises:
            UpdateError: what was written in place is not what forward passes use.
        """
        super().finish()
        if self.recorded is not None:
            self.recorded.check_in_place()

    def record(self, specs: tuple[TensorSpec, ...]) -> RecordedModel:
        recorded = RecordedModel.of(self._find_target(), specs)
        self._check_complete(recorded)
        return recorded

    def _record_while_serving(self, specs: tuple[TensorSpec, ...]) -> RecordedModel:
        try:
            recorded = RecordedModel.of_serving(self._find_target(), specs)
        except (Exception, SeenByPassesError) as error:
            raise NotAheadError(f"{type(error).__name__}: {error}") from error
        self._check_complete(recorded)
        return recorded

    def _check_complete(self, recorded: RecordedModel) -> None:
        if self._expects() is None and recorded.empty:
            raise RecordingError(f"nothing comes for all of {recorded.empty[0]}")

    def fingerprint(self) -> object:
        return self._find_target().model

    def by_loader(self, refusal: str) -> LoadPass:
        self._check_in_place()
        return LayerwisePass(self._find_target(), self._expects(), refusal)

    def compared(self, recorded: RecordedModel) -> LoadPass:
        self._check_in_place()
        return ModelComparedPass(self._find_target(), recorded, () if self._verify_always else recorded.proved)

    def replayed(self, recorded: RecordedModel) -> LoadPass:
        if self._staging:
            assert self._staged is not None
            return ModelStagedPass(self._find_target(), recorded, self._staged)
        return ModelReplayPass(self._find_target(), recorded)

    def _check_in_place(self) -> None:
        """
        Raises:
            RecordingError: the loader has to load, and the version is to be staged.
        """
        if self._staging:
            raise RecordingError(f"{self.label} has changed since it said that it can stage a version; update it again")
