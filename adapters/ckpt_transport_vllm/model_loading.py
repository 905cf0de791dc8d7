"""Loads a model of vLLM: by replay, module by module, where that is proved to be the same, else by its loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckpt_transport import RecordingError
from ckpt_transport.spi import LoadPass, RecordedLoading, SeenByPassesError, TensorSpec
from ckpt_transport_vllm.compared_pass import ModelComparedPass
from ckpt_transport_vllm.layerwise import LayerwisePass
from ckpt_transport_vllm.recorded_model import RecordedModel
from ckpt_transport_vllm.replay_pass import ModelReplayPass
from ckpt_transport_vllm.updated_model import UpdatedModel


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

    def record_ahead(self, specs: Sequence[TensorSpec]) -> str:
        """Record the loader while forward passes run. Returns what came of it, in words.

        Where that cannot be done so, the first version records it, when none runs.
        """
        try:
            self._attempted(tuple(specs), self._record_while_serving)
        except NotAheadError as error:
            return f"did not record the loader ({error}), which the first update does while requests are held"
        return self.recording_summary

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
        return LayerwisePass(self._find_target(), self._expects(), refusal)

    def compared(self, recorded: RecordedModel) -> LoadPass:
        return ModelComparedPass(self._find_target(), recorded)

    def replayed(self, recorded: RecordedModel) -> LoadPass:
        return ModelReplayPass(self._find_target(), recorded)
