"""Loads a model of vLLM: by replay, module by module, where that is proved to be the same, else by its loader."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_transport import RecordingError
from ckpt_transport.spi import LoadPass, RecordedLoading, TensorSpec
from ckpt_transport_vllm.compared_pass import ModelComparedPass
from ckpt_transport_vllm.layerwise import LayerwisePass
from ckpt_transport_vllm.recorded_model import RecordedModel
from ckpt_transport_vllm.replay_pass import ModelReplayPass
from ckpt_transport_vllm.updated_model import UpdatedModel


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
        if self._expects() is None and recorded.empty:
            raise RecordingError(f"nothing comes for all of {recorded.empty[0]}")
        return recorded

    def fingerprint(self) -> object:
        return self._find_target().model

    def by_loader(self, refusal: str) -> LoadPass:
        return LayerwisePass(self._find_target(), self._expects(), refusal)

    def compared(self, recorded: RecordedModel) -> LoadPass:
        return ModelComparedPass(self._find_target(), recorded)

    def replayed(self, recorded: RecordedModel) -> LoadPass:
        return ModelReplayPass(self._find_target(), recorded)
