"""Is the native engine of ``vllm serve ... --weight-transfer-config '{"backend": "ckpt_transport"}'``.

Imported by vLLM only, when that backend is asked for.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.parallel_state import get_world_group
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from ckpt_transport import Config, Sink
from ckpt_transport.spi import listen, warm_up
from ckpt_transport_vllm.engine import VllmEngine
from ckpt_transport_vllm.plugin import UPDATE
from ckpt_transport_vllm.quiesce import LentThread
from ckpt_transport_vllm.replicas import engine_group, worker_label
from ckpt_transport_vllm.updated_model import UpdatedModel
from ckpt_transport_vllm.versions import check_supported

logger = logging.getLogger(__name__)


@dataclass
class InitInfo(WeightTransferInitInfo):
    """What vLLM is given to open sinks in its workers.

    Attributes:
        report_to: the mailbox that hears where each worker's sink is.
        host: where that mailbox is.
        engine: a name that all workers of this engine are given, and no other's.
        version: what is served now; of use only when the worker does not know.
        warm_up: do in the background what the first update would do.
    """

    report_to: str
    host: str = ""
    engine: str = ""
    version: str = ""
    warm_up: bool = False


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """What vLLM is given to stand still for an update.

    Attributes:
        patience: seconds to wait for the update to begin.
    """

    patience: float = 30.0


class NativeEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """A sink beside vLLM's life cycle: ``update_weights`` lends the worker's thread until an update has ended.

    Nothing here raises while it serves: with several ranks vLLM would take the other ranks' answers for those to its
    next call. How an update ended is known to whoever led it.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = True

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        check_supported(self._target)
        self._lent_thread = LentThread()
        self._sink: Sink | None = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Listen, and tell ``report_to`` where."""
        try:
            sink = self._listen(init_info)
            sink.announce(init_info.report_to)
            if init_info.warm_up:
                warm_up(sink, self._target().expects())
        except Exception:
            logger.exception("no sink could be opened, or it does not warm up")

    def _listen(self, info: InitInfo) -> Sink:
        def make_engine() -> VllmEngine:
            label = f"{worker_label(get_world_group().rank_in_group, self.vllm_config)} in process {os.getpid()}"
            group = engine_group(info.engine or str(os.getppid()), self.vllm_config)
            always = Config.load().verify_apply == "always"
            return VllmEngine(self._target, self._lent_thread, lambda: None, group, label, verify_always=always)

        self._sink = listen(self._sink, info.host, info.version, make_engine)
        return self._sink

    def _target(self) -> UpdatedModel:
        """The served model, or the draft model between ``start_draft_weight_update`` and ``finish_weight_update``."""
        return UpdatedModel(self.model, self.model_config, self.vllm_config)

    def start_weight_update(self) -> None:
        """The sink does what is needed when the first bytes come."""
        if self._sink is not None:
            self._sink.claim.begun.add(UPDATE)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Stand still until an update has ended, well or not."""
        self._lent_thread.lend(update_info.patience)

    def finish_weight_update(self) -> None:
        """The sink did what is needed after the last bytes."""
        if self._sink is not None:
            self._sink.claim.begun.discard(UPDATE)

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Asked for by vLLM before 0.28; a :class:`~ckpt_transport.ParameterServer` sends weights here."""
        raise NotImplementedError("bring weights with ckpt_transport.ParameterServer, or ckpt_transport_vllm.VllmFleet")

    def shutdown(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None
