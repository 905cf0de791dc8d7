"""Brings new weights into one rank of SGLang."""

from __future__ import annotations

import logging

from ckpt_transport import UnwritableError
from ckpt_transport.spi import TensorSpec
from ckpt_transport_sglang.scheduler_gate import SchedulerGate
from ckpt_transport_sglang.served_model import ServedModel
from ckpt_transport_torch.loader_engine import LoaderEngine

logger = logging.getLogger(__name__)


class SglangEngine(LoaderEngine):
    """Records what the model's own loader does at the first update, and replays that from then on.

    Where that is not exact, the loader loads.

    Args:
        model: what is served.
        gate: holds batches.
        group, label: see :class:`~ckpt_transport.Engine`.
        verify_always: compare each replay with the loader.
    """

    def __init__(
        self, model: ServedModel, gate: SchedulerGate, group: str, label: str, *, verify_always: bool = False
    ) -> None:
        self._model = model
        self._scheduler_gate = gate
        super().__init__(model.module, model.load, group, label, verify_always=verify_always)
        self.gate = gate
        gate.updating = False

    def begin(self) -> None:
        if self._model.absent:
            raise UnwritableError(
                f"{self.label} has given back the memory of its weights; POST /resume_memory_occupation before"
            )
        if self._model.keeps_outside:
            raise UnwritableError(
                f"{self.label} keeps what old weights have computed in a store of HiCache, which no flush empties, and "
                "would use it on; DELETE /hicache/storage-backend before, or start it without --hicache-storage-backend"
            )
        self._scheduler_gate.updating = True
        super().begin()

    def expects(self) -> tuple[TensorSpec, ...] | None:
        return self._model.expects()

    def certify(self) -> None:
        super().certify()
        self._model.forget_images()

    def taint(self, reason: str) -> None:
        logger.error("%s must not serve: %s", self.label, reason)
        super().taint(reason)
